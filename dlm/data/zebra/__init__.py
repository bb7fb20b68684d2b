"""Zebra puzzles: who lives where, by clues; their solutions, and the order in which clues decide the cells."""

from dlm.data.kernels import keep_kernels

keep_kernels()
