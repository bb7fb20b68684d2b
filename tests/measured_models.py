"""What the tests of measures share: text given by hand, and models whose network is a function."""

import torch
from torch import nn

from dlm.backbone import Transformer
from dlm.data.module import DataModule
from dlm.data.source import Source
from dlm.lm import AutoregressiveLM, MaskedDiffusionLM, UniformDiffusionLM
from dlm.measure import Settings, Subject
from dlm.process import MaskedDiffusion, UniformDiffusion

LETTERS = "abcdefghijklmnopqrstuvwxyz()[]"


class Given(Source):
    """Three texts over LETTERS, one token per character."""

    fingerprint, audit = "0" * 16, {}
    vocab_size = len(LETTERS)

    def __init__(self, seq_len, train, tune=None, report=None):
        self.seq_len = seq_len
        self.texts = {"train": train, "tune": tune or train, "report": report or train}

    def tokens(self, split):
        return torch.tensor(self.encode(self.texts[split])).numpy().astype("uint16")

    def chars(self, split):
        return len(self.texts[split])

    def encode(self, text):
        return [LETTERS.index(c) for c in text]

    def decode(self, ids):
        return "".join(LETTERS[int(i)] for i in ids)


class Network(nn.Module):
    """logits(x, t) [B L V] in the place of a Transformer."""

    dropout, random_in_training, time = nn.Dropout(0.0), False, None

    def __init__(self, logits, vocab_size):
        super().__init__()
        self.logits, self.vocab_size, self.asked = logits, vocab_size, 0

    def forward(self, x, t=None, where=None, cache=None, **how):
        self.asked += len(x)
        found = self.logits(x)
        return found if where is None else found[where]

    def new_cache(self, batch):
        return None


def untrained(kind, vocab_size, length):
    """A fresh model: uniform everywhere, exactly."""
    torch.manual_seed(0)
    small = {"vocab_size": vocab_size, "max_len": length, "dim": 8, "depth": 1, "heads": 2}
    if kind == "arm":
        return AutoregressiveLM(Transformer(**small, causal=True)).eval()
    if kind == "md4":
        return MaskedDiffusionLM(MaskedDiffusion(vocab_size), Transformer(**small)).eval()
    return UniformDiffusionLM(UniformDiffusion(vocab_size), Transformer(**small, time="additive")).eval()


def model(kind, logits, vocab_size, length):
    """A model whose network is this function."""
    made = untrained(kind, vocab_size, length)
    made.backbone = Network(logits, vocab_size)
    return made


def subject(made, source, **settings):
    return Subject(made, DataModule(source, 1, 0), Settings(**settings))
