"""What strategies share: the parts of a model from bottom to top, and what a strategy hands to the loop.

A transformer is seen as *embeddings*, a stack of *layers*, the *rest* of its body (poolers, final norms, an output
layer that is not tied to the embeddings) and the *head*, which a generative encoder-decoder does not have. Parts are
found from the module tree, not from names of known architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_transfer.errors import InputError
from hf_transfer.layers import layer_stacks
from hf_transfer.records import Pretrained, TrainableSummary

SampleInputs = Callable[[], Iterable[Mapping[str, torch.Tensor]]]
"""Makes inputs of some train examples, batch by batch, for what looks at data before it learns."""


def no_sample() -> Iterable[Mapping[str, torch.Tensor]]:
    """No inputs, where nothing is to look at them."""
    return ()


@dataclass(frozen=True)
class Parts:
    """The parameters of a model by part, as objects: names change when a strategy wraps modules, objects do not."""

    embeddings: tuple[nn.Parameter, ...]
    layers: tuple[tuple[nn.Parameter, ...], ...]
    """Bottom to top; of an encoder-decoder, the encoder's layers and then the decoder's."""
    layer_modules: tuple[nn.Module, ...]
    """The module of each layer."""
    encoder_depth: int
    """How many of ``layers`` are the encoder's: all, where there is no decoder."""
    rest: tuple[nn.Parameter, ...]
    head: tuple[nn.Parameter, ...]
    """Everything outside the body, and parameters of the body that the checkpoint did not hold; nothing, where the
    model writes: its output layer is part of what was pretrained."""

    @property
    def body(self) -> tuple[nn.Parameter, ...]:
        """All parameters but the head's, bottom to top."""
        return (*self.embeddings, *(p for layer in self.layers for p in layer), *self.rest)


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one set of trainable parameters."""

    name: str
    trainable: tuple[nn.Parameter, ...]
    epochs: float | None = None
    """None: what ``train`` asks for, less what other stages took of it."""
    own_schedule: bool = False
    """Warm up and decay within this stage alone; else the stages share one course of the learning rate."""
    as_probe: bool = False
    """Learn at the probe's rates."""


@dataclass(frozen=True)
class Adapted:
    """A model made ready by a strategy."""

    model: nn.Module
    strategy: str
    parts: Parts
    stages: tuple[Stage, ...]
    freezes_modules: bool
    """Frozen parts run in eval mode, so that what they compute is the same every time."""
    head_names: tuple[str, ...]
    summary: TrainableSummary
    initial_update: dict[str, torch.Tensor] = field(default_factory=dict)
    """LoRA's matrices before training, where their initialisation changed the base (PiSSA, OLoRA)."""

    def set_train_mode(self, model: nn.Module) -> None:
        """``model.train()``, with wholly frozen modules left in eval mode where the strategy freezes modules, and
        in any stage that trains the head alone; else what lies below the lowest layer that learns, if nothing does
        there: it is computed once and kept where that is possible, and is the same where it is not."""
        model.train()
        head = {id(p) for p in self.parts.head}
        whole = self.freezes_modules or all(id(p) in head for p in model.parameters() if p.requires_grad)
        above = set() if whole else {id(inner) for layer in self._learning_layers() for inner in layer.modules()}
        if whole or above:
            for module in _topmost_frozen(model):
                if id(module) not in above:
                    module.eval()

    def _learning_layers(self) -> tuple[nn.Module, ...]:
        """The layers of the encoder (or only stack) from the lowest that learns on, and all of a decoder; none where
        nothing is frozen below."""
        layers = self.parts.layer_modules
        learns = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
        lowest = min(learns.index(True), self.parts.encoder_depth) if any(learns) else 0
        is_frozen = lowest and not any(p.requires_grad for p in self.parts.embeddings)
        return layers[lowest:] if is_frozen else ()


def find_parts(pretrained: Pretrained) -> Parts:
    """Sort the parameters of ``pretrained.model`` into parts.

    Layers are the elements of the outermost module lists of the body whose elements are all of one class.
    Embeddings are parameters below a module whose name speaks of embeddings (or GPT-2's wte, wpe; T5's shared).
    A checkpoint without any layer list (ALBERT shares one layer) counts as having a single layer. An output layer that
    is tied to the embeddings is one of them; one of its own is the last of ``rest``, since it learns at the top's rate.
    What transformers does not save (Marian's sinusoidal positions) is in no part: no strategy may train it.
    """
    model = pretrained.model
    body = model.base_model
    writes = is_generative(model)
    scratch = len(pretrained.newly_initialised) == len(list(model.named_parameters()))
    new = set() if scratch else set(pretrained.newly_initialised)
    prefix = "" if body is model else model.base_model_prefix + "."
    named = dict(model.named_parameters())
    head = {id(p) for name, p in named.items() if not writes and (name in new or not name.startswith(prefix))}
    stacks = list(layer_stacks(body))
    modules = tuple(layer for _, stack in stacks for layer in stack)
    unsaved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    taken = head | {id(p) for name, p in named.items() if name in unsaved}
    layers = []
    for module in modules:
        layers.append(tuple(p for p in module.parameters() if id(p) not in taken))
        taken |= {id(p) for p in layers[-1]}
    embeddings = tuple(p for name, p in named.items() if id(p) not in taken and _is_embedding(name))
    taken |= {id(p) for p in embeddings}
    rest = tuple(p for p in named.values() if id(p) not in taken)
    encoder = [len(stack) for name, stack in stacks if "decoder" not in name.split(".")]
    return Parts(
        embeddings=embeddings,
        layers=tuple(layers),
        layer_modules=modules,
        encoder_depth=sum(encoder) or len(modules),
        rest=rest,
        head=tuple(p for p in named.values() if id(p) in head),
    )


def is_generative(model: Any) -> bool:
    """Whether it is an encoder-decoder that writes text: nothing about it is new to the task."""
    is_pair = getattr(model.config, "is_encoder_decoder", False)
    return bool(is_pair) and model.get_output_embeddings() is not None


def new_modules(pretrained: Pretrained) -> tuple[str, ...]:
    """Top-most modules all of whose parameters are newly initialised: what an adapter must save whole.

    From the loading info, never from module names: PEFT itself saves only ``classifier`` and ``score``, which loses
    the poolers and dense layers that DeBERTa, BART, T5, ALBERT and some BERT checkpoints put in front of them.
    """
    model = pretrained.model
    new = set(pretrained.newly_initialised)
    if len(new) == len(list(model.named_parameters())):  # random weights throughout: the head is what is new
        if is_generative(model):
            return ()
        prefix = model.base_model_prefix + "."
        new = {name for name in new if not name.startswith(prefix)}
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
        covered = any(name == top or name.startswith(top + ".") for top in found)
        if name and parameters and not covered and all(parameter in new for parameter in parameters):
            found.append(name)
    return tuple(found)


def make_adapted(
    model: nn.Module, strategy: str, parts: Parts, stages: tuple[Stage, ...], freezes_modules: bool
) -> Adapted:
    """Mark what any stage trains as trainable and sum it up.

    Raises:
        InputError: stages that train nothing, as a probe of a model without a head.
    """
    ever = {id(p) for stage in stages for p in stage.trainable}
    if stages and not ever:
        raise InputError(
            f"--adapt.strategy {strategy} trains a head, and this model has none: it writes with the output layer that "
            "it was pretrained with. Use full, lora or freeze (--adapt.freeze decoder:trainable, say)."
        )
    head = {id(p) for p in parts.head}
    named = dict(model.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in ever)
    names = tuple(name for name, p in named.items() if p.requires_grad)
    summary = TrainableSummary(
        trainable=sum(named[name].numel() for name in names),
        total=sum(p.numel() for p in named.values()),
        names=names,
    )
    head_names = tuple(name for name, p in named.items() if id(p) in head)
    return Adapted(model, strategy, parts, stages, freezes_modules, head_names, summary)


def with_head_first(stages: tuple[Stage, ...], parts: Parts, epochs: float) -> tuple[Stage, ...]:
    """LP-FT (Kumar 2022): a stage that trains the head alone, in front of ``stages``.

    Raises:
        InputError: the model has no head.
    """
    if not parts.head:
        raise InputError(headless("head_first"))
    return (Stage("head", parts.head, epochs=epochs, own_schedule=True, as_probe=True), *stages)


def headless(option: str) -> str:
    """What to say where ``option`` begins with a head that is not there."""
    return (
        f"--adapt.{option} begins by training a new head, and a model that writes has none: leave it out. To train "
        "part of the model, use --adapt.strategy freeze with --adapt.freeze cross_attention:trainable, say."
    )


def _is_embedding(name: str) -> bool:
    others = ("wte", "wpe", "shared", "relative_attention_bias")
    return any("embed" in part.lower() or part in others for part in name.split("."))


def _topmost_frozen(model: nn.Module) -> Iterator[nn.Module]:
    parameters = list(model.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        yield model
        return
    for child in model.children():
        yield from _topmost_frozen(child)
