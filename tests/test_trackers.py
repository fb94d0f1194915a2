"""Experiment trackers: what they are told, and that none of them can stop or delay a run. Each of the four that is
installed is driven for real, without network; the others are skipped."""

import importlib.util
import json
import os
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import accelerate
import pytest
from accelerate import tracking

import hf_transfer as ht
from hf_transfer import trackers as trackers_file
from hf_transfer.config import CompareConfig, ReportConfig, RunConfig
from hf_transfer.errors import InputError, RunError
from hf_transfer.records import DomainScore, Selection, ShiftReport, not_by_the_loop
from hf_transfer.trackers import Trackers, check_trackers, flat_settings, plain_names

SETTINGS = {"data": {"source": "reviews", "train_domains": ("a", "b"), "subset": None}, "seed": 3}
RECORD = {"step": 1, "loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "tokens": 7, "seconds": 0.25}
SCORES = (
    DomainScore("adapted", "books", "in_domain", "test", 40, "accuracy", 0.75, 0.6, 0.9),
    DomainScore("adapted", "dvd & more", "shifted", "test", 30, "accuracy", 0.5, 0.4, 0.6),
)
SHIFT = ShiftReport(SCORES, "accuracy", 0.75, 0.5, 0.25, "dvd & more")
TRAINED = replace(not_by_the_loop(Selection("in_domain_validation", "accuracy", 2, 0.7), 0.0, 0), steps=3)
SENT = {
    "train/loss": [(1, 0.5), (2, 0.25)],
    "train/grad_norm": [(1, 2.0), (2, 2.0)],
    "eval/accuracy": [(2, 0.7)],
    "test/books/accuracy": [(3, 0.75)],
    "test/books/examples": [(3, 40.0)],
    "test/dvd _ more/accuracy_high": [(3, 0.6)],
    "shift/gap": [(3, 0.25)],
    "selected/step": [(3, 2.0)],
}
"""What ``send_a_run`` must leave in any tracker: steps and values by key."""


@pytest.fixture(autouse=True)
def processes():
    """What accelerate's trackers ask whether they are on the main process."""
    return accelerate.PartialState(cpu=True)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


class Fake:
    """A tracker in place of accelerate's; class attributes say how it misbehaves."""

    made: ClassVar[list["Fake"]] = []
    cannot_start = ""
    fails_at: int | None = None
    hangs: threading.Event | None = None

    def __init__(self, *places, **named):
        self.places, self.named = places, named
        self.calls: list = []
        Fake.made.append(self)

    def start(self):
        if self.cannot_start and self.named.get("resume") != "never":
            raise ConnectionError(self.cannot_start)

    def store_init_configuration(self, values):
        self.calls.append(values)

    def log(self, values, step):
        if self.hangs is not None:
            self.hangs.wait()
        self.calls.append((values, step))
        if step == self.fails_at:
            raise OSError("PUT https://me:s3cret@host/x?token=abc refused")

    def finish(self):
        self.calls.append("finish")


@pytest.fixture
def fake(monkeypatch):
    """Class of the tracker that stands for trackio."""

    class Tracker(Fake):
        pass

    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Tracker)
    return Tracker


def open_trackers(folder, names=("trackio",), done_steps=0, is_continued=False, lines=None, **report):
    folder.mkdir(exist_ok=True)
    note = (lines if lines is not None else []).append
    return Trackers(ReportConfig(trackers=names, **report), folder, SETTINGS, done_steps, is_continued, note)


def send_a_run(trackers):
    """Two windows, a validation, and the scores."""
    trackers.learnt(RECORD)
    trackers.learnt(RECORD | {"step": 2, "loss": 0.25})
    trackers.validated({"step": 2, "epoch": 1.0, "metric": "accuracy", "value": 0.7, "seconds": 0.1})
    trackers.scored(SHIFT, TRAINED)


def test_an_unknown_tracker_is_refused_with_the_nearest():
    (problem,) = ReportConfig(trackers=("tensorbord",)).problems()
    assert problem == (
        "--report.trackers names 'tensorbord', which is no known tracker. Did you mean tensorboard? There are "
        "tensorboard, wandb, mlflow, trackio."
    )
    assert ReportConfig(trackers=("wandb", "wandb")).problems() == [
        "--report.trackers names wandb more than once: name each once."
    ]
    (problem,) = ReportConfig(tracker_project="/home").problems()
    assert problem.startswith("--report.tracker_project '/home' must be 1 to 100 letters, digits")
    assert not ReportConfig(trackers=("wandb",), tracker_project="a b".replace(" ", "/"), tracker_run="x.1").problems()


def test_missing_packages_are_one_error_before_anything_is_written(tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setattr(f"accelerate.utils.is_{name}_available", lambda: False)
    monkeypatch.setattr("accelerate.utils.is_tensorboard_available", lambda: True)
    wanted = (
        "--report.trackers wandb,mlflow: wandb and mlflow are not installed: pip install wandb mlflow, or leave them "
        "out."
    )
    with pytest.raises(InputError) as raised:
        check_trackers(("tensorboard", "wandb", "mlflow"))
    assert raised.value.problems == (wanted,)
    report = ReportConfig(trackers=("wandb", "tensorboard", "mlflow"))
    for call, config in (
        (ht.run, RunConfig(report=report, output_dir=str(tmp_path / "run"))),
        (ht.compare, CompareConfig(report=report, output_dir=str(tmp_path / "run"))),
    ):
        with pytest.raises(InputError, match="wandb and mlflow are not installed: pip install wandb mlflow"):
            call(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_meet_before_the_main_one_is_asked_for_packages_and_a_token(tmp_path, monkeypatch, rank):
    """A machine that neither tracks nor pushes needs neither."""
    called = []
    monkeypatch.setenv("RANK", rank)
    for module, work in (("page", "_adapt_and_report"), ("compare_runs", "_compare")):
        for name in ("join_processes", "check_publishing", "check_trackers", work, "leave_processes"):
            note = partial(lambda name, *_: called.append(name) or SimpleNamespace(results={}), name)
            monkeypatch.setattr(f"hf_transfer.{module}.{name}", note, raising=False)
    report = ReportConfig(trackers=("tensorboard",))
    checks = ["check_publishing", "check_trackers"] if rank == "0" else []
    ht.run(RunConfig(report=report, output_dir=str(tmp_path / "run")))
    assert called == ["join_processes", *checks, "_adapt_and_report", "leave_processes"]
    called.clear()
    ht.compare(CompareConfig(report=report, output_dir=str(tmp_path / "run")))
    assert called == ["join_processes", *checks[1:], "_compare", "leave_processes"]


def test_a_tracker_gets_numbers_and_settings_and_no_ids(tmp_path, fake):
    with open_trackers(tmp_path / "run") as opened:
        opened.learnt(RECORD | {"skipped": True, "example_ids": ["secret.csv:1"]})
        send_a_run(opened)
    (made,) = Fake.made
    settings, first, *others, end = made.calls
    assert settings == {"data.source": "reviews", "data.train_domains": "a,b", "seed": 3}
    assert first == (
        {
            "train/loss": 0.5,
            "train/learning_rate": 1e-3,
            "train/grad_norm": 2.0,
            "train/tokens": 7.0,
            "train/seconds": 0.25,
            "train/skipped": 1.0,
        },
        1,
    )
    sent = {}
    for values, step in others:
        for key, value in values.items():
            sent.setdefault(key, []).append((step, value))
    assert {key: sent[key] for key in SENT} == SENT
    assert end == "finish"
    assert made.places == ("hf-transfer",)
    assert made.named == {"name": "run", "resume": "never"}
    assert opened.notes == []


def test_a_tracker_that_fails_is_told_nothing_more_and_the_run_goes_on(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(fake, "fails_at", 2)
    lines: list[str] = []
    with open_trackers(tmp_path / "run", lines=lines) as opened:
        opened.learnt(RECORD)
        opened.learnt(RECORD | {"step": 2})
        while not opened._workers[0].failure:  # its own thread sets it
            opened._workers[0]._thread.join(0.001)
        send_a_run(opened)
    (made,) = Fake.made
    assert [call[1] for call in made.calls[1:]] == [1, 2], "nothing after the failure, not even the end"
    (note,) = opened.notes
    assert note.startswith("tracker trackio failed ")
    assert "(OSError: PUT https://host/x?token=... refused) and gets nothing more; the run goes on" in note
    assert lines[1:] == [note], "told once"


def test_a_tracker_that_hangs_delays_neither_steps_nor_the_end(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(trackers_file, "SECONDS_TO_FINISH", 0.05)
    never = threading.Event()
    monkeypatch.setattr(fake, "hangs", never)
    with open_trackers(tmp_path / "run") as opened:
        send_a_run(opened)
    never.set()
    assert "it had not sent everything 0.05 seconds after the last record" in opened.notes[0]


def test_a_tracker_that_cannot_start_stops_the_run_before_training(tmp_path, fake, monkeypatch):
    def refuse(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(fake, "start", refuse)
    with pytest.raises(
        RunError, match=r"tracker trackio cannot start \(ConnectionError: no route to host\): mend that"
    ):
        open_trackers(tmp_path / "run").__enter__()
    assert "MLFLOW_TRACKING_URI" not in os.environ, "put back"


@pytest.mark.parametrize("is_continued", [False, True])
def test_a_tracker_that_hangs_as_it_starts_stops_the_run_too(tmp_path, fake, monkeypatch, is_continued):
    with open_trackers(tmp_path / "run"):
        pass
    started = []

    def hang(self):
        started.append(1)
        threading.Event().wait()

    monkeypatch.setattr(fake, "start", hang)
    monkeypatch.setattr(trackers_file, "SECONDS_TO_START", 0.05)
    found = []

    def open_again():
        try:
            open_trackers(tmp_path / "run", is_continued=is_continued).__enter__()
        except RunError as error:
            found.append(str(error))

    opening = threading.Thread(target=open_again, daemon=True)
    opening.start()
    opening.join(20)
    assert [error.split(": ")[0] for error in found] == ["tracker trackio cannot start (no answer for 0.05 seconds)"]
    assert started == [1], "a new run of the tracker would hang as well"


def test_a_continued_run_goes_on_with_its_tracker_run(tmp_path, fake):
    with open_trackers(tmp_path / "run"):
        pass
    for named, continued, wanted in (
        ({}, True, "allow"),
        ({}, False, "never"),  # from a checkpoint of another folder
        ({"tracker_run": "other"}, True, "never"),
    ):
        with open_trackers(tmp_path / "run", done_steps=2, is_continued=continued, **named):
            pass
        assert Fake.made[-1].named["resume"] == wanted
        assert (Fake.made[-1].calls == ["finish"]) == (wanted == "allow"), "settings are stored once"


def test_a_run_that_took_training_over_tells_its_whole_course_in_the_order_of_steps(tmp_path, fake):
    records = [RECORD | {"step": step, "example_ids": ["secret.csv:1"]} for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    history = [{"step": 2, "epoch": 1.0, "metric": "accuracy", "value": 0.7, "seconds": 0.1}]
    with open_trackers(tmp_path / "run", done_steps=3) as opened:
        opened.catch_up(tmp_path / "log.jsonl", history)
    _, *sent, end = Fake.made[-1].calls
    told = [(step, "eval/accuracy" in values) for values, step in sent]
    assert told == [(1, False), (2, False), (2, True), (3, False)]
    assert "secret" not in str(sent) and end == "finish"


@pytest.mark.parametrize("log", ["lost.jsonl", "log.jsonl"])
def test_where_nothing_is_to_be_told_of_a_training_nothing_is(tmp_path, fake, log):
    (tmp_path / "log.jsonl").write_text("", encoding="utf-8")
    with open_trackers(tmp_path / "run") as opened:
        opened.catch_up(tmp_path / log, [{"step": 2, "epoch": 1.0, "metric": "accuracy", "value": 0.7}])
    assert len(Fake.made[-1].calls) == 2, "settings and the end"


def test_a_tracker_run_that_is_gone_is_replaced_by_a_new_one(tmp_path, fake, monkeypatch):
    with open_trackers(tmp_path / "run"):
        pass
    monkeypatch.setattr(fake, "cannot_start", "no such run")
    with open_trackers(tmp_path / "run", done_steps=2, is_continued=True) as opened:
        send_a_run(opened)
    assert opened.notes == [
        "tracker trackio cannot go on with its run (ConnectionError: no such run): a new one begins after step 2."
    ]
    assert [made.named["resume"] for made in Fake.made] == ["never", "allow", "never"]
    assert Fake.made[-1].calls[-1] == "finish"


def test_without_trackers_nothing_is_made(tmp_path):
    with open_trackers(tmp_path / "run", names=()) as opened:
        send_a_run(opened)
    assert not list((tmp_path / "run").iterdir())


def test_domains_become_different_names_that_every_tracker_takes():
    assert plain_names(["books", "a/b", "a?b", "..", "книги", "a_b-2"]) == {
        "books": "books",
        "a/b": "a_b",
        "a?b": "a_b-2",
        "..": "_",
        "книги": "книги",
        "a_b-2": "a_b-2-2",
    }


def test_settings_are_flat_and_have_no_null():
    assert flat_settings({"a": {"b": {"c": [1, 2]}, "d": None}, "e": True}) == {"a.b.c": "1,2", "e": True}


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    events.Reload()
    return {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]}


@needs("tensorboard")
def test_tensorboard_holds_what_was_sent_and_each_step_of_a_continued_run_once(tmp_path):
    folder = tmp_path / "run"
    with open_trackers(folder, ("tensorboard",)) as opened:
        send_a_run(opened)
    found = read_tensorboard(folder)
    assert {key: found[key] for key in SENT} == {
        key: [(step, pytest.approx(value)) for step, value in values] for key, values in SENT.items()
    }
    with open_trackers(folder, ("tensorboard",), done_steps=1, is_continued=True) as opened:
        opened.learnt(RECORD | {"step": 2, "loss": 0.125})
        opened.learnt(RECORD | {"step": 3, "loss": float("nan")})
    losses = read_tensorboard(folder)["train/loss"]
    assert losses[:2] == [(1, 0.5), (2, 0.125)]
    assert losses[2][0] == 3 and losses[2][1] != losses[2][1]
    (settings,) = (folder / "trackers" / "tensorboard").glob("*/hparams.yml")
    assert "data.train_domains: a,b" in settings.read_text()


@needs("mlflow")
def test_mlflow_holds_what_was_sent_in_a_store_of_the_folder(tmp_path):
    folder = tmp_path / "run"
    with open_trackers(folder, ("mlflow",), tracker_project="reviews") as opened:
        send_a_run(opened)
    with open_trackers(folder, ("mlflow",), done_steps=2, is_continued=True, tracker_project="reviews") as opened:
        opened.learnt(RECORD | {"step": 3, "loss": float("inf")})
    assert opened.notes == []
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/trackers/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("reviews").experiment_id])
    found = {key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in SENT}
    assert found["train/loss"][-1][0] == 3
    assert found | {"train/loss": SENT["train/loss"], "train/grad_norm": SENT["train/grad_norm"]} == SENT
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["data.train_domains"] == "a,b"
    assert run.data.tags["mlflow.source.name"] == "hf_transfer"
    with pytest.raises(ZeroDivisionError), open_trackers(folder, ("mlflow",), tracker_project="broken"):
        _ = 1 / 0
    (run,) = client.search_runs([client.get_experiment_by_name("broken").experiment_id])
    assert run.info.status == "FAILED"


@needs("wandb")
def test_wandb_writes_offline_what_was_sent_and_nothing_of_the_machine(tmp_path):
    folder = tmp_path / "run"
    with open_trackers(folder, ("wandb",)) as opened:
        send_a_run(opened)
    first = json.loads((folder / "trackers.json").read_text())
    with open_trackers(folder, ("wandb",), done_steps=2, is_continued=True) as opened:
        opened.learnt(RECORD | {"step": 3, "loss": float("nan")})
    assert opened.notes == []
    assert json.loads((folder / "trackers.json").read_text()) == first, "the same run goes on"
    stored = sorted((folder / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(stored) == 2 and {path.stem for path in stored} == {f"run-{first['wandb']}"}
    raw = stored[0].read_bytes()
    for key in SENT:
        assert key.split("/")[-1].encode() in raw
    assert str(Path.cwd()).encode() not in raw and sys.executable.encode() not in raw


@needs("trackio")
def test_trackio_holds_what_was_sent(tmp_path, monkeypatch):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "store")
    folder = tmp_path / "run"
    with open_trackers(folder, ("trackio",), tracker_project="reviews") as opened:
        send_a_run(opened)
    with open_trackers(folder, ("trackio",), done_steps=2, is_continued=True, tracker_project="reviews") as opened:
        opened.learnt(RECORD | {"step": 3, "loss": float("nan")})
    assert opened.notes == []
    assert trackio.__version__
    logs = SQLiteStorage.get_logs("reviews", "run")
    found = {key: [(log["step"], log[key]) for log in logs if key in log] for key in SENT}
    assert found["train/loss"][:2] == SENT["train/loss"] and found["train/loss"][2][0] == 3
    assert {key: found[key] for key in SENT if not key.startswith("train/")} == {
        key: values for key, values in SENT.items() if not key.startswith("train/")
    }
