"""What each likelihood of a finished run costs at an equal standard error.

    python benchmarks/likelihoods.py RUN [windows=8] [precision=0.01]

Every drawn likelihood is scored in four rounds; its Monte-Carlo error falls as one over the root of the rows that
the network reads, so the rows that `precision` would take follow, and the seconds, at this batch size on this
machine.  They are shown beside the least that can be asked for: one draw, or one order, of every window.
"""

import math
import sys
from pathlib import Path

from dlm.config import entry
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.likelihood import EXACT
from dlm.scoring import Scorer

ROUNDS = 4
PER_ROUND = {"draws": 8, "orders": 2, "one": 1}


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("which run? python benchmarks/likelihoods.py outputs/<study>/<scale>/runs/<run>")
    options = {"windows": "8", "precision": "0.01"} | dict(argument.split("=") for argument in sys.argv[2:])
    windows, precision = int(options["windows"]), float(options["precision"])
    model, data, _ = load_run(Path(sys.argv[1]))
    scorer = Scorer(model, data, batch_size=8, windows=windows)
    print(f"{windows} windows of {data.source.seq_len} tokens; rows and seconds for {precision:g} nats per token")
    print(f"{'':<17}{'nats':>8}{'error':>8}{'rows':>9}{'seconds':>9}{'least rows':>12}")
    for name, kind in model.likelihoods().items():
        if not kind.per_token:
            continue
        rounds = 1 if kind.bound == EXACT else ROUNDS
        found = scorer.estimate(kind, PER_ROUND[kind.count], "report", rounds=rounds)
        share = (found.score.se_draws / precision) ** 2 if kind.bound != EXACT else 1.0
        least = found.rows / found.draws
        print(
            f"{name:<17}{found.score.nll:>8.4f}{found.score.se_draws:>8.4f}{math.ceil(share * found.rows):>9}"
            f"{share * found.seconds:>9.2f}{math.ceil(least):>12}",
            flush=True,
        )


if __name__ == "__main__":
    entry(main)
