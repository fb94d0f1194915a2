"""Floor 3: predictions per example, each example exactly once over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn

from hf_transfer.batching import padding_fraction, sorted_batches
from hf_transfer.config import EvaluateConfig
from hf_transfer.eval_mode import in_eval_mode
from hf_transfer.flattened import find_stacks, flattened, real_tokens
from hf_transfer.on_device import Room, send
from hf_transfer.records import Predictions
from hf_transfer.tasks import TaskFunctions


def predict(
    model: nn.Module,
    rows: Dataset,
    functions: TaskFunctions,
    accelerator: Accelerator,
    tokens_per_batch: int,
) -> Predictions:
    """Run ``model`` over encoded ``rows`` (columns of ``EncodedSplits``) and return one prediction per row.

    Rows are sorted by length over the whole set, so that batches hold little padding, and dealt out among processes;
    the result is in the order of ``rows`` on every process. Of each forward pass only what the task's ``read_outputs``
    keeps stays in memory: [examples, classes] fp32. No rows give no predictions. Where a prediction takes more than a
    forward pass (``functions.translate``), each process translates its part of the rows. A batch that has no room in
    memory goes in pieces, unless processes share the parameters.
    """
    if not len(rows):
        nothing = np.zeros(0)
        return Predictions(nothing.astype(str), nothing.astype(str), nothing, nothing, np.zeros((0, 1), np.float32))
    lengths = np.asarray(rows["length"][:])
    if functions.translate is not None:
        share = np.argsort(-lengths, kind="stable")[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():  # which accelerate puts around ``forward`` alone, and texts are written without
            translated = functions.translate(accelerator.unwrap_model(model), rows.select(share))
        return _in_order(rows, gather_object([(share, translated)]), functions)
    batches = batches_to_score(model, lengths, tokens_per_batch)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    module = accelerator.unwrap_model(model)  # DDP's wrapper would sync buffers; the autocast wrapper stays
    positions: list[np.ndarray] = []
    waiting: list[torch.Tensor] = []  # outputs of the pass before, at which a GPU is at work meanwhile
    kept: list[torch.Tensor] = []

    def forward(chosen: np.ndarray) -> None:
        batch = functions.make_batch(rows[chosen])
        inputs = {name: send(tensor, accelerator.device) for name, tensor in batch.inputs.items()}
        kept.extend(outputs.cpu() for outputs in waiting)
        waiting.clear()
        with flattened(module, *real_tokens(batch)):
            waiting.append(functions.read_outputs(module(**inputs)))
        positions.append(chosen)

    is_sharded = getattr(accelerator, "is_fsdp2", False)
    room = Room()
    with torch.no_grad(), in_eval_mode(module):
        for chosen in mine:
            if is_sharded:
                forward(chosen)
            else:
                room.run(forward, chosen, int(lengths[chosen].max()))
        kept.extend(outputs.cpu() for outputs in waiting)
        waiting.clear()
        if is_sharded and len(mine) * accelerator.num_processes < len(batches):
            forward(batches[0])  # sharded models talk during each forward pass, so that all processes make equally many
            positions.pop()
    for m in module.modules():
        # FSDP2 keeps the outermost parameters whole after a forward pass; what is written to them would be lost
        if hasattr(m, "reshard"):
            m.reshard()
    parts = [(np.concatenate(positions), torch.cat(kept).numpy())] if positions else []
    return _in_order(rows, gather_object(parts), functions)


def batches_to_score(model: nn.Module, lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Row numbers of each batch: with little padding where the layers would see it."""
    return sorted_batches(lengths, tokens_per_batch, evenly=not find_stacks(model).flat)


def scored_padding(model: nn.Module, rows: Dataset, functions: TaskFunctions, evaluate: EvaluateConfig) -> float:
    """Share of the tokens that layers saw of encoded ``rows`` that was padding; of a translation, those of the encoder
    (what the decoder pads is what it writes)."""
    lengths = np.asarray(rows["length"][:])
    if find_stacks(model).flat:
        return 0.0
    if functions.translate is not None:
        return padding_fraction(lengths, sorted_batches(lengths, max(1, evaluate.tokens_per_batch // evaluate.beams)))
    return padding_fraction(lengths, batches_to_score(model, lengths, evaluate.tokens_per_batch))


def _in_order(rows: Dataset, parts: Sequence[tuple[np.ndarray, np.ndarray]], functions: TaskFunctions) -> Predictions:
    """Put the processes' parts together in the order of ``rows``; every row must be there exactly once."""
    positions = np.concatenate([where for where, _ in parts])
    order = np.argsort(positions, kind="stable")
    assert np.array_equal(positions[order], np.arange(len(rows))), (
        f"{len(positions)} predictions for {len(rows)} rows: every row must be predicted exactly once"
    )
    example_ids = np.asarray(rows["example_id"][:])
    assert len(set(example_ids)) == len(example_ids), "example ids must be unique within what is predicted"
    return functions.to_predictions(rows, np.concatenate([values for _, values in parts])[order])
