"""The figures of the small languages: solutions, selection, orders, unvisited edges, the trembling hand."""

from __future__ import annotations

import numpy as np
from matplotlib.lines import Line2D
from report_style import BARS, BLUE, GREEN, GREY, INK, ORANGE, band, mean_se, shown, since, step_axis

from dlm.report.lattice_figure import draw_lattice, layers, square
from dlm.report.measurements import Measurements
from dlm.report.page import Figure
from dlm.report.style import Tag, canvas, heading, key, label_right

ORDERS = {"0": (ORANGE, "position 1 first"), "0.5": (INK, "random order"), "1": (BLUE, "constraint first")}


def theory(kind: str, lam: float, rate: float) -> float:
    """P(second token = 0) of the exact solution under a trembling hand."""
    if kind == "token":
        return rate / 2
    return rate / 4 + ((1 - rate) * (1 - lam) + rate / 2) * rate / 2


def solutions(measured: Measurements) -> list[Figure]:
    drawings = measured.json("drawings.json")
    small = {name: d for name, d in drawings.items() if d["length"] == 2}
    large = {name: d for name, d in drawings.items() if d["length"] == 3}
    figure, axes = canvas(8.2, 7.4, rows=2, columns=2)
    for ax, (name, drawing) in zip(axes.flat, small.items(), strict=True):
        draw_lattice(ax, drawing, square)
        ax.set(xlim=(-1.25, 1.25), ylim=(-1.2, 1.2))
        heading(ax, name)
    other, columns = canvas(8.2, 16.5, rows=len(large))
    for ax, (name, drawing) in zip(columns[:, 0], large.items(), strict=True):
        draw_lattice(ax, drawing, layers(drawing), size=7)
        ax.set(xlim=(-0.15, 3.15), ylim=(-0.02, 1.02))
        heading(ax, name)
    head = ["solution", "from", "to", "probability", "visits of from"]
    for file, group in (("solutions-2.csv", small), ("solutions-3.csv", large)):
        rows = [[name, *edge, d["visits"][edge[0]]] for name, d in group.items() for edge in d["edges"]]
        measured.csv(file, head, rows)
    how = (
        "Numbers: probability of each edge given the state it leaves, exact, so there are no error bars; width "
        "and opacity show the same. Tint: how often the walk visits the state. Dashed (?): out of a state that "
        "the walk never visits; such probabilities are undefined."
    )
    two = (
        "Four ways to sample 01 and 11 with probability one half each, as walks on the strings of length two; "
        f"_ is a mask, the walk starts in the middle. {how}"
    )
    three = f"Solutions on the 27 strings of length three, from left (all masked) to right. {how}"
    return [
        shown(measured, figure, "solutions-2", two),
        shown(measured, other, "solutions-3", three),
    ]


KINDS = {
    "network, neutral": (BLUE, "-"),
    "network, biased": (BLUE, "--"),
    "table, neutral": (ORANGE, "-"),
    "table, biased": (ORANGE, "--"),
}


def selection(measured: Measurements) -> Figure:
    data = measured.json("selection.json", *KINDS)
    panels = {
        "from__": "theta seen from __",
        "from_1": "theta seen from _1",
        "to_balanced": "distance to balanced",
        "to_concentrated": "distance to one path per string",
    }
    figure, axes = canvas(8.2, 6.2, rows=2, columns=2)
    for ax, (name, title) in zip(axes.flat, panels.items(), strict=True):
        for kind, (colour, dash) in KINDS.items():
            band(ax, since(data[kind]["steps"]), data[kind][name], colour, ls=dash)
        step_axis(ax, data["network, neutral"]["steps"])
        ax.set_ylabel("theta" if name.startswith("from") else "total variation of path laws")
        ax.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
        heading(ax, title)
    key(figure, [Line2D([], [], color=c, ls=dash, label=kind) for kind, (c, dash) in KINDS.items()])
    rows = [
        [kind, step, seed, *(data[kind][name][i][seed] for name in panels)]
        for kind in KINDS
        for i, step in enumerate(data[kind]["steps"])
        for seed in range(len(data[kind]["from__"][i]))
    ]
    measured.csv("selection.csv", ["start", "step", "seed", *panels], rows)
    text = (
        "Which solution training on 01 and 11 selects, from a neutral start and from one fitted to theta = "
        f"{measured.record['settings']['theta']:g}. Theta is read twice, 2 mu(0 | __) - 1 and 1 - 2 mu(0 | _1); "
        "only where both agree does the random-order law stay exact. Distances between laws over the eight "
        f"paths: 0 is equal, 1 disjoint. {BARS}"
    )
    return shown(measured, figure, "selection", text)


PARTS = {
    "excess": (INK, "-", "bound minus entropy"),
    "kl": (ORANGE, "-", "KL to the law"),
    "gap": (BLUE, "-", "Jensen gap"),
    "half_variance": (GREEN, "--", "half the order variance"),
}


def order_figures(measured: Measurements) -> list[Figure]:
    data = measured.json("orders.json", "languages", "entropy")
    languages = data["languages"]
    figure, axes = canvas(8.2, 6.2, rows=2, columns=2)
    for ax, (name, found) in zip(axes.flat, languages.items(), strict=True):
        for part, (colour, dash, _) in PARTS.items():
            band(ax, since(found["steps"]), found[part], colour, ls=dash)
        step_axis(ax, found["steps"])
        ax.set_ylabel("nats per string")
        heading(ax, f"{name} (H = {data['entropy'][name]:.3f})")
    key(figure, [Line2D([], [], color=c, ls=d, label=label) for c, d, label in PARTS.values()])
    other, panel = canvas(8.2, 4.2)
    ax = panel[0, 0]
    for (name, found), colour, mark in zip(languages.items(), (BLUE, ORANGE, GREEN, INK), "osD^", strict=False):
        x, y = (np.asarray(found[part]).ravel() for part in ("half_variance", "gap"))
        live = (x > 1e-6) & (y > 1e-6)
        ax.plot(x[live], y[live], mark, ms=3.5, color=colour, alpha=0.5, mew=0, label=name)
    ends = np.array([1e-6, 2.0])
    ax.plot(ends, ends, color=GREY, lw=0.9, ls=":")
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set_xlabel("half the variance of log p(x | order) over orders, nats²")
    ax.set_ylabel("Jensen gap, nats per string")
    ax.legend(frameon=False, fontsize=8, labelcolor="#555555")
    rows = [
        [name, step, seed, *(found[part][i][seed] for part in (*PARTS, "tv"))]
        for name, found in languages.items()
        for i, step in enumerate(found["steps"])
        for seed in range(len(found["excess"][i]))
    ]
    measured.csv("orders.csv", ["language", "step", "seed", *PARTS, "total variation"], rows)
    text = (
        "What the bound is above the entropy, split exactly: KL from the data to the random-order law (an "
        "error of sampling) plus the Jensen gap (orders that disagree), which half the variance over orders "
        f"approximates. Averaged over the language; all orders and strings enumerated. {BARS}"
    )
    second = (
        "Every network at every mark: the gap against half the order variance; dotted: equality, the second-order "
        "approximation. Each point is one network's exact value, so it has no error bar."
    )
    return [
        shown(measured, figure, "orders", text),
        shown(measured, other, "gap", second),
    ]


def unvisited(measured: Measurements) -> Figure:
    data = measured.json("unvisited.json", "before", "steps", "visits_per_step")
    inks = {
        "own, 00": (BLUE, "-", "own symbols, 00"),
        "own, 00 and 10": (BLUE, "--", "own symbols, both"),
        "shared, 00": (GREEN, "-", "shared, 00"),
        "shared, 00 and 10": (GREEN, "--", "shared, both"),
        "table from 0.5, 00": (ORANGE, "-", "table from 0.5, 00"),
        "table from 0.02, 00": (ORANGE, "--", "table from 0.02, 00"),
        "table from 0.98, 00": (ORANGE, ":", "table from 0.98, 00"),
    }
    figure, axes = canvas(8.2, 4.1, columns=2, width_ratios=(1, 3))
    left, right = axes[0]
    for x, (kind, colour) in enumerate((("own", BLUE), ("shared", GREEN))):
        before = data["before"][kind]
        left.plot(x + np.linspace(-0.2, 0.2, len(before)), before, "o", ms=5, color=colour, alpha=0.7, mew=0)
    left.axhline(0.5, color=GREY, lw=0.9, ls=":")
    left.set(xlim=(-0.5, 1.5), ylim=(-0.03, 1.03), ylabel="mu(0 | _0), probability")
    left.set_xticks([0, 1], ["own", "shared"])
    left.grid(axis="x", visible=False)
    heading(left, "never visited")
    for name, (colour, dash, _) in inks.items():
        band(right, since(data["steps"]), data[name], colour, ls=dash)
    step_axis(right, data["steps"])
    right.set(ylim=(-0.03, 1.03))
    heading(right, "after the data have changed")
    label_right(right, [Tag(float(np.mean(data[n][-1])), label, c) for n, (c, _, label) in inks.items()])
    rows = [
        [name, step, seed, value]
        for name in inks
        for step, row in zip(data["steps"], data[name], strict=True)
        for seed, value in enumerate(row)
    ]
    measured.csv("unvisited.csv", ["network or table, strings added", "step", "seed", "mu(0 | _0)"], rows)
    settings = measured.record["settings"]
    text = (
        f"The “?” edge from _0 to 00. Left: what {settings['steps']} steps on 01 and 11 left there, one dot per "
        "seed (the values themselves, so no error bar), in networks whose positions have symbols of their own "
        "or share them; its own gradient is exactly zero. Right: the same networks, and tables of logits with "
        f"three starts, once 00 (or 00 and 10, both) has weight {settings['rare']:g}: _0 is then met "
        f"{data['visits_per_step']:.2f} times per step. Truth: 1 with 00 added, 1/2 with both. {BARS}"
    )
    return shown(measured, figure, "unvisited", text)


def trembling(measured: Measurements) -> Figure:
    data = measured.json("trembling.json", "rates")
    rates = np.asarray(data["rates"])
    figure, axes = canvas(8.2, 3.7, columns=2, sharey=True)
    rows = []
    for ax, kind in zip(axes[0], ("edge", "token"), strict=True):
        fine = np.linspace(0, rates[-1], 61)
        for lam, (colour, _) in ORDERS.items():
            mean, se = mean_se(data[f"{kind}, {lam}"])
            ax.plot(fine, [theory(kind, float(lam), r) for r in fine], color=colour, lw=1)
            ax.errorbar(rates, mean, yerr=se, fmt="o", ms=4.5, mfc="white", color=colour, lw=1.2)
            rows += [
                [kind, lam, *row]
                for row in zip(rates, mean, se, [theory(kind, float(lam), r) for r in rates], strict=True)
            ]
        ax.set(xlabel="rate of trembling", ylim=(0, None))
        heading(ax, f"slips to a random {kind}")
    axes[0, 0].set_ylabel("P(second token = 0), should be 0")
    marks = [Line2D([], [], color=c, marker="o", mfc="white", lw=1, label=label) for c, label in ORDERS.values()]
    key(figure, marks)
    measured.csv("trembling.csv", ["slip", "lambda", "rate", "mean", "standard error", "theory"], rows)
    text = (
        "How often the trained networks break the constraint when every step slips with some probability, for "
        "three orders; exact terminal laws by walking the lattice. Lines: theory for exact conditionals, "
        "rate/4 + [(1 - rate)(1 - lambda) + rate/2] rate/2 by edge, rate/2 by token for every order (the three "
        f"lines coincide). Circles: networks. {BARS}"
    )
    return shown(measured, figure, "trembling", text)
