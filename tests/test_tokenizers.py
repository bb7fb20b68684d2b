"""Characters are a fixed table; BPE decodes what it encodes and has seen nothing but train."""

import pickle

import pytest

from dlm.data.text import file
from dlm.data.tokenizer import BPE, Characters
from dlm.errors import UserError

HARD = "tabs\tand\nnewlines\n\n  naïve café 🦉👩‍🔬 漢字 \x00 ½  trailing "


def test_characters_are_97_and_fixed():
    characters = Characters()
    assert characters.vocab_size == 97
    assert characters.encode(" ~\n\té漢🦉") == [0, 94, 95, 96, 96, 96, 96]
    assert characters.decode(range(97)) == "".join(map(chr, range(32, 127))) + "\n\ufffd"
    assert characters.fingerprint == Characters().fingerprint


def test_characters_round_trip():
    text = "def f(x):\n    return {x: '~'}\n"
    assert Characters().decode(Characters().encode(text)) == text
    assert Characters().encode("") == [] and Characters().decode([]) == ""


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    BPE(300).fit(["the cat and the hat\n\n"] * 50 + ["the end"], folder)
    return BPE(300).load(folder)


def test_bpe_decodes_anything_exactly(bpe):
    assert bpe.decode(bpe.encode(HARD)) == HARD
    assert len(bpe.encode("the")) == 1


def test_bpe_reports_the_ids_in_use_and_travels_to_workers(bpe):
    assert 256 < bpe.vocab_size < 300, "so small a text has fewer than 44 merges"
    assert max(bpe.encode(HARD)) < bpe.vocab_size
    assert pickle.loads(pickle.dumps(bpe)).encode(HARD) == bpe.encode(HARD)


def test_bpe_is_deterministic(tmp_path):
    texts = [f"paragraph {i} of many, {i * i}\n\n" for i in range(200)]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        BPE(400).fit(texts, tmp_path / name)
    first, second = ((tmp_path / name / BPE.FILE).read_bytes() for name in ("first", "second"))
    assert first == second


def test_bpe_learns_from_train_only(tmp_path):
    """Held-out paragraphs repeat a word that train lacks; it must not become one id."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"sentence {i} is plain, as {i * 37} others are" for i in range(300)))
    plain = file(corpus, seq_len=8, tokenizer=BPE(1000), cache_dir=tmp_path / "cache")
    held_out = {plain.decode(plain.tokens(split)) for split in ("tune", "report")}
    numbers = [i for i in range(300) if any(f"sentence {i} is" in text for text in held_out)]
    lines = corpus.read_text().split("\n\n")
    for i in numbers:
        lines[i] = lines[i].replace("plain", "zyxwv")  # of equal length, so that the split stays the same
    corpus.write_text("\n\n".join(lines))
    marked = file(corpus, seq_len=8, tokenizer=BPE(1000), cache_dir=tmp_path / "cache")
    assert "zyxwv" in marked.decode(marked.tokens("tune"))
    assert "zyxwv" not in marked.decode(marked.tokens("train"))
    assert len(marked.encode("zyxwv")) == 5 and len(marked.encode(" plain")) == 1


@pytest.mark.parametrize("vocab_size", [0, 255])
def test_bpe_needs_every_byte(vocab_size):
    with pytest.raises(UserError, match=f"vocab_size={vocab_size}"):
        BPE(vocab_size)


def test_unfitted_bpe_says_so():
    with pytest.raises(UserError, match="not been fitted"):
        BPE().encode("text")
