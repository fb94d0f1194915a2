"""Floor 3: what is done to a model before it learns, and before each stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_transfer.adapt.base import Adapted, Stage
from hf_transfer.config import TrainConfig
from hf_transfer.dropout import quick_dropout
from hf_transfer.errors import RunError
from hf_transfer.on_device import send_batch
from hf_transfer.optim import build_optimizer, parameter_groups, pull_to_start
from hf_transfer.output_layer import generator_inside
from hf_transfer.records import Batch
from hf_transfer.step_log import ProgressBar
from hf_transfer.tasks.base import LossFunction

if TYPE_CHECKING:
    from accelerate import Accelerator


def drop_unused(adapted: Adapted, batch: Batch, loss_function: LossFunction, progress: ProgressBar) -> tuple[str, ...]:
    """Freeze parameters that the loss does not reach and return the names of those that learn.

    A pooler that the head ignores would make DDP wait for a gradient that never comes, and would be counted as
    trained. One small backward in eval mode finds them.

    Raises:
        RunError: the loss reaches no parameter at all.
    """
    model = adapted.model
    model.eval()
    sent = send_batch(batch, next(model.parameters()).device)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = loss_function(model(**sent.inputs), sent).loss_sum
    gradients = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    unused = [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]
    if len(unused) == len(learning):
        raise RunError(f"the loss reaches none of the {len(learning)} trainable parameters: nothing would be learnt.")
    for name in unused:
        learning[name].requires_grad_(False)
    if unused:
        progress.note(
            f"{len(unused)} parameters take no part in the output and stay as they are: {', '.join(unused[:4])}"
        )
    return tuple(name for name in learning if name not in set(unused))


def run_all_layers(model: nn.Module, progress: ProgressBar) -> None:
    """Turn LayerDrop off (M2M100 comes with it): processes that leave out different layers wait for each other's
    gradients in vain."""
    dropping = [module for module in model.modules() if getattr(module, "layerdrop", 0.0)]
    for module in dropping:
        module.layerdrop = 0.0  # type: ignore[assignment]
    if dropping:
        progress.note("layers are not left out at random (LayerDrop): processes must all run the same ones")


@contextmanager
def activation_checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Each layer computes its activations once more in the backward pass instead of keeping them (Chen 2016).

    Raises:
        RunError: the architecture does not offer it.
    """
    if not wanted:
        yield
        return
    inner = generator_inside(model)
    if not inner.supports_gradient_checkpointing:
        raise RunError(f"--train.activation_checkpointing: {inner.config.model_type} does not offer it; turn it off.")
    # the lowest transformers knows the older names only, of which the newest warns
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    device = next(inner.parameters()).device
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), quick_dropout(device))})
    # it asks for gradients at the embeddings, which only re-entrant checkpointing needs: the backward would go through
    # all frozen layers, and the states at none of them could be looked up
    inner.disable_input_require_grads()
    try:
        yield
    finally:
        (getattr(inner, "activation_checkpointing_disable", None) or inner.gradient_checkpointing_disable)()


def unwrap(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """``model`` as it was before accelerate prepared it, with its own ``forward``."""
    module = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    # accelerate would take a module that an earlier stage prepared for ready, and leave autocast out
    module.__dict__.pop("_is_accelerate_prepared", None)
    return module


def prepare_stage(
    adapted: Adapted,
    stage: Stage,
    names: Collection[str],
    settings: TrainConfig,
    start: Mapping[int, torch.Tensor],
    accelerator: Accelerator,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer of a stage, wrapped for the processes; ``names`` are those that learn in any stage.

    ``start``: the body's parameters before training by ``id``, where ``l2_sp`` pulls towards them.
    """
    module = unwrap(adapted.model, accelerator)  # an earlier stage may have wrapped it
    in_stage = {id(p) for p in stage.trainable}
    for name, p in module.named_parameters():
        p.requires_grad_(name in names and id(p) in in_stage)
    groups = [
        group | {"params": [p for p in group["params"] if p.requires_grad]}
        for group in parameter_groups(adapted, stage, settings)
    ]
    optimizer = build_optimizer([group for group in groups if group["params"]], settings)
    if start:
        known = {p: start[id(p)] for group in groups for p in group["params"] if id(p) in start}
        pull_to_start(optimizer, known, settings.l2_sp)
    model, optimizer = accelerator.prepare(module, optimizer)
    adapted.set_train_mode(accelerator.unwrap_model(model))
    return model, optimizer
