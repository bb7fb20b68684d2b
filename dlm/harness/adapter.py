"""A model of the suite as lm-evaluation-harness knows models: text in, natural log-probabilities and text out."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dlm.harness.scorer import TextScorer

NEW_TOKENS = 256  # where a task does not say how many


class SuiteLM(LM):
    """Answers the three questions of the harness. Options of one document share their noise: its number is the
    noise's address, for every model alike."""

    def __init__(self, scorer: TextScorer):
        super().__init__()
        self.scorer = scorer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        pairs = [self.scorer.encode(*request.args) for request in requests]
        nats = self.scorer.nats(pairs, [address(request) for request in requests])
        return [(-value, hit) for value, hit in zip(nats, self.scorer.is_likeliest(pairs), strict=True)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        pairs = [self.scorer.encode("", request.args[0]) for request in requests]
        nats = self.scorer.nats(pairs, [address(request) for request in requests])
        return [-value for value in nats]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self._generate(*request.args, seed=address(request)) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any], seed: int) -> str:
        until = settings.get("until") or []
        greedy = not settings.get("do_sample", False)
        temperature = 0.0 if greedy else float(settings.get("temperature", 1.0))
        text = self.scorer.continued(context, int(settings.get("max_gen_toks", NEW_TOKENS)), temperature, seed)
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text


def address(request: Instance) -> int:
    return int(request.doc_id or 0)
