"""Floor 1: whether a difference is more than luck. Paired intervals and tests over examples, seeds and domains.

Two things vary from one experiment to the next: which examples were tested, and with which seed a model was trained.
Examples are resampled as in statistics.py, jointly for everything that is compared. Seeds are few, three or five, and
cannot be: three of them have ten distinct resamples, whose variance is a third too small. So the mean over seeds is
drawn from the t distribution that its own seeds imply, independently of the examples, as the levels of a hierarchy
are (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Every model is tested on the
same examples, so that the noise of the examples is also in the differences between its seeds; resampling both would
count it more than once (Owen, The pigeonhole bootstrap, 2007), and it is taken out of the seeds' variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse, stats

from hf_transfer import statistics
from hf_transfer.metrics import Metric, arrays_of, find_metric, score
from hf_transfer.records import Predictions
from hf_transfer.statistics import bootstrap_counts, derived_seed, percentile_interval
from hf_transfer.translation_scores import approximate_randomisation

FEWEST_PER_DOMAIN = 10
"""Examples that each domain of a mean must hold: resamples of n examples vary 1/n too little, of one not at all."""

ROUNDING = 1e-12
"""Relative to the scores: differences that are closer than this are equal, whatever the order of their sums."""

EXAMPLES_PER_BINOMIAL = 10
"""Examples to swap per distinct row from which one binomial draw (110 ns) beats a coin (7 ns) and a sum for each."""

RIGHT_OR_WRONG = {"accuracy", "subset_accuracy"}
"""Metrics for which an example is right or wrong and nothing between: McNemar's test is exact for them."""

BY_SACREBLEU = {"bleu", "chrf", "ter"}
"""Metrics whose paired test is the one that papers about translation report."""

SACREBLEU_TEST = "approximate randomization (sacrebleu)"

MOST_TRIALS, MOST_SWAPS = 10_000, 500_000_000
"""Of sacrebleu's approximate randomisation: trials, its own default, and trials times sentences (2 bytes each)."""

_SHARE, _POINTS, _CORRELATION, _LOSS = (0.0, 1.0), (0.0, 100.0), (-1.0, 1.0), (0.0, float("inf"))
RANGES: dict[str, tuple[float, float]] = {
    "accuracy": _SHARE,
    "f1_micro": _SHARE,
    "f1_macro": _SHARE,
    "f1_weighted": _SHARE,
    "precision_micro": _SHARE,
    "precision_macro": _SHARE,
    "recall_micro": _SHARE,
    "recall_macro": _SHARE,
    "subset_accuracy": _SHARE,
    "mcc": _CORRELATION,
    "log_loss": _LOSS,
    "pearson": _CORRELATION,
    "spearman": _CORRELATION,
    "mae": _LOSS,
    "rmse": _LOSS,
    "bleu": _POINTS,
    "chrf": _POINTS,
    "ter": _LOSS,
    "comet": (-float("inf"), float("inf")),  # trained on ratings of 0 to 1, but nothing holds the network to them
}
"""Smallest and largest value of each metric: the t distribution of few seeds reaches beyond, an interval must not."""


@dataclass(frozen=True)
class Difference:
    """How much better ``a`` is than ``b`` on the same examples."""

    difference: float
    """Positive where ``a`` is better, whichever way the metric points; nan where the metric is undefined."""
    low: float
    high: float
    p_value: float
    """Two-sided: how often a difference this large comes about where there is none."""
    test: str
    """Where ``p_value`` comes from: ``exact McNemar``, ``approximate randomization (sacrebleu)``,
    ``paired permutation`` or ``hierarchical bootstrap``."""
    count: int
    """Examples, over all domains."""
    smallest_count: int
    """Examples of the smallest domain; ``count`` where there is one."""
    seeds_a: int
    seeds_b: int


@dataclass(frozen=True)
class _Domain:
    """What several models said about the same examples."""

    sides: tuple[Sequence[Predictions], ...]
    """The models that are compared, each with one set of predictions per seed."""
    seed: int


def paired_difference(
    metric: str,
    a: Sequence[Predictions],
    b: Sequence[Predictions],
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """Compare two models on the same examples.

    With one seed on each side, the interval is the paired percentile bootstrap over examples, as in
    ``score_with_interval``. The p-value comes from the exact McNemar test (1947) where an example is right or wrong,
    else from a permutation test that swaps the two predictions of an example with probability 1/2; it counts the
    observed labelling as one of the permutations, so it is at least ``1 / (resamples + 1)``. For BLEU, chrF and TER
    this test is sacrebleu's, with its own draws and up to 10,000 of them (``approximate_randomisation``).

    With more seeds on either side, the hierarchical bootstrap draws examples and seeds independently, and the p-value
    is the smallest level at which its interval leaves out 0: at least ``2 / (resamples + 1)``. In simulations with 300
    examples, its 95% intervals held the true difference of 3 or 5 seeds on each side in 94% to 98% of cases, from
    seeds that do not differ to seeds 6 points of accuracy apart; of 3 or 5 seeds against a fixed model in 93% to 97%
    up to 3 points, and in 92% at 6. With two seeds they held it as well, but were too wide to say much.

    Args:
        metric: a key of ``METRICS``.
        a: predictions of the first model, one per seed.
        b: of the second; may have another number of seeds. A side with one set of predictions is taken as fixed, which
            a deterministic control is: training it again is not part of the question.
        confidence: level of the interval in (0, 1).
        resamples: bootstrap resamples, and permutations. A p-value must reach ``1 - confidence`` divided by the number
            of comparisons (``holm``): 10,000 serve 250 of them.
        seed: the draws depend on it, on ``metric`` and on the examples, and on nothing else in the run.

    Returns:
        The difference of the means over seeds. All numbers are nan where the metric is undefined for a seed.

    Raises:
        InputError: no such metric.
    """
    return _difference(metric, [_Domain((a, b), seed)], confidence, resamples, seed)


def paired_difference_of_means(
    metric: str,
    pairs_by_domain: Mapping[str, tuple[Sequence[Predictions], Sequence[Predictions]]],
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """Compare two models by their unweighted means over domains.

    As ``paired_difference``, but examples are drawn, and predictions swapped, within each domain; a seed is the same
    model in all domains, so it is drawn once for all of them. Neither McNemar's test nor sacrebleu's has an unweighted
    mean: with one seed the p-value always is that of the permutation test.

    Args:
        metric: a key of ``METRICS``.
        pairs_by_domain: ``(a, b)`` of each domain, with the same seeds in the same order in all of them.
        confidence: level of the interval in (0, 1).
        resamples: as in ``paired_difference``.
        seed: the draws of a domain depend on it, the domain, ``metric`` and the examples. The result for one domain is
            that of ``paired_difference`` with ``derived_seed(seed, domain)``, except for those two tests.

    Raises:
        InputError: no such metric.
    """
    domains = [_Domain(pair, derived_seed(seed, domain)) for domain, pair in pairs_by_domain.items()]
    return _difference(metric, domains, confidence, resamples, seed, mean_over_domains=True)


def shift_difference(
    metric: str,
    shifted: Mapping[str, Sequence[Predictions]],
    in_domain: Mapping[str, Sequence[Predictions]],
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """Return how much better the same models are on ``shifted`` than on ``in_domain`` examples: minus the gap.

    Both are unweighted means over their domains. The examples are different ones and are drawn independently; the
    models are the same, so that seeds are drawn once for both sides.

    Args:
        metric: a key of ``METRICS``.
        shifted: predictions per seed of each domain, with the same seeds in the same order everywhere.
        in_domain: the same; no domain is in both.
        confidence: level of the interval in (0, 1).
        resamples: bootstrap resamples.
        seed: the draws of a domain depend on it, the domain, ``metric`` and the examples.

    Returns:
        Positive where shifted domains score better. The p-value inverts the bootstrap: exact tests need pairs.

    Raises:
        InputError: no such metric.
    """
    kind = find_metric(metric)
    sign = 1 if kind.higher_is_better else -1
    parts = [
        [_Domain((seeds,), derived_seed(seed, domain)) for domain, seeds in part.items()]
        for part in (shifted, in_domain)
    ]
    there, here = (_means(kind, part)[0] for part in parts)
    assert len(there) == len(here), "a seed is missing on one side"
    values = sign * (there - here)
    value, draws = float(np.mean(values)), np.array([])
    if not np.isnan(value):
        there, here = (_drawn_means(kind, part, resamples)[0] for part in parts)
        drawn = sign * (there - here)
        draws = drawn.mean(axis=1) + _drawn_seeds(kind, [values], [drawn], seed)
    every_count = [len(domain.sides[0][0].example_ids) for part in parts for domain in part]
    low, high = percentile_interval(draws, confidence)
    farthest = RANGES[metric][1] - RANGES[metric][0]
    return Difference(
        difference=value,
        low=float(np.clip(low, -farthest, farthest)),
        high=float(np.clip(high, -farthest, farthest)),
        p_value=float("nan") if np.isnan(value) else _inverted(draws),
        test="bootstrap of the gap",
        count=sum(every_count),
        smallest_count=min(every_count),
        seeds_a=len(values),
        seeds_b=len(values),
    )


def hierarchical_interval(
    metric: str, predictions_per_seed: Sequence[Predictions], confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return the mean of a score over seeds, and its interval over seeds and examples.

    Args:
        metric: a key of ``METRICS``.
        predictions_per_seed: of the same examples in the same order. With one, the result is that of
            ``score_with_interval``.
        confidence: level of the interval in (0, 1).
        resamples: bootstrap resamples.
        seed: as in ``score_with_interval``.

    Returns:
        ``(value, low, high)``; all nan where the metric is undefined for a seed.

    Raises:
        InputError: no such metric.
    """
    return _interval(metric, [_Domain((predictions_per_seed,), seed)], confidence, resamples, seed)


def hierarchical_interval_of_means(
    metric: str,
    predictions_by_domain: Mapping[str, Sequence[Predictions]],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float, float]:
    """Return the unweighted mean of a score over domains and seeds, and its interval over seeds and examples.

    As ``hierarchical_interval``, with examples drawn within each domain and seeds once for all domains.

    Args:
        metric: a key of ``METRICS``.
        predictions_by_domain: predictions per seed of each domain, with the same seeds in the same order in all.
        confidence: level of the interval in (0, 1).
        resamples: bootstrap resamples.
        seed: the draws of a domain depend on it, the domain, ``metric`` and the examples, as in ``score_domains``.

    Raises:
        InputError: no such metric.
    """
    domains = [_Domain((seeds,), derived_seed(seed, domain)) for domain, seeds in predictions_by_domain.items()]
    return _interval(metric, domains, confidence, resamples, seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all comparisons together: the chance of even one false finding stays at the level.

    Holm, A simple sequentially rejective multiple test procedure (1979): the i-th smallest of m is multiplied by
    m + 1 - i, is at least as large as the one before it, and at most 1.

    Args:
        p_values: in any order. nan says that there was nothing to test: it stays nan and is not counted.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # nan are sorted to the end
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()


def verdict(difference: Difference, p_adjusted: float, confidence: float, fewest: int = 30) -> str:
    """Say what a difference shows: ``helps``, ``hurts``, ``no evidence``, ``too few examples`` or ``undefined``.

    Args:
        difference: of the adapted model ``a`` and what it is held against.
        p_adjusted: its p-value, corrected for the number of comparisons (``holm``).
        confidence: level of its interval in (0, 1). A finding needs both: an interval without 0, and a p-value under
            ``1 - confidence``.
        fewest: examples under which no verdict is given, over all domains; each domain needs ``FEWEST_PER_DOMAIN``.
    """
    if difference.count < fewest or difference.smallest_count < min(fewest, FEWEST_PER_DOMAIN):
        return "too few examples"
    if math.isnan(difference.difference) or math.isnan(difference.low) or math.isnan(difference.high):
        return "undefined"  # as the correlation of a constant: nothing was tested, so that nothing speaks against it
    excludes_0 = difference.low > 0 or difference.high < 0
    if not (excludes_0 and p_adjusted < 1 - confidence):
        return "no evidence"
    return "helps" if difference.difference > 0 else "hurts"


def _interval(
    name: str, domains: Sequence[_Domain], confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    value, drawn = _contrast(find_metric(name), domains, (1,), resamples, seed)
    low, high = np.clip(percentile_interval(drawn, confidence), *RANGES[name])
    return value, float(low), float(high)


def _difference(
    name: str,
    domains: Sequence[_Domain],
    confidence: float,
    resamples: int,
    seed: int,
    mean_over_domains: bool = False,
) -> Difference:
    metric = find_metric(name)
    sign = 1 if metric.higher_is_better else -1
    difference, drawn = _contrast(metric, domains, (sign, -sign), resamples, seed)
    farthest = RANGES[name][1] - RANGES[name][0]
    low, high = np.clip(percentile_interval(drawn, confidence), -farthest, farthest)
    seeds_a, seeds_b = (len(side) for side in domains[0].sides)
    counts = [len(domain.sides[0][0].example_ids) for domain in domains]
    trials = min(resamples, MOST_TRIALS)

    if max(seeds_a, seeds_b) > 1:
        test, p_value_of = "hierarchical bootstrap", lambda: _inverted(drawn)
    elif name in RIGHT_OR_WRONG and not mean_over_domains:
        test, p_value_of = "exact McNemar", lambda: _mcnemar(domains[0])
    elif name in BY_SACREBLEU and not mean_over_domains and trials * sum(counts) <= MOST_SWAPS:
        test, p_value_of = SACREBLEU_TEST, lambda: _randomised(metric, domains[0], trials)
    else:
        test, p_value_of = "paired permutation", lambda: _permuted(metric, domains, resamples)
    return Difference(
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=float("nan") if np.isnan(difference) else p_value_of(),
        test=test,
        count=sum(counts),
        smallest_count=min(counts),
        seeds_a=seeds_a,
        seeds_b=seeds_b,
    )


def _contrast(
    metric: Metric, domains: Sequence[_Domain], signs: Sequence[int], resamples: int, seed: int
) -> tuple[float, np.ndarray]:
    """The signed sum over sides of the mean over domains and seeds: its value, and [resamples] draws of it."""
    values = _means(metric, domains)
    value = float(sum(sign * np.mean(side) for sign, side in zip(signs, values, strict=True)))
    if np.isnan(value):
        return value, np.array([])
    drawn = _drawn_means(metric, domains, resamples)
    examples_part = np.sum([sign * side.mean(axis=1) for sign, side in zip(signs, drawn, strict=True)], axis=0)
    return value, examples_part + _drawn_seeds(metric, values, drawn, seed)


def _means(metric: Metric, domains: Sequence[_Domain]) -> list[np.ndarray]:
    """Per side [seeds]: means over domains."""
    _check(domains)
    sides = range(len(domains[0].sides))
    scores = [[[score(metric.name, one) for one in domain.sides[side]] for domain in domains] for side in sides]
    return [np.mean(of_side, axis=0) for of_side in scores]


def _drawn_means(metric: Metric, domains: Sequence[_Domain], resamples: int) -> list[np.ndarray]:
    """Per side [resamples, seeds]: the same means on resampled examples."""
    by_domain = [_resampled(metric, domain, resamples) for domain in domains]
    return [np.mean(of_side, axis=0) for of_side in zip(*by_domain, strict=True)]


def _drawn_seeds(metric: Metric, values: Sequence[np.ndarray], drawn: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """[resamples] what other seeds would have added to the sum over sides; of ``_means`` and ``_drawn_means``.

    Satterthwaite (1946) and Welch (1947): a sum of variances that are known from few values each has the t
    distribution of (sum of v)^2 / sum of (v^2 / degrees of freedom) degrees of freedom.
    """
    variances = np.array([_variance_between_seeds(*side) for side in zip(values, drawn, strict=True)])
    if not variances.any():
        return np.zeros(len(drawn[0]))
    degrees = np.array([max(len(side) - 1, 1) for side in values])
    together = variances.sum() ** 2 / (variances**2 / degrees).sum()
    rng = np.random.default_rng(derived_seed(seed, metric.name, "seeds"))
    return np.sqrt(variances.sum()) * rng.standard_t(together, size=len(drawn[0]))


def _check(domains: Sequence[_Domain]) -> None:
    assert domains, "a mean over no domains"
    assert len({tuple(len(side) for side in domain.sides) for domain in domains}) == 1, "a seed is missing in a domain"
    for domain in domains:
        first = domain.sides[0][0]
        for one in (one for side in domain.sides for one in side):
            assert np.array_equal(one.example_ids, first.example_ids), "predictions of other examples"
            assert np.array_equal(one.reference, first.reference), "equal examples with different references"


def _resampled(metric: Metric, domain: _Domain, resamples: int) -> list[np.ndarray]:
    """Per side [resamples, seeds]: values of every model on the same resampled examples."""
    reference, predicted, copies = _distinct_rows(metric, domain)
    cells = [_Cells.of(reference, [own]) for own in predicted]
    grouped = predicted[0].dtype == np.int64
    rng = np.random.default_rng(derived_seed(domain.seed, metric.name))
    values = np.empty((resamples, len(predicted)))
    done = 0
    for counts in bootstrap_counts(copies, resamples, rng):
        by_row = np.ascontiguousarray(counts.T) if grouped else counts.T  # sparse products read rows: one copy for all
        for model, own in enumerate(cells):
            in_cells = (own.holding[0] @ by_row).T if grouped else counts
            values[done : done + len(counts), model] = metric.weighted(in_cells, own.reference, own.predicted)
        done += len(counts)
    return np.split(values, np.cumsum([len(side) for side in domain.sides])[:-1], axis=1)


def _distinct_rows(metric: Metric, domain: _Domain) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Reference [rows, ...], the same of each model, and how many examples each row stands for [rows].

    Examples with the same reference, of which every model says the same, are one row where they are classes; real
    numbers have about as many distinct rows as examples, so each example keeps its own. Where it only matters who is
    right, classes are 1 for right and 0 for wrong, unless there is one model: its rows are score_with_interval's.
    """
    models = [one for side in domain.sides for one in side]
    if metric.name in RIGHT_OR_WRONG and len(models) > 1:
        right = [_right(one).astype(np.int64) for one in models]
        columns = [np.ones_like(right[0]), *right]
    else:
        pairs = [arrays_of(metric, one) for one in models]
        columns = [pairs[0][0], *(predicted for _, predicted in pairs)]
    first, _, copies = _unique(columns)
    return columns[0][first], [column[first] for column in columns[1:]], copies


def _unique(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each distinct row of ``columns``, each [n, ...], comes first; which one each row is [n]; and their counts.

    Every row counts as distinct unless all columns hold whole numbers.
    """
    count = len(columns[0])
    if any(column.dtype != np.int64 for column in columns):
        return np.arange(count), np.arange(count), np.ones(count, dtype=np.int64)
    flat = np.hstack([column.reshape(count, -1) for column in columns])
    _, first, which, copies = np.unique(flat, axis=0, return_index=True, return_inverse=True, return_counts=True)
    return first, which.ravel(), copies


@dataclass(frozen=True)
class _Cells:
    """What a metric tells apart: distinct pairs of reference and prediction. Fewer than rows, which also tell models
    apart, and the only thing whose cost grows with the number of classes."""

    reference: np.ndarray
    """[cells, ...]"""
    predicted: np.ndarray
    """[cells, ...]"""
    holding: list[sparse.csr_array]
    """Per model [cells, rows]: 1 where a cell holds a row."""

    @staticmethod
    def of(reference: np.ndarray, predicted: Sequence[np.ndarray]) -> _Cells:
        """The cells that the ``predicted`` of one or more models share."""
        rows = len(reference)
        references, stacked = np.concatenate([reference] * len(predicted)), np.concatenate(predicted)
        first, which, _ = _unique([references, stacked])
        holding = [
            sparse.csr_array((np.ones(rows), (cells, np.arange(rows))), shape=(len(first), rows))
            for cells in which.reshape(len(predicted), rows)
        ]
        return _Cells(references[first], stacked[first], holding)


def _variance_between_seeds(values: np.ndarray, drawn: np.ndarray) -> float:
    """Variance of the mean of ``values`` [seeds] that comes from the seeds; ``drawn`` [resamples, seeds].

    Seeds differ on the examples at hand for two reasons: one model is better, or these examples suit it. The second
    is already in the resampled examples, where it shows as the variance of differences between seeds.
    """
    seeds = len(values)
    if seeds == 1:
        return 0.0
    defined = drawn[~np.isnan(drawn).any(axis=1)]
    differences = defined - defined.mean(axis=1, keepdims=True)
    from_examples = differences.var(axis=0).sum() / (seeds - 1)
    return max(0.0, float(values.var(ddof=1) - from_examples)) / seeds


def _inverted(drawn: np.ndarray) -> float:
    """Two-sided p-value of no difference: the smallest level at which the percentile interval leaves out 0.

    One more is counted than drawn, as in a permutation test, since no finite number of draws shows a p-value of 0.
    """
    defined = drawn[~np.isnan(drawn)]
    fewer = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, 2 * float(fewer + 1) / (len(defined) + 1))


def _mcnemar(domain: _Domain) -> float:
    """McNemar (1947), exact: of the examples that only one of two models has right, half should be either one's."""
    a, b = (_right(side[0]) for side in domain.sides)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _right(predictions: Predictions) -> np.ndarray:
    """[n] whether the prediction is right, in all labels if it has several."""
    return (predictions.predicted == predictions.reference).reshape(len(predictions.reference), -1).all(axis=1)


def _randomised(metric: Metric, domain: _Domain, trials: int) -> float:
    a, b = (arrays_of(metric, side[0])[1] for side in domain.sides)
    return approximate_randomisation(metric.name, a, b, trials)


def _permuted(metric: Metric, domains: Sequence[_Domain], resamples: int) -> float:
    """Two-sided p-value of the paired permutation test of a difference of means over domains.

    Phipson and Smyth, Permutation p-values should never be zero (2010): ``(hits + 1) / (resamples + 1)``.
    """
    by_domain = [_relabelled(metric, domain, resamples) for domain in domains]
    left, right = np.sum(by_domain, axis=0)
    drawn = left - right
    observed = abs(drawn[0]) - ROUNDING * (abs(left[0]) + abs(right[0]))
    defined = np.abs(drawn[1:][~np.isnan(drawn[1:])])
    return float((defined >= observed).sum() + 1) / (len(defined) + 1)


def _relabelled(metric: Metric, domain: _Domain, resamples: int) -> np.ndarray:
    """[2, 1 + resamples] scores of two models, each time with other examples swapped between them; first with none.

    A row of m equal examples has Binomial(m, 1/2) of them swapped; where both models say the same, none need be.
    """
    reference, (a, b), copies = _distinct_rows(metric, domain)
    cells = _Cells.of(reference, [a, b])
    held_by_a, held_by_b = (holding @ copies[:, None].astype(np.float64) for holding in cells.holding)  # [cells, 1]
    differ = np.flatnonzero((a != b).reshape(len(a), -1).any(axis=1))
    if copies[differ].sum() <= EXAMPLES_PER_BINOMIAL * len(differ):
        differ = np.repeat(differ, copies[differ])
        copies = np.ones_like(copies)
    from_a_to_b = sparse.csr_array(cells.holding[1] - cells.holding[0])[:, differ]  # [cells, what is swapped]
    rng = np.random.default_rng(derived_seed(domain.seed, metric.name, "permutations"))

    # sums over classes read the counts by cell, correlations by resample
    order: Literal["C", "F"] = "F" if a.dtype == np.int64 else "C"
    scores = np.empty((2, 1 + resamples))
    chunk = max(1, statistics.NUMBERS_PER_CHUNK // max(len(cells.reference), len(differ)))
    for start in range(0, 1 + resamples, chunk):
        size = (len(differ), min(chunk, 1 + resamples - start))
        if copies.max() == 1:
            swapped = rng.integers(0, 2, size, dtype=np.int8).astype(np.float64)
        else:
            swapped = rng.binomial(copies[differ, None], 0.5, size).astype(np.float64)
        if start == 0:
            swapped[:, 0] = 0
        moved = from_a_to_b @ swapped
        for side, counts in enumerate((held_by_a + moved, held_by_b - moved)):
            by_resample = np.asarray(counts.T, order=order)
            scores[side, start : start + size[1]] = metric.weighted(by_resample, cells.reference, cells.predicted)
    return scores
