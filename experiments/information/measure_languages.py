"""The two languages, small enough to be listed, and the processes of the suite fitted to them."""

import itertools
from typing import Any

import torch
from torch.nn import functional as F

from dlm.build import build_processes
from dlm.process import GenMaskedDiffusion, Process
from dlm.process.destroyers import sequences
from dlm.toy.information import Language

SENTENCES = {  # the essay's own, with weights that are not all equal
    "The cat is black": 4,
    "The cat is white": 3,
    "The cat is sleepy": 3,
    "The cat was sleepy": 1,
    "The dog is black": 2,
    "The dog is brown": 2,
    "Your cat is black": 1,
}


def letters(size: int, length: int, stay: float) -> Language:
    """A Markov chain: letter v starts with probability ~ 1/(v+1); the next one repeats it, or is its successor,
    twice as often as any other."""
    start = 1 / torch.arange(1.0, size + 1, dtype=torch.float64)
    leave = torch.ones(size, size, dtype=torch.float64) + torch.eye(size, dtype=torch.float64).roll(1, 1)
    leave.fill_diagonal_(0)
    move = stay * torch.eye(size, dtype=torch.float64) + (1 - stay) * leave / leave.sum(1, keepdim=True)
    clean = sequences(size, length)
    p = (start / start.sum())[clean[:, 0]]
    for a, b in itertools.pairwise(clean.T):
        p = p * move[a, b]
    return Language(size, clean, p)


def sentences() -> Language:
    """The listed sentences over the vocabulary of their words, most frequent word first."""
    split = [text.split() for text in SENTENCES]
    weight = torch.tensor(list(SENTENCES.values()), dtype=torch.float64)
    words = {word for text in split for word in text}
    count = {word: sum(w for text, w in SENTENCES.items() if word in text.split()) for word in words}
    vocabulary = sorted(words, key=lambda word: (-count[word], word))
    return Language(len(words), torch.tensor([[vocabulary.index(w) for w in text] for text in split]), weight)


def described(language: Language) -> dict[str, Any]:
    return {
        "vocab_size": language.vocab_size,
        "length": language.length,
        "sequences": len(language.p),
        "entropy": float(language.entropy),
        "independent": float(sum(language.marginal_entropy([i]) for i in range(language.length))),
    }


def spread_out(language: Language, spread: float) -> Process:
    """GenMD4 with w from 1/spread to spread."""
    process = GenMaskedDiffusion(language.vocab_size).double().requires_grad_(False)
    w = spread ** torch.linspace(-1, 1, language.vocab_size, dtype=torch.float64)
    process.schedule.raw.copy_(w.expm1().log())
    return process


def processes(language: Language, spreads: list[float]) -> dict[str, Process]:
    """Every method of the suite, with noise counted on the language where it is, and GenMD4 away from w = 1."""
    found = build_processes(language.vocab_size)
    for process in found.values():
        onehot = F.one_hot(language.clean, language.vocab_size).double()
        process.observe((1e6 * language.p @ onehot.sum(1)).long())
    return found | {f"genmd4 (spread {s:g})": spread_out(language, s) for s in spreads}
