"""What others have published on the same quantities, and how each number is known.

`how` is "paper" (stated in the text), "abstract", "project page", "read off a figure" (by eye, so with an error of
its own) or "derived" (arithmetic on published numbers). Models, tokenisers and corpora differ from study to study:
exponents and epochs may be compared, losses in nats per token may not.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """One published value of a law's parameter."""

    law: str
    parameter: str
    value: float
    source: str
    how: str
    arm: str

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


_MUENNIGHOFF = "Muennighoff et al. 2023, arXiv 2305.16264"
_QUOKKA = "Ni et al. 2025 (Quokka), arXiv 2510.03280, Eq. 14"
_PRABHUDESAI = "Prabhudesai et al. 2025, arXiv 2507.15857"
_NI = "Ni et al. 2025, arXiv 2511.03276"

PUBLISHED = [
    *(
        Published("muennighoff", name, value, _MUENNIGHOFF, "paper", "autoregressive")
        for name, value in {"E": 1.869, "A": 521, "B": 1488, "a": 0.3527, "R_D": 15.39, "R_N": 5.31}.items()
    ),
    Published("muennighoff", "R_D", 500, _PRABHUDESAI, "project page", "masked diffusion"),
    Published("muennighoff", "R_D", 31, _PRABHUDESAI, "abstract", "autoregressive"),
    *(
        Published("quokka", name, value, _QUOKKA, "paper", "masked diffusion")
        for name, value in {
            "A": 1535.23, "a": 0.42, "B": 54.21, "b": 0.13, "c": 1.49, "k": 0.40, "g": 254.35, "h": 0.39, "m": 0.55
        }.items()
    ),
    Published("X2", "b", 2.174, f"{_PRABHUDESAI}: from their fitted law", "paper", "masked diffusion"),
    Published("X2", "a", 2.12 * 10**1.956, f"{_PRABHUDESAI}: from their fitted law", "paper", "masked diffusion"),
    Published(
        "X2", "b", 1.43, f"{_PRABHUDESAI}: three measured stars, 25M to 100M tokens", "read off a figure",
        "masked diffusion",
    ),
    Published(
        "X2", "a", 2.6e19 / 1e8**1.43, f"{_PRABHUDESAI}: three measured stars, 25M to 100M tokens",
        "read off a figure", "masked diffusion",
    ),
    *(
        Published("X1", f"epochs at {size} parameters, {tokens} tokens", value, _NI, "read off a figure",
                  "masked diffusion")
        for size, tokens, value in (("1B", "0.5B", 6), ("1B", "1B", 14), ("1B", "1.5B", 24), ("8B", "1B", 6))
    ),
    Published("data multiplier", "multiplier", 3, f"{_NI}: more than three times", "abstract", "masked diffusion"),
    Published(
        "data multiplier", "multiplier", 1.3, "Xu et al. 2026, arXiv 2606.06888: masked inputs, strong decay",
        "abstract", "autoregressive",
    ),
    Published(
        "data multiplier", "multiplier", 5.17, "Kim et al. 2025, arXiv 2509.14786: strong decay and ensembles",
        "abstract", "autoregressive",
    ),
]  # fmt: skip

LINES = {
    "C_crit of the fitted law": (2.12 * 10**1.956, 2.174),
    "C_crit of the measured stars": (2.6e19 / 1e8**1.43, 1.43),
}
