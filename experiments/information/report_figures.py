"""The figures of the laboratory, each with its numbers in a CSV beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from report_results import BIT, Lab, bits, display

from dlm.report.page import Figure
from dlm.report.style import canvas, heading, ink, key

EXACT = "Exact sums in float64, so there are no error bars."
ORDERS: dict[str, tuple[str, dict[str, Any]]] = {  # label and mark of each way to use a network
    "in_order": ("left to right", {"marker": "|", "ms": 12, "mew": 2}),
    "mean": ("mean over orders", {"marker": "o", "ms": 6, "mfc": "white"}),
    "random": ("a random order's law", {"marker": "x", "ms": 5}),
}
NETWORKS = {"exact": "#777777", "any order": ink("md4").colour}
ACCOUNT = ("preserved_bits", "destroyed_bits", "generated_bits")
BLUES = ("#0072b2", "#332288", "#88a0dc", "#56b4e9", "#1f4e79", "#6a6fc7", "#999999")
GREENS = ("#009e73", "#66c2a5", "#117733", "#44aa99", "#b2d9a0")
DESTROYERS = {  # label, colour, marker
    "MashLastToken": ("MashLastToken", "#222222", "s"),
    "MashOneRandomUnmaskedToken": ("MashOneRandomUnmaskedToken", ink("md4").colour, "o"),
    "ShuffleOneRandomToken": ("ShuffleOneRandomToken", ink("shuffle").colour, "^"),
}


def in_bits(curve: dict[str, Any], j: int) -> tuple[float, ...]:
    """preserved, destroyed and generated at one point of a curve."""
    return tuple(curve[key][j] / BIT for key in ("preserved", "destroyed", "generated"))


def time_figure(lab: Lab) -> Figure:
    """I(x0; x_t) of every way of destroying, masks and random tokens apart."""
    languages = lab.processes["languages"]
    figure, axes = canvas(9.6, 3.3 * len(languages), rows=len(languages), columns=2, sharex=True)
    t, rows = lab.processes["t"], []
    for (title, language), pair in zip(languages.items(), axes, strict=True):
        for ax, masks, colours in ((pair[0], True, BLUES), (pair[1], False, GREENS)):
            heading(ax, f"{title}: {'masks' if masks else 'random tokens'}")
            shown = [c for c in language["curves"] if c["masks"] is masks]
            for i, c in enumerate(shown):
                dash = "--" if "spread" in display(c["methods"]) else "-"
                ax.plot(
                    t, bits(c["preserved"]), color=colours[i % len(colours)], ls=dash, label=display(c["methods"])
                )
                rows += [(title, display(c["methods"]), s, *in_bits(c, n)) for n, s in enumerate(t)]
            if masks:
                patterns = language["pattern"][-1]
                label = f"pattern alone, spread {patterns['spread']:g}"
                ax.plot(t, bits(patterns["preserved"]), color="#c8590a", ls=":", label=label)
            ax.axhline(language["entropy"] / BIT, color="#cccccc", lw=0.8, zorder=0)
            ax.set(xlim=(0, 1), ylim=(0, (1.5 if masks else 1.3) * language["entropy"] / BIT))
            ax.legend(
                fontsize=7, frameon=False, loc="upper right", ncols=2, labelcolor="#444444", handlelength=1.6
            )
        pair[0].set_ylabel("information preserved, bits per sequence")
    for ax in axes[-1]:
        ax.set_xlabel("time t (0: data, 1: noise)")
    caption = (
        "I(x0; x_t) in bits per sequence against time, for every method of the suite, and GenMD4 with its w "
        "spread over the tokens; methods that destroy alike share a line (listed below). Grey: the entropy of the "
        f"language. Dotted: what the positions of GenMD4's masks give away, with no token seen. {EXACT}"
    )
    return lab.figure(figure, "time", caption, ("language", "methods", "t", *ACCOUNT), rows)


def steps_figure(lab: Lab) -> Figure:
    """The three destroyers: what is known after k steps, and the noise they make on the way."""
    languages = lab.destroyers["languages"]
    figure, axes = canvas(9.6, 3.3 * len(languages), rows=len(languages), columns=2)
    k, rows = lab.destroyers["k"], []
    for (title, language), (left, right) in zip(languages.items(), axes, strict=True):
        heading(left, f"{title}: known after k steps")
        heading(right, f"{title}: noise for forgetting")
        for name, c in language["curves"].items():
            label, colour, marker = DESTROYERS[name]
            left.plot(k, bits(c["preserved"]), color=colour, marker=marker, ms=4, label=label)
            right.plot(bits(c["destroyed"]), bits(c["generated"]), color=colour, marker=marker, ms=4, lw=1)
            rows += [(title, name, n, *in_bits(c, j)) for j, n in enumerate(k)]
        for c in lab.processes["languages"][title]["curves"]:
            for method in ("md4", "shuffle"):
                if method in c["methods"]:
                    x, y = bits(c["destroyed"]), bits(c["generated"])
                    right.plot(x, y, color=ink(method).colour, ls=":", lw=1.1, zorder=1)
        left.set(xlabel="steps k", ylabel="preserved, bits per sequence", xlim=(0, None), ylim=(0, None))
        right.set(xlabel="destroyed, bits per sequence", ylabel="generated, bits per sequence", xlim=(0, None))
    marks = [Line2D([], [], color=c, marker=m, ms=4, label=label) for label, c, m in DESTROYERS.values()]
    key(figure, [*marks, Line2D([], [], color="#777777", ls=":", label="its continuous-time limit")])
    caption = (
        "Left: I(x0; x_k) after k steps. Right: each step's noise H(x_k | x0) against what it has destroyed, "
        "H(x0 | x_k), both in bits per sequence; dotted, masked (blue) and uniform (green) diffusion on their way "
        f"from t = 0 to 1. {EXACT}"
    )
    return lab.figure(figure, "steps", caption, ("language", "destroyer", "k", *ACCOUNT), rows)


def slopes_figure(lab: Lab) -> Figure:
    """The integrand of exact and trained networks on -dI/dt."""
    methods = lab.slopes["methods"]
    figure, axes = canvas(9.6, 6.6, rows=2, columns=2)
    rows = []
    for (name, m), ax in zip(methods.items(), axes.flat, strict=True):
        heading(ax, f"{name} ({m['bound']})")
        t, colour = np.array(m["t"]), ink(name.split()[0]).colour
        budgets = list(dict.fromkeys(r["steps"] for r in m["trained"]))
        lost = bits(m["slope"])
        for i, steps in enumerate(budgets):
            paid = np.array([bits(r["paid"]) for r in m["trained"] if r["steps"] == steps])
            mean, alpha = paid.mean(0), 0.35 + 0.65 * (i + 1) / len(budgets)
            ax.plot(t, mean, color=colour, alpha=alpha, label=f"trained, {steps:,} steps")
            if len(paid) > 1:
                se = paid.std(0, ddof=1) / math.sqrt(len(paid))
                ax.fill_between(t, mean - se, mean + se, color=colour, alpha=0.25, lw=0)
            if i == len(budgets) - 1:
                ax.fill_between(t, lost, mean, color=colour, alpha=0.16, lw=0)
            rows += [(name, f"{steps} steps", s, v) for s, v in zip(t, mean, strict=True)]
        ax.plot(t, lost, color="#222222", lw=1.2, label="-dI/dt")
        ax.plot(
            t,
            bits(m["exact"]),
            ls="",
            marker="o",
            ms=3,
            mfc="white",
            mec="#222222",
            mew=0.8,
            label="exact network",
        )
        rows += [(name, kind, s, v / BIT) for kind in ("slope", "exact") for s, v in zip(t, m[kind], strict=True)]
        top = max(np.max(bits(m["exact"])[1:-1]), *(np.median(bits(r["paid"])) for r in m["trained"]), 0)
        ax.set(xlim=(0, 1), ylim=(0, 1.6 * top), xlabel="time t (0: data, 1: noise)")
        ax.legend(fontsize=7, frameon=False, loc="upper right", labelcolor="#444444")
    for ax in axes[:, 0]:
        ax.set_ylabel("bits per sequence per unit of time")
    seeds = len({r["seed"] for m in methods.values() for r in m["trained"]})
    bands = f"bands ± one standard error over {seeds} seeds" if seeds > 1 else "one seed, no error bar"
    caption = (
        "What the bound charges per unit of time, against what is destroyed there. Line: -dI(x0; x_t)/dt by "
        "central differences. Circles: the integrand of the exact network (exact, no error bars). Coloured: "
        f"tables of logits after training ({bands}; the kinks are the times between which a table is linear); the "
        "pale area below the last one is the divergence it still pays. Flow matching's path bound lies above even "
        "for the exact network. The axes end where the integrand of random tokens diverges."
    )
    return lab.figure(figure, "slopes", caption, ("method", "network", "t", "bits_per_unit_time"), rows)


def shuffles_figure(lab: Lab) -> Figure:
    """The chain of Shuffles: how near to uniform, and the two stories."""
    figure, axes = canvas(9.6, 3.5, columns=2)
    left, right = axes[0]
    runs, (low, high) = lab.channels["shuffles"], lab.channels["quoted"]
    n = [r["n"] for r in runs]
    heading(left, "n Shuffles: distance from 1/3")
    left.semilogy(
        n, [r["most"] - 1 / 3 for r in runs], color="#009e73", marker="^", ms=3.5, lw=0.8, label="largest, above"
    )
    left.semilogy(
        n, [1 / 3 - r["least"] for r in runs], color="#0072b2", marker="v", ms=3.5, lw=0.8, label="smallest, below"
    )
    for edge in (1 / 3 - low, high - 1 / 3):
        left.axhline(edge, color="#c8590a", lw=0.8, ls=":")
    left.annotate(
        "the essay's interval",
        (0, high - 1 / 3),
        (2, -11),
        textcoords="offset points",
        fontsize=7.5,
        color="#c8590a",
    )
    left.set(xlabel="Shuffles n", ylabel="|P(Z = z) - 1/3|", xlim=(0, None))
    left.legend(fontsize=7.5, frameon=False)
    known = np.array(lab.channels["known"]) / BIT
    station = range(len(known))
    heading(right, "the two stories of one chain")
    right.plot(station, known[0], color="#0072b2", marker="o", ms=4, label="destruction: I(first; k-th)")
    right.plot(station, known[:, -1], color="#c8590a", marker="D", ms=4, label="generation: I(k-th; last)")
    right.plot(station, np.diag(known), color="#aaaaaa", lw=1, label="H(k-th)")
    right.set(xlabel="station k of the chain", ylabel="bits", ylim=(0, None))
    right.legend(fontsize=7.5, frameon=False)
    caption = (
        "Left: how far the largest and the smallest entry of Shuffle^n are from 1/3, as probabilities, on a "
        "logarithmic axis; dotted: the two edges of the interval quoted for 25. Right: what the stations of a "
        "chain of Shuffles know of its first message, which only falls, and of its last one, which only rises. "
        f"{EXACT}"
    )
    rows = [(r["n"], r["least"], r["most"], r["low"], r["high"], r["preserved"] / BIT) for r in runs]
    head = ("n", "least", "most", "closed_form_least", "closed_form_most", "preserved_bits")
    return lab.figure(figure, "shuffles", caption, head, rows)


def orders_figure(lab: Lab, results: dict[str, Any]) -> Figure:
    """In order, in the mean over orders, and between the best and the worst order."""
    rows = results["in_order"]
    figure, axes = canvas(8.6, 1.2 + 0.42 * len(rows))
    ax = axes[0, 0]
    for y, row in enumerate(rows):
        colour = next((c for word, c in NETWORKS.items() if word in row["network"]), "#222222")
        ax.plot([row["best"][0], row["worst"][0]], [y, y], color=colour, lw=4, alpha=0.18, solid_capstyle="butt")
        for what, (_, shape) in ORDERS.items():
            value, se = row[what]
            ax.errorbar(value, y, xerr=se, color=colour, ls="", lw=1.2, **shape)
    ax.set_yticks(range(len(rows)), [row["network"] for row in rows])
    ax.set(
        ylim=(len(rows) - 0.4, -0.6),
        xlabel="bits per sequence above the entropy of the language",
        xlim=(-0.02, None),
    )
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    marks = [Line2D([], [], color="#777777", ls="", label=label, **shape) for label, shape in ORDERS.values()]
    key(figure, [*marks, Line2D([], [], color="#777777", lw=4, alpha=0.3, label="best to worst order")])
    seeds = max(row["seeds"] for row in rows)
    bars = f"Error bars: ± one standard error over {seeds} seeds; the exact network needs none."
    error = bars if seeds > 1 else "One seed, no error bars."
    caption = (
        "The likelihood of one network used in different orders, bits per sequence above H, over all sequences "
        f"and all orders. The mean over orders is the any-order bound. {error} These tables share nothing between "
        "states, so training in all orders cannot help the one order here: it shows the price of generality, not "
        "its benefit."
    )
    whats = ("in_order", "mean", "best", "worst", "random")
    head = ("network", *(f"{what}_{x}" for what in whats for x in ("bits", "se")))
    listed = [(row["network"], *(x for what in whats for x in row[what])) for row in rows]
    return lab.figure(figure, "orders", caption, head, listed)
