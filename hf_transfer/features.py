"""Floor 2: what a frozen body computes, kept: one forward pass per example in place of one per epoch.

The store takes the place of the body's ``forward``: rows that it knows are looked up by their token ids, the others
are computed and remembered. So the loop, validation and scoring use it without knowing, and so do the other seeds and
runs of a comparison that start from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_transfer.adapt.base import Adapted

Trial = tuple[int, type]
"""Positions of each sequence that the head reads, 0 for all; and the record in which the body hands them over."""
LIMIT_BYTES = 2 << 30
"""Memory for stored rows; beyond it rows are computed each time. 2 GiB hold 1.4 million examples of which a head reads
one vector of 384 numbers, and 12,000 of which it reads 118 of them."""
TOLERANCE = 1e-5
"""Largest difference of a logit between a stored and a computed body, relative to its size beyond 1."""


class FeatureStore:
    """Rows of body outputs in memory, by body and token ids."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._rows: dict[tuple[str, bytes], dict[str, torch.Tensor]] = {}
        self._limit_bytes = limit_bytes
        self.bytes = 0
        self.computed = 0
        """Examples that went through the body."""
        self.reused = 0
        """Examples that were looked up."""

    def get(self, key: tuple[str, bytes]) -> dict[str, torch.Tensor] | None:
        """The outputs of one example, each without its batch axis, on the host; None where it is not stored."""
        return self._rows.get(key)

    def put(self, key: tuple[str, bytes], row: dict[str, torch.Tensor]) -> None:
        """Keep ``row`` if there is room."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in row.values())
        if key not in self._rows and self.bytes + size <= self._limit_bytes:
            self._rows[key] = row
            self.bytes += size


@contextmanager
def stored_body(
    adapted: Adapted, body_key: str, store: FeatureStore, batch: Mapping[str, torch.Tensor]
) -> Iterator[bool]:
    """Answer for the body of ``adapted.model`` from ``store`` while the context lasts; yields whether it does.

    It does where no stage trains a parameter of the body (probe) and where a trial on ``batch`` (inputs of a few
    examples of different lengths) gives the same logits; else the model stays as it is.

    Args:
        body_key: names the body's weights: rows are shared between models with equal keys.
    """
    body: Any = getattr(adapted.model, "base_model", adapted.model)
    inside = {id(p) for p in body.parameters()}
    trains_body = any(id(p) in inside for stage in adapted.stages for p in stage.trainable)
    if body is adapted.model or trains_body or not adapted.freezes_modules:
        yield False
        return
    found = _what_the_head_reads(adapted.model, body, batch)
    if found is None:
        yield False
        return
    body.forward = _forward(body, f"{body_key} {found[0]}", store, *found)
    try:
        yield True
    finally:
        del body.forward


def _what_the_head_reads(model: nn.Module, body: Any, batch: Mapping[str, torch.Tensor]) -> Trial | None:
    """1 position where the head needs the first only, 0 where it needs all; None where stored outputs do not serve."""
    from transformers.utils import ModelOutput

    was_training = [module for module in model.modules() if module.training]
    model.eval()
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    kinds: list[type] = []
    hook = body.register_forward_hook(lambda module, arguments, output: kinds.append(type(output)))
    try:
        with torch.no_grad():
            expected = model(**inputs).logits
            hook.remove()
            if not kinds or not issubclass(kinds[0], ModelOutput):
                return None
            # texts of one token do not tell a head that reads the first position from one that reads the last
            for keep in (1, 0) if inputs["input_ids"].shape[1] > 1 else (0,):
                body.forward = _forward(body, "trial", FeatureStore(), keep, kinds[0])
                try:
                    found = model(**inputs).logits
                except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                    continue  # a head that reads other outputs or positions
                finally:
                    del body.forward
                if found.shape == expected.shape and torch.allclose(found, expected, TOLERANCE, TOLERANCE):
                    return keep, kinds[0]
    finally:
        hook.remove()
        for module in was_training:
            module.training = True
    return None


def _forward(body: Any, key: str, store: FeatureStore, keep: int, kind: type) -> Callable[..., Any]:
    """A ``forward`` that looks rows up; see ``Trial`` for ``keep`` and ``kind``."""
    original = body.forward

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
        # the processes that share a sharded body gather it together, so that all or none of them must call it
        sharded = any(hasattr(parameter, "device_mesh") for parameter in body.parameters())
        if sharded or bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):  # or padding before real tokens
            return original(input_ids=input_ids, attention_mask=attention_mask, **others)
        per_token = {n: t for n, t in others.items() if isinstance(t, torch.Tensor) and t.shape == input_ids.shape}
        settings = {n: value for n, value in others.items() if n not in per_token}
        keys = [(key, text) for text in _token_bytes([input_ids, *per_token.values()], attention_mask)]
        rows = [store.get(name) for name in keys]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            longest = int(attention_mask[missing].sum(1).max())
            tokens = {n: t[missing, :longest] for n, t in per_token.items()}
            with torch.no_grad():
                output = original(
                    input_ids=input_ids[missing, :longest],
                    attention_mask=attention_mask[missing, :longest],
                    **tokens,
                    **settings,
                )
            for place, i in enumerate(missing):
                length = int(attention_mask[i].sum())
                rows[i] = _cut(output, place, length, keep)
                store.put(keys[i], rows[i])  # type: ignore[arg-type]
        store.computed += len(missing)
        store.reused += len(keys) - len(missing)
        joined = _joined([row for row in rows if row is not None], input_ids.shape[1], keep, input_ids.device)
        return kind(**joined)

    return forward


def _token_bytes(tensors: Sequence[torch.Tensor], attention_mask: torch.Tensor) -> list[bytes]:
    """The real tokens of each example, and their types, as bytes: what the body's outputs depend on."""
    lengths = attention_mask.sum(1).tolist()
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    return [b"|".join(array[i, :length].tobytes() for array in arrays) for i, length in enumerate(lengths)]


def _cut(output: Any, place: int, length: int, keep: int) -> dict[str, torch.Tensor]:
    """Outputs of one example: sequences up to its length (or to ``keep``), vectors whole."""
    row = {}
    for name in ("last_hidden_state", "pooler_output"):
        tensor = getattr(output, name, None)
        if isinstance(tensor, torch.Tensor):
            whole = tensor[place, : keep or length] if tensor.dim() == 3 else tensor[place]
            row[name] = whole.to("cpu", copy=True).contiguous()
    return row


def _joined(
    rows: Sequence[dict[str, torch.Tensor]], longest: int, keep: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Rows as one batch of body outputs; padding is zero."""
    joined = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if parts[0].dim() == 2 and not keep:
            parts = [nn.functional.pad(part, (0, 0, 0, longest - len(part))) for part in parts]
        joined[name] = torch.stack(parts).to(device)
    return joined
