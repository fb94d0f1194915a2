"""Floor 2: parameter groups and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_transfer.adapt.base import Adapted, Stage
from hf_transfer.config import TrainConfig


def parameter_groups(adapted: Adapted, stage: Stage, train: TrainConfig) -> list[dict]:
    """Groups of the optimizer: ``head``, ``rest``, ``layer K`` ..., ``embeddings``, each with and without decay.

    Each group has ``peak_lr``. Layer-wise decay multiplies the body's rate by ``layer_decay`` for each layer below
    the top, and once more for the embeddings. Vectors (biases and norms) are never decayed.
    """
    strategy = adapted.strategy
    if stage.as_probe and strategy != "probe":
        # a head trained first learns at the probe's rate: ``learning_rate`` is then the body's, which comes after
        strategy, train = "probe", replace(train, learning_rate=None)
    body_rate, head_rate = train.body_learning_rate(strategy), train.head_rate(strategy)
    parts = adapted.parts
    depth = len(parts.layers)
    course = [("head", parts.head, head_rate), ("rest", parts.rest, body_rate)]
    for i in reversed(range(depth)):
        course.append((f"layer {i}", parts.layers[i], body_rate * train.layer_decay ** (depth - 1 - i)))
    course.append(("embeddings", parts.embeddings, body_rate * train.layer_decay**depth))

    trained = {id(p): p for p in stage.trainable}
    groups = []
    for name, parameters, rate in course:
        mine = [trained.pop(id(p)) for p in parameters if id(p) in trained]
        groups += _with_and_without_decay(name, mine, rate, train.weight_decay)
    # what a strategy added outside the layers (an adapter on a pooler, say) learns at the body's rate
    groups += _with_and_without_decay("added", list(trained.values()), body_rate, train.weight_decay)
    return groups


def build_optimizer(groups: list[dict], train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with bias correction (Loshchilov and Hutter 2019; Mosbach 2021 on why the correction matters)."""
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(train.adam_beta1, train.adam_beta2), eps=train.adam_epsilon, weight_decay=0.0, fused=True
    )


def rate_factor(step: int, total_steps: int, warmup_fraction: float, schedule: str) -> float:
    """Share of the peak rate at ``step`` (counted from 0) of ``total_steps``.

    Rises over ceil(warmup_fraction x total) steps, reaching 1 with the last of them, then falls so that the step
    after the last would have 0.
    """
    warmup = math.ceil(round(warmup_fraction * total_steps, 6))  # 0.07 x 100 is 7.000000000000001 in floats
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` of its peak; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
    return max(group["lr"] for group in optimizer.param_groups)


def pull_to_start(
    optimizer: torch.optim.Optimizer, start: Mapping[nn.Parameter, torch.Tensor], strength: float
) -> RemovableHandle:
    """Let each step of ``optimizer`` end with theta <- theta - rate * strength * (theta - start).

    L2-SP (Li et al. 2018, equation 2), which pulls towards the pretrained values where weight decay pulls to zero;
    outside the gradient, as AdamW's decay is (Loshchilov and Hutter 2019), so that Adam does not rescale it. ``rate``
    is that of the parameter's own group at that step. A step that a gradient scaler skips does not pull.

    Args:
        optimizer: Torch's, or accelerate's around it.
        start: A parameter's value before training, on any device; parameters without one (a new head's) are not pulled.
        strength: lambda; the share of the distance that a step takes off is rate * lambda.

    Returns:
        A handle whose ``remove()`` ends the pull.
    """
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    at_hand = {p: value.detach().to(device=p.device, dtype=p.dtype) for p, value in start.items()}

    @torch.no_grad()
    def pull(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(stepped, "found_inf", None)
        if found_inf is not None and float(found_inf):
            return  # a fused optimizer is called even so, and skips the step itself
        for group in stepped.param_groups:
            pulled = [p for p in group["params"] if p.grad is not None and p in at_hand]
            if pulled:
                values = [at_hand[p] for p in pulled]
                torch._foreach_lerp_(pulled, values, float(group["lr"]) * strength)

    return inner.register_step_post_hook(pull)


def _with_and_without_decay(name: str, parameters: list[nn.Parameter], rate: float, decay: float) -> list[dict]:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = []
    if matrices:
        groups.append({"name": name, "params": matrices, "peak_lr": rate, "weight_decay": decay})
    if vectors:
        groups.append({"name": f"{name}, no decay", "params": vectors, "peak_lr": rate, "weight_decay": 0.0})
    return groups
