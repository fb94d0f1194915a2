"""Floor 4: how far each target lies from each source, measured on the text and on what the checkpoint makes of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_transfer.batching import sorted_batches
from hf_transfer.config import RunConfig
from hf_transfer.distances import describe_distances
from hf_transfer.pretrained import align_labels, find_checkpoint, load_pretrained, longest_input
from hf_transfer.records import Pretrained, Text
from hf_transfer.report.results import plain, write_json
from hf_transfer.statistics import derived_seed
from hf_transfer.tasks import TASKS
from hf_transfer.translation_run import with_vocabulary

FEWEST_TEXTS = 20
"""Texts of a domain below which distances are noise and are not measured."""
MOST_TEXTS = 400
"""Texts of a domain that go through the checkpoint, test texts and, of a source, as many of train."""
PERMUTATIONS = 200


def measure_distances(runs: Sequence[Any], text_of: Callable[[RunConfig], Text], path: Path) -> list[dict[str, Any]]:
    """Distances of every direction in ``runs`` (planned ones) to each of its shifted test domains.

    Kept in ``path``: a comparison that goes on, or is extended, measures only what is new.
    """
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    seen: dict[Any, RunConfig] = {}
    for run in runs:
        if not run.setting.target_examples:
            seen.setdefault(run.setting, run.config)
    found: list[dict[str, Any]] = []
    pooled: dict[str, tuple[Dataset, np.ndarray]] = {}
    body: list[Pretrained] = []  # opened when the first pair needs it
    for config in seen.values():
        text = text_of(config)
        source = ", ".join(text.splits.train_domains)
        for target in text.splits.test:
            if text.splits.role(target) != "shifted":
                continue
            name = "\0".join(
                (text.table.fingerprint, config.model.checkpoint, str(config.data.max_length), source, target)
            )
            if name not in kept:
                kept[name] = plain(_measure(config, text, source, target, pooled, body))
            if kept[name]:
                found.append({"source": source, "target": target, **kept[name]})
    write_json(path, kept)
    return found


def _measure(
    config: RunConfig,
    text: Text,
    source: str,
    target: str,
    pooled: dict[str, tuple[Dataset, np.ndarray]],
    body: list[Pretrained],
) -> dict[str, Any] | None:
    """One pair; None where a side has too few texts."""
    own, other = text.splits.train, text.splits.test[target]
    if min(len(own), len(other)) < FEWEST_TEXTS:
        return None
    for name, rows in ((f"train of {source}", own), (f"test of {target}", other)):
        if name not in pooled:
            rows = _sample(rows, derived_seed(config.seed, "distances", name))
            body[:] = body or [_open_body(config, text)]
            pooled[name] = (rows, _mean_pooled(config, body[0], rows))
    (own, own_features), (other, other_features) = pooled[f"train of {source}"], pooled[f"test of {target}"]
    has_classes = text.labels.problem == "single_label"
    return describe_distances(
        _whole_texts(own),
        _whole_texts(other),
        own_features,
        other_features,
        [str(label) for label in own["label"]] if has_classes else None,
        [str(label) for label in other["label"]] if has_classes else None,
        derived_seed(config.seed, "distances", source, target) % 2**32,
        PERMUTATIONS,
    )


def _sample(rows: Dataset, seed: int) -> Dataset:
    if len(rows) <= MOST_TEXTS:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), MOST_TEXTS, replace=False)
    return rows.select(np.sort(chosen))


def _whole_texts(rows: Dataset) -> list[str]:
    """The texts, a pair of classification as one string; of a translation what is to be translated."""
    first, second = _sides(rows)
    if second is None:
        return first
    return [f"{text} {pair}" for text, pair in zip(first, second, strict=True)]


def _sides(rows: Dataset) -> tuple[list[str], list[str] | None]:
    if "source" in rows.column_names:
        return rows["source"][:], None
    return rows["text"][:], rows["text_pair"][:] if "text_pair" in rows.column_names else None


def _open_body(config: RunConfig, text: Text) -> Pretrained:
    """The checkpoint as it comes, with all its layers, in eval mode."""
    task = TASKS[config.task]
    model_config = dataclasses.replace(with_vocabulary(config, text)[0], layers=None)
    found = find_checkpoint(model_config)
    labels, keeps_head = align_labels(text.labels, found)
    pretrained = load_pretrained(model_config, found, task.auto_class, task.head(labels), keeps_head, config.seed)
    pretrained.model.eval()
    return pretrained


def _mean_pooled(config: RunConfig, pretrained: Pretrained, rows: Dataset) -> np.ndarray:
    """[rows, d] mean of the last hidden states over the real tokens of each text."""
    model: Any = pretrained.model
    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    tokenizer = pretrained.tokenizer
    limit = longest_input(model, tokenizer, config.data.max_length)
    encoded = tokenizer(*_sides(rows), truncation=True, max_length=limit)
    lengths = [len(row) for row in encoded["input_ids"]]
    means: list[Any] = [None] * len(lengths)
    for chosen in sorted_batches(lengths, config.evaluate.tokens_per_batch, evenly=True):
        columns = {name: [values[i] for i in chosen] for name, values in encoded.items()}
        # padding on the left, as generators have it, would move the positions of the real tokens
        batch = tokenizer.pad(columns, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            hidden = body(**batch).last_hidden_state
        real = batch["attention_mask"][..., None].float()
        for place, mean in zip(chosen, ((hidden * real).sum(1) / real.sum(1)).float().numpy(), strict=True):
            means[place] = mean
    return np.stack(means)
