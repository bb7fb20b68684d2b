"""Puzzles written and read back in every format; answers judged on hand-made boards."""

import numpy as np
import pytest
import torch

from dlm.data.sudoku import judge
from dlm.data.sudoku.board import SHAPES, is_solution, parse
from dlm.data.sudoku.formats import FORMATS, Fills, format_of, puzzle_length, text_of
from dlm.data.sudoku.generate import generate
from dlm.errors import UserError

FOUR = SHAPES[4]


def puzzles(size, count=20, seed=0):
    return generate(SHAPES[size], count, seed, 0)


def some_order(puzzle, rng):
    """Givens and blanks, both in random order."""
    return np.argsort((puzzle == 0) + rng.random(puzzle.shape), axis=1)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back(size, name):
    """The fills are the blanks with the solution's values, in the order in which they were written or fixed."""
    rng = np.random.default_rng(size)
    puzzle, solution = puzzles(size)
    written = format_of(size, name)
    order = some_order(puzzle, rng)
    x0, target = written.write(puzzle, solution, order)
    assert x0.shape == target.shape == (20, written.seq_len) and written.seq_len == puzzle_length(size, name)
    assert x0.min() >= 0 and x0.max() < written.vocab_size
    fixed_at = np.where(target, rng.permuted(np.tile(np.arange(written.seq_len), (20, 1)), axis=1), -1)
    made, step, cell, value = written.read(puzzle, x0, fixed_at)
    for i in range(20):
        blanks = np.flatnonzero(puzzle[i] == 0)
        here = made[i]
        assert sorted(cell[i][here]) == blanks.tolist()
        assert (value[i][here] == solution[i][cell[i][here]]).all()
        by_step = cell[i][here][np.argsort(step[i][here])]
        if written.ordered:
            assert by_step.tolist() == order[i][-len(blanks) :].tolist()
        else:
            places = np.arange(size**2) + (size**2 + 1 if name == "prefix" else 0)
            assert by_step.tolist() == sorted(blanks, key=lambda c, i=i, at=places: fixed_at[i, at[c]])
    assert (written.boards(x0) == solution).all()


@pytest.mark.parametrize(
    ("name", "per_blank", "besides"), [("in_place", 1, 0), ("triples", 3, 0), ("joint", 1, 0)]
)
def test_givens_are_no_targets(name, per_blank, besides):
    puzzle, solution = puzzles(6)
    target = format_of(6, name).write(puzzle, solution, some_order(puzzle, np.random.default_rng(0))).target
    assert (target.sum(1) == per_blank * (puzzle == 0).sum(1)).all()
    if name != "in_place":  # what is given comes first
        assert (np.diff(target.astype(int), axis=1) >= 0).all()


def test_the_published_prefix():
    """Clues with blanks, separator, answers, end: 164 tokens at 9x9, the last 82 of them targets."""
    puzzle, solution = puzzles(9, 2)
    x0, target = format_of(9, "prefix").write(puzzle, solution)
    assert x0.shape == (2, 164) and (target.sum(1) == 82).all() and target[:, 82:].all()
    assert (x0[:, :81] == puzzle).all() and (x0[:, 82:163] == solution).all()
    assert (x0[:, 81] == 10).all() and (x0[:, 163] == 11).all()


def test_layouts_say_where_slots_stand_and_what_tokens_are():
    for size, shape in SHAPES.items():
        for name in FORMATS:
            kind = format_of(size, name)
            slots, tokens = kind.layout
            assert slots is None or (len(slots) == kind.seq_len and slots.min() == 0)
            assert tokens is None or (len(tokens) == kind.vocab_size and tokens.min() == 0)
        places = format_of(size, "in_place").layout.slots
        assert places is not None and len(torch.unique(places, dim=0)) == size**2
        for unit, cells in enumerate(shape.units):
            assert (places[cells, unit // size] == unit % size).all()
    slots = format_of(4, "prefix").layout.slots
    assert slots is not None and (slots[:16, 1:] == slots[17:33, 1:]).all()
    assert slots[:, 0].tolist() == [0] * 16 + [2] + [1] * 16 + [3]
    tokens = format_of(6, "joint").layout.tokens
    assert tokens is not None and tokens[(2 * 6 + 3) * 6 + 4].tolist() == [15, 2, 3, 3, 4]
    slots, tokens = format_of(4, "triples").layout
    assert slots is not None and slots[:5].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1]]
    assert tokens is not None and tokens[4 + 3].tolist() == [1, 3]


@pytest.mark.parametrize("name", FORMATS)
def test_text_of_whole_and_partial_sequences(name):
    puzzle, solution = puzzles(4, 1)
    kind = format_of(4, name)
    x0 = kind.write(puzzle, solution, np.argsort(puzzle == 0, axis=1, kind="stable")).x0[0]
    assert parse(text_of(kind, x0)).tolist() == solution[0].tolist()
    masked = np.where(np.arange(kind.seq_len) >= kind.seq_len // 2, kind.vocab_size, x0)  # of a run under way
    assert len(parse(text_of(kind, masked))) == 16
    assert all(text_of(kind, [token]) for token in range(kind.vocab_size + 1))
    assert len(text_of(kind, x0[:3]).split(" ")) >= 3


def test_prompts_are_beginnings():
    puzzle, solution = puzzles(4, 1)
    order = np.argsort(puzzle == 0, axis=1, kind="stable")
    for name in ("prefix", "triples", "joint"):
        x0, target = format_of(4, name).write(puzzle, solution, order)
        prompt = format_of(4, name).prompt(puzzle[0])
        assert prompt == x0[0][~target[0]].tolist() == x0[0][: len(prompt)].tolist()
    with pytest.raises(UserError, match="only a complete board"):
        format_of(4, "in_place").prompt(puzzle[0])
    assert format_of(4, "in_place").prompt(solution[0]) == (solution[0].astype(int) - 1).tolist()


def test_unknown_formats_and_sizes_are_refused():
    with pytest.raises(UserError, match="in_place, prefix, triples, joint, not 'pairs'"):
        format_of(9, "pairs")
    with pytest.raises(UserError, match="size=5"):
        format_of(5, "joint")


# --- judging: one 4x4 puzzle and its fills by hand -------------------------------------------------------------

#   1 . | . .        1 2 | 3 4
#   3 . | . 2        3 4 | 1 2
#   ----+----        ----+----
#   . 1 | . 3        2 1 | 4 3
#   . . | 2 .        4 3 | 2 1
GIVEN = parse("1... 3..2 .1.3 ..2.")[None]
SOLUTION = parse("1234 3412 2143 4321")[None]
BLANKS = np.flatnonzero(GIVEN[0] == 0)


def in_place(answer, fixed_at):
    kind = format_of(4, "in_place")
    fills = kind.read(GIVEN, np.asarray(answer)[None].astype(np.int64) - 1, np.asarray(fixed_at)[None])
    return judge.judge(GIVEN, SOLUTION, fills, FOUR)


def steps_of(cells):
    """Step k for the k-th of the cells; a list within is one step."""
    at = np.full(16, -1)
    for step, cell in enumerate(cells):
        at[cell] = step
    return at


def test_a_right_answer():
    found = in_place(SOLUTION[0], steps_of(BLANKS))
    assert found.solved[0] and found.right[0] == found.cells[0] == len(BLANKS) == 10 and found.first_error[0] == 0
    assert found.fills is not None and found.fills.sum() == 10


def test_a_valid_grid_that_is_not_the_solution_is_wrong():
    """All units hold, and the givens do not: the rows of the solution, exchanged."""
    other = SOLUTION[0].reshape(4, 4)[[1, 0, 2, 3]].reshape(-1)
    assert is_solution(other[None], FOUR)[0]
    found = in_place(other, steps_of(BLANKS))
    assert not found.solved[0] and found.right[0] < 10 and found.first_error[0] > 0


def test_a_given_that_is_changed_is_an_error_though_all_blanks_are_right():
    answer = SOLUTION[0].copy()
    answer[0] = 3
    found = in_place(answer, steps_of(BLANKS))
    assert not found.solved[0] and found.right[0] == 10 and found.first_error[0] == judge.NO_BLANK_CELL
    kind = format_of(4, "prefix")
    x0 = kind.write(GIVEN, SOLUTION).x0
    fixed_at = np.where(np.arange(34) > 16, np.arange(34), -1)[None]
    assert judge.judge(GIVEN, SOLUTION, kind.read(GIVEN, x0, fixed_at), FOUR).solved[0]
    x0[0, 17] = 3  # the copy of the given 1
    found = judge.judge(GIVEN, SOLUTION, kind.read(GIVEN, x0, fixed_at), FOUR)
    assert not found.solved[0] and found.cells[0] == 10 and found.right[0] == 10 and found.first_error[0] == 1
    assert found.fills is not None and found.fills[0].tolist() == [0, 1, *[0] * 8]
    x0[0, 17] = kind.end  # no value at all
    assert not judge.judge(GIVEN, SOLUTION, kind.read(GIVEN, x0, fixed_at), FOUR).solved[0]


def test_the_kind_of_the_first_error_is_the_board_s_before_it():
    """Cell (1, 2) holds 1 or 4 by its marks at once... and is a lone single once its row is otherwise full."""
    levels = judge.deducible(GIVEN, FOUR)[0]
    easy, hard = BLANKS[levels[BLANKS].argmin()], BLANKS[levels[BLANKS].argmax()]
    assert levels[easy] < levels[hard]
    for cell in (easy, hard):
        answer = SOLUTION[0].copy()
        answer[cell] = answer[cell] % 4 + 1
        rest = [c for c in BLANKS if c != cell]
        first = in_place(answer, steps_of([cell, *rest]))
        assert first.first_error[0] == levels[cell] and first.right[0] == 9
        assert first.fills is not None and first.fills[0].sum() == 1  # what comes after the error does not count
        last = in_place(answer, steps_of([*rest, cell]))
        assert last.first_error[0] == 2 and last.fills is not None and last.fills[0].sum() == 10


def test_of_several_errors_in_one_step_the_easiest_counts():
    levels = judge.deducible(GIVEN, FOUR)[0]
    easy, hard = BLANKS[levels[BLANKS].argmin()], BLANKS[levels[BLANKS].argmax()]
    answer = SOLUTION[0].copy()
    answer[[easy, hard]] = answer[[easy, hard]] % 4 + 1
    rest = [c for c in BLANKS if c not in (easy, hard)]
    found = in_place(answer, steps_of([[easy, hard], rest]))
    assert found.first_error[0] == levels[easy] and found.fills is not None and found.fills[0].sum() == 2
    # a right cell of the same step is judged by the board before it, and counts
    both = in_place(np.where(np.arange(16) == easy, SOLUTION[0], answer), steps_of([[easy, hard], rest]))
    assert both.first_error[0] == levels[hard] and both.fills is not None
    codes = sorted(judge.ERROR_KINDS)
    assert both.fills[0][codes.index(levels[easy])] >= 1 and both.fills[0].sum() == 2


@pytest.mark.parametrize("name", ["joint", "triples"])
def test_writing_twice_on_givens_or_outside(name):
    kind = format_of(4, name)
    order = np.concatenate([np.flatnonzero(GIVEN[0]), BLANKS])[None]
    x0 = kind.write(GIVEN, SOLUTION, order).x0.reshape(16, -1)

    def judged(x):
        fills = kind.read(GIVEN, x.reshape(1, -1), np.zeros((1, kind.seq_len), dtype=int))
        return judge.judge(GIVEN, SOLUTION, fills, FOUR)

    assert judged(x0).solved[0]
    for k, source in ((10, 9), (10, 0)):  # the cell filled before; a given
        x = x0.copy()
        x[k] = x0[source]
        found = judged(x)
        assert not found.solved[0] and found.right[0] == 9 and found.first_error[0] == judge.NO_BLANK_CELL
        assert found.fills is not None and found.fills[0].sum() == 5  # four right fills, and the stray one
    x = x0.copy()
    x[12] = kind.vocab_size  # the start symbol, or any token out of place
    assert judged(x).first_error[0] == judge.NO_BLANK_CELL
    x = x0.copy()
    x[[14, 15]] = x0[[15, 14]]  # another order is as good
    assert judged(x).solved[0]
    assert text_of(kind, x) == text_of(kind, x0)


def test_no_value_is_a_wrong_value():
    kind = format_of(4, "triples")
    order = np.concatenate([np.flatnonzero(GIVEN[0]), BLANKS])[None]
    x = kind.write(GIVEN, SOLUTION, order).x0
    x[0, -1] = 0  # a row where the last value belongs
    fills = kind.read(GIVEN, x, np.zeros((1, 48), dtype=int))
    found = judge.judge(GIVEN, SOLUTION, fills, FOUR)
    assert not found.solved[0] and found.right[0] == 9 and found.first_error[0] == 2


def test_rows_are_judged_apart_and_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    puzzle, solution = puzzles(6, 30)
    answer = np.where(rng.random(puzzle.shape) < 0.03, solution % 6 + 1, solution)
    at = rng.integers(0, 20, puzzle.shape)
    kind = format_of(6, "in_place")

    def judged(some):
        fills = kind.read(puzzle[some], answer[some].astype(np.int64) - 1, at[some])
        return judge.judge(puzzle[some], solution[some], fills, SHAPES[6])

    whole = judged(slice(None))
    monkeypatch.setattr(judge, "ROWS", 7)
    again, alone = judged(slice(None)), [judged(slice(i, i + 1)) for i in range(30)]
    for name in whole._fields:
        assert (getattr(whole, name) == getattr(again, name)).all()
        assert (getattr(whole, name) == np.concatenate([getattr(one, name) for one in alone])).all()
    assert not whole.solved.all() and (whole.solved == (whole.first_error == 0)).all()


def test_a_trace_tells_every_cell():
    kind = format_of(4, "joint")
    order = np.concatenate([np.flatnonzero(GIVEN[0]), BLANKS[::-1]])[None]
    x = kind.write(GIVEN, SOLUTION, order).x0
    fills = kind.read(GIVEN, x, np.zeros((1, 16), dtype=int))
    (told,) = judge.trace(GIVEN, SOLUTION, fills, FOUR)
    assert told["answer"] == told["solution"] == SOLUTION[0].tolist() and told["puzzle"] == GIVEN[0].tolist()
    assert [told["step"][c] for c in BLANKS[::-1]] == list(range(10))
    given = GIVEN[0] > 0
    assert all((told["step"][c] == -1) == given[c] and (told["kind"][c] == 0) == given[c] for c in range(16))
    assert told["size"] == 4


def test_simultaneous_fills_do_not_help_each_other():
    """Two cells of which the second is a single only after the first: filled at once, it took more."""
    fills = Fills(*(np.array([part]) for part in ([True] * 16, [0] * 16, list(range(16)), [1] * 16)))
    empty = np.zeros((1, 16), dtype=np.uint8)
    found = judge.kinds(empty, judge.course(empty, fills), FOUR)
    assert (found == judge.NOT_DEDUCIBLE).all()
