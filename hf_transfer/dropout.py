"""Floor 1: dropout on the CPU at a sixth of its price.

Plan. torch draws the noise of dropout on the CPU value by value, each from 32 or 64 random bits and on one thread; in a
step of MiniLM that took a fifth of the time (benchmarks/LOG.md). Whether a value is kept needs no more than 16 bits:

1. Four values share a 64-bit draw of torch's own generator, so that ``torch.manual_seed`` decides as ever.
2. A value is dropped where its 16 bits are below ``p`` x 65,536, rounded. What is kept is divided by the probability
   that this leaves, so that the expectation is exact; ``p`` itself is off by less than 0.00001.
3. Attention with dropout is written out, because torch's own draws its noise inside.

The calls are caught by a torch function mode, for whoever makes them: ``nn.Dropout``, ``functional.dropout`` and
``scaled_dot_product_attention`` of any architecture. On a GPU, torch's fused dropout stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CHANCES = 1 << 16
"""Values that 16 bits can have."""


class QuickDropout(TorchFunctionMode):
    """While it is entered, dropout of tensors on the CPU draws 16 bits for each value."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer calls of dropout, pass on all others."""
        kwargs = kwargs or {}
        quick = _QUICK.get(func)
        if quick is not None:
            found = quick(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def quick_dropout(device: torch.device) -> AbstractContextManager[Any]:
    """``QuickDropout`` where it serves; elsewhere every call of torch would ask it in vain."""
    return QuickDropout() if device.type == "cpu" else nullcontext()


def keep_noise(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """Independent values on the CPU: 0 with probability ``p`` (rounded to 1/65,536), else 1 / (1 - ``p``), so that
    their expectation is 1 (Srivastava et al. 2014, inverted)."""
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = round(p * CHANCES)
    noise = torch.empty(shape, dtype=dtype)
    torch.ge(bits[:count].view(shape), dropped - CHANCES // 2, out=noise)
    return noise.mul_(CHANCES / (CHANCES - dropped))


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor | None:
    """As ``functional.dropout``; None where that is to be called."""
    if not training or not _is_served(input, p):
        return None
    noise = keep_noise(input.shape, p, input.dtype)
    return input.mul_(noise) if inplace else input * noise


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """As ``functional.scaled_dot_product_attention`` of [batch, heads, length, width]; None where that is to be called:
    without dropout it is quicker, and with a mask of its own it knows what to do with a query that sees no key."""
    if not _is_served(query, dropout_p) or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        return None
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        scores = scores.masked_fill(unseen, -torch.inf)
    weights = scores.softmax(-1)
    return (weights * keep_noise(weights.shape, dropout_p, weights.dtype)) @ value


def _is_served(states: torch.Tensor, p: float) -> bool:
    return states.device.type == "cpu" and 0 < round(p * CHANCES) < CHANCES


_QUICK: dict[Any, Callable[..., torch.Tensor | None]] = {
    functional.dropout: _dropout,
    functional.scaled_dot_product_attention: _attention,
}
