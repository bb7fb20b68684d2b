"""Sudoku as training data: splits without leaks, views, collections of others, and runs from end to end."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import TOY, composed

from dlm import train
from dlm.build import build_data
from dlm.data.module import DataModule
from dlm.data.sudoku import splits
from dlm.data.sudoku.board import SHAPES, is_solution, text
from dlm.data.sudoku.canonical import canonical, line_orders
from dlm.data.sudoku.formats import FORMATS, ORDERS
from dlm.data.sudoku.generate import generate
from dlm.data.sudoku.grade import grade
from dlm.data.sudoku.solve import count_solutions
from dlm.data.sudoku.source import SudokuSource
from dlm.errors import UserError
from dlm.noise import Stream, uniforms


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("puzzles")


@pytest.fixture
def source(cache):
    """A source of a few puzzles; shards are made once for all tests."""

    def make(size=4, **options):
        options = {"sequences": 300, "held_out": 40, "cache_dir": cache, "workers": 1} | options
        return SudokuSource(size, **options)

    return make


def noise_for(source, rows, seed=0):
    return uniforms(seed, Stream.VIEW, range(rows), *source.noise_shape)


def boards(source, split):
    rows = source.rows(split)
    return rows.puzzle, rows.solution


# --- splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 6])
def test_splits_hold_different_proper_puzzles(source, size):
    made = source(size)
    shape, seen = SHAPES[size], set()
    for split in made.splits:
        puzzle, solution = boards(made, split)
        assert len(puzzle) == made.count(split) == (300 if split == "train" else 40)
        assert (count_solutions(puzzle, shape) == 1).all() and is_solution(solution, shape).all()
        assert ((puzzle == 0) | (puzzle == solution)).all()
        assert (grade(puzzle, shape).solved == (split != "hard")).all()
        here = {row.tobytes() for row in puzzle}
        assert len(here) == len(puzzle) and not here & seen
        seen |= here
    assert made.splits == (("train", "tune", "report") if size == 4 else ("train", "tune", "report", "hard"))


def test_splits_share_no_class_at_6x6(source):
    made = source(6, sequences=4000, held_out=300)
    shape = SHAPES[6]
    forms = {split: {row.tobytes() for row in canonical(boards(made, split)[0], shape)} for split in made.splits}
    for a in made.splits:
        for b in made.splits:
            assert a == b or not forms[a] & forms[b]
    audit = made.audit["leak_audit"]
    assert set(audit["classes_shared"].values()) == set(audit["puzzles_shared"].values()) == {0}


def test_planted_leaks_are_found():
    """An equal puzzle by its own key, an equivalent one only by that of its class."""
    shape, rng = SHAPES[6], np.random.default_rng(0)
    train, held = generate(shape, 50, 1, 0).puzzle, generate(shape, 50, 1, 1).puzzle
    names = np.concatenate([[0], rng.permutation(6) + 1]).astype(np.uint8)
    planted = np.concatenate(
        [held, train[3:4], names[train[7:8]].reshape(1, 6, 6)[:, [1, 0, 2, 3, 4, 5]].reshape(1, -1)]
    )
    by_key = splits.shared({"train": splits.keys(train), "report": splits.keys(planted)})
    by_class = splits.shared(
        {"train": splits.class_keys(train, shape), "report": splits.class_keys(planted, shape)}
    )
    assert by_key == {"train, report": 1} and by_class == {"train, report": 2}
    assert splits.shared({"train": splits.keys(train), "report": splits.keys(held)}) == {"train, report": 0}


def test_a_class_in_a_held_out_split_is_left_out_of_training(source, monkeypatch, tmp_path):
    """With all puzzles of one class nothing is left to train on, however many are drawn."""
    monkeypatch.setattr(splits, "class_keys", lambda boards, shape: np.zeros(len(boards), dtype=np.uint64))
    with pytest.raises(UserError, match="random drawing finds hardly more than 1 "):
        source(6, cache_dir=tmp_path, held_out=1)


def test_held_out_puzzles_do_not_depend_on_the_budgets(source):
    small, large = source(6), source(6, sequences=700)
    more = source(6, held_out=80)
    assert small.fingerprint == large.fingerprint != more.fingerprint
    assert (boards(small, "train")[0] == boards(large, "train")[0][:300]).all()
    for split in ("tune", "report", "hard"):
        assert (boards(small, split)[0] == boards(large, split)[0]).all()
        assert (boards(small, split)[0] == boards(more, split)[0][:40]).all()


def test_the_audit_is_plain_and_says_what_the_data_are(source):
    audit = source(6, levels="singles", givens=14, strict=False).audit
    assert json.loads(json.dumps(audit)) == audit
    assert audit["task"] == "sudoku" and audit["size"] == 6 and audit["mode"] == "full"
    assert audit["givens"]["train"]["mean"] == 14 and set(audit["levels"]["train"]) <= {"2", "3"}
    assert audit["sequences"]["train"] == 300 and audit["tokens"]["train"] == 300 * 36
    four = source(4).audit["leak_audit"]
    assert "no claim" in four["note"] and four["sample_classes_shared"]["train, report"] > 30


def test_a_random_sample_of_9x9_shares_no_class(source, monkeypatch):
    monkeypatch.setattr("dlm.data.sudoku.source.PER_SHARD", 200)
    made = source(9, sequences=60, held_out=20)
    assert set(made.audit["leak_audit"]["sample_classes_shared"].values()) == {0}
    assert made.audit["leak_audit"]["sample"]["train"] == 60
    assert made.tokens("report").shape == (20 * 81,) and made.tokens("report").dtype == np.uint16


def test_the_number_of_4x4_puzzles_is_that_of_their_classes(source):
    """Of 16 givens there are the 288 grids, of 15 each of them with one blank, below 4 none; of minimal ones as
    many as the 36 classes have members under the whole group: 128 maps of the cells, 24 names of the values."""
    shape = SHAPES[4]
    assert [splits.existing(shape, givens) for givens in (16, 15, 3)] == [288, 288 * 16, 0]
    classes = np.unique(canonical(generate(shape, 5000, 0, 0).puzzle, shape), axis=0).reshape(-1, 4, 4)
    assert np.unique((classes > 0).sum((1, 2)), return_counts=True)[1].tolist() == [13, 22, 1]
    lines = line_orders(4, 2)
    moved = np.stack(
        [board[..., r, :][..., c] for board in (classes, classes.swapaxes(1, 2)) for r in lines for c in lines]
    )
    names = np.array([(0, *some) for some in permutations(range(1, 5))], dtype=np.uint8)
    members = names[:, moved.reshape(-1, 16)].reshape(-1, 16)
    assert len(np.unique(splits.keys(members))) == splits.existing(shape, None)


def test_more_than_there_is_is_refused_with_numbers(source):
    with pytest.raises(UserError, match="ask for 100080 different 4x4 puzzles; 85632 exist"):
        source(4, sequences=100_000)
    with pytest.raises(
        UserError, match=r"ask for 280 different 4x4.*288 exist|random drawing finds hardly more than"
    ):
        source(6, givens=36)


# --- how examples are written ------------------------------------------------------------------------------------


def test_fingerprints_tell_formats_apart_and_puzzles_alike(source):
    kinds = [("in_place", None), ("prefix", None), *((n, o) for n in ("triples", "joint") for o in ORDERS)]
    made = [source(6, format=name, order=order) for name, order in kinds]
    assert len({one.fingerprint for one in made}) == len(made)
    assert len({one.audit["puzzles"] for one in made}) == 1
    assert source(6, relabel=False).fingerprint == made[0].fingerprint
    assert source(6, seed=1).audit["puzzles"] != made[0].audit["puzzles"]


def cells_of(source, x0):
    """The cell of each token of `joint`."""
    return x0.numpy() // source.shape.size


@pytest.mark.parametrize("order", ORDERS)
def test_orders_put_givens_first(source, order):
    made = source(6, format="joint", order=order)
    numbers = np.arange(40)
    puzzle = boards(made, "report")[0]
    cells = cells_of(made, made.written("report", numbers, None).x0)
    grades = grade(puzzle, SHAPES[6])
    for i in numbers:
        given, blank = np.split(cells[i], [int((puzzle[i] > 0).sum())])
        assert sorted(given) == np.flatnonzero(puzzle[i]).tolist()
        if order == "solver":
            assert blank.tolist() == grades.order[i][: len(blank)].tolist() and (np.diff(given) > 0).all()
        elif order == "row_major":
            assert (np.diff(given) > 0).all() and (np.diff(blank) > 0).all()
    if order == "random":
        assert (np.diff(cells, axis=1) < 0).any(axis=1).all()
        again = cells_of(made, made.written("report", numbers[::-1].copy(), None).x0)[::-1]
        assert (again == cells).all()  # a function of the number
        one, other = (cells_of(made, made.written("train", numbers, noise_for(made, 40, s)).x0) for s in (0, 1))
        assert (one != other).any(axis=1).all()


def test_relabelled_puzzles_are_proper_and_solved_in_the_same_order(source):
    made = source(6, format="joint", order="solver")
    shape, numbers = SHAPES[6], np.arange(60)
    plain = made.written("train", numbers, None)
    x0, target = made.written("train", numbers, noise_for(made, 60))
    assert (cells_of(made, x0) == cells_of(made, plain.x0)).all() and torch.equal(target, plain.target)
    assert (x0 != plain.x0).any(1).float().mean() > 0.9
    solution = made.format.boards(x0.numpy())
    puzzle = np.where(boards(made, "train")[0][:60] > 0, solution, 0).astype(np.uint8)
    assert is_solution(solution, shape).all() and (count_solutions(puzzle, shape) == 1).all()
    grades = grade(puzzle, shape)
    for i in numbers:
        blank = target[i].numpy()
        assert cells_of(made, x0)[i][blank].tolist() == grades.order[i][: blank.sum()].tolist()


def test_the_training_stream_is_a_function_of_the_seed(source):
    made = source(4, format="triples", order="random")

    def first(seed):
        data = DataModule(made, batch_size=8, seed=seed)
        data.trainer = None
        return next(iter(data.train_dataloader()))

    one, same, other = first(0), first(0), first(1)
    assert torch.equal(one["x0"], same["x0"]) and torch.equal(one["target"], same["target"])
    assert not torch.equal(one["x0"], other["x0"])
    assert source(4, relabel=False).noise_shape is None and source(4).noise_shape == (4,)
    assert made.noise_shape == (20,)


@pytest.mark.parametrize("name", FORMATS)
def test_the_right_answer_is_judged_right(source, name):
    made = source(6, format=name, order="random" if name in ("triples", "joint") else None)
    for split in made.splits[1:]:
        numbers = np.arange(made.count(split))[::3]
        x0, target = (part.numpy() for part in made.written(split, numbers, None))
        fixed_at = np.where(target, np.arange(made.seq_len), -1)
        found = made.judge(split, numbers, x0, fixed_at)
        assert found.solved.all() and (found.right == found.cells).all() and not found.first_error.any()
        strata = made.strata(split, numbers)
        assert (found.cells == 36 - strata["givens"]).all() and found.fills is not None
        assert (found.fills.sum(1) == found.cells).all() and found.fills.shape[1] == len(made.error_kinds)
        assert ((strata["level"] == 9) == (split == "hard")).all()
        told = made.trace(split, int(numbers[0]), x0[0], fixed_at[0])
        assert told["answer"] == told["solution"] and json.dumps(told)


def test_the_solver_s_own_places(source):
    """Smaller first, as the solver fills; what is known before is less than zero."""
    made, joint = source(6), source(6, format="joint", order="solver")
    numbers = np.arange(40)
    place, target = made.place("report", numbers), made.written("report", numbers, None).target
    assert place is not None and place.dtype == torch.float64 and (place[~target] < 0).all()
    order = cells_of(joint, joint.written("report", numbers, None).x0)
    for i in numbers:
        blanks = int(target[i].sum())
        assert place[i].argsort()[-blanks:].tolist() == order[i][-blanks:].tolist()
    assert joint.place("report", numbers) is None
    prefix = source(6, format="prefix").place("report", numbers)
    assert prefix is not None and torch.equal(prefix[:, 37:73], place) and (prefix[:, -1] > place.max()).all()


# --- collections of others ---------------------------------------------------------------------------------------


def test_a_collection_is_solved_graded_and_only_evaluated(source, tmp_path):
    puzzle, solution = generate(SHAPES[6], 5, 9, 0)
    file = tmp_path / "others.txt"
    file.write_text("# mine\n" + "".join(f"{text(p)},{text(s)}\n" for p, s in zip(puzzle, solution, strict=True)))
    made = source(6, puzzles=file)
    assert made.splits[-1] == "file" and made.count("file") == 5
    assert (boards(made, "file")[0] == puzzle).all() and (boards(made, "file")[1] == solution).all()
    assert made.fingerprint == source(6).fingerprint and made.audit["file"]["sequences"] == 5
    x0, target = made.written("file", np.arange(5), None)
    assert made.judge("file", np.arange(5), x0.numpy(), np.where(target.numpy(), 0, -1)).solved.all()
    with pytest.raises(UserError, match=r"no collection was given"):
        source(6).count("file")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("123", "3 cells"),
        ("." * 15 + "x", "'x' at row 4, column 4"),
        ("11" + "." * 14, "row 1 holds 1 twice"),
        ("." * 16, "more than one solution"),
        ("123........4....", "no solution"),
        ("." * 36, "36 cells, not a 4x4 puzzle"),
    ],
)
def test_a_bad_line_is_named(source, tmp_path, line, said):
    file = tmp_path / "bad.txt"
    file.write_text(f".1....4.....34..\n\n{line}\n")
    with pytest.raises(UserError, match=r"bad\.txt:3: ") as error:
        source(4, puzzles=file)
    assert said in str(error.value)


def test_puzzles_beyond_the_techniques_are_written_by_the_solver_as_far_as_it_goes(source):
    made = source(6, format="joint", order="solver")
    puzzle = boards(made, "hard")[0]
    cells = cells_of(made, made.written("hard", np.arange(40), None).x0)
    grades = grade(puzzle, SHAPES[6])
    for i in range(40):
        blank = cells[i][(puzzle[i] > 0).sum() :]
        fills = grades.order[i][grades.order[i] >= 0]
        assert blank[: len(fills)].tolist() == fills.tolist() and (np.diff(blank[len(fills) :]) > 0).all()


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 5}, "size=5"),
        ({"format": "pairs"}, "data.format"),
        ({"format": "joint"}, "needs data.order"),
        ({"format": "joint", "order": "best"}, "'best'"),
        ({"order": "solver"}, "belongs to data.format=triples or joint"),
        ({"format": "joint", "order": "solver", "levels": "all"}, "needs puzzles that the techniques solve"),
        ({"levels": "hard"}, "data.levels"),
        ({"sequences": 0}, "data.sequences=0"),
        ({"held_out": -1}, "data.held_out=-1"),
        ({"seed": -1}, "data.seed=-1"),
        ({"givens": 3}, "givens=3"),
        ({"seq_len": 17}, "seq_len=17: 4x4 puzzles as in_place have 16 tokens"),
        ({"puzzles": "/nowhere/p.txt"}, "/nowhere/p.txt"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(source, options, said):
    with pytest.raises(UserError) as error:
        source(**{"size": 4} | options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_split_that_is_not_there_says_why(source):
    with pytest.raises(UserError, match="has no hard puzzles"):
        source(4).count("hard")
    with pytest.raises(UserError, match="split is one of train, tune, report, not 'test'"):
        source(4).rows("test")


def test_prompts_and_pictures(source):
    joint = source(4, format="joint", order="row_major")
    x0, target = joint.written("report", np.arange(1), None)
    assert joint.encode(text(boards(joint, "report")[0][0])) == x0[0][~target[0]].tolist()
    assert "|" in joint.decode(x0[0]) and joint.decode([joint.vocab_size]) == "."
    with pytest.raises(UserError, match="36 cells, not a 4x4"):
        joint.encode("." * 36)


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("aoarm", ["data.format=in_place"]),
        ("aoarm", ["data.format=prefix"]),
        ("arm", ["data.format=triples", "data.order=row_major"]),
        ("arm", ["data.format=joint", "data.order=solver"]),
    ],
)
def test_every_format_trains_from_its_yaml(method, written, cache, tmp_path):
    """The configuration finds the length, the record holds boards that keep the givens."""
    sizes = ["data.size=4", "data.sequences=300", "data.held_out=40", f"data.cache_dir={cache}", "steps=2"]
    data = ["data=sudoku", *sizes, *written]
    cfg = composed(f"method={method}", *data)
    assert cfg.seq_len == build_data(cfg).source.seq_len and cfg.backbone.positions == "learned"
    toy = [override for override in TOY if not override.startswith(("data", "seq_len", "steps"))]
    run = train.train(composed(*toy, f"method={method}", *data, f"output_dir={tmp_path}"))
    record = json.loads((run / "record.json").read_text())
    assert record["data"]["audit"]["task"] == "sudoku" and record["steps"] == 2
    (sample,) = record["samples"]
    board = [c for c in sample if c in ".1234"]
    puzzle = boards(build_data(cfg).source, "report")[0][0]
    assert len(board) == 16
    if "prefix" not in written[0]:
        assert all(board[cell] == str(puzzle[cell]) for cell in np.flatnonzero(puzzle))


def test_a_mistake_in_the_size_is_one_line(refused):
    assert refused(train.main, "data=sudoku", "data.size=5") == (
        "error: size=5: Sudoku comes in the sizes 4, 6, 9\n"
    )
