"""From the files of a study to one tidy table and figures in one style. No torch, no network.

A study is a directory: `plan.json` says what was to be run, and `runs/<run>/` holds for each run its
`config.yaml`, an append-only `metrics.jsonl`, the losses per held-out window in `windows.jsonl`, and, once
finished, `record.json`. A run without a record is unfinished: it is listed as missing, never dropped and never
compared. Losses are nats per token.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from dlm.crossing import Curve
from dlm.errors import UserError

# ------------------------------------------------------------------------------------------------ files


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises UserError, naming the file, where it is missing or is not one."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of an append-only JSON-lines file; [] where there is none yet.

    A torn last line is what an interrupted run leaves behind and is ignored. Raises UserError, naming file and
    line, for any other line that is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}:{number}: corrupt line (not a JSON object)")
    return rows


def latest(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """The last row for each value of `keys`, sorted by it: a resumed run logs some steps again."""
    kept = {tuple(row[key] for key in keys): row for row in rows if all(key in row for key in keys)}
    return [kept[key] for key in sorted(kept)]


@dataclass(frozen=True, eq=False)
class Run:
    """One planned run and what its directory holds; `record` is empty until it has finished."""

    name: str
    cell: str
    arm: str
    seed: int
    planned: dict[str, Any]
    evaluations: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    record: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def load(cls, directory: Path, planned: dict[str, Any]) -> Run:
        """Read one run's directory. Raises UserError for corrupt files."""
        config = directory / "config.yaml"
        record = directory / "record.json"
        return cls(
            name=planned["run"],
            cell=planned["cell"],
            arm=planned["arm"],
            seed=int(planned["seed"]),
            planned=planned,
            evaluations=latest((r for r in read_lines(directory / "metrics.jsonl") if "report/nll" in r), "step"),
            windows=latest(read_lines(directory / "windows.jsonl"), "step", "split"),
            record=read_json(record) if record.is_file() else {},
            config=(yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.is_file() else {},
        )

    @property
    def problem(self) -> str | None:
        """Why the run cannot be compared; None if it can."""
        if not self.record and not self.evaluations:
            return "not started"
        if not self.record:
            return f"unfinished: last evaluation at epoch {self.evaluations[-1]['epoch']:.3g}"
        if self.curve is None:
            return "finished, but without finite losses per held-out window"
        return None

    @cached_property
    def curve(self) -> Curve | None:
        """The evaluations with losses per window on both splits; None where there are none, or not all finite."""
        by_step = {(row["step"], row["split"]): row["nll"] for row in self.windows}
        rows = [
            row
            for row in self.evaluations
            if row["epoch"] > 0 and all((row["step"], split) in by_step for split in ("tune", "report"))
        ]
        if not rows:
            return None
        widths = {(len(by_step[r["step"], "tune"]), len(by_step[r["step"], "report"])) for r in rows}
        if len(widths) > 1:
            raise UserError(f"{self.name}: windows.jsonl: the number of held-out windows changes between steps")
        tune, report = (np.array([by_step[r["step"], s] for r in rows], float) for s in ("tune", "report"))
        if not (np.isfinite(tune).all() and np.isfinite(report).all()):
            return None
        epochs, tokens, flops = (
            np.array([row[key] for row in rows], float) for key in ("epoch", "tokens", "flops")
        )
        stopped = self.record.get("stopped")
        return Curve(self.name, self.seed, epochs, tokens, flops, tune, report, stopped)


@dataclass(frozen=True, eq=False)
class Study:
    """A study directory, read once. `runs` are all planned runs, in the order of the plan."""

    directory: Path
    plan: dict[str, Any]
    runs: list[Run] = field(repr=False)

    @property
    def compared(self) -> list[Run]:
        """The finished runs with a curve."""
        return [run for run in self.runs if run.problem is None]

    @property
    def missing(self) -> list[Run]:
        return [run for run in self.runs if run.problem is not None]

    @property
    def unplanned(self) -> list[str]:
        """Run directories the plan does not know, say from an earlier plan: not read, only named."""
        known = {run.name for run in self.runs}
        return sorted(p.name for p in (self.directory / "runs").glob("*") if p.is_dir() and p.name not in known)

    def label(self, arm: str) -> str:
        return next((a["label"] for a in self.plan["arms"] if a["arm"] == arm), arm)

    def of(self, cell: str, arm: str) -> list[Run]:
        """The comparable runs of one arm in one cell, by seed."""
        return sorted(
            (r for r in self.compared if r.cell == cell and r.arm == arm), key=lambda r: (r.seed, r.name)
        )

    def curves(self, cell: str, arm: str) -> list[Curve]:
        """The curves of `of`."""
        return [run.curve for run in self.of(cell, arm) if run.curve is not None]

    @cached_property
    def fingerprint(self) -> str | None:
        """The data all finished runs share. Raises UserError where they were not trained on the same data."""
        found: dict[str, str] = {}
        for run in self.runs:
            if run.record:
                found.setdefault(str(run.record.get("data", {}).get("fingerprint")), run.name)
        if len(found) > 1:
            listed = ", ".join(f"{run} has {mark}" for mark, run in found.items())
            raise UserError(f"{self.directory}: runs on different data cannot be compared: {listed}")
        return next(iter(found), None)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Tidy: one row per run and evaluation; unfinished runs included and marked."""
        unique = {cell["cell"]: cell["unique_tokens"] for cell in self.plan["cells"]}
        rows = [
            {
                "run": run.name,
                "cell": run.cell,
                "unique_tokens": unique.get(run.cell),
                "arm": run.arm,
                "seed": run.seed,
                "finished": run.problem is None,
            }
            | {key.replace("/", "_"): row.get(key) for key in EVALUATION}
            for run in self.runs
            for row in run.evaluations
        ]
        head = ["run", "cell", "unique_tokens", "arm", "seed", "finished"]
        return pd.DataFrame(rows, columns=head + [key.replace("/", "_") for key in EVALUATION])


EVALUATION = (
    ["step", "epoch", "tokens", "targets", "flops", "seconds"]
    + [f"{split}/{what}" for split in ("tune", "report") for what in ("nll", "se")]
)  # fmt: skip


def load_study(directory: Path) -> Study:
    """Read a study directory. Raises UserError, in one line, where it or its plan is missing or corrupt."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: no such study")
    plan = read_json(directory / "plan.json")
    for key in ("study", "scale", "cells", "arms", "runs"):
        if key not in plan:
            raise UserError(f"{directory / 'plan.json'}: has no {key!r}")
    study = Study(directory, plan, [Run.load(directory / "runs" / p["run"], p) for p in plan["runs"]])
    _ = study.fingerprint  # refuse mixed data before anything is drawn
    return study


# ------------------------------------------------------------------------------------------------ figures


class Ink(NamedTuple):
    """How an arm is drawn, in every figure of every study."""

    colour: str
    dash: str | tuple
    marker: str


INKS = {  # autoregressive models in black and warm tones, diffusion in blues and greens (Okabe-Ito where possible)
    "arm": Ink("#222222", "-", "s"),
    "arm-reg": Ink("#c8590a", "-", "D"),
    "md4": Ink("#0072b2", "-", "o"),
    "shuffle": Ink("#009e73", "-", "^"),
    "dfm_mask": Ink("#56b4e9", "-", "v"),
    "dfm_uniform": Ink("#66c2a5", "-", "<"),
    "genmd4": Ink("#332288", "-", ">"),
    "any-order": Ink("#6a6fc7", "-", "P"),
}
SPARE = ("#117733", "#88a0dc", "#44aa99", "#1f4e79")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ebebeb",
    "grid.linewidth": 0.7,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    "xtick.minor.size": 0,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
}


def ink(arm: str) -> Ink:
    """The arm's own ink; an unknown arm gets a spare colour that depends on its name alone."""
    spare = SPARE[int(hashlib.sha256(arm.encode()).hexdigest(), 16) % len(SPARE)]
    return INKS.get(arm, Ink(spare, "-", "o"))


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Canvas, Any]:
    """A figure (inches) and its [rows, columns] axes in the house style."""
    engine = ConstrainedLayoutEngine(h_pad=0.08, hspace=0.06 if rows > 1 else 0)
    with plt.rc_context(STYLE):
        size = (width, height)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout=engine, **options)
    return figure, axes


def heading(axes: Axes, text: str) -> None:
    """A panel's title, flush left."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color="#222222", pad=9)


def key(figure: Canvas, marks: Sequence[Line2D]) -> None:
    """What the marks mean, in grey, above the panels."""
    figure.legend(
        handles=marks,
        loc="outside upper right",
        ncols=len(marks),
        fontsize=8,
        frameon=False,
        labelcolor="#555555",
        handletextpad=0.2,
        columnspacing=1.4,
    )


def log_axis(axis: Any, ticks: Sequence[float] = ()) -> None:
    """A log scale with plainly written ticks at 1, 2, 5 (or at `ticks`) instead of powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(ticker.FixedLocator(ticks) if len(ticks) else ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(ticker.NullLocator())


class Tag(NamedTuple):
    """A direct label: its text and the y it belongs to."""

    y: float
    text: str
    colour: str


def label_right(axes: Axes, tags: Sequence[Tag], size: float = 8.5) -> None:
    """Write tags right of the axes at their y, moved apart just enough not to overlap, a thin leader to each.

    Call it last: it reads the limits. Raises nothing; tags beyond the limits are written at the edge.
    """
    low, high = axes.get_ylim()
    inches = axes.get_window_extent().height / axes.figure.dpi
    gap = (high - low) * size * 1.25 / 72 / inches
    tags = sorted(tags, key=lambda tag: tag.y)
    ys = spread([min(max(tag.y, low), high) for tag in tags], gap)
    shift = min(0.0, high + gap / 2 - ys[-1]) if ys else 0.0
    for tag, y in zip(tags, spread([y + shift for y in ys], gap), strict=True):
        axes.annotate(
            tag.text,
            xy=(1, min(max(tag.y, low), high)),
            xytext=(1.03, y),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            color=tag.colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": tag.colour, "lw": 0.5, "shrinkA": 1, "shrinkB": 0},
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Sorted values moved as little as possible (least squares) so that neighbours are at least `gap` apart."""
    blocks: list[tuple[float, int]] = []  # (mean of value - rank * gap, size): isotonic regression of what is left
    for rank, value in enumerate(values):
        mean, size = value - rank * gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, n = blocks.pop()
            mean, size = (mean * size + other * n) / (size + n), size + n
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [mean + rank * gap for rank, mean in enumerate(flat)]


def save(figure: Canvas, directory: Path, name: str) -> Markup:
    """Write <directory>/figures/<name>.svg and .png, close the figure, return the SVG element for a page."""
    target = directory / "figures"
    target.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": name}
    with plt.rc_context(style):
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(target / f"{name}.png")
    plt.close(figure)
    (target / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])
