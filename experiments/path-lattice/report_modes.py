"""The figures and tables of the nine modes: coverage of finite samples, and how evenly states train."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.lines import Line2D
from report_style import BARS, BLUE, GREEN, GREY, ORANGE, band, mean_se, shown, signed, since, step_axis

from dlm.report.measurements import Measurements
from dlm.report.page import Figure, Table
from dlm.report.style import canvas, heading, key

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
        shown(measured, figure, "coverage", text),
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
        ax.set_yscale("log")
        ax.set_ylim(bottom=5e-3)
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
        f"exact conditionals in the worst of the states that data reach (imbalance-error.csv). {BARS}"
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
        shown(measured, figure, "imbalance", text),
        Table(head, table, caption),
    ]
