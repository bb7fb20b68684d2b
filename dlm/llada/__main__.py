"""Text from a masked diffusion model of Hugging Face.

    python -m dlm.llada model=GSAI-ML/LLaDA-8B-Base --prompt "The sea is" gen_length=64 block_length=32 steps=32
    python -m dlm.llada model=FOLDER --prompt "def [MASK:12] return a + b" policy=margin per_step=2
    python -m dlm.llada model=GSAI-ML/LLaDA-8B-Instruct chat=true --prompt "What is 3 times 17?"

A prompt is continued by `gen_length` tokens, or has gaps that are filled: [MASK:12] is a span of twelve. Of a
continuation only what was generated is printed, of a prompt with gaps the whole text. By default values are greedy
and the likeliest come first, as in LLaDA's own generate().
"""

import inspect
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from dlm import config, sampling
from dlm.errors import UserError
from dlm.llada.generate import in_blocks
from dlm.llada.model import MaskPredictor, load, mask_of, masked_process
from dlm.sample import GAP, parse_prompt, prompt_argument, warp_for


@dataclass
class Command:
    """The command line."""

    model: str = ""  # a folder, or an id on Hugging Face; its Python files are run
    revision: str | None = None  # of the id
    gen_length: int = 128  # tokens after a prompt without gaps
    block_length: int | None = None  # generated from left to right; by default one block
    steps: int | None = None  # of all blocks together
    per_step: int | None = None  # tokens at a time, instead of steps; by default one
    policy: str | None = None  # random, left_to_right, top_probability, margin, log_ratio, entropy
    selection: str = "state"  # value ranks by what was drawn: LLaDA's rule for drawn values
    score_scale: str = "probability"  # log
    noise: str = "none"  # gumbel, gaussian
    noise_scale: float | None = None
    anneal: str = "constant"  # masked_share
    ties: str = "left"  # random
    reveal: str = "equal"  # binomial
    remask: bool = False
    values: str = "greedy"  # sampled
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 0.0  # of classifier-free guidance: LLaDA's cfg_scale
    chat: bool = False  # ask in the chat format of an instructed model
    mask_id: int | None = None  # by default what the model's configuration says
    n: int = 1
    seed: int = 0
    device: str | None = None  # by default the GPU, if there is one
    dtype: str = "auto"  # bfloat16, float32


def prepared(prompt: str, command: Command, tokenizer: Any) -> str:
    """The prompt with its gaps, in the chat format if asked for.

    Raises:
        UserError: for gaps in a chat, a tokenizer without a chat format, or nothing to generate.
    """
    if command.gen_length < 1:
        raise UserError(f"gen_length={command.gen_length} generates nothing")
    gaps = GAP.search(prompt) is not None
    if not command.chat:
        return prompt if gaps else f"{prompt}[MASK:{command.gen_length}]"
    if gaps:
        raise UserError("chat=true asks a question, whose answer follows: it has no gaps")
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(f"{command.model} has no chat format: leave out chat=true")
    messages = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return f"{asked}[MASK:{command.gen_length}]"


def main() -> None:
    arguments = [f"--{word}" if word.startswith("prompt=") else word for word in sys.argv[1:]]
    prompt, rest = prompt_argument(arguments)
    command: Command = config.command_line(Command, rest)
    if not command.model or prompt is None:
        raise UserError(
            'which model, which prompt? python -m dlm.llada model=FOLDER --prompt "def [MASK:12] return"'
        )
    if command.n < 1:
        raise UserError(f"n must be at least 1, not {command.n}")
    warp = warp_for(command.values, command.temperature, command.top_p)
    device = command.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device={device}, but torch finds no GPU here")
    model, tokenizer = load(command.model, command.revision, device, command.dtype)
    mask_id = mask_of(model, tokenizer) if command.mask_id is None else command.mask_id
    text: Any = SimpleNamespace(
        encode=lambda piece: tokenizer.encode(piece, add_special_tokens=False),
        vocab_size=model.config.vocab_size,
        seq_len=getattr(model.config, "max_sequence_length", None) or model.config.max_position_embeddings,
    )
    process: Any = masked_process(text.vocab_size, mask_id)
    ids, free = (part.to(device) for part in parse_prompt(prepared(prompt, command, tokenizer), text))
    if (ids[~free] == mask_id).any():
        raise UserError("the prompt holds the model's own mask token: write gaps as [MASK:12]")
    denoise = MaskPredictor(model, mask_id, command.guidance, ~free)
    wide = (command.n, len(ids))
    known = inspect.signature(sampling.ordered).parameters
    options = {key: value for key, value in vars(command).items() if key in known and key != "steps"}
    if options["policy"] is None:
        options["policy"] = "top_probability"
    sample = in_blocks(
        process,
        denoise,
        ids.expand(wide),
        free.expand(wide),
        torch.Generator().manual_seed(command.seed),
        command.block_length,
        command.steps,
        warp=warp,
        **options,
    )
    report(sample, free, tokenizer, whole=GAP.search(prompt) is not None, passes=denoise.passes)


def report(sample: sampling.Sample, free: torch.Tensor, tokenizer: Any, whole: bool, passes: int) -> None:
    """Print every row under what it cost."""
    tokens = int(free.sum())
    assert sample.ties is not None
    for row, evaluations, ties in zip(sample.x, sample.evaluations.tolist(), sample.ties.tolist(), strict=True):
        asked = f"{evaluations * passes} network evaluations"
        ranked = f", {ties} steps decided between equal scores" if ties else ""
        print(f"--- {tokens} tokens, {asked}, {tokens / evaluations:.3g} tokens per step{ranked}")
        print(tokenizer.decode(row if whole else row[free], skip_special_tokens=True))


if __name__ == "__main__":
    config.entry(main)
