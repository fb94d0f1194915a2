"""Floor 2: the windows of a training, drawn by their number, and what a process has to compute of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_transfer.batching import Mixture, cut_window, share_window, window_count, window_indices
from hf_transfer.records import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset


@dataclass(frozen=True)
class Windows:
    """Windows of encoded ``rows``; any can be named without walking through those before it."""

    rows: Dataset
    lengths: np.ndarray
    """[rows] tokens."""
    size: int
    """Examples of a window, over all processes."""
    seed: int
    mixture: Mixture | None
    """Which of ``rows`` an epoch has; None for all."""
    train_batch: Callable[..., Batch]
    """Makes a batch of rows as columns of lists."""
    copies: int
    """How often a batch holds each of its examples."""
    accelerator: Accelerator

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch."""
        return window_count(self.epoch_size, self.size)

    @property
    def epoch_size(self) -> int:
        """Examples of one pass."""
        return len(self.rows if self.mixture is None else self.mixture)

    def indices(self, step: int) -> np.ndarray:
        """Row numbers [size or fewer] of the window of a step, counted from 0 over all epochs."""
        window = window_indices(self.epoch_size, self.size, self.seed, step)
        return window if self.mixture is None else self.mixture.rows(window, step // self.per_epoch)

    def batches(self, flat: bool, step: int, budget: int) -> list[tuple[Batch, bool]]:
        """This process's micro-batches of the window of a step (see ``own_batches``)."""
        window = self.indices(step)
        lengths = self.lengths[window]
        return own_batches(self.rows, window, lengths, self.train_batch, budget, self.accelerator, flat, self.copies)

    def least_batch(self) -> Batch:
        """The shortest example alone, for which there is room if there is any."""
        return self.train_batch(self.rows[self.lengths.argsort()[:1]])


def own_batches(
    rows: Dataset,
    window: np.ndarray,
    lengths: np.ndarray,
    make_batch: Callable[..., Batch],
    budget: int,
    accelerator: Accelerator,
    flat: bool,
    copies: int = 1,
) -> list[tuple[Batch, bool]]:
    """This process's micro-batches of a window, each with whether it counts (see ``learn_window``).

    Args:
        window: [window] row numbers.
        lengths: [window] tokens of each.
        make_batch: from rows as columns of lists.
        budget: tokens of a micro-batch, which holds each example ``copies`` times.
        flat: the layers see real tokens only.
    """
    shares = share_window(lengths, accelerator.num_processes)
    cuts = [cut_window(lengths[share], budget // copies, flat) for share in shares]
    share = shares[accelerator.process_index]
    columns = rows[window[share]]  # one read for the window
    batches = [
        (make_batch({name: [values[i] for i in piece] for name, values in columns.items()}), True)
        for piece in cuts[accelerator.process_index]
    ]
    # sharded parameters are gathered by all processes in each forward, so all must make the same number of them
    needed = max(len(cut) for cut in cuts) if getattr(accelerator, "is_fsdp2", False) else 1
    if len(batches) < needed:
        filler = (make_batch(rows[window[:1]]), False)
        batches = [filler] * (needed - len(batches)) + batches
    return batches
