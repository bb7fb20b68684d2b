"""The claims of this study, stated before the runs, each answered yes, no or undecided by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import report_nae
import report_rules
import report_text

from dlm.report.claims import Claim, answered
from dlm.report.decoded import Decoded


def hypotheses(decoded: Decoded) -> list[dict[str, str]]:
    """All claims with their answers; see the module."""
    return [answered(claim, decoded) for claim in CLAIMS]


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """The verdict in plain text: a caution, if due, then a line per claim."""
    lines = ["Smoke scale: this proves the machinery, and nothing about the models."] if results["smoke"] else []
    lines += [f"{h['id']} {h['answer']}: {h['claim']} {h['evidence']}" for h in results["hypotheses"]]
    if results["missing"]:
        lines.append(f"Missing: {len(results['missing'])} of the planned runs; see the list of runs.")
    return lines


CLAIMS: Sequence[Claim] = (
    Claim("S1", "Revealing first what the model is sure of beats a random order.",
          "Yes for a model if the paired 95 % intervals of top probability and of margin over random order lie "
          "above 0; no if one lies below. No noise, one token a step.",
          "needs random, top_probability and margin without noise", report_rules.adaptive),
    Claim("S2", "Without noise, margin and top probability solve equally many puzzles.",
          "Equivalence: yes if the paired 95 % interval of their difference lies within ± 5 points; no if it lies "
          "outside.",
          "needs top_probability and margin without noise", report_rules.same_without_noise),
    Claim("S3", "Gumbel noise of 0.5 destroys both orders that rank by probabilities, margin included.",
          "Yes for a model if, for top probability and for margin, the noise takes more than half of the lead "
          "over random order: the paired 95 % interval of the fall lies above half of the upper end of the "
          "lead's; no if for one it lies below half of the lower end. Undecided where the lead itself does not "
          "lie above 5 points.",
          "needs top_probability and margin with and without the noise, and random", report_rules.collapse),
    Claim("S4", "Under that noise the score's scale decides: the log-ratio stays far ahead.",
          "Yes for a model if the paired 95 % intervals of log-ratio's lead over top probability and over margin "
          "lie above 30 points (the published gap is 71); no if one lies below.",
          "needs top_probability, margin and log_ratio with the noise", report_rules.ratio_survives),
    Claim("S5", "A gap like the published one, between top probability and margin, comes from the noise on the "
          "score's scale, not from the score.",
          "Yes for a model if, without noise, margin and log-ratio are both within ± 5 points of top probability, "
          "and with it log-ratio is more than 30 points ahead (the published gap is 71); no if margin is more "
          "than 5 points ahead without noise, or log-ratio less than 30 with it (paired 95 % intervals). A score "
          "that is worse without noise leaves it undecided. It shows what suffices for such a gap, not what the "
          "authors did.",
          "needs top_probability, margin and log_ratio with and without noise", report_rules.noise_not_score),
    Claim("S6", "At equal steps, an ARM learns the solver's order better than row by row, and that better than a "
          "random one.",
          "Yes in a cell if both differences lie above 0 by 95 % intervals over puzzles and trainings; no if one "
          "lies below; two trainings of each are needed, all of one format and equally many steps.",
          "needs ARMs in two orders in one cell", report_rules.orders),
    Claim("S7", "Masked diffusion by margin is no worse than the ARM that was taught the order.",
          "Non-inferiority: yes in a cell if the 95 % interval of the difference lies above − 5 points; no if "
          "below; two trainings of each are needed. Sizes, steps and FLOPs stand in T1.",
          "needs an MDM and an ARM with the solver's order in one cell", report_rules.diffusion_and_arm),
    Claim("S8", "First errors fall on cells that could not be deduced, more than their share of the fills.",
          "Yes for an order if, in every training, the 95 % Wilson interval of the rate of first errors among "
          "such fills lies above that among all others; no if below in every one.",
          "needs fills and first errors by kind", report_rules.mechanism),
    Claim("S9", "Puzzles beyond the seven techniques, unseen in training, are solved less often.",
          "Yes if the 95 % interval of the difference from ordinary held-out puzzles lies above 0; no if below.",
          "needs split=hard", report_rules.hard_is_harder),
    Claim("S10", "The human solver's order is better than the model's own.",
          "Yes for a model if the paired 95 % interval of the solver's order over margin lies above 0; no if "
          "below.",
          "needs policy=given", report_rules.oracle),
    Claim("S11", "Zebra: adaptive orders beat random order.", "As S1.",
          "needs a Zebra run decoded with random, top_probability and margin",
          partial(report_rules.adaptive, task="zebra")),
    Claim("S12", "Zebra: margin and top probability solve equally many puzzles.", "As S2.",
          "needs a Zebra run decoded with top_probability and margin",
          partial(report_rules.same_without_noise, task="zebra")),
    Claim("S13", "NAE-SAT: what is sampled by margin is more consistent than in random order.",
          "Yes if the 95 % interval of the difference in consistent observations lies above 0, no if below; as if "
          "all observations of a sequence were right or wrong together.",
          "needs a NAE-SAT run decoded with random and margin", report_nae.nae_order),
    Claim("S14", "NAE-SAT: the model's errors are larger on latents than on observations.",
          "Yes if so by two standard errors at more than half of the numbers of masked latents, and nowhere the "
          "other way round; no if more often the other way round.",
          "needs imbalance of a NAE-SAT run", report_nae.latents_worse),
    Claim("S15", "Text: the closer an ARM's order is to reading order, the lower its loss.",
          "Yes if every class is better than the next by two standard errors over text and trainings; no if "
          "one is worse; two trainings of each are needed.",
          "needs ARMs on text in two orders", report_text.closer_is_better),
    Claim("S16", "Text: masked diffusion is no worse than an ARM in a uniformly random order.",
          "Yes if its loss, an upper bound, exceeds the ARM's by less than 0.02 nats per token (two standard "
          "errors); undecided otherwise, never no: the loss itself may lie below its bound. Two trainings of each "
          "are needed.",
          "needs an MDM and an ARM in uniform order on one text", report_text.diffusion_reads),
)  # fmt: skip
