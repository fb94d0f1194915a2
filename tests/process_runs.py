"""Run by test_processes.py: a run in several processes, continued by others; and runs in which one process fails.

    python process_runs.py same TASK STRATEGY COUNTS FOLDER
    python process_runs.py fails SCENARIO[,SCENARIO] FOLDER
    python process_runs.py joins PROCESSES COUNT FOLDER
    python process_runs.py killed_joins PROCESSES COUNT FOLDER
    LAUNCHER process_runs.py work SCENARIO CONFIG

Data are uneven on purpose: 25 train rows in windows of 8, so that the last window holds one; one validation row; a
test domain of one row. Micro-batches hold a few rows. ``same`` writes what each run computed to FOLDER/found.pt,
``fails`` prints how each process ended, as JSON; so does ``joins``, of processes that do nothing but meet and leave,
and ``killed_joins``, of those among which the first is killed meanwhile. ``work`` is one process of a launcher's.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from forked_runs import run
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from toy import sentence_pairs, write_reviews

import hf_transfer as ht
from hf_transfer import artefact, before_training, cli, compare_runs, compiled, launch, page, train, watch
from hf_transfer.cli import exit_codes
from hf_transfer.config import RunConfig
from hf_transfer.errors import InputError, RunError

SEAM = 4
"""The step after which another number of processes goes on."""


def main() -> None:
    """Do what the command line says."""
    what, *words = sys.argv[1:]
    if what == "work":
        with exit_codes():
            SCENARIOS[words[0]](ht.load_config(["--config", words[1]], "test"))
        return
    base = Path(words[-1])
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = base / "cache"
    artefact._prove = lambda *_: 0.0  # a fresh process, which tests of the artefact look at
    if what == "same":
        task, strategy, counts = words[:3]
        torch.save(same(task, strategy, list(map(int, counts.split(","))), base), base / "found.pt")
    elif what in ("joins", "killed_joins"):
        print(json.dumps(list(joins(int(words[0]), int(words[1]), base, what == "killed_joins"))))
    else:
        print(json.dumps({name: fail(name, base / name) for name in words[0].split(",")}))


# ---- nothing but meeting -------------------------------------------------------------------------------------------


def joins(processes: int, count: int, base: Path, killed: bool) -> Iterator[list[int | None]]:
    """Exit codes of processes that meet and leave, ``count`` times."""
    rng = random.Random(processes)
    if killed:
        launch.LONGEST_ARRIVAL = timedelta(seconds=8)  # where the first is killed before it is there
        cli.SECONDS_FOR_THE_FIRST_PROCESS = 1
    for _ in range(count):
        # many kills fall into the tenth of a second in which processes meet
        moment = rng.choice([0.06, 0.1, 0.3]) * rng.random() if killed else None
        work = partial(meet, seconds=0.3 if killed else 0.0)
        yield [one.code for one in run(RunConfig(output_dir=str(base / "out")), processes, work, moment)]


def meet(config: RunConfig, seconds: float) -> None:
    launch.join_processes()
    with watch.one_for_all():
        time.sleep(seconds)
        launch.PartialState().wait_for_everyone()
        launch.leave_processes()


# ---- the same numbers ----------------------------------------------------------------------------------------------


def same(task: str, strategy: str, counts: list[int], base: Path) -> dict[str, Any]:
    """What a run computes with each number of processes, and what others make of its checkpoint."""
    config = make_config(task, strategy, base)
    found = {str(count): outcome(at(config, base / f"by-{count}"), count) for count in counts}
    for before, after in [(1, 2), (2, 1), (2, 4)]:
        if {before, after} <= set(counts):
            source = base / f"by-{before}" / "checkpoints" / f"step-{SEAM}"
            resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=str(source)))
            found[f"{before},{after}"] = outcome(at(resumed, base / f"{before}-then-{after}"), after)
    return found


def make_config(task: str, strategy: str, base: Path) -> RunConfig:
    """Two epochs without dropout, at rates so low that all runs take their gradients at the same weights."""
    if task == "translation":
        source, checkpoint = write_pairs(base), make_translation_checkpoint("marian", base / "checkpoint")
    else:
        source, checkpoint = write_rows(base), make_checkpoint(base / "checkpoint", num_hidden_layers=3)
    adapt = {"strategy": strategy} | ({"freeze": "1"} if strategy == "freeze" else {})
    return RunConfig(
        task=task,
        data=ht.DataConfig(source=str(source)),
        model=ht.ModelConfig(checkpoint=str(checkpoint), dropout=0.0),
        adapt=ht.AdaptConfig(**adapt),
        train=ht.TrainConfig(
            epochs=2,
            window_size=8,
            learning_rate=1e-7,
            head_learning_rate=1e-7 if task == "classification" else None,
            tokens_per_micro_batch=30,
            max_gradient_norm=0.0,
            checkpoint_steps=2,
            keep_checkpoints=9,
        ),
        evaluate=ht.EvaluateConfig(resamples=100, **({"beams": 1} if task == "translation" else {})),
    )


def write_rows(base: Path) -> Path:
    """24 train rows of books and one of soup, one validation row, 6 test rows of books and one of apps."""
    rows = [json.loads(line) for line in write_reviews(base, domains=("books",), count=33).read_text().splitlines()]
    for i, row in enumerate(rows):
        row["split"] = "train" if i < 25 else "validation" if i == 25 else "test"
        row["domain"] = {24: "soup", 32: "apps"}.get(i, "books")
    path = base / "uneven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_pairs(base: Path) -> Path:
    """As ``write_rows``, of sentences."""
    rows = sentence_pairs(6)
    parts = {
        "songs.train": rows[:25],
        "songs.validation": rows[25:26],
        "songs.test": rows[26:32],
        "talks.test": rows[33:34],
    }
    folder = base / "pairs"
    folder.mkdir()
    for name, part in parts.items():
        (folder / f"{name}.tsv").write_text("source\ttarget\n" + "\n".join(part) + "\n", encoding="utf-8")
    return folder


def at(config: RunConfig, folder: Path) -> RunConfig:
    """``config`` with another output folder."""
    return dataclasses.replace(config, output_dir=str(folder))


def outcome(config: RunConfig, processes: int) -> dict[str, Any]:
    """What a run computed, as its first process has it; the others must have the same predictions."""
    ended = run(config, processes, record)
    assert all(one.code == 0 for one in ended), [one.said for one in ended]
    folder = Path(config.output_dir)
    first, *others = (torch.load(folder / f"seen-{rank}.pt", weights_only=True) for rank in range(processes))
    assert all(other["predicted"] == first["predicted"] for other in others)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return first | {
        "log": [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()],
        "scores": [[score[name] for name in ("domain", "count", "metric", "value")] for score in results["scores"]],
        "validation": results["training"]["validation"],
        "notes": results["notes"],
        "said": ended[0].said,
    }


def record(config: RunConfig) -> None:
    """Run, and write down every gradient that the optimizer was given, and the predictions."""
    gradients: list[torch.Tensor] = []
    build = before_training.build_optimizer

    def build_recorded(*given: Any) -> torch.optim.Optimizer:
        optimizer = build(*given)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in parameters])))
        return optimizer

    before_training.build_optimizer = build_recorded
    result = page.run(config)
    seen = {
        "gradients": gradients,
        "ids": [str(name) for name in result.predictions.example_ids],
        "predicted": [str(value) for value in result.predictions.predicted],
    }
    torch.save(seen, Path(config.output_dir) / f"seen-{os.environ.get('RANK', '0')}.pt")


# ---- one fails -----------------------------------------------------------------------------------------------------


def fail(scenario: str, base: Path) -> list[list[Any]]:
    """Exit code and words of each of two processes, in one of which ``SCENARIOS[scenario]`` happens."""
    base.mkdir()
    config = at(make_config("classification", "full", base), base / "out")
    return [[one.code, one.said] for one in run(config, 2, SCENARIOS[scenario])]


def in_window(step: int, rank: str, happen: Callable[[], None]) -> None:
    """Let something happen to a process before it learns from a window."""
    learn, windows = train.learn_window, []

    def learn_or_not(*given: Any, **named: Any) -> Any:
        windows.append(1)
        if len(windows) == step and os.environ["RANK"] == rank:
            happen()
        return learn(*given, **named)

    train.learn_window = learn_or_not


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(config: RunConfig) -> None:
    in_window(3, "1", kill)
    page.run(config)


def first_killed(config: RunConfig) -> None:
    in_window(3, "0", kill)
    page.run(config)


def told_while_scoring(config: RunConfig) -> None:
    """The second process is told that its machine will be taken, while both score the test domains."""
    score_test = page.score_test

    def told(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        return score_test(*given)

    page.score_test = told
    page.run(config)


def raises(config: RunConfig) -> None:
    """In a function of the task."""
    classification = page.TASKS["classification"]
    bind = classification.bind

    def bind_broken(*given: Any) -> Any:
        functions = bind(*given)
        if os.environ["RANK"] == "0":
            return functions

        def loss_function(outputs: Any, batch: Any) -> Any:
            if torch.is_grad_enabled() and len(batch.example_ids) == 1:
                raise ValueError("a label that is none")
            return functions.loss_function(outputs, batch)

        return dataclasses.replace(functions, loss_function=loss_function)

    type(classification).bind = staticmethod(bind_broken)
    page.run(config)


def refuses(config: RunConfig) -> None:
    """The second process does not find its data."""
    if os.environ["RANK"] == "1":
        config = dataclasses.replace(config, data=ht.DataConfig(source="missing.csv"))
    page.run(config)


def untracked(config: RunConfig) -> None:
    """No process has the package of a tracker, of which the first alone has need."""

    def refuse(*_: Any) -> None:
        raise InputError(f"--report.trackers wandb: wandb is not installed, says {os.environ['RANK']}")

    page.check_trackers = refuse
    page.run(config)


def twice(config: RunConfig) -> None:
    """A script with two runs."""
    page.run(config)
    page.run(at(config, Path(config.output_dir).with_name("again")))


def compiles(config: RunConfig) -> None:
    """The same run with layers as they are and compiled."""
    compiled.BACKEND = "aot_eager"
    for wanted in ("never", "always"):
        train_config = dataclasses.replace(config.train, compile=wanted, learning_rate=1e-3)
        page.run(at(dataclasses.replace(config, train=train_config), Path(config.output_dir).with_name(wanted)))


def again_after_a_failure(config: RunConfig) -> None:
    """A script that goes on after a run that failed."""
    with contextlib.suppress(InputError):
        page.run(dataclasses.replace(config, data=ht.DataConfig(source="missing.csv")))
    page.run(config)


def started_again(config: RunConfig) -> None:
    """The launcher starts all of them a second time, after one has died."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        in_window(3, "1", kill)
    page.run(config)


def all_refuse(config: RunConfig) -> None:
    page.run(dataclasses.replace(config, data=ht.DataConfig(source="missing.csv")))


def unproved(config: RunConfig) -> None:
    """What the first process does while the others wait."""

    def fail_to_save(*_: Any) -> None:
        raise RunError("the model that was saved is not the one that was trained")

    page.save_artefact = fail_to_save
    page.run(config)


def no_memory_left(config: RunConfig) -> None:
    """The first process fails in the same way, by an error of the type that a broken collective has."""

    def fail_to_save(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    page.save_artefact = fail_to_save
    page.run(config)


def busy(config: RunConfig) -> None:
    """The first process does nothing but save for longer than a machine may be silent, while no other thread of its
    can run."""
    watch.QUIET_SECONDS, watch.PROBE_SECONDS, watch.PROBES, watch.SECONDS_TO_LEAVE = 1, 1, 2, 1
    save = page.save_artefact

    def save_slowly(*given: Any) -> Any:
        ctypes.PyDLL(None).sleep(8)  # holds on to the interpreter
        return save(*given)

    page.save_artefact = save_slowly
    page.run(config)


def comparison(config: RunConfig) -> ht.CompareConfig:
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(RunConfig)}
    train_config = dataclasses.replace(config.train, epochs=1, learning_rate=None, head_learning_rate=None)
    return ht.CompareConfig(**fields | {"train": train_config}, strategies=("probe", "full"), seeds=(0,), controls=())


def compares_with_one_unproved(config: RunConfig) -> None:
    """A run of a comparison fails in what the first process does alone."""
    save, runs = page.save_artefact, []

    def save_or_not(*given: Any) -> Any:
        runs.append(1)
        if len(runs) == 1:
            raise RunError("the model that was saved is not the one that was trained")
        return save(*given)

    page.save_artefact = save_or_not
    compare_runs.compare(comparison(config))


def compares_with_one_astray(config: RunConfig) -> None:
    """A run of a comparison fails on one process, while the other goes on with it."""
    prepare = page.prepare

    def prepare_or_not(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise InputError("this machine has no such checkpoint")
        return prepare(*given)

    page.prepare = prepare_or_not
    watch.SECONDS_FOR_THE_OTHERS = 3
    compare_runs.compare(comparison(config))


SCENARIOS: dict[str, Callable[[RunConfig], None]] = {
    "killed": killed,
    "first_killed": first_killed,
    "told_while_scoring": told_while_scoring,
    "raises": raises,
    "refuses": refuses,
    "all_refuse": all_refuse,
    "untracked": untracked,
    "again_after_a_failure": again_after_a_failure,
    "compiles": compiles,
    "started_again": started_again,
    "twice": twice,
    "unproved": unproved,
    "no_memory_left": no_memory_left,
    "busy": busy,
    "compares_with_one_unproved": compares_with_one_unproved,
    "compares_with_one_astray": compares_with_one_astray,
}


if __name__ == "__main__":
    main()
