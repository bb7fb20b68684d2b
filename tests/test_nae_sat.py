"""L&O-NAE-SAT: its data, its judge, its Bayes predictor against brute force, the error imbalance of a model."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import TOY, composed, rows

from dlm import train
from dlm.data.nae_sat import ALWAYS_ONE, BY_FREQUENCY, NaeSatSource
from dlm.data.source import HELD_OUT
from dlm.decode import imbalance
from dlm.errors import UserError
from dlm.noise import Stream, uniforms


def small(**options):
    return NaeSatSource(**({"latents": 5, "observations": 7, "sequences": 64, "held_out": 32} | options))


def everything(source):
    """All 2^N latents with their observations."""
    return source.sequence(np.array(list(itertools.product((0, 1), repeat=source.latents))))


# -- the data ----------------------------------------------------------------------------------------------


def test_an_observation_says_whether_its_three_latents_differ():
    """Every observation of every latents by hand; triples are of different latents, sorted, and depend on the seed
    alone, those of fewer observations first."""
    source = small()
    for row in everything(source).tolist():
        for j, triple in enumerate(source.triples.tolist()):
            assert row[5 + j] == (len({row[i] for i in triple}) == 2)
    assert all(len(set(triple)) == 3 and sorted(triple) == triple for triple in source.triples.tolist())
    assert (source.triples == small(held_out=3).triples).all() and (source.triples != small(seed=1).triples).any()
    assert (source.triples[:4] == small(observations=4).triples).all()


def test_three_quarters_of_the_observations_are_one():
    """Exactly, for each observation by itself: the naive guess, and what an independent draw gets right."""
    seen = everything(small())[:, 5:]
    assert (seen.mean(0) == ALWAYS_ONE).all()
    p = seen.mean(0)
    assert (p * p + (1 - p) * (1 - p) == BY_FREQUENCY).all()
    repeated = np.array(list(itertools.product((0, 1), repeat=3)))[:, [0, 0, 2]]  # a triple drawn with replacement
    assert (repeated.max(1) != repeated.min(1)).mean() == 1 / 2


def test_training_draws_every_sequence_anew_and_held_out_ones_are_fixed():
    source, again = small(), small()
    numbers = np.arange(32)
    for split in HELD_OUT:
        assert torch.equal(source.written(split, numbers, None).x0, again.written(split, numbers, None).x0)
    assert not torch.equal(source.written("tune", numbers, None).x0, source.written("report", numbers, None).x0)
    one, other = (uniforms(0, Stream.VIEW, range(first, first + 4000), 5) for first in (0, 4000))
    x = source.written("train", np.zeros(4000, dtype=np.int64), one).x0
    assert not torch.equal(x, source.written("train", np.zeros(4000, dtype=np.int64), other).x0)
    assert (x.numpy() == source.sequence(x[:, :5].numpy())).all()
    counts = (x[:, :5] * 2 ** torch.arange(5)).sum(1).bincount(minlength=32).double()
    assert float(((counts - 125) ** 2 / 125).sum()) < 75, "31 degrees of freedom, seed 0: once in 5e5"


def test_padding_is_given_and_everything_else_a_target():
    source = small(padding=3)
    assert source.seq_len == 15 and source.vocab_size == 3 and small().vocab_size == 2
    x0, target = source.written("tune", np.arange(4), None)
    assert (x0[:, 12:] == 2).all() and not target[:, 12:].any() and target[:, :12].all()
    assert (x0[:, :12] < 2).all() and torch.equal(x0[:, :12], small().written("tune", np.arange(4), None).x0)
    assert source.decode(x0[0]) == " ".join(map(str, x0[0].tolist())) and source.encode("0 1 2") == [0, 1, 2]


def test_the_fingerprint_is_of_what_scores_depend_on():
    ours = small().fingerprint
    assert ours == small(sequences=5).fingerprint
    for other in ({"seed": 1}, {"latents": 6}, {"observations": 8}, {"padding": 1}, {"held_out": 31}):
        assert small(**other).fingerprint != ours, other


@pytest.mark.parametrize(
    ("options", "said"),
    [({"latents": 2}, "latents=2"), ({"observations": 0}, "observations=0"), ({"padding": -1}, "padding=-1"),
     ({"seq_len": 13}, "seq_len=13"), ({"seed": -1}, "seed=-1")],
)  # fmt: skip
def test_impossible_sizes_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        small(**options)


def test_the_configuration_knows_how_long_a_sequence_is():
    cfg = composed("data=nae_sat", "method=aoarm", "data.latents=6", "data.observations=10", "data.padding=2")
    assert cfg.seq_len == cfg.backbone.max_len == 18 and cfg.backbone.positions == "learned"
    data = train.build_data(cfg)
    assert data.source.seq_len == 18 and data.steps_per_epoch == 4096 / cfg.batch_size


# -- what is right -----------------------------------------------------------------------------------------


def test_answers_are_judged_by_their_own_latents():
    """By hand: right whatever the latents, each wrong observation counted; a padding token makes wrong what it is
    part of."""
    source = NaeSatSource(latents=3, observations=2, padding=1)  # both observations are of all three latents
    x = np.array(
        [[0, 0, 0, 0, 0, 2], [0, 1, 1, 1, 1, 2], [1, 1, 1, 0, 1, 2], [0, 1, 0, 0, 0, 2], [0, 2, 1, 1, 1, 2],
         [0, 0, 1, 2, 1, 2]]
    )  # fmt: skip
    judged = source.judge("report", np.arange(6), x, np.zeros_like(x))
    assert judged.right.tolist() == [2, 2, 1, 0, 0, 1] and (judged.cells == 2).all()
    assert judged.solved.tolist() == [True, True, False, False, False, False]
    assert (judged.first_error == 0).all() and set(source.error_kinds) == {0}


def test_data_are_right():
    """An exact sampler, whatever its order, is right in everything."""
    source = small()
    x = source.written("tune", np.arange(32), None).x0.numpy()
    assert source.judge("tune", np.arange(32), x, x).solved.all()


def brute_force(source, x, hidden):
    """p(x_i = 1 | visible) by going through all sequences of the data."""
    every = everything(source)
    body = slice(0, every.shape[1])
    found = np.zeros(x.shape)
    for row, (tokens, where) in enumerate(zip(x[:, body], hidden[:, body], strict=True)):
        agree = every[(every[:, ~where] == tokens[~where]).all(1)]
        found[row, body] = (agree == 1).mean(0)
    return found


def test_the_posterior_is_that_of_brute_force():
    """Random masks of every density, and all masked: to 1e-15."""
    source, rng = small(observations=9), np.random.default_rng(0)
    x = source.written("tune", np.arange(32), None).x0.numpy()
    hidden = rng.random(x.shape) < rng.random((32, 1))
    hidden[0] = True
    found = source.posterior(x, hidden)
    np.testing.assert_allclose(found, brute_force(source, x, hidden), rtol=0, atol=1e-15)
    assert (found[0, :5] == 1 / 2).all() and (found[0, 5:] == 3 / 4).all()
    assert ((found > 0) & (found < 1) & hidden).any() and ((found == 0) | (found == 1)).any()
    padded = small(observations=9, padding=2)
    x, hidden = np.pad(x, ((0, 0), (0, 2)), constant_values=2), np.pad(hidden, ((0, 0), (0, 2)))
    np.testing.assert_array_equal(padded.posterior(x, hidden)[:, :14], found)


def test_what_no_latents_explain_and_what_is_too_much_is_refused():
    source = NaeSatSource(latents=3, observations=2)
    hidden = np.array([[True, True, True, False, False]])
    with pytest.raises(UserError, match="no latents explain"):
        source.posterior(np.array([[0, 0, 0, 0, 1]]), hidden)
    wide = NaeSatSource(latents=21, observations=1)
    with pytest.raises(UserError, match="21 hidden latents"):
        wide.posterior(np.zeros((1, 22), dtype=np.int64), np.ones((1, 22), dtype=bool))


# -- the error imbalance -----------------------------------------------------------------------------------


def test_questions_mask_as_many_as_they_say_and_fewer_are_a_part_of_more():
    """l latents, l P / N observations; every subset of two of five latents equally often (9 degrees, below 38)."""
    source = small(padding=2)
    asked = imbalance.questions(source, 4000, 0)
    masks = [asked.hidden(source, latents) for latents in range(1, 6)]
    for latents, mask in enumerate(masks, 1):
        assert (mask[:, :5].sum(1) == latents).all() and not mask[:, 12:].any()
        assert (mask[:, 5:12].sum(1) == imbalance.observations(source, latents)).all()
        assert latents == 1 or (mask | ~masks[latents - 2]).all()
    assert [imbalance.observations(source, latents) for latents in range(1, 6)] == [1, 3, 4, 6, 7]
    _, counts = masks[1][:, :5].unique(dim=0, return_counts=True)
    assert len(counts) == 10 and float(((counts - 400) ** 2 / 400).sum()) < 38
    assert torch.equal(asked.x[:10], imbalance.questions(source, 10, 0).x)
    assert not torch.equal(asked.x[:100], imbalance.questions(source, 100, 1).x)
    assert (asked.x.numpy() == source.sequence(asked.x[:, :5].numpy())).all()


def test_the_bayes_predictor_is_no_error_from_itself_and_the_best_in_nats():
    """Zero error to the bit; its mean -log p below that of a predictor which is off; by hand for one that always
    says one half: ((log p) - log(1/2))^2."""
    source = small()
    asked, best = imbalance.questions(source, 500, 0), imbalance.bayes(source)

    def half(x, hidden):
        return torch.where(hidden, math.log(0.5), torch.zeros((), dtype=torch.float64))

    row = imbalance.imbalance(best, best, source, asked, 3, batch_size=64)
    assert all(row[kind]["error"] == row[kind]["se"] == 0 for kind in imbalance.KINDS)
    row = imbalance.imbalance(half, best, source, asked, 3)
    hidden = asked.hidden(source, 3)
    p = brute_force(source, asked.x.numpy(), hidden.numpy())
    p = np.log(np.where(asked.x == 1, p, 1 - p), where=hidden.numpy(), out=np.zeros_like(p))
    for kind, part in (("latents", slice(0, 5)), ("observations", slice(5, 12))):
        count = hidden[:, part].sum(1).numpy()
        by_hand = ((p - math.log(0.5)) ** 2 * hidden.numpy())[:, part].sum(1) / count
        assert row[kind]["masked"] == count[0]
        assert row[kind]["error"] == pytest.approx(by_hand.mean(), rel=1e-12)
        assert row[kind]["se"] == pytest.approx(by_hand.std(ddof=1) / math.sqrt(500), rel=1e-12)
        assert row[kind]["nll"] == pytest.approx(math.log(2)) and row[kind]["reference_nll"] < math.log(2)


NAE = [
    *(override for override in TOY if not override.startswith(("data", "seq_len"))),
    *("data=nae_sat", "data.latents=5", "data.observations=7", "data.sequences=64", "data.held_out=8"),
]


def nae_run(folder, *overrides):
    return train.train(composed(*NAE, f"output_dir={folder}", *overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return nae_run(tmp_path_factory.mktemp("nae"), "method=aoarm")


def test_the_command_line_measures_a_run_once(run, called, refused):
    """Rows by number of masked latents, made once, continued after a torn line, and against a proxy."""
    out = called(imbalance.main, f"run={run}", "masked=1,4", "repeats=20")
    made = rows(run, "imbalance.jsonl")
    assert [row["masked"] for row in made] == [1, 4] and len(out.splitlines()) == 2
    assert made[1]["latents"]["masked"] == 4 and made[1]["observations"]["masked"] == 6
    assert all(row[kind]["error"] > 0 and row[kind]["se"] > 0 for row in made for kind in imbalance.KINDS)
    assert made[0]["step"] > 0 and made[0]["reference"] == "exact" and len(made[0]["key"]) == 16
    with open(run / "imbalance.jsonl", "a") as file:
        file.write('{"key": "torn')
    assert called(imbalance.main, f"run={run}", "masked=1,4", "repeats=20", "batch_size=7") == out
    called(imbalance.main, f"run={run}", "repeats=5")
    assert len(rows(run, "imbalance.jsonl")) == 2 + 5
    called(imbalance.main, f"run={run}", "masked=2", "repeats=5", f"proxy={run}")
    itself = rows(run, "imbalance.jsonl")[-1]
    assert itself["reference"] == run.name and itself["latents"]["error"] == 0
    for arguments, said in (
        (["masked=6"], "masked=6"), (["masked=0"], "masked=0"), (["masked=few"], "masked=few"),
        (["repeats=0"], "repeats=0"), (["checkpoints=epoch-9"], "epoch-9"), (["seed=-1"], "seed=-1"),
    ):  # fmt: skip
        assert said in refused(imbalance.main, f"run={run}", *arguments)
    assert "which run" in refused(imbalance.main)


def test_other_data_and_other_models_are_refused(run, tmp_path, refused):
    toy = train.train(composed(*TOY, "method=arm", f"output_dir={tmp_path}"))
    assert "dlm.decode is for tasks" in refused(imbalance.main, f"run={toy}")
    other = nae_run(tmp_path, "method=aoarm", "data.seed=1")
    assert "other data" in refused(imbalance.main, f"run={run}", f"proxy={other}")
    causal = nae_run(tmp_path, "method=arm")
    assert "predicts none" in refused(imbalance.main, f"run={causal}")
