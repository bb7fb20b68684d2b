"""What was decoded, and how: names and inks of the rules, cuts of the table of decodings, estimates, comparisons.

A *rule* is what ranks the blank cells of a diffusion model: a score and the scale it is on ("top probability" and
"log top probability" are two rules, which differ once noise is added). An autoregressive model has one, its order,
which it was trained in. A *contender* is an arm of a cell under a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dlm.report.proportions import Estimate, averaged, between_arms, over_seeds, paired, share, unpaired
from dlm.report.style import Ink
from dlm.report.summary import Frame
from dlm.report.tasks import TaskRun, TaskStudy, outcomes

AUTOREGRESSIVE = "autoregressive"


class Rule(NamedTuple):
    """How a rule is called, in a sentence and in a legend, and drawn."""

    label: str
    ink: Ink


RULES = {  # in the order of every table and legend; Okabe-Ito, light to dark within a family of scores
    "random": Rule("random order", Ink("#8d959c", "-", "o")),
    "left_to_right": Rule("row by row", Ink("#bda77f", "-", "v")),
    "row_major": Rule("row by row", Ink("#bda77f", "-", "v")),
    "top_probability": Rule("top probability", Ink("#e69f00", "-", "s")),
    "log top_probability": Rule("log top probability", Ink("#b8860b", "--", "s")),
    "entropy": Rule("entropy", Ink("#cc79a7", "-", "h")),
    "margin": Rule("margin", Ink("#0072b2", "-", "^")),
    "log margin": Rule("log margin", Ink("#56b4e9", "--", "^")),
    "log_ratio": Rule("log-ratio", Ink("#009e73", "-", "D")),
    "given": Rule("the solver's order", Ink("#6a4fa3", ":", "P")),
}
ORDERS = {  # of an autoregressive model
    "solver": Rule("solver's order", Ink("#222222", "-", "s")),
    "row_major": Rule("row by row", Ink("#c8590a", "-", "D")),
    "random": Rule("random order", Ink("#b49a8b", "-", "v")),
}
ADAPTIVE = ("top_probability", "log top_probability", "entropy", "margin", "log margin", "log_ratio")
ORDER_OF_RULES = [*RULES, AUTOREGRESSIVE]


class Contender(NamedTuple):
    """An arm of a cell under a rule."""

    cell: str
    arm: str
    rule: str


def with_rules(study: TaskStudy) -> Frame:
    """The study's decodings with their `rule`, the tokens a step in words (`pace`) and the noise in words."""
    table: Frame = study.decodings.copy()
    on_log = (table["score_scale"] == "log") & table["policy"].isin(["top_probability", "margin"])
    table["rule"] = np.where(on_log, "log " + table["policy"].astype(str), table["policy"])
    table["pace"] = [
        f"{int(s)} steps" if s else f"{int(k or 1)} per step"
        for s, k in zip(table["steps"], table["per_step"], strict=True)
    ]
    table["noise_name"] = [
        noise_name(*three) for three in zip(table["noise"], table["noise_scale"], table["anneal"], strict=True)
    ]
    return table


def noise_name(noise: str, scale: float, anneal: str) -> str:
    """ "no noise", "Gumbel 0.5, annealed"."""
    if noise == "none":
        return "no noise"
    return f"{noise.capitalize()} {scale:g}" + (", annealed" if anneal == "masked_share" else "")


def plain(
    table: Frame,
    noise: str | None = "no noise",
    pace: str | None = "1 per step",
    split: str = "report",
    checkpoint: str | None = "best",
    values: str = "greedy",
) -> Frame:
    """The decodings that comparisons are about: frozen once revealed, chosen from the state.

    None leaves a factor free. Of two ways to break ties, the random one.
    """
    kept = table[(table["values"] == values) & (table["split"] == split) & usual(table)]
    autoregressive = kept["rule"] == AUTOREGRESSIVE
    if pace is not None:
        kept = kept[(kept["pace"] == pace) | autoregressive]
    if checkpoint is not None:
        kept = kept[kept["checkpoint"] == checkpoint]
    if noise is not None:
        kept = kept[kept["noise_name"] == noise]
    kept = kept.assign(first=kept["ties"].ne("random").astype(int)).sort_values("first", kind="stable")
    same = ["run", "checkpoint", "rule", "noise_name", "pace", "decode_seed"]
    return kept.drop_duplicates(same).drop(columns="first").sort_index()


def usual(table: Frame) -> Frame:
    """Where tokens stay once revealed, equally many a step, at positions that were chosen before their values."""
    return ~table["remask"].astype(bool) & (table["selection"] == "state") & (table["reveal"] == "equal")


def of(table: Frame, contender: Contender) -> Frame:
    """The decodings of one contender."""
    where = (table["cell"] == contender.cell) & (table["arm"] == contender.arm)
    return table[where & (table["rule"] == contender.rule)]


def contenders(table: Frame) -> list[Contender]:
    """Everything a table holds, autoregressive arms first, in the order of the plan and of RULES."""
    found = table[["cell", "arm", "rule"]].drop_duplicates().itertuples(index=False)
    known = [Contender(*map(str, row)) for row in found]
    rank = {rule: k for k, rule in enumerate(ORDER_OF_RULES)}
    return sorted(known, key=lambda c: (c.rule != AUTOREGRESSIVE, rank.get(c.rule, len(rank))))


def estimate(rows: Frame) -> Estimate:
    """The share of solved puzzles: repeated decodings averaged, then over the seeds of the training."""
    by_run = [
        averaged([share(int(s), int(n)) for s, n in zip(part["solved"], part["puzzles"], strict=True)])
        for _, part in rows.groupby("run", sort=False)
    ]
    return over_seeds(by_run)


def difference(study: TaskStudy, first: Frame, second: Frame) -> Estimate | None:
    """Share solved under `first` minus that under `second`, puzzle by puzzle; None where either has no decoding.

    Decodings of the same runs are paired within each run, those of different arms across their seeds; puzzles that
    are not known to be the same are compared without pairing.
    """
    if first.empty or second.empty:
        return None
    common = [run for run in dict.fromkeys(first["run"]) if run in set(second["run"])]
    if common:
        return over_seeds([averaged(within(first, second, run)) for run in common])
    runs = {run.name: run for run in study.tasks}
    one, other = ({run: part.iloc[0]["row"] for run, part in f.groupby("run")} for f in (first, second))
    if same_puzzles([runs[name] for name in (*one, *other)]) and all(
        "outcomes" in row for row in (*one.values(), *other.values())
    ):
        shared = common_outcomes([*one.values(), *other.values()])
        if shared is not None:
            return between_arms(np.stack(shared[: len(one)]), np.stack(shared[len(one) :]))
    pairs = [
        unpaired((a["solved"], a["puzzles"]), (b["solved"], b["puzzles"]))
        for a in one.values()
        for b in other.values()
    ]
    return averaged(pairs)._replace(seeds=min(len(one), len(other)))


def within(first: Frame, second: Frame, run: str) -> list[Estimate]:
    """Paired differences within one run, seed by seed of the decoding; of the first where no seed is shared."""
    one, other = (
        {int(s): row for s, row in zip(f["decode_seed"], f["row"], strict=True)}
        for f in (first[first["run"] == run], second[second["run"] == run])
    )
    seeds = sorted(set(one) & set(other))
    pairs = [(one[s], other[s]) for s in seeds] or [(next(iter(one.values())), next(iter(other.values())))]
    return [pair(a, b) for a, b in pairs]


def pair(a: dict[str, Any], b: dict[str, Any]) -> Estimate:
    """The difference of two decodings of one split, of the puzzles that both have."""
    shared = common_outcomes([a, b]) if "outcomes" in a and "outcomes" in b else None
    if shared is None:
        return unpaired((a["solved"], a["puzzles"]), (b["solved"], b["puzzles"]))
    return paired(shared[0], shared[1])


def common_outcomes(rows: Sequence[dict[str, Any]]) -> list[np.ndarray] | None:
    """Which puzzles of the smallest decoding each of these solved; None where others did not answer all of those.

    Decodings of one split of N puzzles: n of them are those with the numbers k N // n (DataModule.window_numbers),
    which are every m-th of m n.
    """
    least = min(row["puzzles"] for row in rows)
    if any(row["puzzles"] % least for row in rows):
        return None
    return [outcomes(row)[:: row["puzzles"] // least] for row in rows]


def same_puzzles(runs: Sequence[TaskRun]) -> bool:
    """Whether the runs answer the same held-out puzzles, in whatever format: by the audit's hash of the puzzles
    alone, or else that of all data."""
    known = {run.audit.get("puzzles") or (run.record.get("data") or {}).get("fingerprint") for run in runs}
    return len(known) == 1 and None not in known


def between_splits(first: Frame, second: Frame) -> Estimate | None:
    """Share solved under `first` minus that under `second`, of the same runs on different puzzles."""
    common = [run for run in dict.fromkeys(first["run"]) if run in set(second["run"])]
    if not common:
        return None

    def of_run(run: str) -> list[Estimate]:
        one, other = ([(int(s), int(n)) for s, n in f.loc[f["run"] == run, ["solved", "puzzles"]].to_numpy()]
                      for f in (first, second))  # fmt: skip
        return [unpaired(a, b) for a, b in zip(one, other, strict=False)]

    return over_seeds([averaged(of_run(run)) for run in common])


def counts(rows: Frame, what: str) -> dict[str, tuple[int, int]]:
    """Solved and all puzzles by `level` or `givens`, summed over the decodings."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows["row"]:
        for name, (solved, n) in ((row.get("by") or {}).get(what) or {}).items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + solved, before[1] + n)
    return {name: found[name] for name in sorted(found, key=lambda x: (len(x), x))}


def kinds(rows: Frame, what: str) -> dict[int, int]:
    """Counts of `fills` or `first_errors` by kind of cell, summed over the decodings."""
    total: dict[int, int] = {}
    for row in rows["row"]:
        for kind, n in (row.get(what) or {}).items():
            total[int(kind)] = total.get(int(kind), 0) + int(n)
    return dict(sorted(total.items()))


def rule_label(rule: str) -> str:
    return RULES[rule].label if rule in RULES else rule.replace("_", " ")


def mean(rows: Frame, column: str) -> float:
    """Mean of a number over decodings that have it; NaN without any."""
    return float(np.nanmean(rows[column].astype(float))) if rows[column].notna().any() else float("nan")
