"""Floor 3: the loop. The only ``backward`` of the project is in ``_add_gradient``, which ``learn_window`` calls.

Arithmetic: a window is the examples of one optimizer step over all processes. Its loss is the sum over its targets
divided by their number, whatever the cut: each process sums its micro-batches' losses, multiplies by the number of
processes (DDP averages) and divides by the count over all of them. So the gradient of a window depends neither on how
it was cut into micro-batches nor on how many processes share it (transformers#47688 is what happens otherwise).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn

from hf_transfer import checkpoint
from hf_transfer.adapt.base import Adapted
from hf_transfer.batching import Ahead, Mixture
from hf_transfer.before_training import (
    activation_checkpointing,
    drop_unused,
    prepare_stage,
    run_all_layers,
    unwrap,
)
from hf_transfer.checkpoint import RunFolder
from hf_transfer.compiled import CompiledLayers
from hf_transfer.config import TrainConfig
from hf_transfer.dropout import quick_dropout
from hf_transfer.errors import RunError
from hf_transfer.features import StoredFeatures
from hf_transfer.flattened import find_stacks, flattened, real_tokens
from hf_transfer.launch import let_models_go, peak_memory_bytes, sum_over_processes
from hf_transfer.layers import LayerProbe
from hf_transfer.model_selection import Chooser, ModelSelection
from hf_transfer.on_device import is_out_of_memory, send_batch
from hf_transfer.optim import rate_factor, set_rate
from hf_transfer.preemption import window_by_window
from hf_transfer.records import Batch, RunState, Selection, TrainResult, WindowSums, not_by_the_loop
from hf_transfer.schedule import plan_stages, position_of, seconds_at
from hf_transfer.step_log import Listener, ProgressBar, flush_log, log_step, open_log
from hf_transfer.tasks import TaskFunctions
from hf_transfer.tasks.base import LossFunction
from hf_transfer.token_budget import agreed_budget, cut_in_half
from hf_transfer.watch import here
from hf_transfer.windows import Windows

EXAMPLES_SHOWN = 3
BAD_WINDOWS_IN_A_ROW = 3
"""Windows without a finite loss and gradient, one after the other, that end a run."""
LONG_SECONDS = 600.0
"""Training that took so long is on disk before it is scored, also where no checkpoints were asked for."""


def train(
    adapted: Adapted,
    rows: Dataset,
    functions: TaskFunctions,
    chooser: Chooser,
    accelerator: Accelerator,
    settings: TrainConfig,
    folder: RunFolder,
    seed: int,
    progress: ProgressBar,
    features: StoredFeatures | None = None,
    mixture: Mixture | None = None,
    listener: Listener | None = None,
) -> TrainResult:
    """Train ``adapted.model`` in place on encoded ``rows`` and put the chosen step's parameters back.

    Plan: for each stage, mark what it trains, wrap model and optimizer for the processes; for each window, learn and
    log; at the end of each epoch (or every ``validation_steps``) validate, remember the best, maybe stop early; every
    ``checkpoint_steps`` save; at the end restore the best and check that it scores what was recorded.

    ``features`` answers for what lies below everything that a stage trains; ``mixture`` says which of ``rows`` an epoch
    has, by default all; ``listener`` is told what the log is told.

    Raises:
        InputError: the checkpoint to continue from belongs to another run.
        RunError: a loss that reaches no parameter, no finite loss and gradient three times in a row, one example that
            finds no room in memory, a restored step that does not score what it did, or activation checkpointing or
            compiled layers that the model does not bear.
        Preempted: a signal said that the machine will be taken; a checkpoint of the last window is on disk.
    """
    if not adapted.stages:
        return _scored_as_it_is(adapted.model, chooser, accelerator)
    lengths = np.asarray(rows["length"][:])
    copies = 2 if settings.r_drop else 1  # R-Drop's batches hold each example twice
    windows = Windows(rows, lengths, settings.window_size, seed, mixture, functions.train_batch, copies, accelerator)
    plans = plan_stages(adapted.stages, windows.epoch_size, settings)
    last_step = plans[-1].end

    if not getattr(accelerator, "is_fsdp2", False):  # which brings each process its shards, from a model on the host
        adapted.model.to(accelerator.device)
    names = drop_unused(adapted, functions.make_batch(rows[lengths.argsort()[:2]]), functions.loss_function, progress)
    if accelerator.num_processes > 1:
        run_all_layers(adapted.model, progress)
    start = {id(p): p.detach().clone() for p in adapted.parts.body} if settings.l2_sp else {}
    state = _first_state(folder, adapted.model, accelerator)
    if folder.resume_from is not None:
        progress.note(f"continuing after step {state.step} of {last_step}")
    selection = ModelSelection(
        chooser, names, windows.per_epoch, settings.average_checkpoints, folder.checkpoints, accelerator, progress
    )
    layers = CompiledLayers(adapted.parts.layer_modules, settings.compile, accelerator, progress.note)
    schedule_began = 0.0  # seconds of training before the schedule of the stage
    budget = 0
    model: Any = None
    optimizer: Any = None
    with (
        activation_checkpointing(adapted.model, settings.activation_checkpointing),
        open_log(folder.log, state.step, accelerator.is_main_process) as log,
        window_by_window() as notice,
        closing(layers),
    ):
        if accelerator.is_main_process:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            # a run that was killed between a checkpoint and this may have written its last one
            checkpoint.drop_older(folder.checkpoints, state.step, settings.keep_checkpoints)
        for plan in plans:
            if plan.begins_schedule and state.step >= plan.first_step:
                schedule_began = seconds_at(plan.schedule_first, state)
            if state.stopped_early or state.step >= plan.end or _time_is_up(state, settings):
                if features is not None:
                    features.begin(plan.stage)
                continue
            if state.step == plan.first_step:
                state = replace(state, bad_validations=0)
            if model is not None:
                model = optimizer = None  # of the stage before
                accelerator.free_memory()
                let_models_go()
                unwrap(adapted.model, accelerator)
            if features is not None:  # which are tried in single precision, whatever stage it is
                features.begin(plan.stage)
            model, optimizer = prepare_stage(adapted, plan.stage, names, settings, start, accelerator)
            flat = find_stacks(model).flat
            if folder.resume_from is not None and state.step > plan.first_step:
                checkpoint.load_checkpoint(folder.resume_from, model, optimizer, accelerator)
            layers.begin(plan.end - state.step)
            wanted = settings.tokens_per_micro_batch
            if wanted == "auto":
                wanted = agreed_budget(model, rows, lengths * copies, functions, accelerator, progress)
            budget = min(wanted, state.most_tokens or wanted)  # no more than had room before
            ahead = Ahead(partial(windows.batches, flat))
            for step in range(state.step, plan.end):
                here(f"training, step {step + 1} of {last_step}")
                started = time.perf_counter()
                torch.manual_seed(_seed_of(seed, step, accelerator.process_index))
                in_schedule = position_of(step, plan, state, schedule_began, settings)
                factor = rate_factor(in_schedule, plan.schedule_steps, settings.warmup_fraction, settings.schedule)
                learning_rate = set_rate(optimizer, factor)
                sums = None
                while sums is None:
                    batches = ahead.take(step, budget)
                    try:
                        sums = learn_window(
                            model, batches, functions.loss_function, optimizer, settings.max_gradient_norm, accelerator,
                            least_batch=windows.least_batch,
                            meanwhile=partial(ahead.prepare, step + 1, budget) if step + 1 < plan.end else None,
                        )  # fmt: skip
                    except WindowTooLarge as error:
                        budget = cut_in_half(budget, lengths[windows.indices(step)], error, progress)
                        state = replace(state, most_tokens=budget)
                        torch.manual_seed(_seed_of(seed, step, accelerator.process_index))
                seconds = _agreed(time.perf_counter() - started, settings, accelerator)
                layers.learnt(seconds, sums.tokens)
                state = _count(state, step + 1, sums, seconds)
                log_step(log, listener, step + 1, learning_rate, seconds, sums)
                progress.advance(sums.loss, learning_rate, sums.examples)
                if state.skipped_in_a_row >= BAD_WINDOWS_IN_A_ROW:
                    raise RunError(_never_finite(state, sums, folder.checkpoints))
                time_is_up = _time_is_up(state, settings)
                over = time_is_up or state.step == last_step
                if over or state.step % (settings.validation_steps or windows.per_epoch) == 0:
                    patience = settings.patience if plan is plans[-1] or not plan.stage.own_schedule else 0
                    state = selection.validate(state, model, patience)
                    if listener is not None:
                        listener.validated(state.history[-1])
                    adapted.set_train_mode(accelerator.unwrap_model(model))
                    over = over or state.stopped_early
                taken = notice.given(accelerator)  # the machine is about to be
                due = taken or _is_kept(state, over, settings, accelerator)
                if due or (over and folder.keeps_end):
                    flush_log(log)
                    peak = max(state.peak_memory_bytes, peak_memory_bytes(accelerator))
                    state = replace(state, tokens_per_micro_batch=budget, peak_memory_bytes=peak)
                    checkpoint.save_checkpoint(
                        folder.checkpoints, model, names, optimizer if due else None, state, folder.identity,
                        settings.keep_checkpoints, accelerator,
                    )  # fmt: skip
                if taken:
                    notice.leave(state.step, last_step)
                if over:
                    break
    if model is None:  # continued after its last step: it is scored in the precision that it learnt in
        prepare_stage(adapted, plans[-1].stage, names, settings, start, accelerator)
    chosen = selection.restore(state, adapted.model)
    if features is not None:
        features.end()
    return TrainResult(
        selection=chosen,
        steps=state.step,
        history=state.history,
        train_seconds=state.train_seconds,
        examples=state.examples,
        tokens=state.tokens,
        padding_tokens=state.padding_tokens,
        skipped_steps=state.skipped_steps,
        stopped_early=state.stopped_early,
        tokens_per_micro_batch=budget or state.tokens_per_micro_batch,
        peak_memory_bytes=state.peak_memory_bytes,
    )


def _scored_as_it_is(model: nn.Module, chooser: Chooser, accelerator: Accelerator) -> TrainResult:
    """Of a model of which the loop trains nothing."""
    fixed: nn.Module = model.to(accelerator.device)
    if not isinstance(fixed, LayerProbe):  # whose head is solved in full precision, and validated so
        fixed = accelerator.prepare_model(fixed, evaluation_mode=True)
    value = chooser.validate(fixed)
    return not_by_the_loop(Selection("nothing is chosen", chooser.metric, 0, value), 0.0, 0)


def _first_state(folder: RunFolder, model: nn.Module, accelerator: Accelerator) -> RunState:
    """Where training begins; where it is continued, the model gets the parameters of its checkpoint."""
    state = RunState()
    if folder.resume_from is not None:
        checkpoint.check_identity(folder.resume_from, folder.identity)
        state = checkpoint.load_state(folder.resume_from)
        checkpoint.load_checkpoint(folder.resume_from, model, None, accelerator)
    if state.processes[-1:] != (accelerator.num_processes,):
        state = replace(state, processes=(*state.processes, accelerator.num_processes))
    return state


def learn_window(
    model: nn.Module,
    batches: Sequence[tuple[Batch, bool]],
    loss_function: LossFunction,
    optimizer: torch.optim.Optimizer,
    max_gradient_norm: float,
    accelerator: Accelerator,
    least_batch: Callable[[], Batch] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> WindowSums:
    """Add up the gradient of a window and take one optimizer step.

    Args:
        batches: This process's micro-batches, each with whether it counts; a filler takes part in the processes'
            communication only. At least one on every process.
        max_gradient_norm: 0 leaves the gradient as it is.
        least_batch: makes a batch that has room where these had not; asked for where processes wait for each other.
        meanwhile: what the host has to do while the device is at work on the window.

    Raises:
        WindowTooLarge: on all processes, where any had no room; the model is as it was.
        RunError: a process had no room at a moment from which the processes cannot find together again.
    """
    mine = [batch for batch, counts in batches if counts]
    sums = [
        float(sum(values))
        for values in (
            [b.target_count for b in mine],
            [len(b.example_ids) for b in mine],
            [b.tokens for b in mine],
        )
    ]
    targets = sum_over_processes(sums, accelerator)[0] if accelerator.num_processes > 1 else sums[0]
    scale = accelerator.num_processes / targets
    no_room = ""
    try:
        loss_sum, padding = _add_gradient(model, batches, loss_function, scale, accelerator)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        no_room, loss_sum, padding = str(error) or type(error).__name__, torch.zeros(()), 0
    if no_room:  # not within `except`: the traceback would hold on to the activations
        optimizer.zero_grad(set_to_none=True)
        if accelerator.num_processes > 1:
            _answer_the_others(model, least_batch, loss_function, accelerator, no_room)
    elif meanwhile is not None:
        meanwhile()
    total, targets, examples, tokens, padded, without_room = sum_over_processes(
        [float(loss_sum), *sums, float(padding), float(bool(no_room))], accelerator
    )
    if without_room:
        optimizer.zero_grad(set_to_none=True)
        raise WindowTooLarge(no_room or "on another process")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    accelerator.unscale_gradients(optimizer)
    found: Any = nn.utils.clip_grad_norm_(parameters, max_gradient_norm or math.inf)
    norm = float(found.full_tensor() if hasattr(found, "full_tensor") else found)  # of shards it is itself sharded
    scaler = accelerator.scaler
    stepped = math.isfinite(norm) and math.isfinite(total)
    if stepped:
        optimizer.step()
    elif scaler is not None:  # a fused optimizer steps over infinite gradients by itself, and nobody could tell
        scaler.update()  # to a lower scale
    # overflow is expected while fp16 looks for its scale; below 1, or of the loss alone, no scale would help
    in_search = not math.isfinite(norm) and scaler is not None and scaler.get_scale() >= 1
    optimizer.zero_grad(set_to_none=True)
    left_out = () if stepped else tuple(gather_object([name for b in mine for name in b.example_ids]))
    counts = (int(examples), int(tokens), int(padded), int(targets))
    return WindowSums(total / targets, norm, *counts, stepped, in_search, left_out)


def _add_gradient(
    model: nn.Module,
    batches: Sequence[tuple[Batch, bool]],
    loss_function: LossFunction,
    scale: float,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, int]:
    """Loss sum of the micro-batches that count, and the padding that layers saw; gradients are left in the model."""
    loss_sum = torch.zeros((), device=accelerator.device)
    padding = 0
    for turn, (batch, counts) in enumerate(batches):
        last = turn == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            sent = send_batch(batch, accelerator.device)
            with flattened(model, *real_tokens(batch)) as rows, quick_dropout(accelerator.device):
                with accelerator.autocast():  # the output layer of translation multiplies in there
                    loss = loss_function(model(**sent.inputs), sent).loss_sum
                accelerator.backward(loss * (scale if counts else 0.0))
            if counts:
                loss_sum += loss.detach()
                padding += batch.padding_tokens if rows is None else 0
    return loss_sum, padding


def _answer_the_others(
    model: nn.Module,
    least_batch: Callable[[], Batch] | None,
    loss_function: LossFunction,
    accelerator: Accelerator,
    no_room: str,
) -> None:
    """After a lack of memory, give the other processes the gradient that they wait for: zeros from a small batch.

    What they then hold is dropped: all learn afterwards that one had no room (``learn_window``).

    Raises:
        RunError: the exchange had begun, or parameters are gathered in each forward; neither can be taken up again.
    """
    words = (
        f"out of memory on process {accelerator.process_index} in the middle of an exchange with the others: lower "
        f"--train.tokens_per_micro_batch and continue with --train.resume auto ({no_room})."
    )
    if least_batch is None or getattr(accelerator, "is_fsdp2", False):
        raise RunError(words)
    wrapped: Any = model
    wrapped.require_forward_param_sync = False  # DDP's buffers went around when the window began
    try:
        _add_gradient(model, [(least_batch(), False)], loss_function, 0.0, accelerator)
    except RuntimeError as error:
        raise RunError(words) from error


class WindowTooLarge(Exception):
    """The micro-batches of a window do not fit into memory; the model is as it was before the window."""


def _time_is_up(state: RunState, settings: TrainConfig) -> bool:
    return settings.max_seconds is not None and state.train_seconds >= settings.max_seconds


def _agreed(seconds: float, settings: TrainConfig, accelerator: Accelerator) -> float:
    """The mean over all processes where the clock decides, so that all of them stop at the same step."""
    if settings.max_seconds is None:
        return seconds
    return sum_over_processes([seconds], accelerator)[0] / accelerator.num_processes


def _is_kept(state: RunState, over: bool, settings: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether a checkpoint is due: by its number, or at the end, so that what follows may fail. All processes ask."""
    if settings.checkpoint_steps:
        return over or state.step % settings.checkpoint_steps == 0
    return over and sum_over_processes([state.train_seconds], accelerator)[0] > LONG_SECONDS * accelerator.num_processes


def _seed_of(seed: int, step: int, process: int) -> int:
    """Seed of dropout for one window on one process: what resuming needs is then in the step number."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def _count(state: RunState, step: int, sums: WindowSums, seconds: float) -> RunState:
    return replace(
        state,
        step=step,
        skipped_steps=state.skipped_steps + (not sums.stepped),
        skipped_in_a_row=0 if sums.stepped else state.skipped_in_a_row + (not sums.in_search),
        train_seconds=state.train_seconds + seconds,
        examples=state.examples + sums.examples,
        tokens=state.tokens + sums.tokens,
        padding_tokens=state.padding_tokens + sums.padding_tokens,
    )


def _never_finite(state: RunState, sums: WindowSums, checkpoints: Path) -> str:
    whole, _ = checkpoint.find_checkpoint_to_resume(checkpoints, "auto")
    last = f"The last good checkpoint is {whole}." if whole else "No checkpoint was written."
    ids = ", ".join(sorted(sums.not_finite)[:EXAMPLES_SHOWN])
    return (
        f"no finite loss and gradient in {state.skipped_in_a_row} windows in a row, up to step {state.step} (its "
        f"examples begin with {ids}; log.jsonl has all): lower --train.learning_rate, or use --train.precision fp32. "
        f"{last}"
    )
