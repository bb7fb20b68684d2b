"""Masked diffusion models of other people, decoded by the samplers of this suite.

model.py       LLaDA (Nie et al. 2025), or any model with its interface, from Hugging Face or a folder
generate.py    blocks from left to right, each in an order of its own

python -m dlm.llada model=GSAI-ML/LLaDA-8B-Base --prompt "def add(a, b): [MASK:12]" policy=margin
"""
