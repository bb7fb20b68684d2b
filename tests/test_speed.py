"""What the speed command says adds up; how fast this machine is, no test asks."""

import json

import pytest
import torch
from conftest import TOY, composed

from dlm import speed
from dlm.speed import Bench, laps, matmul_peak, measure


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(speed, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(speed, "SIZES", {"cpu": (32, 64)})


@pytest.mark.parametrize("method", ["arm", "arm_mir", "dual", "genmd4"])
def test_utilisation_is_the_steps_flops_over_the_measured_peak(method):
    bench = Bench(composed(*TOY, f"method={method}"))
    found = measure(bench, seconds=0.0)
    flops = bench.model.flops_per_token(8)
    assert found["flops_per_token"] == flops <= found["flops_per_token_full_attention"]
    assert found["flops_per_second"] == pytest.approx(flops * found["tokens_per_second"], rel=0.01)
    share = found["flops_per_second"] / found["peak_flops_per_second"]
    assert found["model_flops_utilisation"] == pytest.approx(share, abs=1e-4)
    assert bench.batch["step"] >= 6, "the real training step, several times"
    assert bench.model.training


def test_the_peak_is_the_best_of_the_products(monkeypatch):
    """2 n^3 operations over the shortest lap: durations planted, the second size the faster machine."""
    sizes = []

    def planted(work, where, seconds):
        sizes.append(32 if not sizes else 64)
        return [(1e-6, 0), (5e-7 if sizes[-1] == 64 else 2e-6, 0)]

    monkeypatch.setattr(speed, "laps", planted)
    assert matmul_peak(torch.device("cpu"), torch.float32) == pytest.approx(2 * 64**3 / 5e-7)


def test_a_lap_is_repeated_until_there_are_enough():
    done = []
    found = laps(lambda: len(done) or done.append(1) or 0, torch.device("cpu"), 0.0)
    assert len(found) == 5 and [result for _, result in found] == [0, 1, 1, 1, 1]


def test_the_command_prints_a_profile_and_ends_in_json(called, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda bench: measure(bench, seconds=0.0))
    out = called(speed.main, *TOY, "method=arm", "--profile")
    assert "aten::mm" in out and "Self CPU" in out
    assert json.loads(out.splitlines()[-1])["model_flops_utilisation"] > 0
    assert "aten::mm" not in called(speed.main, *TOY, "method=arm")
