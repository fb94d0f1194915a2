"""results.json of runs that never ran: predictions with a chosen share right, for tests of what joins runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.metrics import score
from hf_transfer.records import LabelSpace, Predictions
from hf_transfer.report.examples import describe_examples
from hf_transfer.report.results import plain
from hf_transfer.shift import score_domains, split_predictions
from hf_transfer.statistics import derived_seed

RESAMPLES = 2_000
NAMES = ("negative", "positive")
OTHERS = ("before", "scratch", "tfidf", "majority")


def run_results(
    strategy: str = "lora",
    seed: int = 0,
    right: Mapping[str, float] | None = None,
    *,
    count: int | Mapping[str, int] = 200,
    train: Sequence[str] = ("books",),
    metrics: Sequence[str] = ("accuracy",),
    target: tuple[str, int] | None = None,
    with_source: bool = True,
    validation: float | None = 0.8,
    predictions: Mapping[str, Predictions] | None = None,
    labels: LabelSpace | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    config_seed: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One finished run as its results.json is read.

    Args:
        right: share of the test examples of each domain that is predicted right.
        predictions: by domain, in place of ``right``.
        validation: score on in-domain validation, None where nothing was validated.
        changes: top-level keys to replace.
    """
    if predictions is None:
        counts = count if isinstance(count, Mapping) else dict.fromkeys(right or {}, count)
        about = (strategy, str(seed), str(target), str(with_source), ",".join(train))
        predictions = {domain: classes(domain, counts[domain], share, about) for domain, share in (right or {}).items()}
    labels = labels or LabelSpace("single_label", NAMES)
    stage = strategy if strategy in OTHERS else "adapted"
    test = together(predictions)
    scores = score_domains(
        stage,
        "test",
        split_predictions(test),
        lambda domain: "in_domain" if domain in train else "shifted",
        metrics,
        confidence,
        resamples,
        seed,
    )
    is_transformer = strategy not in ("tfidf", "majority")
    checkpoint = {"id": "org/small-bert", "revision": "abc", "sha256": "e" * 64, "newly_initialised": []}
    empty = {"id": "", "revision": "", "sha256": "", "newly_initialised": []}
    results = {
        "schema": "hf-transfer/results/1",
        "task": "classification",
        "seed": seed,
        "checkpoint": checkpoint if is_transformer else empty,
        "strategy": {"name": strategy, "trainable_parameters": 10, "total_parameters": 100},
        "selection": {
            "rule": "in_domain_validation" if is_transformer else "cross-validation on train",
            "metric": metrics[0],
            "step": 40,
            "value": validation,
        },
        "data": {
            "name": "reviews",
            "fingerprint": "f" * 64,
            "examples": {"train": 320, "validation": 40, "test": len(test.example_ids)},
            "train_domains": list(train),
            "test_domains": {domain: len(part.example_ids) for domain, part in predictions.items()},
            "leaks": {"exact": 0, "near": 0, "across_domains": 0, "inside_train": 0, "dropped": 0},
            "rule": "published",
            "truncated": 7 if is_transformer else 0,
        },
        "labels": {"problem": labels.problem, "names": list(labels.names)},
        "scores": [vars(item) for item in scores],
        "comparisons": [],
        "shift": {"metric": metrics[0]},
        "timing": {
            "train_seconds": 10.0 + seed,
            "predict_examples_per_second": 50.0,
            "tokens": 1000,
            "peak_memory_bytes": None,
        },
        "artefact": {"kind": "full", "bytes": 5000 if seed == 0 else 0},
        "environment": {"world_size": 1, "device": "cpu", "precision": "fp32", "packages": {}},
        "notes": [],
        "config": {
            "data": {
                "source": "reviews.csv",
                "target_examples": [target[1]] if target else [],
                "target_domains": [target[0]] if target else [],
                "with_source": with_source,
            },
            "evaluate": {"confidence": confidence, "resamples": resamples},
            "model": {"checkpoint": "org/small-bert"},
            "output_dir": f"runs/{strategy}-s{seed}",
            "seed": seed if config_seed is None else config_seed,
        },
        "history": [],
        "training": {"steps": [1], "loss": [0.7], "validation_steps": [], "validation": []} if is_transformer else {},
        "calibration": [],
        "examples": describe_examples(test, together({})),
        **changes,
    }
    return json.loads(json.dumps(plain(results)))


def classes(domain: str, count: int, share: float, about: Sequence[str], class_count: int = 2) -> Predictions:
    """``count`` examples of ``domain``, of which exactly ``share`` (rounded) are right; which ones depends on
    ``about``, the references on the domain alone."""
    reference = np.random.default_rng(derived_seed(1, domain)).integers(0, class_count, count)
    rng = np.random.default_rng(derived_seed(2, domain, *about))
    wrong = rng.permutation(count)[round(share * count) :]
    predicted = reference.copy()
    predicted[wrong] = (predicted[wrong] + 1) % class_count
    sure = rng.uniform(0.55, 0.95, count)
    probabilities = np.repeat(((1 - sure) / (class_count - 1))[:, None], class_count, 1)
    probabilities[np.arange(count), predicted] = sure
    return Predictions(ids(domain, count), np.full(count, domain), predicted, reference, probabilities)


def numbers(domain: str, count: int, error: float, about: Sequence[str]) -> Predictions:
    """Regression: each prediction is ``error`` too high or too low, so that mae is ``error`` exactly."""
    reference = np.random.default_rng(derived_seed(1, domain)).normal(3, 1, count)
    rng = np.random.default_rng(derived_seed(2, domain, *about))
    predicted = reference + error * rng.choice([-1.0, 1.0], count)
    return Predictions(ids(domain, count), np.full(count, domain), predicted, reference, predicted[:, None])


def ids(domain: str, count: int) -> np.ndarray:
    return np.array([f"{domain}:{row}" for row in range(count)])


def together(parts: Mapping[str, Predictions]) -> Predictions:
    """Predictions of all domains, one after the other."""
    if not parts:
        nothing = np.array([])
        return Predictions(nothing, nothing, nothing, nothing, nothing)
    fields = ("example_ids", "domain_ids", "predicted", "reference", "probabilities")
    return Predictions(*(np.concatenate([getattr(part, name) for part in parts.values()]) for name in fields))


def value_by_hand(results: Mapping[str, Any], domain: str, metric: str = "accuracy") -> float:
    """The score of a run on a domain, from its examples."""
    from hf_transfer.report.examples import read_examples

    return score(metric, read_examples(results)[domain])


def compare_config(**changes: Any) -> dict[str, Any]:
    """What ``join`` reads of a comparison's config, and some more."""
    evaluate = {"confidence": 0.95, "resamples": RESAMPLES}
    return {"data": {"source": "reviews.csv"}, "evaluate": evaluate, "seed": 0, "output_dir": "compare"} | changes
