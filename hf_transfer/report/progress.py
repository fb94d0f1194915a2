"""Floor 4: the bar beside the training loop; plain lines where nobody watches, nothing on the other processes."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from hf_transfer.report.results import one_line

SECONDS_PER_REFRESH = 0.25
SECONDS_PER_NOTE = 10.0
"""Between two lines about a long evaluation."""
LOSS_MEMORY = 0.95  # share of the running loss kept at each step: an average over about the last 20


class Progress:
    """A bar with steps, running loss, learning rate, speed and time left; use it as a context manager.

    On a terminal it draws on standard error, where it does not mix with results; in CI (``CI`` is set) or without a
    terminal it prints each note as a plain line and nothing per step; off the main process it is silent.
    """

    def __init__(
        self, total_steps: int, *, done_steps: int = 0, is_main: bool = True, console: Console | None = None
    ) -> None:
        """``done_steps`` are those of a resumed run, already behind; they count in the bar but not in the speed."""
        self._console = console or Console(stderr=True)
        self._is_main = is_main
        self._total_steps = total_steps
        self._steps = done_steps
        self._examples = 0
        self._loss_sum = self._loss_weight = 0.0
        self._last_loss = self._learning_rate = math.nan
        # (clock, steps, examples) at the last refreshes: 40 of them make speeds of the last 10 seconds or more
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=40)
        self._bar: Bar | None = None
        if is_main and self._console.is_interactive and not os.environ.get("CI"):
            self._bar = _new_bar(self._console)
            self._task = self._bar.add_task("train", total=total_steps, completed=done_steps, facts="")

    def __enter__(self) -> Progress:
        self._marks.append((time.monotonic(), self._steps, self._examples))
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._refresh(self._bar, time.monotonic())  # the last state stays on the screen
            self._bar.stop()

    def advance(self, loss: float, learning_rate: float, examples: int) -> None:
        """One optimizer step is done; all three are numbers already on the host. About a microsecond per call."""
        if self._bar is None:
            return
        self._steps += 1
        self._examples += examples
        self._last_loss, self._learning_rate = loss, learning_rate
        if math.isfinite(loss):  # one bad step must not spoil the average for the rest of the run
            self._loss_sum = LOSS_MEMORY * self._loss_sum + (1 - LOSS_MEMORY) * loss
            self._loss_weight = LOSS_MEMORY * self._loss_weight + (1 - LOSS_MEMORY)
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= SECONDS_PER_REFRESH:
            self._refresh(self._bar, now)

    def note(self, text: str) -> None:
        """Print one line (a validation result, say) above the bar, or on its own where there is none."""
        if self._is_main:
            # soft_wrap: a line of a log stays one line, whatever width the log claims to have
            self._console.print(one_line(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def scored(self, total: int) -> Callable[[int], None]:
        """Count texts that are written (translated, say): calls with how many more are done print a line now and
        then."""
        started = last = time.monotonic()
        done = 0

        def count(more: int) -> None:
            nonlocal done, last
            done = min(done + more, total)  # a long text is written in several parts, each of which is counted
            now = time.monotonic()
            if now - last >= SECONDS_PER_NOTE or (done >= total and now - started >= SECONDS_PER_NOTE):
                last = now
                speed = done / max(now - started, 1e-9)
                left = f", {_clock((total - done) / speed)} left" if done < total else ""
                self.note(f"translated {done:,} of {total:,} sentences ({speed:,.1f} sentences/s{left})")

        return count

    def _refresh(self, bar: Bar, now: float) -> None:
        self._marks.append((now, self._steps, self._examples))
        bar.update(self._task, completed=self._steps, facts=self._facts())
        bar.refresh()

    def _facts(self) -> str:
        """``loss 0.412  rate 4.5e-05  812.0 examples/s  0:42 left``, as far as known."""
        if not self._examples:
            return ""
        (start, first_step, first_example), (now, steps, examples) = self._marks[0], self._marks[-1]
        seconds = now - start
        facts = [f"loss {self._loss():.3f}", f"rate {self._learning_rate:.1e}"]
        if seconds > 0 and steps > first_step:
            facts.append(f"{(examples - first_example) / seconds:,.1f} examples/s")
            left = max(self._total_steps - steps, 0) * seconds / (steps - first_step)
            facts.append(f"{_clock(left)} left")
        return "  ".join(facts)

    def _loss(self) -> float:
        """The running loss; a loss that is not finite shows as itself, at once."""
        if not math.isfinite(self._last_loss) or not self._loss_weight:
            return self._last_loss
        return self._loss_sum / self._loss_weight  # the weight corrects for the start from zero


def _new_bar(console: Console) -> Bar:
    # no refresh thread: it would run beside the loop, and a forked data worker would inherit its lock
    steps = TextColumn("{task.completed:.0f}/{task.total:.0f}")
    facts = TextColumn("{task.fields[facts]}", markup=False)
    return Bar(BarColumn(bar_width=None), steps, facts, console=console, auto_refresh=False, expand=True)


def _clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
