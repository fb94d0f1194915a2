"""Floor 1: from the host to the device without waiting for the device, what has room there, and the most that was held.

A plain copy to a GPU waits until everything that was asked of the GPU before is done, and while it waits nothing new is
asked. From pinned (page-locked) memory the copy is one more item in the GPU's queue; torch keeps the pinned memory
until it has been read. Nothing that a micro-batch needs is asked of the GPU in turn: lengths, the places of real tokens
and those of targets are read on the host, from the batch before it is sent. So the GPU is waited for at the end of a
window, when its loss and gradient norm are read, and the next window's batches are made before that; several processes
also count their targets at its beginning. Where states of frozen layers are looked up, each micro-batch waits once, as
it begins, for the ids that they are looked up by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from hf_transfer.errors import RunError
from hf_transfer.records import Batch

Made = TypeVar("Made")


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; itself if it is there already."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_batch(batch: Batch, device: torch.device) -> Batch:
    """``batch`` with everything that model and loss read on ``device``."""
    places = batch.target_places
    return replace(
        batch,
        inputs={name: send(tensor, device) for name, tensor in batch.inputs.items()},
        labels=send(batch.labels, device),
        target_places=None if places is None else send(places, device),
    )


NO_ROOM = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""In the words of torch on the host, of CUDA about memory that torch does not deal out, and of cuBLAS and cuDNN."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that memory ran out, so that less at once may have room."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_ROOM)


class Room:
    """How much of a pass that learns nothing has room at once: where memory runs out, rows go in halves, and as few at
    once from then on. What each row gets is the same."""

    def __init__(self) -> None:
        self._most = math.inf

    def run(self, call: Callable[[np.ndarray], Made], rows: np.ndarray, tokens: int) -> list[tuple[np.ndarray, Made]]:
        """``call`` of ``rows``, or of pieces of them one after the other: each piece and what was made of it, in order.

        Args:
            rows: [rows] numbers of rows that are padded to ``tokens`` each.

        Raises:
            RunError: a single row has no room.
        """
        left, found = [rows], []
        while left:
            piece = left.pop()
            if len(piece) > 1 and len(piece) * tokens > self._most:
                half = len(piece) // 2
                left += [piece[half:], piece[:half]]
                continue
            has_room = True
            try:
                found.append((piece, call(piece)))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(piece) == 1:
                    raise RunError(
                        f"out of memory with one text of {tokens} tokens alone: shorten it (--data.max_length), or "
                        f"take a smaller checkpoint ({error})."
                    ) from error
                has_room = False
            if not has_room:  # not within `except`: the traceback would hold on to what was computed
                self._most = len(piece) * tokens / 2
                left.append(piece)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return found


_peaks: dict[torch.device, int] = {}  # most bytes held before the GPU's own count began anew


def keep_peak(device: torch.device) -> None:
    """Let the GPU's count of the most memory held begin anew, and remember what it was."""
    _peaks[device] = peak_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)


def forget_peak(device: torch.device) -> None:
    """Let ``peak_bytes`` begin anew."""
    _peaks.pop(device, None)
    torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory held at once on a GPU since ``forget_peak``."""
    return max(_peaks.get(device, 0), torch.cuda.max_memory_allocated(device))
