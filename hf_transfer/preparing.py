"""Floor 4.5: from config and text to a model that a strategy has made ready, and nothing trained yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from hf_transfer.adapt import Adapted, apply_strategy
from hf_transfer.config import RunConfig, TrainConfig, share_of_general
from hf_transfer.ctranslate2_engine import check_export
from hf_transfer.encoding import encode, mix_general
from hf_transfer.layer_runs import LayersTold, settle_layers
from hf_transfer.metrics import choose_metrics
from hf_transfer.onnx_engine import check_onnx
from hf_transfer.pretrained import align_labels, find_checkpoint, load_pretrained
from hf_transfer.records import EncodedSplits, LabelSpace, Pretrained, Text
from hf_transfer.tasks import TASKS, TaskFunctions
from hf_transfer.translation_run import with_vocabulary

SAMPLE_EXAMPLES, SAMPLE_BATCH = 256, 16
"""Train examples that an initialisation may look at, and how many at once."""


@dataclass(frozen=True)
class Prepared:
    """A run as it stands before its first step."""

    settings: TrainConfig
    """``config.train`` with what goes by task and strategy filled in."""
    model_type: str
    pretrained: Pretrained
    labels: LabelSpace
    keeps_head: bool
    """The checkpoint's head is for these labels."""
    metrics: tuple[str, ...]
    encoded: EncodedSplits
    max_length: int
    functions: TaskFunctions
    adapted: Adapted
    layers: LayersTold
    """What is to be told of the layers that were kept."""
    notes: tuple[str, ...]


def prepare(config: RunConfig, text: Text, keep_model: bool = True) -> Prepared:
    """Open the checkpoint, encode the text, bind the task to both and apply the strategy.

    Raises:
        InputError: a checkpoint, labels, metrics, languages or a strategy that do not go together.
    """
    task = TASKS[config.task]
    from_scratch = config.model.checkpoint.startswith("scratch:")
    settings = config.train.settled(config.task, config.adapt.strategy, from_scratch)
    model_config, vocabulary_notes = with_vocabulary(config, text)
    found = find_checkpoint(model_config)
    labels, keeps_head = align_labels(text.labels, found)
    metrics = choose_metrics(config.evaluate, labels.problem, len(text.splits.validation))
    model_config, layers = settle_layers(config, model_config, found, labels, text)
    pretrained = load_pretrained(model_config, found, task.auto_class, task.head(labels), keeps_head, config.seed)
    pretrained = dataclasses.replace(pretrained, checkpoint_id=config.model.checkpoint)
    if "ctranslate2" in config.publish.export and keep_model:
        check_export(pretrained.model, pretrained.tokenizer)
    if "onnx" in config.publish.export and keep_model:
        check_onnx(pretrained.model, pretrained.tokenizer)
    labels = task.settle(labels, pretrained, config)
    encoded, max_length = encode(text, labels, pretrained, task, config.data.max_length)
    encoded, mix_notes = _mixed(encoded, config)
    functions = task.bind(labels, pretrained, config, metrics)
    adapted = apply_strategy(pretrained, config.adapt, lambda: _sample_inputs(encoded.train, functions, config.seed))
    adapted = dataclasses.replace(adapted, strategy=config.adapt.strategy)  # mixed and interpolated train as full does
    return Prepared(
        settings=settings,
        model_type=found.model_type,
        pretrained=pretrained,
        labels=labels,
        keeps_head=keeps_head,
        metrics=metrics,
        encoded=encoded,
        max_length=max_length,
        functions=functions,
        adapted=adapted,
        layers=layers,
        notes=(*vocabulary_notes, *layers.notes, *encoded.notes, *mix_notes),
    )


def _mixed(encoded: EncodedSplits, config: RunConfig) -> tuple[EncodedSplits, tuple[str, ...]]:
    """General text mixed into train, where the strategy or ``data.general_share`` asks for it."""
    share = share_of_general(config.adapt.strategy, config.data.general_share)
    if share is None:
        return encoded, ()
    encoded, sentence = mix_general(encoded, share, config.seed)
    return encoded, (sentence,)


def _sample_inputs(rows: Dataset, functions: TaskFunctions, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of ``SAMPLE_EXAMPLES`` train rows drawn by ``seed``, in batches of ``SAMPLE_BATCH``."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE_EXAMPLES]
    for start in range(0, len(drawn), SAMPLE_BATCH):
        yield functions.make_batch(rows[drawn[start : start + SAMPLE_BATCH]]).inputs
