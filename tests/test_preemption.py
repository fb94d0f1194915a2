"""A signal that the machine will be taken: a checkpoint within one window, a way on, and the same numbers after it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from test_train import Silent, open_tiny, parameters_of
from tiny import make_checkpoint
from toy import encoded_rows, launch_two, write_reviews

from hf_transfer import page
from hf_transfer import train as training
from hf_transfer.checkpoint import RunFolder
from hf_transfer.cli import exit_codes
from hf_transfer.config import DataConfig, EvaluateConfig, ModelConfig, RunConfig, TrainConfig
from hf_transfer.errors import Preempted
from hf_transfer.model_selection import Chooser
from hf_transfer.page import run
from hf_transfer.preemption import SIGNALS, Notice, window_by_window
from hf_transfer.train import train

CONFIG = TrainConfig(epochs=3, window_size=10, learning_rate=1e-3)  # 12 steps of 40 examples


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bert"), hidden_dropout_prob=0.1)


class Signals(Silent):
    """A progress bar that sends ``number`` to its own process while a window is learnt."""

    def __init__(self, number=None, at=0):
        super().__init__()
        self.number, self.at, self.windows = number, at, 0

    def advance(self, loss, learning_rate, examples):
        self.windows += 1
        if self.windows == self.at:
            os.kill(os.getpid(), self.number)
            os.kill(os.getpid(), self.number)  # a second one changes nothing


def run_training(checkpoint, folder, progress, resume_from=None, config=CONFIG):
    pretrained, adapted, functions = open_tiny(checkpoint)
    rows = encoded_rows(40, len(pretrained.tokenizer), 3)
    chooser = Chooser("in_domain_validation", "loss", False, lambda m: float(next(m.parameters()).detach().norm()))
    run_folder = RunFolder(folder / "log.jsonl", folder / "checkpoints", {}, resume_from)
    train(adapted, rows, functions, chooser, Accelerator(), config, run_folder, 0, progress)
    return adapted


def log_of(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_a_checkpoint_of_the_window_and_the_run_goes_on_to_the_same_end(checkpoint, tmp_path, number):
    whole = run_training(checkpoint, tmp_path / "whole", Silent())
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Preempted, match=rf"^{number.name}: stopped after step 7 of 12, .*--train\.resume auto"):
        run_training(checkpoint, tmp_path / "cut", Signals(number, at=7))
    assert [signal.getsignal(each) for each in SIGNALS] == before
    left = tmp_path / "cut" / "checkpoints" / "step-7"
    assert left.is_dir()
    assert len(log_of(tmp_path / "cut")) == 7
    again = run_training(checkpoint, tmp_path / "cut", Silent(), resume_from=left)
    wanted = parameters_of(whole)
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(again).items())
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_a_signal_after_the_last_window_loses_nothing(checkpoint, tmp_path):
    whole = run_training(checkpoint, tmp_path / "whole", Silent())
    with pytest.raises(Preempted, match="step 12 of 12"):
        run_training(checkpoint, tmp_path / "cut", Signals(signal.SIGTERM, at=12))
    left = tmp_path / "cut" / "checkpoints" / "step-12"
    again = run_training(checkpoint, tmp_path / "cut", Silent(), resume_from=left)
    wanted = parameters_of(whole)
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(again).items())


def test_a_kill_between_the_last_checkpoint_and_the_removal_of_an_older_one_leaves_no_more_than_a_whole_run(
    checkpoint, tmp_path
):
    config = replace(CONFIG, checkpoint_steps=2, keep_checkpoints=2)
    run_training(checkpoint, tmp_path, Silent(), config=config)
    kept = {"step-10", "step-12"}
    steps = tmp_path / "checkpoints"
    assert {path.name for path in steps.glob("step-*")} == kept
    shutil.copytree(steps / "step-10", steps / "step-8")
    run_training(checkpoint, tmp_path, Silent(), resume_from=steps / "step-12", config=config)
    assert {path.name for path in steps.glob("step-*")} == kept


def test_a_signal_outside_of_the_loop_ends_the_run_at_once_and_one_in_it_waits():
    before = [signal.getsignal(each) for each in SIGNALS]
    with (
        pytest.raises(Preempted, match=r"^SIGUSR1: stopped outside of training; try again\.$") as left,
        Notice(lambda: "try again") as notice,
    ):
        with window_by_window() as found:
            assert found is notice
            assert not notice.given(Accelerator())
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("nothing follows")
    assert not left.value.together
    with (
        pytest.raises(Preempted, match=r"^SIGTERM: stopped outside of training; "),
        Notice(),
        window_by_window() as told,
    ):
        signal.raise_signal(signal.SIGTERM)
        assert told.given(Accelerator())  # and the loop leaves; had it not asked any more, the run would end here
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_comparison_that_is_stopped_while_it_trains_names_a_command_that_it_takes(checkpoint, tmp_path):
    with (
        pytest.raises(Preempted, match=r"stopped after step 7 of 12, with a checkpoint; the same command goes on\.$"),
        Notice(lambda: "the same command goes on"),
    ):
        run_training(checkpoint, tmp_path / "cut", Signals(signal.SIGTERM, at=7))


@pytest.fixture(scope="module")
def whole_run(checkpoint, tmp_path_factory):
    """A run that nobody interrupts, and its config."""
    folder = tmp_path_factory.mktemp("whole")
    config = RunConfig(
        data=DataConfig(source=str(write_reviews(folder, count=30))),
        model=ModelConfig(checkpoint=str(checkpoint)),
        train=TrainConfig(epochs=2, window_size=8, resume="auto"),
        evaluate=EvaluateConfig(resamples=100),
        output_dir=str(folder / "out"),
    )
    return run(config), config


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("name", "long"),
    [
        ("score_test", True),
        pytest.param("score_test", False, marks=pytest.mark.slow),
        pytest.param("read_text", True, marks=pytest.mark.slow),
        pytest.param("write_report", True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_or_after_training_ends_the_run_which_loses_no_long_training(
    whole_run, tmp_path, monkeypatch, name, long
):
    whole, config = whole_run
    config = replace(config, output_dir=str(tmp_path / "out"))
    monkeypatch.setattr(training, "LONG_SECONDS", 0.0 if long else 600.0)
    call = getattr(page, name)

    def told(*given, **named):
        os.kill(os.getpid(), signal.SIGUSR1)
        return call(*given, **named)

    kept = long and name != "read_text"
    remedy = "--train.resume auto goes on from the last checkpoint" if kept else "there is no checkpoint, and the same"
    with monkeypatch.context() as broken, pytest.raises(Preempted, match=f"^SIGUSR1: .*{remedy}"):
        broken.setattr(page, name, told)
        run(config)
    checkpoints = tmp_path / "out" / "checkpoints"
    steps = whole.results["timing"]["steps"]
    assert [path.name for path in checkpoints.glob("step-*")] == ([f"step-{steps}"] if kept else [])
    assert not (tmp_path / "out" / "results.json").exists()
    learnt = []
    with monkeypatch.context() as counted:
        counted.setattr(training, "learn_window", counting(training.learn_window, learnt))
        done = run(config)
    assert len(learnt) == (0 if kept else steps)
    assert done.results["scores"] == whole.results["scores"]
    assert done.results["timing"]["steps"] == steps
    assert not list(checkpoints.glob("step-*")), "a finished run keeps no checkpoint that nobody asked for"


def counting(call, calls):
    def counted(*given, **named):
        calls.append(1)
        return call(*given, **named)

    return counted


def test_other_threads_may_train_and_leave_signals_alone():
    found = []

    def enter():
        with Notice() as notice:
            found.append((notice.given(Accelerator()), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_the_command_line_leaves_with_75_and_one_line(capsys):
    with pytest.raises(SystemExit) as left, exit_codes():
        raise Preempted("SIGTERM: stopped after step 3 of 9")
    assert left.value.code == 75
    assert capsys.readouterr().err == "hf-transfer: SIGTERM: stopped after step 3 of 9\n"


@pytest.mark.recipe
def test_a_recipe_that_was_told_to_leave_is_finished_by_the_same_command(tmp_path, root, checkpoint):
    source = write_reviews(tmp_path)
    flags = ["--data.source", source, "--model.checkpoint", checkpoint, "--train.epochs", "12"]
    flags += ["--train.window_size", "8", "--output_dir", tmp_path / "out", "--train.resume", "auto"]
    command = [sys.executable, root / "recipes" / "text_cls.py", *flags]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text(encoding="utf-8").count("\n") > 3):
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 75, said[-3000:]
    (step,) = re.findall(r"SIGTERM: stopped after step (\d+) of \d+, with a checkpoint", said)
    assert [path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*")] == [f"step-{step}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"continuing after step {step} of" in done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [line["step"] for line in log_of(tmp_path / "out")] == list(range(1, results["timing"]["steps"] + 1))


@pytest.mark.recipe
def test_one_process_that_was_told_takes_the_other_along(checkpoint, tmp_path):
    ran = launch_two(Path(__file__).parent / "two_processes_preempted.py", checkpoint, tmp_path)
    assert sorted(re.findall(r"process (\d) left after step (\d+)", ran.stdout)) == [("0", "3"), ("1", "3")]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-3"]
    assert CONFIG.checkpoint_steps == 0, "nothing else writes checkpoints here"
