"""Floor 1: the layers of a body: a checkpoint without its upper ones, and what each of them says of a text.

State k of a text is the mean, over its real tokens, of what the checkpoint puts out that keeps its k lowest layers: 0
is the embeddings, the last state is the whole body. A norm that stands after the last layer (GPT-2, Llama, ModernBERT)
stands after the last layer that is kept, so every state goes through it. A probe on state k is thus a stock checkpoint
of k layers, mean pooling and one linear layer, which is how it is saved.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.batching import sorted_batches
from hf_transfer.errors import InputError
from hf_transfer.on_device import Room
from hf_transfer.records import Batch

HEAD_NAME, SETTINGS_NAME = "layer_probe.safetensors", "layer_probe.json"
"""Files of a probe beside the checkpoint of its body."""
SETTINGS_SCHEMA = "hf-transfer/layer-probe/1"
WAYS = ("mean", "all")
"""How several states become one vector: their mean, or all side by side; a number reads one state alone."""
TOLERANCE = 1e-5
"""Largest difference at which the output of a norm and that of the body count as the same."""


# ---- dropping layers -------------------------------------------------------------------------------------------


def layer_stacks(body: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Outermost module lists of equal layers, encoder before decoder as they are registered."""
    found: list[str] = []
    for name, module in body.named_modules():
        if any(name.startswith(outer + ".") for outer in found) or not isinstance(module, nn.ModuleList):
            continue
        kinds = {type(layer) for layer in module}
        if len(kinds) == 1 and any(True for _ in module.parameters()):
            found.append(name)
            yield name, module


def depth_of(config: Any) -> int:
    """How many layers a text goes through, as the config states it; 0 where it does not."""
    return int(getattr(config, "num_hidden_layers", 0) or 0)


_BY_LAYER = ("attention_window",)
"""Lists with an entry for each layer whose names do not say so: Longformer's."""


def cut_values(config: Any, kept: int) -> dict[str, Any]:
    """Config values of the checkpoint that keeps its ``kept`` lowest layers: their number, under the name that every
    stock config answers to, and lists with an entry for each layer (ModernBERT's ``layer_types``) that much shorter."""
    depth = depth_of(config)
    lists = {
        name: list(value)[:kept]
        for name, value in config.to_dict().items()
        if ("layer" in name or name in _BY_LAYER) and isinstance(value, list | tuple) and len(value) == depth
    }
    return {"num_hidden_layers": kept, **lists}


def cut_config(config: Any, kept: int) -> None:
    """Let ``config`` speak of the ``kept`` lowest layers."""
    for name, value in cut_values(config, kept).items():
        setattr(config, name, value)


def check_layers(
    name: str,
    config: Any,
    flag: str,
    wanted: int | None = None,
    *,
    may_share: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """The layers of the checkpoint ``name``, once it is clear that the upper ones of them can be dropped.

    The module tree is built without memory for weights, so that a refusal comes before any is loaded.

    Args:
        flag: what to complain about, ``--model.layers 9`` say.
        wanted: the layers that are to be kept; None where that is still to be chosen.
        may_share: layers that share their weights (ALBERT) are welcome.

    Raises:
        InputError: encoder-decoders, shared layers, layers that are not found as one stack, or more layers than there
            are.
    """
    kind, depth = config.model_type, depth_of(config)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{flag}: {name} ({kind}) is an encoder-decoder, whose two stacks no single number cuts: leave it out, or "
            "take a checkpoint with one stack (BERT, DeBERTa, ModernBERT, GPT-2, Llama ...)."
        )
    stacks = [stack for _, stack in layer_stacks(_empty(config, trust_remote_code))]
    shared = len(stacks) == 1 and len(stacks[0]) == 1 < depth
    if shared and not may_share:
        raise InputError(
            f"{flag}: the {depth} layers of {name} ({kind}) share their weights, so that dropping some makes nothing "
            "smaller: leave it out."
        )
    if not shared and [len(stack) for stack in stacks] != [depth]:
        raise InputError(
            f"{flag}: {name} ({kind}) states {depth} layers and has stacks of {[len(stack) for stack in stacks]}: its "
            "upper layers cannot be told from the rest. Leave it out."
        )
    if wanted is not None and wanted > depth:
        raise InputError(f"{flag}: {name} has {depth} layers: give a number up to {depth}, or auto.")
    return depth


def _empty(config: Any, trust_remote_code: bool) -> Any:
    """A body of ``config`` without memory for its weights."""
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def cut_body(body: Any, kept: int) -> None:
    """Drop all but the ``kept`` lowest layers of an opened ``body``, in place."""
    ((_, stack),) = layer_stacks(body)
    if len(stack) == depth_of(body.config):  # shared layers are run through as often as the config says
        del stack[kept:]
    cut_config(body.config, kept)


# ---- states ----------------------------------------------------------------------------------------------------


def mean_over_tokens(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """[batch, width] in fp32 from ``states`` [batch, length, width] and ``attention_mask`` [batch, length]."""
    real = attention_mask[:, :, None].float()
    return (states.float() * real).sum(1) / real.sum(1)


@dataclass(frozen=True)
class StateReader:
    """Reads the pooled states of a body, which stays as it is."""

    body: Any
    final_norm: str
    """Name of the module that stands after the last layer; "" where none does."""

    def read(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """State 0 to the last one, [batch, width] each, in one pass; pooled on the way, so that no more than one layer
        is in memory at a time."""
        mask = inputs["attention_mask"]
        norm = self.body.get_submodule(self.final_norm) if self.final_norm else nn.Identity()
        pooled: list[torch.Tensor] = []

        def keep(states: torch.Tensor) -> None:
            assert states.shape[:2] == mask.shape, f"states {tuple(states.shape)} of tokens {tuple(mask.shape)}"
            pooled.append(mean_over_tokens(norm(states), mask))

        with _watched(self.body, keep):
            self.body(**inputs)
        return pooled


@contextmanager
def _watched(body: nn.Module, keep: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Hand what enters each layer, and what the last one puts out, to ``keep``; a shared layer is each of them in turn.

    What enters a layer and not what the one below puts out: DeBERTa has a convolution in between.
    """
    ((_, stack),) = layer_stacks(body)
    last: list[torch.Tensor] = []

    def on_entry(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        last.clear()
        keep(arguments[0] if arguments else named["hidden_states"])

    def on_exit(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        last[:] = [output if isinstance(output, torch.Tensor) else output[0]]

    handles = [layer.register_forward_pre_hook(on_entry, with_kwargs=True) for layer in stack]
    handles += [layer.register_forward_hook(on_exit) for layer in stack]
    try:
        yield
        keep(last[0])
    finally:
        for handle in handles:
            handle.remove()


def make_reader(body: Any) -> StateReader:
    """What reads the states of ``body``, once it is known what stands between its last layer and its output.

    That is found by computing: the module outside the layers that takes in what the last one puts out, and puts out
    what the body does.

    Raises:
        InputError: something else than one module stands there.
    """
    ((stack_name, _),) = layer_stacks(body)
    passed: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if arguments and isinstance(arguments[0], torch.Tensor) and isinstance(output, torch.Tensor):
                passed.append((name, arguments[0], output))

        return hook

    states: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(watch(name))
        for name, module in body.named_modules()
        if name and not name.startswith(stack_name + ".")
    ]
    device = next(body.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % body.get_input_embeddings().num_embeddings
    was_training = body.training
    body.eval()
    try:
        with torch.no_grad(), _watched(body, states.append):
            put_out = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
        body.train(was_training)
    if _same(states[-1], put_out):
        return StateReader(body, "")
    for name, given, output in passed:
        if _same(given, states[-1]) and _same(output, put_out):
            return StateReader(body, name)
    raise InputError(
        f"--adapt.probe_layers and --model.layers auto cannot read the states of {body.config.model_type}: more than a "
        "norm stands between its last layer and its output. Leave them out."
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, TOLERANCE, TOLERANCE)


def pooled_states(
    reader: StateReader,
    rows: Any,
    make_batch: Callable[[Mapping[str, Sequence[Any]]], Batch],
    tokens_per_batch: int,
    over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda states: states,
    process: int = 0,
    processes: int = 1,
) -> np.ndarray:
    """States [states, rows, width] in fp32 of encoded ``rows``, in their order, in one pass by batches of like length.

    Each process computes its part; ``over_processes`` adds up what all of them have, zeros where another one works.
    """
    lengths = np.asarray(rows["length"])
    batches = sorted_batches(lengths, tokens_per_batch, evenly=True)
    device = next(reader.body.parameters()).device
    reader.body.eval()
    width = reader.body.config.hidden_size
    states = torch.zeros(depth_of(reader.body.config) + 1, len(rows), width)

    def forward(chosen: np.ndarray) -> None:
        inputs = {name: tensor.to(device) for name, tensor in make_batch(rows[chosen]).inputs.items()}
        states[:, torch.from_numpy(chosen)] = torch.stack(reader.read(inputs)).cpu()

    room = Room()
    with torch.no_grad():
        for chosen in batches[process::processes]:
            room.run(forward, chosen, int(lengths[chosen[0]]))
    return over_processes(states).numpy()


def features_of(states: np.ndarray, layers: str) -> np.ndarray:
    """[rows, features] of ``states`` [states, rows, width]: state K, the mean of all, or all side by side."""
    if layers == "mean":
        return states.mean(0)
    if layers == "all":
        return np.concatenate(list(states), axis=1)
    return states[int(layers)]


def least_depth(layers: str) -> int:
    """Layers that a body must have for state ``layers`` to be read: one at least, since DeBERTa and ModernBERT cannot
    do without any."""
    return max(1, int(layers))


# ---- the probe -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeOutput:
    """What a probe puts out."""

    logits: torch.Tensor
    """[batch, outputs]."""


class LayerProbe(nn.Module):
    """A linear head on the pooled states of a body.

    It gets its head from ``settle``; before that it has nothing to say (zeros) and runs no body to say it.
    """

    def __init__(self, body: Any, outputs: int):
        super().__init__()
        self.body = body
        self.outputs = outputs
        self.layers = ""
        """``mean``, ``all`` or the number of the state that is read; "" before it is settled."""
        self.final_norm = ""
        self.head: nn.Linear | None = None

    @property
    def config(self) -> Any:
        """The body's."""
        return self.body.config

    def settle(self, layers: str, final_norm: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Take a head, [outputs, features] and [outputs]; where it reads one state, the layers above it are dropped."""
        if layers not in WAYS and least_depth(layers) < depth_of(self.body.config):
            cut_body(self.body, least_depth(layers))
        self.layers, self.final_norm = layers, final_norm
        head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        self.head = head.to(next(self.body.parameters()).device)

    def forward(self, **inputs: torch.Tensor) -> ProbeOutput:
        """Logits of a batch: ``input_ids``, ``attention_mask`` and what else the body takes, [batch, length] each."""
        if self.head is None:
            given = inputs["input_ids"]
            return ProbeOutput(torch.zeros(len(given), self.outputs, device=given.device))
        if self.layers not in (*WAYS, "0"):
            features = mean_over_tokens(self.body(**inputs).last_hidden_state, inputs["attention_mask"])
            return ProbeOutput(self.head(features))
        states = StateReader(self.body, self.final_norm).read(inputs)
        if self.layers == "0":
            return ProbeOutput(self.head(states[0]))
        return ProbeOutput(self.head(torch.stack(states).mean(0) if self.layers == "mean" else torch.cat(states, -1)))

    def save_pretrained(self, folder: Path) -> None:
        """The body as a stock checkpoint, the head and what it reads beside it."""
        from safetensors.torch import save_file

        assert self.head is not None, "a probe without a head is not worth saving"
        self.body.save_pretrained(folder)
        save_file(
            {"weight": self.head.weight.detach().contiguous(), "bias": self.head.bias.detach().contiguous()},
            folder / HEAD_NAME,
        )
        names = self.config.id2label
        settings = {
            "schema": SETTINGS_SCHEMA,
            "pooling": "mean over tokens",
            "layers": self.layers,
            "final_norm": self.final_norm,
            "labels": [names[i] for i in range(self.outputs)],
        }
        (folder / SETTINGS_NAME).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def open_probe(folder: Path, body: Any) -> LayerProbe:
    """The probe that ``LayerProbe.save_pretrained`` left in ``folder``, on its ``body`` as transformers opened it.

    Raises:
        InputError: head or settings are missing or damaged, or do not belong to the body.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / SETTINGS_NAME).read_text(encoding="utf-8"))
        head = load_file(folder / HEAD_NAME)
        layers, states = settings["layers"], depth_of(body.config) + 1
        width = body.config.hidden_size * (states if layers == "all" else 1)
        if settings["schema"] != SETTINGS_SCHEMA or head["weight"].shape != (len(settings["labels"]), width):
            raise ValueError(f"a head of {tuple(head['weight'].shape)} on {states} states, schema {settings['schema']}")
        if layers not in WAYS and least_depth(layers) != states - 1:
            raise ValueError(f"it reads state {layers} and the body ends with state {states - 1}")
        probe = LayerProbe(body, len(settings["labels"]))
        probe.settle(layers, settings["final_norm"], head["weight"], head["bias"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{folder} is not a whole layer probe ({error}): save the artefact again.") from None
    return probe
