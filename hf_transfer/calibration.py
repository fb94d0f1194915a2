"""Floor 1: what the confidence of a classifier is worth. How far it is from accuracy, which temperature mends that,
what rejecting the least confident gains, and the accuracy that confidence promises where there are no labels.

For single-label classification. *Confidence* is the probability of the most probable class: ``confidence`` [n], as
``probabilities.max(axis=1)``; ``correct`` [n] is true where the predicted class is the reference. No result depends on
the order of examples, ties included. Numbers are fractions; nan where there are no examples, or where a confidence is
not finite (a diverged model).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import brentq

from hf_transfer.metrics import SMALLEST_PROBABILITY
from hf_transfer.records import Predictions
from hf_transfer.statistics import bootstrap_counts, derived_seed

BINS = 15
"""Bins of the calibration error. Guo et al. (2017) and most after them use 15."""

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Where the temperature is searched."""

CURVE_POINTS = 50
"""Most points of a risk-coverage curve: enough for a smooth line, few enough for a file."""

# --- temperature ---


def fit_temperature(probabilities: np.ndarray, reference: np.ndarray) -> float:
    """Return the temperature with the least negative log-likelihood: the T of softmax(log p / T).

    Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks, section 4.2. Their logits differ
    from log p by one number per example, and softmax does not see that number, so probabilities are all it takes.

    Args:
        probabilities: [n, classes], of examples that are not tested: in-domain validation.
        reference: [n] class ids.

    Returns:
        A temperature in [``LOWEST_TEMPERATURE``, ``HIGHEST_TEMPERATURE``]; over 1 where the classifier is too sure. An
        end of the range says that no temperature inside it is best: the low end where every example is right, the
        high end where the classifier is no better than chance. 1 where all temperatures are the same (uniform
        probabilities); nan for no examples and for probabilities that are not finite.
    """
    if not _is_usable(probabilities):
        return float("nan")
    logits = _logits(probabilities)
    if not logits.any():
        return 1.0
    logit_of_reference = logits[np.arange(len(logits)), reference.astype(np.int64)].mean()

    def slope(inverse: float) -> float:
        """Derivative of the loss by 1 / T. It grows with 1 / T, as the loss is convex in it: it has one root."""
        return float((_softmax(logits * inverse) * logits).sum(axis=1).mean() - logit_of_reference)

    lowest, highest = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    if slope(lowest) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(highest) <= 0:
        return LOWEST_TEMPERATURE
    return 1 / float(brentq(slope, lowest, highest))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(log p / T) [n, classes] float64. The most probable class stays the same.

    Args:
        probabilities: [n, classes].
        temperature: over 0; 1 changes nothing but probabilities below ``SMALLEST_PROBABILITY``.
    """
    return _softmax(_logits(probabilities) / temperature)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """[n, classes] log p, less the largest of each row."""
    # raised as in the metric: one example whose class got 0 must not decide the temperature of all
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    return logits - logits.max(axis=1, keepdims=True)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax of rows whose largest value is 0."""
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


# --- confidence against accuracy ---


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the mean distance of accuracy from confidence: the sum over bins of n_b / n |accuracy_b - confidence_b|.

    Bins hold equally many examples, as in the adaptive error of Nixon et al. (2019), Measuring Calibration in Deep
    Learning: bins of equal width would put most of a sure classifier into one. Equal confidences are never
    separated: an example whose confidence takes the places b + 1 to t in ascending order goes, with all its equals,
    to the bin that the middle of those places falls into. Bins then differ in size, and some may be empty.

    Noise only ever adds to it: with p the accuracy in the bins, a perfectly calibrated classifier scores about
    sqrt(2 bins / (pi n)) times the mean of sqrt(p (1 - p)), which is 0.064 for 300 and 0.017 for 4,000 examples at
    p = 0.85. Compare values of equal n.
    """
    if not _is_usable(confidence):
        return float("nan")
    return float(np.abs(_signed_gaps(confidence, correct, bins)).sum())


def reliability_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, float | int]]:
    """Return the bins of ``expected_calibration_error`` as ``{confidence, accuracy, count}``.

    Means over the bin, in ascending order of confidence, without empty bins; [] where there is nothing to bin.
    """
    if not _is_usable(confidence):
        return []
    bin_of = _bin_of(confidence, bins)
    counts = np.bincount(bin_of, minlength=bins)
    totals = [np.bincount(bin_of, weights=values, minlength=bins) for values in (confidence, correct)]
    return [
        {"confidence": float(totals[0][b] / counts[b]), "accuracy": float(totals[1][b] / counts[b]), "count": int(n)}
        for b, n in enumerate(counts)
        if n
    ]


def ece_with_interval(
    confidence: np.ndarray, correct: np.ndarray, confidence_level: float, resamples: int, seed: int, bins: int = BINS
) -> tuple[float, float, float]:
    """Return the expected calibration error and a bootstrap interval over examples that allows for its bias.

    The bins stay those of the sample. They say how confidences are grouped, they are not estimated; and a resample
    holds examples twice, which would make ties and other bins.

    Resampling adds noise to the noise of the sample, so values of resamples lie above the value itself, which already
    lies above the truth: a percentile interval often holds neither, and no bootstrap of a sum of absolute values is
    consistent where one of them is 0 (Andrews 2000, Econometrica 68; Fang and Santos 2019, Review of Economic Studies
    86). So it is the gaps inside the absolute values that are resampled, for which the bootstrap works. Let g_b be the
    true gap of bin b times its share of the examples, and g_b + e_b the one seen. Always

        sum of sign(g_b) e_b  <=  (sum of |g_b + e_b|) - (sum of |g_b|)  <=  sum of |e_b|.

    The right side bounds how far the value is too high: it gives the low end. The left side bounds how far it is too
    low: it gives the high end. Both take their quantiles from the resampled e_b. Where the gap of a bin is over
    sqrt(ln n) standard errors its sign is known (the limit of Andrews and Soares 2010, Econometrica 78), and on the
    right sign(g_b) e_b, which is then the exact term, replaces |e_b|. Terms with a sign are mirrored: one bin with a
    clear gap gets the percentile interval of that gap, a little widened. In simulations an interval of 0.90 held the
    truth 0.85 to 1.00 of the time, from 30 to 1,600 examples; it is wider than it need be where gaps are small but
    not 0.

    Args:
        confidence, correct: [n].
        confidence_level: level of the interval in (0, 1).
        resamples: how many to draw. 2,000 of 4,000 examples take 0.2 s.
        seed: the draws depend on it and on n, and on nothing else in the run.
        bins: as in ``expected_calibration_error``.

    Returns:
        ``(value, low, high)`` with 0 <= low <= value <= high <= 1; all nan where the value is. A low end of 0 says that
        the data do not rule out a perfectly calibrated classifier.
    """
    value = expected_calibration_error(confidence, correct, bins)
    if math.isnan(value):
        return value, value, value
    gaps, bin_of, count = _signed_gaps(confidence, correct, bins), _bin_of(confidence, bins), len(confidence)
    share_of_gap = np.zeros((count, bins))  # [n, bins] what one more copy of an example adds to the gap of its bin
    share_of_gap[np.arange(count), bin_of] = (correct - confidence.astype(np.float64)) / count
    rng = np.random.default_rng(derived_seed(seed, "expected_calibration_error"))
    chunks = bootstrap_counts(np.ones(count, dtype=np.int64), resamples, rng)
    errors = np.concatenate([counts @ share_of_gap for counts in chunks]) - gaps  # [resamples, bins]
    # one mean per bin is lost, as in a variance: without it 0.90 held 0.65 at 60 examples; capped where bins hold one
    errors *= math.sqrt(count / max(count - len(np.unique(bin_of)), count / 2))
    is_sign_known = np.abs(gaps) > math.sqrt(math.log(count)) * errors.std(axis=0)
    outwards = errors * np.sign(gaps)
    downwards = np.where(is_sign_known, -outwards, np.abs(errors))
    tail = (1 - confidence_level) / 2
    down, up = (max(0.0, float(np.quantile(moves.sum(axis=1), 1 - tail))) for moves in (downwards, outwards))
    return value, max(0.0, value - down), min(1.0, value + up)


def brier_score(probabilities: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean squared distance of the probabilities [n, classes] from the reference [n], summed over classes.

    Brier (1950), Verification of Forecasts Expressed in Terms of Probability: from 0, sure and right, to
    2, sure and wrong. For two classes it is twice the score of one class that is often called by the same name.
    """
    if not _is_usable(probabilities):
        return float("nan")
    distances = probabilities.astype(np.float64)  # a copy
    distances[np.arange(len(distances)), reference.astype(np.int64)] -= 1
    return float((distances**2).sum(axis=1).mean())


def _is_usable(values: np.ndarray) -> bool:
    return bool(len(values)) and bool(np.isfinite(values).all())


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """[n] the bin of each example, 0 to bins - 1."""
    ordered = np.sort(confidence)
    twice_the_middle = np.searchsorted(ordered, confidence, "left") + np.searchsorted(ordered, confidence, "right")
    return bins * twice_the_middle // (2 * len(confidence))


def _signed_gaps(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    """[bins] accuracy less confidence of each bin, times its share of the examples."""
    distances = correct - confidence.astype(np.float64)
    return np.bincount(_bin_of(confidence, bins), weights=distances, minlength=bins) / len(confidence)


# --- rejecting the least confident ---


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> list[list[float]]:
    """Return points ``[coverage, risk]``: a share of the examples, the most confident ones, and the error on them.

    El-Yaniv and Wiener (2010), On the Foundations of Noise-free Selective Classification; Geifman and El-Yaniv (2017),
    Selective Classification for Deep Neural Networks. Ties are taken in random order; the risk is the expected value
    over those orders.

    Returns:
        At most ``CURVE_POINTS`` points, evenly spaced, in ascending coverage; the last is [1, error of all].
    """
    risks, count = _risks(confidence, correct), len(confidence)
    if not len(risks):
        return []
    # place * count // points, rounded up
    taken = np.unique(-(-np.arange(1, CURVE_POINTS + 1) * count // CURVE_POINTS))
    return [[float(k / count), float(risks[k - 1])] for k in taken]


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean risk over the n coverages 1/n, 2/n, ..., 1: 0 is best, and a random order gives the error of all.

    Geifman, Uziel and El-Yaniv (2019), Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers.
    Over all coverages, not the points of ``risk_coverage``; ties as there.
    """
    risks = _risks(confidence, correct)
    return float(risks.mean()) if len(risks) else float("nan")


def accuracy_at(confidence: np.ndarray, correct: np.ndarray, coverage: float = 0.8) -> float:
    """Return the accuracy of the most confident examples, the fewest that are a share ``coverage`` in (0, 1] of all.

    Ties as in ``risk_coverage``.
    """
    risks = _risks(confidence, correct)
    if not len(risks):
        return float("nan")
    taken = max(1, math.ceil(round(coverage * len(risks), 6)))  # 0.55 * 100 is a little over 55
    return float(1 - risks[taken - 1])


def _risks(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """[n] expected error of the 1, 2, ..., n most confident examples; [0] where there is nothing to rank."""
    if not _is_usable(confidence):
        return np.zeros(0)
    _, tie_of, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(tie_of, weights=~correct.astype(bool))
    # in a random order of equals, each place holds the mean error of all of them
    return np.cumsum(np.repeat(wrong / sizes, sizes)) / np.arange(1, len(confidence) + 1)


# --- accuracy without labels ---


def average_thresholded_confidence(
    source_confidence: np.ndarray, source_correct: np.ndarray, target_confidence: np.ndarray
) -> float:
    """Return the accuracy to expect on the target: its share of confidences at or over a threshold (ATC).

    Garg et al. (2022), Leveraging Unlabeled Data to Predict Out-of-Distribution Performance, with
    the largest probability as score. The threshold is the source confidence below which lies a share of the source
    equal to its error. Where several source confidences equal the threshold, the part of them that belongs to the
    lower side is counted off on the target as well: a target with the confidences of the source gets its accuracy.
    """
    if not (_is_usable(source_confidence) and _is_usable(target_confidence)):
        return float("nan")
    count, right = len(source_confidence), int(np.count_nonzero(source_correct))
    threshold = np.sort(source_confidence)[min(count - right, count - 1)]
    over, equal = (np.count_nonzero(source_confidence > threshold), np.count_nonzero(source_confidence == threshold))
    share_of_equal = (right - over) / equal
    return float((target_confidence > threshold).mean() + share_of_equal * (target_confidence == threshold).mean())


def average_confidence(target_confidence: np.ndarray) -> float:
    """Return the mean confidence: the accuracy of the target if the classifier is calibrated there."""
    return _mean(target_confidence)


def difference_of_confidences(
    source_confidence: np.ndarray, source_correct: np.ndarray, target_confidence: np.ndarray
) -> float:
    """Return the accuracy of the source less the fall of mean confidence from source to target (DoC), in [0, 1].

    Guillory et al. (2021), Predicting with Confidence on Unseen Distributions.
    """
    estimate = _mean(source_correct) - (_mean(source_confidence) - _mean(target_confidence))
    return estimate if math.isnan(estimate) else min(1.0, max(0.0, estimate))


def _mean(values: np.ndarray) -> float:
    return float(values.astype(np.float64).mean()) if _is_usable(values) else float("nan")


# --- all of it ---


def describe_calibration(
    validation: Predictions,
    test_by_role: Mapping[str, Predictions],
    confidence_level: float,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return what confidence is worth in and outside the training domains, ready for JSON: None where undefined.

    Args:
        validation: in-domain examples that fit the temperature and the estimates of accuracy. A checkpoint that was
            selected on them is a little better there than elsewhere, and so are the estimates.
        test_by_role: predictions by ``in_domain`` or ``shifted``; entries come in their order.
        confidence_level, resamples, seed: of the interval, as in ``ece_with_interval``.

    Returns:
        One entry per role: ``role, count, accuracy, ece, ece_low, ece_high, brier, temperature, ece_scaled`` (after the
        temperature), ``bins`` and ``bins_scaled`` as ``reliability_bins``, ``risk_coverage``, ``aurc``,
        ``accuracy_at_80`` and ``estimates``: ``atc, average_confidence, difference_of_confidences`` of the shifted
        examples, from confidences after the temperature (as Garg et al. do), without a look at their labels. Without
        usable validation examples ``temperature``, ``ece_scaled`` and ``estimates`` are None and ``bins_scaled`` is [].
    """
    temperature = fit_temperature(validation.probabilities, validation.reference)
    entries = []
    for role, test in test_by_role.items():
        confidence, correct = _confidence(test.probabilities), test.predicted == test.reference
        level_seed = derived_seed(seed, role)
        ece, low, high = ece_with_interval(confidence, correct, confidence_level, resamples, level_seed)
        entry: dict[str, Any] = {
            "role": role,
            "count": len(confidence),
            "accuracy": _mean(correct),
            "ece": ece,
            "ece_low": low,
            "ece_high": high,
            "brier": brier_score(test.probabilities, test.reference),
            "temperature": temperature,
            "ece_scaled": float("nan"),
            "bins": reliability_bins(confidence, correct),
            "bins_scaled": [],
            "risk_coverage": risk_coverage(confidence, correct),
            "aurc": area_under_risk_coverage(confidence, correct),
            "accuracy_at_80": accuracy_at(confidence, correct, 0.8),
            "estimates": None,
        }
        if not math.isnan(temperature) and _is_usable(confidence):
            scaled = _confidence(scale(test.probabilities, temperature))
            entry["ece_scaled"] = expected_calibration_error(scaled, correct)
            entry["bins_scaled"] = reliability_bins(scaled, correct)
            if role == "shifted":
                entry["estimates"] = _estimates(validation, temperature, scaled)
        entries.append({key: None if _is_nan(value) else value for key, value in entry.items()})
    return entries


def _estimates(validation: Predictions, temperature: float, target_confidence: np.ndarray) -> dict[str, float]:
    source_confidence = _confidence(scale(validation.probabilities, temperature))
    source_correct = validation.predicted == validation.reference
    return {
        "atc": average_thresholded_confidence(source_confidence, source_correct, target_confidence),
        "average_confidence": average_confidence(target_confidence),
        "difference_of_confidences": difference_of_confidences(source_confidence, source_correct, target_confidence),
    }


def _confidence(probabilities: np.ndarray) -> np.ndarray:
    """[n] probability of the most probable class, from [n, classes]; [0] from no examples, whatever their shape."""
    return probabilities.astype(np.float64).max(axis=1) if len(probabilities) else np.zeros(0)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
