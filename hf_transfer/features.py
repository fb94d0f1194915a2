"""Floor 2: what the frozen bottom of a model computes, kept: one pass per example in place of one per epoch.

Plan. What lies below everything that learns is a fixed function of the token ids, once it runs in eval mode. So its
outputs are looked up (feature_store.py), and only examples that the store does not know go through it:

1. Nothing of the body learns (probe, the first stage of head_first): the store holds the outputs of the body, and of
   them only what the head reads.
2. The bottom k layers do not learn (freeze, lora on upper layers, gradual unfreezing): the store holds hidden states at
   layer k. The body runs with the layers above k alone, and the first of them is handed the stored states.
3. Of an encoder-decoder the same for its encoder: wholly frozen, its states are looked up.

The store takes the place of the ``forward`` of the body or encoder. So the loop, validation, decoding and scoring use
it without knowing, and so do other seeds, strategies and runs of a comparison that start from the same weights. How
deep the frozen part reaches is not known by name but seen: the deepest layer whose input needs no gradient. Before it
is used, logits with it must equal those without (``TOLERANCE``); a model where they do not is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hf_transfer.adapt.base import Adapted, Stage, is_generative
from hf_transfer.eval_mode import in_eval_mode
from hf_transfer.feature_store import MEMORY_BYTES, FeatureStore, Row
from hf_transfer.flattened import flattened
from hf_transfer.on_device import send
from hf_transfer.output_layer import generator_inside

Inputs = Mapping[str, torch.Tensor]
TOLERANCE = 1e-5
"""Largest difference of a logit between stored and computed states, relative to its size beyond 1."""


class StoredFeatures:
    """The frozen bottom of ``adapted.model``, answered for from a store from the first stage of training on; of a model
    that is not trained, at once."""

    def __init__(self, adapted: Adapted, body_key: str, store: FeatureStore, batch: Inputs) -> None:
        self._adapted, self._body_key, self._store, self._batch = adapted, body_key, store, batch
        self._trained: set[int] = set()
        self._undo = ExitStack()
        self._pass = ExitStack()
        """What hands stored states to the layers above, until the next pass: a layer that the backward runs again is
        handed them again."""
        self._keeps = True
        self.depth = ""
        """What is looked up, in words; "" where everything is computed."""
        self.layers = 0
        """Layers of the encoder, or of the only stack, that need not be computed again."""
        self._said: dict[str, list[int]] = {}
        """Examples computed and looked up, by depth."""
        self._unserved = ""
        """What kind of model has frozen layers that nothing could be looked up of."""
        if not adapted.stages:
            self._choose(())
            self.end()

    def begin(self, stage: Stage) -> None:
        """To be called when a stage of training begins: whatever learnt in an earlier one is no longer what was
        stored."""
        self._choose(stage.trainable)

    def end(self) -> None:
        """To be called when training has ended: what is looked at from here on is looked at once, unless several runs
        share the store."""
        self._keeps = self._store.for_several
        self._store.flush()

    def notes(self) -> tuple[str, ...]:
        """Sentences about what was looked up."""
        unserved = f"frozen layers are computed in each pass: what those of {self._unserved} need is not all stored."
        return (
            *(
                f"computed once and then looked up: {depth} ({computed:,} examples computed, {reused:,} looked up)."
                for depth, (computed, reused) in self._said.items()
                if reused
            ),
            *([unserved] if self._unserved else []),
        )

    def close(self) -> None:
        """Give the model its own ``forward`` back."""
        self._pass.close()
        self._undo.close()
        self.depth, self.layers = "", 0

    def _choose(self, trainable: Sequence[nn.Parameter]) -> None:
        new = {id(p) for p in trainable} - self._trained
        if self._trained and not new:
            return
        self._trained |= new
        self.close()
        model = self._adapted.model
        inner = generator_inside(model)
        if not hasattr(inner, "base_model"):  # a probe on layers has a store of its own
            return
        with in_eval_mode(model):
            device = next(model.parameters()).device
            inputs = {name: tensor.to(device) for name, tensor in self._batch.items()}
            with torch.no_grad():
                expected = model(**inputs).logits
            for way in _ways(self._adapted, self._trained, inputs):
                if not self._agrees(way, inputs, expected):
                    continue
                key = f"{self._body_key} {way.name}"
                self._install(way, key, self._store)
                self.depth = way.name
                self.layers = self._adapted.parts.encoder_depth if way.layers is None else way.depth
                return
        parts = self._adapted.parts
        lowest = (*parts.embeddings, *(p for layer in parts.layer_modules[:1] for p in layer.parameters()))
        if not any(id(p) in self._trained for p in lowest):
            self._unserved = inner.config.model_type

    def _agrees(self, way: _Way, inputs: Inputs, expected: torch.Tensor) -> bool:
        """Whether the model says the same with rows of a store of its own, computed and then looked up."""
        trial = FeatureStore(MEMORY_BYTES)
        self._install(way, "trial", trial)
        try:
            with torch.no_grad():
                found = [self._adapted.model(**inputs).logits for _ in range(2)]
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False  # a head that reads other outputs or positions, or layers that need those below
        finally:
            self.close()
        same = [f.shape == expected.shape and torch.allclose(f, expected, TOLERANCE, TOLERANCE) for f in found]
        return all(same) and trial.reused > 0

    def _install(self, way: _Way, key: str, store: FeatureStore) -> None:
        part: Any = way.part
        original = part.forward
        part.forward = self._forward(way, original, key, store)
        self._undo.callback(delattr, part, "forward")

    def _forward(self, way: _Way, original: Callable[..., Any], key: str, store: FeatureStore) -> Callable[..., Any]:
        """A ``forward`` of ``way.part`` that looks rows up."""
        model = self._adapted.model

        def forward(
            input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **others: Any
        ) -> Any:
            self._pass.close()
            if not _can_be_looked_up(way.part, input_ids, attention_mask, others):
                return original(input_ids=input_ids, attention_mask=attention_mask, **others)
            assert input_ids is not None and attention_mask is not None
            per_token = {n: t for n, t in others.items() if isinstance(t, torch.Tensor)}
            settings = {n: value for n, value in others.items() if n not in per_token}
            # all that is asked of the device while every row is known
            host = _on_host({"input_ids": input_ids, **per_token, "attention_mask": attention_mask})
            mask = host.pop("attention_mask")
            if bool((mask[:, 1:] > mask[:, :-1]).any()):  # padding before real tokens, or holes
                return original(input_ids=input_ids, attention_mask=attention_mask, **others)
            device = input_ids.device
            on_half = torch.is_autocast_enabled(device.type)
            kind = torch.get_autocast_dtype(device.type) if on_half else "as it is"
            lengths = mask.sum(1).tolist()
            keys = [(f"{key} {kind}", text) for text in _token_bytes(list(host.values()), lengths)]
            rows = [store.get(name) for name in keys]
            missing = [i for i, row in enumerate(rows) if row is None]
            if missing:
                longest = max(lengths[i] for i in missing)
                chosen = {name: t[missing, :longest] for name, t in (*host.items(), ("attention_mask", mask))}
                outputs = way.compute(model, original, chosen, settings, device)
                for place, i in enumerate(missing):
                    rows[i] = _cut(outputs, place, lengths[i], way.keep)
                    if self._keeps:
                        store.put(keys[i], rows[i])  # type: ignore[arg-type]
                store.settle()
            store.computed += len(missing)
            store.reused += len(keys) - len(missing)
            if store is self._store:
                counts = self._said.setdefault(way.name, [0, 0])
                counts[0] += len(missing)
                counts[1] += len(keys) - len(missing)
            found = _joined([row for row in rows if row is not None], input_ids.shape[1], way.keep, input_ids.device)
            if way.layers is None:
                return way.kind(**found)
            with way.above(found["last_hidden_state"], self._pass):
                return original(input_ids=input_ids, attention_mask=attention_mask, **others)

        return forward


@contextmanager
def stored_features(adapted: Adapted, body_key: str, store: FeatureStore, batch: Inputs) -> Iterator[StoredFeatures]:
    """Answer for the frozen bottom of ``adapted.model`` from ``store`` while the context lasts.

    Args:
        body_key: names the weights that the run starts from: rows are shared between models with equal keys.
        batch: inputs of a few examples of different lengths, on which the model is tried with and without the store.
    """
    features = StoredFeatures(adapted, body_key, store, batch)
    try:
        yield features
    finally:
        features.close()


@dataclass(frozen=True)
class _Layers:
    """A list of layers, and the module that goes through it."""

    owner: nn.Module
    name: str
    layers: nn.ModuleList


@dataclass(frozen=True)
class _Way:
    """What is looked up, and how it is computed where it is not known."""

    name: str
    part: nn.Module
    """The body or the encoder, whose ``forward`` is replaced."""
    keep: int
    """Positions of each sequence that are read, 0 for all."""
    kind: type
    """The record that ``part`` returns."""
    layers: _Layers | None = None
    """None: all of the part is looked up."""
    depth: int = 0
    """How many of ``layers`` are."""

    def compute(
        self, model: nn.Module, original: Callable[..., Any], host: Inputs, settings: Any, device: torch.device
    ) -> Row:
        """Outputs of the frozen part, on ``device``, for a batch; padded, without a gradient and in eval mode. They are
        on the host, as the batch is."""
        inputs = {name: send(tensor, device) for name, tensor in host.items()}
        with torch.no_grad(), in_eval_mode(self.part), ExitStack() as undo:
            rows = undo.enter_context(flattened(model, host["attention_mask"]))
            if self.layers is None:
                found = original(**inputs, **settings)
                outputs = {n: getattr(found, n, None) for n in ("last_hidden_state", "pooler_output")}
            else:
                outputs = {"last_hidden_state": self._states(original, inputs, settings, undo)}
            tensors = {n: t for n, t in outputs.items() if isinstance(t, torch.Tensor)}
            if rows is not None:  # the exit of the stack may be the part itself, which was not called as a module
                tensors = {n: rows.pad(t) if t.dim() == 3 and rows.is_flat(t) else t for n, t in tensors.items()}
            return {name: tensor.cpu() for name, tensor in tensors.items()}

    def _states(self, original: Callable[..., Any], inputs: Inputs, settings: Any, undo: ExitStack) -> torch.Tensor:
        """Hidden states at the input of layer ``depth``, or the output of the last; what comes after is not run."""
        assert self.layers is not None
        if self.depth < len(self.layers.layers):
            place: nn.Module = self.layers.layers[self.depth]
            hook = place.register_forward_pre_hook(_stop_before, with_kwargs=True)
        else:
            hook = self.layers.owner.register_forward_hook(_stop_after)
        undo.callback(hook.remove)
        try:
            original(**inputs, **settings)
        except _Reached as reached:
            return reached.states
        raise RuntimeError(f"the pass never came to layer {self.depth}")

    @contextmanager
    def above(self, states: torch.Tensor, until_next: ExitStack) -> Iterator[None]:
        """Run the layers above alone, from ``states`` [batch, length, d] on; until ``until_next`` is closed, the lowest
        of them takes these states whatever it is called with, as it is once more under activation checkpointing."""
        assert self.layers is not None
        owner: Any = self.layers.owner
        if self.depth == len(self.layers.layers):
            owner.forward = lambda *args, **kwargs: self.kind(last_hidden_state=states)
            try:
                yield
            finally:
                del owner.forward
            return
        upper = self.layers.layers[self.depth :]

        def hand_over(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

        # before the hooks of ``flattened``, which take padding out of what they are handed
        until_next.callback(upper[0].register_forward_pre_hook(hand_over, prepend=True, with_kwargs=True).remove)
        owner._modules[self.layers.name] = upper
        try:
            yield
        finally:
            owner._modules[self.layers.name] = self.layers.layers


class _Reached(Exception):
    """The states that a pass was made for."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


def _stop_before(module: nn.Module, args: Any, kwargs: Any) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])


def _stop_after(module: nn.Module, args: Any, output: Any) -> None:
    raise _Reached(output if isinstance(output, torch.Tensor) else output[0])


def _ways(adapted: Adapted, trained: set[int], inputs: Inputs) -> Iterator[_Way]:
    """What could be looked up while the parameters in ``trained`` (by ``id``) learn; the most first."""
    model = adapted.model
    inner = generator_inside(model)
    body: Any = inner.base_model
    if body is inner or any(id(p) in trained for p in adapted.parts.embeddings):
        return
    kinds = _kinds(model, inputs, body)
    is_pair = getattr(inner.config, "is_encoder_decoder", False)
    if not any(id(p) in trained for p in body.parameters()) and not is_generative(inner):
        # texts of one token do not tell a head that reads the first position from one that reads the last
        for keep in (1, 0) if inputs["input_ids"].shape[1] > 1 else (0,):
            if body in kinds:
                yield _Way(f"the body, {keep or 'all'} positions", body, keep, kinds[body])
    part: Any = inner.get_encoder() if is_pair else body
    if part not in kinds:
        return
    found = _layers_of(part, adapted.parts.layer_modules[: adapted.parts.encoder_depth])
    depth, is_whole = _frozen_depth(model, inputs, part, found, trained)
    if is_pair and is_whole:
        yield _Way("the encoder", part, 0, kinds[part])
    elif found is not None and depth:
        owner = found.owner
        if depth == len(found.layers) and (owner is part or owner not in kinds):
            depth -= 1
        kind = kinds.get(owner, kinds[part])
        if depth:
            yield _Way(f"{depth} of {len(found.layers)} layers", part, 0, kind, found, depth)


def _kinds(model: nn.Module, inputs: Inputs, body: nn.Module) -> dict[nn.Module, type]:
    """The record that each module of the body returns, of those that return one."""
    from transformers.utils import ModelOutput

    kinds: dict[nn.Module, type] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, ModelOutput):
            kinds[module] = type(output)

    hooks = [module.register_forward_hook(note) for module in body.modules()]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return kinds


def _layers_of(part: nn.Module, modules: Sequence[nn.Module]) -> _Layers | None:
    """The module list in ``part`` that holds ``modules``."""
    wanted = [id(module) for module in modules]
    for owner in part.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and [id(layer) for layer in child] == wanted:
                return _Layers(owner, name, child)
    return None


def _frozen_depth(
    model: nn.Module, inputs: Inputs, part: nn.Module, found: _Layers | None, trained: set[int]
) -> tuple[int, bool]:
    """The deepest layer whose input (beyond the last: output) needs no gradient, and whether the output of ``part``
    needs none either."""
    needs: list[bool] = []
    whole: list[bool] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        needs.append((args[0] if args else kwargs["hidden_states"]).requires_grad)

    def look_after(module: nn.Module, args: Any, output: Any) -> None:
        whole.append((output if isinstance(output, torch.Tensor) else output[0]).requires_grad)

    layers = list(found.layers) if found is not None else []
    with ExitStack() as undo:
        for parameter in model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(id(parameter) in trained)
        for layer in layers:
            undo.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
        for module in {part, found.owner if found is not None else part}:
            undo.callback(module.register_forward_hook(look_after).remove)
        with torch.enable_grad():
            model(**inputs)
    if len(needs) != len(layers):
        return 0, False  # layers that are gone through more than once
    depth = len(layers) if not whole[0] else max(0, sum(not need for need in needs) - 1)
    return depth, not any(whole)


def _can_be_looked_up(
    part: nn.Module, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, others: Mapping[str, Any]
) -> bool:
    """Whether a call is one that rows can answer, as far as shapes tell."""
    if input_ids is None or attention_mask is None or attention_mask.shape != input_ids.shape:
        return False
    if others.get("output_hidden_states") or others.get("output_attentions"):
        return False
    if any(isinstance(t, torch.Tensor) and t.shape != input_ids.shape for t in others.values()):
        return False
    # the processes that share a sharded body gather it together, so that all or none of them must call it
    return not any(hasattr(parameter, "device_mesh") for parameter in part.parameters())


def _on_host(tensors: Inputs) -> dict[str, torch.Tensor]:
    """[batch, length] each, on the host; a GPU is waited for once, where they are of one type."""
    given = list(tensors.values())
    if given[0].device.type == "cpu" or len({tensor.dtype for tensor in given}) > 1:
        return {name: tensor.cpu() for name, tensor in tensors.items()}
    return dict(zip(tensors, torch.stack(given).cpu(), strict=True))


def _token_bytes(tensors: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[bytes]:
    """The real tokens of each example, and their types ([batch, length] each), as bytes: what the outputs depend on."""
    arrays = [tensor.numpy() for tensor in tensors]
    return [b"|".join(array[i, :length].tobytes() for array in arrays) for i, length in enumerate(lengths)]


def _cut(outputs: Row, place: int, length: int, keep: int) -> Row:
    """Outputs of one example: [batch, length, d] up to its length (or to ``keep``), [batch, d] whole."""
    row = {}
    for name, tensor in outputs.items():
        whole = tensor[place, : keep or length] if tensor.dim() == 3 else tensor[place]
        row[name] = whole.clone(memory_format=torch.contiguous_format)
    return row


def _joined(rows: Sequence[Row], longest: int, keep: int, device: torch.device) -> Row:
    """Rows as one batch of outputs; padding is zero."""
    joined = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if parts[0].dim() == 2 and not keep:
            batch = pad_sequence(parts, batch_first=True)
            batch = nn.functional.pad(batch, (0, 0, 0, longest - batch.shape[1]))
        else:
            batch = torch.stack(parts)
        joined[name] = send(batch, device)
    return joined
