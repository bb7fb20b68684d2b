"""Sudoku of any size: boards, solutions, puzzles that are minimal, and what a human needs to solve them."""

from dlm.data.kernels import keep_kernels

keep_kernels()
