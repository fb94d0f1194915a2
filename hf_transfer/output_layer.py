"""Floor 1: what a sequence-to-sequence model's output layer reads, in place of its logits, while it learns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from hf_transfer.errors import InputError

SKIPS = "_skips_output_layer"


def skip_output_layer(model: nn.Module) -> Callable[[], None]:
    """Let ``model`` (or the model inside PEFT's or DDP's wrapper) leave its output layer out while gradients are taken.

    From then on, where gradients are enabled, ``forward`` returns in ``logits`` what the output layer would read:
    [batch, target length, width], scaled as the model scales it (T5). Logits are then a loss's business (see
    ``hf_transfer.cross_entropy``). Under ``torch.no_grad`` the model answers as ever, so that ``generate`` and scoring
    see logits. Modules and parameters stay as they are: saving, copying and wrapping see no difference.

    To be called before accelerate prepares the model; installing it twice is the same as once.

    Returns:
        A function that takes it back.
    """
    inner = generator_inside(model)
    if not hasattr(inner, SKIPS):
        # of the instance and not a hook: what a hook returns cannot keep final_logits_bias from being added
        kind: Any = type(inner)
        inner.forward = MethodType(_forward_of(kind), inner)
    setattr(inner, SKIPS, True)

    def undo() -> None:
        setattr(inner, SKIPS, False)

    return undo


def output_layer(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [vocabulary, width] and bias [vocabulary] of the output layer as they are now; None where it has no bias.

    The bias is that of the layer itself and the buffer ``final_logits_bias`` of Marian, BART and mBART together.

    Raises:
        InputError: the weight is sharded over processes.
    """
    inner = generator_inside(model)
    layer = inner.get_submodule(_name_of_layer(inner))
    parts = [bias for bias in (layer.bias, getattr(inner, "final_logits_bias", None)) if bias is not None]
    weight: Any = layer.weight
    if hasattr(weight, "device_mesh"):  # and FSDP2 refuses matrices that encoder, decoder and output layer share
        raise InputError("The output layer's weight is sharded over processes, and the loss needs it whole: use DDP.")
    if not parts:
        return weight, None
    return weight, functools.reduce(torch.add, [bias.reshape(-1).to(weight.device) for bias in parts])


def generator_inside(model: nn.Module) -> Any:
    """The model that has the output layer, without DDP's and PEFT's wrappers."""
    inner: Any = model
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _name_of_layer(inner: Any) -> str:
    layer = inner.get_output_embeddings()
    return next(name for name, child in inner.named_children() if child is layer)


@functools.cache
def _forward_of(kind: Any) -> Callable[..., Any]:
    """A ``forward`` for models of the class ``kind`` that leaves the output layer out where asked to."""
    call: Callable[..., Any] = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and getattr(self, SKIPS)):
            return call(self, *args, **kwargs)
        assert kwargs.get("labels") is None, "a model whose output layer is left out cannot compute its own loss"
        name = _name_of_layer(self)
        layer = self._modules[name]
        bias = self._buffers.get("final_logits_bias")
        self._modules[name] = nn.Identity()
        if bias is not None:
            self._buffers["final_logits_bias"] = bias.new_zeros(1)  # the model adds it to whatever comes out
        try:
            return call(self, *args, **kwargs)
        finally:
            self._modules[name] = layer
            if bias is not None:
                self._buffers["final_logits_bias"] = bias

    # generate reads the signature; functools.wraps would also leave __wrapped__, which accelerate follows down past
    # this function when it takes its autocast off
    forward.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    return forward
