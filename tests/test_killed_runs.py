"""A run that is killed at any moment and continued ends as if nothing had happened, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def trials(folder: Path, task: str, strategy: str, processes: int, count: int) -> dict:
    """What killed_runs.py says of ``count`` trials."""
    script = Path(__file__).parent / "killed_runs.py"
    command = [sys.executable, script, task, strategy, processes, count, folder]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.recipe
def test_a_killed_run_is_continued_to_the_same_end(tmp_path):
    record = trials(tmp_path, "classification", "freeze", 1, 2)
    assert record["differ"] == []
    assert record["in_a_save"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "strategy", "processes", "count"),
    [
        *(("classification", strategy, 1, 25) for strategy in ("full", "freeze", "lora", "probe")),
        *(("translation", strategy, 1, 25) for strategy in ("full", "freeze", "lora")),
        *(("translation", strategy, 1, 10) for strategy in ("mixed", "interpolated")),
        *(("classification", strategy, 2, 6) for strategy in ("full", "freeze", "lora", "probe")),
        *(("translation", strategy, 2, 6) for strategy in ("full", "lora")),
    ],
)
def test_runs_killed_at_random_moments_are_continued_to_the_same_end(tmp_path, task, strategy, processes, count):
    record = trials(tmp_path, task, strategy, processes, count)
    assert record["differ"] == []
    assert record["trials"] == count
    assert len(record["victims"] + record["writers"]) >= count // 2, "most trials were over before they were killed"
    assert set(record["victims"]) == set(range(processes)), "a process was never the one that is killed"
    assert record["in_a_save"], "no kill fell into the writing of a checkpoint"
    assert record["continued_from"], "no trial went on from a checkpoint"
    assert record["hung"] == 0, "a process outlived the one that was killed"
