"""What the laboratory measured, read once, and the numbers that its report states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlm.report.measurements import Measurements
from dlm.report.page import Figure
from dlm.report.style import save

BIT = math.log(2)
TIGHT = 1e-5  # nats per unit of time: the central difference's own error stays below it


class Lab:
    """Everything that was measured, read once."""

    def __init__(self, directory: Path):
        self.measured = Measurements(directory)
        self.processes = self.measured.json("processes.json", "t", "languages")
        self.destroyers = self.measured.json("destroyers.json", "k", "languages", "closed_form_error")
        self.slopes = self.measured.json("slopes.json", "entropy", "methods")
        self.orders = self.measured.json("orders.json", "entropy", "networks")
        self.channels = self.measured.json("channels.json", "alice", "channels", "known", "shuffles", "quoted")

    def figure(self, canvas: Any, name: str, caption: str, head: Sequence[str], rows: Sequence[Any]) -> Figure:
        """A figure with its numbers beside it."""
        self.measured.csv(f"{name}.csv", head, rows)
        caption = f"{caption} Numbers in {name}.csv."
        return Figure(name, save(canvas, self.measured.directory, name), caption, self.measured.again)


def bits(values: Sequence[float]) -> np.ndarray:
    return np.array(values) / BIT


def compute(lab: Lab) -> dict[str, Any]:
    """Every number that the verdict and the tables state, in bits unless the key says otherwise."""
    return {
        "scale": lab.measured.record["scale"],
        "smoke": lab.measured.smoke,
        "entropy": lab.slopes["entropy"] / BIT,
        "checks": checks(lab),
        "charged": charged(lab),
        "in_order": in_order(lab),
        "noise": noise(lab),
    }


def checks(lab: Lab) -> list[dict[str, Any]]:
    """What must hold, as measured: the largest violation in nats and what is allowed."""
    curves = [(c["preserved"], name) for name, c in every_curve(lab)]
    rise = max(b - a for values, _ in curves for a, b in itertools.pairwise(values))
    known = np.array(lab.channels["known"])
    n = len(known)
    away = [known[i, i:] for i in range(n)]
    decided = [known[: i + 1, i] for i in range(n)]
    tight = {k: m for k, m in lab.slopes["methods"].items() if m["bound"] != "flow path bound"}
    runs, (low, high) = lab.channels["shuffles"], lab.channels["quoted"]
    last = runs[-1]
    closed = [c["closed_form_error"] for c in lab.processes["languages"].values()]
    inside = low < last["least"] and last["most"] < high
    off = max(max(abs(r["least"] - r["low"]), abs(r["most"] - r["high"])) for r in runs)
    forgotten = max(np.diff(v).max() for v in away[:-1])
    foreseen = max((-np.diff(v)).max() for v in decided[1:])
    found = [
        ("I(x0; x_t) never grows: every method, every destroyer, both languages", rise, 1e-12),
        ("destruction: I(X_i; X_j) never grows with j >= i along a chain of Shuffles", forgotten, 1e-12),
        ("generation: I(X_i; X_j) never falls with i <= j along it", foreseen, 1e-12),
        ("closed forms = joint table", max(*closed, lab.destroyers["closed_form_error"]), 1e-12),
        ("integrand of the exact network = -dI/dt", max(m["deviation"] for m in tight.values()), TIGHT),
        ("its integral = the information lost", max(abs(m["integral"] - m["lost"]) for m in tight.values()), 1e-6),
        ("the least and the largest entry of Shuffle^n = their closed forms, n = 0..25", off, 1e-14),
    ]
    listed = [
        {"what": what, "value": max(float(v), 0.0), "allowed": a, "holds": bool(v <= a)} for what, v, a in found
    ]
    span = f"[{last['least']:.10f}, {last['most']:.10f}]"
    what = f"{last['n']} Shuffles: every probability in {span}, inside the essay's ({low}, {high})"
    return [*listed, {"what": what, "value": last["most"] - last["least"], "allowed": high - low, "holds": inside}]


def every_curve(lab: Lab) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for language in lab.processes["languages"].values():
        found += [(display(c["methods"]), c) for c in language["curves"]]
    for language in lab.destroyers["languages"].values():
        found += list(language["curves"].items())
    return found


def display(methods: Sequence[str]) -> str:
    """One name for methods that destroy alike."""
    name = next((m for m in ("md4", "shuffle") if m in methods), methods[0])
    return name + (f" and {len(methods) - 1} more" if len(methods) > 1 else "")


def charged(lab: Lab) -> list[dict[str, Any]]:
    """What each exact network and each trained one pays above the information lost, in bits per sequence."""
    rows = []
    for name, m in lab.slopes["methods"].items():
        rows.append({"method": name, "network": "exact", "above": (m["integral"] - m["lost"]) / BIT, "se": None})
        for steps in dict.fromkeys(r["steps"] for r in m["trained"]):
            value, se = mean_se([r["area"] / BIT for r in m["trained"] if r["steps"] == steps])
            rows.append({"method": name, "network": f"{steps:,} steps", "above": value, "se": se})
    return rows


def in_order(lab: Lab) -> list[dict[str, Any]]:
    """Each network in order, in the mean over orders and as a random-order law, above H, in bits per sequence."""
    rows = []
    for name in dict.fromkeys(n["network"] for n in lab.orders["networks"]):
        same = [n for n in lab.orders["networks"] if n["network"] == name]
        row: dict[str, Any] = {"network": name, "exact": same[0]["seed"] is None, "seeds": len(same)}
        for what in ("in_order", "mean", "best", "worst", "random"):
            row[what] = mean_se([(n[what] - lab.orders["entropy"]) / BIT for n in same])
        gap = [(n["in_order"] - n["mean"]) / BIT for n in same]
        rows.append(row | {"gap": mean_se(gap)})
    return rows


def noise(lab: Lab) -> list[dict[str, Any]]:
    """For every destroyer and language: the most noise generated, and what is still known after L steps."""
    rows = []
    for title, language in lab.destroyers["languages"].items():
        for name, c in language["curves"].items():
            at = min(language["length"], len(c["preserved"]) - 1)
            rows.append(
                {
                    "language": title,
                    "destroyer": name,
                    "length": language["length"],
                    "sent": language["entropy"] / BIT,
                }
                | {"left": c["preserved"][at] / BIT, "generated": max(c["generated"]) / BIT}
            )
    return rows


def mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error over seeds; no error from one value."""
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
