"""What confidence is worth, against scikit-learn, slow loops, simulations with a known truth, and sums by hand."""

import json
import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import brier_score_loss, log_loss

from hf_transfer import calibration, metrics
from hf_transfer.calibration import (
    accuracy_at,
    area_under_risk_coverage,
    average_confidence,
    average_thresholded_confidence,
    brier_score,
    describe_calibration,
    difference_of_confidences,
    ece_with_interval,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    risk_coverage,
    scale,
)
from hf_transfer.records import Predictions

NONE = np.zeros(0)


def drawn(examples: int, classes: int = 3, too_sure: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes] of a classifier whose logits are ``too_sure`` times those that draw the labels [n]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, size=(examples, classes))
    labels = (special.softmax(logits, axis=1).cumsum(axis=1) < rng.random((examples, 1))).sum(axis=1)
    return special.softmax(logits * too_sure, axis=1), np.minimum(labels, classes - 1)


def confidence_of(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def with_ties(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of which many are equal, and whether the prediction is right."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.uniform(0.5, 1, examples), 2)
    return confidence, rng.random(examples) < confidence**2


def predictions_of(probabilities: np.ndarray, labels: np.ndarray) -> Predictions:
    ids = np.array([f"e{i}" for i in range(len(labels))])
    predicted = probabilities.argmax(axis=1) if len(labels) else np.zeros(0, dtype=np.int64)
    return Predictions(ids, np.full(len(ids), "books"), predicted, labels, probabilities.astype(np.float32))


# --- temperature ---


class Fixed(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its logits."""

    def fit(self, features, labels):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, features):
        return features

    def predict(self, features):
        return self.classes_[features.argmax(axis=1)]


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 3.0])
def test_the_temperature_and_what_it_gives_are_those_of_scikit_learn(too_sure):
    pytest.importorskip("sklearn", minversion="1.8")  # the first with this method
    from sklearn.frozen import FrozenEstimator

    probabilities, labels = drawn(2000, classes=4, too_sure=too_sure)
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).eps))
    logits += np.random.default_rng(1).normal(size=(2000, 1))  # softmax does not see the shift
    frozen = FrozenEstimator(Fixed().fit(logits, labels))
    theirs = CalibratedClassifierCV(frozen, method="temperature").fit(logits, labels).predict_proba(logits)
    ours = scale(probabilities, fit_temperature(probabilities, labels))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("too_sure", "classes"), [(1.0, 2), (3.0, 2), (3.0, 5), (0.4, 5)])
def test_the_temperature_undoes_what_makes_a_classifier_too_sure_or_too_unsure(too_sure, classes):
    temperature = fit_temperature(*drawn(20_000, classes, too_sure))
    assert temperature == pytest.approx(too_sure, rel=0.04)


def test_no_temperature_of_a_grid_gives_a_smaller_loss():
    probabilities, labels = drawn(500, too_sure=2.0)

    def loss(temperature: float) -> float:
        return log_loss(labels, special.softmax(np.log(probabilities) / temperature, axis=1))

    grid = np.geomspace(0.05, 20, 200)
    losses = [loss(it) for it in grid]
    temperature = fit_temperature(probabilities, labels)
    assert loss(temperature) < min(losses)
    assert temperature == pytest.approx(grid[np.argmin(losses)], rel=0.04)  # a step of the grid is 0.03


def test_the_temperature_stops_at_its_bounds():
    sure = np.tile([[0.9, 0.1]], (10, 1))
    assert fit_temperature(sure, np.zeros(10, dtype=int)) == 0.05  # all right: the colder the better
    assert fit_temperature(sure, np.ones(10, dtype=int)) == 20.0  # all wrong: the hotter the better


def test_a_probability_of_zero_counts_as_the_smallest_that_the_loss_metric_knows():
    assert metrics.SMALLEST_PROBABILITY == calibration.SMALLEST_PROBABILITY
    probabilities, labels = drawn(300, classes=2, too_sure=2.0)
    hard = np.vstack([probabilities, [[1.0, 0.0]]])
    soft = np.vstack([probabilities, [[1.0, float(np.finfo(np.float32).eps)]]])
    temperature = fit_temperature(hard, np.append(labels, 1))
    assert temperature == fit_temperature(soft, np.append(labels, 1))
    assert 2 < temperature < 5, "one example must not decide for 300"
    assert np.isfinite(scale(hard, temperature)).all()


def test_there_is_no_temperature_of_nothing_and_that_of_uniform_probabilities_is_one():
    assert math.isnan(fit_temperature(np.zeros((0, 3)), NONE))
    assert math.isnan(fit_temperature(np.array([[np.nan, np.nan], [0.5, 0.5]]), np.array([0, 1])))
    assert fit_temperature(np.full((4, 3), 1 / 3, dtype=np.float32), np.array([0, 1, 2, 2])) == 1.0


def test_scaling_keeps_the_order_of_classes_and_the_ties_of_examples():
    probabilities, _ = drawn(200, classes=5)
    assert scale(probabilities, 1.0) == pytest.approx(probabilities, abs=1e-6)
    # by hand: the odds 4 to 1 under T = 2 are 2 to 1
    assert scale(np.array([[0.8, 0.2]]), 2.0) == pytest.approx(np.array([[2 / 3, 1 / 3]]))
    for temperature in (0.3, 4.0):
        scaled = scale(probabilities, temperature)
        assert (scaled.argsort(axis=1) == probabilities.argsort(axis=1)).all()
        assert scaled.sum(axis=1) == pytest.approx(1)
        assert len(np.unique(scale(np.tile(probabilities[:1], (1001, 1)), temperature), axis=0)) == 1


# --- calibration error ---


def slow_bins(confidence: np.ndarray, bins: int) -> list[list[int]]:
    """Examples of each bin that has any, one example at a time."""
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, mine in enumerate(confidence):
        below = sum(1 for other in confidence if other < mine)
        equal = sum(1 for other in confidence if other == mine)
        members[math.floor(bins * (below + equal / 2) / len(confidence))].append(i)
    return [it for it in members if it]


@pytest.mark.parametrize("bins", [4, 15])
@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_and_its_bins_are_those_of_a_slow_loop(seed, bins):
    confidence, correct = with_ties(237, seed)
    members = slow_bins(confidence, bins)
    expected = sum(len(it) / 237 * abs(correct[it].mean() - confidence[it].mean()) for it in members)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected)
    found = reliability_bins(confidence, correct, bins)
    assert [it["count"] for it in found] == [len(it) for it in members]
    assert [it["confidence"] for it in found] == pytest.approx([confidence[it].mean() for it in members])
    assert [it["accuracy"] for it in found] == pytest.approx([correct[it].mean() for it in members])


def test_the_calibration_error_of_four_examples_by_hand():
    confidence, correct = np.array([0.9, 0.6, 0.7, 1.0]), np.array([True, True, False, False])
    # halves: {0.6, 0.7} is right once of two, 0.15 from its confidence; {0.9, 1.0} once as well, 0.45 from it
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.45)


def test_bins_hold_equally_many_examples_where_nothing_is_equal():
    counts = [it["count"] for it in reliability_bins(np.random.default_rng(0).random(1000), np.ones(1000), 15)]
    assert len(counts) == 15
    assert set(counts) == {66, 67}


def test_equal_confidences_share_a_bin_whatever_the_order_of_examples():
    confidence, correct = with_ties(400, seed=5)
    shuffled = np.random.default_rng(0).permutation(400)
    one, other = (
        [expected_calibration_error(*arrays), area_under_risk_coverage(*arrays), accuracy_at(*arrays)]
        for arrays in ((confidence, correct), (confidence[shuffled], correct[shuffled]))
    )
    assert one == pytest.approx(other, abs=1e-12)
    constant = np.full(400, 0.75)
    assert reliability_bins(constant, correct) == [{"confidence": 0.75, "accuracy": correct.mean(), "count": 400}]
    assert expected_calibration_error(constant, correct) == pytest.approx(abs(correct.mean() - 0.75))


def test_a_calibrated_classifier_has_the_error_that_noise_alone_makes():
    # E|N(0, v)| = sqrt(2 v / pi) in each bin, where v is the variance of its accuracy
    found, expected = [], []
    for seed in range(60):
        confidence, correct = confidence_of(*drawn(600, seed=seed))
        found.append(expected_calibration_error(confidence, correct))
        bins = np.array_split(np.sort(confidence), 15)
        variances = [(it * (1 - it)).sum() for it in bins]
        expected.append(sum(math.sqrt(2 * v / math.pi) for v in variances) / 600)
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.06)


def test_the_interval_holds_its_value_and_has_no_width_below_zero_or_over_one():
    for seed in range(20):
        too_sure = (1.0, 1.5, 3.0, 9.0)[seed % 4]
        arrays = confidence_of(*drawn(10 + 17 * seed, too_sure=too_sure, seed=seed))
        value, low, high = ece_with_interval(*arrays, 0.95, 200, seed)
        assert value == expected_calibration_error(*arrays)
        assert 0 <= low <= value <= high <= 1
    for seed in range(10):  # at a low level the middle of few resamples may lie on either side
        value, low, high = ece_with_interval(np.full(50, 0.9), np.arange(50) < 25, 0.01, 9, seed)
        assert low <= value <= high
    value, low, high = ece_with_interval(np.array([1.0, 0.98]), np.array([False, False]), 0.95, 100, 0)
    assert (value, high) == (pytest.approx(0.99), pytest.approx(0.99, abs=0.02))
    assert high <= 1


LEVELS = np.linspace(0.52, 0.97, 15)


def cover(gap: np.ndarray, examples: int, simulations: int = 150, level: float = 0.9) -> tuple[float, float]:
    """Share of simulated samples whose interval holds the true error, and the mean width of the interval.

    Confidences stand on 15 levels of equal size, so that the bins are the levels and the truth is known.
    """
    held, widths, truth = 0, [], np.abs(gap).mean()
    confidence = np.repeat(LEVELS, examples // 15)
    accuracy = np.repeat(LEVELS - gap, examples // 15)
    rng = np.random.default_rng(4)
    for seed in range(simulations):
        _, low, high = ece_with_interval(confidence, rng.random(len(accuracy)) < accuracy, level, 200, seed)
        held += low <= truth <= high
        widths.append(high - low)
    return held / simulations, float(np.mean(widths))


@pytest.mark.parametrize("examples", [60, 600])
@pytest.mark.parametrize("gap", [0.0, 0.04, 0.2], ids=["calibrated", "a little too sure", "far too sure"])
def test_the_interval_holds_the_truth_as_often_as_it_says(gap, examples):
    share, _ = cover(np.full(15, gap), examples)
    assert share >= 0.84  # 0.9 less 2.5 standard errors of 150 simulations


def test_the_interval_is_as_narrow_as_a_normal_one_where_every_gap_is_clear():
    gap = np.full(15, 0.3)
    share, width = cover(gap, 3000, simulations=60)
    accuracy = LEVELS - gap
    deviation = math.sqrt((accuracy * (1 - accuracy)).mean() / 3000)
    assert width == pytest.approx(2 * 1.645 * deviation, rel=0.12)
    assert share >= 0.8
    assert cover(gap, 3000, simulations=20, level=0.5)[1] == pytest.approx(2 * 0.674 * deviation, rel=0.15)


def test_the_interval_of_one_clear_gap_is_that_of_the_binomial_distribution():
    # 2 of 40 are right at a confidence of 0.5: resamples hold Binomial(40, 0.05) right ones, the fewest the widest gap
    value, low, high = ece_with_interval(np.full(40, 0.5), np.arange(40) < 2, 0.95, 4000, 0)
    fewest, most = stats.binom.ppf([0.025, 0.975], 40, 0.05) / 40
    widening = math.sqrt(40 / 39)  # one mean is estimated
    assert value == pytest.approx(0.45)
    assert low == pytest.approx(0.45 - widening * (most - 0.05))
    assert high == pytest.approx(0.45 + widening * (0.05 - fewest))


def test_bins_of_one_example_widen_the_interval_as_bins_of_two_do():
    # gaps of 0.2 and 0.8 in turn: of 12 that are drawn, Binomial(12, 0.5) have the large one
    confidence, correct = 0.8 + 1e-9 * np.arange(12), np.arange(12) % 2 == 0
    value, _, high = ece_with_interval(confidence, correct, 0.95, 4000, 0)
    assert len(reliability_bins(confidence, correct)) == 12
    most = stats.binom.ppf(0.975, 12, 0.5)
    assert value == pytest.approx(0.5)
    assert high == pytest.approx(0.5 + math.sqrt(2) * 0.6 * (most - 6) / 12)


def test_the_low_end_tells_a_calibrated_classifier_from_one_that_is_too_sure():
    assert ece_with_interval(*confidence_of(*drawn(2000)), 0.95, 500, 0)[1] == 0
    assert ece_with_interval(*confidence_of(*drawn(2000, too_sure=3.0)), 0.95, 500, 0)[1] > 0.1


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    arrays = confidence_of(*drawn(300, too_sure=2.0))
    one, again, other = (ece_with_interval(*arrays, 0.9, 100, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other


# --- Brier ---


def test_the_brier_score_is_that_of_scikit_learn_over_all_classes():
    pytest.importorskip("sklearn", minversion="1.7")  # the first with several classes
    probabilities, labels = drawn(300, classes=4)
    expected = brier_score_loss(labels, probabilities, labels=[0, 1, 2, 3], scale_by_half=False)
    assert brier_score(probabilities, labels) == pytest.approx(expected)
    probabilities, labels = drawn(300, classes=2)
    assert brier_score(probabilities, labels) == pytest.approx(2 * brier_score_loss(labels, probabilities[:, 1]))


def test_the_brier_score_runs_from_zero_to_two_and_leaves_the_probabilities_as_they_are():
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert [brier_score(sure, np.array(labels)) for labels in ([0, 0], [0, 1], [1, 1])] == [0, 1, 2]
    assert (sure == [[1, 0], [1, 0]]).all()


# --- rejection ---


def test_risk_and_coverage_of_four_examples_by_hand():
    confidence, correct = np.array([0.6, 0.9, 0.8, 0.7]), np.array([False, True, False, True])
    # in order of confidence: right, wrong, right, wrong
    assert risk_coverage(confidence, correct) == [
        [0.25, 0.0],
        [0.5, 0.5],
        [0.75, pytest.approx(1 / 3)],
        [1.0, 0.5],
    ]
    assert area_under_risk_coverage(confidence, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert accuracy_at(confidence, correct, 0.75) == pytest.approx(2 / 3)
    assert accuracy_at(confidence, correct, 0.7) == pytest.approx(2 / 3), "three of four are the fewest that cover 0.7"
    assert accuracy_at(confidence, correct, 1e-9) == 1, "at least one example is taken"
    assert accuracy_at(confidence, correct) == pytest.approx(1 / 2), "four of five parts of four examples are all four"


def test_a_coverage_of_a_whole_number_of_examples_takes_that_many():
    correct = np.arange(100) < 55
    assert 0.55 * 100 > 55  # the trap
    assert accuracy_at(np.linspace(1, 0, 100), correct, 0.55) == 1


def test_ties_give_the_risk_expected_over_their_random_orders():
    confidence, correct = with_ties(60, seed=3)
    rng, curves = np.random.default_rng(0), []
    for _ in range(4000):
        order = np.lexsort((rng.random(60), -confidence))
        curves.append(np.cumsum(~correct[order]) / np.arange(1, 61))
    mean = np.mean(curves, axis=0)
    assert len(np.unique(confidence)) < 50
    found = risk_coverage(confidence, correct)
    assert [risk for _, risk in found] == pytest.approx([mean[round(it * 60) - 1] for it, _ in found], abs=0.01)
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(mean.mean(), abs=0.002)
    assert accuracy_at(confidence, correct, 0.8) == pytest.approx(1 - mean[47], abs=0.004)


def test_a_constant_confidence_gains_nothing_by_rejection():
    correct = np.arange(40) % 4 > 0
    curve = risk_coverage(np.full(40, 0.6), correct)
    assert [risk for _, risk in curve] == pytest.approx([0.25] * len(curve))
    assert accuracy_at(np.full(40, 0.6), correct, 0.5) == pytest.approx(0.75)


@pytest.mark.parametrize(("examples", "points"), [(1, 1), (7, 7), (50, 50), (51, 50), (4001, 50)])
def test_the_curve_has_at_most_fifty_points_and_ends_with_all_examples(examples, points):
    confidence, correct = confidence_of(*drawn(examples))
    curve = risk_coverage(confidence, correct)
    coverages = [coverage for coverage, _ in curve]
    assert len(curve) == points
    assert coverages == sorted(set(coverages))
    assert curve[-1] == [1.0, pytest.approx(1 - correct.mean())]
    assert np.diff(coverages, prepend=0).max() <= 1 / points + 1 / examples


# --- accuracy without labels ---


def test_thresholded_confidence_by_hand():
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, True, False, True, False])
    # 2 of 5 are wrong, and 2 of 5 lie below 0.7; of the target, 0.7 and 0.95 do not
    target = np.array([0.95, 0.7, 0.69, 0.5])
    assert average_thresholded_confidence(confidence, correct, target) == 0.5
    assert average_thresholded_confidence(confidence, ~correct, target) == 0.25  # 3 of 5 lie below 0.8
    assert average_thresholded_confidence(confidence, np.full(5, True), target) == 1
    assert average_thresholded_confidence(confidence, np.full(5, False), target[1:]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_target_with_the_confidences_of_the_source_gets_its_accuracy(seed):
    confidence, correct = with_ties(97, seed)
    assert average_thresholded_confidence(confidence, correct, confidence) == pytest.approx(correct.mean())
    constant = np.full(97, 0.9)
    assert average_thresholded_confidence(constant, correct, constant) == pytest.approx(correct.mean())
    assert difference_of_confidences(confidence, correct, confidence) == pytest.approx(correct.mean())


def test_thresholded_confidence_is_that_of_a_search_over_thresholds():
    confidence, correct = confidence_of(*drawn(400))
    target = drawn(300, too_sure=0.6, seed=9)[0].max(axis=1)
    shares = [abs((confidence < it).mean() - (1 - correct.mean())) for it in confidence]
    expected = (target >= confidence[np.argmin(shares)]).mean()
    assert average_thresholded_confidence(confidence, correct, target) == pytest.approx(expected)


def test_mean_confidences_by_hand_within_zero_and_one():
    source, target = np.array([0.9, 0.7]), np.array([0.6, 0.5])
    assert average_confidence(target) == pytest.approx(0.55)
    # confidence falls from 0.8 to 0.55
    assert difference_of_confidences(source, np.array([True, True]), target) == pytest.approx(0.75)
    assert difference_of_confidences(source, np.array([False, False]), target) == 0
    assert difference_of_confidences(target, np.array([True, True]), source) == 1


def test_nothing_is_said_about_no_examples_or_of_confidences_that_are_not_finite():
    broken = np.array([0.5, np.nan])
    for confidence, correct in ((NONE, NONE), (broken, np.array([True, False]))):
        values = [
            expected_calibration_error(confidence, correct),
            *ece_with_interval(confidence, correct, 0.95, 10, 0),
            area_under_risk_coverage(confidence, correct),
            accuracy_at(confidence, correct),
            average_confidence(confidence),
            average_thresholded_confidence(confidence, correct, np.array([0.5])),
            average_thresholded_confidence(np.array([0.5]), np.array([True]), confidence),
            difference_of_confidences(confidence, correct, np.array([0.5])),
            difference_of_confidences(np.array([0.5]), np.array([True]), confidence),
        ]
        assert np.isnan(values).all()
        assert reliability_bins(confidence, correct) == []
        assert risk_coverage(confidence, correct) == []
    assert math.isnan(brier_score(np.zeros((0, 2)), NONE))
    assert math.isnan(brier_score(broken[None], np.array([0])))


# --- all of it ---

FIELDS = ["role", "count", "accuracy", "ece", "ece_low", "ece_high", "brier", "temperature", "ece_scaled"]
FIELDS += ["bins", "bins_scaled", "risk_coverage", "aurc", "accuracy_at_80", "estimates"]


def described(validation: tuple, **tests: tuple) -> dict[str, dict]:
    entries = describe_calibration(
        predictions_of(*validation), {role: predictions_of(*it) for role, it in tests.items()}, 0.95, 200, 0
    )
    assert [list(entry) for entry in entries] == [FIELDS] * len(tests)
    json.dumps(entries, allow_nan=False)
    return {entry["role"]: entry for entry in entries}


def test_a_description_says_of_each_role_what_the_functions_say():
    validation, same, other = (drawn(900, too_sure=factor, seed=seed) for seed, factor in enumerate((3.0, 3.0, 4.0)))
    entries = described(validation, in_domain=same, shifted=other)
    assert list(entries) == ["in_domain", "shifted"]
    for entry, (probabilities, labels) in zip(entries.values(), (same, other), strict=True):
        confidence, correct = confidence_of(probabilities, labels)
        assert entry["temperature"] == pytest.approx(fit_temperature(*validation), rel=1e-4)
        scaled = scale(probabilities, entry["temperature"]).max(axis=1)
        near = {"rel": 1e-3, "abs": 1e-6}  # probabilities were handed over as float32
        assert entry["count"] == 900
        assert entry["accuracy"] == pytest.approx(correct.mean())
        assert entry["ece"] == pytest.approx(expected_calibration_error(confidence, correct), **near)
        assert 0 < entry["ece_low"] < entry["ece"] < entry["ece_high"]
        assert entry["brier"] == pytest.approx(brier_score(probabilities, labels), **near)
        assert entry["ece_scaled"] == pytest.approx(expected_calibration_error(scaled, correct), **near)
        assert entry["ece_scaled"] < entry["ece"] / 2
        for name, values in (("bins", confidence), ("bins_scaled", scaled)):
            means = [it["confidence"] for it in entry[name]]
            assert means == pytest.approx([it["confidence"] for it in reliability_bins(values, correct)], **near)
        assert entry["aurc"] == pytest.approx(area_under_risk_coverage(confidence, correct), abs=1e-3)
        assert entry["risk_coverage"][-1] == [1.0, pytest.approx(1 - correct.mean())]
        assert entry["accuracy_at_80"] == pytest.approx(accuracy_at(confidence, correct, 0.8), abs=2e-3)


def test_estimates_are_made_for_shifted_examples_only_and_without_their_labels():
    validation, other = drawn(900, too_sure=3.0), drawn(700, too_sure=2.0, seed=1)
    entries = described(validation, in_domain=other, shifted=other)
    assert entries["in_domain"]["estimates"] is None
    temperature = fit_temperature(*validation)
    source, right = scale(validation[0], temperature).max(axis=1), confidence_of(*validation)[1]
    target = scale(other[0], temperature).max(axis=1)
    assert entries["shifted"]["estimates"] == {
        "atc": pytest.approx(average_thresholded_confidence(source, right, target), abs=2e-3),
        "average_confidence": pytest.approx(target.mean(), abs=1e-4),
        "difference_of_confidences": pytest.approx(right.mean() - source.mean() + target.mean(), abs=1e-4),
    }
    relabelled = described(validation, shifted=(other[0], 2 - other[1]))
    assert relabelled["shifted"]["estimates"] == entries["shifted"]["estimates"]
    assert relabelled["shifted"]["accuracy"] != entries["shifted"]["accuracy"]


def test_without_validation_there_is_no_temperature_and_no_estimate():
    nothing = (np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    entry = described(nothing, shifted=drawn(200))["shifted"]
    assert [entry[name] for name in ("temperature", "ece_scaled", "estimates", "bins_scaled")] == [None, None, None, []]
    assert entry["ece"] > 0
    assert len(entry["bins"]) == 15


def test_a_diverged_model_or_an_empty_role_leaves_holes_and_raises_nothing():
    diverged = (np.full((20, 3), np.nan), np.zeros(20, dtype=np.int64))
    nothing = (np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    entries = described(drawn(50), in_domain=diverged, shifted=nothing)
    for entry, count in zip(entries.values(), (20, 0), strict=True):
        assert entry["count"] == count
        undefined = ["ece", "ece_low", "ece_high", "brier", "ece_scaled", "aurc", "accuracy_at_80", "estimates"]
        assert [entry[name] for name in undefined] == [None] * 8
        assert entry["bins"] == entry["bins_scaled"] == entry["risk_coverage"] == []
    assert entries["shifted"]["accuracy"] is None
    assert described(diverged, in_domain=drawn(50))["in_domain"]["temperature"] is None


def test_each_role_draws_its_own_resamples_and_does_not_depend_on_the_other():
    one = drawn(300, too_sure=2.0)
    both = described(one, in_domain=one, shifted=one)
    assert both["in_domain"]["ece_high"] != both["shifted"]["ece_high"]
    assert described(one, shifted=one)["shifted"] == both["shifted"]
