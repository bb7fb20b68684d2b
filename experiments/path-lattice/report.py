"""The report of this laboratory: what training selects on the lattice of masked strings.

    python experiments/path-lattice/report.py outputs/path-lattice/<scale>

reads what was measured there and writes report.html, figures/*.svg and *.png, results.json and a CSV per figure.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.lines import Line2D

from dlm.errors import UserError
from dlm.lattice_figure import draw_lattice, layers, square
from dlm.measurements import Measurements
from dlm.page import Figure, Prose, Section, Table, page
from dlm.style import Tag, canvas, heading, key, label_right, log_axis, save
from dlm.tables import plus_minus

INK, BLUE, ORANGE, GREEN, GREY = "#222222", "#0072b2", "#c8590a", "#009e73", "#777777"
ORDERS = {"0": (ORANGE, "position 1 first"), "0.5": (INK, "random order"), "1": (BLUE, "constraint first")}
BARS = "Bands and bars: ± one standard error over seeds."


def mean_se(values: Any) -> tuple[Any, Any]:
    """Mean and standard error over the last axis, which are the seeds."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    return values.mean(-1), values.std(-1, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(values.shape[:-1])


def band(axes: Any, x: Any, values: Any, colour: str, **line: Any) -> None:
    """A line with its standard error."""
    mean, se = mean_se(values)
    axes.fill_between(x, mean - se, mean + se, color=colour, alpha=0.15, lw=0)
    axes.plot(x, mean, color=colour, **line)


def since(steps: Iterable[float]) -> np.ndarray:
    """Steps for a logarithmic axis that holds the start: it stands at one half."""
    return np.maximum(np.asarray(list(steps), float), 0.5)


def step_axis(axes: Any, steps: Iterable[float]) -> None:
    x = since(steps)
    ticks = [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if v <= x[-1]]
    log_axis(axes.xaxis, [0.5, *ticks])
    axes.xaxis.set_major_formatter(lambda v, _: "0" if v < 1 else f"{v:,g}")
    axes.set(xlim=(0.5, x[-1]), xlabel="training steps")


def plain_log(axes: Any, floor: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)


# -- results ------------------------------------------------------------------------------------------------


def compute(measured: Measurements) -> dict[str, Any]:
    """The numbers of the verdict, each as [mean, standard error over seeds]."""
    files = ("selection", "unvisited", "trembling", "orders", "coverage", "imbalance")
    data = {name: measured.json(f"{name}.json") for name in files}

    def pair(values: Any) -> list[float]:
        mean, se = mean_se(values)
        return [float(mean), float(se)]

    biased, neutral = (data["selection"][f"network, {start}"] for start in ("biased", "neutral"))
    rates = data["trembling"]["rates"]
    rate = min(range(len(rates)), key=lambda i: abs(rates[i] - 0.1))
    cover, shared = data["coverage"]["sets"][0], data["coverage"]["sets"][-1]
    kinds = [data["imbalance"][k] for k in METHODS]
    peaks = [np.max(k["visits"], 1) / np.median(k["visits"], 1).clip(min=1) for k in kinds]
    points = [
        (h, g)
        for language in data["orders"]["languages"].values()
        for row_h, row_g in zip(language["half_variance"], language["gap"], strict=True)
        for h, g in zip(row_h, row_g, strict=True)
        if 1e-4 < h < 0.1
    ]
    results: dict[str, Any] = {
        "smoke": measured.smoke,
        "scale": measured.record["scale"],
        "theta": measured.record["settings"]["theta"],
        "seeds": len(measured.record["settings"]["seeds"]),
        "start_to_balanced": pair(biased["to_balanced"][0]),
        "biased_to_balanced": pair(biased["to_balanced"][-1]),
        "biased_to_concentrated": pair(biased["to_concentrated"][-1]),
        "neutral_to_balanced": pair(neutral["to_balanced"][-1]),
        "biased_variance": [2 * v for v in pair(biased["half_variance"][-1])],
        "gap_to_half_variance": pair([g / h for h, g in points]) if points else [math.nan, math.nan],
        "unvisited": {k: [min(v), max(v)] for k, v in data["unvisited"]["before"].items()},
        "unvisited_after": {k: pair(data["unvisited"][f"{k}, 00"][-1]) for k in data["unvisited"]["before"]},
        "more_steps": data["unvisited"]["steps"][-1],
        "rare": measured.record["settings"]["rare"],
        "tremble_rate": rates[rate],
        "tremble": {lam: pair(data["trembling"][f"edge, {lam}"][rate]) for lam in ORDERS},
        "tremble_theory": {lam: theory("edge", float(lam), rates[rate]) for lam in ORDERS},
        "training_set": cover["size"],
        "seen": pair(cover["seen"][-1]),
        "unseen": pair(cover["unseen"][-1]),
        "unseen_share": pair(cover["unseen_share"]),
        "unseen_shared": pair(shared["unseen"][-1]),
        "invalid": pair(cover["invalid"][-1]),
        "peak": [pair(p) for p in peaks],
        "final_excess": [pair(k["excess"][-1]) for k in kinds],
        "excess_change": pair(np.subtract(kinds[1]["excess"][-1], kinds[0]["excess"][-1])),
        "excess_change_fewer": pair(np.subtract(kinds[1]["excess"][-1], kinds[2]["excess"][-1])),
    }
    return results | {"verdict": verdict_lines(results)}


def theory(kind: str, lam: float, rate: float) -> float:
    """P(second token = 0) of the exact solution under a trembling hand."""
    if kind == "token":
        return rate / 2
    return rate / 4 + ((1 - rate) * (1 - lam) + rate / 2) * rate / 2


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """The three findings, in the numbers that were measured."""

    def said(pair: list[float], digits: int = 3) -> str:
        return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"

    r = results
    nearer = r["biased_to_balanced"][0] < r["biased_to_concentrated"][0]
    selects = (
        "Training selects the balanced solution" if nearer else "Training did not come to the balanced solution"
    )
    first = (
        f"{selects}: networks that begin at theta = {r['theta']:g}, {said(r['start_to_balanced'])} away from it "
        f"in total variation between laws over paths, end {said(r['biased_to_balanced'])} away (from a neutral "
        f"start {said(r['neutral_to_balanced'])}), with an order variance of {said(r['biased_variance'])}; what "
        f"is left of it is paid in the bound, gap / (variance / 2) = {said(r['gap_to_half_variance'], 2)}."
    )
    own, tied, after = r["unvisited"]["own"], r["unvisited"]["shared"], r["unvisited_after"]
    second = (
        "Where data never go the softmax says what its weights imply: mu(0 | _0) on the “?” edge is "
        f"{own[0]:.2f} to {own[1]:.2f} over {r['seeds']} seeds where positions have symbols of their own and "
        f"{tied[0]:.2f} to {tied[1]:.2f} where they share them, and {r['more_steps']} steps with "
        f"{r['rare']:.0%} of 00 bring it to {said(after['own'], 2)} and {said(after['shared'], 2)} (truth 1); a "
        f"hand that trembles at rate {r['tremble_rate']:g} errs {said(r['tremble']['1'], 4)} with the "
        f"constraint first against {said(r['tremble']['0'], 4)} with it last (theory "
        f"{r['tremble_theory']['1']:.4f} and {r['tremble_theory']['0']:.4f})."
    )

    def effect(pair: list[float]) -> str:
        sure = "" if abs(pair[0]) > 2 * pair[1] > 0 else " within noise"
        return f"{'higher' if pair[0] > 0 else 'lower'}{sure} ({pair[0]:+.3f} ± {pair[1]:.3f})"

    smooths = r["unseen"][0] > r["unseen_share"][0] / 2
    third = (
        f"From {r['training_set']} strings a network "
        f"{'smooths' if smooths else 'does not smooth but repeats them'}: {said(r['seen'], 2)} of its mass is "
        f"on modes it saw, {said(r['unseen'], 2)} (with shared symbols {said(r['unseen_shared'], 2)}) on modes "
        f"it never saw, which hold {said(r['unseen_share'], 2)} of the data, {said(r['invalid'], 2)} on strings "
        "that do not exist; rejecting often-met states lowers the visits of the most trained state from "
        f"{r['peak'][0][0]:.0f} to {r['peak'][1][0]:.1f} times the median's, and the final error in nats is "
        f"{effect(r['excess_change'])} than with MD4 after as many steps, {effect(r['excess_change_fewer'])} "
        "than with MD4 on as many rows."
    )
    lines = [first, second, third]
    if r["smoke"]:
        return ["Smoke scale: this proves the machinery, and nothing about the models.", *lines]
    return lines


# -- figures ------------------------------------------------------------------------------------------------


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
        Figure("solutions-2", save(figure, measured.directory, "solutions-2"), two, measured.again),
        Figure("solutions-3", save(other, measured.directory, "solutions-3"), three, measured.again),
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
    return Figure("selection", save(figure, measured.directory, "selection"), text, measured.again)


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
        "approximation. Each point is one network's exact value, so it has no error bar. Data: orders.csv."
    )
    return [
        Figure("orders", save(figure, measured.directory, "orders"), text, measured.again),
        Figure("gap", save(other, measured.directory, "gap"), second, measured.again),
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
    return Figure("unvisited", save(figure, measured.directory, "unvisited"), text, measured.again)


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
    return Figure("trembling", save(figure, measured.directory, "trembling"), text, measured.again)


MASSES = {"seen": (BLUE, "modes seen"), "unseen": (GREEN, "modes not seen"), "invalid": (ORANGE, "no mode")}


def coverage(measured: Measurements) -> list[Figure | Table]:
    data = measured.json("coverage.json", "sets", "steps", "modes")
    sets = [(named(found), found) for found in data["sets"]]
    rows_of_panels = math.ceil(len(sets) / 2)
    figure, axes = canvas(8.2, 3.2 * rows_of_panels, rows=rows_of_panels, columns=2)
    for ax, (name, found) in zip(axes.flat, sets, strict=False):
        for part, (colour, _) in MASSES.items():
            band(ax, since(data["steps"]), found[part], colour)
        ax.axhline(np.mean(found["unseen_share"]), color=GREEN, lw=0.9, ls=":")
        step_axis(ax, data["steps"])
        ax.set(ylim=(-0.03, 1.03), ylabel="probability mass")
        heading(ax, name)
    for ax in axes.flat[len(sets) :]:
        ax.set_axis_off()
    dotted = Line2D([], [], color=GREEN, ls=":", lw=0.9, label="data on modes not seen")
    key(figure, [*(Line2D([], [], color=c, label=label) for c, label in MASSES.values()), dotted])
    parts = [*MASSES, "tv_data", "tv_empirical", "tv_drawn", "missed", "entropy_gain"]
    rows = [
        [name, step, seed, *(found[part][i][seed] for part in parts)]
        for name, found in sets
        for i, step in enumerate(data["steps"])
        for seed in range(len(found["seen"][i]))
    ]
    measured.csv("coverage.csv", ["trained on", "step", "seed", *parts], rows)
    draws = measured.record["settings"]["draws"]
    text = (
        f"The exact random-order law of networks trained on finite samples of {data['modes']} modes (strings abab "
        "over three tokens, weights 1/rank): its mass on modes in the sample, on modes that are not, on strings "
        "that are no mode. Dotted: what the data have on modes not seen. Shared: positions share their symbols. "
        f"{BARS}"
    )
    last = {"tv_data", "tv_empirical", "tv_drawn", "missed", "entropy_gain"}
    columns = {
        "tv_data": "law from data",
        "tv_empirical": "law from sample",
        "tv_sample": "sample from data",
        "tv_drawn": "draws from data",
        "tv_drawn_from_data": "the same, of a perfect law",
        "unseen_modes": "modes not in the sample",
        "missed": "modes missed by draws",
        "missed_by_data": "the same, of a perfect law",
        "entropy_gain": "entropy gained, nats",
    }
    table = []
    for name, found in sets:
        cells = [mean_se(found[part][-1] if part in last else found[part]) for part in columns]
        table.append([name, *(Markup("{:.2f} <span class='small'>± {:.2f}</span>").format(*c) for c in cells)])
    caption = (
        "At the last step, ± standard error over seeds. From: total variation. Law: the network's exact law. "
        f"Draws: {draws} strings from it, beside as many from the data, which is what sampling alone costs. "
        "Entropy gained: of the law over the sample it was trained on; positive is smoothing, negative "
        "collapse."
    )
    return [
        Figure("coverage", save(figure, measured.directory, "coverage"), text, measured.again),
        Table(["<trained on", *columns.values()], table, caption),
    ]


def named(found: dict[str, Any]) -> str:
    size = f"{found['size']} strings" if found["size"] else "the whole language"
    return size + (", shared" if found["shared"] else "")


METHODS = {
    "md4": (BLUE, "MD4"),
    "md4_balanced": (ORANGE, "MD4 with rejection"),
    "md4_fewer": (GREY, "MD4 on as many rows as rejection keeps"),
}


def imbalance(measured: Measurements) -> list[Figure | Table]:
    data = measured.json("imbalance.json", "steps", "states", "masks", "expected", *METHODS)
    expected = np.asarray(data["expected"])
    figure, axes = canvas(8.2, 6.4, rows=2, columns=2)
    for ax, part, title in (
        (axes[0, 0], "visits", "visits that train"),
        (axes[0, 1], "signal", "sum of gradient norms"),
    ):
        for name in ("md4", "md4_balanced"):
            values = np.asarray(data[name][part])
            share = values / values.sum(1, keepdims=True)
            mean, se = mean_se(share.T)
            ax.errorbar(expected, mean, yerr=se, fmt="o", ms=3, color=METHODS[name][0], alpha=0.6, lw=0.8, mew=0)
        low = expected.min() / 2
        ax.plot([low, 1], [low, 1], color=GREY, lw=0.9, ls=":")
        ax.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low / 2, 1))
        ax.set(xlabel="visits expected of MD4, share", ylabel="share of the total")
        heading(ax, title)
    for ax, part, title in ((axes[1, 0], "excess", "bound minus entropy"), (axes[1, 1], "worst", "worst state")):
        for name, (colour, _) in METHODS.items():
            band(ax, since(data["steps"]), data[name][part], colour)
        step_axis(ax, data["steps"])
        ax.set_ylabel("nats per string" if part == "excess" else "KL, nats per state")
        plain_log(ax, 1e-3)
        heading(ax, title)
    key(figure, [Line2D([], [], color=c, marker="o", ms=4, label=label) for c, label in METHODS.values()])
    rows = [
        [
            name,
            state,
            data["masks"][i],
            expected[i],
            seed,
            data[name]["visits"][seed][i],
            data[name]["signal"][seed][i],
        ]
        for name in METHODS
        for i, state in enumerate(data["states"])
        for seed in range(len(data[name]["visits"]))
    ]
    measured.csv(
        "imbalance.csv", ["method", "state", "masks", "expected share", "seed", "visits", "gradient norm"], rows
    )
    measured.csv(
        "imbalance-error.csv",
        ["method", "step", "seed", "excess", "mean", "worst"],
        [
            [name, step, seed, *(data[name][part][i][seed] for part in ("excess", "mean", "worst"))]
            for name in METHODS
            for i, step in enumerate(data["steps"])
            for seed in range(len(data[name]["excess"][i]))
        ],
    )
    text = (
        "Training on the nine modes, with MD4 and with rejection of states met more often than the median "
        "state; grey: MD4 with a batch as small as what rejection keeps. Above: each dot is one masked state; "
        "dotted: as often as MD4 is expected to meet it. Below: the error in the bound, and the KL from the "
        f"exact conditionals in the worst of the states that data reach. {BARS}"
    )
    parts, table = ("excess", "mean", "worst"), []
    for name, (_, label) in METHODS.items():
        found, plain = data[name], np.asarray(data["md4"]["visits"]).sum()
        visits, signal = (np.asarray(found[part]) for part in ("visits", "signal"))
        cells = [mean_se(v.max(1) / np.median(v, 1).clip(min=1e-9)) for v in (visits, signal)]
        errors = [signed(found[part][-1], "") for part in parts]
        even = [Markup("{:.1f} <span class='small'>± {:.1f}</span>").format(*c) for c in cells]
        table.append([label, f"{visits.sum() / plain:.0%}", *even, *errors])
    for name in ("md4", "md4_fewer"):
        change = [np.subtract(data["md4_balanced"][part][-1], data[name][part][-1]) for part in parts]
        cells = [signed(c) for c in change]
        table.append([f"rejection minus {METHODS[name][1]}", "", "", "", *cells])
    head = ["<method", "rows that train", "visits, most / median", "gradient, most / median"]
    head += ["bound minus entropy", "mean state KL", "worst state KL"]
    caption = "At the last step; errors in nats, ± standard error over seeds, differences paired by seed."
    return [
        Figure("imbalance", save(figure, measured.directory, "imbalance"), text, measured.again),
        Table(head, table, caption),
    ]


def signed(values: Any, sign: str = "+") -> str:
    mean, se = mean_se(values)
    return plus_minus(float(mean), float(se), sign)


LEDE = Markup(
    "A masked model writes a string by <b>walking down a lattice</b>: from the all-masked string, one token at a "
    "time, to a clean one. Many sets of transition probabilities end in the same language and differ in how they "
    "get there: every order alike (<b>balanced</b>), one path for each string (<b>concentrated</b>), or a mixture "
    "that a network with independent outputs can express (<b>factorised</b>). On languages so small that every "
    "state and every path can be listed, this laboratory asks which of them training selects, what it leaves "
    "undecided, and what that costs."
)


def build(measured: Measurements, results: dict[str, Any]) -> str:
    lines = results["verdict"]
    warning = lines[0] if results["smoke"] else ""
    settings = measured.record["settings"]
    sections = [
        Section("Verdict", [Prose(line) for line in (lines[1:] if results["smoke"] else lines)]),
        Section("Solutions", solutions(measured)),
        Section("What training selects", [selection(measured)]),
        Section("Orders that disagree", order_figures(measured)),
        Section("Edges that are never visited", [unvisited(measured)]),
        Section("The trembling hand", [trembling(measured)]),
        Section("Modes from finite samples", coverage(measured)),
        Section("How evenly states train", imbalance(measured)),
        Section("Provenance", measured.provenance()),
    ]
    subtitle = f"Scale {results['scale']}, {len(settings['seeds'])} seeds, {settings['steps']} steps each"
    return page("Paths on the lattice of masked strings", subtitle, LEDE, sections, warning)


def main(directory: Path) -> Path:
    """Write the report of a measured laboratory and return the page's path. Raises UserError."""
    measured = Measurements(Path(directory))
    results = compute(measured)
    return measured.write(build(measured, results), results)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} DIRECTORY")
    try:
        written = main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    print(written)
