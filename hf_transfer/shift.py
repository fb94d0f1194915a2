"""Floor 4: what becomes of the scores outside the training domains: a score per domain, the gap, the worst domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hf_transfer.config import EvaluateConfig
from hf_transfer.metrics import find_metric, score_with_interval
from hf_transfer.records import DomainScore, DomainSplits, Predictions, Role, ShiftReport
from hf_transfer.statistics import derived_seed


def split_predictions(predictions: Predictions) -> dict[str, Predictions]:
    """Return the predictions of each domain: domains in order of first appearance, examples in their order."""
    parts = {}
    for domain in dict.fromkeys(predictions.domain_ids.tolist()):
        parts[domain] = take_rows(predictions, predictions.domain_ids == domain)
    return parts


def score_domains(
    stage: str,
    split: str,
    predictions_by_domain: Mapping[str, Predictions],
    role_of: Callable[[str], Role],
    metrics: Sequence[str],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[DomainScore, ...]:
    """Score every domain by every metric, with intervals over its examples.

    Args:
        stage: ``adapted``, or the name of a control.
        split: where the examples come from, ``test`` say.
        predictions_by_domain: in the order in which domains are reported.
        role_of: domain name -> its role, as ``DomainSplits.role``.
        metrics: keys of ``METRICS``.
        confidence: level of the bootstrap intervals in (0, 1).
        resamples: bootstrap resamples per score.
        seed: the draws of an interval depend on it, the domain, the metric and the examples. They do not depend on
            which other domains are scored, nor on the stage: equal predictions of two stages get equal intervals.

    Returns:
        One score per domain and metric, domain by domain; nan where a metric is undefined.

    Raises:
        InputError: no such metric.
    """
    scores = []
    for domain, predictions in predictions_by_domain.items():
        for metric in metrics:
            value, low, high = score_with_interval(
                metric, predictions, confidence, resamples, derived_seed(seed, domain)
            )
            count = len(predictions.example_ids)
            scores.append(DomainScore(stage, domain, role_of(domain), split, count, metric, value, low, high))
    return tuple(scores)


def score_test(
    stage: str,
    predictions: Predictions,
    splits: DomainSplits,
    metrics: Sequence[str],
    evaluate: EvaluateConfig,
    seed: int,
) -> ShiftReport:
    """Scores of one stage on all test domains, the first of ``metrics`` being that of means and gap."""
    by_domain = split_predictions(predictions)
    scores = score_domains(
        stage, "test", by_domain, splits.role, metrics, evaluate.confidence, evaluate.resamples, seed
    )
    return shift_report(scores, metrics[0])


def notes_on_width(scores: Sequence[DomainScore], confidence: float) -> tuple[str, ...]:
    """A sentence for each domain whose examples are all right, or all wrong: every resample is then the same, so that
    its interval has no width, and the exact binomial one says how far the accuracy may be (Clopper and Pearson 1934).
    """
    found = []
    for score in scores:
        if score.metric == "accuracy" and score.value in (0.0, 1.0) and score.low == score.high:
            lowest = ((1 - confidence) / 2) ** (1 / score.count)  # of n right in n; the exact interval, solved
            reach = f"down to {100 * lowest:.1f}%" if score.value else f"up to {100 * (1 - lowest):.1f}%"
            found.append(
                f"{score.domain}: {'all' if score.value else 'none'} of {score.count} test examples are right, so its "
                f"intervals by resampling have no width; the exact one of accuracy goes {reach}."
            )
    return tuple(found)


def predictions_by_role(predictions: Predictions, splits: DomainSplits) -> dict[str, Predictions]:
    """The predictions of all in-domain and of all shifted domains; a role without any is left out."""
    roles = np.array([splits.role(domain) for domain in predictions.domain_ids.tolist()])
    return {role: take_rows(predictions, roles == role) for role in ("in_domain", "shifted") if (roles == role).any()}


def take_rows(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions of the chosen ``rows`` (a mask or indices)."""
    return Predictions(
        example_ids=predictions.example_ids[rows],
        domain_ids=predictions.domain_ids[rows],
        predicted=predictions.predicted[rows],
        reference=predictions.reference[rows],
        probabilities=predictions.probabilities[rows],
    )


def shift_report(scores: Sequence[DomainScore], metric: str) -> ShiftReport:
    """Say what the scores of one stage on one split mean together.

    Args:
        scores: of any number of metrics; all are kept in the report.
        metric: the one that means, gap and worst domain are made of.

    Returns:
        Means are unweighted over domains, so that a large domain does not hide a small one. The gap is positive
        where shifted domains score worse, whichever way the metric points. Means and gap are nan where a role has
        no domain, or one with an undefined score. The worst domain is the one with the worst value of all, in-domain
        or shifted, the first of equal ones; undefined scores have no place in that order, and "" says that no
        domain has a value.

    Raises:
        InputError: no such metric.
    """
    assert len({(score.stage, score.split) for score in scores}) <= 1, "means over several stages or splits say nothing"
    chosen = [score for score in scores if score.metric == metric]
    in_domain_mean = _mean([score.value for score in chosen if score.role == "in_domain"])
    shifted_mean = _mean([score.value for score in chosen if score.role == "shifted"])
    sign = 1 if find_metric(metric).higher_is_better else -1
    defined = [score for score in chosen if not np.isnan(score.value)]
    worst = min(defined, key=lambda score: sign * score.value, default=None)
    return ShiftReport(
        scores=tuple(scores),
        metric=metric,
        in_domain_mean=in_domain_mean,
        shifted_mean=shifted_mean,
        gap=sign * (in_domain_mean - shifted_mean),
        worst_domain=worst.domain if worst else "",
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
