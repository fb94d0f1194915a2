"""Floor 1: how many tokens go through a model at once: as many as the memory of the device holds.

``--train.tokens_per_micro_batch auto`` is ``ON_HOST`` on a CPU, where larger micro-batches are no faster
(benchmarks/LOG.md). On a GPU two micro-batches of known size are run forward and backward before a stage of training
begins. What the second peaks above the first, by its tokens above the first's, is what a token takes; gradients and
workspaces, which do not grow with the tokens, cancel out. A window that has no room all the same is cut in half when it
comes (train.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

ON_HOST = 8192
"""Tokens of a micro-batch on a CPU, and where processes share parameters, so that none can try by itself."""
TRIED = (2048, 4096)
"""Tokens of the micro-batches that are tried."""
USED_SHARE = 0.8
"""Of the free memory. The rest is for what the allocator cannot use and for attention over texts of unequal length."""
MOST = 1 << 20
"""Tokens that fill any device there is."""


def trial_rows(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Row numbers of the longest examples, which need most memory for each token, up to ``tokens``; at least one.

    ``lengths``: [train examples] tokens.
    """
    order = np.argsort(-lengths, kind="stable")
    return order[: max(1, int(np.searchsorted(lengths[order].cumsum(), tokens, side="right")))]


def measured_budget(
    lengths: np.ndarray, run: Callable[[np.ndarray], object], learning_bytes: int, device: torch.device
) -> int:
    """Tokens of a micro-batch that the free memory of a GPU holds, at least ``TRIED[0]``.

    Args:
        lengths: [train examples] tokens of each.
        run: takes given rows forward and backward, and drops the gradients.
        learning_bytes: Of the parameters that learn; their gradients and both averages of the optimizer, which are not
            there yet, take three times as much, and what is sent to other processes once more.
        device: The GPU.
    """
    small, large = (trial_rows(lengths, tokens) for tokens in TRIED)
    tokens = [int(lengths[rows].sum()) for rows in (small, large)]
    if tokens[0] == tokens[1]:
        return MOST  # all there is to learn from is a small micro-batch
    peaks = []
    try:
        run(small)  # the first pass also loads kernels and takes their workspaces
        for rows in (small, large):
            torch.cuda.reset_peak_memory_stats(device)
            run(rows)
            peaks.append(torch.cuda.max_memory_allocated(device))
    except torch.OutOfMemoryError:
        return TRIED[0]  # and cut in half from there, if it must be
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    each = max(1.0, (peaks[1] - peaks[0]) / (tokens[1] - tokens[0]))
    return max(TRIED[0], min(MOST, math.floor((USED_SHARE * free - 4 * learning_bytes) / each)))
