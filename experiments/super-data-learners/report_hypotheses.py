"""The ten hypotheses, stated before the runs, each answered yes, no or undecided by a stated rule.

`hypotheses(study, results)` returns for each {"id", "claim", "answer", "evidence", "rule"}. A rule looks at one
cell at a time and answers with what two standard errors (or a 95 % interval) allow; the hypothesis is answered yes
or no only where every cell that can tell says the same. The smoke scale decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import report_rules

from dlm.report.claims import Claim, answered
from dlm.report.study import Study
from dlm.report.summary import Summary


def hypotheses(study: Study, results: dict[str, Any]) -> list[dict[str, str]]:
    """H1 to H10; see the module docstring."""
    summary = Summary(study, results)
    return [answered(rule, summary) for rule in RULES]


RULES: Sequence[Claim] = (
    Claim("H1", "X1 exists where text is scarce, and comes later with more of it.",
         "Yes if X1 of MD4 against ARM is clear in the smallest cell and later, by disjoint 95 % intervals or "
         "censored beyond, in every larger cell that can tell; no if ARM over-fits there and the interval rules "
         "X1 out, or X1 comes earlier.",
         "needs X1 of MD4 against ARM at two budgets of text", report_rules.h1),
    Claim("H2", "X1 comes earlier for larger models.",
         "Yes if X1 of MD4 against ARM is earlier in the larger model, by disjoint 95 % intervals, in every "
         "pair of sizes at one budget of text that can tell; no if later.",
         "needs X1 of MD4 against ARM at two model sizes and one budget of text", report_rules.h2),
    Claim("H3", "Regularising ARM removes X1 or delays it at least twofold, and moves X2 beyond reach.",
         "Yes in a cell if X1 against the regularised ARM lies beyond twice X1 against ARM (95 % intervals, or "
         "not reached by then) and the interval rules X2 against it out; no if X2 is clear, or X1 is clearly less "
         "than doubled.",
         "needs MD4, ARM and the regularised ARM in a scarce cell", report_rules.h3),
    Claim("H4", "MD4, flow matching from masks and the any-order ARM reach the same loss.",
         "Yes if every pair's best losses differ by at most two paired standard errors, and these are at most "
         "0.1 nats together; no if a pair with several seeds differs by more than two, corrected for the number "
         "of pairs.",
         "needs two of MD4, flow matching from masks and any-order ARM in one cell", report_rules.h4),
    Claim("H5", "Uniform diffusion crosses later than masked diffusion, but over-fits later.",
         "Yes in a cell if its X2 against ARM is later than MD4's (95 % intervals, or censored beyond) and its "
         "best comes after MD4's under every seed, MD4 having turned by more than two standard errors; no if "
         "either is clearly the other way round.",
         "needs uniform diffusion, MD4 and ARM in a scarce cell", report_rules.h5),
    Claim("H6", "One temperature removes more than half of ARM's rise, while its top-1 accuracy stays.",
         "Yes in a cell if the rise of ARM's loss from the checkpoint chosen on tune to its last exceeds two "
         "standard errors, more than half of it (by two) vanishes after one temperature fitted on tune, and "
         "accuracy has not fallen by more than two; no if less than half vanishes or accuracy falls.",
         "needs nll, nll_calibrated and top1 of ARM at several checkpoints (stage=evaluate)", report_rules.h6),
    Claim("H7", "MD4's exact left-to-right likelihood is no worse than its bound.",
         "Yes in a cell if it is lower than the bound by two standard errors, no if higher by two; the error is "
         "the bound's Monte-Carlo error and that over seeds, so the answer is about the very windows that were "
         "measured.",
         "needs MD4's left-to-right likelihood and its bound on the same windows", report_rules.h7),
    Claim("H8", "The variance over orders on training text grows with epochs.",
         "Yes in a cell if it is larger at the last checkpoint than at the first by two standard errors; no if "
         "smaller.",
         "needs order_variance_train of MD4 at two checkpoints (stage=evaluate)", report_rules.h8),
    Claim("H9", "Sixteen fixed orders recover most of MD4's robustness.",
         "Robustness is the lead over ARM at the last epoch that all three were observed at. Yes in a cell if "
         "sixteen orders recover more than half of MD4's lead, by two standard errors; no if less.",
         "needs ARM, MD4 and ARM in sixteen orders in a scarce cell", report_rules.h9),
    Claim("H10", "ARM copies its training text long before MD4 does.",
         "Copying begins at the first checkpoint whose share of 50-character windows found in the training text "
         "exceeds that of held-out text by two standard errors. Yes in a cell if MD4 begins at twice ARM's "
         "epoch or later, or has not by then; no if earlier. Held-out text that shares 50 characters with train "
         "was dropped, so its level is next to nothing.",
         "needs copied_50 and natural_50 of ARM and MD4 at checkpoints (stage=evaluate)", report_rules.h10),
)  # fmt: skip
