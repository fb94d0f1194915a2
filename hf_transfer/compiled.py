"""Floor 2: the layers of a model through torch's compiler, where that earns its price.

Plan. A compiler joins what lies between matrix products (norms, GELU, residuals, dropout) into a few kernels.

1. Each layer is compiled by itself, so that those that are alike share what comes of it. Lengths are symbols in it, and
   attention inside the examples of a long row, which goes by their lengths, stays outside: the number of compilations
   does not grow with the shapes of windows.
2. Only passes that are learnt from go through it. Validation, scores and decoding are what they are without.
3. ``auto`` finds out on the spot, on a GPU and in long stages: some windows as they are, some compiled, and what took
   less time per token stays. On a CPU compiled layers were slower (benchmarks/LOG.md), and ``auto`` leaves them.

Results are the same up to rounding; on a GPU the draws of dropout are others.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_transfer.errors import RunError
from hf_transfer.flattened import attention_stays_outside
from hf_transfer.launch import sum_over_processes

BACKEND = "inductor"
TRIED_ON = ("cuda",)
"""Devices on which ``auto`` tries."""
UNCOUNTED, COUNTED = 3, 8
"""Windows that are not timed (they also pay for what is set up once) and that are, as they are and compiled."""
HOPED_GAIN = 0.1
"""Share of its time that a stage is hoped to lose to the compiler."""
PRICE_SECONDS = 60.0
"""What a trial may cost. On two CPU cores the first compiled window of six layers took 8 to 12 s."""


class CompiledLayers:
    """The layers of a model while it is trained, compiled or not."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        wanted: str,
        accelerator: Accelerator,
        note: Callable[[str], None],
    ) -> None:
        """``wanted``: ``never``, ``auto`` or ``always``; ``note`` is called with what came of a trial."""
        self._layers, self._wanted, self._accelerator, self._note = layers, wanted, accelerator, note
        self._undo = ExitStack()
        self._left = 0
        self._trying = self._gave_up = False
        self._windows: list[tuple[float, int]] = []
        self._plain = 0.0
        """Seconds per token of layers as they are; 0 before that is known."""

    def begin(self, windows: int) -> None:
        """A stage of so many windows begins.

        Raises:
            RunError: layers are to be compiled, and torch cannot do it here.
        """
        self._undo.close()
        self._left, self._windows, self._plain, self._gave_up = windows, [], 0.0, False
        self._trying = self._wanted == "auto" and self._accelerator.device.type in TRIED_ON
        if self._wanted == "always":
            reason = self._compile()
            if reason:
                raise RunError(f"--train.compile always: torch cannot compile here ({reason}): leave it out.")

    def learnt(self, seconds: float, tokens: int) -> None:
        """A window has been learnt from."""
        if not self._trying:
            return
        self._left -= 1
        self._windows.append((seconds, tokens))
        if len(self._windows) < UNCOUNTED + COUNTED:
            return
        counted = self._windows[UNCOUNTED:]
        took = self._mean(statistics.median(spent / max(count, 1) for spent, count in counted))
        if not self._plain:
            left = self._mean(statistics.fmean(spent for spent, _ in counted)) * self._left
            self._begin_trial(took, left)
        else:
            self._end_trial(self._plain / took, sum(spent for spent, _ in self._windows[:UNCOUNTED]))
        self._windows = []

    def _begin_trial(self, seconds_per_token: float, seconds_left: float) -> None:
        self._plain, self._trying = seconds_per_token, seconds_left * HOPED_GAIN > PRICE_SECONDS
        reason = self._compile() if self._trying else ""
        if self._mean(float(bool(reason))):  # all processes go on alike
            self._undo.close()
            self._trying = False
            self._note(f"layers are not compiled: torch cannot do it here ({reason or 'on another process'})")

    def _end_trial(self, times: float, first: float) -> None:
        self._trying = False
        if self._mean(float(self._gave_up)):
            if not self._gave_up:
                self._note("layers are not compiled: torch cannot do it on another process")
            self._undo.close()
            return
        kept = "they stay" if times > 1 else "they go"
        self._note(
            f"compiled layers: {times:.2f} times as fast, {first:.1f} s for the first {UNCOUNTED} windows; {kept}"
        )
        if times <= 1:
            self._undo.close()

    def _mean(self, value: float) -> float:
        """Over all processes, which decide alike."""
        return sum_over_processes([value], self._accelerator)[0] / self._accelerator.num_processes

    def close(self) -> None:
        """Give the layers their own ``forward`` back."""
        self._undo.close()

    def _compile(self) -> str:
        """Compile the layers; why that is not possible, or ""."""
        import torch._dynamo.exc  # here, since it takes seconds to import

        try:  # something small first: a compiler that is not there is told from one that fails on a layer
            torch.compile(_small, backend=BACKEND)(torch.ones(8, device=self._accelerator.device))
        except torch._dynamo.exc.TorchDynamoException as error:
            return str(error).partition("\n")[0]
        self._undo.enter_context(attention_stays_outside())
        for layer in self._layers:
            self._undo.enter_context(_compiled(layer, self._give_up))
        return ""

    def _give_up(self, error: Exception) -> None:
        """A layer cannot be compiled: under ``auto`` it runs as it is, like all others from the next one on.

        Raises:
            RunError: it was to be compiled.
        """
        what = str(error).partition("\n")[0]
        if self._wanted == "always":
            raise RunError(f"--train.compile always: torch cannot compile a layer ({what}): leave it out.") from error
        self._gave_up = True
        self._undo.close()
        self._note(f"layers are not compiled: torch cannot do it with these ({what})")


def _small(states: torch.Tensor) -> torch.Tensor:
    return torch.tanh(states) + 1


@contextmanager
def _compiled(layer: Any, give_up: Callable[[Exception], None]) -> Iterator[None]:
    """Let passes of ``layer`` that are learnt from go through the compiler; what it cannot do goes to ``give_up``."""
    plain = layer.forward
    had_its_own = "forward" in vars(layer)
    quick = torch.compile(plain, dynamic=True, backend=BACKEND)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        try:
            return quick(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            give_up(error)
        return plain(*args, **kwargs)

    layer.forward = forward
    try:
        yield
    finally:
        if had_its_own:
            layer.forward = plain
        else:
            del layer.forward
