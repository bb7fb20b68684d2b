"""Zebra puzzles: clues by hand, the search against all grids, generated puzzles, the order in which they fill."""

from itertools import combinations, permutations, product

import numpy as np
import pytest

from dlm.data.zebra.deduce import KINDS, UNSOLVED, deduce, needed
from dlm.data.zebra.generate import STYLES, generate
from dlm.data.zebra.puzzle import (
    ITEMS,
    NO_CLUE,
    NO_ITEM,
    WEIGHTS,
    Size,
    holds,
    houses_of,
    parse,
    solutions_of,
    told,
    written,
    written_clue,
)
from dlm.data.zebra.solve import count_solutions, solve
from dlm.data.zebra.views import keys, seen, uniforms_of_view, view_of
from dlm.errors import UserError

THREE = Size(3, 3)
GRIDS = np.array(
    [np.concatenate(rows) for rows in product(permutations(range(3)), repeat=3)], dtype=np.uint8
)  # all (3!)^3
HAND = "3x3 a1=h2; a2<a3; b1=a2; b2~a3; c1|; c2<<c3"
"""By hand: a1 in the middle, so a2, a1, a3; b1 with a2; b2 next to house 3, so b1, b2, b3; c1 at an end, but c2 c3
stand in this order side by side: c1 c2 c3 or c2 c3 c1."""


def padded(clues, slots):
    empty = np.array([[NO_CLUE, NO_ITEM, NO_ITEM, NO_ITEM]] * (slots - len(clues)), dtype=np.uint8).reshape(-1, 4)
    return np.concatenate([clues, empty])[None]


def random_clue(rng, size):
    kind = rng.integers(1, 8)
    items = rng.permutation(size.items)[: ITEMS[kind]]
    return [kind, *items, *[NO_ITEM] * (3 - len(items))]


@pytest.mark.parametrize(
    "text, true",
    [  # a: a2 a1 a3, b: b1 b2 b3, c: c3 c1 c2 in houses 1 2 3
        ("a1=b2", True), ("a1=b1", False), ("a1=h2", True), ("h1=a1", False),
        ("a1!=b1", True), ("a1!=c1", False),
        ("a1~b1", True), ("a1~b3", True), ("a1~b2", False), ("b1~b3", False),
        ("a2|", True), ("c2|", True), ("b2|", False),
        ("a2<<b2", True), ("b2<<a2", False), ("a2<<b3", False), ("h2<<a3", True),
        ("a2<b3", True), ("b3<a2", False), ("a1<b2", False),
        ("a2<b2<c2", True), ("c2<b2<a2", False), ("a2<b3<c1", False),
    ],
)  # fmt: skip
def test_clues_by_hand(text, true):
    """Of one grid; written back as they came; told in words that name all items."""
    grid = np.array([1, 0, 2, 0, 1, 2, 2, 0, 1], dtype=np.uint8)[None]
    size, clues = parse(f"3x3 {text}")
    assert size == THREE and holds(clues[0], houses_of(grid, size), size).tolist() == [true]
    assert written_clue(clues[0], size) == text
    assert all(size.item(item) in told(clues[0], size) for item in clues[0, 1:] if item != NO_ITEM)


def test_solutions_and_houses_are_each_others_inverse():
    assert np.array_equal(solutions_of(houses_of(GRIDS, THREE), THREE), GRIDS)
    assert houses_of(GRIDS[:1], THREE)[0].tolist() == [0, 1, 2] * 4


def test_counts_equal_those_of_all_grids():
    """2,000 random sets of 1 to 7 clues at 3x3, true of no, one, some and many of the 216 grids."""
    rng, houses = np.random.default_rng(0), houses_of(GRIDS, THREE)
    sets = [
        np.array([random_clue(rng, THREE) for _ in range(rng.integers(1, 8))], dtype=np.uint8) for _ in range(2000)
    ]
    true = [np.logical_and.reduce([holds(clue, houses, THREE) for clue in clues]) for clues in sets]
    expected = np.array([t.sum() for t in true])
    assert (expected == 0).any() and (expected == 1).any() and (expected == 2).any() and (expected > 100).any()
    clues = np.concatenate([padded(some, 7) for some in sets])
    assert np.array_equal(count_solutions(clues, THREE, limit=1000), expected)
    assert np.array_equal(count_solutions(clues, THREE), expected.clip(max=2))
    some = np.flatnonzero(expected > 0)
    assert all(t[(answer == GRIDS).all(1)].all() for t, answer in zip(
        [true[i] for i in some], solve(clues[some], THREE), strict=True
    ))  # fmt: skip
    with pytest.raises(ValueError, match="no solution"):
        solve(clues[expected == 0], THREE)


def test_a_puzzle_by_hand():
    size, clues = parse(HAND)
    assert count_solutions(clues[None], size, limit=9) == [2]
    more = parse(HAND + "; c1<c2")[1]
    assert count_solutions(more[None], size) == [1]
    assert solve(more[None], size)[0].tolist() == [1, 0, 2, 0, 1, 2, 0, 1, 2]
    assert written(more, size) == HAND + "; c1<c2"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("houses, attributes, puzzles", [(3, 3, 200), (4, 3, 100), (3, 6, 40), (6, 3, 20)])
def test_generated_puzzles_are_proper(style, houses, attributes, puzzles):
    """Every clue is true of the stored solution, the only one; the types of clues occur; a minimal puzzle
    has more without any one clue; a published one takes three clues at a time at most, and few are not used (all
    were, in the order in which they were drawn)."""
    size = Size(houses, attributes)
    clues, solutions = generate(size, puzzles, seed=1, style=style)
    where = houses_of(solutions, size)
    for i, puzzle in enumerate(clues):
        for clue in puzzle[puzzle[:, 0] != NO_CLUE]:
            assert holds(clue, where[i : i + 1], size).all()
            assert (clue[1 : 1 + ITEMS[clue[0]]] < size.items).all() and (
                clue[1 + ITEMS[clue[0]] :] == NO_ITEM
            ).all()
    assert (count_solutions(clues, size) == 1).all() and np.array_equal(solve(clues, size), solutions)
    assert (np.bincount(clues[..., 0].ravel(), minlength=8)[1:] > 0).sum() >= 6
    filled = clues[..., 0] != NO_CLUE
    assert (np.diff(filled.astype(int), axis=1) <= 0).all()
    if style == "minimal":
        row, slot = np.nonzero(filled)
        without = clues[row]
        without[np.arange(len(row)), slot] = NO_CLUE
        assert (count_solutions(without, size) == 2).all()
    else:
        found = deduce(clues, where, size)
        assert (found.level <= 5).all() and found.used.sum() >= 0.9 * filled.sum()


def test_a_puzzle_is_a_function_of_seed_stream_and_number():
    clues, solutions = generate(THREE, 30, seed=5, stream=1, first=10)
    again = generate(THREE, 10, seed=5, stream=1, first=20)
    assert np.array_equal(again.clues, clues[10:20]) and np.array_equal(again.solutions, solutions[10:20])
    for seed, stream in ((6, 1), (5, 0)):
        other = generate(THREE, 30, seed, stream, first=10)
        assert (other.clues != clues).any((1, 2)).mean() > 0.9


def test_drawn_clues_have_their_weights_and_rules():
    """Of the clues at 4x4 before any is taken away types are hard to see; but rules hold of all that are left."""
    size = Size(4, 4)
    clues = generate(size, 400, seed=2, style="published").clues.reshape(-1, 4)
    attribute = clues[:, 1:].astype(int) // size.houses
    one, two, _ = attribute.T
    kind = clues[:, 0]
    numbered = (attribute == 0) & (clues[:, 1:] != NO_ITEM)
    assert (one[np.isin(kind, (1, 2))] != two[np.isin(kind, (1, 2))]).all()
    assert (numbered.sum(1) <= 1).all() and not numbered[kind == 4].any()
    assert not numbered[kind == 7][:, 1:].any() and numbered[kind == 7][:, 0].any()
    assert (one == two)[kind == 3].any() and (one == two)[kind == 6].any()
    share = np.bincount(kind, minlength=8)[1:] / (kind > 0).sum()
    assert share.argmax() == 0 and share[1] == share.min() and WEIGHTS.argmax() == 1
    houses = numbered.sum() / (clues[:, 1:] != NO_ITEM).sum()
    assert 0.01 < houses < 0.12  # a fifth of one of five attributes is 0.048


def test_too_few_slots_are_refused(monkeypatch):
    monkeypatch.setattr("dlm.data.zebra.generate.DRAWS", 5)
    with pytest.raises(UserError, match="clues=2: too few"):
        generate(Size(4, 4), 1, seed=0, slots=2)
    with pytest.raises(UserError, match="style=easy"):
        generate(THREE, 1, seed=0, style="easy")


# --- deduction ------------------------------------------------------------------------------------------------


def reference_kind(clues, known, target, size):
    """The least number of clues from which `target` (attribute, value) follows, in plain Python, over sets."""
    items = {item: set(range(size.houses)) for item in range(size.houses, size.items)}
    items |= {house: {house} for house in range(size.houses)}
    items |= {item: {house} for item, house in known.items()}

    def close(chosen):
        sets = {item: set(houses) for item, houses in items.items()}
        while True:
            before = {item: set(houses) for item, houses in sets.items()}
            for clue in chosen:
                own = [int(item) for item in clue[1:] if item != NO_ITEM]
                where = np.zeros((1, size.items), dtype=np.uint8)
                choices = []
                for choice in product(*(sorted(sets[i]) for i in own)):
                    where[0, own] = choice
                    choices += [choice] if holds(clue, where, size)[0] else []
                for k, item in enumerate(own):
                    sets[item] = {choice[k] for choice in choices}
            for first in range(size.houses, size.items, size.houses):
                row = range(first, first + size.houses)
                for item in row:
                    if len(sets[item]) == 1:
                        for other in row:
                            if other != item:
                                sets[other] -= sets[item]
                for house in range(size.houses):
                    able = [item for item in row if house in sets[item]]
                    if len(able) == 1:
                        sets[able[0]] = {house}
            if sets == before:
                return len(sets[target]) == 1

    real = [clue for clue in clues if clue[0] != NO_CLUE]
    if close([]):
        return 2
    for kind, count in ((3, 1), (4, 2), (5, 3)):
        if any(close(chosen) for chosen in combinations(real, count)):
            return kind
    return 6 if close(real) else UNSOLVED


def test_kinds_equal_a_slow_reference():
    """Two open cells of 24 minimal 3x3 puzzles of which nothing, or a random third, is filled in."""
    clues, solutions = generate(THREE, 24, seed=3, slots=7)
    rng, where = np.random.default_rng(0), houses_of(solutions, THREE)
    met = set()
    for i in range(len(clues)):
        step = (rng.random((1, 9)) < (1.0 if i % 2 else 0.7)).astype(np.int16)
        found = needed(clues[i : i + 1], solutions[i : i + 1], step, THREE)[0]
        cell_of = {item: (item // 3 - 1) * 3 + where[i, item] for item in range(3, 12)}
        known = {item: int(where[i, item]) for item, cell in cell_of.items() if step[0, cell] == 0}
        for item in rng.permutation([item for item, cell in cell_of.items() if step[0, cell] == 1])[:2]:
            assert found[cell_of[item]] == reference_kind(clues[i], known, int(item), THREE)
            met.add(int(found[cell_of[item]]))
    assert {2, 3, 4, UNSOLVED} <= met


@pytest.mark.parametrize("houses, attributes", [(3, 3), (4, 4)])
def test_the_solvers_order(houses, attributes):
    """It fills every cell once, or stops where no cell follows; each cell has the kind that it has at its moment;
    no other open cell has a lower one then; the level is the hardest."""
    size = Size(houses, attributes)
    clues, solutions = generate(size, 60, seed=4, slots=16)
    found = deduce(clues, houses_of(solutions, size), size)
    assert (found.level == UNSOLVED).any() and (found.level < UNSOLVED).any()
    for i in range(60):
        order = found.order[i][found.order[i] >= 0]
        assert len(set(order.tolist())) == len(order)
        assert (len(order) == size.cells) == (found.level[i] != UNSOLVED)
        if found.level[i] != UNSOLVED:
            assert found.level[i] == found.kind[i].max()
        for k in range(min(len(order) + 1, size.cells)):
            step = np.full((1, size.cells), 1, dtype=np.int16)
            step[0, order[:k]] = 0
            kinds = needed(clues[i : i + 1], solutions[i : i + 1], step, size)[0]
            open_cells = kinds[step[0] == 1]
            if k < len(order):
                assert kinds[order[k]] == found.kind[i, k] == open_cells.min()
            else:
                assert (open_cells == UNSOLVED).all()


def test_deductions_by_hand():
    """a1 is in the middle; then a2 must be left of a3, and the rest of the row follows; b1 goes with a2; ..."""
    size, clues = parse(HAND + "; c1<c2")
    solution = solve(clues[None], size)
    found = deduce(clues[None], houses_of(solution, size), size)
    kinds = [KINDS[k] for k in found.kind[0]]
    assert found.order[0, :3].tolist() == [1, 0, 2] and kinds[:3] == ["one clue", "one clue", "elimination"]
    assert found.order[0, 3] == 3 and kinds[3] == "one clue"  # b1=a2
    assert found.level[0] <= 4


# --- views ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("houses, attributes", [(3, 3), (4, 3), (3, 5)])
def test_a_view_is_the_same_puzzle(houses, attributes):
    """One solution, the one that went along; the same key, level and kinds of cells; and all of it is moved."""
    size = Size(houses, attributes)
    clues, solutions = generate(size, 100, seed=6, slots=16)
    noise = np.random.default_rng(1).random((100, uniforms_of_view(size, 16)))
    view = view_of(noise, size, clues)
    other, moved = seen(clues, solutions, view, size)
    assert (count_solutions(other, size) == 1).all() and np.array_equal(solve(other, size), moved)
    assert np.array_equal(keys(other, moved, size), keys(clues, solutions, size))
    one, two = deduce(clues, houses_of(solutions, size), size), deduce(other, houses_of(moved, size), size)
    assert np.array_equal(one.level, two.level)
    assert (other != clues).any((1, 2)).all() and view.mirrored.any() and not view.mirrored.all()
    assert np.array_equal((other[..., 0] == NO_CLUE), (clues[..., 0] == NO_CLUE))


def test_different_puzzles_have_different_keys():
    """Of 300 puzzles; and of a puzzle with one clue turned round that may not be turned."""
    clues, solutions = generate(Size(4, 3), 300, seed=7)
    assert len(np.unique(keys(clues, solutions, Size(4, 3)))) == 300
    size, one = parse("3x3 a1<<b2; c1<c2; a1=b1")
    turned = parse("3x3 b2<<a1; c1<c2; a1=b1")[1]
    alike = parse("3x3 a1<<b2; c1<c2; b1=a1")[1]
    grid = GRIDS[:1]
    own = keys(one[None], grid, size)
    assert own == keys(alike[None], grid, size) != keys(turned[None], grid, size)


# --- text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a1=b2", "HOUSESxATTRIBUTES"),
        ("2x3 a1=b2", "houses=2"),
        ("3x7 a1=b2", "attributes=7"),
        ("3x3 a1", "'a1' is no clue"),
        ("3x3 a1=b2=c3", "no clue"),
        ("3x3 a1<b2<<c3", "no clue"),
        ("3x3 |a1|", "no clue"),
        ("3x3 a4=b1", "'a4' is neither"),
        ("3x3 d1=b1", "'d1' is neither"),
        ("3x3 h0=b1", "'h0' is neither"),
        ("3x3 a1=", "no clue"),
        ("3x3 a1~a1", "names a1 twice"),
    ],
)
def test_malformed_puzzles_are_refused(text, said):
    with pytest.raises(UserError, match=r"^file:3: ") as caught:
        parse(text, "file:3")
    assert said in str(caught.value)


@pytest.mark.parametrize("houses, attributes", [(2, 4), (7, 3), (3, 2), (4, 9)])
def test_impossible_sizes_are_refused(houses, attributes):
    with pytest.raises(UserError, match="3 to 6"):
        Size(houses, attributes)
