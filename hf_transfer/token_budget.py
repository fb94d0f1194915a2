"""Floor 2: how many tokens go through a model at once: as many as the memory of the device holds.

``--train.tokens_per_micro_batch auto`` is ``ON_HOST`` on a CPU, where larger micro-batches are no faster
(benchmarks/LOG.md). On a GPU a micro-batch of known size is run forward and backward before a stage of training begins.
What it takes at most, gradients included, by its tokens, is at least what a token of a larger one takes. A window that
has no room all the same is cut in half when it comes (``cut_in_half``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hf_transfer.errors import RunError
from hf_transfer.flattened import flattened, real_tokens
from hf_transfer.on_device import is_out_of_memory, keep_peak, send_batch
from hf_transfer.step_log import ProgressBar
from hf_transfer.tasks import TaskFunctions

if TYPE_CHECKING:
    from datasets import Dataset

ON_HOST = 8192
"""Tokens of a micro-batch on a CPU, and where processes share parameters, so that none can try by itself."""
TRIED = 4096
"""Tokens of the micro-batch that is tried."""
LEAST = 2048
"""Tokens that are tried on any GPU; of one that has not so much room, the first windows are cut."""
USED_SHARE = 0.6
"""Of the free memory. The rest is for what the allocator cannot use, and for attention that pads texts of unequal
length where those of the trial are nearly equal."""
MOST = 1 << 20
"""Tokens that fill any device there is."""


def trial_rows(lengths: np.ndarray) -> np.ndarray:
    """Row numbers of the longest examples, which need most memory for each token, up to ``TRIED``; at least one.

    ``lengths``: [train examples] tokens.
    """
    order = np.argsort(-lengths, kind="stable")
    return order[: max(1, int(np.searchsorted(lengths[order].cumsum(), TRIED, side="right")))]


def measured_budget(
    lengths: np.ndarray, run: Callable[[np.ndarray], object], learning_bytes: int, device: torch.device
) -> int:
    """Tokens of a micro-batch that the free memory of a GPU holds, at least ``LEAST``.

    Args:
        lengths: [train examples] tokens of each.
        run: takes given rows forward and backward, and drops the gradients.
        learning_bytes: Of the parameters that learn; their gradients and both averages of the optimizer, which are not
            there yet, take three times as much, and what is sent to other processes once more.
        device: The GPU.
    """
    if lengths.sum() <= TRIED:
        return MOST  # all there is to learn from is a small micro-batch
    rows = trial_rows(lengths)
    try:
        run(rows)  # also loads kernels and takes their workspaces
        before = torch.cuda.memory_allocated(device)
        keep_peak(device)
        run(rows)
        taken = torch.cuda.max_memory_allocated(device) - before
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return LEAST
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    each = max(1.0, taken / int(lengths[rows].sum()))
    return max(LEAST, min(MOST, math.floor((USED_SHARE * free - 4 * learning_bytes) / each)))


def agreed_budget(
    model: nn.Module,
    rows: Dataset,
    lengths: np.ndarray,
    functions: TaskFunctions,
    accelerator: Accelerator,
    progress: ProgressBar,
) -> int:
    """Tokens that go through the model at once, equal on all processes; on a GPU as many as memory holds.

    All processes call it. ``lengths``: [train examples] tokens of each, over all copies that a batch holds of it.
    """
    if accelerator.device.type != "cuda" or getattr(accelerator, "is_fsdp2", False):
        return ON_HOST
    module = accelerator.unwrap_model(model)  # no exchange with other processes while each tries for itself
    learning = [p for p in module.parameters() if p.requires_grad]

    def run(chosen: np.ndarray) -> None:
        batch = functions.train_batch(rows[chosen])
        sent = send_batch(batch, accelerator.device)
        with flattened(module, *real_tokens(batch)):  # around the backward too: layers may be run again in it
            with accelerator.autocast():
                loss = functions.loss_function(module(**sent.inputs), sent).loss_sum
            torch.autograd.grad(loss, learning, allow_unused=True)

    own = measured_budget(lengths, run, sum(p.nbytes for p in learning), accelerator.device)
    found = min(gather_object([own]))
    progress.note(f"micro-batches of at most {found:,} tokens, from the free memory of the GPU")
    return found


def cut_in_half(budget: int, lengths: np.ndarray, error: Exception, progress: ProgressBar) -> int:
    """Half of the tokens that the window's largest micro-batch may have had; ``lengths``: [window] tokens.

    The window is then learnt from once more, with the same gradient up to dropout, whose draws go by micro-batch.

    Raises:
        RunError: the longest example is alone already.
    """
    had = min(budget, int(lengths.sum()))
    if had <= lengths.max():
        raise RunError(
            f"out of memory with one example of {int(lengths.max())} tokens: lower --data.max_length, turn on "
            f"--train.activation_checkpointing, or take a smaller checkpoint ({error})."
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    progress.note(f"out of memory: the window is cut into micro-batches of {had // 2} tokens from here on")
    return had // 2
