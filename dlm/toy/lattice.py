"""The lattice of masked strings, and every way of walking down it.

After the note "Defining the Generative Modeling Problem for Discrete Masking Models", whose pictures these are.

The states are the (V+1)^L strings over V tokens and the mask.  An edge reveals position i with token v, so a walk
from the all-masked string ends, after L edges, in a clean string; a *path* is an order together with a string.  A
**transition solution** gives every unfinished state a law over its outgoing edges, held densely as

    edges [N L V]:   P(reveal position i with token v | state),   zero at visible positions.

Many solutions have the same terminal law and differ in how each string's mass p(x) is divided among its L! paths:

    balanced       p(x) / L! on every path: uniformly random order times the exact conditionals;
    ordered        p(x) times one law over orders for all strings: exact conditionals in that order
                   (for L = 2, lambda = P(position 2 first); lambda = 1/2 is balanced);
    concentrated   one path for each string.

Any law over paths turns into a Markov chain with the same flow along every edge (`from_paths`), which keeps the
terminal law whatever the law over paths; it says nothing about states that no path visits ("?").  A mask
predictor mu^i(v | state) in random order gives edges = mu / (number of masks); for the two strings 01 and 11 (in
general 01..1 and 11..1), `factorised` has the exact terminal law for every theta in [0, 1], but -log p(x | order)
averaged over orders,

    nelbo = log 2 - (1/2) log(1 - theta^2),   Var_order log p(x | order) = artanh(theta)^2     (L = 2),

is least at theta = 0 and infinite at theta = 1: the bound that masked diffusion is trained on selects balance.

Bare float64 tensors, meant for lattices that can be drawn or enumerated (a few thousand states).
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.process import Denoise
from dlm.process.destroyers import sequences


@dataclass(frozen=True)
class Lattice:
    """All strings of `length` positions over tokens 0..V-1 and the mask V; N = (V+1)^L states, M = V^L clean ones.

    A state's number is the string read in base V+1. `orders` lists the O = L! orders of revealing.
    """

    vocab_size: int
    length: int

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    @cached_property
    def states(self) -> Int[Tensor, "N L"]:
        return sequences(self.vocab_size + 1, self.length)

    @cached_property
    def hidden(self) -> Bool[Tensor, "N L"]:
        return self.states == self.mask_id

    @cached_property
    def masks(self) -> Int[Tensor, " N"]:
        return self.hidden.sum(1)

    @cached_property
    def clean(self) -> Int[Tensor, " M"]:
        """The numbers of the clean strings, the first position varying slowest."""
        return torch.where(self.masks == 0)[0]

    @property
    def root(self) -> int:
        """The number of the all-masked string."""
        return len(self.states) - 1

    @cached_property
    def place(self) -> Int[Tensor, " L"]:
        return (self.vocab_size + 1) ** torch.arange(self.length - 1, -1, -1)

    def index(self, x: Int[Tensor, "*B L"]) -> Int[Tensor, "*B"]:
        """The numbers of states."""
        return (x * self.place).sum(-1)

    @cached_property
    def child(self) -> Int[Tensor, "N L V"]:
        """The state behind each edge; a state itself where the position is visible."""
        own = torch.arange(len(self.states))[:, None, None]
        step = (torch.arange(self.vocab_size) - self.mask_id) * self.place[:, None]
        return torch.where(self.hidden[..., None], own + step, own)

    @cached_property
    def orders(self) -> list[tuple[int, ...]]:
        return list(itertools.permutations(range(self.length)))

    @cached_property
    def steps(self) -> tuple[Int[Tensor, "O M L"], Int[Tensor, "O 1 L"], Int[Tensor, "O M L"]]:
        """Every path as its L edges: (state, position, token) indices into `edges`."""
        order = torch.tensor(self.orders)[:, None]  # the position revealed at each step
        token = self.states[self.clean][:, order[:, 0]].transpose(0, 1)
        gained = (token - self.mask_id) * self.place[order]
        before = torch.cat([torch.zeros_like(gained[..., :1]), gained.cumsum(-1)[..., :-1]], -1)
        return self.root + before, order, token

    def label(self, state: int) -> str:
        """A state as it is written in figures: `_` for a mask."""
        return "".join("_" if v == self.mask_id else str(v) for v in self.states[state].tolist())

    def state(self, label: str) -> int:
        """The number of the state written `label`."""
        return int(self.index(torch.tensor([self.mask_id if c == "_" else int(c) for c in label])))


# -- solutions ----------------------------------------------------------------------------------------------


def from_paths(lattice: Lattice, mass: Float[Tensor, "O M"]) -> Float[Tensor, "N L V"]:
    """The chain with the edge flows of a law over paths; states that no path visits choose uniformly ("?")."""
    state, position, token = lattice.steps
    flow = torch.zeros(*lattice.child.shape, dtype=mass.dtype)
    wide = mass[..., None].expand_as(state)
    flow.index_put_((state, position.expand_as(state), token), wide, accumulate=True)
    through = flow.sum((1, 2), keepdim=True)
    return torch.where(through > 0, flow / torch.where(through > 0, through, 1.0), uniform_edges(lattice))


def balanced(lattice: Lattice, p: Float[Tensor, " M"]) -> Float[Tensor, "N L V"]:
    """Every path to x has mass p(x) / L!."""
    return from_paths(lattice, (p / len(lattice.orders)).expand(len(lattice.orders), -1))


def ordered(lattice: Lattice, p: Float[Tensor, " M"], order_law: Float[Tensor, " O"]) -> Float[Tensor, "N L V"]:
    """Exact conditionals in an order drawn from `order_law`, the same for every string.

    Also in states that this order never visits but data do: a hand that trembles gets there.
    """
    return from_predictor(lattice, exact_conditionals(lattice, p), order_policy(lattice, order_law))


def concentrated(lattice: Lattice, p: Float[Tensor, " M"], order_of: Int[Tensor, " M"]) -> Float[Tensor, "N L V"]:
    """One path for each string: clean string m takes the order number `order_of[m]`.

    It stays one path per string where paths that meet have come the same way, as they do for L = 2.
    """
    chosen = torch.arange(len(lattice.orders))[:, None] == order_of
    return from_paths(lattice, chosen * p)


def two_strings(a: float, b: float) -> Float[Tensor, "9 2 2"]:
    """The general family for p(01) = p(11) = 1/2: P(0_) = a, P(1_) = b, P(_1) = c = 1 - a - b.

    P(01 | _1) = (1/2 - a) / c. (1/4, 1/4) is balanced, (1/2, 0) concentrated.
    """
    mass = torch.zeros(2, 4, dtype=torch.float64)
    mass[0, 1], mass[0, 3], mass[1, 1], mass[1, 3] = a, b, 0.5 - a, 0.5 - b
    return from_paths(Lattice(2, 2), mass)


def from_predictor(
    lattice: Lattice, mu: Float[Tensor, "*S N L V"], policy: Float[Tensor, "N L"] | None = None
) -> Float[Tensor, "*S N L V"]:
    """The solution of token conditionals mu under an order policy; random order unless one is given."""
    return (random_order(lattice) if policy is None else policy)[..., None] * mu


def from_network(
    lattice: Lattice, denoise: Denoise, policy: Float[Tensor, "N L"] | None = None, t: float = 0.5
) -> Float[Tensor, "N L V"]:
    """The solution that a mask predictor implies."""
    return from_predictor(lattice, conditionals(lattice, denoise, t), policy)


def conditionals(lattice: Lattice, denoise: Denoise, t: float = 0.5) -> Float[Tensor, "N L V"]:
    """mu^i(v | state) of a mask predictor in every state."""
    times = torch.full((len(lattice.states),), t, dtype=torch.float64)
    return denoise(lattice.states, times).double().softmax(-1)


def exact_conditionals(lattice: Lattice, p: Float[Tensor, " M"]) -> Float[Tensor, "N L V"]:
    """p(x^i = v | what is visible); uniform in states that the data never lead to."""
    return balanced(lattice, p) * lattice.masks[:, None, None]


def factorised(lattice: Lattice, theta: float) -> Float[Tensor, "N L V"]:
    """Token conditionals mu for the two strings 01..1 and 11..1 whose random-order law is exact for every theta.

    mu^1(0 | j of the others visible) = (1 + theta (1 - 2j/(L-1))) / 2,   mu^i(1 | anything) = 1 for i > 1:
    the first position is revealed after j others with probability 1/L each, and the deviations cancel.
    """
    visible = (~lattice.hidden[:, 1:]).sum(1).double()
    lean = theta * (1 - 2 * visible / (lattice.length - 1))
    mu = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(len(lattice.states), lattice.length, 1)
    mu[:, 0] = torch.stack([1 + lean, 1 - lean], -1) / 2
    return mu


def tremble(
    lattice: Lattice, edges: Float[Tensor, "*S N L V"], rate: float, kind: Literal["edge", "token"] = "edge"
) -> Float[Tensor, "*S N L V"]:
    """A hand that slips with probability `rate` at every step: to a uniformly random edge of the state, or to a
    uniformly random token at the position that was chosen."""
    slip = uniform_edges(lattice)
    if kind == "token":
        slip = (edges.sum(-1, keepdim=True) / lattice.vocab_size).expand_as(edges)
    return (1 - rate) * edges + rate * slip


# -- orders -------------------------------------------------------------------------------------------------


def random_order(lattice: Lattice) -> Float[Tensor, "N L"]:
    """The policy that reveals a uniformly random masked position."""
    return lattice.hidden / lattice.masks[:, None].clamp(min=1).double()


def order_policy(lattice: Lattice, order_law: Float[Tensor, " O"]) -> Float[Tensor, "N L"]:
    """P(position revealed next | which are visible) when the order is drawn from `order_law`; random where the law
    never leads."""
    following = torch.zeros(2**lattice.length, lattice.length, dtype=order_law.dtype)
    for order, weight in zip(lattice.orders, order_law, strict=True):
        seen = 0
        for position in order:
            following[seen, position] += weight
            seen |= 1 << position
    rows = following[(~lattice.hidden * 2 ** torch.arange(lattice.length)).sum(1)]
    total = rows.sum(1, keepdim=True)
    return (
        torch.where(total > 0, rows / torch.where(total > 0, total, 1.0), random_order(lattice)) * lattice.hidden
    )


def uniform_edges(lattice: Lattice) -> Float[Tensor, "N L V"]:
    """Every outgoing edge of a state alike."""
    return (random_order(lattice) / lattice.vocab_size)[..., None].expand(lattice.child.shape)


# -- what a solution does -----------------------------------------------------------------------------------


def visits(lattice: Lattice, edges: Float[Tensor, "*S N L V"]) -> Float[Tensor, "*S N"]:
    """P(the sampler passes through the state), for one solution or many at once."""
    mass = torch.zeros(*edges.shape[:-2], dtype=edges.dtype)
    mass[..., lattice.root] = 1
    for level in range(lattice.length, 0, -1):
        at = torch.where(lattice.masks == level)[0]
        flow = mass[..., at, None, None] * edges[..., at, :, :]
        mass = mass.index_add(-1, lattice.child[at].flatten(), flow.flatten(-3))
    return mass


def terminal(lattice: Lattice, edges: Float[Tensor, "*S N L V"]) -> Float[Tensor, "*S M"]:
    """The law of the string that the walk ends in."""
    return visits(lattice, edges)[..., lattice.clean]


def path_masses(lattice: Lattice, edges: Float[Tensor, "*S N L V"]) -> Float[Tensor, "*S O M"]:
    """The probability of every path."""
    state, position, token = lattice.steps
    return edges[..., state, position.expand_as(state), token].prod(-1)


def order_log_probs(lattice: Lattice, edges: Float[Tensor, "*S N L V"]) -> Float[Tensor, "*S O M"]:
    """log(L! times the path's mass): log p(x | order) where the order is uniformly random."""
    return path_masses(lattice, edges).log() + math.lgamma(lattice.length + 1)


def nelbo(lattice: Lattice, edges: Float[Tensor, "*S N L V"]) -> Float[Tensor, "*S M"]:
    """Mean over orders of -log p(x | order): the bound on -log of the terminal law that has every order equally
    likely a posteriori. For a mask predictor in random order it is the loss of masked diffusion."""
    return -order_log_probs(lattice, edges).mean(-2)


def order_variance(lattice: Lattice, edges: Float[Tensor, "*S N L V"]) -> Float[Tensor, "*S M"]:
    """Variance over orders of log p(x | order); `dlm.likelihood` has the dynamic programme for longer strings."""
    return order_log_probs(lattice, edges).var(-2, correction=0)


def training_visits(lattice: Lattice, p: Float[Tensor, " M"], fewest: int = 0) -> Float[Tensor, " N"]:
    """How often training meets each state when the number of masks is uniform on fewest..L: 0 for masked diffusion
    with the linear schedule (the time is uniform), 1 for the any-order loss.

    A state with k masks: P(its visible tokens) / (C(L, k) (L + 1 - fewest)). For p(01) = p(11) = 1/2 the states
    _1 and 0_ are met 2 : 1, in general 1 : p(01). The note says 3 times; that would be right for p(01) = 1/3, or
    for three strings 01, 11, 21 of equal weight. What there are 3 of are the edges at _1 that data use (one in,
    two out), against 2 at 0_.
    """
    match = visits(lattice, balanced(lattice, p))  # P(visible tokens) / C(L, k): random order, exact conditionals
    return torch.where(lattice.masks >= fewest, match / (lattice.length + 1 - fewest), 0.0)
