"""What a destroyed token is replaced by: a distribution pi over the vocabulary.

Uniform noise is pi = 1/V.  Unigram noise takes pi from the training split, so that a sequence destroyed to the end
keeps the frequencies of its tokens; it is counted once, with one added to every count (no token may be
impossible), and travels with the checkpoint.  Any other pi can be given as V probabilities.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dlm.errors import UserError


class TokenNoise(nn.Module):
    """A distribution pi over V tokens: "uniform", "unigram" or V probabilities.

    Attributes:
        name: uniform, unigram or custom, as bounds under it are called.

    Raises:
        UserError: for another name, or for numbers that are no distribution over V tokens.
    """

    pi: Tensor

    def __init__(self, vocab_size: int, kind: str | Sequence[float] = "uniform"):
        super().__init__()
        self.name = kind if isinstance(kind, str) else "custom"
        self.uniform, self.counted = kind == "uniform", kind == "unigram"
        if isinstance(kind, str):
            if not (self.uniform or self.counted):
                raise UserError(f"noise is uniform, unigram or {vocab_size} probabilities, not {kind!r}")
            pi = torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
        else:
            pi = torch.tensor(list(kind), dtype=torch.float64)
            if len(pi) != vocab_size or (pi <= 0).any() or abs(float(pi.sum()) - 1) > 1e-6:
                raise UserError(
                    f"noise over {vocab_size} tokens needs that many positive probabilities that sum to 1, "
                    f"not {len(pi)} with sum {float(pi.sum()):g} and least {float(pi.min()):g}"
                )
        self.register_buffer("pi", pi / pi.sum(), persistent=self.counted)

    def observe(self, counts: Int[Tensor, " V"]) -> None:
        """Take the token frequencies of the training split, if this is unigram noise."""
        if self.counted:
            smoothed = counts.to(self.pi) + 1
            self.pi.copy_(smoothed / smoothed.sum())

    def draw(self, noise: Float[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Uniforms on [0, 1) to tokens, by inverse CDF."""
        size = len(self.pi)
        if self.uniform:
            return (noise * size).long().clamp(max=size - 1)
        cdf = self.pi.double().cumsum(0)
        return torch.searchsorted(cdf, noise.double().contiguous(), right=True).clamp(max=size - 1)

    def prior_kl(self, x0: Int[Tensor, "*N"], alpha: Float[Tensor, ""]) -> Float[Tensor, "*N"]:
        """KL(alpha e_x + (1 - alpha) pi || pi) of a token, in nats; with a = alpha, p = pi_x

        (a + (1 - a) p) log(1 + a (1 - p) / p) + (1 - p) (1 - a) log(1 - a).
        """
        p, alpha = self.pi[x0].double(), alpha.double()
        seen = (alpha + (1 - alpha) * p) * torch.log1p(alpha * (1 - p) / p)
        return seen + (1 - p) * torch.special.xlog1py(1 - alpha, -alpha)


TokenDistribution = str | Sequence[float] | TokenNoise
"""What a process takes for its noise; a `TokenNoise` is shared, not copied."""


def token_noise(vocab_size: int, noise: TokenDistribution) -> TokenNoise:
    """The noise that is meant."""
    return noise if isinstance(noise, TokenNoise) else TokenNoise(vocab_size, noise)
