"""The yardsticks of benchmarks/throughput.py: an interval that holds what it says, operations and passes by hand."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def measuring(root: Path):
    """benchmarks/measuring.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("measuring", root / "benchmarks" / "measuring.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["measuring"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_interval_of_a_median_is_that_of_the_sign_test(measuring):
    six = measuring.spread([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    assert (six["median"], six["low"], six["high"], six["pairs"]) == (3.5, 1.0, 6.0, 6)
    assert six["level"] == pytest.approx(1 - 2 / 2**6)
    five = measuring.spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five["level"] == pytest.approx(0.9375), "five pairs cannot reach 95%"
    many = measuring.spread(list(range(1, 21)))
    # Conover 1999, table A3: of 20, the 6th smallest and largest hold the median in 95.86% of cases
    assert (many["low"], many["high"]) == (6, 15)
    assert many["level"] == pytest.approx(0.9586, abs=5e-5)


@pytest.mark.parametrize("pairs", [5, 6, 9])
def test_the_interval_covers_as_often_as_it_says(measuring, pairs):
    rng = np.random.default_rng(pairs)
    draws = rng.lognormal(0.7, 0.3, (2000, pairs))
    found = [measuring.spread(row) for row in draws]
    covered = np.mean([one["low"] <= math.exp(0.7) <= one["high"] for one in found])
    level = found[0]["level"]
    assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / 2000)


def test_operations_and_layer_passes_of_each_way(measuring):
    shape = {"layers": 6, "hidden": 4, "inner": 16, "layer_weights": 192, "context": 10}
    forward = 2 * 192 + 4 * 10 * 4
    assert measuring.flops_per_token("full", 0, shape) == 6 * 3 * forward
    assert measuring.flops_per_token("freeze", 4, shape) == 4 * forward + 2 * 3 * forward
    assert measuring.flops_per_token("probe", 0, shape) == 6 * forward
    assert measuring.layer_passes("full", 6, 0, 5, stored=False) == 18
    assert measuring.layer_passes("freeze", 6, 4, 5, stored=False) == 10
    assert measuring.layer_passes("freeze", 6, 4, 5, stored=True) == pytest.approx(6 + 4 / 5)
    assert measuring.layer_passes("probe", 6, 0, 5, stored=True) == pytest.approx(6 / 5)


def test_the_last_fifth_is_the_final_loss(measuring):
    assert measuring.final_loss([5.0, 4.0, 3.0, 2.0, 1.0]) == 1.0
    assert measuring.final_loss([9.0, *[2.0] * 8, 1.0, 3.0]) == pytest.approx(1.5), "the last full fifth"


def test_a_clock_counts_steps_of_any_optimizer(measuring):
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with measuring.Clock("cpu") as clock:
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert len(clock.stamps) == 4
    assert (np.diff(np.array(clock.stamps)[:, 0]) > 0).all()
    optimizer.step()
    assert len(clock.stamps) == 4, "the hooks are gone"
