"""What the rules of the hypotheses look at: crossings with open ends, late losses, who has turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dlm.report.crossing import Crossing
from dlm.report.figures_mechanism import orders_of
from dlm.report.summary import Frame, Summary

UNIFORM = ("shuffle", "udlm", "dfm_uniform")  # uniform diffusion, the tightest bound first


class X(NamedTuple):
    """A crossing as an interval of epochs. A censored one is open to the right, and begins where the observation
    ended, or earlier where more than 2.5 % of the resamples do cross: it is `ruled_out` only if they do not."""

    low: float
    high: float
    clear: bool
    censored: bool
    overfitted: bool
    text: str
    ruled_out: bool = False

    @property
    def known(self) -> bool:
        return self.clear or self.censored


def crossing(summary: Summary, cell: str, process: str, baseline: str, kind: str) -> X | None:
    """One crossing of the results; None where it was not computed. "From the start" begins at zero."""
    for c in summary.results["comparisons"]:
        if (
            (c["cell"], c["process"], c["baseline"]) == (cell, process, baseline)
            and not c["missing"]
            and c.get(kind)
        ):
            found = Crossing.from_json(c[kind])
            turn = turned(summary, cell, baseline)
            if not found.crossed:
                text = f"not reached by {found.observed_to:.3g}"
                if found.low is None:
                    return X(found.observed_to, math.inf, False, True, turn, text, ruled_out=True)
                text += f" (though the 95 % interval begins at {found.low:.3g})"
                return X(found.low, math.inf, False, True, turn, text)
            assert found.epoch is not None
            high = found.high if found.high is not None else math.inf
            if found.status == "from the start":
                latest = max(found.epoch, high)
                return X(0.0, latest, True, False, turn, f"from the start (≤ {found.epoch:.3g})")
            low = found.low if found.low is not None else found.epoch
            ends = f"[{low:.3g}, {'…' if math.isinf(high) else format(high, '.3g')}]"
            doubt = "" if found.status == "clear" else ", not confirmed"
            return X(low, high, found.status == "clear", False, turn, f"{found.epoch:.3g} {ends}{doubt}")
    return None


def ordered_crossings(
    summary: Summary, process: str, baseline: str, kind: str, by: str, unique_tokens: int | None = None
) -> list[tuple[str, X]]:
    """(cell, crossing) by unique tokens, at the size that most cells share, or by the model's size."""
    found = []
    for cell in summary.cells:
        x = crossing(summary, cell["cell"], process, baseline, kind)
        if x is not None and unique_tokens in (None, cell["unique_tokens"]):
            found.append((cell["unique_tokens"], summary.size(cell["cell"], process) or 0, cell["cell"], x))
    sizes = [size for _, size, _, _ in found]
    if by == "size":
        return [(cell, x) for _, size, cell, x in sorted(found, key=lambda f: f[1])] if len(set(sizes)) > 1 else []
    if not found:
        return []
    common = max(set(sizes), key=sizes.count)
    return [(cell, x) for _, size, cell, x in sorted(found, key=lambda f: f[0]) if size == common]


def turned(summary: Summary, cell: str, arm: str) -> bool:
    """Whether the loss of an arm's trunk ended more than two standard errors above that of the epoch chosen on
    tune: the lowest of many noisy losses on report would lie too low."""
    c = summary.curves
    line = c[(c["cell"] == cell) & (c["arm"] == arm)]
    if len(line) < 2:
        return False
    low, end = line.loc[line["tune"].idxmin()], line.iloc[-1]
    return bool(end.nll - low.nll > 2 * max(end.se, low.se))


def best_epochs(summary: Summary, cell: str, arm: str) -> list[float]:
    """The epoch of the trunk's checkpoint chosen on tune, one per seed."""
    curves = [run.curve for run in summary.members.get((cell, arm), [])]
    return [float(curve.epochs[curve.best]) for curve in curves if curve is not None]


def chosen_epoch(summary: Summary, cell: str, arm: str, epochs: Sequence[float]) -> float:
    """Which of some epochs has the lowest tune loss on an arm's trunk."""
    c = summary.curves
    line = c[(c["cell"] == cell) & (c["arm"] == arm)]
    tune = np.interp(np.log(epochs), np.log(line["epoch"]), line["tune"])
    return float(np.asarray(epochs)[tune.argmin()])


def measure_at(rows: Frame, epoch: float) -> tuple[float, float]:
    """(value, se) of a measure at the checkpoint nearest to an epoch, by ratio."""
    nearest = np.abs(np.log(rows["epoch"].to_numpy() / epoch)).argmin()
    row = rows.iloc[int(nearest)]
    return float(row["value"]), float(row["se"]) if math.isfinite(row["se"]) else 0.0


def with_orders(summary: Summary, cell: str, count: int) -> str | None:
    """The arm of a cell that was trained in so many fixed orders and is otherwise nearest to plain ARM."""
    found = [a for (c, a), runs in summary.members.items() if c == cell and orders_of(runs[0].config) == count]

    def decay(arm: str) -> float:
        return (summary.members[cell, arm][0].config.get("optim") or {}).get("weight_decay") or 0.0

    return min(found, key=decay, default=None)


def late_loss(summary: Summary, cell: str, arms: Sequence[str]) -> tuple[float, Any] | None:
    """The last epoch that all arms were observed at, and each one's (loss, se) there."""
    c = summary.curves
    lines = [c[(c["cell"] == cell) & (c["arm"] == arm)] for arm in arms]
    if any(line.empty for line in lines):
        return None
    epoch = min(line["epoch"].max() for line in lines)
    x = [np.log(line["epoch"]) for line in lines]
    return epoch, [
        (float(np.interp(math.log(epoch), at, line["nll"])), float(np.interp(math.log(epoch), at, line["se"])))
        for at, line in zip(x, lines, strict=True)
    ]
