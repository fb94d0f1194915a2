"""Dropout by 16 bits: the distribution that torch's has, its gradient, and attention with it written out."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from hf_transfer.dropout import CHANCES, QuickDropout, keep_noise, quick_dropout

ALMOST_NONE = 1 / CHANCES
"""The smallest probability that 16 bits can have: few enough are dropped that a small tensor keeps everything."""


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for_and_the_expectation_is_one(p):
    torch.manual_seed(3)
    count = 400_000
    noise = keep_noise(torch.Size([count]), p, torch.float64)
    kept = noise != 0
    assert noise.unique().numel() == 2
    assert float(noise.max()) * (1 - round(p * CHANCES) / CHANCES) == pytest.approx(1, abs=1e-15)
    five_sigma = 5 * math.sqrt(p * (1 - p) / count)
    assert abs(float(kept.double().mean()) - (1 - p)) < five_sigma + 0.5 / CHANCES


def test_values_are_dropped_independently_of_their_neighbours():
    torch.manual_seed(5)
    kept = (keep_noise(torch.Size([100_000, 8]), 0.3, torch.float32) != 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8, dtype=torch.double)
    assert correlation.abs().max() < 5 / math.sqrt(len(kept))
    repeated = torch.corrcoef(torch.stack([kept[1:].flatten(), kept[:-1].flatten()]))[0, 1]
    assert abs(float(repeated)) < 5 / math.sqrt(kept.numel())


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_any_shape_and_the_seed_decides(shape, seed):
    found = []
    for _ in range(2):
        torch.manual_seed(seed)
        found.append(keep_noise(torch.Size(shape), 0.4, torch.float32))
    assert found[0].shape == torch.Size(shape)
    assert torch.equal(*found)


def test_calls_of_torch_are_caught_where_dropout_is_on_the_cpu_only():
    assert isinstance(quick_dropout(torch.device("cpu")), QuickDropout)
    with quick_dropout(torch.device("cuda")) as entered:
        assert entered is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_dropout_module_drops_and_its_gradient_is_its_noise(dtype, inplace):
    torch.manual_seed(0)
    states = torch.ones(50, 40, dtype=dtype, requires_grad=True)
    with QuickDropout():
        dropped = nn.Dropout(0.25, inplace)(states * 1)
    dropped.sum().backward()
    kept = dropped != 0
    assert 0.6 < float(kept.float().mean()) < 0.9
    assert torch.equal(states.grad, dropped.detach())
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 4 / 3))


def test_what_it_does_not_serve_is_left_to_torch():
    states = torch.randn(6, 5)
    with QuickDropout():
        assert functional.dropout(states, 0.5, training=False) is states
        assert torch.equal(functional.dropout(states, 0.0), states)
        assert torch.equal(functional.dropout(states, 1.0), torch.zeros(6, 5))
        query = torch.randn(1, 2, 3, 4)
        hidden = torch.zeros(1, 2, 3, 3, dtype=torch.bool)  # no query sees a key: torch answers zeros, not nan
        torch.manual_seed(1)
        assert torch.equal(scaled_dot_product_attention(query, query, query, hidden, 0.1), torch.zeros_like(query))
    with pytest.raises(ValueError, match="dropout probability"), QuickDropout():
        functional.dropout(states, 1.5)


@pytest.mark.parametrize("kind", ["plain", "causal", "bias", "scaled"])
def test_attention_equals_torchs_where_nothing_happens_to_be_dropped(kind):
    torch.manual_seed(7)
    parts = [torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    how = {
        "plain": {},
        "causal": {"is_causal": True},
        "bias": {"attn_mask": torch.randn(1, 3, 5, 5, dtype=torch.float64)},
        "scaled": {"scale": 0.3},
    }[kind]
    expected = scaled_dot_product_attention(*parts, **how)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, parts, upstream)
    with QuickDropout():
        found = scaled_dot_product_attention(*parts, dropout_p=ALMOST_NONE, **how)
    gradients = torch.autograd.grad(found, parts, upstream)
    torch.testing.assert_close(found, expected * CHANCES / (CHANCES - 1))
    torch.testing.assert_close(gradients, tuple(g * CHANCES / (CHANCES - 1) for g in wanted))


def test_attention_drops_weights_and_keeps_their_expectation():
    torch.manual_seed(11)
    query, key = torch.randn(2, 1, 2, 6, 4)
    value = torch.eye(6).expand(1, 2, 6, 6)  # what comes out are the weights themselves
    weights = scaled_dot_product_attention(query, key, value)
    draws = []
    with QuickDropout():
        for _ in range(4000):
            draws.append(scaled_dot_product_attention(query, key, value, dropout_p=0.2))
    seen = torch.stack(draws)
    dropped = (seen == 0).float().mean(0)
    assert (dropped - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / 4000)
    spread = weights * math.sqrt(0.25 / 4000)  # of weight x noise, whose variance is p / (1 - p)
    assert ((seen.mean(0) - weights).abs() < 5 * spread + 1e-6).all()


def test_layers_that_are_run_again_in_the_backward_draw_the_same():
    layer = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    states = torch.randn(8, 16)
    again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), QuickDropout())}
    gradients = []
    for run in (layer, lambda x: torch.utils.checkpoint.checkpoint(layer, x, **again)):
        torch.manual_seed(2)
        layer.zero_grad()
        with QuickDropout():
            run(states).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
