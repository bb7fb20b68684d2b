"""Share of solved puzzles against training, against the pace of decoding, and by the difficulty of the puzzle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D

from dlm.data.sudoku.grade import TECHNIQUES, UNSOLVED
from dlm.report.decoded import Decoded
from dlm.report.decoding import AUTOREGRESSIVE, Contender, counts, estimate, mean, of, plain
from dlm.report.page import Figure
from dlm.report.panels import Absent, publish
from dlm.report.proportions import wilson
from dlm.report.style import Ink, Tag, canvas, heading, key, label_right, log_axis
from dlm.report.summary import Frame, to_frame

POINT = ["cell", "contender", "rule", "solved", "low", "high", "puzzles", "seeds"]
LEVELS = {**TECHNIQUES, UNSOLVED: "none of these"}
SOLVED = "puzzles solved, %"
PACED = ("random", "top_probability", "margin", "log_ratio", "given")  # rules drawn where room is scarce


def point(decoded: Decoded, contender: Contender, rows: Frame) -> dict[str, Any]:
    """The share of solved puzzles of one contender as a row of a figure's frame, in percent."""
    e = estimate(rows)
    head = {"cell": contender.cell, "contender": decoded.label(contender), "rule": contender.rule}
    return head | {
        "solved": 100 * e.value, "low": 100 * e.low, "high": 100 * e.high, "puzzles": e.puzzles, "seeds": e.seeds
    }  # fmt: skip


def bars(part: Frame) -> Any:
    """Distances of the interval's ends from the points, as matplotlib wants them."""
    return [(part["solved"] - part["low"]).clip(lower=0), (part["high"] - part["solved"]).clip(lower=0)]


def asked(frame: Frame) -> str:
    """How many puzzles and seeds stand behind a figure's points, in words."""

    def span(column: str) -> str:
        low, high = int(frame[column].min()), int(frame[column].max())
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    seeds = span("seeds")
    return f"{span('puzzles')} held-out puzzles a point, {seeds} {'seed' if seeds == '1' else 'seeds'} of training"


def tagged(figure: Any, panels: Sequence[tuple[Any, Sequence[Tag]]]) -> None:
    """Direct labels right of the panels, once all that is in them is drawn."""
    engine = figure.get_layout_engine()
    engine.set(rect=(0, 0, 0.96, 1))  # room for the labels
    engine.execute(figure)
    for ax, tags in panels:
        label_right(ax, tags, size=7.5)


def line(ax: Any, x: Any, part: Frame, look: Ink) -> None:
    """A contender's line with its band."""
    ax.fill_between(x, part["low"], part["high"], color=look.colour, alpha=0.13, lw=0)
    ax.plot(x, part["solved"], color=look.colour, ls=look.dash, marker=look.marker, ms=3.6, lw=1.4)


def progress_figure(decoded: Decoded, cells: Sequence[str], number: str) -> Figure | Absent:
    """Share of solved puzzles at the checkpoints that were kept, by training step."""
    what = "accuracy against training steps"
    kept = plain(decoded.table, checkpoint=None)
    kept = kept[kept["cell"].isin(cells) & kept["checkpoint"].astype(str).str.startswith("epoch-")]
    if kept.empty:
        return Absent(number, what, "no checkpoint but the chosen one was decoded")
    rows = []
    for cell in cells:
        for who in decoded.in_cell(cell, kept):
            for step, part in of(kept, who).groupby("step"):
                rows.append(point(decoded, who, part) | {"arm": who.arm, "step": int(step)})
    frame = to_frame(rows, [*POINT, "arm", "step"])
    cells = [c for c in cells if (frame["cell"] == c).any()]
    figure, axes = canvas(8.2, 3.3 * len(cells) + 0.2, rows=len(cells))
    panels = []
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        tags = []
        for (_, arm, rule), part in frame[frame["cell"] == cell].groupby(["contender", "arm", "rule"], sort=False):
            who = Contender(cell, str(arm), str(rule))
            line(ax, part["step"], part, decoded.ink(who))
            tags.append(Tag(part["solved"].iloc[-1], decoded.label(who), decoded.ink(who).colour))
        heading(ax, decoded.title(cell))
        ax.set(ylim=(-2, 102), ylabel=SOLVED)
        steps = sorted(frame[frame["cell"] == cell]["step"].unique())
        log_axis(ax.xaxis, steps if len(steps) < 10 else ())
        panels.append((ax, tags))
    axes[-1, 0].set_xlabel("training steps")
    tagged(figure, panels)
    caption = (
        "Whole boards solved exactly, against training steps. No noise, greedy values, one token a step. Bands: "
        f"95 % intervals over puzzles (Wilson) and, with several seeds, over trainings; {asked(frame)}."
    )
    return publish(decoded, number, "f1-training", figure, frame, caption)


def pace_figure(decoded: Decoded, cells: Sequence[str], number: str) -> Figure | Absent:
    """Share of solved puzzles against tokens per step, and against evaluations of the network per puzzle."""
    table = plain(decoded.table, pace=None)
    table = table[table["cell"].isin(cells)]
    several = table[table["rule"] != AUTOREGRESSIVE].groupby("cell")["pace"].nunique()
    cells = [cell for cell in cells if several.get(cell, 0) > 1]
    if not cells:
        return Absent(number, "accuracy against tokens per step", "no run was decoded at several paces")
    rows = []
    for cell in cells:
        for who in decoded.in_cell(cell, table):
            if who.rule not in (*PACED, AUTOREGRESSIVE):
                continue
            for pace, part in of(table, who).groupby("pace", sort=False):
                spent = {k: mean(part, k) for k in ("tokens_per_step", "nfe")}
                rows.append(point(decoded, who, part) | {"arm": who.arm, "pace": pace} | spent)
    frame = to_frame(rows, [*POINT, "arm", "pace", "tokens_per_step", "nfe"])
    figure, axes = canvas(9.4, 3.3 * len(cells) + 0.2, rows=len(cells), columns=2, sharey="row")
    panels = []
    for cell, (left, right) in zip(cells, axes, strict=True):
        tags = []
        for (arm, rule), part in frame[frame["cell"] == cell].groupby(["arm", "rule"], sort=False):
            who = Contender(cell, str(arm), str(rule))
            look = decoded.ink(who)
            for ax, x in ((left, "tokens_per_step"), (right, "nfe")):
                some = part.sort_values(x)
                if rule == AUTOREGRESSIVE:
                    ax.errorbar(some[x], some["solved"], yerr=bars(some), fmt=look.marker, color=look.colour, ms=5)
                else:
                    line(ax, some[x], some, look)
            last = part.sort_values("nfe").iloc[-1]
            tags.append(Tag(float(last["solved"]), decoded.label(who), look.colour))
        heading(left, decoded.title(cell))
        left.set(ylim=(-2, 102), ylabel=SOLVED)
        for ax, x in ((left, "tokens_per_step"), (right, "nfe")):
            ticks = sorted({float(f"{v:.2g}") for v in frame[frame["cell"] == cell][x].dropna()})
            log_axis(ax.xaxis, ticks if len(ticks) < 8 else ())
        panels.append((right, tags))
    axes[-1, 0].set_xlabel("tokens per step, mean")
    axes[-1, 1].set_xlabel("evaluations of the network per puzzle, mean")
    tagged(figure, panels)
    caption = (
        "What revealing several tokens at a time costs: whole boards solved, against the tokens of a step (left) "
        "and the evaluations of the network that a puzzle takes (right). An autoregressive model writes one token "
        "at a time, and in some formats several for one cell. No noise, greedy values. Bands and bars: 95 % "
        f"intervals; {asked(frame)}."
    )
    return publish(decoded, number, "f2-pace", figure, frame, caption)


def strata_figure(decoded: Decoded, cells: Sequence[str], number: str) -> Figure | Absent:
    """Share of solved puzzles by level (the hardest technique needed) and by number of givens."""
    rows = []
    for cell in cells:
        for who in decoded.in_cell(cell):
            if who.rule not in (*PACED, AUTOREGRESSIVE):
                continue
            part = decoded.rows(who)
            for what in ("level", "givens"):
                for value, (solved, n) in counts(part, what).items():
                    puzzles = round(n / len(part))
                    low, high = wilson(round(puzzles * solved / n), puzzles)
                    share = {"solved": 100 * solved / n, "low": 100 * low, "high": 100 * high}
                    name = {"cell": cell, "contender": decoded.label(who), "rule": who.rule, "arm": who.arm}
                    rows.append(
                        name | share | {"puzzles": puzzles, "seeds": len(part), "by": what, "value": value}
                    )
    frame = to_frame(rows, [*POINT, "arm", "by", "value"])
    cells = [c for c in cells if (frame["cell"] == c).any()]
    if frame.empty:
        return Absent(number, "accuracy by level and givens", "no decoding was counted by level or givens")
    figure, axes = canvas(9.4, 3.1 * len(cells) + 0.6, rows=len(cells), columns=2, sharey=True)
    shown: dict[Contender, Ink] = {}
    for cell, panels in zip(cells, axes, strict=True):
        for ax, what in zip(panels, ("level", "givens"), strict=True):
            part = frame[(frame["cell"] == cell) & (frame["by"] == what)]
            groups = list(part.groupby(["arm", "rule"], sort=False))
            values = sorted(part["value"].unique(), key=lambda v: (len(v), v))
            for k, ((arm, rule), some) in enumerate(groups):
                who = Contender(cell, str(arm), str(rule))
                look = shown[who] = decoded.ink(who)
                apart = 0.62 * ((k + 0.5) / len(groups) - 0.5)
                x = [values.index(v) + apart for v in some["value"]]
                ax.errorbar(x, some["solved"], yerr=bars(some), fmt=look.marker, color=look.colour, ms=3.8, lw=1)
            sizes = part.groupby("value")["puzzles"].max()
            ax.set_xticks(range(len(values)), [f"{stratum(what, v)}\n{sizes[v]:,}" for v in values], fontsize=7)
            ax.set_xlim(-0.6, len(values) - 0.4)
            ax.grid(axis="x", visible=False)
        heading(panels[0], f"{decoded.title(cell)}: hardest technique needed")
        heading(panels[1], "number of givens")
        panels[0].set(ylim=(-2, 102), ylabel=SOLVED)
    names: dict[str, Ink] = {}
    for who, look in shown.items():
        names.setdefault(decoded.label(who), look)
    marks = [Line2D([], [], color=i.colour, ls="", marker=i.marker, ms=4.5, label=n) for n, i in names.items()]
    key(figure, marks, columns=5)
    caption = (
        "Whole boards solved, by the hardest technique that a human solver of seven techniques needs (left) and "
        "by the number of givens (right); under each, how many puzzles. Bars: 95 % Wilson intervals over puzzles "
        f"of the mean over seeds, without the noise of training; {asked(frame)}."
    )
    return publish(decoded, number, "f4-levels", figure, frame, caption)


def stratum(what: str, value: str) -> str:
    """A level by the technique's name, on two lines; anything else as it is."""
    if what != "level" or not value.isdigit():
        return value
    return LEVELS.get(int(value), value).replace(" ", "\n")
