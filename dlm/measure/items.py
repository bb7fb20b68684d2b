"""Questions with a known answer, cut from held-out text: the same for every model of the same data.

Each item is one true sequence and some in which a segment is exchanged for another of equal length; the true one
comes first. Segments are short, since what a segment has of its own probability, whatever stands beside it, is
noise that grows with its length. Which places are asked is a function of the text and the sizes alone.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from dlm.measure.texts import Texts

FEWEST = 8  # items; fewer say nothing
DISTRACTORS = 3
TRIED = 64  # places for the three
SEGMENT = 8  # tokens exchanged
CONTEXT = 48  # tokens given beside it
SPAN = 32  # tokens between a bracket and its partner
OPENERS = {"(": ")", "[": "]", "{": "}"}


@dataclass
class Items:
    """Options of equal length; the first of each item is true. `target` marks the exchanged segment."""

    options: Int[np.ndarray, "N O L"]
    target: Bool[np.ndarray, "N L"]

    def __len__(self) -> int:
        return len(self.options)


@dataclass(frozen=True)
class Layout:
    """How one item lies around its place p: [p - left, p + right), of which [p + begin, p + end) is exchanged."""

    left: int
    right: int
    begin: int
    end: int

    @classmethod
    def continuation(cls, longest: int) -> "Layout":
        """The SEGMENT after CONTEXT tokens; of shorter windows the last seventh."""
        context, segment = sizes(longest)
        return cls(context, segment, 0, segment)

    @classmethod
    def infill(cls, longest: int) -> "Layout":
        """The SEGMENT between two halves of CONTEXT tokens."""
        context, segment = sizes(longest)
        return cls(context // 2, segment + context - context // 2, 0, segment)

    @classmethod
    def later(cls, longest: int) -> "Layout":
        """The second of two adjacent segments."""
        segment = sizes(longest)[1]
        return cls(segment, segment, 0, segment)

    @classmethod
    def earlier(cls, longest: int) -> "Layout":
        """The first of the same two."""
        segment = sizes(longest)[1]
        return cls(segment, segment, -segment, 0)


def sizes(longest: int) -> tuple[int, int]:
    """Tokens of context and segment that fit into windows of so many tokens."""
    total = min(CONTEXT + SEGMENT, longest)
    segment = max(1, total * SEGMENT // (CONTEXT + SEGMENT))
    return total - segment, segment


def choices(texts: Texts, layout: Layout, count: int) -> Items:
    """Up to `count` items, each with a true segment and three from elsewhere in the held-out text."""
    stream, rng = texts.report, np.random.default_rng([layout.left, layout.right])
    places = np.arange(layout.left, len(stream) - layout.right + 1)
    offsets, segment = np.arange(-layout.left, layout.right), np.arange(layout.begin, layout.end)
    items = []
    for p in rng.permutation(places)[:count]:
        far = places[abs(places - p) >= layout.left + layout.right]
        tried = far[rng.integers(len(far), size=TRIED)] if len(far) else far
        found = distinct([tuple(stream[q + segment]) for q in tried], tuple(stream[p + segment]))
        if len(found) < DISTRACTORS:
            continue
        options = np.repeat(stream[p + offsets][None].astype(np.int64), 1 + DISTRACTORS, axis=0)
        options[1:, segment + layout.left] = np.array(found)
        items.append(options)
    target = np.isin(offsets, segment)
    return stack(items, [target] * len(items), len(offsets), count)


def distinct(segments: list[tuple], true: tuple) -> list[tuple]:
    """The first DISTRACTORS segments that differ from the true one and from one another."""
    return [segment for segment in dict.fromkeys(segments) if segment != true][:DISTRACTORS]


def brackets(texts: Texts, count: int, longest: int) -> Items:
    """Up to `count` pairs of brackets at most SPAN tokens apart; the closing one is exchanged for another kind.

    Of the two commonest kinds, as many of one as of the other: so a preference for one of them, whatever was
    opened, is right half the time. Only closing brackets that are tokens of their own can be exchanged.
    """
    stream, total = texts.report, min(CONTEXT + SEGMENT, longest, len(texts.report))
    rng = np.random.default_rng([SPAN, total])
    kinds: dict[str, list[tuple[int, int]]] = {}
    for i, j, closer in matched(texts.pieces):
        start = min(max(0, (i + j + 1 - total) // 2), len(stream) - total)
        if 1 < j - i <= SPAN and start <= i and j < start + total:
            kinds.setdefault(closer, []).append((start, j))
    common = sorted(kinds, key=lambda closer: (-len(kinds[closer]), closer))[:2]
    each = min(count // 2, *(len(kinds[closer]) for closer in common)) if len(common) == 2 else 0
    items, targets = [], []
    for closer, other in (common, common[::-1]) if each else ():
        wrong = stream[kinds[other][0][1]]
        for k in rng.permutation(len(kinds[closer]))[:each]:
            start, j = kinds[closer][k]
            options = np.repeat(stream[start : start + total][None].astype(np.int64), 2, axis=0)
            options[1, j - start] = wrong
            items.append(options)
            targets.append(np.arange(total) == j - start)
    return stack(items, targets, total, count, 2)


def matched(pieces: list[str]) -> list[tuple[int, int, str]]:
    """(token of the opening bracket, token of the closing one, that token's text) of each properly nested pair
    whose closing bracket is a token of its own; a bracket that does not match empties the stack."""
    stack_, found = [], []
    for i, piece in enumerate(pieces):
        for character in piece:
            if character in OPENERS:
                stack_.append((i, OPENERS[character]))
            elif character in OPENERS.values():
                if stack_ and stack_[-1][1] == character:
                    opened = stack_.pop()[0]
                    if piece == character:
                        found.append((opened, i, piece))
                else:
                    stack_.clear()
    return found


def stack(items: list, targets: list, length: int, count: int, options: int = 1 + DISTRACTORS) -> Items:
    """The items as arrays; empty ones where there are fewer than FEWEST, unless so few were asked for."""
    if len(items) < min(FEWEST, count):
        items, targets = [], []
    return Items(
        np.array(items, dtype=np.int64).reshape(-1, options, length),
        np.array(targets, dtype=bool).reshape(-1, length),
    )
