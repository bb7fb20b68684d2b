"""What a destroying process leaves to know, and the bound of a network as the rate at which it goes.

From x0 on a destroying process is a chain of channels (dlm.toy.channels), so I(x0; x_t) never grows, and with the
exact network, in continuous time,

    integrand of the bound at t = -d/dt I(x0; x_t),       so the whole bound is I(x0; x_0) - I(x0; x_1) = H(x0):

a network is charged, at each time, for the information that is being destroyed there, and what it is charged on
top is the divergence it still has to learn.  Everything below is a finite sum over a language small enough to be
listed, in nats.  Each closed form has the joint table as its test.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.process import Process
from dlm.process.base import Denoise
from dlm.process.destroyers import Destroyer, ShuffleOneRandomToken, number, sequences
from dlm.toy.channels import entropy, mutual_information


class Language:
    """A distribution `p` over listed sequences `clean` of V tokens: the data, small enough to be enumerated."""

    def __init__(self, vocab_size: int, clean: Int[Tensor, "N L"], p: Float[Tensor, " N"]):
        self.vocab_size, self.clean, self.p = vocab_size, clean, p / p.sum()
        self.length = clean.shape[1]

    @property
    def entropy(self) -> Float[Tensor, ""]:
        return entropy(self.p)

    def marginal_entropy(self, positions: Sequence[int]) -> Float[Tensor, ""]:
        """H(x^S) in nats for the positions S."""
        _, group = number(self.clean[:, list(positions)], self.vocab_size).unique(return_inverse=True)
        return entropy(torch.zeros(len(self.p), dtype=self.p.dtype).index_add(0, group, self.p))

    def law(self, token: Float[Tensor, "V S"]) -> Float[Tensor, " S^L"]:
        """The law of x_t where every position goes through the same channel P(x_t^i | x0^i) on its own."""
        size = token.shape[1]
        spread = self.p[:, None]
        for i in range(self.length):
            spread = (spread[:, :, None] * token[self.clean[:, i]][:, None]).flatten(1)
        assert spread.shape[1] == size**self.length
        return spread.sum(0)


def joint_table(process: Process | Destroyer, language: Language, t: float) -> Float[Tensor, "N M"]:
    """P(x0, x_t) over all sequences and all states, by the process's own `log_q`; t is k for a destroyer."""
    states = sequences(process.num_states, language.length)
    n, m = len(language.clean), len(states)
    x0, x_t = language.clean.repeat_interleave(m, 0), states.repeat(n, 1)
    with torch.no_grad():
        if isinstance(process, Destroyer):
            log_q = process.log_q(x_t, x0, torch.full((n * m,), int(t)))
        else:
            log_q = process.log_q(x_t, x0, torch.full((n * m,), float(t), dtype=torch.float64)).sum(-1)
    return language.p[:, None] * log_q.exp().reshape(n, m)


def subsets(length: int, size: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(length), size))


def mash_last_information(language: Language, k: int) -> Float[Tensor, ""]:
    """I(x0; x_k) of MashLastToken: the entropy H(x_1..x_{L-k}) of the prefix that is left."""
    return language.marginal_entropy(range(max(language.length - k, 0)))


def mash_one_information(language: Language, k: int) -> Float[Tensor, ""]:
    """I(x0; x_k) of MashOneRandomUnmaskedToken: the mean of H(x^S) over the sets S of L - k visible positions."""
    visible = subsets(language.length, max(language.length - k, 0))
    return torch.stack([language.marginal_entropy(s) for s in visible]).mean()


def masked_information(language: Language, u: float) -> Float[Tensor, ""]:
    """I(x0; x_t) of masked diffusion: sum over visible sets S of (1-u)^|S| u^(L-|S|) H(x^S)."""
    total = torch.zeros((), dtype=torch.float64)
    for size in range(language.length + 1):
        weight = (1 - u) ** size * u ** (language.length - size)
        total = total + weight * sum(language.marginal_entropy(s) for s in subsets(language.length, size))
    return total


def token_masked_information(language: Language, u: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """I(x0; x_t) of GenMD4, where token value v is masked with probability u_v: H(x_t) - E sum_i h(u_{x_i}).

    The pattern of the masks alone tells something about what is behind them: `pattern_information`.
    """
    hidden = torch.cat([torch.diag(1 - u), u[:, None]], 1)
    return entropy(language.law(hidden)) - pattern_noise(language, u)


def pattern_information(language: Language, u: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """I(x0; which positions are masked) = H(pattern) - E sum_i h(u_{x_i}); zero where all u_v are equal."""
    return entropy(language.law(torch.stack([1 - u, u], 1))) - pattern_noise(language, u)


def pattern_noise(language: Language, u: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """H(pattern | x0) = E sum_i h(u_{x_i}), h the entropy of a coin."""
    coin = entropy(torch.stack([u, 1 - u], -1))
    return language.p @ coin[language.clean].sum(1)


def uniform_information(language: Language, alpha: float) -> Float[Tensor, ""]:
    """I(x0; x_t) of uniform diffusion: H(x_t) - L h, where a token's noise has the entropy h of the probabilities
    alpha + (1 - alpha) / V, once, and (1 - alpha) / V, V - 1 times."""
    v = language.vocab_size
    token = alpha * torch.eye(v, dtype=torch.float64) + (1 - alpha) / v
    return entropy(language.law(token)) - language.length * entropy(token[0])


def shuffle_information(language: Language, k: int) -> Float[Tensor, ""]:
    """I(x0; x_k) of ShuffleOneRandomToken: H(x_k) by powers of its kernel, H(x_k | x0) by how many tokens changed.

    q(x_k | x0) depends on the number d of changed tokens alone, and binom(L, d) (V-1)^d sequences are that far.
    """
    v, length = language.vocab_size, language.length
    destroyer = ShuffleOneRandomToken(v, length)
    law = torch.zeros(v**length, dtype=torch.float64).index_add(0, number(language.clean, v), language.p)
    kernel = destroyer.matrix()
    for _ in range(k):
        law = law @ kernel
    far = (torch.arange(length) < torch.arange(length + 1)[:, None]).long()
    log_q = destroyer.log_q(far, torch.zeros_like(far), torch.full((length + 1,), k))
    many = torch.tensor([len(subsets(length, d)) * (v - 1) ** d for d in range(length + 1)], dtype=torch.float64)
    return entropy(law) + (many * torch.special.xlogy(log_q.exp(), log_q.exp())).sum()


# -- what a network pays -----------------------------------------------------------------------------------


def exact_network(process: Process, language: Language) -> Denoise:
    """The network that `process` is trained towards, posterior or leave-one-out, by Bayes' rule from its `log_q`.

    Raises:
        ValueError: for a process that predicts something else.
    """
    if process.predicts not in ("posterior", "leave-one-out"):
        raise ValueError(f"no exact network for a process that predicts the {process.predicts}")
    onehot = F.one_hot(language.clean, language.vocab_size).double()

    def denoise(x_t, t, where=None):
        batch, n = len(x_t), len(language.clean)
        with torch.no_grad():
            log_q = process.log_q(
                x_t.repeat_interleave(n, 0), language.clean.repeat(batch, 1), t.double().repeat_interleave(n)
            ).reshape(batch, n, -1)
        total = log_q.sum(-1, keepdim=True).expand(log_q.shape)
        if process.predicts == "leave-one-out":
            others = ~torch.eye(language.length, dtype=torch.bool)
            total = torch.where(others, log_q[:, :, None, :], 0.0).sum(-1)
        joint = total + language.p.log()[None, :, None]
        weight = torch.exp(joint - joint.amax(1, keepdim=True).nan_to_num(neginf=0.0))
        mass = torch.einsum("bnl,nlv->blv", weight, onehot)
        logits = torch.where(mass.sum(-1, keepdim=True) > 0, mass, 1.0).log()  # data never lead to the others
        return logits if where is None else logits[where]

    return denoise


def charged(process: Process, denoise: Denoise, language: Language, t: float) -> Float[Tensor, ""]:
    """E sum_i ell_t^i, the integrand of the bound at time t, over all sequences and all their corruptions."""
    states = sequences(process.num_states, language.length)
    joint = joint_table(process, language, t)
    row, column = (joint > 0).nonzero(as_tuple=True)
    with torch.no_grad():
        logits = denoise(states, torch.full((len(states),), t, dtype=torch.float64)).double()
        times = torch.full((len(row),), t, dtype=torch.float64)
        ell = process.integrand(logits[column], language.clean[row], states[column], times)
    return (joint[row, column] * ell.sum(-1)).sum()


def slope(process: Process, language: Language, t: float, h: float = 1e-4) -> Float[Tensor, ""]:
    """-dI(x0; x_t)/dt by a central difference: the error is of order h^2."""
    before, after = (mutual_information(joint_table(process, language, t + d)) for d in (-h, h))
    return (before - after) / (2 * h)


def order_nll(denoise: Denoise, language: Language, mask_id: int, t: float = 0.5) -> Float[Tensor, "L! N"]:
    """-log p(x | sigma) of a mask predictor for every order of revealing, left to right first: 2^L questions.

    All of them are likelihoods of the same network; their mean over orders is the any-order bound.
    """
    length, clean = language.length, language.clean
    costs = {}
    for size in range(1, length + 1):
        for hidden in subsets(length, size):
            masked = clean.clone()
            masked[:, list(hidden)] = mask_id
            with torch.no_grad():
                logits = denoise(masked, torch.full((len(clean),), t, dtype=torch.float64)).double()
            costs[hidden] = F.cross_entropy(logits.transpose(1, 2), clean, reduction="none")
    orders = []
    for order in itertools.permutations(range(length)):
        left = [tuple(sorted(order[i:])) for i in range(length)]
        orders.append(torch.stack([costs[s][:, i] for s, i in zip(left, order, strict=True)]).sum(0))
    return torch.stack(orders)
