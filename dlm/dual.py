"""The dual objective: one network that is autoregressive and a mask predictor at once.

A share of each batch's sequences is read causally and pays -log p(x0); the others pay the masked bound under full
attention (Samuel and Charpentier 2025, after GPT-BERT, Charpentier and Samuel 2024).  In GPT-BERT the mask
predictor is shifted by one slot; here a slot that reads the extra symbol predicts its own position, which is what
the start symbol does as well, and a slot that reads a token is asked for the next one.  Nothing tells the mode.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm import likelihood, sampling
from dlm.augment import check_share
from dlm.backbone import Directed, Transformer
from dlm.errors import UserError
from dlm.lm import MaskedDiffusionLM
from dlm.process import Bound, Process


class DualLM(MaskedDiffusionLM):
    """Autoregressive on a share `causal_share` of the sequences, masked diffusion on the rest.

    Reported by the exact causal likelihood ("causal"), with the masked bound and all that a mask predictor has
    under their own names. `nelbo` in training is the mean of the two losses by their shares.

    Raises:
        UserError: for a share outside [0, 1], or a process whose network must be told the time.
    """

    also_reported = ("exact_count",)

    def __init__(self, process: Process, backbone: Transformer, causal_share: float = 0.5, **kwargs: Any):
        check_share("method.causal_share", causal_share)
        super().__init__(process, backbone, **kwargs)
        if backbone.time is not None or process.steps is not None:
            raise UserError("the dual objective needs backbone.time=none and a process without steps")
        self.causal_share = causal_share
        self.causal = Directed(backbone, causal=True)
        self.samplers = {"autoregressive": self._autoregressive} | self.samplers

    def likelihoods(self, steps=None, grid=None, permutation=None):
        (kind,) = likelihood.autoregressive_kinds(self.vocab_size).values()

        def draws(denoise, *rest):
            return kind.draws(Directed(denoise, causal=True), *rest)

        return {"causal": replace(kind, source="causal", draws=draws)} | super().likelihoods(
            steps, grid, permutation
        )

    def causal_rows(self, places: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Those at the beginning of the lattice of times: of a global batch always the same number, to one."""
        return places < self.causal_share

    def bound(
        self,
        x0: Int[Tensor, "B L"],
        target: Bool[Tensor, "B L"],
        places: Float[Tensor, " B"],
        noise: Float[Tensor, "draws B L"],
    ) -> Bound:
        """Each sequence under its own loss; the rest of the lattice, stretched to [0, 1), is the masked times."""
        read = self.causal_rows(places)
        parts: list[tuple[Tensor, Bound]] = []
        if read.any():
            nll = likelihood.autoregressive_nll(self.causal, x0[read], target[read], self.vocab_size)
            parts.append((read, Bound(nll, nll.sum(1), target[read].sum())))
        if not read.all():
            left = (places[~read] - self.causal_share) / (1 - self.causal_share)
            parts.append((~read, super().bound(x0[~read], target[~read], left, noise[:, ~read])))
        dtype = torch.promote_types(parts[0][1].nelbo.dtype, parts[-1][1].nelbo.dtype)
        nelbo = torch.zeros(x0.shape, dtype=dtype, device=x0.device)
        objective = torch.zeros(len(x0), dtype=dtype, device=x0.device)
        for rows, part in parts:
            nelbo = nelbo.index_put((rows,), part.nelbo.to(dtype))
            objective = objective.index_put((rows,), part.objective.to(dtype))
        return Bound(nelbo, objective, torch.stack([part.scored for _, part in parts]).sum())

    def flops_per_token(self, length: int, causal: bool | None = None) -> float:
        if causal is not None:
            return super().flops_per_token(length, causal)
        shares = ((True, self.causal_share), (False, 1 - self.causal_share))
        return sum(share * super(DualLM, self).flops_per_token(length, c) for c, share in shares)

    def _autoregressive(self, given, free, rng, **options):
        return sampling.autoregressive(self.causal, given, free, rng, **options)
