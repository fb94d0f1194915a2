"""Floor 1: what a scheduler says before it takes the machine back.

Slurm sends SIGTERM, or what ``--signal`` asks for, some time before it kills; Kubernetes and machines let by the hour
send SIGTERM. The loop asks after each window whether any process was told, saves a checkpoint and leaves. A second
signal changes nothing: who cannot wait sends SIGKILL, and the checkpoint before the last is then still whole.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import Preempted

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Notice:
    """Entered around training: whether the machine is about to be taken. Outside, signals do what they did before."""

    def __init__(self) -> None:
        self.signal = ""
        """Name of the signal that came; "" before."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def given(self, accelerator: Accelerator) -> bool:
        """Whether any process was told; all of them ask together, and get the same answer."""
        if accelerator.num_processes == 1:
            return bool(self.signal)
        import torch

        told = torch.tensor([float(bool(self.signal))], device=accelerator.device)
        return bool(accelerator.reduce(told, reduction="sum").item())

    def leave(self, step: int, steps: int) -> None:
        """End training after ``step`` of ``steps``, whose checkpoint is on disk.

        Raises:
            Preempted: always.
        """
        raise Preempted(
            f"{self.signal or 'a signal to another process'}: stopped after step {step} of {steps}, with a checkpoint; "
            "the same command with --train.resume auto goes on from there."
        )
