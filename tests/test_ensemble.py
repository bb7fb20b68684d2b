"""Networks trained side by side are what they would be alone."""

import pytest
import torch

from dlm.backbone import Transformer
from dlm.process import MaskedDiffusion
from dlm.process.balanced import BalancedDiffusion
from dlm.toy import lattice as la
from dlm.toy.ensemble import Ensemble, Tables, conditionals, looks, train
from dlm.toy.lattice import Lattice

SQUARE = Lattice(2, 2)
HALVES = torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
SHAPE = {"dim": 8, "depth": 1, "heads": 2}


def trained(net, seeds, processes=None, steps=6):
    wide = HALVES.expand(len(seeds), -1)
    return train(net, processes or [MaskedDiffusion(2)], seeds, wide, steps=steps, batch=8, marks=3)


@pytest.mark.parametrize("shared", [False, True])
def test_a_member_trains_as_it_would_alone(shared):
    """The second of three networks and the same seed by itself: equal tables at every mark, to 1e-5."""
    steps, together = trained(Ensemble(SQUARE, [4, 5, 6], 1e-2, shared, **SHAPE), [4, 5, 6])
    again, alone = trained(Ensemble(SQUARE, [5], 1e-2, shared, **SHAPE), [5])
    assert steps == again == looks(6, 3) and len(together) == len(steps)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[1], other[0], rtol=0, atol=1e-5)
    assert (together[-1][0] - together[-1][1]).abs().max() > 1e-3


def test_one_process_each_is_one_process_for_all():
    """MD4 once, MD4 three times, and MD4 with rejection of power 0, which rejects nothing: equal to 1e-6."""
    tables = []
    for processes in ([MaskedDiffusion(2)], [MaskedDiffusion(2)] * 3, [BalancedDiffusion(2, power=0.0)] * 3):
        tables.append(trained(Ensemble(SQUARE, [1, 2, 3], 1e-2, **SHAPE), [1, 2, 3], processes)[1][-1])
    for other in tables[1:]:
        torch.testing.assert_close(tables[0], other, rtol=0, atol=1e-6)


def test_a_table_learns_the_balanced_solution_from_a_biased_start():
    """T56: from theta = 0.9, 300 steps on `process.loss` leave every path within 0.08 of 1/4 (seeds 0 to 3), and
    the "?" edge exactly where it was."""
    start = la.factorised(SQUARE, 0.9) * SQUARE.hidden[..., None]
    start[SQUARE.state("_0"), 0] = torch.tensor([0.3, 0.7], dtype=torch.float64)
    _, tables = trained(Tables(SQUARE, start.repeat(4, 1, 1, 1), 5e-2), [0, 1, 2, 3], steps=300)
    paths = la.path_masses(SQUARE, la.from_predictor(SQUARE, tables[-1]))
    assert (paths[..., [1, 3]] - 0.25).abs().max() < 0.08
    torch.testing.assert_close(tables[-1][:, SQUARE.state("_0")], tables[0][:, SQUARE.state("_0")], rtol=0, atol=0)


def test_rotary_positions_alone_cannot_tell_masks_apart():
    """Why positions have symbols of their own here: the plain backbone answers an all-masked string alike at every
    position, whatever its weights (1e-5); an ensemble does not, with own symbols or with a start symbol."""
    torch.manual_seed(0)
    net = Transformer(2, 4, **SHAPE)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    out = net(torch.full((1, 4), 2))
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=1e-5)
    for shared in (False, True):
        ensemble = Ensemble(Lattice(2, 4), [0], 1e-2, shared, **SHAPE)
        for value in ensemble.parameters.values():
            torch.nn.init.normal_(value.data)
        root = conditionals(ensemble)[0, -1]
        assert (root - root[:1]).abs().max() > 1e-3
