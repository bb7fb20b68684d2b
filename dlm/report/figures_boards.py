"""Where the first error falls, by what the cell needed at that moment; and boards while they are being solved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from dlm.data.sudoku.grade import TECHNIQUES, UNSOLVED
from dlm.report.decoded import Decoded
from dlm.report.decoding import AUTOREGRESSIVE, Contender, kinds, rule_label
from dlm.report.page import Figure
from dlm.report.panels import Absent, publish
from dlm.report.proportions import wilson
from dlm.report.style import canvas, heading, key, log_axis
from dlm.report.summary import Frame, to_frame

NO_BLANK = 1  # the model wrote where there is no blank cell
GROUPS = {  # kinds of cells by what a human needs to fill them at that moment: name, colour
    "by a single": ((2, 3), "#a9c9e3"),
    "by a technique beyond singles": ((4, 5, 6, 7, 8), "#e8b04a"),
    "not deducible by the seven": ((UNSOLVED,), "#c0392b"),
    "no blank cell": ((NO_BLANK,), "#333333"),
}
KIND_COLOURS = {
    2: "#d6e6f4", 3: "#9dc6e6", 4: "#fde3a7", 5: "#f9c56b", 6: "#eea24a", 7: "#b9dfb5", 8: "#cdb4db", 9: "#f2a097",
    1: "#777777",
}  # fmt: skip
MECHANISM = ("random", "left_to_right", "row_major", "top_probability", "margin", "log_ratio", "given")
MOMENTS = (1 / 3, 2 / 3, 1.0)  # shares of the fills after which a board is drawn
WRONG = "#c0181f"


def group_of(kind: int) -> str:
    return next((name for name, (members, _) in GROUPS.items() if kind in members), "no blank cell")


def grouped(found: dict[int, int]) -> dict[str, int]:
    total = dict.fromkeys(GROUPS, 0)
    for kind, n in found.items():
        if kind:
            total[group_of(kind)] += n
    return total


def mechanism_rows(decoded: Decoded, cell: str) -> list[dict[str, Any]]:
    """Fills and first errors of each contender of a cell by group, with the rate of errors and its interval."""
    rows = []
    for who in decoded.in_cell(cell):
        part = decoded.rows(who)
        fills, errors = grouped(kinds(part, "fills")), grouped(kinds(part, "first_errors"))
        if who.rule not in (*MECHANISM, AUTOREGRESSIVE) or not sum(fills.values()):
            continue
        for name in GROUPS:
            n, wrong = max(fills[name], errors[name]), errors[name]
            low, high = wilson(wrong, n) if n else (math.nan, math.nan)
            head = {"cell": cell, "arm": who.arm, "contender": decoded.label(who), "rule": who.rule}
            rows.append(
                head
                | {"kind": name, "fills": fills[name], "errors": wrong, "boards": int(part["puzzles"].sum()),
                 "share_of_fills": fills[name] / sum(fills.values()),
                 "share_of_errors": wrong / sum(errors.values()) if sum(errors.values()) else math.nan,
                 "rate": wrong / n if n else math.nan, "low": low, "high": high}
            )  # fmt: skip
    return rows


def mechanism_figure(decoded: Decoded, cells: Sequence[str], number: str) -> Figure | Absent:
    """Shares of fills and of first errors by kind of cell, and the rate of first errors among fills of each."""
    frame = to_frame([row for cell in cells for row in mechanism_rows(decoded, cell)])
    if frame.empty:
        return Absent(
            number, "where the first error falls", "no decoding counted its fills and first errors by kind"
        )
    cells = [c for c in cells if (frame["cell"] == c).any()]
    heights = [frame[frame["cell"] == c].groupby(["arm", "rule"]).ngroups for c in cells]
    figure, axes = canvas(
        9.6, 0.7 + sum(0.5 * n + 0.9 for n in heights), rows=len(cells), columns=2, height_ratios=heights,
        width_ratios=(3, 2), sharey="row",
    )  # fmt: skip
    for cell, (left, right) in zip(cells, axes, strict=True):
        groups = list(frame[frame["cell"] == cell].groupby(["arm", "rule"], sort=False))
        for y, (_, part) in enumerate(groups):
            stack(left, y, part)
            for k, row in enumerate(part.itertuples()):
                if row.fills and row.errors:
                    ends = [[1000 * (row.rate - row.low)], [1000 * (row.high - row.rate)]]
                    right.errorbar(
                        1000 * row.rate, y + 0.16 * (k - 1.5), xerr=ends, fmt="o", ms=4.5, lw=1.2,
                        color=darker(GROUPS[row.kind][1]),
                    )  # fmt: skip
        names = [part["contender"].iloc[0] for _, part in groups]
        left.set_yticks(range(len(groups)), names, fontsize=8.5)
        left.set(xlim=(0, 100), ylim=(len(groups) - 0.5, -0.5))
        for ax in (left, right):
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        log_axis(right.xaxis, few=True)
        heading(left, f"{decoded.title(cell)}: fills (upper bar) and first errors (lower)")
        heading(right, "first errors per 1,000 fills")
    axes[-1, 0].set_xlabel("share, %")
    axes[-1, 1].set_xlabel("per 1,000 fills of that kind")
    patches: list[Any] = [Patch(color=GROUPS[name][1], label=name) for name in GROUPS]
    key(figure, patches)
    caption = (
        "Every fill up to and including a board's first error, by what a human solver would have needed for "
        "that cell then, and the first errors by the same. Right: how often a fill of each kind is the first "
        "error, with 95 % Wilson intervals (fills of one board are not quite independent, so these are a little "
        "too narrow); kinds without an error are not drawn. The shares on the left are counts of what happened "
        f"and have no error. {int(frame['boards'].max()):,} boards at most a row, all seeds together."
    )
    return publish(decoded, number, "f5-first-errors", figure, frame, caption)


def stack(ax: Any, y: int, part: Frame) -> None:
    """Two stacked bars: shares of fills above, of first errors below."""
    for column, offset, count in (("share_of_fills", -0.18, "fills"), ("share_of_errors", 0.18, "errors")):
        left = 0.0
        for row in part.itertuples():
            width = 100 * getattr(row, column)
            if not width > 0:
                continue
            ax.barh(y + offset, width, 0.33, left=left, color=GROUPS[row.kind][1], lw=0)
            if width > 4:
                shade = "white" if row.kind in ("not deducible by the seven", "no blank cell") else "#333333"
                ax.text(
                    left + width / 2, y + offset, f"{width:.0f}", ha="center", va="center", fontsize=7, color=shade
                )
            left += width
        if not part[count].sum():
            ax.text(1, y + offset, "no error", fontsize=7, va="center", color="#777777")


def darker(colour: str) -> Any:
    red, green, blue = to_rgb(colour)
    return (0.75 * red, 0.75 * green, 0.75 * blue)


def boards_figure(decoded: Decoded, cell: str, number: str, name: str, most: int = 4) -> Figure | Absent:
    """One puzzle under several rules: three moments coloured by the step, the end by the technique needed."""
    traces = [t for run in decoded.runs(cell) for t in run.boards]
    what = f"boards being solved, {decoded.title(cell)}"
    if not traces:
        return Absent(number, what, "no run of it kept the boards it solved (traces=K)")
    number_shown = interesting(traces)
    chosen = distinct([t for t in traces if t["number"] == number_shown])[:most]
    size, steps = chosen[0]["size"], MOMENTS
    side = 1.85 if size < 9 else 2.25
    columns = len(steps) + 1
    figure, axes = canvas(
        side * columns + 0.5, (side + 0.32) * len(chosen) + 0.5, rows=len(chosen), columns=columns
    )
    rows = []
    for trace, panels in zip(chosen, axes, strict=True):
        last = max((s for s in trace["step"] if s is not None), default=0)
        for share, ax in zip(steps, panels, strict=False):
            draw(ax, trace, until=math.ceil(share * (last + 1)) - 1, last=last)
            ax.set_title(f"step {math.ceil(share * (last + 1))} of {last + 1}", fontsize=8, color="#555555", pad=4)
        draw(panels[-1], trace, until=last, last=last, by_kind=True)
        panels[-1].set_title("technique needed", fontsize=8, color="#555555", pad=4)
        panels[0].set_ylabel(trace_label(decoded, cell, trace), fontsize=9, color="#222222", labelpad=6)
        panels[0].yaxis.label.set_visible(True)
        rows += [
            {"cell": cell, "policy": trace["policy"], "puzzle": number_shown, "board_cell": i, "given": bool(p),
             "solution": s, "answer": a, "step": t, "kind": k}
            for i, (p, s, a, t, k) in enumerate(
                zip(*(trace[x] for x in ("puzzle", "solution", "answer", "step", "kind")), strict=True)
            )
        ]  # fmt: skip
    present = sorted({k for t in chosen for k in t["kind"] if k})
    marks: list[Any] = [Patch(color=KIND_COLOURS.get(k, "#777777"), label=kind_name(k)) for k in present]
    marks.append(Line2D([], [], color=WRONG, marker="s", mfc="none", ls="", ms=7, mew=1.6, label="wrong"))
    key(figure, marks, columns=4)
    caption = (
        f"Puzzle {number_shown} of the held-out split under {len(chosen)} orders. Bold on grey: givens. The "
        "colour goes from the first cell filled (dark) to the last (light); on the right it says what a human "
        "solver would have needed for the cell at the moment it was filled. Framed in red: wrong values. One "
        "puzzle, the first on which the orders disagree, if there is one: an illustration, so without an "
        "error bar."
    )
    return publish(decoded, number, name, figure, to_frame(rows), caption)


def interesting(traces: Sequence[dict[str, Any]]) -> int:
    """The first puzzle that some orders solve and others do not; the first of all if there is none."""
    numbers = list(dict.fromkeys(t["number"] for t in traces))
    most = max(sum(t["number"] == n for t in traces) for n in numbers)
    numbers = [n for n in numbers if sum(t["number"] == n for t in traces) == most]
    mixed = [n for n in numbers if len({t["answer"] == t["solution"] for t in traces if t["number"] == n}) > 1]
    return (mixed or numbers)[0]


def distinct(traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One trace per rule, the plainest setting of each, in the order of RULES."""
    found: dict[str, dict[str, Any]] = {}
    for trace in sorted(traces, key=lambda t: (t.get("setting") or {}).get("noise", "none") != "none"):
        found.setdefault(trace["policy"], trace)
    wanted = [p for p in ("random", "top_probability", "margin", "given", "log_ratio") if p in found]
    return [found[p] for p in (*wanted, *(p for p in found if p not in wanted))]


def trace_label(decoded: Decoded, cell: str, trace: dict[str, Any]) -> str:
    if trace["policy"] == AUTOREGRESSIVE:
        arms = [run for run in decoded.runs(cell) if trace in run.boards]
        return decoded.label(Contender(cell, arms[0].arm, AUTOREGRESSIVE))
    return rule_label(trace["policy"])


def kind_name(kind: int) -> str:
    return {NO_BLANK: "no blank cell", UNSOLVED: "not deducible"}.get(kind) or TECHNIQUES.get(kind, str(kind))


def draw(ax: Any, trace: dict[str, Any], until: int, last: int, by_kind: bool = False) -> None:
    """One board after step `until`; cells filled later stay empty."""
    size = trace["size"]
    wide, high = {4: (2, 2), 6: (3, 2), 9: (3, 3)}.get(size, (size, size))
    shades = matplotlib.colormaps["YlGnBu_r"]
    for cell in range(size**2):
        row, column = divmod(cell, size)
        given, step = trace["puzzle"][cell], trace["step"][cell]
        step = -1 if step is None else step
        filled = not given and 0 <= step <= until
        colour = "#e9ebed" if given else "white"
        if filled:
            kind = trace["kind"][cell]
            colour = KIND_COLOURS.get(kind, "#777777") if by_kind else shades(0.52 + 0.45 * step / max(last, 1))
        ax.add_patch(Rectangle((column, row), 1, 1, fc=colour, ec="#c4c9cd", lw=0.5))
        if given or filled:
            value = given or trace["answer"][cell]
            wrong = filled and value != trace["solution"][cell]
            digit = ax.text(
                column + 0.5, row + 0.52, value, ha="center", va="center", color=WRONG if wrong else "#1f2328",
                fontsize=10.5 if size <= 6 else 8.5, fontweight="bold" if given or wrong else "normal",
            )  # fmt: skip
            digit.set_in_layout(False)  # it lies within its cell
            if wrong:
                ax.add_patch(
                    Rectangle((column + 0.07, row + 0.07), 0.86, 0.86, fc="none", ec=WRONG, lw=1.6, zorder=5)
                )
    for k in range(0, size + 1):
        if k % high == 0:
            ax.plot([0, size], [k, k], color="#333333", lw=1.3, zorder=4)
        if k % wide == 0:
            ax.plot([k, k], [0, size], color="#333333", lw=1.3, zorder=4)
    ax.set(xlim=(-0.05, size + 0.05), ylim=(size + 0.05, -0.05), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
