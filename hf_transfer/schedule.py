"""Floor 2: where the stages of a training lie in its course, and where a step stands in their schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_transfer.adapt.base import Stage
from hf_transfer.batching import steps_of, window_count
from hf_transfer.config import TrainConfig
from hf_transfer.records import RunState


@dataclass(frozen=True)
class StagePlan:
    """Where a stage lies in the course of training, in optimizer steps."""

    stage: Stage
    first_step: int
    steps: int
    schedule_first: int
    """Step at which the schedule that the stage takes part in begins."""
    schedule_steps: int

    @property
    def begins_schedule(self) -> bool:
        """Whether it is the first stage of its schedule."""
        return self.first_step == self.schedule_first

    @property
    def end(self) -> int:
        """The step that comes after it."""
        return self.first_step + self.steps


def plan_stages(stages: Sequence[Stage], examples: int, settings: TrainConfig) -> tuple[StagePlan, ...]:
    """Lay the stages end to end.

    Stages with their own schedule come on top of ``epochs``; of ``max_steps`` they take a part, at most half of it.
    Among the others, those that name their epochs take them from what ``settings`` ask for, and the last has the rest.
    """
    per_epoch = window_count(examples, settings.window_size)
    total = settings.max_steps or max(1, steps_of(settings.passes, per_epoch))
    plans: list[StagePlan] = []
    step = left = 0
    for stage in stages:
        if stage.own_schedule:
            steps = max(1, steps_of(stage.epochs or 1.0, per_epoch))
            if settings.max_steps is not None:
                steps = min(steps, total // 2)
                total -= steps
            if steps:
                plans.append(StagePlan(stage, step, steps, step, steps))
        else:
            left = left or total
            last = stage is stages[-1]
            steps = left if last else min(steps_of(stage.epochs or 0, per_epoch), left)
            begin = next((p.schedule_first for p in plans if not p.stage.own_schedule), step)
            plans.append(StagePlan(stage, step, steps, begin, total))
            left -= steps
        step += steps
        if not stage.own_schedule and not left:
            break  # asked for fewer epochs than there are stages: the upper layers are all that thaws
    return tuple(plans)


def seconds_at(step: int, state: RunState) -> float:
    """Seconds of training before ``step``; of a run that was continued in mid-stage, as if all steps took as long."""
    return state.train_seconds * step / state.step if state.step else 0.0


def position_of(step: int, plan: StagePlan, state: RunState, schedule_began: float, settings: TrainConfig) -> int:
    """Where a step, counted from 0, stands in its schedule; with a limit of seconds, as far on as the clock is, if that
    is further. ``schedule_began``: seconds of training before the schedule did."""
    in_schedule = step - plan.schedule_first
    if settings.max_seconds is None:
        return in_schedule
    elapsed = (state.train_seconds - schedule_began) / max(settings.max_seconds - schedule_began, 1e-9)
    by_clock = int(plan.schedule_steps * min(1.0, elapsed))
    return max(in_schedule, min(by_clock, plan.schedule_steps - 1))
