"""Floor 1: a window without padding: the layers see the real tokens of a batch as one long row.

Plan. Between the embeddings and the head, a transformer mixes tokens in its attention alone; linear layers, norms and
feed-forwards take each token by itself, and what they compute on padding is thrown away. So:

1. At the door of a stack (a hook before each of its layers) hidden states [batch, length, d] become [1, tokens, d]:
   the real tokens, example after example, the shortest example first. Encoder and decoder use the same order.
2. Attention is registered with transformers' attention interface under the name "flattened". It cuts the long row into
   runs of examples of equal length and calls scaled_dot_product_attention once per run, on views: nothing is copied
   and nothing masked. On CUDA it is torch.nn.attention.varlen in half precision without dropout, else one padded call.
3. At the stack's exit the states go back to [batch, length, d], with zeros for padding. Embeddings, poolers, heads and
   losses stay as they are. Tokens keep the positions that they had in the padded batch: learned and sinusoidal
   embeddings were added before the door, rotary ones and T5's bias are brought through it.

How the attention function learns the lengths: transformers makes a mask from the padded batch, carries it through
every layer as an argument and hands it to the attention function. The mask function registered here makes no mask but a
note of what was asked for (``DeferredMask``); the door replaces the note by a ``Layout``. So lengths travel with the
forward pass that they belong to: no global names them, several models may be flattened at once, and gradient
checkpointing replays them. A note that reaches attention without having met a door (a batch of another shape, decoding
with a cache) is turned into the mask that was asked for, and the padded path is what runs.

What is equal: logits, loss and gradients up to rounding. With dropout the distribution is the same and the draws are
not, because there are fewer values to draw for.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from hf_transfer.on_device import send
from hf_transfer.output_layer import generator_inside
from hf_transfer.records import Batch

NAME = "flattened"
"""What the attention is called in transformers' interface."""


@dataclass(frozen=True)
class Stack:
    """Layers that a batch goes through one after the other."""

    owner: nn.Module
    """The module whose ``forward`` calls the layers."""
    layers: tuple[nn.Module, ...]
    exit: nn.Module
    """The module after whose ``forward`` the states are padded again."""


@dataclass(frozen=True)
class Stacks:
    """The stacks of a model that can be flattened."""

    encoder: Stack | None
    """Also the only stack of a model of the GPT type."""
    decoder: Stack | None
    reason: str
    """Why the model runs padded; "" where it can be flattened."""

    @property
    def all(self) -> tuple[Stack, ...]:
        """One or two; none of a model that runs padded."""
        return tuple(stack for stack in (self.encoder, self.decoder) if stack is not None)

    @property
    def flat(self) -> bool:
        """Whether the layers see real tokens only."""
        return not self.reason


# model type -> where in the body the module is that holds the layers, and what it calls them
_ENCODERS = {
    "bert": ("encoder", "layer"),
    "roberta": ("encoder", "layer"),
    "xlm-roberta": ("encoder", "layer"),
    "electra": ("encoder", "layer"),
    "distilbert": ("transformer", "layer"),
    "albert": ("encoder", "albert_layer_groups"),
    "modernbert": ("", "layers"),
    "llama": ("", "layers"),
    "gpt2": ("", "h"),
    "bart": ("encoder", "layers"),
    "mbart": ("encoder", "layers"),
    "marian": ("encoder", "layers"),
    "m2m_100": ("encoder", "layers"),
    "t5": ("encoder", "block"),
    "mt5": ("encoder", "block"),
}
_WITH_DECODER = ("bart", "mbart", "marian", "m2m_100", "t5", "mt5")
_EXITS = {"gpt2": "ln_f"}  # it reshapes what follows to the batch by itself
WAITS_FOR_MASKS = ("cuda",)
"""Devices on which transformers, before it runs a padded batch, would wait for the device to read whether anything is
padded at all."""
_OWN_ATTENTION = "its attention knows relative positions and does not go through transformers' attention interface"
_NOT_SERVED = {"mpnet": _OWN_ATTENTION, "deberta": _OWN_ATTENTION, "deberta-v2": _OWN_ATTENTION}


def find_stacks(model: nn.Module) -> Stacks:
    """The stacks of ``model`` (also inside DDP's and PEFT's wrappers), or the reason why it is to run padded."""
    inner = generator_inside(model)
    config = inner.config
    kind = config.model_type
    reason = ""
    if not hasattr(inner, "base_model"):
        reason = "it reads the states of single layers"
    elif kind not in _ENCODERS:
        reason = _NOT_SERVED.get(kind, "no test covers it")
    elif config._attn_implementation not in ("sdpa", "eager", NAME):
        reason = f"it was loaded with the attention {config._attn_implementation!r}"
    elif getattr(config, "chunk_size_feed_forward", 0):
        reason = "it cuts its feed-forward into chunks (chunk_size_feed_forward)"
    if reason:
        return Stacks(None, None, f"{kind} runs padded: {reason}.")

    place, layers = _ENCODERS[kind]

    def stack(name: str) -> Stack:
        owner = inner.base_model.get_submodule(name)
        last = owner.get_submodule(_EXITS[kind]) if kind in _EXITS else owner
        return Stack(owner, tuple(owner.get_submodule(layers).children()), last)

    return Stacks(stack(place), stack("decoder") if kind in _WITH_DECODER else None, "")


def real_tokens(batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which positions of a batch are real: ``attention_mask`` [batch, length] and, of a translation, that of the target
    [batch, target length], which are the labels that carry loss."""
    decoding = "decoder_input_ids" in batch.inputs
    return batch.inputs["attention_mask"], batch.labels != -100 if decoding else None


@contextmanager
def flattened(
    model: nn.Module, attention_mask: torch.Tensor, target_mask: torch.Tensor | None = None
) -> Iterator[Rows | None]:
    """Let the stacks of ``model`` see real tokens only, for one batch: its forward pass and, with gradient
    checkpointing, its backward.

    To be entered around every batch, in train or eval mode, inside or outside of autocast; on leaving, the model is as
    it was before. Inside of another batch's, it serves passes of a batch of its own, such as a part of that one, and
    the other batch is served again behind it. Not for ``generate``, and hidden states of single layers
    (``output_hidden_states``) come out flat.

    Args:
        model: As accelerate prepared it, or bare; wrapped by PEFT or not.
        attention_mask: [batch, length], the mask of the batch that the model is about to see; anything but 0 is real.
            Best on the host, where its lengths can be read without waiting for the device.
        target_mask: [batch, target length], which of the decoder's positions are real: no label behind them and no
            token that counts. None: as ``attention_mask``, which is how BART's classifier reads its input twice.

    Yields:
        Where the tokens of the long row of the encoder (or only stack) lie in the batch; None where the batch runs
        padded, because the architecture falls back (``find_stacks``), or nothing is padded and it is no slower so.
    """
    stacks = find_stacks(model)
    source = attention_mask.bool()
    target = source if target_mask is None else target_mask.bool()
    masks = [source, target] if stacks.decoder is not None else [source]
    device = next(model.parameters()).device
    may_run_padded = device.type not in WAITS_FOR_MASKS and all(bool(mask.all()) for mask in masks)
    with ExitStack() as undo:
        for stack in stacks.all:
            for door in _doors.get(stack.owner, ()):
                undo.callback(setattr, door, "shut", door.shut)
                door.shut = True
        if stacks.encoder is None or may_run_padded:
            yield None
            return
        order = _order(source, target)
        sources = make_rows(source, order, device)
        doors = [_Door(stacks.encoder, sources, sources)]
        if stacks.decoder is not None:
            doors.append(_Door(stacks.decoder, make_rows(target, order, device), sources))
        for config in _configs(stacks):
            # not set_attn_implementation, which looks through the whole model each time
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = NAME
        for door in doors:
            door.open(undo)
        yield sources


def _configs(stacks: Stacks) -> list[Any]:
    """What attention modules and mask making read the implementation from; encoder and decoder may share one."""
    modules: list[Any] = [m for stack in stacks.all for m in stack.owner.modules() if hasattr(m, "config")]
    return list({id(module.config): module.config for module in modules}.values())


@dataclass(frozen=True)
class Rows:
    """Where the real tokens of a padded batch [batch, length] lie."""

    batch: int
    length: int
    lengths: tuple[int, ...]
    """Real tokens of each example, in the order in which examples follow each other."""
    index: torch.Tensor
    """[tokens] places in the batch read as one row of batch x length."""
    ends: torch.Tensor
    """[batch + 1] int32: where each example begins and ends in the long row."""

    @property
    def tokens(self) -> int:
        """Length of the long row."""
        return len(self.index)

    def is_padded(self, states: torch.Tensor) -> bool:
        """Whether ``states`` are [batch, length, ...]."""
        return tuple(states.shape[:2]) == (self.batch, self.length)

    def is_flat(self, states: torch.Tensor) -> bool:
        """Whether ``states`` are [1, tokens, ...]. Where both are true, the two are the same."""
        return tuple(states.shape[:2]) == (1, self.tokens)

    def flatten(self, states: torch.Tensor) -> torch.Tensor:
        """[batch, length, ...] -> [1, tokens, ...]; of [1, length, ...] each token takes what its position has."""
        if len(states) == 1 != self.batch:
            return states[0].index_select(0, self.index % self.length)[None]
        return states.flatten(0, 1).index_select(0, self.index)[None]

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """[1, tokens, ...] -> [batch, length, ...], zeros where there is no token."""
        whole = states.new_zeros(self.batch * self.length, *states.shape[2:])
        return whole.index_copy(0, self.index, states[0]).unflatten(0, (self.batch, self.length))


def make_rows(mask: torch.Tensor, order: torch.Tensor, device: torch.device) -> Rows:
    """Rows of a mask [batch, length] (bool), examples in ``order`` [batch]."""
    batch, length = mask.shape
    example, position = mask[order].nonzero(as_tuple=True)
    lengths = mask[order].sum(1)
    ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    index = order[example] * length + position
    return Rows(batch, length, tuple(lengths.tolist()), send(index, device), send(ends, device))


def _order(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[batch] examples by source length, then by target length; of masks [batch, length]."""
    by_target = target.sum(1).argsort(stable=True)
    return by_target[source.sum(1)[by_target].argsort(stable=True)]


@dataclass
class DeferredMask:
    """A mask that was asked for and not made yet."""

    arguments: dict[str, Any]
    """What transformers' mask functions are called with."""
    layout: Layout | None = None
    """What the door put in its place."""

    def mask(self) -> torch.Tensor | None:
        """The mask that sdpa would have had: [batch, 1, queries, keys] bool, or None where none is needed."""
        return _mask_interface()["sdpa"](**self.arguments)


@dataclass(frozen=True)
class Layout:
    """Which queries of a long row see which keys: those of their own example that ``allowed`` lets them see."""

    queries: Rows
    keys: Rows
    allowed: Callable[..., torch.Tensor] | None
    """transformers' mask function of query and key position inside the example; None: every key, or those up to the
    query where ``causal``."""
    causal: bool
    memory: dict[Any, Any] = field(default_factory=dict)
    """Runs and masks of this forward pass; every layer needs the same."""

    def runs(self, one_call: bool) -> list[Run]:
        """The examples cut into what is computed at once: all of them, or neighbours of equal length."""
        if one_call not in self.memory:
            pairs = list(zip(self.queries.lengths, self.keys.lengths, strict=True))
            groups = [pairs] if one_call else [list(group) for _, group in itertools.groupby(pairs)]
            self.memory[one_call] = [
                Run(tuple(q for q, _ in group), tuple(k for _, k in group), self.queries.index.device)
                for group in groups
            ]
        return self.memory[one_call]

    def mask(self, run: Run, bias: torch.Tensor | None) -> torch.Tensor | None:
        """[1 or examples, 1 or heads, 1 or queries, keys] of a run: bool, or floats to add; None where ``causal`` says
        it all. ``bias``: [1, heads, length, length] to add to each example's scores, or None."""
        key = (run.query_lengths, run.key_lengths, id(bias))
        if key not in self.memory:
            # also spares the backward, where a slice of the bias costs as much as the whole
            self.memory[key] = (self._make_mask(run, bias), bias)  # kept, so that its id stays its own
        return self.memory[key][0]

    def _make_mask(self, run: Run, bias: torch.Tensor | None) -> torch.Tensor | None:
        device = self.queries.index.device
        mask = None
        allowed = causal_mask_function if self.causal and bias is not None else self.allowed
        if allowed is not None:
            zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
            query = torch.arange(run.longest_query, device=device)[None, None, :, None]
            keys = torch.arange(run.longest_key, device=device)[None, None, None, :]
            mask = allowed(zero, zero, query, keys)
        if run.key_block is not None and not self.causal:  # behind the last query, padding is out of sight already
            real = run.key_block.real[:, None, None, :]
            mask = real if mask is None else mask & real
        if mask is not None and device.type == "cpu" and bool(mask.all()):
            mask = None  # the window is as wide as the example
        if bias is None:
            return mask
        here = bias[:, :, : run.longest_query, : run.longest_key]
        return here if mask is None else here.where(mask, -torch.inf)


@dataclass(frozen=True)
class Block:
    """How a run of unequal lengths becomes a padded block and a long row again."""

    index: torch.Tensor
    """[examples x longest] which token of the run; any for padding."""
    real: torch.Tensor
    """[examples, longest] bool."""
    keep: torch.Tensor
    """[tokens] places of the run's tokens in the block read as one row."""


class Run:
    """Examples whose attention is computed in one call."""

    def __init__(self, query_lengths: tuple[int, ...], key_lengths: tuple[int, ...], device: torch.device) -> None:
        self.query_lengths, self.key_lengths = query_lengths, key_lengths
        self.examples = len(query_lengths)
        self.longest_query, self.longest_key = max(query_lengths), max(key_lengths)
        self.query_block = _block(query_lengths, device)
        self.key_block = _block(key_lengths, device)


def _block(lengths: tuple[int, ...], device: torch.device) -> Block | None:
    """None where lengths are equal, since a view will do."""
    if len(set(lengths)) == 1:
        return None
    sizes = torch.tensor(lengths)
    within = torch.arange(max(lengths))
    real = within < sizes[:, None]
    index = torch.where(real, within + (sizes.cumsum(0) - sizes)[:, None], 0)
    parts = (index.flatten(), real, real.flatten().nonzero()[:, 0])
    return Block(*(send(part, device) for part in parts))


class _Door:
    """The hooks of one stack for one batch."""

    def __init__(self, stack: Stack, rows: Rows, sources: Rows) -> None:
        """``rows`` are those of the states that go through, ``sources`` those of what cross-attention reads."""
        self.stack, self.rows, self.sources = stack, rows, sources
        self.shut = False
        """Where a pass of another batch is made meanwhile, which could have the same shape."""
        self.brought: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Tensors that every layer is given anew, by ``id``: as they were, and flat."""

    def open(self, undo: ExitStack) -> None:
        """Install the hooks; ``undo`` takes them back."""
        doors = _doors.setdefault(self.stack.owner, [])
        doors.append(self)
        undo.callback(doors.remove, self)
        for layer in self.stack.layers:
            undo.callback(layer.register_forward_pre_hook(self.enter, with_kwargs=True).remove)
        undo.callback(self.stack.owner.register_forward_pre_hook(self.bring, with_kwargs=True).remove)
        undo.callback(self.stack.exit.register_forward_hook(self.leave).remove)

    def bring(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the stack: flatten what cross-attention reads. Within the first layer, where older transformers runs
        hooks again under checkpointing, that would be done when it runs first and not when it runs again."""
        states = kwargs.get("encoder_hidden_states")
        if not self.shut and states is not None and self.sources.is_padded(states):
            self._flat(states, self.sources)

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before each layer, as any of them may be the first (LayerDrop): flatten whatever is not flat yet."""
        kind: Any = type(layer)
        names = _argument_names(kind)
        given = dict(zip(names, args, strict=False)) | kwargs
        states, cache = given["hidden_states"], given.get("past_key_values")
        seen = cache is not None and cache.get_seq_length() > 0
        if self.shut or seen or not (self.rows.is_padded(states) or self.rows.is_flat(states)):
            return None
        if not self.rows.is_flat(states):
            given["hidden_states"] = self.rows.flatten(states)
        given["attention_mask"] = self._layout(given["attention_mask"], self.rows)
        if cache is not None:
            given["past_key_values"] = None  # made for decoding, which a training step does not do
        if given.get("position_embeddings") is not None:
            given["position_embeddings"] = tuple(self._flat(part, self.rows) for part in given["position_embeddings"])
        if given.get("encoder_hidden_states") is not None:
            given["encoder_hidden_states"] = self._flat(given["encoder_hidden_states"], self.sources)
            given["encoder_attention_mask"] = self._layout(given.get("encoder_attention_mask"), self.sources)
        if "position_bias" in names and given.get("position_bias") is None:  # T5's first layer would make its own
            given |= self._biases(layer)
            _make_masks(given["attention_mask"], given["position_bias"])
        place = names[: len(args)]
        return tuple(given[name] for name in place), {name: given[name] for name in given if name not in place}

    def _biases(self, layer: Any) -> dict[str, torch.Tensor]:
        """T5's bias of positions [1, heads, length, length], which all layers share; none between the stacks, where the
        model would make zeros for all pairs of tokens."""
        attention = layer.layer[0].SelfAttention
        bias = attention.compute_bias(self.rows.length, self.rows.length, device=self.rows.index.device)
        nothing = bias.new_zeros(0)
        return {"position_bias": bias, "encoder_decoder_position_bias": nothing}

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the last layer: pad what is flat."""
        if self.shut:
            return None
        if isinstance(output, torch.Tensor):
            return self.rows.pad(output) if self.rows.is_flat(output) else None
        states = output[0]
        if not self.rows.is_flat(states):
            return None
        if isinstance(output, tuple):
            return self.rows.pad(states), *output[1:]
        output.last_hidden_state = self.rows.pad(states)
        return output

    def _flat(self, tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
        if id(tensor) not in self.brought:
            self.brought[id(tensor)] = (tensor, rows.flatten(tensor))
        return self.brought[id(tensor)][1]

    def _layout(self, mask: Any, keys: Rows) -> Any:
        """The layout in the place of a deferred mask; without any mask, every key is seen."""
        if isinstance(mask, Layout):
            return mask
        if mask is None:
            mask = DeferredMask({"mask_function": bidirectional_mask_function})
        if mask.layout is None:
            allowed = mask.arguments["mask_function"]
            plain = allowed in (bidirectional_mask_function, causal_mask_function)
            mask.layout = Layout(self.rows, keys, None if plain else allowed, allowed is causal_mask_function)
        return mask.layout


_doors: WeakKeyDictionary[nn.Module, list[_Door]] = WeakKeyDictionary()
"""Those that are open, by the owner of their stack."""


def _make_masks(layout: Layout, bias: torch.Tensor) -> None:
    """Those of all runs, with the learnt ``bias`` in them: made inside of the first layer, they would be part of what a
    checkpointed layer computes when it runs first, and not of what it computes when it runs again."""
    for run in layout.runs(one_call=bias.is_cuda):
        layout.mask(run, bias)


@functools.cache
def _argument_names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def defer_mask(**arguments: Any) -> DeferredMask:
    """The counterpart of ``attend`` in transformers' mask interface."""
    return DeferredMask(arguments)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Layout | DeferredMask | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each example of a long row; what carries no layout goes to transformers' sdpa.

    ``query``: [1, heads, tokens, head width]; ``key``, ``value``: [1, key heads, key tokens, head width];
    ``position_bias``: [1, heads, length, length] of one example of full length, or empty (T5).

    Returns:
        [1, tokens, heads, head width], and None where other implementations have weights.
    """
    if not isinstance(attention_mask, Layout):
        mask = attention_mask.mask() if isinstance(attention_mask, DeferredMask) else attention_mask
        sdpa = AttentionInterface()["sdpa"]
        if position_bias is not None:
            kwargs["position_bias"] = position_bias
        return sdpa(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    layout = attention_mask
    if torch.is_autocast_enabled(query.device.type):  # rotary positions are in single precision, and query and key then
        narrow = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(narrow), key.to(narrow), value.to(narrow)
    bias = position_bias if position_bias is not None and position_bias.numel() else None
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # [tokens, heads, head width]
    if bias is None and _varlen_serves(query, layout, dropout):
        return _varlen(rows, layout, scaling)[None], None
    copies = query.shape[1] // key.shape[1]
    if copies > 1:  # grouped queries
        rows[1:] = [states.repeat_interleave(copies, 1) for states in rows[1:]]
    runs = layout.runs(one_call=query.is_cuda)
    query_sizes = [sum(run.query_lengths) for run in runs]
    key_sizes = [sum(run.key_lengths) for run in runs]
    # split and not slices: the backward of a slice writes zeros over the whole row, once per run
    pieces = zip(runs, rows[0].split(query_sizes), rows[1].split(key_sizes), rows[2].split(key_sizes), strict=True)
    return torch.cat([_attend_run(run, layout, parts, dropout, scaling, bias) for run, *parts in pieces])[None], None


def _attend_run(
    run: Run,
    layout: Layout,
    parts: Sequence[torch.Tensor],
    dropout: float,
    scaling: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """[tokens, heads, head width] of one run's queries, keys and values -> the same of its result."""
    if not run.longest_query or not run.longest_key:
        return parts[0] * 0
    blocks = [
        (part if block is None else part.index_select(0, block.index)).unflatten(0, (run.examples, -1)).transpose(1, 2)
        for part, block in zip(parts, (run.query_block, run.key_block, run.key_block), strict=True)
    ]
    mask = layout.mask(run, bias)
    found = scaled_dot_product_attention(
        blocks[0],
        blocks[1],
        blocks[2],
        mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=layout.causal and mask is None and run.longest_query > 1,
    )
    row = found.transpose(1, 2).flatten(0, 1)
    return row if run.query_block is None else row.index_select(0, run.query_block.keep)


def _varlen_serves(query: torch.Tensor, layout: Layout, dropout: float) -> bool:
    """Whether flash attention over the long row can do it: half precision, no dropout, all keys or causal."""
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    asked = query.is_cuda and fits and not dropout and layout.allowed is None
    return asked and _varlen_runs_on(query.device)


@functools.cache
def _varlen_runs_on(device: torch.device) -> bool:
    """Whether flash attention is built for ``device``: GPUs from Ampere on. torch 2.10 has another signature."""
    if torch.cuda.get_device_capability(device) < (8, 0) or not torch.backends.cuda.is_flash_attention_available():
        return False
    wanted = {"scale", "window_size", "enable_gqa"}
    return wanted <= set(inspect.signature(_varlen_function()).parameters)


@functools.cache
def _varlen_function() -> Any:
    import torch.nn.attention.varlen  # here, since it brings torch's compiler along, which takes seconds to import

    return torch.nn.attention.varlen.varlen_attn


def _varlen(rows: Sequence[torch.Tensor], layout: Layout, scaling: float | None) -> torch.Tensor:
    """Flash attention over long rows: query, key and value, each [tokens, heads, width]."""
    query, key, value = rows
    found: Any = _varlen_function()(
        query,
        key,
        value,
        layout.queries.ends,
        layout.keys.ends,
        max(layout.queries.lengths),
        max(layout.keys.lengths),
        scale=scaling,
        window_size=(-1, 0) if layout.causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found


@contextmanager
def attention_stays_outside() -> Iterator[None]:
    """While this lasts, torch's compiler goes around ``attend``, whose runs are others for each batch."""
    AttentionInterface.register(NAME, torch.compiler.disable(attend))
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attend)


def _mask_interface() -> Any:
    return AttentionMaskInterface()


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, defer_mask)
