"""Stages of a training laid end to end, in optimizer steps."""

import pytest

from hf_transfer.adapt.base import Stage
from hf_transfer.config import TrainConfig
from hf_transfer.schedule import plan_stages


def test_stages_are_laid_end_to_end():
    head, thaw, rest = Stage("head", (), 1.0, own_schedule=True), Stage("thaw 0", (), 1.0), Stage("thaw 1", ())
    plans = plan_stages((head, thaw, rest), 100, TrainConfig(epochs=3, window_size=10))
    assert [(p.first_step, p.steps, p.schedule_first, p.schedule_steps) for p in plans] == [
        (0, 10, 0, 10),
        (10, 10, 10, 30),
        (20, 20, 10, 30),
    ]
    plans = plan_stages((thaw, thaw, rest), 100, TrainConfig(epochs=1, window_size=10))
    assert [(p.first_step, p.steps) for p in plans] == [(0, 10)]


@pytest.mark.parametrize(("steps", "expected"), [(30, [(0, 10), (10, 20)]), (8, [(0, 4), (4, 4)]), (1, [(0, 1)])])
def test_steps_that_were_asked_for_hold_the_stage_of_the_head(steps, expected):
    stages = (Stage("head", (), 1.0, own_schedule=True), Stage("rest", ()))
    plans = plan_stages(stages, 100, TrainConfig(max_steps=steps, window_size=10))
    assert [(p.first_step, p.steps) for p in plans] == expected
    assert plans[-1].schedule_steps == expected[-1][1]


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 110), (0.07, 7), (0.071, 8), (0.001, 1)])
def test_part_of_an_epoch_is_as_many_windows_as_arithmetic_says(epochs, steps):
    (plan,) = plan_stages((Stage("all", ()),), 1000, TrainConfig(epochs=epochs, window_size=10))
    assert plan.steps == steps
