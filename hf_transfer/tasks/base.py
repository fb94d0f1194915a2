"""What every task provides, so that the page and the loop never ask which task they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hf_transfer.config import DataConfig, TrainConfig
from hf_transfer.records import Batch, DomainSplits, EncodedSplits, LabelSpace, LossSum

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase


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

    def encode(
        self, splits: DomainSplits, labels: LabelSpace, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedSplits:
        """Token ids and numeric labels for every split."""
        ...

    def make_batch(self, rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad encoded rows (columns as lists) into one batch."""
        ...

    def loss_sum(self, outputs: Any, batch: Batch, labels: LabelSpace, label_smoothing: float) -> LossSum:
        """Summed loss over the batch's targets, from the model's outputs and never from the model's own loss."""
        ...

    def read_outputs(self, outputs: Any, labels: LabelSpace) -> torch.Tensor:
        """What is kept of a forward pass for scoring: [batch, classes] probabilities, or [batch, 1] values."""
        ...

    def decide(self, probabilities: np.ndarray, labels: LabelSpace) -> np.ndarray:
        """Predictions from probabilities, in the form that ``Predictions.predicted`` holds."""
        ...


@dataclass(frozen=True)
class TaskFunctions:
    """A task with its labels and tokenizer filled in: what the loop and the predictions call."""

    make_batch: Callable[[Mapping[str, Sequence[Any]]], Batch]
    loss_function: Callable[[Any, Batch], LossSum]
    read_outputs: Callable[[Any], torch.Tensor]
    decide: Callable[[np.ndarray], np.ndarray]


def bind(
    task: Task, labels: LabelSpace, tokenizer: PreTrainedTokenizerBase, label_smoothing: float = 0.0
) -> TaskFunctions:
    """Fill in what does not change during a run."""
    return TaskFunctions(
        make_batch=partial(task.make_batch, tokenizer=tokenizer),
        loss_function=partial(task.loss_sum, labels=labels, label_smoothing=label_smoothing),
        read_outputs=partial(task.read_outputs, labels=labels),
        decide=partial(task.decide, labels=labels),
    )
