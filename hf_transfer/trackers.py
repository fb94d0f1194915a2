"""Floor 4: what log.jsonl holds, sent to experiment trackers as well: TensorBoard, Weights & Biases, MLflow, Trackio.

Only numbers and settings go there, no text and no ids of examples. The main process of a run has one tracker run for
each; controls have none. Accelerate's tracker classes make the calls, each in a thread of its own: a server that is
slow or gone delays no step, and costs a run its tracker at most.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from accelerate import utils as accelerate_utils

from hf_transfer.config import ReportConfig
from hf_transfer.errors import InputError, RunError
from hf_transfer.records import ShiftReport, TrainResult
from hf_transfer.report.results import one_line

SECONDS_TO_START = 120.0
"""For what a tracker does before training, so that a server that never answers keeps no machine for nothing."""
SECONDS_TO_FINISH = 120.0
"""For what a tracker still has to send when a run is done; what is left then is given up."""
LONGEST_DOMAIN = 150
"""Characters of a domain in a key, of the 250 of a whole key that MLflow takes."""
KEYS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/grad_norm",
    "examples": "train/examples",
    "tokens": "train/tokens",
    "padding_tokens": "train/padding_tokens",
    "seconds": "train/seconds",
    "skipped": "train/skipped",
}
"""Field of log.jsonl -> key in a tracker, as transformers.Trainer spells it where it has the number too."""
# neither use of the machine nor of a package is anybody's business, and runs of no network stay without
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        InputError: names all of them, and the command that installs them.
    """
    missing = [name for name in names if not getattr(accelerate_utils, f"is_{name}_available")()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"--report.trackers {','.join(missing)}: {' and '.join(missing)} {verb} not installed: pip install "
            f"{' '.join(missing)}, or leave {'it' if len(missing) == 1 else 'them'} out."
        )


class Trackers:
    """The trackers of one run; use it as a context manager around training and scoring."""

    def __init__(
        self,
        report: ReportConfig,
        output_dir: Path,
        settings: Mapping[str, Any],
        done_steps: int,
        is_continued: bool,
        note: Callable[[str], None],
    ) -> None:
        """
        Args:
            report: ``trackers`` () makes this do nothing.
            settings: the resolved config as nested dicts, its paths shortened.
            done_steps: steps that lie behind a run that is continued.
            is_continued: ``output_dir`` is that of the run that is continued, so that its tracker runs go on.
            note: prints a line.
        """
        self.notes: list[str] = []
        """What happened to a tracker, for the report."""
        self._report = report
        self._output_dir = output_dir
        self._settings = flat_settings(settings)
        self._done_steps = done_steps
        self._is_continued = is_continued
        self._print = note
        self._workers: list[_Worker] = []
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> Trackers:
        if not self._report.trackers:
            return self
        record = self._output_dir / "trackers.json"
        project, run = self._report.tracker_project, self._report.tracker_run or self._output_dir.resolve().name
        known = _read(record) if self._is_continued else {}
        if (known.get("project"), known.get("run")) != (project, run):
            known = {}  # under another name it would be another run
        (self._output_dir / "trackers").mkdir(parents=True, exist_ok=True)
        self._set_environment()
        ids: dict[str, Any] = {}
        try:
            for name in self._report.trackers:
                ids[name] = self._start(name, project, run, known.get(name))
        except BaseException:
            self._finish(failed=True)
            raise
        record.write_text(json.dumps({"project": project, "run": run, **ids}, indent=1) + "\n", encoding="utf-8")
        self._print(f"trackers: {', '.join(map(self._where, self._workers))}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(failed=error is not None)

    def learnt(self, record: Mapping[str, Any]) -> None:
        """Pass on a record of log.jsonl; ids of examples stay here."""
        if self._workers:
            self._log({KEYS[name]: float(value) for name, value in record.items() if name in KEYS}, record["step"])

    def catch_up(self, log: Path, history: Iterable[Mapping[str, Any]]) -> None:
        """Pass on what a training told that is taken over: the records of its ``log``, and its scores of validation."""
        if not self._workers or not log.is_file():
            return
        validations = {item["step"]: item for item in history}
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            self.learnt(record)
            if record["step"] in validations:  # in the order of steps: W&B takes no other
                self.validated(validations[record["step"]])

    def validated(self, record: Mapping[str, Any]) -> None:
        """Pass on a score of validation, one of ``TrainResult.history``."""
        if self._workers:
            values = {f"eval/{record['metric']}": record["value"], "train/epoch": record["epoch"]}
            self._log(values, record["step"])

    def scored(self, shift: ShiftReport, trained: TrainResult) -> None:
        """Pass on the test scores of every domain with their intervals and counts, and the step that was kept."""
        if not self._workers:
            return
        chosen = trained.selection
        values: dict[str, float] = {"selected/step": chosen.step, f"selected/{chosen.metric}": chosen.value}
        names = plain_names(dict.fromkeys(item.domain for item in shift.scores))
        for item in shift.scores:
            key = f"test/{names[item.domain]}"
            values |= {f"{key}/{item.metric}": item.value, f"{key}/{item.metric}_low": item.low}
            values |= {f"{key}/{item.metric}_high": item.high, f"{key}/examples": item.count}
        values |= {f"shift/{name}": getattr(shift, name) for name in ("in_domain_mean", "shifted_mean", "gap")}
        self._log(values, trained.steps)

    def _start(self, name: str, project: str, run: str, known: Any) -> Any:
        """Begin or go on with the run of one tracker; returns what finds it again."""
        before = f"tracker {name} cannot go on with its run"
        for known_id in dict.fromkeys((known, None)):
            worker = _Worker(name)
            try:
                made = worker.ask(partial(self._make, name, project, run, known_id, self._output_dir / "trackers"))
                if not known_id:
                    worker.ask(partial(made.store_init_configuration, self._settings))
            except Exception as error:
                worker.end(lambda: None)
                if known_id is None or isinstance(error, _NoAnswer):
                    raise RunError(
                        f"tracker {name} cannot start ({_in_words(error)}): mend that, or leave it out of "
                        "--report.trackers."
                    ) from error
                self._say(f"{before} ({_in_words(error)}): a new one begins after step {self._done_steps}.")
                continue
            worker.tracker = made
            self._workers.append(worker)
            return _id_of(name, made)
        raise AssertionError("unreachable: the last of the two raises")

    def _make(self, name: str, project: str, run: str, known: Any, folder: Path) -> Any:
        """A started tracker of accelerate's; runs in the tracker's own thread."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        places, named = _arguments(name, project, run, known, folder, self._done_steps)
        made = LOGGER_TYPE_TO_CLASS[name](*places, **named)
        made.start()
        return made

    def _set_environment(self) -> None:
        """What trackers read from the environment and nobody has set: nothing is sent, local stores lie in the folder.

        Put back at the end, since a comparison makes several runs in one process.
        """
        place = (self._output_dir / "trackers").resolve()
        wanted = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", **QUIET}
        for name, value in wanted.items():
            self._environment[name] = os.environ.get(name)
            os.environ.setdefault(name, value)

    def _where(self, worker: _Worker) -> str:
        """Where a tracker writes, in a few words."""
        folder = self._output_dir / "trackers"
        if worker.name == "wandb":
            mode = os.environ["WANDB_MODE"]
            return f"wandb ({mode}, {folder / 'wandb' if mode == 'offline' else worker.tracker.tracker.url})"
        if worker.name == "mlflow":
            own = self._environment["MLFLOW_TRACKING_URI"] is None
            return f"mlflow ({folder / 'mlflow.db' if own else 'the MLFLOW_TRACKING_URI of the environment'})"
        return f"tensorboard ({folder / 'tensorboard'})" if worker.name == "tensorboard" else worker.name

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for worker in self._workers:
            worker.tell(partial(worker.tracker.log, dict(values), step=step))
        self._report_failures(f"after step {step}")

    def _finish(self, failed: bool) -> None:
        for worker in self._workers:
            worker.end(partial(_close, worker.name, worker.tracker, failed))
        for worker in self._workers:
            worker.wait(SECONDS_TO_FINISH)
        self._report_failures("at the end")
        self._workers.clear()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)

    def _report_failures(self, when: str) -> None:
        """Say once of each tracker that it failed."""
        for worker in self._workers:
            if worker.failure and not worker.was_told:
                worker.was_told = True
                self._say(
                    f"tracker {worker.name} failed {when} ({worker.failure}) and gets nothing more; the run goes on, "
                    "and log.jsonl has everything."
                )

    def _say(self, sentence: str) -> None:
        self.notes.append(sentence)
        self._print(sentence)


class _NoAnswer(Exception):
    """A tracker took longer than it may."""


class _Worker:
    """The one thread that talks to a tracker; what it is told is done in order, and nobody waits for it.

    MLflow knows its run by thread, so that all calls must come from the same one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tracker: Any = None
        self.failure = ""
        """Why nothing more is sent; "" while all is well."""
        self.was_told = False
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        # a daemon: a call that never returns must not keep the process from ending
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def ask(self, call: Callable[[], Any]) -> Any:
        """The value of ``call``, or its exception.

        Raises:
            _NoAnswer: it is not there after ``SECONDS_TO_START``.
        """
        future: Future[Any] = Future()

        def answer() -> None:
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)

        self._calls.put(answer)
        if not wait([future], SECONDS_TO_START).done:
            raise _NoAnswer(f"no answer for {SECONDS_TO_START:g} seconds")
        return future.result()

    def tell(self, call: Callable[[], Any]) -> None:
        """Have ``call`` made some time; its exception ends the tracker."""
        if not self.failure:
            self._calls.put(call)

    def end(self, last: Callable[[], Any]) -> None:
        """Have ``last`` made, and nothing more."""
        self._calls.put(last)
        self._calls.put(None)

    def wait(self, seconds: float) -> None:
        """Until all is done, at most so long."""
        self._thread.join(seconds)
        if self._thread.is_alive() and not self.failure:
            self.failure = f"it had not sent everything {seconds:g} seconds after the last record"

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.failure:
                continue
            try:
                call()
            except Exception as error:  # whatever a tracker may raise, training goes on without it
                self.failure = _in_words(error)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and plain values, lists with commas; those that are null are left out, since TensorBoard has no
    null."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def plain_names(domains: Iterable[str]) -> dict[str, str]:
    """Domain -> its name within a key: of letters, digits and ``_-. `` as MLflow wants it, each different."""
    names: dict[str, str] = {}
    for domain in domains:
        plain = unique = re.sub(r"[^\w\-. ]|^\.+|\.(?=\.)", "_", domain)[:LONGEST_DOMAIN].strip() or "_"
        number = 1
        while unique in names.values():
            number += 1
            unique = f"{plain}-{number}"
        names[domain] = unique
    return names


def _arguments(
    name: str, project: str, run: str, known: Any, folder: Path, done_steps: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What accelerate's tracker takes."""
    if name == "tensorboard":  # records after the checkpoint, which the run makes once more, are hidden
        return ("tensorboard", str(folder)), {"purge_step": done_steps + 1} if known else {}
    if name == "wandb":
        # no console, no code, no place on this machine: metrics and settings are all that was asked for
        quiet = {"console": "off", "disable_code": True, "disable_git": True, "x_disable_meta": True}
        again = {"id": known, "resume": "allow"} if known else {}
        return (project,), {"name": run, "dir": str(folder), "settings": quiet, **again}
    if name == "mlflow":
        source = {"mlflow.source.name": "hf_transfer"}  # else the path of the script
        place = None if _is_remote(os.environ["MLFLOW_TRACKING_URI"]) else str(folder / "mlruns")
        return (project,), {"logging_dir": place, "run_id": known, "run_name": run, "tags": source}
    return (project,), {"name": run, "resume": "allow" if known else "never"}


def _is_remote(uri: str) -> bool:
    return uri.split(":")[0] not in ("sqlite", "file") and "://" in uri


def _id_of(name: str, tracker: Any) -> Any:
    """What a continued run needs to find the same run again."""
    if name == "mlflow":
        return tracker.tracker.info.run_id
    if name == "wandb":
        return tracker.tracker.id
    return True


def _close(name: str, tracker: Any, failed: bool) -> None:
    """End the run of a tracker, as failed where it has a word for that."""
    if failed and name == "wandb":
        tracker.tracker.finish(exit_code=1)
    elif failed and name == "mlflow":
        import mlflow

        mlflow.end_run("FAILED")
    else:
        tracker.finish()


def _in_words(error: Exception) -> str:
    """An exception on one line, without what a URL may hold of passwords and tokens."""
    said = str(error) if isinstance(error, _NoAnswer) else f"{type(error).__name__}: {error}"
    text = re.sub(r"//[^/@\s]+@", "//", one_line(said))
    return re.sub(r"(?i)(token|key|password)=[^&\s'\")]+", r"\1=...", text)[:300]


def _read(path: Path) -> dict[str, Any]:
    """The tracker runs of an earlier part of the run; {} where that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
