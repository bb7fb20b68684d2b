"""Prompts as a person writes them: text with gaps."""

import pytest

from dlm.data.source import Source
from dlm.errors import UserError
from dlm.sample import parse_prompt


class Letters(Source):
    """Twenty letters to a sequence."""

    seq_len, vocab_size = 20, 128

    def tokens(self, split): ...
    def chars(self, split): ...
    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def picture(prompt):
    """The prompt as the model sees it, a free position as an underscore."""
    ids, free = parse_prompt(prompt, Letters())
    assert len(ids) == len(free)
    return "".join("_" if f else chr(i) for i, f in zip(ids.tolist(), free.tolist(), strict=True))


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        (None, "_" * 20),
        ("", "_" * 20),
        ("def [MASK:9] return", "def _________ return"),
        ("[MASK]x[MASK:2]", "_x__"),
        ("[MASK:3]", "___"),
        ("x = 1", "x = 1" + "_" * 15),
        ("[MASKED]", "[MASKED]" + "_" * 12),
        ("[mask:3]", "[mask:3]" + "_" * 12),
    ],
)
def test_prompts(prompt, seen):
    assert picture(prompt) == seen


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("def [MASK:12] return", "23 of the model's 20"),
        ("[MASK:0]", "MASK:0"),
        ("a[MASK:0]b[MASK]", "MASK:0"),
        ("x" * 20, "leaves no room"),
        ("x" * 30, "30 of the model's 20"),
        ("[MASK:21]", "21 of the model's 20"),
    ],
)
def test_prompts_that_do_not_fit(prompt, said):
    with pytest.raises(UserError, match=said):
        parse_prompt(prompt, Letters())
