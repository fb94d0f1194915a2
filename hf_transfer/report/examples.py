"""Floor 4: the examples of a run in results.json: what was predicted for each, so that runs can be compared later.

Numbers only, no text. Paired tests, confusion and curves of a report are made from these, also long after the run and
for runs made at different times.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.records import LabelSpace, Predictions
from hf_transfer.shift import split_predictions
from hf_transfer.translation_scores import COLUMN_COUNT, TRANSLATION_COLUMNS

MOST_PROBABILITIES = 200_000
"""Numbers of one split up to which all probabilities are kept (about 2 MB); beyond it the highest of each example."""
DIGITS = 6
"""Significant digits of a probability: its rounding moves no score by more than the seventh."""
DIGEST_DIGITS = 12
"""Of a reference translation: two of a million texts are equal with a chance of 1 in 500."""


def describe_examples(test: Predictions, validation: Predictions) -> dict[str, dict[str, dict[str, Any]]]:
    """``{split: {domain: {ids, reference, predicted, probabilities | confidence}}}``, domains in their order.

    ``probabilities`` is [n][classes]; where that is too long, ``confidence`` [n] holds the highest of each example.
    Of translations: ``{ids, reference, statistics: {metric: [n][its columns]}}`` with the sums in full, only of metrics
    that were computed, and in the place of a reference the first ``DIGEST_DIGITS`` hex digits of its text's sha256.
    """
    return {
        split: {domain: _columns(part, len(whole.example_ids)) for domain, part in split_predictions(whole).items()}
        for split, whole in (("test", test), ("validation", validation))
        if len(whole.example_ids)
    }


def read_examples(results: Mapping[str, Any], split: str = "test") -> dict[str, Predictions]:
    """The predictions of ``split`` by domain, as ``describe_examples`` wrote them; probabilities that were not kept
    are nan, so that a score which needs them is undefined rather than wrong. Translations have the statistics of the
    run, bit for bit; their references are digests and what was predicted is "".

    Raises:
        KeyError, TypeError, ValueError: what is there was not written by ``describe_examples``.
    """
    read = {}
    class_count = max(1, len(results["labels"]["names"]))
    for domain, columns in results.get("examples", {}).get(split, {}).items():
        count = len(columns["ids"])
        if "statistics" in columns:
            read[domain] = _read_translations(domain, columns)
            continue
        kept = columns.get("probabilities")
        probabilities = _numbers(kept) if kept is not None else np.full((count, class_count), np.nan)
        predicted, reference = _numbers(columns["predicted"]), _numbers(columns["reference"])
        if {len(predicted), len(reference), len(probabilities)} != {count} or predicted.shape != reference.shape:
            raise ValueError(f"columns of {domain} differ in length")
        read[domain] = Predictions(
            example_ids=np.asarray(columns["ids"]),
            domain_ids=np.full(count, domain),
            predicted=predicted,
            reference=reference,
            probabilities=probabilities.astype(np.float64),
        )
    return read


def _numbers(values: list[Any]) -> np.ndarray:
    """Integers stay such; null, which stands for a value that is not finite, makes the others floats."""
    numbers = np.asarray(values)
    return numbers.astype(np.float64) if numbers.dtype == object else numbers


def relabelled(predictions: Predictions, names: Sequence[str], wanted: Sequence[str]) -> Predictions:
    """Predictions over the classes ``names``, with the same classes in the order ``wanted``.

    A checkpoint that brings its head brings the order of its classes; a control has that of the data. Where nothing is
    a class (numbers, translations), nothing changes.
    """
    if not len(wanted):
        return predictions
    order = [list(names).index(name) for name in wanted]  # of each wanted class, its old place
    if predictions.predicted.ndim == 2:
        predicted, reference = predictions.predicted[:, order], predictions.reference[:, order]
    else:
        new_places = np.argsort(order)
        predicted, reference = new_places[predictions.predicted], new_places[predictions.reference]
    return dataclasses.replace(
        predictions, predicted=predicted, reference=reference, probabilities=predictions.probabilities[:, order]
    )


def read_confidence(results: Mapping[str, Any], split: str, domain: str) -> np.ndarray:
    """[n] probability of the most probable class."""
    columns = results["examples"][split][domain]
    if "confidence" in columns:
        return np.asarray(columns["confidence"])
    return np.asarray(columns["probabilities"]).max(1)


def describe_calibration(
    labels: LabelSpace, test_by_role: Mapping[str, Predictions], validation: Predictions, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Calibration in and outside the train domains; [] where predictions are not one class with a probability."""
    from hf_transfer import calibration

    if labels.problem != "single_label":
        return []
    return calibration.describe_calibration(validation, test_by_role, confidence, CALIBRATION_RESAMPLES, seed)


CALIBRATION_RESAMPLES = 2_000
"""Bootstrap resamples of the calibration error, a picture more than a test."""


def _columns(part: Predictions, split_count: int) -> dict[str, Any]:
    if _is_translation(part):
        return _translations(part)
    columns: dict[str, Any] = {
        "ids": part.example_ids.tolist(),
        "reference": _plain(part.reference),
        "predicted": _plain(part.predicted),
    }
    class_count = part.probabilities.shape[1]
    if class_count == 1:
        return columns  # regression: the value itself is what was predicted
    if split_count * class_count <= MOST_PROBABILITIES:
        columns["probabilities"] = _rounded(part.probabilities)
    else:
        columns["confidence"] = _rounded(part.probabilities.max(1))
    return columns


def _is_translation(predictions: Predictions) -> bool:
    return predictions.probabilities.shape[1:] == (COLUMN_COUNT,) and predictions.reference.dtype.kind in "OU"


def _translations(part: Predictions) -> dict[str, Any]:
    digests = [hashlib.sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest() for text in part.reference]
    statistics = {metric: part.probabilities[:, columns] for metric, columns in TRANSLATION_COLUMNS.items()}
    return {
        "ids": part.example_ids.tolist(),
        "reference": [digest[:DIGEST_DIGITS] for digest in digests],
        "statistics": {
            metric: (rows.astype(np.int64) if (rows % 1 == 0).all() else rows).tolist()
            for metric, rows in statistics.items()
            if not np.isnan(rows).all()
        },
    }


def _read_translations(domain: str, columns: Mapping[str, Any]) -> Predictions:
    count = len(columns["ids"])
    statistics = np.full((count, COLUMN_COUNT), np.nan)
    for metric, rows in columns["statistics"].items():
        wanted = statistics[:, TRANSLATION_COLUMNS[metric]]
        numbers = np.asarray(rows, dtype=np.float64)
        if numbers.shape != wanted.shape or len(columns["reference"]) != count:
            raise ValueError(f"columns of {domain} differ in length")
        wanted[:] = numbers
    return Predictions(
        example_ids=np.asarray(columns["ids"]),
        domain_ids=np.full(count, domain),
        predicted=np.full(count, "", dtype=object),
        reference=np.asarray(columns["reference"], dtype=object),
        probabilities=statistics,
    )


def _plain(values: np.ndarray) -> list[Any]:
    """Class ids as integers, 0/1 rows as integers, regression values as floats."""
    whole = values.dtype.kind in "iub" or (values.ndim == 2 and np.isin(values, (0, 1)).all())
    return values.astype(np.int64).tolist() if whole else values.astype(np.float64).tolist()


def _rounded(values: np.ndarray) -> list[Any]:
    values = np.asarray(values, dtype=np.float64)
    size = np.floor(np.log10(np.maximum(np.abs(values), 1e-30)))
    factor = 10.0 ** (DIGITS - 1 - size)
    return (np.round(values * factor) / factor).tolist()
