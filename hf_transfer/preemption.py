"""Floor 1: what a scheduler says before it takes the machine back.

Slurm sends SIGTERM, or what ``--signal`` asks for, some time before it kills; Kubernetes and machines let by the hour
send SIGTERM. While windows are learnt from, the loop asks after each one whether any process was told, saves a
checkpoint and leaves; a second signal changes nothing. Before and after, where there is nothing to save that is not on
disk, the run ends at once. Either way it leaves with the exit code upon which a scheduler starts it again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import Preempted

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))

_current: Notice | None = None


class Notice:
    """Entered around a run: whether the machine is about to be taken. Outside, signals do what they did before."""

    def __init__(self, remedy: Callable[[], str] | None = None) -> None:
        """``remedy``: what to do after the end, in words; asked for when that is near."""
        self.signal = ""
        """Name of the signal that came; "" before."""
        self._remedy = remedy
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Notice:
        global _current
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            _current = self
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if _current is self:
            _current = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if not self._waits:
            self._leave_alone()

    def _leave_alone(self) -> None:
        remedy = self._remedy() if self._remedy else "the same command begins anew"
        raise Preempted(f"{self.signal}: stopped outside of training; {remedy}.", together=False)

    @contextmanager
    def waiting(self) -> Iterator[Notice]:
        """While it lasts, signals are only remembered, for ``given`` to tell."""
        self._waits = True
        try:
            yield self
        finally:
            self._waits = False
        if self.signal:  # it came after the last window was asked about
            self._leave_alone()

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
        told = self.signal or "a signal to another process"
        remedy = self._remedy() if self._remedy else "the same command with --train.resume auto goes on from there"
        raise Preempted(f"{told}: stopped after step {step} of {steps}, with a checkpoint; {remedy}.")


@contextmanager
def window_by_window() -> Iterator[Notice]:
    """Around the loop, where a signal waits for the end of the window; the notice is the run's, or the loop's own."""
    if _current is not None and threading.current_thread() is threading.main_thread():
        with _current.waiting() as notice:
            yield notice
        return
    with Notice() as alone, alone.waiting() as notice:
        yield notice
