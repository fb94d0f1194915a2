"""Partial freeze: the lower part of the body stays as it is, the upper part and the head learn."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from torch import nn

from hf_transfer.adapt.base import (
    Adapted,
    Parts,
    SampleInputs,
    Stage,
    find_parts,
    headless,
    is_generative,
    make_adapted,
    no_sample,
    with_head_first,
)
from hf_transfer.config import FREEZABLE_PARTS, AdaptConfig
from hf_transfer.errors import InputError
from hf_transfer.records import Pretrained

CROSS_ATTENTION = re.compile(r"encoder_attn\w*|(ln_)?cross_?att\w*|EncDecAttention", re.IGNORECASE)
"""Names of the attention on the encoder in decoder layers and of the norm beside it (BART's family, GPT-2's, T5's)."""


def apply_freeze(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Freeze what ``adapt.freeze`` says; frozen parts run in eval mode.

    With ``gradual_unfreezing`` (Howard and Ruder 2018, section 3.3) the first epoch trains the head, and each further
    epoch thaws one more layer from the top, until everything that is not frozen for good takes part.

    Raises:
        InputError: layers or parts that the checkpoint does not have, a pattern that freezes nothing, nothing left to
            train, or gradual unfreezing from a head that is not there.
    """
    parts = find_parts(pretrained)
    if adapt.gradual_unfreezing and not parts.head:
        raise InputError(headless("gradual_unfreezing"))
    frozen = {id(p) for p in frozen_parameters(pretrained.model, parts, adapt.freeze)}
    trained = tuple(p for p in (*parts.body, *parts.head) if id(p) not in frozen)
    if not trained:
        the_head = ", the head too" if parts.head else ""
        raise InputError(f"--adapt.freeze {adapt.freeze} freezes everything{the_head}: freeze less.")
    if (adapt.gradual_unfreezing or adapt.head_first) and any(id(p) in frozen for p in parts.head):
        raise InputError(
            f"--adapt.freeze {adapt.freeze} freezes the head or part of it, but --adapt.head_first and "
            "--adapt.gradual_unfreezing begin by training it: freeze less, or leave those out."
        )
    stages: tuple[Stage, ...] = (Stage("freeze", trained),)
    if adapt.gradual_unfreezing:
        stages = gradual_stages(parts, frozen)
    if adapt.head_first:
        stages = with_head_first(stages, parts, adapt.head_first_epochs)
    return make_adapted(pretrained.model, "freeze", parts, stages, freezes_modules=True)


def frozen_parameters(model: nn.Module, parts: Parts, spec: str) -> list[nn.Parameter]:
    """The parameters that ``spec`` (a form of ``adapt.freeze``) names."""
    depth = len(parts.layers)
    names = [piece.partition(":")[0] for piece in spec.split("+")]
    if all(name in FREEZABLE_PARTS for name in names):
        named_parts = {id(p): p for name in names for p in part_parameters(model, parts, name)}
        if not spec.endswith(":trainable"):
            return list(named_parts.values())
        return [p for p in parts.body if id(p) not in named_parts]  # a new head learns in any case
    if spec.startswith("regex:"):
        pattern = spec.removeprefix("regex:")
        named = [p for name, p in model.named_parameters() if re.search(pattern, name)]
        if not named:
            example = next(name for name, _ in model.named_parameters())
            raise InputError(f"--adapt.freeze {spec} matches no parameter; their names look like {example}.")
        return named
    if spec.startswith("fraction:"):
        share = float(spec.removeprefix("fraction:"))
        count = math.floor(share * depth + 0.5)
        return list(parts.embeddings) if share and not count else _bottom(parts, count, spec)
    if spec.isdigit():
        return _bottom(parts, int(spec), spec)
    chosen = layer_list(spec)
    if max(chosen) >= depth:
        raise InputError(f"--adapt.freeze {spec}: the checkpoint has layers 0 to {depth - 1}.")
    return [p for i in chosen for p in parts.layers[i]]


def part_parameters(model: Any, parts: Parts, name: str) -> list[nn.Parameter]:
    """Parameters of a part of the body as ``adapt.freeze`` names it (much as Thompson et al. 2018 divide a model).

    ``embeddings`` are the tables of pieces and positions, and the output layer of a model that writes, tied or not.
    Tables that encoder and decoder share belong to ``embeddings`` alone: freezing ``encoder`` or ``decoder`` leaves
    them learning. ``decoder`` includes its ``cross_attention``: the attention on the encoder in each layer, with the
    norm of that sublayer. Of a classifier, ``encoder`` is everything but the decoder, tables too, so that a frozen
    encoder gives the same states throughout.

    Raises:
        InputError: the model has no such part.
    """
    depth = len(parts.layers)
    writes = is_generative(model)
    tables = list(parts.embeddings)
    if writes:
        tables += [p for p in model.get_output_embeddings().parameters() if id(p) not in set(map(id, tables))]
    if name == "embeddings":
        return tables
    if name == "encoder" and parts.encoder_depth == depth:  # no decoder: the whole body encodes
        return list(parts.body)
    apart = {id(p) for p in parts.head} | ({id(p) for p in tables} if writes else set())
    named = [(inner, p) for inner, p in model.named_parameters() if id(p) not in apart]
    in_decoder = [p for inner, p in named if parts.encoder_depth < depth and "decoder" in inner.split(".")]
    if name == "encoder":
        outside = {id(p) for p in in_decoder}
        return [p for _, p in named if id(p) not in outside]
    found = in_decoder if name == "decoder" else _cross_attention(model)
    if not found:
        what = name.replace("_", "-")
        raise InputError(f"--adapt.freeze {name}: the checkpoint is no encoder-decoder and has no {what}.")
    return found


def _cross_attention(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the attention on the encoder and its norm."""
    found: list[nn.Parameter] = []
    for name, module in model.named_modules():
        owner, _, last = name.rpartition(".")
        if CROSS_ATTENTION.fullmatch(last):
            # T5 has a module for the whole sublayer, norm included; the others keep both in the layer, by like names
            found += (model.get_submodule(owner) if last == "EncDecAttention" else module).parameters()
    return found


def layer_list(spec: str) -> list[int]:
    """``0-3,5`` as [0, 1, 2, 3, 5]."""
    chosen: list[int] = []
    for piece in spec.split(","):
        first, _, last = piece.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return sorted(set(chosen))


def gradual_stages(parts: Parts, frozen: set[int]) -> tuple[Stage, ...]:
    """One epoch per newly thawed layer, head first; the last stage, with all of them, has the remaining epochs.

    The rest of the body (poolers, final norms) thaws with the top layer, the embeddings with the lowest.
    """

    def thawed(parameters: tuple[nn.Parameter, ...]) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in parameters if id(p) not in frozen)

    top_down = [layer for layer in map(thawed, reversed(parts.layers)) if layer] or [()]
    top_down[0] = (*top_down[0], *thawed(parts.rest))
    top_down[-1] = (*thawed(parts.embeddings), *top_down[-1])
    trained = thawed(parts.head)
    stages = [Stage("thaw 0", trained, epochs=1.0)]
    for i, layer in enumerate([layer for layer in top_down if layer], start=1):
        trained = (*layer, *trained)
        stages.append(Stage(f"thaw {i}", trained, epochs=1.0))
    return (*stages[:-1], replace(stages[-1], epochs=None))


def _bottom(parts: Parts, count: int, spec: str) -> list[nn.Parameter]:
    """Embeddings and the ``count`` lowest layers; nothing at all for 0."""
    if count > len(parts.layers):
        raise InputError(f"--adapt.freeze {spec}: the checkpoint has only {len(parts.layers)} layers.")
    if count == 0:
        return []
    return [*parts.embeddings, *(p for layer in parts.layers[:count] for p in layer)]
