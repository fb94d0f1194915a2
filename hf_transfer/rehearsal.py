"""Floor 5: a run up to its first step: opened, its strategy applied, its windows drawn and cut, and no step taken.

The windows are those that the loop will draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.adapt import Stage
from hf_transfer.batching import cut_window, sorted_batches, window_count, window_indices
from hf_transfer.config import RunConfig
from hf_transfer.cost import (
    SOURCE_LENGTH,
    TARGET_LENGTH,
    Shapes,
    Trace,
    operations,
    shapes_of,
    trace,
    with_checkpointing,
    with_output_layer,
)
from hf_transfer.flattened import find_stacks
from hf_transfer.launch import choose_precision, uses_gpu
from hf_transfer.layers import LayerProbe
from hf_transfer.output_layer import output_layer
from hf_transfer.preparing import Prepared, prepare
from hf_transfer.records import Text
from hf_transfer.schedule import StagePlan
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text
from hf_transfer.token_budget import MOST, ON_HOST
from hf_transfer.translation_run import TOKENS_PER_DATASTORE_BATCH

MOST_WINDOWS = 2000
"""Windows of a stage that are cut; of a longer one so many, evenly spaced, stand for all. One of 16 takes 0.3 ms."""


@dataclass(frozen=True)
class Rehearsal(Prepared):
    """A run that is prepared, and where it would be trained."""

    config: RunConfig
    device: torch.device
    precision: str
    source: np.ndarray
    """[train examples] tokens."""
    target: np.ndarray
    """[train examples] target tokens; 0 of a classifier."""

    @property
    def flat(self) -> bool:
        """Whether the layers see real tokens only."""
        return find_stacks(self.adapted.model).flat

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch. How many a GPU holds, only the run finds out: here as many as a window has."""
        wanted = self.settings.tokens_per_micro_batch
        if wanted != "auto":
            return wanted
        return MOST if self.device.type == "cuda" else ON_HOST

    @property
    def writes(self) -> bool:
        """Whether the loss has the output layer to itself (translation)."""
        return self.functions.translate is not None

    @property
    def network(self) -> nn.Module:
        """What a batch goes through. A probe on layers has no head yet, and its body is all that runs."""
        model = self.adapted.model
        return model.body if isinstance(model, LayerProbe) else model

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision, where the run would have it."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


@dataclass(frozen=True)
class StageCost:
    """What a stage of training amounts to."""

    plan: StagePlan
    trace: Trace
    shapes: Shapes
    """Of all micro-batches that were cut."""
    scale: float
    """Tokens of all windows of the stage over those of the windows that were cut."""
    windows: int
    """Windows that were cut."""
    pieces: tuple[np.ndarray, ...]
    """Row numbers of each of those micro-batches."""
    examples: int
    tokens: int
    """Real tokens of all windows."""
    trained: tuple[nn.Parameter, ...]

    def operations(self, flat: bool) -> np.ndarray:
        """[depth + 2, 3] of the whole stage (cost.py)."""
        return operations(self.trace, self.shapes, flat) * self.scale


def rehearse(config: RunConfig) -> Rehearsal:
    """Read the text, prepare the run and see how many tokens each train example has."""
    text = Text(*read_text(config.data, config.train, TASKS[config.task], config.seed))
    prepared = prepare(config, text)
    device = torch.device("cuda" if uses_gpu() else "cpu")
    prepared.adapted.model.to(device)
    train = prepared.encoded.train
    target = np.zeros(len(train), dtype=int)
    if prepared.functions.translate is not None:
        target = np.array([len(ids) for ids in train["labels"]], dtype=int)
    precision = choose_precision(config.train.precision, prepared.model_type)
    return Rehearsal(
        **vars(prepared),
        config=config,
        device=device,
        precision=precision,
        source=np.asarray(train["length"]) - target,
        target=target,
    )


def cost_of(run: Rehearsal, plan: StagePlan) -> StageCost:
    """Draw and cut the windows of a stage, and watch the model as it is in it."""
    lengths = run.source + run.target
    copies = 2 if run.settings.r_drop else 1
    size, mixture = run.encoded.epoch_size, run.encoded.mixture
    windows = []
    for step in range(plan.first_step, plan.end):
        window = window_indices(size, run.settings.window_size, run.config.seed, step)
        if mixture is not None:
            window = mixture.rows(window, step // window_count(size, run.settings.window_size))
        windows.append(window)
    few = windows
    if len(windows) > MOST_WINDOWS:
        few = [windows[i] for i in np.linspace(0, len(windows) - 1, MOST_WINDOWS).astype(int)]
    pieces = tuple(
        window[piece] for window in few for piece in cut_window(lengths[window], run.budget // copies, run.flat)
    )
    tokens = sum(int(lengths[window].sum()) for window in windows)
    shapes = shapes_of(pieces, run.source, run.target, copies)
    mark(run, plan)
    return StageCost(
        plan=plan,
        trace=watch(run),
        shapes=shapes,
        scale=tokens / shapes.tokens,
        windows=len(few),
        pieces=pieces,
        examples=sum(map(len, windows)),
        tokens=tokens,
        trained=plan.stage.trainable,
    )


def cost_of_pass(run: Rehearsal) -> StageCost:
    """One forward pass over train, where nothing learns by steps: what kNN-MT makes its datastore of, and a probe on
    layers its head."""
    model = run.adapted.model.eval()
    model.requires_grad_(False)
    if isinstance(model, LayerProbe):
        pieces = sorted_batches(run.source, run.config.evaluate.tokens_per_batch, evenly=True)
    else:
        pieces = sorted_batches(run.source + run.target, TOKENS_PER_DATASTORE_BATCH)
    shapes = shapes_of(pieces, run.source, run.target)
    with torch.no_grad():
        seen = watch(run)
    return StageCost(StagePlan(Stage("one pass", ()), 0, 0, 0, 0), seen, shapes, 1.0, 0, tuple(pieces), 0, 0, ())


def mark(run: Rehearsal, plan: StagePlan) -> None:
    """Let the parameters of a stage learn and no others, and set the modes that the loop would."""
    in_stage = {id(p) for p in plan.stage.trainable}
    for parameter in run.adapted.model.parameters():
        parameter.requires_grad_(id(parameter) in in_stage)
    run.adapted.set_train_mode(run.adapted.model)


def watch(run: Rehearsal) -> Trace:
    """One forward pass of a short example, in the mode that the model is in."""
    with run.autocast():
        found, outputs = trace(run.network, run.adapted.parts.layer_modules, example(run, SOURCE_LENGTH))
    if run.writes and torch.is_grad_enabled():
        weight, _ = output_layer(run.pretrained.model)
        learns_below = outputs.logits.requires_grad
        found = with_output_layer(found, weight.shape[1], weight.shape[0], learns_below, weight.requires_grad)
    return with_checkpointing(found) if run.settings.activation_checkpointing else found


def example(run: Rehearsal, length: int) -> dict[str, torch.Tensor]:
    """Inputs of the first train example, made ``length`` tokens long and its target ``TARGET_LENGTH``."""
    row = {name: [values] for name, values in run.encoded.train[0].items()}
    row["input_ids"] = [resized(row["input_ids"][0], length)]
    if "token_type_ids" in row:
        row["token_type_ids"] = [[0] * length]
    if run.writes:
        row |= {name: [resized(row[name][0], TARGET_LENGTH)] for name in ("labels", "decoder_input_ids")}
    return {name: tensor.to(run.device) for name, tensor in run.functions.make_batch(row).inputs.items()}


def resized(ids: Sequence[int], length: int) -> list[int]:
    """``ids`` cut or stretched in the middle: heads look for tokens at the ends."""
    middle = list(ids[1:-1]) or [ids[-1]]
    wanted = length - 2
    return [ids[0], *(middle * wanted)[:wanted], ids[-1]]
