"""Floor 2: what training costs, by arithmetic: floating-point operations and memory, before a step is taken.

Plan. One forward pass of one short example is watched (``trace``): each matrix product with its shapes and with which
of its factors carry a gradient, and each tensor that autograd keeps for the backward. The example's lengths are numbers
that no width of a model has, so that a dimension of that size is a length; what is left is the coefficient. The cost of
any batch is then a sum over its examples (``Shapes``), however many steps a run has.

What is counted, and whence:
- A product [m, k] x [k, n] takes 2 m k n operations (Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, appendix
  F). Norms, activations, embeddings' look-ups and the optimizer are left out there, and so they are here.
- The backward of a product is two more of its size: the gradient of what it reads, if anything below or the input
  itself learns, and that of its weight, if the weight learns. So a frozen layer above a trained one costs the first of
  them only, and a frozen layer below all that learns costs neither.
- Attention costs its two products of length x length, whole where it is causal; kernels that compute the scores again
  in the backward are not charged for it (model FLOPs: Chowdhery et al. 2022, appendix B).
- Under activation checkpointing (Chen et al. 2016) a layer that has a backward runs its forward twice. Kept are the
  states that enter each such layer and, while the backward is in one of them, what that one keeps otherwise.
- AdamW keeps two averages for each parameter that learns (Loshchilov and Hutter 2019), in fp32 as the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

SOURCE_LENGTH, TARGET_LENGTH = 13, 11
"""Tokens of the example that is watched; widths of models are even, and no count of heads is so odd."""
OPTIMIZER_BYTES_MOVED = 40
"""Per trained parameter and step: AdamW reads weight, gradient and two averages and writes three of them (28 bytes);
clipping reads the gradient for its norm, then reads and writes it (12)."""
OPTIMIZER_BYTES_KEPT = 8
"""Per trained parameter: AdamW's two averages in fp32."""


@dataclass(frozen=True)
class Term:
    """What grows as source length ^ ``source`` x target length ^ ``target``, summed over examples."""

    place: int
    """-1 before the layers, the layer's number, or the count of layers after them."""
    source: int
    target: int
    once: bool
    """Once for each micro-batch, whatever is in it (position tables that are projected, DoRA's norms)."""
    size: np.ndarray
    """The coefficient: [3] operations of the forward, of the input's gradient and of the weight's; or [1] bytes."""
    real: bool = False
    """Real tokens alone, also where the layers see padding: what a loss reads."""


@dataclass(frozen=True)
class Trace:
    """What one forward pass shows of a model in one stage of training."""

    products: tuple[Term, ...]
    saved: tuple[Term, ...]
    """Bytes kept for the backward, parameters left out."""
    depth: int
    """Layers; of an encoder-decoder, those of both."""
    entering: Mapping[int, Term]
    """Bytes of the states that enter each layer."""
    widths: Mapping[int, int]
    """Width of those states."""
    again: frozenset[int] = frozenset()
    """Layers that the backward runs once more, under activation checkpointing."""


@dataclass(frozen=True)
class Shapes:
    """Lengths of the examples of some micro-batches."""

    source: np.ndarray
    """[examples] real tokens; of a classifier all of them."""
    target: np.ndarray
    """[examples] real tokens; 0 of a classifier."""
    padded_source: np.ndarray
    """[examples] the longest source of the micro-batch that the example is in."""
    padded_target: np.ndarray
    batches: int
    copies: int = 1
    """How often each example goes through: twice with R-Drop."""

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.source.sum() + self.target.sum())

    @property
    def padding(self) -> int:
        """Tokens that fill up the micro-batches."""
        return int(self.padded_source.sum() + self.padded_target.sum()) - self.tokens

    def times(self, term: Term, flat: bool, depth: int) -> float:
        """What ``term.size`` is to be multiplied with. ``flat``: the layers see real tokens only."""
        if term.once:
            return float(self.batches)
        inside = 0 <= term.place < depth
        source, target = (
            (self.source, self.target) if term.real or (flat and inside) else (self.padded_source, self.padded_target)
        )
        return self.copies * float((source.astype(float) ** term.source * target.astype(float) ** term.target).sum())


def shapes_of(pieces: Sequence[np.ndarray], source: np.ndarray, target: np.ndarray, copies: int = 1) -> Shapes:
    """Shapes of micro-batches. ``pieces``: row numbers of each; ``source``, ``target``: [rows] lengths."""
    rows = np.concatenate(pieces)
    sizes = [len(piece) for piece in pieces]
    longest = [np.repeat([lengths[piece].max() for piece in pieces], sizes) for lengths in (source, target)]
    return Shapes(source[rows], target[rows], longest[0], longest[1], len(pieces), copies)


def operations(trace: Trace, shapes: Shapes, flat: bool) -> np.ndarray:
    """[depth + 2, 3] operations before the layers, in each, and after them: of the forward, of the gradients of inputs
    and of the gradients of weights."""
    found = np.zeros((trace.depth + 2, 3))
    for term in trace.products:
        found[term.place + 1] += term.size * shapes.times(term, flat, trace.depth)
    for layer in trace.again:
        found[layer + 1, 0] *= 2
    return found


def activation_bytes(trace: Trace, shapes: Shapes, flat: bool) -> float:
    """Bytes that are kept between the forward and the backward of ``shapes``, a single micro-batch, or with
    checkpointing within that backward."""

    def size(term: Term) -> float:
        return float(term.size[0] * shapes.times(term, flat, trace.depth))

    by_place = np.zeros(trace.depth + 2)
    for term in trace.saved:
        by_place[term.place + 1] += size(term)
    inside = [by_place[layer + 1] for layer in trace.again]
    entering = sum(size(trace.entering[layer]) for layer in trace.again)
    return float(by_place.sum() - sum(inside) + max(inside, default=0.0) + entering)


def with_checkpointing(trace: Trace) -> Trace:
    """``trace`` of a model whose layers keep nothing for the backward and run again in it."""
    backward = {term.place for term in trace.products if term.size[1:].any()}
    return replace(trace, again=frozenset(backward & set(range(trace.depth))))


def with_output_layer(trace: Trace, width: int, vocabulary: int, learns_below: bool, learns: bool) -> Trace:
    """``trace`` with the products of an output layer that belongs to the loss: of the real target tokens alone."""
    size = 2.0 * width * vocabulary * np.array([1.0, learns_below, learns])
    return replace(trace, products=(*trace.products, Term(trace.depth, 0, 1, False, size, real=True)))


def frozen_prefix(
    layers: Sequence[Sequence[nn.Parameter]], embeddings: Sequence[nn.Parameter], trained: set[int]
) -> int:
    """Layers from the bottom that nothing in ``trained`` (ids of parameters) changes; 0 where the embeddings learn."""
    if any(id(p) in trained for p in embeddings):
        return 0
    return next((i for i, layer in enumerate(layers) if any(id(p) in trained for p in layer)), len(layers))


def without_prefix(found: np.ndarray, layers: int) -> np.ndarray:
    """``operations`` of steps that read the states behind the lowest ``layers``, which are frozen, from a store.

    With L equal layers of forward F, 3 (L - k) F is left of the k F + 3 (L - k) F of a step that computes them.
    """
    rest = found.copy()
    rest[: layers + 1, 0] = 0.0
    return rest


def trace(model: nn.Module, layers: Sequence[nn.Module], inputs: Mapping[str, torch.Tensor]) -> tuple[Trace, Any]:
    """Watch one forward pass, with gradients as the parameters' ``requires_grad`` and the caller's context have them.

    Args:
        inputs: of one example of ``SOURCE_LENGTH`` source and, where it has a target, ``TARGET_LENGTH`` target tokens.

    Returns:
        The trace, and the model's outputs.
    """
    watch = _Watch(len(layers))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, torch.Tensor]] = {}  # held, so that no address is given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept.setdefault(address, (watch.place, tensor))
        return tensor

    with ExitStack() as undo:
        for i, layer in enumerate(layers):
            undo.callback(layer.register_forward_pre_hook(watch.enter(i), with_kwargs=True).remove)
            undo.callback(layer.register_forward_hook(watch.leave).remove)
        undo.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        undo.enter_context(watch)
        outputs = model(**inputs)
    end = outputs.logits if "logits" in outputs else outputs.last_hidden_state  # of a body alone
    reached = _reached(end.grad_fn)
    products = [
        term if node in reached else replace(term, size=term.size * np.array([1.0, 0.0, 0.0]))
        for term, node in watch.products
    ]
    saved = []
    for place, tensor in kept.values():
        size = np.array([float(tensor.untyped_storage().nbytes())])
        saved.append(_term(place, tuple(tensor.shape), size, tensor.numel() == (tensor.shape or (0,))[-1]))
    return Trace(tuple(products), tuple(saved), len(layers), watch.entering, watch.widths), outputs


def _term(place: int, dimensions: tuple[int, ...], size: np.ndarray, is_vector: bool) -> Term:
    source, target = dimensions.count(SOURCE_LENGTH), dimensions.count(TARGET_LENGTH)
    once = not source and not target and not is_vector
    return Term(place, source, target, once, size / SOURCE_LENGTH**source / TARGET_LENGTH**target)


def _reached(node: Any) -> set[Any]:
    """The nodes of the backward that starts at ``node``: a product that is not among them has none."""
    found = {node}
    waiting = [node]
    while waiting:
        for following, _ in getattr(waiting.pop(), "next_functions", ()):
            if following is not None and following not in found:
                found.add(following)
                waiting.append(following)
    return found


class _Watch(TorchFunctionMode):
    """Notes the matrix products of a forward pass and the layer that each belongs to."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.place = -1
        self.products: list[tuple[Term, Any]] = []
        """Each with the node of the backward that made its result."""
        self.entering: dict[int, Term] = {}
        self.widths: dict[int, int] = {}

    def enter(self, layer: int) -> Callable[..., None]:
        """A hook for before layer number ``layer``."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.place = layer
            states = args[0] if args else kwargs["hidden_states"]
            self.entering[layer] = _term(layer, tuple(states.shape), np.array([float(states.nbytes)]), False)
            self.widths[layer] = states.shape[-1]

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook for after any layer."""
        self.place = self.depth

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "scaled_dot_product_attention":
            given = (*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs))
            self._attention(given[0], given[1], given[2], found)
        elif name in ("linear", "matmul", "__matmul__", "bmm", "mm"):
            first, second = (*args, *(kwargs[key] for key in ("input", "weight", "mat2", "other") if key in kwargs))[:2]
            self._product(first, second, found)
        elif name in ("addmm", "baddbmm"):
            self._product(args[1], args[2], found)
        return found

    def _product(self, first: torch.Tensor, second: torch.Tensor, found: torch.Tensor) -> None:
        inner = first.shape[-1]
        size = (
            2.0 * found.numel() * inner * np.array([1.0, *self._gradients(first.requires_grad, second.requires_grad)])
        )
        rows = found.numel() // found.shape[-1]
        # widths of a weight say nothing of lengths
        dimensions = (rows,) if second.dim() == 2 else (*found.shape, inner)
        self.products.append((_term(self.place, dimensions, size, rows == 1), found.grad_fn))

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: torch.Tensor) -> None:
        pairs = 2.0 * query.shape[:-1].numel() * key.shape[-2]
        scores, sums = pairs * query.shape[-1], pairs * value.shape[-1]
        q, k, v = self._gradients(query.requires_grad, key.requires_grad, value.requires_grad)
        # the gradient of the scores is a product with the values, needed for queries and keys alike
        of_scores = sums * max(q, k) + scores * q
        size = np.array([scores + sums, of_scores, scores * k + sums * v])
        self.products.append((_term(self.place, (*query.shape, key.shape[-2]), size, False), found.grad_fn))

    def _gradients(self, *wanted: bool) -> tuple[float, ...]:
        return tuple(float(torch.is_grad_enabled() and want) for want in wanted)
