"""Small channels between Alice and Bob: what they preserve, destroy and generate, and how they compose.

A channel turns a message A into B.  With the message's law p and the channel P(B | A),

    preserved  I(A; B),      destroyed  H(A | B) = H(A) - I(A; B),      generated  H(B | A) = H(B) - I(A; B).

Along a chain A -> B -> C what is known never grows: I(A; C) <= I(A; B) (the data-processing inequality, the story
of destruction), and I(A; C) <= I(B; C) (its dual, the story of generation): nothing can be known about what has
not been decided yet.  In nats.  Source: the essay on diffusion as destroying and generating information, whose
Identity, Cypher, Product, Project, Mash and Shuffle these are; Latham and Roudi (2009) for the inequality.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def entropy(p: Float[Tensor, "*N M"]) -> Float[Tensor, "*N"]:
    """-sum p log p over the last axis, in nats, 0 log 0 = 0."""
    return -torch.special.xlogy(p, p).sum(-1)


def mutual_information(joint: Float[Tensor, "A B"]) -> Float[Tensor, ""]:
    """I(A; B) = KL(joint || product of its margins): no difference of large entropies."""
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (torch.special.xlogy(joint, joint) - torch.special.xlogy(joint, product)).sum()


class Account(NamedTuple):
    """What a channel does, in nats: sent = preserved + destroyed, received = preserved + generated."""

    sent: float
    received: float
    preserved: float
    destroyed: float
    generated: float


@dataclass(frozen=True)
class Channel:
    """P(B | A) as a matrix whose rows sum to one; `Mash >> Guess` sends through one and then the other.

    Raises:
        ValueError: for a matrix that is none, or channels whose ends do not fit.
    """

    name: str
    matrix: Float[Tensor, "A B"]

    def __post_init__(self):
        rows = self.matrix.sum(1)
        if (self.matrix < 0).any() or not torch.allclose(rows, torch.ones_like(rows), rtol=0, atol=1e-12):
            raise ValueError(f"{self.name}: every row of a channel is a distribution")

    def __rshift__(self, after: "Channel") -> "Channel":
        if self.matrix.shape[1] != after.matrix.shape[0]:
            sizes = f"{self.matrix.shape[1]} messages into {after.matrix.shape[0]}"
            raise ValueError(f"{self.name} does not fit {after.name}: {sizes}")
        return Channel(f"{self.name}, {after.name}", self.matrix @ after.matrix)

    def account(self, p: Float[Tensor, " A"]) -> Account:
        return account(p[:, None] * self.matrix)

    def guess(self, p: Float[Tensor, " A"], name: str = "Guess") -> "Channel":
        """Bayes' rule, P(A | B): the perfect way back.  A message that never arrives is answered by p."""
        joint = p[:, None] * self.matrix
        seen = joint.sum(0)
        back = torch.where(seen > 0, joint / torch.where(seen > 0, seen, 1.0), p[:, None])
        return Channel(name, back.T)


def account(joint: Float[Tensor, "A B"]) -> Account:
    """The entropies of a joint table."""
    preserved = mutual_information(joint)
    sent, received, both = entropy(joint.sum(1)), entropy(joint.sum(0)), entropy(joint.flatten())
    return Account(*(float(v) for v in (sent, received, preserved, both - received, both - sent)))


def known(p: Float[Tensor, " A"], chain: Sequence[Channel]) -> Float[Tensor, "n+1 n+1"]:
    """I(X_i; X_j) between any two stations of X_0 -> X_1 -> ... -> X_n; entropies on the diagonal.

    Both stories in one table: it falls away from the diagonal, along rows and along columns.
    """
    laws = [p]
    for channel in chain:
        laws.append(laws[-1] @ channel.matrix)
    table = torch.diag(torch.stack([entropy(law) for law in laws]))
    for i in range(len(chain)):
        through = torch.eye(len(laws[i]), dtype=p.dtype)
        for j in range(i, len(chain)):
            through = through @ chain[j].matrix
            table[i, j + 1] = table[j + 1, i] = mutual_information(laws[i][:, None] * through)
    return table


def deterministic(name: str, to: Sequence[int], size: int) -> Channel:
    """The channel that sends a to to[a]: it can destroy information, and never generates any."""
    return Channel(name, F.one_hot(torch.tensor(to), size).double())


def identity(n: int = 3) -> Channel:
    return deterministic("Identity", range(n), n)


def cypher() -> Channel:
    """0 -> 1 -> 2 -> 0: another name for every message; Decrypt undoes it."""
    return deterministic("Cypher", [1, 2, 0], 3)


def decrypt() -> Channel:
    return deterministic("Decrypt", [2, 0, 1], 3)


def product() -> Channel:
    """The message and a coin: a -> a or a + 3. Generates one bit and destroys nothing."""
    return Channel("Product", torch.eye(3, dtype=torch.float64).repeat(1, 2) / 2)


def project() -> Channel:
    """Forgets the coin of Product."""
    return deterministic("Project", [0, 1, 2, 0, 1, 2], 3)


def project_coin() -> Channel:
    """Keeps the coin alone."""
    return deterministic("Project'", [0, 0, 0, 1, 1, 1], 2)


def mash() -> Channel:
    """0 -> 0, 1 -> 1, 2 -> 1: two messages become one."""
    return deterministic("Mash", [0, 1, 1], 2)


def mash_rest() -> Channel:
    """The second Mash': all that is left becomes one message, about which there is nothing to know."""
    return deterministic("Mash'", [0, 0], 1)


def shuffle() -> Channel:
    """0 -> {0, 1}, 1 -> {1, 2}, 2 -> {2, 0}, each with probability one half."""
    eye = torch.eye(3, dtype=torch.float64)
    return Channel("Shuffle", (eye + eye.roll(1, 1)) / 2)


def shuffle_range(n: int) -> tuple[float, float]:
    """Smallest and largest P(Z = z | A = a) after n Shuffles, in closed form.

    The eigenvalues of Shuffle are 1 and cos(pi/3) e^(+-i pi/3), so P = 1/3 + (2/3) 2^-n cos(pi m / 3) with
    m = n - 2 (z - a) mod 6, always of n's parity: cos is 1, -1/2 for even m and -1, 1/2 for odd.
    """
    away, near = 2 / 3 * 0.5**n, 1 / 3 * 0.5**n
    return (1 / 3 - near, 1 / 3 + away) if n % 2 == 0 else (1 / 3 - away, 1 / 3 + near)
