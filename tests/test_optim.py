"""The learning rate's course, the optimizer's groups, and its arithmetic."""

import itertools
import math

import pytest
import torch
import transformers
from test_adapt import copy_of
from tiny import ARCHITECTURES, make_checkpoint
from torch import nn

from hf_transfer.adapt import apply_strategy
from hf_transfer.config import AdaptConfig, TrainConfig
from hf_transfer.optim import build_optimizer, parameter_groups, pull_to_start, rate_factor, set_rate

FRACTIONS = [0.0, 0.06, 0.1, 0.5, 0.99]


def test_the_rate_follows_a_table_worked_out_by_hand():
    # 10 steps, 2 of warm-up, then 8 steps down a line that would reach 0 at step 10
    wanted = [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [rate_factor(step, 10, 0.2, "linear") for step in range(10)] == pytest.approx(wanted, abs=1e-15)
    assert [rate_factor(step, 10, 0.2, "constant") for step in range(10)] == [1 / 2, *[1.0] * 9]
    # a half cosine over 4 steps: 1, (1 + cos 45)/2, 1/2, (1 - cos 45)/2
    half_root = math.sqrt(0.5) / 2
    wanted = [1, 0.5 + half_root, 0.5, 0.5 - half_root]
    assert [rate_factor(step, 4, 0.0, "cosine") for step in range(4)] == pytest.approx(wanted, abs=1e-15)
    assert rate_factor(0, 1, 0.1, "linear") == 1.0


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("linear", transformers.get_linear_schedule_with_warmup),
        ("cosine", transformers.get_cosine_schedule_with_warmup),
    ],
)
def test_after_warm_up_the_rate_falls_as_in_transformers(schedule, reference):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer, num_warmup_steps=4, num_training_steps=40)
    for step in range(40):
        if step >= 4:
            assert rate_factor(step, 40, 0.1, schedule) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_fraction", FRACTIONS)
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_the_rate_rises_to_its_peak_and_never_rises_again(schedule, warmup_fraction, total):
    factors = [rate_factor(step, total, warmup_fraction, schedule) for step in range(total)]
    assert max(factors) == 1.0
    assert min(factors) > 0.0
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    steps = [b - a for a, b in itertools.pairwise(factors[: peak + 1])]
    assert steps == pytest.approx([steps[0]] * len(steps) if steps else [], abs=1e-12), "warm-up is a line"


def test_the_length_of_warm_up_is_not_rounded_up_by_floating_point():
    """0.07 x 100 is 7.000000000000001 in floats; exact rational arithmetic is the reference."""
    for percent in range(0, 100):
        for total in (10, 30, 100, 700):
            wanted = -(-percent * total // 100)
            factors = [rate_factor(step, total, percent / 100, "constant") for step in range(total)]
            assert sum(factor < 1.0 for factor in factors) == max(0, wanted - 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make_checkpoint(folder / name, name) for name in ARCHITECTURES}


def grouped(folder, train=None, **adapt):
    adapted = apply_strategy(copy_of(folder), AdaptConfig(**adapt))
    return adapted, parameter_groups(adapted, adapted.stages[-1], train or TrainConfig())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", ["full", "freeze", "lora", "probe"])
def test_every_trainable_parameter_is_in_one_group_and_no_vector_decays(folders, architecture, strategy):
    adapted, groups = grouped(folders[architecture], strategy=strategy)
    in_groups = [id(p) for group in groups for p in group["params"]]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(p) for p in adapted.model.parameters() if p.requires_grad}
    for group in groups:
        assert group["weight_decay"] == (0.01 if "no decay" not in group["name"] else 0.0)
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_layer_decay_multiplies_the_rate_for_each_layer_below_the_top(tmp_path):
    folder = make_checkpoint(tmp_path, num_hidden_layers=4)
    train = TrainConfig(learning_rate=1e-3, layer_decay=0.5)
    adapted, groups = grouped(folder, train, strategy="full")
    rate_of = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    wanted = {"classifier": 1e-2, "pooler": 1e-3, "embeddings": 0.0625e-3}
    wanted |= {f"layer.{i}.": rate for i, rate in enumerate((0.125e-3, 0.25e-3, 0.5e-3, 1e-3))}
    for name, parameter in adapted.model.named_parameters():
        (part,) = [part for part in wanted if part in name]
        assert rate_of[id(parameter)] == pytest.approx(wanted[part], rel=1e-12), name


def test_the_head_learns_at_its_own_rate(folders):
    def rates(train, **adapt):
        _, groups = grouped(folders["bert"], train, **adapt)
        return {group["name"].removesuffix(", no decay"): group["peak_lr"] for group in groups}

    assert rates(TrainConfig(), strategy="full")["head"] == pytest.approx(5e-4)
    assert rates(TrainConfig(), strategy="full")["layer 1"] == pytest.approx(5e-5)
    assert rates(TrainConfig(head_learning_rate=3e-3), strategy="full")["head"] == 3e-3
    assert set(rates(TrainConfig(), strategy="lora").values()) == {5e-4}
    assert rates(TrainConfig(learning_rate=7e-3), strategy="probe") == {"head": 7e-3}


@pytest.mark.parametrize("strategy", ["full", "freeze", "lora"])
def test_a_head_trained_first_learns_at_the_probes_rate_whatever_the_bodys(folders, strategy):
    adapted = apply_strategy(copy_of(folders["bert"]), AdaptConfig(strategy=strategy, head_first=True))

    def head_rate(**train):
        groups = parameter_groups(adapted, adapted.stages[0], TrainConfig(**train))
        (rate,) = {group["peak_lr"] for group in groups}
        return rate

    assert head_rate() == head_rate(learning_rate=2e-5) == 2e-3
    assert head_rate(learning_rate=2e-5, head_learning_rate=4e-3) == 4e-3


def test_the_rate_of_every_group_is_its_share_of_the_peak(folders):
    train = TrainConfig(learning_rate=1e-3, layer_decay=0.5)
    _, groups = grouped(folders["bert"], train, strategy="full")
    optimizer = build_optimizer(groups, train)
    assert set_rate(optimizer, 0.25) == pytest.approx(0.25e-2)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.25 * group["peak_lr"])


def test_an_update_is_bias_corrected_adamw():
    """Against the formulas of Loshchilov and Hutter 2019 (algorithm 2) in double precision, and torch's plain loop."""
    torch.manual_seed(0)
    train = TrainConfig(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.1)
    start, gradients = torch.randn(3, 4), torch.randn(5, 3, 4)
    parameter, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = build_optimizer([{"name": "x", "params": [parameter], "peak_lr": 0.03, "weight_decay": 0.1}], train)
    assert all(group["fused"] for group in ours.param_groups)
    reference = torch.optim.AdamW([plain], lr=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, fused=False)
    weight, first, second = start.double(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for step, gradient in enumerate(gradients, start=1):
        set_rate(ours, 1.0)
        parameter.grad, plain.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
        first = 0.8 * first + 0.2 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        corrected = (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-6)
        weight = weight - 0.03 * 0.1 * weight - 0.03 * corrected
        torch.testing.assert_close(parameter.detach(), plain.detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=0, atol=1e-6)
    assert (parameter.detach() - start).abs().max() > 0.05


def test_a_tied_weight_is_updated_once(folders):
    """T5 and BART use one matrix for encoder and decoder: two groups would step twice."""
    for name in ("t5", "bart"):
        adapted, groups = grouped(folders[name], strategy="full")
        shared = adapted.model.get_input_embeddings().weight
        assert sum(p is shared for group in groups for p in group["params"]) == 1


# the pull to the start


def two_groups(train):
    torch.manual_seed(0)
    pulled, new = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
    groups = [
        {"name": "rest", "params": [pulled], "peak_lr": 0.03, "weight_decay": 0.0},
        {"name": "head", "params": [new], "peak_lr": 0.3, "weight_decay": 0.0},
    ]
    return pulled, new, build_optimizer(groups, train)


def test_each_step_ends_with_a_pull_to_the_start_worked_out_by_hand():
    """theta' = theta_adam - rate * lambda * (theta_adam - theta_0), in double precision, with AdamW's own update."""
    train = TrainConfig(weight_decay=0.0)
    pulled, new, optimizer = two_groups(train)
    start, gradients = pulled.detach().clone(), torch.randn(5, 3, 4)
    pull_to_start(optimizer, {pulled: start}, strength=2.0)
    first, second, weight = torch.zeros(3, 4).double(), torch.zeros(3, 4).double(), start.double()
    for step, gradient in enumerate(gradients, start=1):
        rate = set_rate(optimizer, 1 / step) * 0.1  # the largest rate is the head's, ten times this one's
        pulled.grad, new.grad = gradient.clone(), torch.ones(4)
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        weight = weight - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + train.adam_epsilon)
        weight = weight - rate * 2.0 * (weight - start.double())
        torch.testing.assert_close(pulled.detach().double(), weight, rtol=0, atol=1e-6)
    assert (pulled.detach() - start).abs().max() > 0.02


def test_a_parameter_without_a_start_or_without_a_gradient_is_not_pulled():
    def after(strength, gradient):
        pulled, new, optimizer = two_groups(TrainConfig())
        if strength:
            pull_to_start(optimizer, {pulled: torch.zeros(3, 4)}, strength)
        set_rate(optimizer, 1.0)
        pulled.grad, new.grad = gradient, torch.ones(4)
        optimizer.step()
        return pulled.detach(), new.detach()

    gradient = torch.ones(3, 4)
    assert torch.equal(after(0.0, gradient)[1], after(5.0, gradient)[1])
    assert not torch.equal(after(0.0, gradient)[0], after(5.0, gradient)[0])
    assert torch.equal(after(0.0, None)[0], after(5.0, None)[0])


def test_the_pull_ends_when_its_handle_is_removed_and_the_start_is_not_changed():
    pulled, _, optimizer = two_groups(TrainConfig())
    start = torch.full((3, 4), 7.0)
    handle = pull_to_start(optimizer, {pulled: start}, 1.0)
    set_rate(optimizer, 1.0)
    pulled.grad = torch.zeros(3, 4)
    before = pulled.detach().clone()
    optimizer.step()
    torch.testing.assert_close(pulled.detach(), before + 0.03 * (start - before))
    assert torch.equal(start, torch.full((3, 4), 7.0))
    handle.remove()
    before = pulled.detach().clone()
    optimizer.step()
    assert torch.equal(pulled.detach(), before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_optimizer_that_accelerate_prepared_pulls_once_a_step(when):
    from accelerate import Accelerator

    model = nn.Linear(4, 3)
    start = {p: torch.zeros_like(p) for p in model.parameters()}
    optimizer = build_optimizer([{"name": "x", "params": list(model.parameters()), "peak_lr": 0.1}], TrainConfig())
    accelerator = Accelerator(cpu=True)
    if when == "before":
        pull_to_start(optimizer, start, 2.0)
    _, prepared = accelerator.prepare(model, optimizer)
    if when == "after":
        pull_to_start(prepared, start, 2.0)
    set_rate(prepared, 1.0)
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    prepared.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 2.0))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("overflows", [True, False])
def test_a_step_that_the_gradient_scaler_skips_does_not_pull(fused, overflows):
    """A fused optimizer is called even so; the scaler tells it of infinite gradients."""
    weight = nn.Parameter(torch.ones(3, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    pull_to_start(optimizer, {weight: torch.zeros(3, 4)}, 2.0)
    scaler.scale((weight * (torch.inf if overflows else 0.0)).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(weight.detach(), torch.full((3, 4), 1.0 if overflows else 0.8))
