"""Floor 3: which step of a training is kept: validated, remembered, and put back at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from hf_transfer import checkpoint
from hf_transfer.errors import RunError
from hf_transfer.records import RunState, Selection
from hf_transfer.step_log import ProgressBar

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Chooser:
    """How the step to keep is chosen."""

    rule: str
    """``in_domain_validation`` or ``last``."""
    metric: str
    higher_is_better: bool
    validate: Callable[[nn.Module], float]
    """Score of the model on in-domain validation; all processes call it and get the same number."""

    def better(self, value: float, best: float) -> bool:
        """Whether ``value`` beats ``best``; any number beats nan."""
        if math.isnan(value) or math.isnan(best):
            return math.isnan(best) and not math.isnan(value)
        return value > best if self.higher_is_better else value < best


@dataclass(frozen=True)
class ModelSelection:
    """Model selection during a training: each validation, and what it leaves on disk."""

    chooser: Chooser
    names: tuple[str, ...]
    """Of the parameters that learn."""
    steps_per_epoch: int
    averaged: int
    """The last so many validations are averaged in the end; 0 keeps the one that the rule of ``chooser`` says."""
    checkpoints: Path
    accelerator: Accelerator
    progress: ProgressBar

    def validate(self, state: RunState, model: nn.Module, patience: int) -> RunState:
        """Score validation, keep the parameters if they are the best so far, and decide whether to stop.

        All processes call it. ``patience``: validations without a better score after which training stops; 0 for none.
        """
        started = time.perf_counter()
        metric, value = self.chooser.metric, self.chooser.validate(model)
        epoch = round(state.step / self.steps_per_epoch, 3)
        seconds = time.perf_counter() - started
        record = {"step": state.step, "epoch": epoch, "metric": metric, "value": value, "seconds": seconds}
        state = replace(state, history=(*state.history, record))
        self.progress.note(f"step {state.step}  epoch {epoch:g}  validation {metric} {value:.4f}")
        if self.averaged:
            kept = self._averaged_steps(state)
            checkpoint.save_for_average(self.checkpoints, model, self.names, kept, self.accelerator)
        if self.chooser.rule == "last":
            return state
        # of several that are undefined the last is kept, as where nothing is chosen
        if state.best_step < 0 or math.isnan(state.best_value) or self.chooser.better(value, state.best_value):
            checkpoint.save_best(self.checkpoints, model, self.names, state.step, self.accelerator)
            return replace(state, best_step=state.step, best_value=value, bad_validations=0)
        bad = state.bad_validations + 1
        stop = bool(patience) and bad >= patience
        if stop:
            self.progress.note(f"stopping early: no better {metric} in {bad} validations")
        return replace(state, bad_validations=bad, stopped_early=stop)

    def restore(self, state: RunState, model: nn.Module) -> Selection:
        """Put the best step's parameters back, and see that they score what was recorded; or the mean of the last ones.

        All processes call it.

        Raises:
            RunError: the step that was put back scores otherwise.
        """
        rule, metric = self.chooser.rule, self.chooser.metric
        if self.averaged and state.history:
            steps = self._averaged_steps(state)
            checkpoint.load_average(self.checkpoints, model, steps, self.accelerator)
            mean = f"mean of the weights at the last {len(steps)} validations"
            return Selection(mean, metric, state.step, self.chooser.validate(model))
        if rule == "last" or state.best_step == state.step:
            return Selection(rule, metric, state.step, state.history[-1]["value"] if state.history else math.nan)
        checkpoint.load_best(self.checkpoints, model, state.best_step, self.accelerator)
        again = self.chooser.validate(model)
        if not math.isclose(again, state.best_value, rel_tol=1e-4, abs_tol=1e-6):
            raise RunError(
                f"the parameters of step {state.best_step} were put back, but score {metric} {again} where "
                f"{state.best_value} was recorded: {self.checkpoints / 'best'} is not what was saved."
            )
        return Selection(rule, metric, state.best_step, state.best_value)

    def _averaged_steps(self, state: RunState) -> list[int]:
        return [record["step"] for record in state.history[-self.averaged :]]
