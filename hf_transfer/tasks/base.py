"""What every task provides, so that the page and the loop never ask which task they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hf_transfer.config import DataConfig, RunConfig, TrainConfig
from hf_transfer.records import Batch, DomainSplits, EncodedSplits, LabelSpace, LossSum, Predictions, Pretrained

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset

LossFunction = Callable[[Any, Batch], LossSum]
"""From a model's outputs and the batch that they belong to."""


@dataclass(frozen=True)
class TaskFunctions:
    """A task with its labels, model and settings filled in: what the loop and the predictions call."""

    make_batch: Callable[[Mapping[str, Sequence[Any]]], Batch]
    """Pad encoded rows (columns as lists) into one batch."""
    loss_function: LossFunction
    """Summed loss over the batch's targets, from the model's outputs and never from the model's own loss."""
    read_outputs: Callable[[Any], torch.Tensor]
    """What is kept of a forward pass for scoring: [batch, classes] probabilities, or [batch, 1] values."""
    to_predictions: Callable[[Dataset, np.ndarray], Predictions]
    """Predictions from rows and what was kept of each, in their order."""
    translate: Callable[..., np.ndarray] | None = None
    """Where a prediction takes more than a forward pass: [rows] translations of all rows, as objects."""
    make_train_batch: Callable[[Mapping[str, Sequence[Any]]], Batch] | None = None
    """What the loop uses in place of ``make_batch``: R-Drop sends each example through twice."""

    @property
    def train_batch(self) -> Callable[[Mapping[str, Sequence[Any]]], Batch]:
        """How the loop makes its batches."""
        return self.make_train_batch or self.make_batch

    def counting(self, on_batch: Callable[[int], None]) -> TaskFunctions:
        """These functions, telling ``on_batch`` how many rows were translated each time some were."""
        if self.translate is None:
            return self
        return replace(self, translate=partial(self.translate, on_batch=on_batch))


def twice(batch: Batch) -> Batch:
    """Every example of ``batch`` two times, one copy after all the others; counts stay those of the examples."""
    import torch

    inputs = {name: torch.cat([tensor, tensor]) for name, tensor in batch.inputs.items()}
    places = batch.target_places
    return replace(
        batch,
        inputs=inputs,
        labels=torch.cat([batch.labels, batch.labels]),
        target_places=None if places is None else torch.cat([places, places + batch.labels.numel()]),
    )


class Task(Protocol):
    """One task: what its labels are, how rows become batches, and how outputs become loss and predictions."""

    name: str
    auto_class: str
    """The transformers class that adds the head."""

    def read_labels(self, splits: DomainSplits, data: DataConfig, train: TrainConfig) -> LabelSpace:
        """The label space, from train rows or as declared; raises InputError with every problem of the labels."""
        ...

    def head(self, labels: LabelSpace) -> dict[str, Any]:
        """Config values that give the checkpoint a head for ``labels``."""
        ...

    def settle(self, labels: LabelSpace, pretrained: Pretrained, config: RunConfig) -> LabelSpace:
        """``labels`` in the terms of the opened checkpoint; raises InputError where it cannot do the task."""
        ...

    def encode(
        self, splits: DomainSplits, labels: LabelSpace, pretrained: Pretrained, max_length: int
    ) -> EncodedSplits:
        """Token ids and numeric labels for every split."""
        ...

    def bind(
        self, labels: LabelSpace, pretrained: Pretrained, config: RunConfig, metrics: Sequence[str]
    ) -> TaskFunctions:
        """Fill in what does not change during a run."""
        ...
