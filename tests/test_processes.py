"""Several processes compute what one does, go on from each other's checkpoints, and end together."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_runs import SEAM, at, make_config

from hf_transfer.config import to_yaml

HERE = Path(__file__).parent
GRADIENT_TOLERANCE = 1e-6
"""Of a window that is learnt from with equal weights; each step since then adds the rounding of its own."""
WINDOWS = 8


def process_runs(*words: object) -> str:
    command = [sys.executable, HERE / "process_runs.py", *words]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-5000:]
    return ran.stdout


def check_gradients(found: list[torch.Tensor], expected: list[torch.Tensor], *said: object) -> None:
    for steps, (one, other) in enumerate(zip(found, expected, strict=True)):
        distance = float((one.double() - other.double()).norm() / other.double().norm())
        assert distance < GRADIENT_TOLERANCE * (1 + steps), (*said, steps, distance)


def check_same(found: dict, counts: list[int]) -> None:
    """What every number of processes must have in common with one."""
    one = found["1"]
    assert len(one["gradients"]) == len(one["log"]) == WINDOWS
    assert [record["examples"] for record in one["log"]] == [8, 8, 8, 1] * 2
    assert len(set(one["ids"])) == len(one["ids"]) == 7
    assert {score[1] for score in one["scores"]} == {6, 1}, "a domain with fewer rows than processes"
    for count in counts:
        several = found[str(count)]
        check_gradients(several["gradients"], one["gradients"], count)
        for name in ("step", "learning_rate", "examples", "tokens"):
            assert [record[name] for record in several["log"]] == [record[name] for record in one["log"]], (count, name)
        assert several["ids"] == one["ids"]
        assert several["predicted"] == one["predicted"]
        assert [score[:3] for score in several["scores"]] == [score[:3] for score in one["scores"]]
        values = [[score[3] for score in run["scores"]] for run in (several, one)]
        assert values[0] == pytest.approx(values[1], abs=1e-5, nan_ok=True)
        assert several["validation"] == pytest.approx(one["validation"], abs=1e-5)
        assert not any("processes" in note for note in several["notes"])


def check_continued(found: dict, pairs: list[tuple[int, int]]) -> None:
    """What another number of processes makes of a checkpoint."""
    for before, after in pairs:
        run = found[f"{before},{after}"]
        assert [record["step"] for record in run["log"]] == list(range(SEAM + 1, WINDOWS + 1))
        expected = found[str(before)]["gradients"][SEAM:]
        check_gradients(run["gradients"], expected, before, after)
        rates = [record["learning_rate"] for record in found[str(before)]["log"]]
        assert [record["learning_rate"] for record in run["log"]] == rates[SEAM:]
        (note,) = [note for note in run["notes"] if "number of processes" in note]
        assert note.startswith(
            f"continued on another number of processes ({before} then {after}): the gradient of each"
        )
        assert note.endswith("the run is not the same to the bit")
        assert note in run["said"]


@pytest.mark.recipe
def test_two_processes_compute_what_one_does_and_go_on_from_its_checkpoint(tmp_path):
    process_runs("same", "classification", "full", "1,2", tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    check_same(found, [2])
    check_continued(found, [(1, 2), (2, 1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        *(("classification", strategy) for strategy in ("full", "freeze", "lora", "probe")),
        *(("translation", strategy) for strategy in ("full", "freeze")),
    ],
)
def test_four_processes_compute_what_one_does_and_go_on_from_others_checkpoints(tmp_path, task, strategy):
    process_runs("same", task, strategy, "1,2,4", tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    check_same(found, [2, 4])
    check_continued(found, [(1, 2), (2, 1), (2, 4)])


@pytest.mark.slow
def test_a_script_may_have_several_runs(tmp_path):
    ((codes, said),) = fails(tmp_path, "twice")
    assert codes == [0, 0], said
    first, second = (json.loads((tmp_path / "twice" / name / "results.json").read_text()) for name in ("out", "again"))
    assert first["scores"] == second["scores"]


@pytest.mark.slow
def test_compiled_layers_learn_the_same_in_several_processes(tmp_path):
    ((codes, said),) = fails(tmp_path, "compiles")
    assert codes == [0, 0], said
    never, always = ((tmp_path / "compiles" / name / "log.jsonl").read_text() for name in ("never", "always"))
    for expected, found in zip(map(json.loads, never.splitlines()), map(json.loads, always.splitlines()), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)


@pytest.mark.slow
def test_after_a_run_that_failed_a_script_is_told_to_begin_anew(tmp_path):
    ((codes, said),) = fails(tmp_path, "again_after_a_failure")
    assert codes == [1, 1]
    assert ours(said[0])[-1].startswith("hf-transfer: the run failed: an earlier run of this script has failed")


@pytest.mark.slow
def test_a_launcher_may_start_processes_again_and_they_go_on(tmp_path):
    """Its meeting place outlives them, with what they said there."""
    config = at(make_config("classification", "full", tmp_path), tmp_path / "out")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, resume="auto"))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    launcher = (
        "torch.distributed.run --nproc_per_node 2 --max_restarts 1 --rdzv_backend c10d --rdzv_endpoint 127.0.0.1:0"
    )
    work = [HERE / "process_runs.py", "work", "started_again", tmp_path / "config.yaml"]
    command = [sys.executable, "-m", *launcher.split(), *work]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=200)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "continuing after step 2 of 8" in ran.stderr
    log = (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in log] == [*range(1, 9)]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "count"), [(2, 100), (4, 100)])
def test_processes_meet_each_time(tmp_path, processes, count):
    """One that closed the meeting place and opened it again would send others away, now and then."""
    found = json.loads(process_runs("joins", processes, count, tmp_path).splitlines()[-1])
    assert found == [[0] * processes] * count


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "count"), [(2, 40), (4, 40)])
def test_whenever_the_first_of_processes_that_meet_is_killed_all_end(tmp_path, processes, count):
    found = json.loads(process_runs("killed_joins", processes, count, tmp_path).splitlines()[-1])
    killed = [codes[1:] for codes in found if codes[0] == -signal.SIGKILL]
    assert len(killed) > count // 2, "most had left before the kill"
    assert [1] * (processes - 1) in killed
    assert all(code in (0, 1) for codes in killed for code in codes), "0 of those that had met and left by then"
    assert all(codes == [0] * processes for codes in found if codes[0] != -signal.SIGKILL)


# ---- one fails -----------------------------------------------------------------------------------------------------


def fails(tmp_path: Path, *scenarios: str) -> list[tuple[list, list]]:
    """Codes and words of two processes, for each scenario."""
    ended = json.loads(process_runs("fails", ",".join(scenarios), tmp_path).splitlines()[-1])
    return [tuple(map(list, zip(*ended[name], strict=True))) for name in scenarios]


def ours(said: str) -> list[str]:
    """What we said of the end; no traceback and no word of the backend's stands beside it."""
    assert "Traceback" not in said and "closed by peer" not in said, said
    return [line for line in said.splitlines() if line.startswith(("hf-transfer", "  - "))]


@pytest.mark.recipe
def test_a_process_that_dies_ends_the_other_which_says_who_it_was(tmp_path):
    ((codes, said),) = fails(tmp_path, "killed")
    assert codes == [1, -9]
    (line,) = ours(said[0])
    assert re.fullmatch(
        r"hf-transfer: the run failed: process 1 of 2 \(on \S+, pid \d+\) is gone without a word: it crashed or was "
        r"killed, perhaps for want of memory\. Process 0 was at: training, step 3 of 8\. Start all processes again "
        r"with --train\.resume auto to go on from the last checkpoint\.",
        line,
    ), line


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint 127.0.0.1:0",
        "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0",
    ],
    ids=["torchrun", "accelerate"],
)
def test_under_a_launcher_the_reason_stands_above_what_the_launcher_says(tmp_path, launcher):
    config = at(make_config("classification", "full", tmp_path), tmp_path / "out")
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    work = [HERE / "process_runs.py", "work", "killed", tmp_path / "run.yaml"]
    command = [sys.executable, "-m", *launcher.split(), *work]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=200)
    assert ran.returncode != 0
    before, reason, after = ran.stderr.partition("hf-transfer: the run failed: process 1 of 2 (")
    assert reason, ran.stderr[-5000:]
    assert "is gone without a word" in after.splitlines()[0]
    assert "Traceback" not in before and "Error" not in before
    assert "closed by peer" not in ran.stderr


@pytest.mark.slow
def test_under_a_launcher_the_process_that_saves_says_why_it_could_not(tmp_path):
    """The launcher ends all others when one has gone."""
    config = at(make_config("classification", "full", tmp_path), tmp_path / "out")
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    work = [HERE / "process_runs.py", "work", "no_memory_left", tmp_path / "run.yaml"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, *work]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=200)
    assert ran.returncode != 0
    assert "RuntimeError: DefaultCPUAllocator: can't allocate memory" in ran.stderr, ran.stderr[-5000:]
    assert "stopped outside of training" not in ran.stderr
    assert "exitcode: 1" in re.sub(r" +", " ", ran.stderr) and "exitcode: 75" not in re.sub(r" +", " ", ran.stderr)


@pytest.mark.slow
def test_what_one_process_meets_is_said_once_and_ends_all(tmp_path):
    names = ["first_killed", "raises", "refuses", "all_refuse", "untracked", "unproved", "told_while_scoring"]
    ended = dict(zip(names, fails(tmp_path, *names), strict=True))
    codes, said = ended["first_killed"]
    assert codes == [-9, 1]
    assert re.search(r"the run failed: process 0 of 2 \(on \S+, pid \d+\) is gone without a word", ours(said[1])[0])

    codes, said = ended["raises"]
    assert codes == [1, 1]
    assert said[1].rstrip().endswith("ValueError: a label that is none"), "a defect keeps its traceback"
    (line,) = ours(said[0])
    assert re.search(
        r"the run failed: process 1 of 2 \(on \S+, pid \d+\) failed: ValueError: a label that is none\. P", line
    )

    codes, said = ended["refuses"]
    assert codes == [1, 2]
    first, problem = ours(said[1])
    assert first == "hf-transfer, process 1: 1 problem"
    assert "missing.csv" in problem
    assert "missing.csv" in ours(said[0])[0]

    codes, said = ended["all_refuse"]
    assert codes == [2, 2]
    assert ours(said[0])[0] == "hf-transfer: 1 problem"
    assert ours(said[1]) == []

    codes, said = ended["untracked"]
    assert codes == [2, 1]
    assert ours(said[0])[1:] == ["  - --report.trackers wandb: wandb is not installed, says 0"]
    assert ours(said[1]) == []
    assert not (tmp_path / "untracked" / "out").exists()

    codes, said = ended["told_while_scoring"]
    assert codes == [75, 75], "a scheduler starts it again, whichever it asks"
    told = "SIGUSR1: stopped outside of training; the same command with --train.resume auto goes on from the last"
    assert ours(said[1]) == [f"hf-transfer: {told} checkpoint."]
    (line,) = ours(said[0])
    assert re.search(r"process 1 of 2 \(on \S+, pid \d+\) failed: Preempted: SIGUSR1: stopped outside", line), line

    codes, said = ended["unproved"]
    assert codes == [1, 1]
    assert ours(said[0]) == ["hf-transfer: the run failed: the model that was saved is not the one that was trained"]
    assert ours(said[1]) == []


@pytest.mark.slow
def test_a_process_at_long_work_of_its_own_is_not_taken_for_dead(tmp_path):
    ((codes, said),) = fails(tmp_path, "busy")
    assert codes == [0, 0], said
    assert (tmp_path / "busy" / "out" / "results.json").is_file()


@pytest.mark.slow
def test_a_comparison_goes_on_after_what_all_have_met_and_ends_with_what_one_has(tmp_path):
    unproved, astray = fails(tmp_path, "compares_with_one_unproved", "compares_with_one_astray")
    codes, said = unproved
    assert codes == [0, 0], said
    assert "failed: the model that was saved is not the one that was trained" in said[0]
    results = json.loads((tmp_path / "compares_with_one_unproved" / "out" / "results.json").read_text(encoding="utf-8"))
    assert sorted(run["status"] for run in results["runs"]) == ["failed", "finished"]

    codes, said = astray
    assert codes == [1, 1]
    (line,) = ours(said[1])
    assert line.startswith("hf-transfer, process 1: the run failed: run ")
    assert "not all processes have met this, so that they cannot go on together: this machine has no such" in line
    assert "this machine has no such checkpoint" in ours(said[0])[0]
