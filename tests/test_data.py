"""Splits do not leak, caches do not lie, and the n-th batch is a function of (seed, n)."""

import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlm.data.corpus import Pydoc, StandardLibrary, paragraphs
from dlm.data.leak import sharing, verbatim_share, window_hashes
from dlm.data.module import PASSAGE, DataModule, starts_of_runs
from dlm.data.sampler import ShardedBatches, StreamSampler
from dlm.data.source import SPLITS
from dlm.data.split import assign, prepare
from dlm.data.synthetic import ToySource
from dlm.data.text import TextSource, file, pydoc
from dlm.data.tokenizer import BPE
from dlm.errors import UserError


def prose(seed: int, count: int = 40) -> str:
    """Random words: no two paragraphs share 50 characters by chance."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), size=rng.integers(2, 9))) for _ in range(count * 12)]
    return "\n\n".join(" ".join(words[12 * i : 12 * i + 12]) for i in range(count))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def topics(cache) -> TextSource:
    return pydoc(seq_len=128, cache_dir=cache)


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(prose(0, 100))
    return path


# --- leaks and splits -------------------------------------------------------------------------------------------


def test_window_hashes_find_exactly_the_common_substrings():
    rng = np.random.default_rng(0)
    train, held_out = ("".join(rng.choice(list("ab"), size=300)) for _ in range(2))
    windows = {train[i : i + 6] for i in range(len(train) - 5)}
    found = np.isin(window_hashes(held_out, 6), window_hashes(train, 6))
    assert found.tolist() == [held_out[i : i + 6] in windows for i in range(len(held_out) - 5)]
    assert len(window_hashes("short", 6)) == 0 and verbatim_share("", train) == 0.0


def test_shingles_stay_inside_one_text():
    assert sharing(["abcdef", "xyzabc", "abcxyz", "ab", ""], ["abc", "xyz"], width=4).tolist() == [False] * 5
    assert sharing(["abcdef", "xyzabc", "ab"], ["", "zabc."], width=4).tolist() == [False, True, False]


def test_planted_leak_is_found_by_the_audit_and_dropped():
    documents = {f"chapter {i}": prose(i) for i in range(20)}
    split_of = assign({name: len(text) for name, text in documents.items()})
    source = min(name for name in documents if split_of[name] == "train")
    home = max(name for name in documents if split_of[name] == "report")
    assert source < home, "the first of two duplicates is kept"
    stolen = paragraphs(documents[source])[3]
    leaked = f"An old proverb says\n   {stolen}".replace(" ", "  ")  # re-wrapped, so not a duplicate
    documents[home] += f"\n\n{stolen}\n\n{leaked}"
    prepared = prepare(documents.items())
    audit = prepared.audit
    assert audit["duplicates_dropped"] == 1 and audit["overlaps_dropped"]["report"] == 1
    assert audit["leak"]["before"]["report_in_train"] > 0 == audit["leak"]["after"]["report_in_train"]
    assert not any("proverb" in text for text in prepared.paragraphs["report"])


def test_split_is_by_document():
    documents = {f"chapter {i}": prose(i) for i in range(30)}
    prepared = prepare(documents.items())
    homes = [{n for n in documents if any(p in documents[n] for p in prepared.paragraphs[s])} for s in SPLITS]
    assert not any(a & b for a, b in itertools.combinations(homes, 2)) and set.union(*homes) == set(documents)
    assert [len(home) for home in homes] == [24, 3, 3]


def test_pydoc_is_clean_and_sensibly_divided(topics):
    audit, total = topics.audit, sum(topics.audit["chars"].values())
    assert max(audit["leak"]["before"].values()) > 0.05
    assert max(audit["leak"]["after"].values()) < 0.01
    assert 0.7 < audit["chars"]["train"] / total < 0.9
    assert min(audit["chars"]["tune"], audit["chars"]["report"]) / total > 0.05
    assert len(audit["sha256"]) == 64 and audit["python"].count(".") == 2


def test_prefix_of_train_is_a_sample_of_its_topics(topics):
    wholes = dict(Pydoc().documents())
    first = topics.decode(topics.tokens("train")[:16_384]).split("\n\n")[:-1]
    used = {next((name for name, text in wholes.items() if p in text), None) for p in first}
    assert len(used) > 20


def test_paragraphs_keep_indentation():
    assert paragraphs("\n\n  a\n b  \n \t\n\n    c\n") == ["  a\n b", "    c"]


def test_standard_library_is_code_without_tests():
    names = [name for name, _ in itertools.islice(StandardLibrary().documents(), 40)]
    assert len(set(names)) == 40 and not any("test/" in name or "encodings" in name for name in names)


# --- sources and their cache ------------------------------------------------------------------------------------


def test_tokens_decode_to_the_text_they_stand_for(book, tmp_path):
    for tokenizer in (None, BPE(300)):
        source = file(book, 16, tokenizer=tokenizer, cache_dir=tmp_path)
        texts = {split: source.decode(source.tokens(split)) for split in SPLITS}
        assert {p for text in texts.values() for p in text.split("\n\n")} == set(book.read_text().split("\n\n"))
        assert all(len(texts[split]) == source.chars(split) for split in SPLITS)
        assert source.tokens("train").dtype == np.uint16
        prefix = file(book, 16, 100, tokenizer, tmp_path)
        assert prefix.chars("train") == len(prefix.decode(prefix.tokens("train")))


def test_budgets_are_nested_and_scored_on_the_same_text(topics, cache):
    small, large = (pydoc(128, unique_tokens=u, cache_dir=cache) for u in (8192, 16384))
    assert (len(small.tokens("train")), len(large.tokens("train"))) == (8192, 16384)
    assert np.array_equal(small.tokens("train"), large.tokens("train")[:8192])
    assert np.array_equal(small.tokens("tune"), topics.tokens("tune"))
    assert small.fingerprint == large.fingerprint == topics.fingerprint and len(small.fingerprint) == 16


def test_cache_is_named_by_content_and_tokenizer(book, tmp_path):
    sources = [file(book, 16, tokenizer=t, cache_dir=tmp_path) for t in (None, BPE(300), BPE(400))]
    book.write_text(book.read_text() + "\n\nmore")
    sources.append(file(book, 16, cache_dir=tmp_path))
    assert len({source.folder for source in sources}) == len({source.fingerprint for source in sources}) == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "meta"])
def test_damaged_cache_is_rebuilt(book, tmp_path, damage):
    source = file(book, 16, cache_dir=tmp_path)
    before, path = source.tokens("train").copy(), source.folder / "tokens-train.bin"
    content = bytearray(path.read_bytes())
    match damage:
        case "truncate":
            path.write_bytes(content[:-2])
        case "flip":
            content[0] ^= 1
            path.write_bytes(content)
        case "remove":
            path.unlink()
        case "meta":
            (source.folder / "meta.json").write_text("{")
    again = file(book, 16, cache_dir=tmp_path)
    assert np.array_equal(again.tokens("train"), before) and again.fingerprint == source.fingerprint
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [source.folder.name]


def test_a_second_builder_finds_the_first_ones_folder(tmp_path):
    from dlm.data.cache import cached

    def build(folder):
        (folder / "content").write_text("same")
        return {"name": "outer"}

    def overtaken(folder):
        cached(tmp_path / "data", build)
        return build(folder)

    assert cached(tmp_path / "data", overtaken) == cached(tmp_path / "data", build)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_bad_files_are_named(tmp_path):
    contents = {
        "empty.txt": b"",
        "blank.txt": b" \n\n\t",
        "latin.txt": "naïve".encode("latin-1"),
        "nul.bin": b"a\0b",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in ["missing.txt", "", *contents]:
        with pytest.raises(UserError, match=str(tmp_path / name)):
            file(tmp_path / name, 16, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"data\.path"):
        file(None, 16, cache_dir=tmp_path / "cache")


def test_sizes_that_do_not_fit_are_named(topics, cache, tmp_path):
    total = topics.audit["tokens"]["train"]
    with pytest.raises(UserError, match=f"{total + 1}.*{total}"):
        pydoc(128, unique_tokens=total + 1, cache_dir=cache)
    for unique_tokens in (127, 0, -5):
        with pytest.raises(UserError, match=f"{unique_tokens}.*128"):
            pydoc(128, unique_tokens=unique_tokens, cache_dir=cache)
    with pytest.raises(UserError, match=r"tune holds \d+ tokens, .* seq_len=50000"):
        pydoc(50_000, cache_dir=cache)
    with pytest.raises(UserError, match="seq_len=0"):
        pydoc(0, cache_dir=cache)
    (tmp_path / "tiny.txt").write_text("one line")
    with pytest.raises(UserError, match="too small to split"):
        file(tmp_path / "tiny.txt", 1, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"cache_dir=.*tiny\.txt"):
        pydoc(128, cache_dir=tmp_path / "tiny.txt")


# --- the training stream ----------------------------------------------------------------------------------------


def batches(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize("aligned", [True, False])
def test_every_epoch_covers_every_token_once(aligned):
    sampler = StreamSampler(tokens=960, seq_len=16, batch_size=12, seed=3, aligned=aligned)
    starts = np.concatenate([b.starts for b in batches(sampler, 15)]).reshape(3, 60)
    for epoch in starts:
        tokens = (epoch[:, None] + np.arange(16)) % 960
        assert np.array_equal(np.sort(tokens.ravel()), np.arange(960))
    assert np.array_equal(starts % 16 == 0, np.full((3, 60), aligned))
    assert not np.array_equal(starts[0], starts[1])


def test_a_remainder_is_dropped_at_a_moving_place():
    sampler = StreamSampler(tokens=1000, seq_len=64, batch_size=15, seed=0)
    covered = [set(((s[:, None] + np.arange(64)) % 1000).ravel().tolist()) for _, s, _ in batches(sampler, 20)]
    assert all(len(tokens) == 960 for tokens in covered) and len(set.union(*covered)) == 1000


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (4, 3), (6, 2)])
def test_nth_batch_does_not_depend_on_the_hardware(world, accumulate):
    """B = 24 of 30 windows, so batches straddle epochs."""
    common = {"tokens": 500, "seq_len": 16, "batch_size": 24, "seed": 7}
    whole = batches(StreamSampler(**common), 5)
    found = {step: {} for step in range(5)}
    for rank in range(world):
        sampler = StreamSampler(**common, world=world, rank=rank, accumulate=accumulate)
        for step, starts, rows in batches(sampler, 5 * accumulate):
            found[step].update(zip(rows.tolist(), starts.tolist(), strict=True))
    for step, starts, rows in whole:
        assert found[step] == dict(zip(rows.tolist(), starts.tolist(), strict=True)) and len(found[step]) == 24


def test_start_continues_the_stream():
    common = {"tokens": 500, "seq_len": 16, "batch_size": 8, "seed": 7, "accumulate": 2}
    whole, rest = batches(StreamSampler(**common), 12), batches(StreamSampler(**common, start=7), 5)
    for a, b in zip(whole[7:], rest, strict=True):
        assert a.step == b.step and np.array_equal(a.starts, b.starts) and np.array_equal(a.rows, b.rows)


def test_batch_larger_than_the_corpus_holds_whole_epochs():
    (batch,) = batches(StreamSampler(tokens=40, seq_len=8, batch_size=20, seed=0, aligned=True), 1)
    assert np.bincount(batch.starts, minlength=40)[::8].tolist() == [4] * 5


def test_seeds_give_different_orders():
    first, second = (batches(StreamSampler(5000, 8, 64, seed=s), 1)[0].starts for s in (0, 1))
    assert not np.array_equal(first, second)


def test_indivisible_batches_are_refused():
    with pytest.raises(UserError, match=r"batch_size=10 .* 4 processes x 1"):
        StreamSampler(500, 16, 10, seed=0, world=4)
    with pytest.raises(UserError, match="no window"):
        StreamSampler(10, 16, 2, seed=0)


# --- the data module --------------------------------------------------------------------------------------------


def on(data: DataModule, world=1, rank=0, accumulate=1, step=0) -> DataModule:
    """The data module as one rank of a trainer sees it."""
    data.trainer = SimpleNamespace(
        world_size=world,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        global_step=step,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batch(topics, num_workers):
    data = DataModule(topics, batch_size=8, seed=0, num_workers=num_workers)
    state = torch.get_rng_state()
    seen = list(itertools.islice(data.train_dataloader(), 3))
    assert torch.equal(state, torch.get_rng_state()), "the loader must not touch the global stream"
    assert [batch["step"] for batch in seen] == [0, 1, 2] and seen[0]["size"] == 8
    assert seen[0]["x0"].shape == (8, 128) and seen[0]["x0"].dtype == torch.int64
    assert seen[0]["target"].all() and seen[0]["target"].dtype == torch.bool
    assert seen[0]["rows"] == list(range(8))
    text = topics.decode(topics.tokens("train"))
    assert all(topics.decode(row) in text + text[:128] for row in seen[2]["x0"])


def test_resumed_loader_gives_the_batches_that_an_uninterrupted_one_gives(topics):
    data = DataModule(topics, batch_size=8, seed=0)
    whole = list(itertools.islice(on(data, 2, 1, accumulate=2).train_dataloader(), 8))
    rest = list(itertools.islice(on(data, 2, 1, accumulate=2, step=3).train_dataloader(), 2))
    for a, b in zip(whole[6:], rest, strict=True):
        assert a["step"] == b["step"] == 3 and torch.equal(a["x0"], b["x0"])


def test_evaluation_is_sharded_by_whole_batches_without_padding(topics):
    data = DataModule(topics, batch_size=8, seed=0, eval_batch_size=16, eval_windows=150)
    single = [list(loader) for loader in on(data).val_dataloader()]
    shards = [[list(loader) for loader in on(data, 3, rank).val_dataloader()] for rank in range(3)]
    for number, split in enumerate(data.split_names):
        assert sum(len(batch["x0"]) for batch in single[number]) == 150
        for i, batch in enumerate(single[number]):
            other = shards[i % 3][number][i // 3]
            assert torch.equal(batch["x0"], other["x0"]) and torch.equal(batch["index"], other["index"])
        assert sum(len(shard[number]) for shard in shards) == len(single[number])
        assert torch.equal(torch.cat([batch["x0"] for batch in single[number]]), data.windows(split, 150))


def test_evaluation_windows_tile_the_split(topics):
    data = DataModule(topics, batch_size=8, seed=0)
    windows = data.windows("tune")
    count = len(topics.tokens("tune")) // 128
    assert windows.dtype == torch.int64 and windows.shape == (count, 128)
    assert np.array_equal(windows.flatten().numpy(), topics.tokens("tune")[: count * 128])
    numbers = data.window_numbers("tune", 10)
    assert len(numbers) == 10 and set(np.diff(numbers)) <= {count // 10, count // 10 + 1}
    assert len(data.windows("tune", 10**6)) == count


def test_a_rank_without_evaluation_batches_is_refused():
    with pytest.raises(UserError, match="lower eval_batch_size"):
        ShardedBatches(np.arange(32), 32, world=2)


def test_epochs_are_counted_in_windows(cache):
    data = DataModule(pydoc(128, unique_tokens=8192, cache_dir=cache), batch_size=16, seed=0)
    assert data.steps_per_epoch == 4.0 and data.epoch_of(10) == 2.5


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"eval_batch_size": 0}, {"eval_windows": 0}, {"seed": -1}], ids=str
)
def test_bad_sizes_are_refused(topics, wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=name):
        DataModule(topics, **{"batch_size": 8, "seed": 0, **wrong})


def test_source_travels_to_a_worker_as_a_name(topics):
    parcel = pickle.dumps(topics)
    assert len(parcel) < 10_000
    assert np.array_equal(pickle.loads(parcel).tokens("tune"), topics.tokens("tune"))


# --- toy distributions ------------------------------------------------------------------------------------------

TOYS = [("markov", 3, 5), ("dirichlet", 3, 4), ("source0", 2, 2), ("markov", 1, 4), ("markov", 5, 1)]


@pytest.mark.parametrize(("name", "vocab_size", "seq_len"), TOYS)
def test_toy_entropy_is_that_of_its_table(name, vocab_size, seq_len):
    toy = ToySource(name, seq_len, vocab_size, seed=1)
    p = toy.probs()
    assert p.shape == (vocab_size**seq_len,) and p.dtype == torch.float64
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert toy.entropy == pytest.approx(-(p * p.clamp_min(1e-300).log()).sum().item(), abs=1e-12)


def test_source0_is_one_coin():
    toy = ToySource("source0", 2, 2)
    assert toy.probs().tolist() == [0, 0.5, 0, 0.5] and toy.entropy == pytest.approx(math.log(2), abs=1e-15)
    x = toy.tokens("train").reshape(-1, 2)
    assert (x[:, 1] == 1).all() and 0.4 < x[:, 0].mean() < 0.6


@pytest.mark.parametrize("name", ["markov", "dirichlet"])
def test_toy_samples_follow_the_table(name):
    toy = ToySource(name, 3, 3, seed=2)
    x = toy.sample(200_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(x @ torch.tensor([9, 3, 1]), minlength=27).double()
    p = toy.probs()
    rare = p * len(x) < 1
    z = (counts - p * len(x)) / (p * (1 - p) * len(x)).sqrt().clamp_min(1e-9)
    assert z[~rare].abs().max() < 4.5


def test_toy_streams_are_aligned_repeatable_and_distinct():
    toy, again, other = (ToySource("markov", 6, 4, seed=seed) for seed in (0, 0, 1))
    assert toy.aligned and toy.fingerprint == again.fingerprint != other.fingerprint
    assert np.array_equal(toy.tokens("train"), again.tokens("train"))
    assert not np.array_equal(toy.tokens("tune"), toy.tokens("report"))
    assert toy.encode(toy.decode([0, 3, 2])) == [0, 3, 2]
    sequences = set(map(tuple, toy.tokens("train").reshape(-1, 6).tolist()))
    batch = next(iter(DataModule(toy, batch_size=64, seed=0).train_dataloader()))
    assert set(map(tuple, batch["x0"].tolist())) <= sequences
    assert len(ToySource("markov", 6, 4, unique_tokens=60).tokens("train")) == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "poisson"}, "poisson .*markov, dirichlet, source0"),
        ({"name": "source0"}, "vocab_size=2"),
        ({"name": "dirichlet", "seq_len": 64}, "4\\^64"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"unique_tokens": 10**9}, "1000000000"),
    ],
)
def test_bad_toys_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        ToySource(**{"name": "markov", "seq_len": 8, "vocab_size": 4, **arguments})


def test_long_chains_have_an_entropy_but_no_table():
    toy = ToySource("markov", 64, 4, sequences=8, held_out=8)
    assert 0 < toy.entropy < 64 * math.log(4)
    with pytest.raises(UserError, match="4\\^64"):
        toy.probs()


def test_held_out_windows_are_grouped_by_passages_of_their_documents():
    """Held-out text is read document by document; a passage is at most PASSAGE tokens of one document."""
    source = pydoc(128)
    data = DataModule(source, 8, 0)
    for split in ("tune", "report"):
        documents = source.documents(split)
        assert len(documents) == len(source.tokens(split))
        _, numbers = starts_of_runs(documents)
        assert len(set(numbers)) == len(numbers), "a document's paragraphs stay together"
        passages = data.window_passages(split)
        assert len(passages) == len(data.window_numbers(split))
        assert np.bincount(passages).max() <= PASSAGE // 128 + 1
        for passage in np.unique(passages):
            inside = data.window_numbers(split)[passages == passage]
            assert np.all(np.diff(inside) == 1), "consecutive windows"
        few = data.window_passages(split, 20)
        assert len(few) == 20 and few.max() < passages.max() + 1


def test_the_passages_of_separate_sequences_are_the_sequences():
    source = ToySource("markov", seq_len=4, vocab_size=3)
    passages = DataModule(source, 8, 0).window_passages("report", 16)
    assert passages.tolist() == list(range(16))
