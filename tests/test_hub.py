"""Corpora of the hub, from small files of their layout: what is kept, in which order, and what is refused."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import composed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dlm.build import build_data
from dlm.data.hub import HubText
from dlm.data.leak import WIDTH, verbatim_share, window_hashes
from dlm.data.stream import Cleaner, HeldOutWindows, Seen, build_streamed
from dlm.data.tokenizer import BPE, Bytes, Pretrained
from dlm.errors import UserError

RNG = np.random.default_rng(0)
WORDS = ["".join(chr(97 + c) for c in RNG.integers(0, 26, RNG.integers(3, 9))) for _ in range(500)]


def line(words=12):
    return " ".join(RNG.choice(WORDS, words))


def document(lines=4):
    return "\n".join(line() for _ in range(lines))


DOCUMENTS = [document() for _ in range(300)]
HELD_OUT = [document() for _ in range(60)]


def write_c4(folder, train=DOCUMENTS, held_out=HELD_OUT):
    """allenai/c4: en/c4-<split>.<i>-of-<n>.json.gz, one object of text, timestamp, url per line."""
    (folder / "en").mkdir(parents=True, exist_ok=True)
    parts = {"c4-train.00000-of-00002": train[::2], "c4-train.00001-of-00002": train[1::2]}
    for name, texts in (parts | {"c4-validation.00000-of-00001": held_out}).items():
        with gzip.open(folder / "en" / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            for text in texts:
                row = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "http://example.com"}
                file.write(json.dumps(row) + "\n")
    return folder


def write_fineweb(folder, texts=DOCUMENTS):
    """HuggingFaceFW/fineweb-edu: sample/10BT/000_00000.parquet with text, id, dump, url, ..., score."""
    (folder / "sample" / "10BT").mkdir(parents=True)
    rest = {"id": "x", "dump": "CC-MAIN-2013-20", "url": "http://example.com", "score": 2.5}
    table = pa.Table.from_pylist([{"text": text, **rest} for text in texts])
    pq.write_table(table, folder / "sample" / "10BT" / "000_00000.parquet")
    return folder


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    return write_c4(tmp_path_factory.mktemp("c4"))


def source(path, tmp_path, **settings):
    defaults = dict(
        name="c4", dataset="allenai/c4", seq_len=32, train_tokens=40_000, held_out_tokens=4_000, tokenizer=Bytes()
    )
    settings = {"held_out_split": "validation", "cache_dir": tmp_path / "cache"} | settings
    return HubText(path=path, **(defaults | settings))


# --- the parts ----------------------------------------------------------------------------------------------


def test_seen_is_a_set():
    seen, known = Seen(), set()
    for _ in range(40):
        hashes = RNG.integers(0, 400, RNG.integers(0, 30)).astype(np.uint64)
        new = [h not in known and h not in hashes[:i] for i, h in enumerate(hashes.tolist())]
        assert seen.add(hashes).tolist() == new
        known |= set(hashes.tolist())
    assert sum(map(len, seen.runs)) == len(known) and len(seen.runs) <= 10


def test_shares_of_windows_are_those_of_the_plain_audit():
    held_out = line(400)
    train = line(100) + held_out[300:500] + line(100) + held_out[900:960]
    windows = HeldOutWindows([held_out])
    windows.met["before"][windows.find(window_hashes(train))[1]] = True
    assert windows.share("before") == pytest.approx(verbatim_share(held_out, train), abs=0)
    assert windows.share("before") > 0 and windows.share("after") == 0


def test_planted_leaks_are_found_and_dropped():
    """A repeated document, a repeated line, and a line with 50 characters of held-out text within other text."""
    cleaner = Cleaner(clean_lines=True)
    held_out = [line(20), line(20)]
    assert cleaner.clean(held_out, "report") == held_out
    cleaner.finish("report")
    cleaner.hold_out("report", held_out)
    fresh = [line(20) for _ in range(3)]
    just_50 = f"{fresh[1][:40]} {held_out[0][3 : 3 + WIDTH]} tail of the line"
    just_49 = f"{fresh[2][:40]} QZ{held_out[1][3 : 3 + WIDTH - 1]}QZ tail"
    batch = [f"  {held_out[0]} ", f"{fresh[0]}\n{just_50}\nshort\n{held_out[1]}", f"{just_49}\nshort", fresh[0]]
    assert cleaner.clean(batch, "train") == [f"{fresh[0]}\nshort", f"{just_49}\nshort"]
    cleaner.finish("train")
    assert cleaner.overlaps == {"train": 1, "tune": 0, "report": 0}
    assert cleaner.duplicates == 3, "a document and two lines"
    windows = sum(len(text) - WIDTH + 1 for text in held_out)
    met = 1 + len(held_out[1]) - WIDTH + 1  # of the planted 50 characters; the repeated line counts as well
    assert cleaner.leak["before"]["report_in_train"] == pytest.approx(met / windows)
    assert cleaner.leak["after"]["report_in_train"] == 0


def test_overlaps_may_stay_and_are_counted():
    cleaner = Cleaner(clean_lines=False)
    cleaner.hold_out("tune", ["Once upon a time, there was a little girl named Lily. " + line()])
    story = "Once upon a time, there was a little girl named Lily. She liked " + line()
    assert cleaner.clean([story], "train") == [story]
    cleaner.finish("train")
    assert cleaner.leak["after"]["tune_in_train"] == cleaner.leak["before"]["tune_in_train"] > 0


def test_the_stream_is_cut_at_documents_and_its_batches_do_not_matter(tmp_path, monkeypatch):
    streams = []
    for size in (1, 7, 512):
        monkeypatch.setattr("dlm.data.stream.BATCH", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        wanted = {"report": 1000, "tune": 1000, "train": 9000}
        texts = [*DOCUMENTS[:40], *DOCUMENTS[:20], *DOCUMENTS[40:]]
        built = build_streamed(iter(texts), None, wanted, Bytes(), folder, True)
        streams.append({file.name: file.read_bytes() for file in folder.iterdir()})
        assert all(0 <= built["audit"]["tokens"][s] - wanted[s] < 500 for s in wanted)
    assert streams[0] == streams[1] == streams[2]


# --- the source ---------------------------------------------------------------------------------------------


def test_c4_layout_is_read_in_order_without_loss(c4, tmp_path):
    data = source(c4, tmp_path)
    in_order = [*DOCUMENTS[::2], *DOCUMENTS[1::2]]
    count = data.audit["documents"]["train"]
    assert data.decode(data.tokens("train")) == "".join(text + "\n\n" for text in in_order[:count])
    held_out = data.decode(data.tokens("report")) + data.decode(data.tokens("tune"))
    assert held_out == "".join(text + "\n\n" for text in HELD_OUT[: held_out.count("\n\n")])
    assert data.audit["tokens"] == {split: len(data.tokens(split)) for split in ("train", "tune", "report")}
    assert data.chars("train") == len(data.tokens("train")), "ASCII: one byte per character"


def test_documents_are_numbered_per_token(c4, tmp_path):
    data = source(c4, tmp_path)
    numbers, text = data.documents("tune"), data.decode(data.tokens("tune"))
    assert len(numbers) == len(data.tokens("tune"))
    pieces = [text[numbers.searchsorted(i) : numbers.searchsorted(i, "right")] for i in range(numbers[-1] + 1)]
    assert all(piece.strip() in HELD_OUT and piece.endswith("\n\n") for piece in pieces)
    cut = source(c4, tmp_path, unique_tokens=320)
    assert len(cut.documents("train")) == len(cut.tokens("train")) == 320


def test_budgets_nest_and_share_their_held_out_text(c4, tmp_path):
    small, large = (source(c4, tmp_path, train_tokens=n) for n in (20_000, 40_000))
    assert (large.tokens("train")[: len(small.tokens("train"))] == small.tokens("train")).all()
    for split in ("tune", "report"):
        assert (large.tokens(split) == small.tokens(split)).all()
    assert large.fingerprint != small.fingerprint, "the audit is of the pool"
    budgets = {source(c4, tmp_path, unique_tokens=n).fingerprint for n in (640, 6400, None)}
    assert budgets == {large.fingerprint}


def test_a_second_reading_needs_no_files(c4, tmp_path, monkeypatch):
    first = source(c4, tmp_path)
    monkeypatch.setattr("dlm.data.hub.texts_of", None)
    assert source(c4, tmp_path).fingerprint == first.fingerprint


def test_another_text_is_another_fingerprint(tmp_path):
    prints = set()
    for word in ("one", "two"):
        folder = write_c4(tmp_path / word, train=[f"{DOCUMENTS[0]} {word}", *DOCUMENTS[1:]])
        prints.add(source(folder, tmp_path).fingerprint)
    same = source(write_c4(tmp_path / "copy", train=[f"{DOCUMENTS[0]} two", *DOCUMENTS[1:]]), tmp_path)
    assert len(prints) == 2 and same.fingerprint in prints, "the content counts, not the place"


def test_fineweb_layout_holds_out_its_beginning(tmp_path):
    data = source(write_fineweb(tmp_path / "edu"), tmp_path, name="fineweb-edu", held_out_split=None)
    text = "".join(data.decode(data.tokens(split)) for split in ("report", "tune", "train"))
    assert text == "".join(t + "\n\n" for t in DOCUMENTS[: text.count("\n\n")])


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer.json as GPT-2's, without its merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    codec = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    codec.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    codec.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    codec.save(str(path))
    return path


@pytest.mark.parametrize("name", ["c4", "fineweb_edu", "tinystories"])
def test_every_hub_yaml_reads_its_layout(name, c4, byte_level, tmp_path):
    path = write_fineweb(tmp_path / "edu") if name == "fineweb_edu" else c4
    sizes = [f"data.path={path}", "data.train_tokens=9000", "data.held_out_tokens=2000"]
    cfg = composed(
        f"data={name}", f"data.cache_dir={tmp_path}", *sizes, f"data.tokenizer.path={byte_level}", "seq_len=32"
    )
    data = build_data(cfg)
    assert cfg.vocab_size == 256 and len(data.windows("report", 3)) == 3
    assert len(set(data.window_passages("report").tolist())) > 3
    assert data.source.decode(data.source.encode("naïve 🦉")) == "naïve 🦉"


def test_the_standard_library_in_bytes_is_configured():
    cfg = composed("data=stdlib_bytes")
    assert cfg.data["_target_"] == "dlm.data.text.stdlib"
    assert cfg.data.tokenizer["_target_"] == "dlm.data.tokenizer.Bytes"


# --- refusals -----------------------------------------------------------------------------------------------


def refusal(path, tmp_path, **settings):
    with pytest.raises(UserError) as error:
        source(path, tmp_path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_network_it_says_which_corpus_and_what_to_do(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    message = refusal(None, tmp_path, subset="en")
    assert "allenai/c4 (en)" in message and "data.path" in message and "not known" in message
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UserError, match=r"no/such.*data\.tokenizer\.path"):
        Pretrained("no/such").fit([], tmp_path)


def test_what_cannot_be_read_is_refused(c4, tmp_path):
    assert "is not a folder" in refusal(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no .parquet" in refusal(tmp_path / "empty", tmp_path)
    assert "no file of the split 'validation'" in refusal(write_fineweb(tmp_path / "edu"), tmp_path)
    pq.write_table(pa.table({"content": ["x"] * 9}), tmp_path / "empty" / "train.parquet")
    assert "no column 'text'" in refusal(tmp_path / "empty", tmp_path, held_out_split=None)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read" in refusal(tmp_path / "broken", tmp_path, held_out_split=None)
    assert not list((tmp_path / "cache").glob("*")), "nothing half-built is left"


def test_sizes_that_do_not_fit_are_refused(c4, tmp_path):
    assert "train_tokens=40000" in refusal(c4, tmp_path, unique_tokens=50_000)
    assert "exceeds the" in refusal(c4, tmp_path, train_tokens=10**7, unique_tokens=10**6)
    assert "train_tokens=0" in refusal(c4, tmp_path, train_tokens=0)
    greedy = refusal(write_fineweb(tmp_path / "edu"), tmp_path, held_out_split=None, held_out_tokens=10**7)
    assert "not one window" in greedy
    assert "no tokenizer can be fitted" in refusal(c4, tmp_path, tokenizer=BPE(300))


# --- tokenizers ---------------------------------------------------------------------------------------------


def test_bytes_are_exact_and_fitted_on_nothing():
    text = "naïve 🦉\x00\n漢"
    assert Bytes().vocab_size == 256 and Bytes().encode(text) == list(text.encode())
    assert Bytes().decode(Bytes().encode(text)) == text
    assert Bytes().decode([0xC3]) == "\ufffd"


def test_a_pretrained_tokenizer_is_kept_beside_the_tokens(byte_level, tmp_path):
    tokenizer = Pretrained(path=byte_level)
    tokenizer.fit([], tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert loaded.vocab_size == 256 and loaded.decode(loaded.encode("a 漢")) == "a 漢"
    assert tokenizer.fingerprint != Pretrained().fingerprint
    with pytest.raises(UserError, match=r"data\.tokenizer\.path"):
        Pretrained(path=tmp_path / "none.json").fit([], tmp_path)
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Pretrained(path=tmp_path / "none.json").fit([], tmp_path)
