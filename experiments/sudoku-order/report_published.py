"""What Kim et al. 2025 have published ("Train for the Worst, Plan for the Best", arXiv 2502.06768), in one place.

Shares are percentages of boards solved; none has an interval, a number of seeds or a number of puzzles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SOURCE = "Kim et al. 2025, arXiv 2502.06768"
GAP = 89.49 - 18.51  # of Table 2, margin over top probability, in points


class Published(NamedTuple):
    """One published share: `kind` and `rule` say which of our contenders it stands beside."""

    label: str
    kind: str  # "arm" or "mdm"
    rule: str  # of an MDM; the order of an ARM
    percent: float


SUDOKU = (
    Published("ARM without order, 42M", "arm", "row_major", 9.73),
    Published("ARM with order, 42M", "arm", "solver", 87.18),
    Published("MDM, vanilla, 6M", "mdm", "random", 6.88),
    Published("MDM, top probability, 6M", "mdm", "top_probability", 18.51),
    Published("MDM, margin, 6M", "mdm", "margin", 89.49),
)
HARD = (
    Published("ARM with order, 42M", "arm", "solver", 32.57),
    Published("MDM, random, 6M", "mdm", "random", 3.62),
    Published("MDM, top probability, 6M", "mdm", "top_probability", 9.44),
    Published("MDM, margin, 6M", "mdm", "margin", 49.88),
)
ZEBRA = (
    Published("ARM without order, 42M", "arm", "row_major", 80.31),
    Published("ARM with order, 42M", "arm", "solver", 91.17),
    Published("MDM, vanilla, 19M", "mdm", "random", 76.9),
    Published("MDM, top probability, 19M", "mdm", "top_probability", 98.5),
    Published("MDM, margin, 19M", "mdm", "margin", 98.3),
)
NAE_SAT = (  # (latents, observations): consistent observations, %, vanilla and margin
    ((25, 275), 78.06, 93.76),
    ((30, 270), 75.70, 93.54),
    ((40, 260), 74.60, 92.21),
    ((50, 250), 67.94, 90.01),
    ((100, 200), 62.84, 88.91),
)
PROTOCOL: tuple[dict[str, Any], ...] = (  # of Table 2; what the paper does not say is from the code it builds on
    {
        "what": "published: ARM, 42M", "size": "9×9", "format": "triples, 243 tokens", "params": 42.5e6,
        "sequences": 2**22 * 64, "steps": 2**22, "flops": 1.7e19, "nfe": "about 171", "pace": "1",
        "noise": "none", "values": "greedy", "seeds": "not stated",
    },
    {
        "what": "published: MDM, 6M", "size": "9×9", "format": "prefix, 164 tokens, givens masked", "params": 6e6,
        "sequences": 300 * 1.8e6, "steps": 300 * 1.8e6 / 128, "flops": 3.0e18, "nfe": "50", "pace": "1.6",
        "noise": "Gumbel 0.5, scale not stated", "values": "greedy", "seeds": "not stated",
    },
)  # fmt: skip


def beside(table: tuple[Published, ...], kind: str, rule: str) -> float | None:
    """The published percentage of a contender; None where there is none."""
    return next((p.percent for p in table if (p.kind, p.rule) == (kind, rule)), None)
