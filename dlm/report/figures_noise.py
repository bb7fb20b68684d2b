"""The grid of scores and noises: which order survives the noise, and whether the score matters without it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.lines import Line2D

from dlm.report.decoded import Decoded
from dlm.report.decoding import AUTOREGRESSIVE, Contender, of, plain, rule_label
from dlm.report.figures_decoding import POINT, SOLVED, asked, bars, point
from dlm.report.page import Figure
from dlm.report.panels import Absent, publish
from dlm.report.style import Ink, canvas, heading, key
from dlm.report.summary import Frame, to_frame

QUIET = "no noise"
MARKED = "Gumbel 0.5, annealed"  # the published noise
INKS = {
    QUIET: Ink("#0072b2", "-", "o"),
    MARKED: Ink("#d55e00", "-", "D"),
    "Gumbel 0.5": Ink("#8c2d04", "-", "s"),
}
OTHERS = (Ink("#f0a868", "-", "^"), Ink("#5aae61", "-", "v"), Ink("#1b7837", "-", "<"), Ink("#9970ab", "-", ">"))


def noises(frame: Frame) -> dict[str, Ink]:
    """The noises of a frame, from none to the strongest, and how each is drawn."""
    names = frame[["noise_name", "noise", "noise_scale", "anneal"]].drop_duplicates()
    names = names.sort_values(["noise", "noise_scale", "anneal"], ascending=[False, True, False])
    ranked = sorted(names["noise_name"], key=lambda n: (n != QUIET, not n.startswith("Gumbel")))
    spare = iter(OTHERS * 4)
    return {name: INKS.get(name) or next(spare) for name in ranked}


def families(decoded: Decoded, cells: Sequence[str], table: Frame) -> list[tuple[str, str]]:
    """The diffusion arms (cell, arm) that were decoded with some noise besides none."""
    found = []
    for cell in cells:
        for arm in decoded.diffusion(cell, table):
            part = table[(table["cell"] == cell) & (table["arm"] == arm)]
            if part["noise_name"].nunique() > 1:
                found.append((cell, arm))
    return found


def noise_figure(decoded: Decoded, cells: Sequence[str], number: str) -> Figure | Absent:
    """One panel per diffusion model: a row per rule, a mark per noise, the fall between them as a line."""
    table = plain(decoded.table, noise=None)
    table = table[table["cell"].isin(cells) & (table["rule"] != AUTOREGRESSIVE)]
    shown = families(decoded, cells, table)
    if not shown:
        return Absent(number, "the grid of scores and noises", "no run was decoded both with and without noise")
    rows = []
    for cell, arm in shown:
        part = table[(table["cell"] == cell) & (table["arm"] == arm)]
        for who in [c for c in decoded.in_cell(cell, table) if c.arm == arm]:
            for name, some in of(part, who).groupby("noise_name", sort=False):
                rows.append(point(decoded, who, some) | {"arm": arm, "noise": name})
    frame = to_frame(rows, [*POINT, "arm", "noise"])
    looks = noises(table)
    rules = list(dict.fromkeys(frame["rule"]))
    columns = min(len(shown), 3)
    lines = -(-len(shown) // columns)
    width, height = max(8.2, 1.9 + 3.2 * columns), (0.5 + 0.46 * len(rules)) * lines + 0.7
    figure, axes = canvas(width, height, rows=lines, columns=columns, sharey=True)
    for (cell, arm), ax in zip(shown, axes.flat, strict=False):
        part = frame[(frame["cell"] == cell) & (frame["arm"] == arm)]
        for y, rule in enumerate(rules):
            own = part[part["rule"] == rule]
            if y % 2 == 0:
                ax.axhspan(y - 0.5, y + 0.5, color="#f6f7f8", lw=0, zorder=0)
            if len(own) > 1:
                ax.plot([own["solved"].min(), own["solved"].max()], [y, y], color="#c9ced2", lw=2.2, zorder=1)
            there = [name for name in looks if (own["noise"] == name).any()]
            for k, name in enumerate(there):
                look, some = looks[name], own[own["noise"] == name]
                spot = y + 0.6 * ((k + 0.5) / len(there) - 0.5)
                ax.errorbar(
                    some["solved"], [spot] * len(some), xerr=bars(some), fmt=look.marker, color=look.colour, ms=5,
                    lw=1.2, zorder=3,
                )  # fmt: skip
        name = f": {decoded.study.label(arm)}" if len(decoded.diffusion(cell, table)) > 1 else ""
        heading(ax, decoded.title(cell) + name)
        ax.set(xlim=(-2, 102), xlabel=SOLVED, ylim=(len(rules) - 0.5, -0.5))
        ax.set_yticks(range(len(rules)), [rule_label(rule) for rule in rules], fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    key(figure, [Line2D([], [], color=i.colour, ls="", marker=i.marker, ms=5, label=n) for n, i in looks.items()])
    caption = (
        "Whole boards solved under each score (rows) and each noise added to it (marks), one token a step, "
        "greedy values. A probability and a margin of probabilities end at 1, so the cells that a model is "
        "sure of lie closer together than a noise of 0.5; the log-ratio of the two likeliest values has no "
        "end. Orders without a score take no noise; without noise a score and its logarithm give one order. "
        "Annealed: the noise times the share of cells still blank. Bars: 95 % intervals over puzzles and, "
        f"with several seeds, trainings; {asked(frame)}."
    )
    return publish(decoded, number, "f3-noise", figure, frame, caption)


def marked(decoded: Decoded, contender: Contender, noise: str) -> Frame:
    """The decodings of a contender under one noise, one token a step."""
    return of(plain(decoded.table, noise=noise), contender)
