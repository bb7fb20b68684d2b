"""The lattice of masked strings, drawn: what `dlm.toy.lattice` computes, as a reader of files sees it (no torch).

A drawing is {"length": L, "visits": {label: probability}, "edges": [[from, to, probability], ...]} with states by
their labels, `_` for a mask.  Width and opacity of an edge are its probability, the tint of a state how often the
walk visits it.  Edges out of states that the walk never visits are dashed: their probabilities mean nothing ("?").
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from matplotlib.colors import to_rgb

BLUE, GREY = "#0072b2", "#b4b9be"
Place = Callable[[str], tuple[float, float]]


def square(label: str) -> tuple[float, float]:
    """Clean strings at the corners, one mask on the sides, the all-masked string in the middle."""
    x, y = ({"0": -1.0, "_": 0.0}.get(c, 1.0) for c in label)
    return x, -y


def layers(drawing: dict[str, Any]) -> Place:
    """One column for every number of revealed tokens, each ordered so that edges cross little."""
    columns: dict[int, list[str]] = {}
    for label in sorted(drawing["visits"]):
        columns.setdefault(len(label) - label.count("_"), []).append(label)
    height: dict[str, float] = {}
    for depth in sorted(columns):
        parents: dict[str, list[float]] = {label: [] for label in columns[depth]}
        for source, target, _ in drawing["edges"]:
            if target in parents and source in height:
                parents[target].append(height[source])
        column = sorted(columns[depth], key=lambda s: (sum(parents[s]) / max(len(parents[s]), 1), s))
        for rank, label in enumerate(column):
            height[label] = (rank + 0.5) / len(column)
    return lambda label: (float(len(label) - label.count("_")), 1 - height[label])


def number(p: float) -> str:
    """1/4 where it is a simple fraction, else 0.15."""
    simple = Fraction(p).limit_denominator(16)
    return str(simple) if abs(float(simple) - p) < 1e-9 else f"{p:.3g}"


def draw_lattice(axes: Any, drawing: dict[str, Any], place: Place, size: float = 8.5) -> None:
    """Edges with their probabilities, each where along the edge there is room, then the states."""
    visits, taken = drawing["visits"], []
    shares = (0.5,) if drawing["length"] == 2 else (0.2, 0.3, 0.4, 0.14, 0.5)

    def free(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
        spots = [(x0 + at * (x1 - x0), y0 + at * (y1 - y0)) for at in shares]
        clear = [s for s in spots if all(abs(s[0] - x) > 0.13 or abs(s[1] - y) > 0.024 for x, y in taken)]
        taken.append((clear or spots)[0])
        return taken[-1]

    for source, target, p in drawing["edges"]:
        (x0, y0), (x1, y1) = place(source), place(target)
        if visits[source] == 0:
            axes.plot([x0, x1], [y0, y1], ls=(0, (3, 3)), lw=0.7, color=GREY, alpha=0.75, zorder=1)
            if drawing["length"] == 2:
                write(axes, *free(x0, y0, x1, y1), "?", "#777777", size)
        elif p > 0:
            axes.plot([x0, x1], [y0, y1], lw=0.8 + 4 * p, color=BLUE, alpha=0.25 + 0.7 * p, zorder=2)
            write(axes, *free(x0, y0, x1, y1), number(p), "#1f2328", size)
        elif drawing["length"] == 2:
            axes.plot([x0, x1], [y0, y1], lw=0.6, color="#e3e5e7", zorder=1)
    for label, seen in visits.items():
        x, y = place(label)
        tint = tuple(1 - (1 - c) * 0.55 * min(1.0, seen) for c in to_rgb(BLUE))
        box = {"boxstyle": "round,pad=0.32", "fc": tint, "ec": BLUE if seen > 0 else GREY, "lw": 0.9}
        ink = "#1f2328" if seen > 0 else "#8a9096"
        font = {"family": "monospace", "fontsize": size + 1, "color": ink}
        axes.text(x, y, label, ha="center", va="center", bbox=box, zorder=5, **font)
    axes.set_axis_off()


def write(axes: Any, x: float, y: float, text: str, colour: str, size: float) -> None:
    """A number on an edge, on white so that crossing edges do not strike it out."""
    box = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.88}
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour, bbox=box, zorder=4)
