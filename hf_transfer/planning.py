"""Floor 5: what a run would learn, compute, hold in memory and take, before it runs; nothing is written.

The run is opened as the page opens it and its windows are drawn and cut as the loop does (rehearsal.py); cost.py turns
their lengths into operations and bytes. Time alone is measured: on a few of those micro-batches (speed.py).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import disable_progress_bars

from hf_transfer.adapt import Adapted
from hf_transfer.batching import window_count
from hf_transfer.config import RunConfig, check_config
from hf_transfer.cost import (
    OPTIMIZER_BYTES_KEPT,
    OPTIMIZER_BYTES_MOVED,
    activation_bytes,
    shapes_of,
)
from hf_transfer.cross_entropy import MOST_BYTES
from hf_transfer.flattened import find_stacks
from hf_transfer.output_layer import output_layer
from hf_transfer.rehearsal import Rehearsal, StageCost, cost_of, cost_of_pass, rehearse
from hf_transfer.report.results import plain
from hf_transfer.schedule import plan_stages
from hf_transfer.speed import Measured, measure
from hf_transfer.store_cost import stored_cost

FP32_BYTES = 4


def plan(config: RunConfig) -> dict[str, Any]:
    """What ``run(config)`` would train, compute, hold and take; validation, scoring and controls are not in it.

    The checkpoint and the data are read as ``run`` reads them, ``output_dir`` is not looked at. About three seconds are
    spent on measuring speed.

    Returns:
        Plain data, as JSON has it: ``parameters`` (by part of the model), ``lora``, ``data``, ``steps``, ``operations``
        (of the run and by part), ``memory`` (bytes), ``cache`` (of what frozen layers compute) and ``time`` (seconds).

    Raises:
        InputError: what ``run`` refuses about settings, data and checkpoint.
    """
    disable_progress_bars()
    check_config(config)
    with tempfile.TemporaryDirectory(prefix="hf-transfer-") as folder:  # a vocabulary is learnt into output_dir
        return plain(_describe(rehearse(dataclasses.replace(config, output_dir=folder)), config))


def _describe(run: Rehearsal, config: RunConfig) -> dict[str, Any]:
    """Every number of the plan."""
    plans = plan_stages(run.adapted.stages, run.encoded.epoch_size, run.settings)
    stages = [cost_of(run, stage) for stage in plans] or [cost_of_pass(run)]
    stored = stored_cost(run, stages)
    return {
        "task": config.task,
        "strategy": config.adapt.strategy,
        "checkpoint": config.model.checkpoint,
        "device": run.device.type,
        "precision": run.precision,
        "parameters": _parameters(run.adapted),
        "lora": _lora(run),
        "data": _data(run, stages),
        "steps": _steps(run, stages),
        "operations": _operations(run, stages),
        "memory": _memory(run, stages, stored),
        "cache": stored,
        "time": _time(stages, stored, measure(run, stages[-1])),
    }


# ---- parameters ------------------------------------------------------------------------------------------------


def _parameters(adapted: Adapted) -> dict[str, Any]:
    """Parameters in all and those that some stage trains, by part from bottom to top; no parameter counts twice."""
    parts = adapted.parts
    ever = {id(p) for stage in adapted.stages for p in stage.trainable}
    named = [
        ("embeddings", parts.embeddings),
        *((f"layer {i}", layer) for i, layer in enumerate(parts.layers)),
        ("rest", parts.rest),
        ("head", parts.head),
        ("other", tuple(adapted.model.parameters())),  # frozen copies that PEFT keeps of what it saves whole
    ]
    seen: set[int] = set()
    rows = []
    for name, parameters in named:
        own = [p for p in parameters if id(p) not in seen]
        seen |= {id(p) for p in own}
        rows.append(
            {
                "name": name,
                "trainable": sum(p.numel() for p in own if id(p) in ever),
                "total": sum(p.numel() for p in own),
            }
        )
    return {
        "trainable": adapted.summary.trainable,
        "total": adapted.summary.total,
        "parts": [row for row in rows if row["total"]],
    }


def _lora(run: Rehearsal) -> dict[str, Any] | None:
    if run.config.adapt.strategy != "lora":
        return None
    names = list(run.adapted.model.base_model.targeted_module_names)  # type: ignore[union-attr, arg-type]
    return {"rank": run.config.adapt.lora_rank, "count": len(names), "modules": names}


# ---- what is said of them --------------------------------------------------------------------------------------


def _data(run: Rehearsal, stages: Sequence[StageCost]) -> dict[str, Any]:
    lengths = run.source + run.target
    cut = sum(stage.shapes.tokens * stage.scale for stage in stages)
    padding = sum(stage.shapes.padding * stage.scale for stage in stages)
    return {
        "train_examples": len(lengths),
        "validation_examples": len(run.encoded.validation),
        "tokens": int(lengths.sum()),
        "source_tokens": int(run.source.sum()),
        "target_tokens": int(run.target.sum()),
        "longest": int(lengths.max()),
        "truncated": run.encoded.truncated,
        "path": "flattened" if run.flat else "padded",
        "why_padded": find_stacks(run.adapted.model).reason,
        "padding_fraction": 0.0 if run.flat else _share(padding, cut + padding),
        "padding_fraction_of_batches": _share(padding, cut + padding),
    }


def _steps(run: Rehearsal, stages: Sequence[StageCost]) -> dict[str, Any]:
    per_epoch = window_count(run.encoded.epoch_size, run.settings.window_size)
    steps = sum(stage.plan.steps for stage in stages)
    tokens = sum(stage.tokens for stage in stages)
    batches = sum(stage.shapes.batches * stage.plan.steps / max(stage.windows, 1) for stage in stages)
    padding = 0 if run.flat else sum(stage.shapes.padding * stage.scale for stage in stages)
    return {
        "window_size": run.settings.window_size,
        "windows_per_epoch": per_epoch,
        "steps": steps,
        "epochs": steps / per_epoch,
        "examples": sum(stage.examples for stage in stages),
        "tokens": tokens,
        "padding_tokens": round(padding),
        "micro_batches_per_step": _share(batches, steps),
        "windows_simulated": sum(stage.windows for stage in stages),
        "stages": [{"name": stage.plan.stage.name, "steps": stage.plan.steps} for stage in stages],
        "most_seconds": run.settings.max_seconds,
        "may_stop_early": bool(run.settings.patience),
    }


def _operations(run: Rehearsal, stages: Sequence[StageCost]) -> dict[str, Any]:
    """Of the run, of a mean step, and by part."""
    found = np.sum([stage.operations(run.flat) for stage in stages], axis=0)
    depth = len(found) - 2
    steps = sum(stage.plan.steps for stage in stages)
    names = ["below the layers", *(f"layer {i}" for i in range(depth)), "above the layers"]
    forward, of_inputs, of_weights = found.sum(0)
    return {
        "forward": forward,
        "input_gradients": of_inputs,
        "weight_gradients": of_weights,
        "total": found.sum(),
        "per_step": _share(found.sum(), steps),
        "parts": [
            {"name": name, "forward": row[0], "backward": row[1] + row[2]}
            for name, row in zip(names, found, strict=True)
        ],
    }


def _memory(run: Rehearsal, stages: Sequence[StageCost], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes by what they hold, at the fullest moment of a step; what libraries take for themselves is not in it."""
    tensors = (*run.adapted.model.parameters(), *run.adapted.model.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    trained = max(sum(p.numel() for p in stage.trained) for stage in stages)
    kept, largest = max((_largest(run, stage) for stage in stages), key=lambda pair: pair[0])
    beside = sum(p.numel() for p in run.adapted.parts.body) if run.settings.l2_sp else 0
    beside += run.adapted.summary.total if run.config.adapt.strategy == "interpolated" else 0
    found = {
        "weights": weights,
        "gradients": trained * FP32_BYTES,
        "optimizer": trained * OPTIMIZER_BYTES_KEPT,
        "activations": kept,
        "start": beside * FP32_BYTES,
        "store": min(stored["bytes"], stored["limit_bytes"]),
    }
    return {**found, "total": sum(found.values()), "largest_micro_batch": largest}


def _largest(run: Rehearsal, stage: StageCost) -> tuple[float, dict[str, int]]:
    """Bytes kept for the backward of the micro-batch that keeps most, and its shape.

    Looked for among those of most tokens and of the longest example, as attention grows with the square of it.
    """
    lengths = run.source + run.target
    real = [int(lengths[piece].sum()) for piece in stage.pieces]
    padded = [len(piece) * int(lengths[piece].max()) for piece in stage.pieces]
    longest = [int(lengths[piece].max()) for piece in stage.pieces]
    found = []
    for place in {int(np.argmax(values)) for values in (real, padded, longest)}:
        piece = stage.pieces[place]
        shapes = shapes_of([piece], run.source, run.target, stage.shapes.copies)
        kept = activation_bytes(stage.trace, shapes, run.flat)
        if run.writes and stage.trained:  # a few logits at a time, and the weight's gradient beside its sum
            vocabulary = output_layer(run.pretrained.model)[0].shape[0]
            logits = shapes.copies * float(shapes.target.sum()) * vocabulary * FP32_BYTES
            kept += min(logits, MOST_BYTES[run.device.type])
        found.append((kept, {"examples": len(piece), "tokens": real[place], "padded_tokens": padded[place]}))
    return max(found, key=lambda pair: pair[0])


# ---- time ------------------------------------------------------------------------------------------------------


def _time(stages: Sequence[StageCost], stored: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """Seconds of training, from operations at the measured speed and the optimizer's traffic through memory."""
    steps = sum(stage.plan.steps for stage in stages)
    moved = sum(sum(p.numel() for p in stage.trained) * stage.plan.steps for stage in stages) * OPTIMIZER_BYTES_MOVED
    optimizer = moved / measured.bytes_per_second
    seconds = stored["operations_without"] / measured.operations_per_second + optimizer
    return {
        "how": measured.how,
        "micro_batches_run": measured.micro_batches,
        "operations_per_second": measured.operations_per_second,
        "product_operations_per_second": measured.product_operations_per_second,
        "optimizer_seconds": optimizer,
        "seconds_per_step": seconds / steps if steps else None,
        "seconds": seconds,
        "seconds_with_cache": stored["operations_with"] / measured.operations_per_second + optimizer,
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
