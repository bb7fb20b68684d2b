"""Fills ledgers with draws and makes estimates of them."""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.likelihood import Counted, Kind, best_temperature, tempered
from dlm.lm import LanguageModel
from dlm.metrics import Score, WindowNLL
from dlm.scoring.ledger import Entry, Ledger
from dlm.scoring.ranks import Ranks

ESTIMATORS = 1  # raised with any change to what draws are: older ones are then not mixed with new ones
DEGREES_OF_FREEDOM = 30  # behind a Monte-Carlo error that is trusted to stop at


class Estimate(NamedTuple):
    """A likelihood of a split, and what it took."""

    score: Score  # per token, or per window for what is no likelihood
    mean_log_p: float | None  # of kinds made of random orders: the mean of log p(x | sigma), in nats per token
    draws: int  # per window, over all rounds
    rounds: int
    columns: int  # independent numbers per window behind the Monte-Carlo error: one tells nothing of it
    rows: int
    seconds: float


def trusted(rounds: int, windows: int) -> bool:
    """Whether so many independent numbers stand behind a Monte-Carlo error that it can be believed."""
    return (rounds - 1) * windows >= DEGREES_OF_FREEDOM


class Scorer:
    """One checkpoint on windows of its data; a question asked before is answered from its ledger."""

    def __init__(
        self,
        model: LanguageModel,
        data: DataModule,
        batch_size: int,
        windows: int | None = None,
        directory: Path | None = None,
        checkpoint: str = "",
        ranks: Ranks | None = None,
    ):
        self.model, self.data, self.batch_size, self.windows = model, data, batch_size, windows
        self.directory, self.checkpoint, self.ranks = directory, checkpoint, ranks or Ranks()
        self.ledgers: dict[str, Ledger] = {}

    def window_numbers(self, split: str) -> np.ndarray:
        """Raises UserError if the split has none."""
        numbers = self.data.window_numbers(split, self.windows)
        if len(numbers) == 0:
            raise UserError(f"the {split} split of the data holds no window of {self.data.source.seq_len} tokens")
        return numbers

    def ledger(self, kind: Kind, draws: int, split: str) -> Ledger:
        """The one that holds rounds of so many draws of this kind."""
        identity: dict[str, Any] = {
            "source": kind.source,
            **kind.settings,
            "draws": draws,
            "split": split,
            "seed": self.model.seed_of_evaluation,
            "estimators": ESTIMATORS,
            "checkpoint": self.checkpoint,
            "data": self.data.source.fingerprint,
            "seq_len": self.data.source.seq_len,
        }
        ledger = Ledger(self.directory, f"{kind.source}-{split}", identity)
        key = str(identity)
        if key not in self.ledgers:
            ledger.take(self.ranks.share(ledger.open() if self.ranks.first else []))
            self.ledgers[key] = ledger
        return self.ledgers[key]

    @torch.no_grad()
    def fill(self, ledger: Ledger, kind: Kind, draws: int, split: str, temperature: float, round: int) -> None:
        """Compute what the ledger still lacks of one round, a batch at a time on every process."""
        numbers = self.window_numbers(split).tolist()
        missing = [n for n in numbers if (temperature, round, n) not in ledger.entries]
        mine, share = missing[self.ranks.rank :: self.ranks.world], -(-len(missing) // self.ranks.world)
        for start in range(0, share, self.batch_size):
            part = mine[start : start + self.batch_size]
            found = self._entries(kind, draws, split, temperature, round, part) if part else []
            found = self.ranks.gather(found)
            if self.ranks.first:
                ledger.write(found)
            ledger.take(found)

    def _entries(
        self, kind: Kind, draws: int, split: str, temperature: float, round: int, part: list[int]
    ) -> list[Entry]:
        x0, target = (tensor.to(self.model.device) for tensor in self.data.examples(split, np.array(part)))
        denoise = Counted(tempered(self.model.backbone, temperature))
        seed = self.model.seed_of_evaluation + round
        started = time.perf_counter()
        nats = kind.draws(denoise, x0, target, torch.tensor(part), draws, seed).double().cpu()
        rows, seconds = denoise.rows / len(part), (time.perf_counter() - started) / len(part)
        return [
            Entry(temperature, round, n, scored, row, rows, seconds)
            for n, scored, row in zip(part, target.sum(1).tolist(), nats.tolist(), strict=True)
        ]

    def estimate(self, kind: Kind, draws: int, split: str, temperature: float = 1.0, rounds: int = 1) -> Estimate:
        """From `rounds` independent rounds of `draws`."""
        ledger = self.ledger(kind, draws, split)
        for round in range(rounds):
            self.fill(ledger, kind, draws, split, temperature, round)
        numbers = self.window_numbers(split).tolist()
        entries = [[ledger.entries[temperature, r, n] for r in range(rounds)] for n in numbers]
        raw = torch.tensor([[e.nats for e in window] for window in entries], dtype=torch.float64)
        tokens = torch.tensor([window[0].tokens for window in entries])
        columns = kind.columns(raw)
        metric = WindowNLL(sync_on_compute=False)  # every process has all windows
        metric.update(columns, tokens if kind.per_token else torch.ones_like(tokens), torch.tensor(numbers))
        of_orders = float(raw.mean((1, 2)).sum() / tokens.sum()) if kind.count == "orders" else None
        everything = [e for window in entries for e in window]
        return Estimate(
            metric.compute(),
            of_orders,
            rounds * raw.shape[2],
            rounds,
            columns.shape[1],
            math.ceil(sum(e.rows for e in everything) - 1e-6),
            sum(e.seconds for e in everything),
        )

    def precise(
        self, kind: Kind, draws: int, split: str, temperature: float, precision: float, max_draws: int
    ) -> Estimate:
        """Rounds of `draws` until the Monte-Carlo error of the mean is `precision`, or `max_draws` are spent.

        A round's mean is one independent number per window, also where the draws within it are stratified.
        """
        needed = 1 + -(-DEGREES_OF_FREEDOM // len(self.window_numbers(split)))
        rounds = max(2, needed)
        while True:
            found = self.estimate(kind, draws, split, temperature, min(rounds, max(2, max_draws // draws)))
            error = found.score.se_draws
            if error <= precision or not math.isfinite(error) or found.draws + draws > max_draws:
                return found
            wanted = found.rounds * (found.score.se_draws / precision) ** 2
            rounds = max(found.rounds + 1, math.ceil(0.9 * wanted))  # the last tenth one round at a time

    def temperature(self, kind: Kind, draws: int) -> float:
        """The temperature that this likelihood likes best on the tune split, by the same noise at each."""
        return best_temperature(lambda t: self.estimate(kind, draws, "tune", t).score.nll)
