"""Information destroyed, preserved and generated: every closed form against the joint table it abbreviates."""

import itertools
import math

import pytest
import torch
from oracle import F64, WORLD, Exact, Table, average, integrand, order_log_likelihoods
from oracle import mutual_information as oracle_information

from dlm.build import build_processes
from dlm.process import GenMaskedDiffusion, MaskedDiffusion, UniformDiffusion
from dlm.process.destroyers import MashLastToken, MashOneRandomUnmaskedToken, ShuffleOneRandomToken
from dlm.process.schedule import Cosine
from dlm.toy import channels as ch
from dlm.toy.information import (
    Language,
    charged,
    exact_network,
    joint_table,
    mash_last_information,
    mash_one_information,
    masked_information,
    order_nll,
    pattern_information,
    pattern_noise,
    shuffle_information,
    slope,
    token_masked_information,
    uniform_information,
)

LANGUAGE = Language(3, WORLD.clean, WORLD.p)
HALVES = torch.tensor([0.5, 0.25, 0.25], dtype=F64)
TIMES = [i / 20 for i in range(1, 20)] + [0.9999]
METHODS = build_processes(3)


def close(a, b, tol):
    torch.testing.assert_close(
        torch.as_tensor(a), torch.as_tensor(b, dtype=torch.as_tensor(a).dtype), rtol=0, atol=tol
    )


def bits(account):
    return [value / math.log(2) for value in account]


def information(process, t):
    return ch.mutual_information(joint_table(process, LANGUAGE, t))


def with_w(w):
    process = GenMaskedDiffusion(len(w)).double().requires_grad_(False)
    process.schedule.raw.copy_(torch.tensor(w, dtype=F64).expm1().log())
    return process


# -- channels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "preserved", "destroyed", "generated"),
    [
        (ch.identity(), 1.5, 0.0, 0.0),
        (ch.cypher(), 1.5, 0.0, 0.0),
        (ch.product(), 1.5, 0.0, 1.0),
        (ch.mash(), 1.0, 0.5, 0.0),
        (ch.mash() >> ch.mash_rest(), 0.0, 1.5, 0.0),
        (ch.cypher() >> ch.decrypt(), 1.5, 0.0, 0.0),
        (ch.product() >> ch.project(), 1.5, 0.0, 0.0),
        (ch.product() >> ch.project_coin(), 0.0, 1.5, 1.0),
    ],
    ids=lambda value: value.name if isinstance(value, ch.Channel) else None,
)
def test_what_the_named_channels_do(channel, preserved, destroyed, generated):
    """By hand, in bits, at p = (1/2, 1/4, 1/4), H = 1.5: Identity and Cypher preserve, Product adds a coin, Mash
    loses which of two; sent = preserved + destroyed, received = preserved + generated (1e-14)."""
    found = channel.account(HALVES)
    close(bits(found), [1.5, preserved + generated, preserved, destroyed, generated], 1e-14)


def test_shuffle_generates_a_coin_and_destroys():
    """At any p Shuffle generates one bit and received - sent = generated - destroyed; at p uniform it destroys
    the bit it generates, for there is no room for it."""
    found = ch.shuffle().account(HALVES)
    close(bits(found)[4], 1.0, 1e-14)
    assert 0 < found.destroyed < found.sent
    close(found.received - found.sent, found.generated - found.destroyed, 1e-14)
    close(bits(ch.shuffle().account(torch.full((3,), 1 / 3, dtype=F64)))[3], 1.0, 1e-14)


def test_channels_compose_and_undo():
    """Decrypt undoes Cypher, Project undoes Product, and Guess gives every channel's message back its law: as much
    is created on the way back as was destroyed on the way there."""
    close((ch.cypher() >> ch.decrypt()).matrix, ch.identity().matrix, 0)
    close((ch.product() >> ch.project()).matrix, ch.identity().matrix, 0)
    for channel in (ch.cypher(), ch.product(), ch.mash(), ch.shuffle(), ch.mash() >> ch.mash_rest()):
        back = channel.guess(HALVES)
        close(HALVES @ (channel >> back).matrix, HALVES, 1e-15)
        there, again = channel.account(HALVES), back.account(HALVES @ channel.matrix)
        close([again.destroyed, again.generated], [there.generated, there.destroyed], 1e-14)
    silent = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    close(ch.mash().guess(silent).matrix[1], silent, 0)  # a message that never arrives is answered by p


def test_only_the_net_amounts_agree_on_any_way_back():
    """A way back that gives the message its law, but not its meaning: destroyed - generated on the way there is
    generated - destroyed on the way back (1e-14), yet neither amount is the other (the essay says both are)."""
    there = ch.mash().account(HALVES)
    careless = ch.Channel("answers by p", HALVES.expand(2, -1).contiguous())
    back = careless.account(HALVES @ ch.mash().matrix)
    close(there.destroyed - there.generated, back.generated - back.destroyed, 1e-14)
    close(bits([back.destroyed, back.generated]), [1.0, 1.5], 1e-14)
    close(bits([there.destroyed, there.generated]), [0.5, 0.0], 1e-14)


def random_channel(generator, n, m):
    rows = torch.rand(n, m, generator=generator, dtype=F64) ** 3
    return ch.Channel("random", rows / rows.sum(1, keepdim=True))


def test_nothing_is_learned_on_the_way_and_nothing_known_before_it_is_decided():
    """Both inequalities over 200 random chains of four stations: I(X_i; X_j) falls with |i - j| along rows and
    columns, below both entropies; symmetric."""
    rng, lost = torch.Generator().manual_seed(0), []
    for _ in range(200):
        sizes = torch.randint(2, 5, (4,), generator=rng).tolist()
        chain = [random_channel(rng, n, m) for n, m in itertools.pairwise(sizes)]
        p = torch.rand(sizes[0], generator=rng, dtype=F64)
        table = ch.known(p / p.sum(), chain)
        close(table, table.T, 0)
        for i in range(4):
            destroyed, decided = table[i, i:], table[: i + 1, i]
            assert (destroyed.diff() < 1e-14).all() and (decided.diff() > -1e-14).all()
        lost.append(float(table[0, 1] - table[0, 3]))
    assert max(lost) > 0.3 and min(lost) < 0.01  # chains that lose much and little are both among them


def test_what_is_no_channel_is_refused():
    with pytest.raises(ValueError, match="distribution"):
        ch.Channel("leaky", torch.tensor([[0.5, 0.4]], dtype=F64))
    with pytest.raises(ValueError, match="Mash does not fit Cypher: 2 messages into 3"):
        ch.mash() >> ch.cypher()


# -- destroying processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_information_about_the_data_never_grows(name):
    """T64: I(x0; x_t) of every method is non-increasing over 20 times, from nearly H to nearly 0, and the joint
    table says what the oracle's own says (1e-12)."""
    process = METHODS[name]
    found = torch.stack([information(process, t) for t in TIMES])
    assert (found.diff() < 1e-13).all() and found[-1] < 1e-2 and found[0] <= LANGUAGE.entropy + 1e-12
    assert information(process, 1e-6) > LANGUAGE.entropy - 5e-3  # a geometric schedule starts with u = 1e-4
    close(found[9], oracle_information(process, WORLD, TIMES[9]), 1e-12)


@pytest.mark.parametrize("destroyer", [MashLastToken, MashOneRandomUnmaskedToken, ShuffleOneRandomToken])
def test_information_of_the_destroyers_never_grows(destroyer):
    """T64: the same over 8 steps: H at k = 0, strictly falling while there is something to destroy."""
    found = torch.stack([information(destroyer(3, 3), k) for k in range(9)])
    close(found[0], LANGUAGE.entropy, 1e-12)
    assert (found.diff() < 1e-13).all() and (found[:4].diff() < -1e-2).all()
    if destroyer is not ShuffleOneRandomToken:
        close(found[3:], torch.zeros(6), 1e-13)


def test_closed_forms_of_the_destroyers():
    """T64: prefix entropy; mean entropy over visible sets; H(x_k) - H(x_k | x0): the joint table's (1e-12)."""
    forms = {
        MashLastToken: mash_last_information,
        MashOneRandomUnmaskedToken: mash_one_information,
        ShuffleOneRandomToken: shuffle_information,
    }
    for destroyer, closed in forms.items():
        for k in range(9):
            close(closed(LANGUAGE, k), information(destroyer(3, 3), k), 1e-12)


@pytest.mark.parametrize("t", TIMES[::2])
def test_closed_forms_of_the_processes(t):
    """T64: the sum over visible sets; H(x_t) - E sum h(u_x) for four choices of w; H(x_t) - L h: the joint
    table's, to 1e-12, on a curved schedule where there is one."""
    time = torch.tensor(t, dtype=F64)
    u = float(Cosine().u(time))
    close(masked_information(LANGUAGE, u), information(MaskedDiffusion(3, Cosine()), t), 1e-12)
    close(uniform_information(LANGUAGE, 1 - u), information(UniformDiffusion(3, Cosine()), t), 1e-12)
    for w in ([1, 1, 1], [0.5, 1, 2], [4, 1, 0.25], [2, 2, 2]):
        process = with_w(w)
        hidden = time**process.schedule.w
        close(token_masked_information(LANGUAGE, hidden), information(process, t), 1e-12)
        if len(set(w)) == 1:
            close(
                token_masked_information(LANGUAGE, hidden), masked_information(LANGUAGE, float(hidden[0])), 1e-12
            )


def test_one_token_keeps_its_entropy_times_the_chance_of_being_seen():
    """Section 9: for L = 1, I(x0; x_t) = (1 - u) H."""
    single = Language(3, torch.arange(3)[:, None], HALVES)
    close(masked_information(single, 0.3), 0.7 * single.entropy, 1e-15)


def test_the_pattern_of_masks_tells_only_when_tokens_are_masked_at_different_rates():
    """I(x0; pattern) = the joint table's with all visible tokens erased (1e-12); zero when all rates are equal."""
    equal, skewed = torch.full((3,), 0.4, dtype=F64), torch.tensor([0.2, 0.4, 0.8], dtype=F64)
    close(pattern_information(LANGUAGE, equal), 0.0, 1e-13)
    process = with_w([-math.log(v) / math.log(2) for v in (0.2, 0.4, 0.8)])  # t^w = u at t = 1/2
    joint = joint_table(process, LANGUAGE, 0.5)
    shown = (torch.cartesian_prod(*[torch.arange(4)] * 3) == 3).long() @ torch.tensor([4, 2, 1])
    erased = torch.zeros(len(joint), 8, dtype=F64).index_add(1, shown, joint)
    close(pattern_information(LANGUAGE, skewed), ch.mutual_information(erased), 1e-12)
    assert pattern_information(LANGUAGE, skewed) > 0.05


def test_generated_information_is_the_noise_of_the_process():
    """H(x_t | x0): L h(u) for masks, E sum h(u_x) for GenMD4, log binom(L, k) for the random order, 0 for the last
    token; sent = preserved + destroyed and received = preserved + generated for all (1e-12)."""
    u, pair = torch.tensor(0.3, dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    for process, t, generated in [
        (MaskedDiffusion(3), 0.3, 3 * ch.entropy(pair)),
        (with_w([0.5, 1, 2]), 0.3, pattern_noise(LANGUAGE, u ** torch.tensor([0.5, 1, 2], dtype=F64))),
        (MashOneRandomUnmaskedToken(3, 3), 1, math.log(3)),
        (MashLastToken(3, 3), 1, 0.0),
    ]:
        found = ch.account(joint_table(process, LANGUAGE, t))
        close(found.generated, float(generated), 1e-12)
        close(found.preserved + found.destroyed, float(LANGUAGE.entropy), 1e-12)
        close(found.preserved + found.generated, found.received, 1e-12)


# -- what a network pays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["md4", "genmd4", "shuffle", "dfm_uniform"])
def test_exact_networks_are_charged_the_slope(name):
    """T65 for this module's own network and sums: = -dI/dt (1e-6), the same as the oracle's (1e-12); flow matching
    from a uniform source pays more than is destroyed (its path bound is loose)."""
    process = METHODS[name]
    denoise = exact_network(process, LANGUAGE)
    for t in (0.1, 0.5, 0.9):
        found = charged(process, denoise, LANGUAGE, t)
        wide = torch.tensor([t], dtype=F64)
        close(found, average(WORLD, integrand(process, Exact(process, WORLD), WORLD, wide)[0]), 1e-12)
        lost = slope(process, LANGUAGE, t)
        if process.bound_kind == "flow path bound":
            assert found > lost + 1e-2
        else:
            close(found, lost, 1e-6)


def test_a_wrong_network_is_charged_more():
    """At every time the integrand of a random network lies above what is destroyed."""
    for process in (METHODS["md4"], METHODS["shuffle"]):
        net = Table(process.num_states, 3, 3, seed=1)
        for t in (0.1, 0.5, 0.9):
            assert charged(process, net, LANGUAGE, t) > slope(process, LANGUAGE, t) + 1e-2


def test_exact_network_of_a_score_is_refused():
    with pytest.raises(ValueError, match="score"):
        exact_network(METHODS["sedd_uniform"], LANGUAGE)


def test_every_order_of_a_mask_predictor_and_their_mean():
    """In order against the mean over orders: each is the oracle's (1e-12); exact conditionals give -log p(x)
    in every order, so their mean is H; a random network's orders differ, and their mean is MD4's bound."""
    exact, random = exact_network(METHODS["md4"], LANGUAGE), Table(4, 3, 3, seed=3)
    for net in (exact, random):
        close(order_nll(net, LANGUAGE, 3), -order_log_likelihoods(net, WORLD), 1e-12)
    orders = order_nll(exact, LANGUAGE, 3)
    close(orders, -WORLD.p.log().expand(6, -1), 1e-12)
    assert order_nll(random, LANGUAGE, 3).std(0).min() > 1e-3
    nodes = (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12))  # the integrand is a polynomial of degree 2 in u
    bound = sum(0.5 * charged(METHODS["md4"], random, LANGUAGE, u) for u in nodes)
    close(bound, average(WORLD, order_nll(random, LANGUAGE, 3).mean(0)), 1e-12)


def test_languages_of_listed_sequences():
    """A language of two strings needs no others: marginals, entropy and information as by hand."""
    pair = Language(2, torch.tensor([[0, 1], [1, 1]]), torch.tensor([1.0, 1.0], dtype=F64))
    close(pair.entropy, math.log(2), 1e-15)
    close(pair.marginal_entropy([1]), 0.0, 1e-15)
    close(masked_information(pair, 0.3), 0.7 * math.log(2), 1e-15)
    close(ch.mutual_information(joint_table(MaskedDiffusion(2), pair, 0.3)), 0.7 * math.log(2), 1e-14)
