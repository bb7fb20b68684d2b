"""A study of tasks as its figures and tables see it: names, inks and decodings of cells and contenders."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from dlm.report.decoding import (
    AUTOREGRESSIVE,
    ORDERS,
    RULES,
    Contender,
    contenders,
    of,
    plain,
    rule_label,
    with_rules,
)
from dlm.report.style import Ink, ink
from dlm.report.summary import Frame
from dlm.report.tasks import TASKS, TaskRun, TaskStudy, size_of

DASHES = ("--", ":", "-.")  # of a second, third ... diffusion arm in a cell
SPARE = Ink("#777777", "-", "o")


class Decoded:
    """The decodings of a study; `results` is what its report computes and writes to results.json."""

    def __init__(self, study: TaskStudy, results: dict[str, Any]) -> None:
        self._study, self.results = study, results

    @property
    def study(self) -> TaskStudy:
        return self._study

    @cached_property
    def table(self) -> Frame:
        return with_rules(self.study)

    @cached_property
    def plain(self) -> Frame:
        """Noiseless, greedy, one token per step, the chosen checkpoint, held-out puzzles as in training."""
        return plain(self.table)

    def cells(self, task: str) -> list[str]:
        """The cells of a task with a finished run, in the order of the plan."""
        found = {run.cell for run in self.study.tasks if run.task == task}
        return [c["cell"] for c in self.study.plan["cells"] if c["cell"] in found]

    def runs(self, cell: str, arm: str | None = None) -> list[TaskRun]:
        """The finished runs of a cell, or of one of its arms."""
        return [run for run in self.study.tasks if run.cell == cell and arm in (None, run.arm)]

    def title(self, cell: str) -> str:
        """ "Sudoku 6×6"; with the cell's own name where several have the same."""
        runs = self.runs(cell)
        if not runs:
            return cell
        names = {c: name_of(self.runs(c)[0]) for c in dict.fromkeys(r.cell for r in self.study.tasks)}
        return names[cell] + (f" ({cell})" if list(names.values()).count(names[cell]) > 1 else "")

    def in_cell(self, cell: str, table: Frame | None = None) -> list[Contender]:
        """Who was decoded in a cell, autoregressive arms first, from the best order to the worst."""
        frame = self.plain if table is None else table
        rank = list(ORDERS)

        def place(contender: Contender) -> int:
            order = self.order(contender) if contender.rule == AUTOREGRESSIVE else ""
            return rank.index(order) if order in rank else len(rank) - (contender.rule == AUTOREGRESSIVE)

        return sorted(contenders(frame[frame["cell"] == cell]), key=place)

    def order(self, contender: Contender) -> str:
        """The order an autoregressive arm was trained in: solver, row_major, random, or ""."""
        runs = self.runs(contender.cell, contender.arm)
        return str(runs[0].data.get("order") or "") if runs else ""

    def diffusion(self, cell: str, table: Frame | None = None) -> list[str]:
        """The arms of a cell that are decoded in an order of the reader's choice."""
        return list(dict.fromkeys(c.arm for c in self.in_cell(cell, table) if c.rule != AUTOREGRESSIVE))

    @cached_property
    def diffusion_arms(self) -> dict[str, list[str]]:
        """The arms of `diffusion` by cell, of all decodings."""
        return {cell: self.diffusion(cell, self.table) for cell in dict.fromkeys(self.table["cell"])}

    def label(self, contender: Contender) -> str:
        """What a contender is called beside the others of its cell."""
        if contender.rule == AUTOREGRESSIVE:
            return self.study.label(contender.arm)
        rule = rule_label(contender.rule)
        several = len(self.diffusion_arms.get(contender.cell, [])) > 1
        return f"{self.study.label(contender.arm)}, {rule}" if several else f"MDM, {rule}"

    def ink(self, contender: Contender) -> Ink:
        """How a contender is drawn."""
        if contender.rule == AUTOREGRESSIVE:
            order = self.order(contender)
            return ORDERS[order].ink if order in ORDERS else ink(contender.arm)
        look = RULES[contender.rule].ink if contender.rule in RULES else SPARE
        arms = self.diffusion_arms.get(contender.cell, [])
        place = arms.index(contender.arm) if contender.arm in arms else 0
        return look if not place else look._replace(dash=DASHES[(place - 1) % len(DASHES)])

    def rows(self, contender: Contender, table: Frame | None = None) -> Frame:
        """The decodings of a contender in a cut of the table."""
        return of(self.plain if table is None else table, contender)


def name_of(run: TaskRun) -> str:
    """A task and its size."""
    if run.task is None:
        return run.cell
    return f"{TASKS.get(run.task, run.task)} {size_of(run)}"
