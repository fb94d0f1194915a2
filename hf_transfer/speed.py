"""Floor 5: how fast this machine is at a run: some of its micro-batches, forward and backward, and no step taken."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_transfer.before_training import activation_checkpointing
from hf_transfer.cost import operations, shapes_of
from hf_transfer.dropout import quick_dropout
from hf_transfer.flattened import flattened, real_tokens
from hf_transfer.on_device import send_batch
from hf_transfer.rehearsal import Rehearsal, StageCost, mark
from hf_transfer.token_budget import ON_HOST

MEASURED_SECONDS = 1.0
"""How long micro-batches are run for, after the first one."""
BATCH_SECONDS = 0.5
"""How long one of them may take at the machine's full speed; of larger ones a part is run."""
MOST_BATCH_SECONDS = 4.0
"""Where a single example would take longer than this at full speed, none is run."""


@dataclass(frozen=True)
class Measured:
    """How fast this machine is."""

    how: str
    operations_per_second: float
    """Of the micro-batches that were run; else of a matrix product."""
    product_operations_per_second: float
    bytes_per_second: float
    """Copied from memory to memory, both ends counted."""
    micro_batches: int


def measure(run: Rehearsal, stage: StageCost) -> Measured:
    """Run micro-batches of ``stage``, forward and backward, until ``MEASURED_SECONDS`` have passed; no step is taken.

    Where a single example would take too long, the speed of a plain matrix product stands for it.
    """
    product, memory = _product_speed(run), _memory_speed(run)
    if stage.trained:
        mark(run, stage.plan)
    done = seconds = 0.0
    count = 0
    with activation_checkpointing(run.adapted.model, run.settings.activation_checkpointing):
        for piece in _spread(stage.pieces):
            rows, amount = _part(run, stage, piece, product * BATCH_SECONDS)
            if amount > product * MOST_BATCH_SECONDS:
                break
            took = _run_one(run, stage, rows)
            if count:  # the first one also pays for what is set up once
                done, seconds = done + amount, seconds + took
            count += 1
            if seconds > MEASURED_SECONDS:
                break
    if seconds:
        return Measured("micro-batches of this run", done / seconds, product, memory, count - 1)
    return Measured("a plain matrix product", product, product, memory, 0)


def _spread(pieces: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Micro-batches from all over the run, the largest first, round and round."""
    yield max(pieces, key=len)
    step = max(1, len(pieces) // 64)
    while True:
        yield from pieces[::step]


def _part(run: Rehearsal, stage: StageCost, piece: np.ndarray, most: float) -> tuple[np.ndarray, float]:
    """As many rows of ``piece``, evenly spaced, as take ``most`` operations and any device has room for, at least one;
    and their operations."""

    def amount(rows: np.ndarray) -> float:
        shapes = shapes_of([rows], run.source, run.target, stage.shapes.copies)
        return float(operations(stage.trace, shapes, run.flat).sum())

    tokens = stage.shapes.copies * int((run.source + run.target)[piece].sum())
    share = min(1.0, most / max(amount(piece), 1.0), ON_HOST / tokens)
    fits = max(1, math.floor(len(piece) * share))
    rows = piece[np.linspace(0, len(piece) - 1, fits).astype(int)]
    return rows, amount(rows)


def _run_one(run: Rehearsal, stage: StageCost, rows: np.ndarray) -> float:
    """Seconds of forward and backward of a micro-batch. Gradients are handed over and dropped: none is kept."""
    model, functions = run.network, run.functions
    batch = functions.train_batch(run.encoded.train[rows])
    sent = send_batch(batch, run.device)
    _wait(run.device)
    started = time.perf_counter()
    with torch.set_grad_enabled(bool(stage.trained)), flattened(model, *real_tokens(batch)), quick_dropout(run.device):
        with run.autocast():
            outputs = model(**sent.inputs)
            loss = functions.loss_function(outputs, sent).loss_sum if stage.trained else None
        if loss is not None:
            torch.autograd.grad(loss, stage.trained, allow_unused=True)
    _wait(run.device)
    return time.perf_counter() - started


def _product_speed(run: Rehearsal) -> float:
    """Operations per second of a product of two matrices of 1024 x 1024, at the run's precision."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    matrix = torch.rand(1024, 1024, device=run.device, dtype=kinds.get(run.precision, torch.float32))
    return 2 * 1024**3 * _per_second(lambda: matrix @ matrix, run.device)


def _memory_speed(run: Rehearsal) -> float:
    """Bytes per second that are read and written by copying 32 MB."""
    source = torch.zeros(8_000_000, device=run.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes * _per_second(lambda: target.copy_(source), run.device)


def _per_second(call: Callable[[], object], device: torch.device, seconds: float = 0.15) -> float:
    """How often ``call`` runs in a second, after two calls to warm up."""
    call(), call()
    _wait(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            call()
        _wait(device)
        count += 4
    return count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
