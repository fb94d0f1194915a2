"""Floor 3: the loop. The only ``backward`` of the project is in ``learn_window``.

Arithmetic: a window is the examples of one optimizer step over all processes. Its loss is the sum over its targets
divided by their number, whatever the cut: each process sums its micro-batches' losses, multiplies by the number of
processes (DDP averages) and divides by the count over all of them. So the gradient of a window depends neither on how
it was cut into micro-batches nor on how many processes share it (transformers#47688 is what happens otherwise).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn

from hf_transfer import checkpoint
from hf_transfer.adapt.base import Adapted, Stage
from hf_transfer.batching import Ahead, Mixture, cut_window, share_window, steps_of, window_count, window_indices
from hf_transfer.compiled import CompiledLayers
from hf_transfer.config import TrainConfig
from hf_transfer.dropout import quick_dropout
from hf_transfer.errors import RunError
from hf_transfer.features import StoredFeatures
from hf_transfer.flattened import find_stacks, flattened, real_tokens
from hf_transfer.launch import sum_over_processes
from hf_transfer.layers import LayerProbe
from hf_transfer.on_device import send_batch
from hf_transfer.optim import build_optimizer, parameter_groups, pull_to_start, rate_factor, set_rate
from hf_transfer.output_layer import generator_inside
from hf_transfer.preemption import window_by_window
from hf_transfer.records import Batch, LossSum, RunState, Selection, TrainResult
from hf_transfer.tasks import TaskFunctions
from hf_transfer.token_budget import ON_HOST, measured_budget
from hf_transfer.watch import here

LossFunction = Callable[[Any, Batch], LossSum]
EXAMPLES_SHOWN = 3
BAD_WINDOWS_IN_A_ROW = 3
"""Windows without a finite loss and gradient, one after the other, that end a run."""
LONG_SECONDS = 600.0
"""Training that took so long is on disk before it is scored, also where no checkpoints were asked for."""


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


@dataclass(frozen=True)
class StagePlan:
    """Where a stage lies in the course of training, in optimizer steps."""

    stage: Stage
    first_step: int
    steps: int
    schedule_first: int
    """Step at which the schedule that the stage takes part in begins."""
    schedule_steps: int


@dataclass(frozen=True)
class Chooser:
    """How the step to keep is chosen."""

    rule: str
    """``in_domain_validation`` or ``last``."""
    metric: str
    higher_is_better: bool
    validate: Callable[[nn.Module], float]
    """Score of the model on in-domain validation; all processes call it and get the same number."""

    def better(self, value: float, best: float) -> bool:
        """Whether ``value`` beats ``best``; any number beats nan."""
        if math.isnan(value) or math.isnan(best):
            return math.isnan(best) and not math.isnan(value)
        return value > best if self.higher_is_better else value < best


@dataclass
class WindowSums:
    """What a window amounted to, over all processes."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    examples: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    targets: int = 0
    stepped: bool = True
    in_search: bool = False
    """No step, as fp16's scaler still looks for its scale."""
    not_finite: tuple[str, ...] = ()
    """Ids of the examples of a window whose step was left out."""


@dataclass(frozen=True)
class RunFolder:
    """Where training leaves its log and checkpoints."""

    log: Path
    checkpoints: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What must be equal for a checkpoint to be continued from."""
    resume_from: Path | None = None

    @property
    def continues_here(self) -> bool:
        """Whether the run that is continued was made in this folder, so that its log goes on."""
        return self.resume_from is not None and self.resume_from.parent.resolve() == self.checkpoints.resolve()

    @property
    def done_steps(self) -> int:
        """Steps that lie behind a run that is continued."""
        return checkpoint.load_state(self.resume_from).step if self.resume_from else 0


def plan_stages(stages: Sequence[Stage], examples: int, train: TrainConfig) -> tuple[StagePlan, ...]:
    """Lay the stages end to end.

    Stages with their own schedule come on top of ``epochs``; of ``max_steps`` they take a part, at most half of it.
    Among the others, those that name their epochs take them from what ``train`` asks for, and the last has the rest.
    """
    per_epoch = window_count(examples, train.window_size)
    total = train.max_steps or max(1, steps_of(train.passes, per_epoch))
    plans: list[StagePlan] = []
    step = left = 0
    for stage in stages:
        if stage.own_schedule:
            steps = max(1, steps_of(stage.epochs or 1.0, per_epoch))
            if train.max_steps is not None:
                steps = min(steps, total // 2)
                total -= steps
            if steps:
                plans.append(StagePlan(stage, step, steps, step, steps))
        else:
            left = left or total
            last = stage is stages[-1]
            steps = left if last else min(steps_of(stage.epochs or 0, per_epoch), left)
            begin = next((p.schedule_first for p in plans if not p.stage.own_schedule), step)
            plans.append(StagePlan(stage, step, steps, begin, total))
            left -= steps
        step += steps
        if not stage.own_schedule and not left:
            break  # asked for fewer epochs than there are stages: the upper layers are all that thaws
    return tuple(plans)


def train(
    adapted: Adapted,
    rows: Dataset,
    functions: TaskFunctions,
    chooser: Chooser,
    accelerator: Accelerator,
    config: TrainConfig,
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
        RunError: no finite loss and gradient three times in a row, a trainable parameter that never gets one, or a
            restored step that does not score what it did.
        Preempted: a signal said that the machine will be taken; a checkpoint of the last window is on disk.
    """
    if not adapted.stages:
        fixed: nn.Module = adapted.model.to(accelerator.device)
        if not isinstance(fixed, LayerProbe):  # whose head is solved in full precision, and validated so
            fixed = accelerator.prepare_model(fixed, evaluation_mode=True)
        value = chooser.validate(fixed)
        return not_by_the_loop(Selection("nothing is chosen", chooser.metric, 0, value), 0.0, 0)
    epoch_size = len(mixture or rows)
    plans = plan_stages(adapted.stages, epoch_size, config)
    per_epoch = window_count(epoch_size, config.window_size)
    last_step = plans[-1].first_step + plans[-1].steps
    lengths = np.asarray(rows["length"][:])
    copies = 2 if config.r_drop else 1  # R-Drop's batches hold each example twice

    def window_of(step: int) -> np.ndarray:
        window = window_indices(epoch_size, config.window_size, seed, step)
        return window if mixture is None else mixture.rows(window, step // per_epoch)

    def my_batches(flat: bool, step: int, budget: int) -> list[tuple[Batch, bool]]:
        window = window_of(step)
        own = lengths[window]
        return _my_batches(rows, window, own, functions.train_batch, budget, accelerator, flat, copies)

    adapted.model.to(accelerator.device)
    names = drop_unused(adapted, functions.make_batch(rows[lengths.argsort()[:2]]), functions.loss_function, progress)
    if accelerator.num_processes > 1:
        _run_all_layers(adapted.model, progress)
    if config.activation_checkpointing:
        _checkpoint_activations(adapted.model)
    start = {id(p): p.detach().clone() for p in adapted.parts.body} if config.l2_sp else {}
    state = RunState()
    schedule_began = 0.0  # seconds of training before the schedule of the stage
    if folder.resume_from is not None:
        checkpoint.check_identity(folder.resume_from, folder.identity)
        state = checkpoint.load_state(folder.resume_from)
        checkpoint.load_checkpoint(folder.resume_from, adapted.model, None, accelerator)
        progress.note(f"continuing after step {state.step} of {last_step}")
    if state.processes[-1:] != (accelerator.num_processes,):
        state = replace(state, processes=(*state.processes, accelerator.num_processes))
    layers = CompiledLayers(adapted.parts.layer_modules, config.compile, accelerator, progress.note)
    log_file = _open_log(folder.log, state.step, accelerator.is_main_process)
    if accelerator.is_main_process:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
    budget = 0
    model: Any = None
    with log_file as log, window_by_window() as notice, closing(layers):
        for plan in plans:
            if features is not None:
                features.begin(plan.stage)
            if plan.first_step == plan.schedule_first and state.step >= plan.first_step:
                schedule_began = _seconds_at(plan.schedule_first, state)
            if state.stopped_early or state.step >= plan.first_step + plan.steps or _time_is_up(state, config):
                continue
            if state.step == plan.first_step:
                state = replace(state, bad_validations=0)
            model, optimizer = _prepare(adapted, plan.stage, names, config, start, accelerator)
            flat = not find_stacks(model).reason
            if folder.resume_from is not None and state.step > plan.first_step:
                checkpoint.load_checkpoint(folder.resume_from, model, optimizer, accelerator)
            layers.begin(plan.first_step + plan.steps - state.step)
            wanted = config.tokens_per_micro_batch
            whole = lengths * copies
            budget = wanted if wanted != "auto" else _own_budget(model, rows, whole, functions, accelerator, progress)
            budget = min(budget, state.most_tokens or budget)
            end = plan.first_step + plan.steps
            ahead = Ahead(partial(my_batches, flat))
            for step in range(state.step, end):
                here(f"training, step {step + 1} of {last_step}")
                started = time.perf_counter()
                torch.manual_seed(_seed_of(seed, step, accelerator.process_index))
                in_schedule = _position(state, plan, step, schedule_began, config)
                factor = rate_factor(in_schedule, plan.schedule_steps, config.warmup_fraction, config.schedule)
                learning_rate = set_rate(optimizer, factor)
                sums = None
                while sums is None:
                    batches = ahead.take(step, budget)
                    try:
                        sums = learn_window(
                            model, batches, functions.loss_function, optimizer, config.max_gradient_norm, accelerator,
                            least_batch=lambda: functions.train_batch(rows[lengths.argsort()[:1]]),
                            meanwhile=partial(ahead.prepare, step + 1, budget) if step + 1 < end else None,
                        )  # fmt: skip
                    except WindowTooLarge as error:
                        budget = _cut_in_half(budget, lengths[window_of(step)], error, progress)
                        state = replace(state, most_tokens=budget)
                        torch.manual_seed(_seed_of(seed, step, accelerator.process_index))
                seconds = _agreed(time.perf_counter() - started, config, accelerator)
                layers.learnt(seconds, sums.tokens)
                state = _count(state, step + 1, sums, seconds)
                _log_step(log, listener, step + 1, learning_rate, seconds, sums)
                progress.advance(sums.loss, learning_rate, sums.examples)
                if state.skipped_in_a_row >= BAD_WINDOWS_IN_A_ROW:
                    raise RunError(_never_finite(state, sums, folder.checkpoints))
                due = config.validation_steps or per_epoch
                time_is_up = _time_is_up(state, config)
                if state.step % due == 0 or state.step == last_step or time_is_up:
                    patience = config.patience if plan is plans[-1] or not plan.stage.own_schedule else 0
                    state = _validate(
                        state, model, chooser, names, per_epoch, patience, config, folder, accelerator, progress
                    )
                    if listener is not None:
                        listener.validated(state.history[-1])
                    adapted.set_train_mode(accelerator.unwrap_model(model))
                taken = notice.given(accelerator)
                over = state.stopped_early or time_is_up or state.step == last_step
                if taken or _is_kept(state, over, config, accelerator):
                    _flush(log)
                    checkpoint.save_checkpoint(
                        folder.checkpoints,
                        model,
                        names,
                        optimizer,
                        state,
                        folder.identity,
                        config.keep_checkpoints,
                        accelerator,
                    )
                if taken:
                    notice.leave(state.step, last_step)
                if over:
                    break
    if model is None:  # continued after its last step: it is scored in the precision that it learnt in
        _prepare(adapted, plans[-1].stage, names, config, start, accelerator)
    selection = _restore(state, adapted.model, chooser, config, folder, accelerator)
    if config.activation_checkpointing:
        inner = generator_inside(adapted.model)
        (getattr(inner, "activation_checkpointing_disable", None) or inner.gradient_checkpointing_disable)()
    if features is not None:
        features.end()
    return TrainResult(
        selection=selection,
        steps=state.step,
        history=state.history,
        train_seconds=state.train_seconds,
        examples=state.examples,
        tokens=state.tokens,
        padding_tokens=state.padding_tokens,
        skipped_steps=state.skipped_steps,
        stopped_early=state.stopped_early,
        tokens_per_micro_batch=budget,
    )


def not_by_the_loop(selection: Selection, seconds: float, examples: int) -> TrainResult:
    """What is said of the training of what took no optimizer step."""
    return TrainResult(
        selection=selection,
        steps=0,
        history=(),
        train_seconds=seconds,
        examples=examples,
        tokens=0,
        padding_tokens=0,
        skipped_steps=0,
        stopped_early=False,
    )


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
        if not _is_out_of_memory(error):
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


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _own_budget(
    model: nn.Module,
    rows: Dataset,
    lengths: np.ndarray,
    functions: TaskFunctions,
    accelerator: Accelerator,
    progress: ProgressBar,
) -> int:
    """Tokens that go through the model at once, equal on all processes; on a GPU as many as memory holds."""
    if accelerator.device.type != "cuda" or getattr(accelerator, "is_fsdp2", False):
        return ON_HOST
    module = accelerator.unwrap_model(model)  # no exchange with other processes while each tries for itself
    learning = [p for p in module.parameters() if p.requires_grad]

    def run(chosen: np.ndarray) -> None:
        batch = functions.train_batch(rows[chosen])
        sent = send_batch(batch, accelerator.device)
        with flattened(module, *real_tokens(batch)):  # around the backward too: layers may be run again in it
            with accelerator.autocast():
                loss = functions.loss_function(module(**sent.inputs), sent).loss_sum
            torch.autograd.grad(loss, learning, allow_unused=True)

    own = measured_budget(lengths, run, sum(p.nbytes for p in learning), accelerator.device)
    found = min(gather_object([own]))
    progress.note(f"micro-batches of at most {found:,} tokens, from the free memory of the GPU")
    return found


def _cut_in_half(budget: int, lengths: np.ndarray, error: WindowTooLarge, progress: ProgressBar) -> int:
    """Half of the tokens that the window's largest micro-batch may have had.

    The window is then learnt from once more, with the same gradient up to dropout, whose draws go by micro-batch.

    Raises:
        RunError: the longest example is alone already.
    """
    had = min(budget, int(lengths.sum()))
    if had <= lengths.max():
        raise RunError(
            f"out of memory with one example of {int(lengths.max())} tokens: lower --data.max_length, turn on "
            f"--train.activation_checkpointing, or take a smaller checkpoint ({error})."
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    progress.note(f"out of memory: the window is cut into micro-batches of {had // 2} tokens from here on")
    return had // 2


def drop_unused(adapted: Adapted, batch: Batch, loss_function: LossFunction, progress: ProgressBar) -> tuple[str, ...]:
    """Freeze parameters that the loss does not reach and return the names of those that learn.

    A pooler that the head ignores would make DDP wait for a gradient that never comes, and would be counted as
    trained. One small backward in eval mode finds them.

    Raises:
        RunError: the loss reaches no parameter at all.
    """
    model = adapted.model
    model.eval()
    sent = send_batch(batch, next(model.parameters()).device)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = loss_function(model(**sent.inputs), sent).loss_sum
    gradients = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    unused = [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]
    if len(unused) == len(learning):
        raise RunError(f"the loss reaches none of the {len(learning)} trainable parameters: nothing would be learnt.")
    for name in unused:
        learning[name].requires_grad_(False)
    if unused:
        progress.note(
            f"{len(unused)} parameters take no part in the output and stay as they are: {', '.join(unused[:4])}"
        )
    return tuple(name for name in learning if name not in set(unused))


def _checkpoint_activations(model: nn.Module) -> None:
    """Let each layer compute its activations once more in the backward pass instead of keeping them (Chen 2016).

    Raises:
        RunError: the architecture does not offer it.
    """
    inner = generator_inside(model)
    if not inner.supports_gradient_checkpointing:
        raise RunError(f"--train.activation_checkpointing: {inner.config.model_type} does not offer it; turn it off.")
    # the lowest transformers knows the older name only, of which the newest warns
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    device = next(inner.parameters()).device
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), quick_dropout(device))})


def _run_all_layers(model: nn.Module, progress: ProgressBar) -> None:
    """Turn LayerDrop off (M2M100 comes with it): processes that leave out different layers wait for each other's
    gradients in vain."""
    dropping = [module for module in model.modules() if getattr(module, "layerdrop", 0.0)]
    for module in dropping:
        module.layerdrop = 0.0  # type: ignore[assignment]
    if dropping:
        progress.note("layers are not left out at random (LayerDrop): processes must all run the same ones")


def _prepare(
    adapted: Adapted,
    stage: Stage,
    names: Collection[str],
    config: TrainConfig,
    start: Mapping[int, torch.Tensor],
    accelerator: Accelerator,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer of a stage, wrapped for the processes; ``names`` are those that learn in any stage.

    ``start``: the body's parameters before training by ``id``, where ``l2_sp`` pulls towards them.
    """
    if accelerator._models:  # of an earlier stage or run; a collection looks at every object there is, for 0.3 s
        accelerator.free_memory()
    module = accelerator.unwrap_model(adapted.model, keep_fp32_wrapper=False)  # an earlier stage may have wrapped it
    # accelerate would take a module that an earlier stage prepared for ready, and leave autocast out
    module.__dict__.pop("_is_accelerate_prepared", None)
    in_stage = {id(p) for p in stage.trainable}
    for name, p in module.named_parameters():
        p.requires_grad_(name in names and id(p) in in_stage)
    groups = [
        group | {"params": [p for p in group["params"] if p.requires_grad]}
        for group in parameter_groups(adapted, stage, config)
    ]
    optimizer = build_optimizer([group for group in groups if group["params"]], config)
    if start:
        known = {p: start[id(p)] for group in groups for p in group["params"] if id(p) in start}
        pull_to_start(optimizer, known, config.l2_sp)
    model, optimizer = accelerator.prepare(module, optimizer)
    adapted.set_train_mode(accelerator.unwrap_model(model))
    return model, optimizer


def _my_batches(
    rows: Dataset,
    window: np.ndarray,
    lengths: np.ndarray,
    make_batch: Callable[..., Batch],
    budget: int,
    accelerator: Accelerator,
    flat: bool,
    copies: int = 1,
) -> list[tuple[Batch, bool]]:
    """This process's micro-batches of a window, each with whether it counts (see ``learn_window``).

    ``budget``: tokens of a micro-batch, which holds each example ``copies`` times; ``flat``: the layers see real tokens
    only.
    """
    shares = share_window(lengths, accelerator.num_processes)
    cuts = [cut_window(lengths[share], budget // copies, flat) for share in shares]
    share = shares[accelerator.process_index]
    columns = rows[window[share]]  # one read for the window
    batches = [
        (make_batch({name: [values[i] for i in piece] for name, values in columns.items()}), True)
        for piece in cuts[accelerator.process_index]
    ]
    # sharded parameters are gathered by all processes in each forward, so all must make the same number of them
    needed = max(len(cut) for cut in cuts) if getattr(accelerator, "is_fsdp2", False) else 1
    if len(batches) < needed:
        filler = (make_batch(rows[window[:1]]), False)
        batches = [filler] * (needed - len(batches)) + batches
    return batches


def _time_is_up(state: RunState, config: TrainConfig) -> bool:
    return config.max_seconds is not None and state.train_seconds >= config.max_seconds


def _seconds_at(step: int, state: RunState) -> float:
    """Seconds of training before ``step``; of a run that was continued in mid-stage, as if all steps took as long."""
    return state.train_seconds * step / state.step if state.step else 0.0


def _position(state: RunState, plan: StagePlan, step: int, schedule_began: float, config: TrainConfig) -> int:
    """Where a step stands in its schedule; with a limit of seconds, as far on as the clock is, if that is further."""
    in_schedule = step - plan.schedule_first
    if config.max_seconds is None:
        return in_schedule
    elapsed = (state.train_seconds - schedule_began) / max(config.max_seconds - schedule_began, 1e-9)
    by_clock = int(plan.schedule_steps * min(1.0, elapsed))
    return max(in_schedule, min(by_clock, plan.schedule_steps - 1))


def _agreed(seconds: float, config: TrainConfig, accelerator: Accelerator) -> float:
    """The mean over all processes where the clock decides, so that all of them stop at the same step."""
    if config.max_seconds is None:
        return seconds
    return sum_over_processes([seconds], accelerator)[0] / accelerator.num_processes


def _is_kept(state: RunState, over: bool, config: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether a checkpoint is due: by its number, or at the end, so that what follows may fail. All processes ask."""
    if config.checkpoint_steps:
        return over or state.step % config.checkpoint_steps == 0
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


def _validate(
    state: RunState,
    model: nn.Module,
    chooser: Chooser,
    names: tuple[str, ...],
    per_epoch: int,
    patience: int,
    config: TrainConfig,
    folder: RunFolder,
    accelerator: Accelerator,
    progress: ProgressBar,
) -> RunState:
    """Score validation, keep the parameters if they are the best so far, and decide whether to stop."""
    started = time.perf_counter()
    value = chooser.validate(model)
    epoch = round(state.step / per_epoch, 3)
    seconds = time.perf_counter() - started
    record = {"step": state.step, "epoch": epoch, "metric": chooser.metric, "value": value, "seconds": seconds}
    state = replace(state, history=(*state.history, record))
    progress.note(f"step {state.step}  epoch {epoch:g}  validation {chooser.metric} {value:.4f}")
    if config.average_checkpoints:
        kept = [item["step"] for item in state.history[-config.average_checkpoints :]]
        checkpoint.save_for_average(folder.checkpoints, model, names, kept, accelerator)
    if chooser.rule == "last":
        return state
    # of several that are undefined the last is kept, as where nothing is chosen
    if state.best_step < 0 or math.isnan(state.best_value) or chooser.better(value, state.best_value):
        checkpoint.save_best(folder.checkpoints, model, names, state.step, accelerator)
        return replace(state, best_step=state.step, best_value=value, bad_validations=0)
    bad = state.bad_validations + 1
    stop = bool(patience) and bad >= patience
    if stop:
        progress.note(f"stopping early: no better {chooser.metric} in {bad} validations")
    return replace(state, bad_validations=bad, stopped_early=stop)


def _restore(
    state: RunState,
    model: nn.Module,
    chooser: Chooser,
    config: TrainConfig,
    folder: RunFolder,
    accelerator: Accelerator,
) -> Selection:
    """Put the best step's parameters back, and see that they score what was recorded; or the mean of the last ones."""
    if config.average_checkpoints and state.history:
        steps = [item["step"] for item in state.history[-config.average_checkpoints :]]
        checkpoint.load_average(folder.checkpoints, model, steps, accelerator)
        rule = f"mean of the weights at the last {len(steps)} validations"
        return Selection(rule, chooser.metric, state.step, chooser.validate(model))
    if chooser.rule == "last" or state.best_step == state.step:
        value = state.history[-1]["value"] if state.history else math.nan
        return Selection(chooser.rule, chooser.metric, state.step, value)
    checkpoint.load_best(folder.checkpoints, model, state.best_step, accelerator)
    again = chooser.validate(model)
    if not math.isclose(again, state.best_value, rel_tol=1e-4, abs_tol=1e-6):
        raise RunError(
            f"the parameters of step {state.best_step} were put back, but score {chooser.metric} {again} where "
            f"{state.best_value} was recorded: {folder.checkpoints / 'best'} is not what was saved."
        )
    return Selection(chooser.rule, chooser.metric, state.best_step, state.best_value)


def _never_finite(state: RunState, sums: WindowSums, checkpoints: Path) -> str:
    whole, _ = checkpoint.find_checkpoint_to_resume(checkpoints, "auto")
    last = f"The last good checkpoint is {whole}." if whole else "No checkpoint was written."
    ids = ", ".join(sorted(sums.not_finite)[:EXAMPLES_SHOWN])
    return (
        f"no finite loss and gradient in {state.skipped_in_a_row} windows in a row, up to step {state.step} (its "
        f"examples begin with {ids}; log.jsonl has all): lower --train.learning_rate, or use --train.precision fp32. "
        f"{last}"
    )


def _open_log(path: Path, step: int, is_main: bool) -> Any:
    """The step log, cut back to ``step`` when a run continues; a sink on other processes."""
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


def _flush(log: TextIO | None) -> None:
    """To the disk: a checkpoint must not outlive the log of the steps before it."""
    if log is not None:
        os.fsync(log.fileno())


def _log_step(
    log: TextIO | None,
    listener: Listener | None,
    step: int,
    learning_rate: float,
    seconds: float,
    sums: WindowSums,
) -> None:
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
