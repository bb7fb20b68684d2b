# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportOptionalIterable=false
"""Zebra puzzles as sequences: formats and back, splits, judgement by hand, training views."""

import numpy as np
import pytest
import torch
from conftest import composed, toy_run

from dlm.build import build_data
from dlm.data.zebra.collection import Collection
from dlm.data.zebra.formats import FORMATS, ORDERS, clue_slots, format_of, zebra_length
from dlm.data.zebra.generate import generate
from dlm.data.zebra.judge import ERROR_KINDS, judge
from dlm.data.zebra.puzzle import Size, parse, written
from dlm.data.zebra.solve import count_solutions, solve
from dlm.data.zebra.source import ZebraSource
from dlm.data.zebra.views import keys
from dlm.errors import UserError

SMALL = {"houses": 3, "attributes": 3, "sequences": 300, "held_out": 40, "workers": 1}
CASES = [("in_place", None), *((name, order) for name in ("triples", "joint") for order in ORDERS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("zebra"))


def source(folder, **settings):
    return ZebraSource(**{**SMALL, "cache_dir": folder, **settings})


# --- formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_sequence_says_its_puzzle_and_its_solution(name):
    """Written in a random order and read back: the clues, every cell once, its value; tokens are in the
    vocabulary, whose layout has a row each; and the prompt is what is given."""
    size = Size(4, 3)
    written_as = format_of(size, name)
    clues, solutions = generate(size, 20, seed=0, slots=written_as.slots)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(12), (20, 1)), axis=1)
    x0, target = written_as.write(clues, solutions, order)
    assert x0.shape == (20, written_as.seq_len) == (20, zebra_length(4, 3, name))
    assert x0.min() >= 0 and x0.max() < written_as.vocab_size
    assert [len(table) for table in written_as.layout] == [written_as.seq_len, written_as.vocab_size]
    assert np.array_equal(target, np.broadcast_to(np.arange(written_as.seq_len) >= 4 * written_as.slots, x0.shape))
    assert all(np.array_equal(written_as.clues_of(row), own) for row, own in zip(x0, clues, strict=True))
    fills = written_as.read(x0, np.where(target, np.arange(written_as.seq_len), -1))
    answer = np.zeros_like(solutions)
    np.put_along_axis(answer, fills.cell, fills.value, axis=1)
    assert np.array_equal(answer, solutions + 1)
    if name != "in_place":
        assert np.array_equal(fills.cell, order) and np.array_equal(fills.step[0], np.arange(12))


def test_tokens_by_hand():
    """3x3 with 7 slots: items 0..11 (houses, then a, b, c), types 12..18, blank 19; cells ah1, ah2, ..., ch3."""
    size, clues = parse("3x3 a1=h2; c3|")
    solution = np.array([[1, 0, 2, 0, 1, 2, 0, 1, 2]], dtype=np.uint8)
    rows = np.full((1, 7, 4), 255, dtype=np.uint8)
    rows[:, :, 0] = 0
    rows[0, :2] = clues
    order = np.array([[8, *range(8)]])
    tokens = {name: format_of(size, name).write(rows, solution, order)[0][0].tolist() for name in FORMATS}
    assert tokens["in_place"][:12] == [12, 3, 1, 19, 15, 11, 19, 19, 19, 19, 19, 19]
    assert tokens["in_place"][28:] == [4, 3, 5, 6, 7, 8, 9, 10, 11]
    assert tokens["triples"][28:34] == [22, 2, 11, 20, 0, 4]  # c, h3, c3; a, h1, a2
    assert tokens["joint"][28:31] == [20 + 8 * 3 + 2, 20 + 1, 20 + 3]
    assert format_of(size, "joint").text(np.array(tokens["joint"])).splitlines() == [
        "3x3 a1=h2; c3|", "h1   h2   h3", "a2   a1   a3", "b1   b2   b3", "c1   c2   c3",
    ]  # fmt: skip
    assert format_of(size, "joint").text(np.array([12, 3, 19, 46])) == "= a1 . h3=c3"
    assert clue_slots(Size(6, 6)) == 31


@pytest.mark.parametrize("houses, attributes", [(3, 3), (4, 4), (5, 3)])
@pytest.mark.parametrize("style", ["published", "minimal"])
def test_the_usual_slots_hold_nearly_all_puzzles(houses, attributes, style):
    """At most 4 % of 300 puzzles have more clues (seed 0; 2 % expected at most, s.e. 0.8)."""
    size = Size(houses, attributes)
    clues = generate(size, 300, seed=0, slots=40, style=style).clues
    assert ((clues[..., 0] > 0).sum(1) > clue_slots(size)).mean() <= 0.04


# --- the source -----------------------------------------------------------------------------------------------


def test_splits_share_no_puzzle(folder):
    """All puzzles of all splits are proper, deducible but for `hard`, and of different classes; more training
    puzzles leave the others as they are; another seed has others."""
    data = source(folder)
    assert data.splits == ("train", "tune", "report", "hard")
    found = [data.puzzles[split] for split in data.splits]
    assert [data.count(split) for split in data.splits] == [300, 40, 40, 40]
    clues = np.concatenate([rows.clues for rows in found])
    solutions = np.concatenate([rows.solutions for rows in found])
    assert (count_solutions(clues, data.shape) == 1).all() and np.array_equal(solve(clues, data.shape), solutions)
    assert len(np.unique(keys(clues, solutions, data.shape))) == len(clues)
    assert all((data.puzzles[split].level <= 5).all() for split in ("train", "tune", "report"))
    assert (data.puzzles["hard"].level == 9).all()
    assert set(data.audit["leak_audit"]["classes_shared"].values()) == {0}
    fewer = source(folder, sequences=100)
    assert fewer.fingerprint == data.fingerprint
    assert np.array_equal(fewer.puzzles["train"].clues, data.puzzles["train"].clues[:100])
    assert source(folder, seed=1).fingerprint != data.fingerprint
    assert source(folder, format="joint", order="solver").fingerprint != data.fingerprint
    assert source(folder, format="joint", order="solver").audit["puzzles"] == data.audit["puzzles"]
    assert source(folder, workers=2, cache_dir=folder + "/two").fingerprint == data.fingerprint


@pytest.mark.parametrize("name, order", CASES)
def test_training_views(folder, name, order):
    """A function of the noise; each is a proper puzzle with its solution, another than without noise, of the same
    class; the solver's order is what the solver does with the view."""
    data = source(folder, format=name, order=order)
    noise = torch.rand(64, *data.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = np.arange(64)
    one, again = data.written("train", numbers, noise), data.written("train", numbers, noise)
    plain = data.written("train", numbers, None)
    assert torch.equal(one.x0, again.x0) and (one.x0 != plain.x0).any(1).float().mean() > 0.9
    for i, row in enumerate(one.x0.numpy()):
        clues = data.format.clues_of(row)
        solution = solve(clues[None], data.shape)
        fills = data.format.read(row[None], np.arange(len(row))[None])
        assert np.array_equal(np.take_along_axis(solution, fills.cell, 1) + 1, fills.value)
        own = data.puzzles["train"].rows(numbers[i : i + 1])
        assert keys(clues[None], solution, data.shape) == keys(own.clues, own.solutions, data.shape)
        if order == "solver":
            judged = judge(clues[None], solution, fills, data.shape)
            assert judged.solved.all() and judged.fills[0, sorted(ERROR_KINDS).index(9)] == 0


def test_without_augmentation_training_puzzles_stay(folder):
    assert source(folder, augment=False).noise_shape is None
    data = source(folder, augment=False, format="joint", order="random")
    assert data.noise_shape == (9,)
    noise = torch.rand(8, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, plain = data.written("train", np.arange(8), noise), data.written("train", np.arange(8), None)
    assert torch.equal(one.x0[:, : data.format.prompt], plain.x0[:, : data.format.prompt])
    assert torch.equal(one.x0.sort(1).values, plain.x0.sort(1).values) and not torch.equal(one.x0, plain.x0)


@pytest.mark.parametrize("name, order", CASES)
def test_the_solution_is_right(folder, name, order):
    data = source(folder, format=name, order=order)
    numbers = np.arange(40)
    x0, target = data.written("hard", numbers, None)
    fixed_at = torch.where(target, target.cumsum(1) - 1, -1)
    found = data.judge("hard", numbers, x0.numpy(), fixed_at.numpy())
    assert found.solved.all() and (found.right == 9).all() and (found.cells == 9).all()
    assert not found.first_error.any() and (found.fills.sum(1) == 9).all()
    strata = data.strata("hard", numbers)
    assert (strata["level"] == 9).all() and strata["clues"].min() >= 2
    assert data.tokens("hard").shape == (40 * data.seq_len,)
    text = data.decode(x0[0]).splitlines()[0]
    assert text == written(data.puzzles["hard"].clues[0], data.shape)
    assert data.encode(text) == x0[0, : data.format.prompt].tolist()


def test_the_solvers_places(folder):
    """Filled in the order of `place`, no cell of a deducible puzzle is "not deducible"."""
    data = source(folder)
    numbers = np.arange(40)
    place = data.place("report", numbers)
    assert place is not None and (place[:, :28] == -1).all()
    assert (place[:, 28:].sort(1).values == torch.arange(9)).all()
    found = data.judge("report", numbers, data.written("report", numbers, None).x0.numpy(), place.long().numpy())
    column = {code: k for k, code in enumerate(sorted(ERROR_KINDS))}
    assert found.solved.all() and not found.fills[:, column[9]].any()
    level = data.strata("report", numbers)["level"]
    worst = [max(code for code, k in column.items() if row[k]) for row in found.fills]
    assert worst == level.tolist()
    assert source(folder, format="joint", order="solver").place("report", numbers) is None


def test_judgement_by_hand():
    """a1 is the second house, a2 left of a3, b and c follow a. Filled row by row, the first cell h1=a2 takes two
    clues; after it, each is determined by one clue or by elimination."""
    size, clues = parse("3x3 a1=h2; a2<a3; b1=a2; b2=a1; c1=b1; c2=b2")
    solution = np.array([[1, 0, 2, 0, 1, 2, 0, 1, 2]], dtype=np.uint8)
    assert np.array_equal(solve(clues[None], size), solution)
    written_as = format_of(size, "joint")
    padded = np.full((1, 7, 4), 255, dtype=np.uint8)
    padded[:, :, 0], padded[0, :6] = 0, clues
    x0 = written_as.write(padded, solution, np.arange(9)[None])[0]
    column = {code: k for k, code in enumerate(sorted(ERROR_KINDS))}

    def judged(*changes):
        x = x0.copy()
        for place, token in changes:
            x[0, 28 + place] = token
        return judge(padded, solution, written_as.read(x, np.zeros_like(x)), size)

    right = judged()
    assert right.solved[0] and right.first_error[0] == 0
    # ah1 ah2 ah3 bh1 bh2 bh3 ...: two clues, one clue, elimination, one, one, elimination, one, one, elimination
    assert [right.fills[0, column[code]] for code in (2, 3, 4)] == [3, 5, 1]

    wrong = judged((3, 20 + 3 * 3 + 1))  # bh1 = b2, which one clue denies
    assert not wrong.solved[0] and wrong.right[0] == 8 and wrong.first_error[0] == 3
    assert [wrong.fills[0, column[code]] for code in (2, 3, 4)] == [1, 2, 1]

    first = judged((0, 20 + 0))  # ah1 = a1
    assert first.first_error[0] == 4 and first.fills[0].sum() == 1

    twice = judged((4, int(x0[0, 28 + 3])))  # bh1 once more, instead of bh2
    assert twice.first_error[0] == 1 and twice.right[0] == 8 and twice.fills[0, column[1]] == 1

    outside = judged((5, 3))  # a token of a clue
    assert outside.first_error[0] == 1 and outside.right[0] == 8


def test_steps_that_fill_several_cells():
    """All nine at once, from the clues alone: the first error is the easiest of the wrong ones."""
    size, clues = parse("3x3 a1=h2; a2<a3; b1=a2; b2=a1; c1=b1; c2=b2")
    solution = np.array([[1, 0, 2, 0, 1, 2, 0, 1, 2]], dtype=np.uint8)
    written_as = format_of(size, "in_place", 6)
    x0 = written_as.write(clues[None], solution, np.arange(9)[None])[0]
    at = np.where(np.arange(written_as.seq_len) < 24, -1, 0)[None]
    column = {code: k for k, code in enumerate(sorted(ERROR_KINDS))}
    found = judge(clues[None], solution, written_as.read(x0, at), size)
    # ah2 one clue; ah1 and ah3, bh2 two clues; bh1, ch2 three; bh3, ch1, ch3 more
    assert found.solved[0] and found.fills[0].tolist()[column[3]] == 1 and found.fills[0].sum() == 9
    x0[0, 24 + 1], x0[0, 24 + 8] = 4, 9
    found = judge(clues[None], solution, written_as.read(x0, at), size)
    assert found.first_error[0] == 3 and found.right[0] == 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"houses": 2}, "houses=2"),
        ({"attributes": 9}, "attributes=9"),
        ({"format": "prefix"}, "data.format is one of in_place, triples, joint"),
        ({"order": "solver"}, "in_place has one only"),
        ({"format": "joint"}, "needs data.order"),
        ({"style": "easy"}, "data.style"),
        ({"sequences": 0}, "data.sequences=0"),
        ({"held_out": 0}, "data.held_out=0"),
        ({"seed": -1}, "data.seed=-1"),
        ({"clues": 0}, "data.clues=0"),
        ({"seq_len": 12}, "seq_len=12"),
        ({"workers": 0}, "data.workers=0"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, said, tmp_path):
    with pytest.raises(UserError) as caught:
        source(str(tmp_path), **settings)
    assert said in str(caught.value) and not list(tmp_path.iterdir())


def test_running_out_of_puzzles_is_said(tmp_path, monkeypatch):
    """Drawing ends when hardly a puzzle of a chunk is new, here less than 99 % of them."""
    monkeypatch.setattr("dlm.data.zebra.collection.CHUNK", 64)
    monkeypatch.setattr("dlm.data.zebra.collection.FEWEST_NEW", 0.99)
    with pytest.raises(UserError, match=r"\d+ different 3x3 published puzzles were found, not the 380"):
        source(str(tmp_path), clues=3)
    assert Collection(3, 3, 7, "published", 0, 1, 1).name.startswith("zebra-3x3-published-s0-")


@pytest.mark.parametrize("name, order", [("in_place", None), ("joint", "solver")])
def test_configuration(name, order, folder):
    """conf/data/zebra.yaml computes the length that the data have; positions are learned."""
    cfg = composed(
        *("data=zebra", "data.houses=3", "data.attributes=4", "data.sequences=50", "data.held_out=10"),
        *(f"data.format={name}", f"data.order={order or 'null'}", f"data.cache_dir={folder}"),
    )
    assert cfg.seq_len == zebra_length(3, 4, name) and cfg.backbone.positions == "learned"
    data = build_data(cfg)
    assert cfg.vocab_size == data.source.vocab_size
    size, layout = ZebraSource.outline(**{k: v for k, v in cfg.data.items() if k != "_target_"})
    assert size == data.source.vocab_size
    assert str(layout) == str(data.source.layout)


@pytest.mark.parametrize(
    "settings",
    [["method=aoarm"], ["method=arm", "data.format=joint", "data.order=solver"]],
    ids=["mdm", "arm"],
)
def test_a_run_from_end_to_end(settings, tmp_path):
    run = toy_run(
        tmp_path,
        *("data=zebra", "data.houses=3", "data.attributes=3", "data.sequences=64", "data.held_out=8"),
        *(f"data.cache_dir={tmp_path}", "seq_len=37", *settings),
    )
    assert (run / "record.json").is_file() and (run / "best.ckpt").is_file()
