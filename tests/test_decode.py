"""Decoding of answers: what a row counts, and that neither batches nor company change an answer."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from progressions import Progressions

from dlm import sampling
from dlm.decode import Setting, decode, settings, summary
from dlm.decode.rows import answer, line
from dlm.errors import UserError
from dlm.lm import LanguageModel
from dlm.process import AnyOrder

V, L = 5, 9
SOURCE = Progressions("markov", L, V, sequences=8, held_out=90, seed=3)
ALL = np.arange(90)
GIVENS = SOURCE.givens(ALL)
TRUTH = SOURCE.solutions("report", ALL)


class Model:
    """What dlm.decode needs of a model, around any function of the states."""

    device = torch.device("cpu")
    sampler_name, sample = LanguageModel.sampler_name, LanguageModel.sample

    def __init__(self, logits):
        process = AnyOrder(V)

        def denoise(x, t, where):
            return logits(x)[where]

        self.samplers = {
            "ancestral": partial(sampling.ancestral, process, denoise),
            "ordered": partial(sampling.ordered, process, denoise),
        }


def knowing(wrong=lambda truth: torch.zeros_like(truth, dtype=torch.bool), sure=50.0):
    """Knows every answer from the two tokens that are always given, and is off by one where `wrong` says so."""

    def logits(x):
        truth = (x[:, :1] + (x[:, 1:2] - x[:, :1]) * torch.arange(L)) % V
        said = torch.where(wrong(truth), (truth + 1) % V, truth)
        return sure * torch.nn.functional.one_hot(said, V).double()

    return Model(logits)


def unsure(x):
    """Logits that depend on the whole row, and tell nothing."""
    codes = (x * torch.arange(1, L + 1)).sum(1)[:, None, None]
    return torch.sin(codes + 7.1 * torch.arange(L)[:, None] + 1.7 * torch.arange(V)).double()


def of(policy="margin", **choice):
    """The one setting of these choices."""
    asked = {"policy": policy} | {key: str(value) for key, value in choice.items()}
    (setting,) = settings(asked, ["ordered"]).settings
    return setting


def row(model, setting, numbers=ALL, **options):
    return summary(decode(model, SOURCE, "report", numbers, setting, **options), SOURCE)


EVERY = settings(
    {
        "policy": "random,left_to_right,given,top_probability,margin,log_ratio,entropy",
        "per_step": "1,3",
        "steps": "4",
        "values": "greedy,sampled",
    },
    ["ordered", "ancestral"],
).settings


@pytest.mark.parametrize("setting", EVERY, ids=str)
def test_a_model_that_knows_solves_all_and_one_that_is_always_wrong_none(setting):
    found = row(knowing(), setting)
    free = L - GIVENS
    assert (found["puzzles"], found["solved"], found["first_errors"]) == (90, 90, {})
    assert found["cells"] == found["right"] == free.sum()
    assert found["by"] == {"givens": {str(g): [30, 30] for g in (2, 3, 4)}}
    slots = np.concatenate([np.arange(g, L) for g in GIVENS])
    assert found["fills"] == {"1": (slots % 2 == 1).sum(), "2": (slots % 2 == 0).sum()}
    assert found["outcomes"] == np.packbits(np.ones(90, bool)).tobytes().hex()
    assert found["wilson"][1] == 1 and found["wilson"][0] == pytest.approx(90 / (90 + 1.959964**2))
    wrong = row(knowing(lambda truth: truth >= 0), setting)
    assert (wrong["solved"], wrong["right"], sum(wrong["first_errors"].values())) == (0, 0, 90)


@pytest.mark.parametrize(
    ("pace", "evaluations"),
    [({}, lambda n: n), ({"per_step": 3}, lambda n: math.ceil(n / 3)), ({"steps": 4}, lambda n: min(n, 4))],
    ids=["one", "per_step=3", "steps=4"],  # an address in a name would differ between the processes of a test run
)
def test_evaluations_and_tokens_per_step(pace, evaluations):
    for policy in ("random", "margin", "given"):
        found = row(knowing(), of(policy, **pace))
        wanted = sum(evaluations(L - g) for g in GIVENS)
        assert found["nfe"] == wanted / 90
        assert found["tokens_per_step"] == (L - GIVENS).sum() / wanted


def test_counts_of_a_model_that_is_right_on_some():
    """Off by one wherever the true value is 3: a puzzle is solved if its answer holds no 3."""
    found = decode(knowing(lambda truth: truth == 3), SOURCE, "report", ALL, of("left_to_right"))
    free = np.arange(L) >= GIVENS[:, None]
    hit = (TRUTH == 3) & free
    assert 0 < hit.any(1).sum() < 90
    assert np.array_equal(found.judged.solved, ~hit.any(1))
    assert np.array_equal(found.judged.right, (free & ~hit).sum(1))
    said = summary(found, SOURCE)
    first = [int(np.flatnonzero(h)[0]) for h in hit if h.any()]
    kinds = [1 if i % 2 else 2 for i in first]
    assert said["first_errors"] == {str(k): kinds.count(k) for k in sorted(set(kinds))}
    solved = ~hit.any(1)
    assert said["by"]["givens"] == {str(g): [int(solved[g == GIVENS].sum()), 30] for g in (2, 3, 4)}
    assert said["outcomes"] == np.packbits(solved).tobytes().hex()
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(said["outcomes"]), np.uint8))[:90]
    assert np.array_equal(bits.astype(bool), solved)


def test_a_first_error_is_the_first_in_time():
    """Wrong in slots 7 and 8: which error is the first depends on the order alone."""
    model = knowing(lambda truth: (torch.arange(L) >= 7).expand_as(truth))
    assert row(model, of("left_to_right"))["first_errors"] == {"1": 90}
    assert row(model, of("given"))["first_errors"] == {"2": 90}
    assert row(model, of("given"))["fills"] == {"2": 90}


def test_ties_are_reported_by_their_share_of_steps():
    """A constant score ties in every step but the last of each puzzle; sure of one value as of another."""
    found = row(knowing(), of("margin"))
    steps = (L - GIVENS).sum()
    assert found["ties"] == (steps - 90) / steps
    assert row(Model(unsure), of("margin"))["ties"] < 0.01


SENSITIVE = [
    of("random", values="sampled"),
    of("margin", values="sampled", noise="gumbel", noise_scale=0.5, steps=4),
    of("top_probability", noise="gaussian", per_step=2, values="sampled"),
    of("margin"),
    Setting("ancestral", {"steps": 6, "values": "sampled"}),
]


@pytest.mark.parametrize("setting", SENSITIVE, ids=str)
def test_answers_depend_on_neither_batch_nor_company(setting):
    """Answers, steps and evaluations are those of the puzzle alone, at any batch size and in any selection."""
    model = Model(unsure)
    together = answer(model, SOURCE, "report", ALL, setting, 1)
    alone = [answer(model, SOURCE, "report", ALL[i : i + 1], setting, 1) for i in range(90)]
    some = np.array([80, 3, 41])
    chosen = answer(model, SOURCE, "report", some, setting, 1)
    for field in ("x", "fixed_at", "evaluations", "tokens"):
        whole = getattr(together, field)
        assert np.array_equal(whole, np.concatenate([getattr(one, field) for one in alone])), field
        assert np.array_equal(whole[some], getattr(chosen, field)), field
    rows = [row(model, setting, batch_size=size, seed=1) for size in (1, 7, 90, 256)]
    assert all(one | {"seconds": 0} == rows[0] | {"seconds": 0} for one in rows)


def test_a_pace_fits_or_not_whatever_the_batch():
    """Eight tokens a step and eight steps: more than some puzzles have, which then answer as in company."""
    for pace in ({"per_step": 7}, {"steps": 7}):
        together = answer(Model(unsure), SOURCE, "report", ALL[:9], of("margin", **pace))
        for i in range(9):
            alone = answer(Model(unsure), SOURCE, "report", ALL[i : i + 1], of("margin", **pace))
            assert np.array_equal(alone.x[0], together.x[i]) and alone.evaluations[0] == together.evaluations[i]


def test_seeds_and_settings():
    """Another seed is another draw; the same seed is the same noise whatever the setting."""
    model, sampled = Model(unsure), of("random", values="sampled")
    one, other = (answer(model, SOURCE, "report", ALL, sampled, seed) for seed in (0, 1))
    assert not np.array_equal(one.x, other.x)
    greedy = answer(model, SOURCE, "report", ALL, of("random"), 0)
    assert np.array_equal(greedy.fixed_at, one.fixed_at), "the order is random by the same noise"
    assert not np.array_equal(greedy.x, one.x)
    ranked = [answer(model, SOURCE, "report", ALL, of("margin"), seed).x for seed in (0, 1)]
    assert np.array_equal(*ranked), "without ties nothing is left to chance"


def test_a_line_says_what_the_row_says():
    setting = of("margin", noise="gumbel", noise_scale=0.5, anneal="masked_share", score_scale="log", steps=4)
    said = row(knowing(), setting) | {"checkpoint": "best", "split": "report", "seed": 0, "seconds": 1.0}
    assert line(setting, said) == (
        "best report s0  margin log, gumbel 0.5 annealed, 4 steps, greedy: solved 100.0 % [95.9, 100.0] of 90, "
        "cells 100.0 %, 4.0 evaluations, 1.50 tokens per step, 1.0 s"
    )


# --- which settings there are ---------------------------------------------------------------------------------


def test_the_product_of_lists():
    found = settings(
        {"policy": "random,margin", "per_step": "1,2", "steps": "5", "values": "greedy,sampled"}, ["ordered"]
    )
    assert len(found.settings) == 2 * 3 * 2 and not found.left_out
    paces = {(s.choice["per_step"], s.choice["steps"]) for s in found.settings}
    assert paces == {(1, None), (2, None), (None, 5)}


def test_no_noise_has_no_scale_and_appears_once():
    asked = {"policy": "margin", "noise": "none,gumbel"}
    asked |= {"noise_scale": "0.05,0.5", "anneal": "constant,masked_share"}
    found = settings(asked, ["ordered"])
    plain = [s.choice for s in found.settings if s.choice["noise"] == "none"]
    assert [(c["noise_scale"], c["anneal"]) for c in plain] == [(None, "constant")]
    assert len(found.settings) == 5 and not found.left_out
    assert of(noise="gumbel").choice["noise_scale"] == 1.0


def test_contradictions_are_left_out_with_their_reasons():
    asked = {"policy": "random,margin,log_ratio", "score_scale": "probability,log", "noise": "none,gumbel"}
    found = settings(asked, ["ordered"])
    kept = {(s.policy, s.choice["score_scale"], s.choice["noise"]) for s in found.settings}
    assert kept == {("random", "probability", "none")} | {
        (policy, scale, noise)
        for policy, scale in (("margin", "probability"), ("margin", "log"), ("log_ratio", "probability"))
        for noise in ("none", "gumbel")
    }
    assert found.left_out.total() == 12 - len(kept)
    assert any("policy=random has none" in reason for reason in found.left_out)
    assert any("not for policy=log_ratio" in reason for reason in found.left_out)


def test_a_row_names_every_choice():
    assert of("margin").choice == {
        "policy": "margin", "noise": "none", "noise_scale": None, "anneal": "constant",
        "score_scale": "probability", "selection": "state", "reveal": "equal", "remask": False, "ties": "random",
        "per_step": 1, "steps": None, "values": "greedy",
    }  # fmt: skip


def test_other_samplers_have_their_own_choices():
    asked = {"policy": "random,margin", "values": "greedy,sampled", "steps": "8,16"}
    autoregressive = settings(asked, ["autoregressive"]).settings
    assert [s.choice for s in autoregressive] == [{"values": "greedy"}, {"values": "sampled"}]
    ancestral = settings(asked, ["ancestral"]).settings
    assert [s.choice for s in ancestral] == [
        {"steps": n, "values": v} for n in (8, 16) for v in ("greedy", "sampled")
    ]
    assert settings({}, ["ancestral"]).settings[0].choice["steps"] == sampling.DEFAULT_STEPS


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"policy": "random,wisest"}, "wisest"),
        ({"noise": "pink"}, "pink"),
        ({"values": "warm"}, "values is one of greedy, sampled, not 'warm'"),
        ({"ties": "right"}, "right"),
        ({"remask": "perhaps"}, "remask=perhaps: expected true"),
        ({"per_step": "1,two"}, "per_step=1,two: expected positive whole numbers"),
        ({"steps": "0"}, "steps=0: expected positive whole numbers"),
        ({"noise_scale": "-1"}, "noise_scale=-1: expected positive numbers"),
        ({"noise_scale": "nan"}, "noise_scale=nan"),
        ({"anneal": "slowly"}, "slowly"),
    ],
    ids=str,
)
def test_unknown_choices_are_refused(asked, said):
    with pytest.raises(UserError, match=said):
        settings(asked, ["ordered"])
