"""Floor 1: what is measured. Values are scikit-learn's, SciPy's and sacrebleu's; intervals come from our own bootstrap.

Every metric is written twice: ``score`` gives its value on examples, through the library, and ``weighted`` gives
its value for many resamples at once, where a resample is how often it holds each row. Tests hold the two together.
Averages follow scikit-learn's defaults with ``zero_division=0``: *macro* is the unweighted mean over the classes
that occur in the reference or the prediction (single_label), or over all labels (multi_label).

Metrics of translations read the statistics of each sentence that translation_scores.py makes from its text.

The only home of ``evaluate`` and of scikit-learn's metrics. Nothing here needs a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse, stats
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    precision_score,
    recall_score,
    root_mean_squared_error,
)

from hf_transfer import translation_scores
from hf_transfer.config import EvaluateConfig
from hf_transfer.errors import InputError
from hf_transfer.fields import nearest
from hf_transfer.records import Predictions, Problem
from hf_transfer.statistics import bootstrap_counts, derived_seed, percentile_interval

if TYPE_CHECKING:
    import evaluate

Score = Callable[[np.ndarray, np.ndarray], float]
Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Rate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to [this, 1 - this] before the logarithm, as scikit-learn does for float32."""


@dataclass(frozen=True)
class Metric:
    """One way to score predictions against references."""

    name: str
    """What config, results and report call it."""
    problems: tuple[Problem, ...]
    """Kinds of prediction that it can score."""
    meaning: str
    """One sentence for reports."""
    score: Score
    """``(reference [n, ...], predicted [n, ...]) -> value``; nan where undefined."""
    weighted: Weighted
    """``(counts [resamples, rows], reference [rows, ...], predicted [rows, ...]) -> values [resamples]``: the
    ``score`` of a sample that holds row i ``counts[:, i]`` times; nan where undefined."""
    higher_is_better: bool = True
    reads: Literal["predicted", "probabilities"] = "predicted"
    """The field of ``Predictions`` that is handed over as ``predicted``; of a translation's statistics, the columns of
    this metric."""
    unit: Literal["fraction", "points"] = "fraction"
    """``points`` where a whole is 100 rather than 1."""
    title: str = ""
    """What papers call it, where that is not ``name``."""

    @property
    def signature(self) -> str:
        """Version and settings that a value of a translation is meaningless without; "" for other metrics."""
        return translation_scores.signature(self.name) if "translation" in self.problems else ""


def default_metrics(problem: Problem) -> tuple[str, ...]:
    """Metrics that a run reports if none are named; the first one selects the checkpoint."""
    return DEFAULTS[problem]


def find_metric(name: str) -> Metric:
    """Return the metric called ``name``.

    Raises:
        InputError: there is none; names the nearest and all.
    """
    if name not in METRICS:
        raise InputError(_unknown(name, tuple(METRICS), "There are"))
    return METRICS[name]


def check_metrics(names: Sequence[str], problem: Problem) -> list[str]:
    """Why ``names`` cannot all score ``problem``: one sentence or two per problem; [] if they can."""
    known = tuple(name for name, metric in METRICS.items() if problem in metric.problems)
    found = []
    for name in dict.fromkeys(names):
        if name not in METRICS:
            found.append("--evaluate.metrics: " + _unknown(name, known, f"For {problem} there are"))
        elif name not in known:
            found.append(
                f"--evaluate.metrics: `{name}` scores {' and '.join(METRICS[name].problems)} predictions, these are "
                f"{problem}. For {problem} there are {', '.join(known)}."
            )
        elif name == "comet" and (missing := translation_scores.comet_problem()):
            found.append("--evaluate.metrics: " + missing)
        if names.count(name) > 1:
            found.append(f"--evaluate.metrics names `{name}` {names.count(name)} times: name it once.")
    return found


def choose_metrics(evaluate: EvaluateConfig, problem: Problem, validation_count: int) -> tuple[str, ...]:
    """The metrics to report, the selecting one first.

    Raises:
        InputError: they do not score ``problem``, or there is no validation example for the selecting one.
    """
    metrics = evaluate.metrics or default_metrics(problem)
    problems = check_metrics(metrics, problem)
    if not validation_count and evaluate.selection != "last":
        problems.append(
            "no validation example is left to choose the step by: raise --data.validation_fraction, or use "
            "--evaluate.selection last."
        )
    if problems:
        raise InputError(problems)
    return tuple(metrics)


def score(name: str, predictions: Predictions) -> float:
    """Return the value of the metric ``name`` on ``predictions``.

    Returns:
        A float; nan where the metric is undefined: no examples, values that are not finite, or a correlation with
        a constant. Undefined scores are recorded, never raised.

    Raises:
        InputError: no such metric.
    """
    metric = find_metric(name)
    reference, predicted = arrays_of(metric, predictions)
    if not _is_finite(reference, predicted):
        return float("nan")
    return float(metric.score(reference, predicted))


def score_with_interval(
    name: str, predictions: Predictions, confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return the value of the metric ``name`` and its percentile bootstrap interval over examples.

    Args:
        name: a key of ``METRICS``.
        predictions: n examples.
        confidence: level of the interval in (0, 1).
        resamples: how many to draw. 10,000 of 5,000 examples take 0.02 to 0.1 s where there are few distinct pairs of
            classes, 1 s for sets of labels, means over examples and translations, 1.5 s for pearson and 3.5 s for
            spearman.
        seed: the draws depend on it, on ``name`` and on the examples, and on nothing else in the run.

    Returns:
        ``(value, low, high)``; all nan where the value is undefined, as in ``score``. Resamples in which it is
        undefined (a constant, drawn from few examples) are left out of the interval.

    Raises:
        InputError: no such metric.
    """
    value = score(name, predictions)
    if np.isnan(value):  # undefined on all examples, so in every part of them
        return value, value, value
    metric = METRICS[name]
    reference, predicted = arrays_of(metric, predictions)
    copies = np.ones(len(reference), dtype=np.int64)
    if predicted.dtype == np.int64:  # classes have few distinct rows, real numbers about as many as examples
        reference, predicted, copies = _distinct_rows(reference, predicted)
    rng = np.random.default_rng(derived_seed(seed, name))
    chunks = bootstrap_counts(copies, resamples, rng)
    values = np.concatenate([metric.weighted(counts, reference, predicted) for counts in chunks])
    low, high = percentile_interval(values, confidence)
    return value, low, high


def evaluate_module(name: str, **settings: Any) -> evaluate.Metric:
    """Return the metric ``name`` as a module of Hugging Face evaluate, for code that expects one.

    ``.compute(predictions=..., references=...)`` gives ``{name: value}``, equal to ``score``; it can go into
    ``evaluate.combine``. Unlike ``evaluate.load`` it needs no network, and no folder in the working directory that
    happens to have the metric's name is run in its place. Class ids are integers, labels of multi_label are rows of
    0 and 1, and ``log_loss`` takes rows of probabilities as predictions. Translations are strings, with one reference
    each; ``comet`` also takes ``sources``.

    Args:
        name: a key of ``METRICS``.
        settings: handed to ``evaluate.Metric``. By default predictions are kept in memory rather than in a file;
            several processes (``num_process``) need the file, in ``cache_dir`` or else in the Hugging Face cache.

    Raises:
        InputError: no such metric.
    """
    import evaluate  # takes 6 s to import, and only few users need it

    metric = find_metric(name)

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=metric.meaning, citation="", features=_features(metric), inputs_description=""
            )

        def _compute(self, predictions: list, references: list, sources: list | None = None) -> dict[str, float]:
            nothing, given = np.array([]), np.asarray(predictions)
            if "translation" in metric.problems:
                given = translation_scores.sentence_statistics(predictions, references, [name], sources)
            inputs = {"predicted": nothing, "probabilities": nothing, metric.reads: given}
            return {name: score(name, Predictions(nothing, nothing, reference=np.asarray(references), **inputs))}

    Module.__name__ = name  # evaluate takes a module's name from its class, and prefixes equal keys with it
    return Module(**{"keep_in_memory": settings.get("num_process", 1) == 1, **settings})


def _unknown(name: str, known: Sequence[str], all_are: str) -> str:
    close = nearest(name, known) or ", ".join(item for item in known if item.startswith(name) or name.startswith(item))
    hint = f": did you mean {close}?" if close else "."
    return f"`{name}` is not a metric{hint} {all_are} {', '.join(known)}."


def _features(metric: Metric) -> Any:
    """Types of a module's inputs; one set for each form that the metric takes."""
    import datasets

    if "translation" in metric.problems:
        names = ("predictions", "references", "sources")[: 3 if metric.name == "comet" else 2]
        return datasets.Features({name: datasets.Value("string") for name in names})
    whole, real = datasets.Value("int64"), datasets.Value("float64")
    if metric.reads == "probabilities":
        # float32 as in Predictions: clipping happens at its precision
        row = datasets.Sequence(datasets.Value("float32"))
        return datasets.Features({"predictions": row, "references": whole})
    number = {"single_label": whole, "multi_label": datasets.Sequence(whole), "regression": real}
    forms = [datasets.Features({"predictions": number[it], "references": number[it]}) for it in metric.problems]
    return forms if len(forms) > 1 else forms[0]


def arrays_of(metric: Metric, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Reference and predicted as the metric wants them: int64 for classes, float64 for real numbers.

    Translations are scored by what ``probabilities`` says of each sentence: their reference stays as it is.
    """
    if "translation" in metric.problems:
        return predictions.reference, translation_scores.columns_of(metric.name, predictions.probabilities)
    real = "regression" in metric.problems
    predicted = getattr(predictions, metric.reads)
    reference = predictions.reference.astype(np.float64 if real else np.int64)
    return reference, predicted.astype(np.float64 if real or metric.reads == "probabilities" else np.int64)


def _is_finite(reference: np.ndarray, predicted: np.ndarray) -> bool:
    """Whether there are examples and all their numbers are finite (a diverged model gives nan)."""
    numbers = [side for side in (predicted, reference) if side.dtype.kind in "biuf"]
    return bool(len(reference)) and all(bool(np.isfinite(side).all()) for side in numbers)


def _distinct_rows(reference: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of reference and predicted [rows, ...], and how many examples each stands for [rows]."""
    count = len(reference)
    pairs, copies = np.unique(
        np.hstack([reference.reshape(count, -1), predicted.reshape(count, -1)]), axis=0, return_counts=True
    )
    left, right = np.hsplit(pairs, 2)
    shape = (len(pairs), *reference.shape[1:])
    return left.reshape(shape), right.reshape(shape), copies


# --- metrics of classes: functions of true positives, predicted and actual members per class ---


def _averaged(function: Callable[..., float], average: str) -> Score:
    """scikit-learn's precision, recall or F1 under one average."""

    def value(reference: np.ndarray, predicted: np.ndarray) -> float:
        if reference.shape[1:] == (1,):
            # scikit-learn reads a single column as two classes, 0 and 1; here it is one label that is on or off
            reference, predicted = reference.ravel(), predicted.ravel()
            return function(reference, predicted, labels=[1], average=average, zero_division=0)
        return function(reference, predicted, average=average, zero_division=0)

    return value


def _resampled(rate: Rate, average: str) -> Weighted:
    """The same average of the same rate, for resamples."""

    def values(counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        hits, guessed, actual = _class_counts(counts, reference, predicted)
        if average == "micro":
            return rate(*(total.sum(axis=1) for total in (hits, guessed, actual)))
        per_class = rate(hits, guessed, actual)
        if average == "weighted":
            return _ratio((per_class * actual).sum(axis=1), actual.sum(axis=1))
        if reference.ndim == 2:
            return per_class.mean(axis=1)
        return _ratio(per_class.sum(axis=1), (guessed + actual > 0).sum(axis=1))

    return values


def _class_counts(
    counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, predicted and actual members of each class: three arrays [resamples, classes].

    The classes are the columns of 0/1 rows, or those that occur among class ids.
    """

    def total(members: sparse.csr_array) -> np.ndarray:
        # sparse: a row belongs to one class, or to few, so the cost does not grow with the number of classes
        return (members @ counts.T).T

    if reference.ndim == 2:
        sides = [sparse.csr_array(side.T.astype(np.float64)) for side in (reference * predicted, predicted, reference)]
    else:
        classes, index = np.unique(np.concatenate([reference, predicted]), return_inverse=True)
        actual, guessed = np.split(index, 2)
        right = np.flatnonzero(actual == guessed)
        rows = np.arange(len(reference))
        sides = [
            sparse.csr_array((np.ones(len(of)), (of, at)), shape=(len(classes), len(reference)))
            for of, at in ((actual[right], right), (guessed, rows), (actual, rows))
        ]
    hits, predicted_members, members = (total(side) for side in sides)
    return hits, predicted_members, members


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``, and 0 where ``below`` is 0 (scikit-learn's ``zero_division=0``)."""
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)


def _precision(hits: np.ndarray, guessed: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return _ratio(hits, guessed)


def _recall(hits: np.ndarray, guessed: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return _ratio(hits, actual)


def _f1(hits: np.ndarray, guessed: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return _ratio(2 * hits, guessed + actual)


def _mcc(reference: np.ndarray, predicted: np.ndarray) -> float:
    if len(np.union1d(reference, predicted)) == 1:
        return 0.0  # scikit-learn's value as well, but with a warning about the shape of a matrix nobody asked for
    return float(matthews_corrcoef(reference, predicted))


def _mcc_resampled(counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient, equation 8."""
    hits, guessed, actual = _class_counts(counts, reference, predicted)
    count = counts.sum(axis=1)
    together = hits.sum(axis=1) * count - (guessed * actual).sum(axis=1)
    spread = (count**2 - (guessed**2).sum(axis=1)) * (count**2 - (actual**2).sum(axis=1))
    return _ratio(together, np.sqrt(spread))


# --- metrics that are means over examples ---


def _mean_of(per_example: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Weighted:
    """The mean of a number per example, for resamples."""

    def values(counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return counts @ per_example(reference, predicted) / counts.sum(axis=1)

    return values


def _right(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[n] 1.0 where the prediction is right, in all labels if it has several."""
    return (reference == predicted).reshape(len(reference), -1).all(axis=1).astype(np.float64)


def _negative_log_likelihood(reference: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """[n] minus the natural logarithm of the probability [n, classes] given to the reference [n]."""
    given = probabilities[np.arange(len(reference)), reference]
    return -np.log(np.clip(given, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))


def _log_loss(reference: np.ndarray, probabilities: np.ndarray) -> float:
    # not scikit-learn's function: it sums in float32 (7 digits), and in float64 warns that float32 rows miss 1
    return float(_negative_log_likelihood(reference, probabilities).mean())


def _rmse_resampled(counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean_of(lambda left, right: (left - right) ** 2)(counts, reference, predicted))


# --- correlations ---


def _correlated(function: Callable[..., Any]) -> Score:
    """SciPy's correlation, nan (and no warning) where one side is constant."""

    def value(reference: np.ndarray, predicted: np.ndarray) -> float:
        if np.ptp(reference) == 0 or np.ptp(predicted) == 0:
            return float("nan")
        return float(function(reference, predicted).statistic)

    return value


def _pearson_resampled(counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    constant = _is_constant(counts, reference) | _is_constant(counts, predicted)
    return np.where(constant, np.nan, _correlation(counts, reference, predicted))


def _spearman_resampled(counts: np.ndarray, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    # ranks are halves of whole numbers, so those of a constant leave exactly 0 / 0 = nan
    return _correlation(counts, _ranks(counts, reference), _ranks(counts, predicted))


def _is_constant(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[resamples] whether a resample holds only one of the ``values`` [rows]."""
    order = np.argsort(values)
    present = np.take(counts, order, axis=1) > 0
    smallest = present.argmax(axis=1)
    largest = len(values) - 1 - present[:, ::-1].argmax(axis=1)
    return values[order[smallest]] == values[order[largest]]


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[resamples, rows] rank of each of the ``values`` [rows] inside each resample, ties at the mean of their ranks.

    A value with b examples below it and t up to and including it covers ranks b + 1 to t: its rank is (b + t + 1) / 2.
    """
    ordered = np.sort(values)
    examples_up_to = np.zeros((len(counts), len(values) + 1))
    np.cumsum(np.take(counts, np.argsort(values), axis=1), axis=1, out=examples_up_to[:, 1:])
    ranks = np.take(examples_up_to, np.searchsorted(ordered, values, "left"), axis=1)
    ranks += np.take(examples_up_to, np.searchsorted(ordered, values, "right"), axis=1)
    ranks += 1  # in place, as new arrays of this size cost more than the arithmetic
    ranks /= 2
    return ranks


def _correlation(counts: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[resamples] Pearson's r of ``left`` and ``right``, [rows] or [resamples, rows], under weights ``counts``."""
    # means first, squares after: the short formula with sums of squares loses all digits where a mean is large
    count = counts.sum(axis=1, keepdims=True)
    left, right = (
        values - np.einsum("ij,ij->i", counts, np.broadcast_to(values, counts.shape))[:, None] / count
        for values in (left, right)
    )

    def moment(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij,ij->i", counts, first, second)

    with np.errstate(divide="ignore", invalid="ignore"):  # constants
        r = moment(left, right) / np.sqrt(moment(left, left)) / np.sqrt(moment(right, right))
    return np.clip(r, -1.0, 1.0)


# --- translations: functions of sums of each sentence's statistics ---


def _of_a_corpus(name: str) -> Score:
    def value(reference: np.ndarray, statistics: np.ndarray) -> float:
        return translation_scores.corpus_value(name, statistics.sum(axis=0))

    return value


def _of_corpora(name: str) -> Weighted:
    def values(counts: np.ndarray, reference: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        return translation_scores.vectorised(name, counts @ statistics)

    return values


def _translation_metric(name: str, title: str, meaning: str, higher_is_better: bool = True) -> Metric:
    return Metric(
        name,
        TRANSLATION,
        meaning,
        _of_a_corpus(name),
        _of_corpora(name),
        higher_is_better,
        reads="probabilities",
        unit="points",
        title=title,
    )


def _class_metric(name: str, problems: tuple[Problem, ...], meaning: str, function: Callable, rate: Rate) -> Metric:
    """A metric of classes; the end of its name is the average."""
    average = name.rpartition("_")[2]
    return Metric(name, problems, meaning, _averaged(function, average), _resampled(rate, average))


SINGLE: tuple[Problem, ...] = ("single_label",)
MULTI: tuple[Problem, ...] = ("multi_label",)
BOTH: tuple[Problem, ...] = ("single_label", "multi_label")
REGRESSION: tuple[Problem, ...] = ("regression",)
TRANSLATION: tuple[Problem, ...] = ("translation",)

_TABLE = (
    Metric("accuracy", SINGLE, "Share of examples whose class is right.", accuracy_score, _mean_of(_right)),
    _class_metric("f1_micro", MULTI, "F1 of all decisions about labels, pooled.", f1_score, _f1),
    _class_metric("f1_macro", BOTH, "Mean of the F1 of each class.", f1_score, _f1),
    _class_metric("f1_weighted", BOTH, "Mean of the F1 of each class, weighted by its size.", f1_score, _f1),
    _class_metric("precision_micro", MULTI, "Share of predicted labels that are right.", precision_score, _precision),
    _class_metric("precision_macro", BOTH, "Mean of the precision of each class.", precision_score, _precision),
    _class_metric("recall_micro", MULTI, "Share of reference labels that are found.", recall_score, _recall),
    _class_metric("recall_macro", BOTH, "Mean of the recall of each class.", recall_score, _recall),
    Metric("subset_accuracy", MULTI, "Share of examples with every label right.", accuracy_score, _mean_of(_right)),
    Metric("mcc", SINGLE, "Matthews correlation coefficient: 1 if right, 0 if guessed.", _mcc, _mcc_resampled),
    Metric(
        "log_loss",
        SINGLE,
        "Mean of minus the natural logarithm of the probability given to the right class.",
        _log_loss,
        _mean_of(_negative_log_likelihood),
        higher_is_better=False,
        reads="probabilities",
    ),
    Metric("pearson", REGRESSION, "Pearson's correlation.", _correlated(stats.pearsonr), _pearson_resampled),
    Metric("spearman", REGRESSION, "Spearman's correlation.", _correlated(stats.spearmanr), _spearman_resampled),
    Metric(
        "mae",
        REGRESSION,
        "Mean absolute error, in the unit of the label.",
        mean_absolute_error,
        _mean_of(lambda reference, predicted: np.abs(reference - predicted)),
        higher_is_better=False,
    ),
    Metric(
        "rmse",
        REGRESSION,
        "Root of the mean squared error, in the unit of the label.",
        root_mean_squared_error,
        _rmse_resampled,
        higher_is_better=False,
    ),
    _translation_metric("bleu", "BLEU", "Share of runs of 1 to 4 tokens that the reference has, less if too short."),
    _translation_metric("chrf", "chrF++", "F2 of runs of 1 to 6 characters and of 1 and 2 words."),
    _translation_metric("ter", "TER", "Edits that would make the reference, per token of it.", higher_is_better=False),
    Metric(
        "comet",
        TRANSLATION,
        "Mean over sentences of how people would rate them, as a neural network guesses.",
        lambda reference, points: float(points.mean()),
        _mean_of(lambda reference, points: points[:, 0]),
        reads="probabilities",
        unit="points",
        title="COMET",
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}
"""Every metric by name, in the order in which messages list them."""

DEFAULTS: dict[Problem, tuple[str, ...]] = {
    "single_label": (
        "accuracy",
        "f1_macro",
        "f1_weighted",
        "precision_macro",
        "recall_macro",
        "mcc",
        "log_loss",
    ),
    "multi_label": ("f1_micro", "f1_macro", "subset_accuracy", "precision_micro", "recall_micro"),
    "regression": ("pearson", "spearman", "mae", "rmse"),
    "translation": ("bleu", "chrf", "ter"),
}
"""What ``default_metrics`` gives."""
