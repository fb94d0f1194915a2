"""Floor 1: what training tells while it goes on: a line of log.jsonl for each window, and whoever else listens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TextIO

from hf_transfer.records import WindowSums


class ProgressBar(Protocol):
    """What the loop tells whoever watches."""

    def advance(self, loss: float, learning_rate: float, examples: int) -> None:
        """One window is done."""
        ...

    def note(self, text: str) -> None:
        """A line to print."""
        ...


class Listener(Protocol):
    """Who else gets the records of the log, on the main process."""

    def learnt(self, record: Mapping[str, Any]) -> None:
        """One window is done: its line of log.jsonl."""
        ...

    def validated(self, record: Mapping[str, Any]) -> None:
        """A score of validation, as in ``TrainResult.history``."""
        ...


def open_log(path: Path, step: int, is_main: bool) -> Any:
    """The step log, cut back to ``step`` when a run continues: a context that gives the open file, or None off the main
    process."""
    if not is_main:
        return nullcontext(None)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = 0
    if step and path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept += len(line)
    with path.open("ab") as file:
        file.truncate(kept)  # in place: a process killed while it rewrites the file would leave none of it
    return path.open("a", encoding="utf-8", buffering=1)


def flush_log(log: TextIO | None) -> None:
    """To the disk: a checkpoint must not outlive the log of the steps before it."""
    if log is not None:
        os.fsync(log.fileno())


def log_step(
    log: TextIO | None,
    listener: Listener | None,
    step: int,
    learning_rate: float,
    seconds: float,
    sums: WindowSums,
) -> None:
    """Write the line of a window, which took so many ``seconds``, and tell ``listener``; without a ``log``, nothing."""
    if log is None:
        return
    record: dict[str, Any] = {
        "step": step,
        "loss": sums.loss,
        "learning_rate": learning_rate,
        "gradient_norm": sums.gradient_norm,
        "examples": sums.examples,
        "tokens": sums.tokens,
        "padding_tokens": sums.padding_tokens,
        "seconds": round(seconds, 6),
    }
    if not sums.stepped:
        record |= {"skipped": True, "example_ids": sorted(sums.not_finite)}
    log.write(json.dumps(record) + "\n")
    if listener is not None:
        listener.learnt(record)
