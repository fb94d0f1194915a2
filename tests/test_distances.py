"""Distances agree with scipy, naive loops and examples by hand; without a difference they are small and tests hold."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.spatial.distance import jensenshannon, pdist

from hf_transfer import distances
from hf_transfer.config import DataConfig
from hf_transfer.distances import (
    coral_distance,
    describe_distances,
    frechet_distance,
    jensen_shannon,
    label_shift,
    length_ratio,
    maximum_mean_discrepancy,
    most_shifted_words,
    out_of_vocabulary_rate,
    proxy_a_distance,
    word_counts,
)
from hf_transfer.errors import InputError
from hf_transfer.sources import load_source

FEATURE_DISTANCES = {
    "proxy_a": lambda source, target: proxy_a_distance(source, target, seed=0)[0],
    "mmd": lambda source, target: maximum_mean_discrepancy(source, target, permutations=10, seed=0)[0],
    "coral": coral_distance,
    "frechet": frechet_distance,
}
FEATURE_KEYS = ("proxy_a", "proxy_a_p", "mmd", "mmd_p", "coral", "frechet")


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def correlated(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


# Proxy A-distance


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_proxy_a_distance_of_two_normals_is_that_of_the_best_linear_classifier(shift):
    # the best threshold lies half way, and errs with probability Phi(-shift / 2) on either side
    expected = 2 * (1 - 2 * stats.norm.cdf(-shift / 2))
    found, p_value = proxy_a_distance(normal(2000, 1, 0), normal(2000, 1, 1, shift), seed=0)
    assert found == pytest.approx(expected, abs=0.1), "4 / sqrt(4000) = 0.06 is one standard error at most"
    assert p_value < 1e-9


def test_sides_that_are_always_told_apart_are_at_2_and_as_sure_as_the_held_out_half_allows():
    found, p_value = proxy_a_distance(normal(20, 3, 0), normal(20, 3, 1, shift=50), seed=0)
    assert found == 2
    assert p_value == pytest.approx(0.5**20), "ten of each side are held out and all are right"


def test_two_halves_of_one_distribution_are_near_0_however_many_features_could_tell_the_learnt_rows_apart():
    found, p_value = proxy_a_distance(normal(60, 200, 0), normal(60, 200, 1), seed=0)
    assert 0 <= found < 0.5, "judged on what it learnt from, the classifier would be at 2"
    assert p_value > 0.05


def test_proxy_a_distance_is_never_negative():
    found = [proxy_a_distance(normal(20, 3, seed), normal(20, 3, 100 + seed), seed)[0] for seed in range(12)]
    assert min(found) == 0, "about half of these classifiers do worse than chance"
    assert max(found) > 0


def test_a_larger_side_is_no_easier_to_tell():
    found, p_value = proxy_a_distance(normal(900, 4, 0), normal(60, 4, 1), seed=0)
    assert found < 0.5, "always naming the larger side errs in 6% of all rows, which would give 1.75"
    assert p_value > 0.05


def test_proxy_a_distance_does_not_depend_on_the_scale_of_a_feature():
    source, target = normal(80, 3, 0), normal(80, 3, 1, shift=0.4)
    stretch = np.array([1e-4, 1.0, 1e5])
    assert proxy_a_distance(source * stretch, target * stretch, 0) == proxy_a_distance(source, target, 0)


def test_the_distance_learns_from_four_fifths_five_times_and_the_p_value_from_one_half(monkeypatch):
    learnt = []
    monkeypatch.setattr(distances, "_right_answers", lambda sides, learns: learnt.append(learns) or 0)
    assert proxy_a_distance(normal(50, 2, 0), normal(70, 2, 1), seed=0) == (0, 1)
    assert [learns.sum() for learns in learnt] == [40] * 5 + [25]
    assert (np.sum(learnt[:5], axis=0) == 4).all(), "each example is held out once"


def test_proxy_a_distance_repeats_for_a_seed_and_draws_anew_for_another():
    source, target = normal(100, 3, 0), normal(60, 3, 1, shift=0.3)
    found = [proxy_a_distance(source, target, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_without_a_difference_three_to_seven_percent_of_proxy_a_p_values_are_below_five_percent():
    p_values = [distances._two_sample_p_value(normal(2 * 60, 3, seed).reshape(2, 60, 3)) for seed in range(500)]
    assert 0.03 <= np.mean(np.array(p_values) <= 0.05) <= 0.07


# Maximum mean discrepancy


def naive_mmd(source: np.ndarray, target: np.ndarray) -> float:
    """Gretton et al. 2012, equation 3, term by term."""
    bandwidth = np.median(pdist(np.concatenate([source, target])))

    def kernel(x, y):
        return math.exp(-sum((x - y) ** 2) / (2 * bandwidth**2))

    def inside(rows):
        return np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)])

    return inside(source) + inside(target) - 2 * np.mean([kernel(x, y) for x in source for y in target])


def test_mmd_by_hand():
    # |x - y| of 0, 1 | 2, 3: six distances 1 1 1 2 2 3, their median 1.5; k(distance) = exp(-distance^2 / 4.5)
    k1, k2, k3 = (math.exp(-(distance**2) / 4.5) for distance in (1, 2, 3))
    found, _ = maximum_mean_discrepancy(column(0, 1), column(2, 3), permutations=1, seed=0)
    assert found == pytest.approx(k1 + k1 - 2 * (k2 + k3 + k1 + k2) / 4)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_mmd_agrees_with_the_sum_over_pairs_far_from_the_origin_too(offset):
    source, target = correlated(9, 4, 0) + offset, correlated(6, 4, 1) + offset
    found, _ = maximum_mean_discrepancy(source, target, permutations=1, seed=0)
    assert found == pytest.approx(naive_mmd(source, target), rel=1e-6)


def test_the_p_value_of_mmd_agrees_with_all_splits():
    rows = np.concatenate([normal(4, 2, 5), normal(3, 2, 6, shift=0.6)])
    splits = [np.isin(np.arange(7), chosen) for chosen in itertools.combinations(range(7), 4)]
    every = [naive_mmd(rows[split], rows[~split]) for split in splits]  # the first one is the observed one
    exact = np.mean(np.array(every) >= every[0] - 1e-12)
    assert 0.05 < exact < 0.95, "or the test says little"
    _, p_value = maximum_mean_discrepancy(rows[:4], rows[4:], permutations=4000, seed=0)
    assert p_value == pytest.approx(exact, abs=0.025), "three standard errors of 4,000 draws"


def test_mirrored_splits_count_as_equal():
    # of six equally likely splits of 0 1 2 3, the observed one and its mirror give the most: one in three
    _, p_value = maximum_mean_discrepancy(column(0, 1), column(2, 3), permutations=4000, seed=0)
    assert p_value == pytest.approx(1 / 3, abs=0.025)


def test_without_a_difference_mmd_is_0_on_average_and_its_p_values_are_uniform():
    found = np.array([maximum_mean_discrepancy(normal(25, 3, s), normal(20, 3, 5000 + s), 99, s) for s in range(1000)])
    values, p_values = found.T
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert (values < 0).mean() > 0.3, "an estimate without bias falls on both sides"
    assert 0.03 <= np.mean(p_values <= 0.05) <= 0.07
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_a_clear_difference_has_the_smallest_p_value_that_the_permutations_allow():
    found, p_value = maximum_mean_discrepancy(normal(40, 5, 0), normal(40, 5, 1, shift=2), permutations=199, seed=0)
    assert found > 0.3
    assert p_value == 1 / 200


def test_mmd_sees_a_difference_in_spread_alone():
    source, target = normal(100, 3, 0), 3 * normal(100, 3, 1)
    assert maximum_mean_discrepancy(source, target, permutations=199, seed=0)[1] == 1 / 200
    assert frechet_distance(source, target) > 20 * frechet_distance(source, normal(100, 3, 2))
    assert coral_distance(source, target) > 20 * coral_distance(source, normal(100, 3, 2))


def test_mmd_of_many_examples_looks_at_a_subsample_that_the_seed_fixes(monkeypatch):
    seen = []
    kernel = distances._gaussian_kernel
    monkeypatch.setattr(distances, "_gaussian_kernel", lambda rows: seen.append(rows) or kernel(rows))
    source, target = normal(1200, 2, 0), normal(30, 2, 1)
    found = [maximum_mean_discrepancy(source, target, 9, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert (seen[0] == seen[1]).all() and (seen[0] != seen[2]).any()
    assert [len(rows) for rows in seen] == [530] * 3
    assert len(np.unique(seen[0], axis=0)) == 530, "drawn without replacement"
    assert np.isin(seen[0][:500], source).all() and (seen[0][500:] == target).all()


def test_permutations_depend_on_the_seed():
    p_values = [maximum_mean_discrepancy(normal(20, 2, 0), normal(20, 2, 1), 200, seed)[1] for seed in (1, 1, 2, 3)]
    assert p_values[0] == p_values[1]
    assert len(set(p_values)) > 1


def test_mmd_of_equal_rows_is_0_and_says_nothing():
    assert maximum_mean_discrepancy(np.ones((4, 2)), np.ones((5, 2)), permutations=20, seed=0) == (0, 1)


def test_copies_do_not_take_the_bandwidth_to_0():
    source, target = column(*[0.1] * 30, 1.1), column(*[0.1] * 30, 3.1)
    found, p_value = maximum_mean_discrepancy(source, target, permutations=200, seed=0)
    assert np.isfinite(found) and p_value > 0.3
    for seed in range(5):  # the difference of sums that stands for a distance of 0 may be 1e-16 instead
        copies = np.repeat(normal(2, 50, seed), [30, 2], axis=0)
        assert distances._gaussian_kernel(copies)[0, 31] == pytest.approx(math.exp(-0.5))


# CORAL and Fréchet distance


def test_coral_distance_by_hand():
    assert coral_distance(column(0, 2), column(0, 4)) == pytest.approx((2 - 8) ** 2 / 4), "variances 2 and 8, d = 1"
    source = np.array([[0.0, 0], [2, 2]])  # covariance [[2, 2], [2, 2]]
    target = np.array([[5.0, 0], [7, 0]])  # covariance [[2, 0], [0, 0]]
    assert coral_distance(source, target) == pytest.approx((4 + 4 + 4) / (4 * 4))


def test_coral_distance_does_not_see_means():
    source, target = correlated(50, 4, 0), correlated(40, 4, 1)
    assert coral_distance(source + 7, target) == pytest.approx(coral_distance(source, target))
    assert coral_distance(source, source - 3) == pytest.approx(0, abs=1e-20)


def test_frechet_distance_by_hand():
    # one feature: (difference of means)^2 + (difference of standard deviations)^2 = 1 + (2 sqrt 2 - sqrt 2)^2
    assert frechet_distance(column(0, 2), column(0, 4)) == pytest.approx(3)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    source, target = correlated(80, 6, 0), correlated(50, 6, 1)
    covariances = np.cov(source, rowvar=False), np.cov(target, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    means = ((source.mean(axis=0) - target.mean(axis=0)) ** 2).sum()
    expected = means + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert frechet_distance(source, target) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(target, source) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_real_and_right_with_more_features_than_examples():
    # in orthogonal planes the root vanishes: all that is left are the means and both total variances
    source, target = np.zeros((3, 10)), np.zeros((4, 10))
    source[:, :2], target[:, 5:8] = normal(3, 2, 0), normal(4, 3, 1)
    means = ((source.mean(axis=0) - target.mean(axis=0)) ** 2).sum()
    expected = means + source.var(axis=0, ddof=1).sum() + target.var(axis=0, ddof=1).sum()
    assert frechet_distance(source, target) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(5, 30), (200, 4)])
def test_frechet_distance_of_a_side_to_itself_is_0_and_never_less(shape):
    source = correlated(*shape, 3)
    assert 0 <= frechet_distance(source, source) < 1e-9
    assert 0 <= frechet_distance(source, source[::-1].copy()) < 1e-9


# All of features


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_a_shifted_and_stretched_target_is_far_and_another_sample_is_near(name):
    distance, source = FEATURE_DISTANCES[name], normal(300, 8, 0)
    near = distance(source, normal(300, 8, 1))
    far = distance(source, 2 * normal(300, 8, 2, shift=1))
    assert far > 8 * abs(near)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_half_precision_features_are_computed_in_double(name):
    source, target = correlated(60, 3, 0).astype(np.float16), correlated(60, 3, 1).astype(np.float16)
    distance = FEATURE_DISTANCES[name]
    assert distance(source, target) == distance(source.astype(np.float64), target.astype(np.float64))


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_one_example_has_no_distance_and_two_have(name):
    distance = FEATURE_DISTANCES[name]
    assert math.isnan(distance(normal(1, 3, 0), normal(9, 3, 1)))
    assert math.isnan(distance(normal(9, 3, 0), np.empty((0, 3))))
    assert math.isfinite(distance(normal(2, 3, 0), normal(2, 3, 1)))


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_feature_that_is_not_finite_is_refused_with_its_place(name, value):
    target = normal(5, 3, 1)
    target[3, 2] = value
    with pytest.raises(InputError, match=rf"features of the target: row 3 holds {value} in column 2.*leave them out"):
        FEATURE_DISTANCES[name](normal(5, 3, 0), target)


# Words


def test_words_are_lower_cased_runs_of_letters_digits_and_marks():
    assert word_counts(["The knife -- the KNIFE!", "knife 9x"]) == {"the": 2, "knife": 3, "9x": 1}
    assert word_counts(["Don't 'quote' rock'n'roll"]) == {"don't": 1, "quote": 1, "rock'n'roll": 1}
    assert word_counts(["Ärger, naïve; Öl"]) == {"ärger": 1, "naïve": 1, "öl": 1}
    assert word_counts([]) == word_counts(["", "?! ... -"]) == {}


def test_typing_makes_no_different_word():
    assert word_counts(["don’t don't"]) == {"don't": 2}
    assert word_counts(["cafe\u0301 café"]) == {"café": 2}, "accent typed as a mark of its own, or with the letter"
    assert word_counts(["ＡＢＣ abc"]) == {"abc": 2}


def test_vowel_signs_do_not_cut_words_and_lone_marks_are_none():
    assert word_counts(["हिन्दी किताब। किताब"]) == {"हिन्दी": 1, "किताब": 2}
    assert word_counts(["می\u200cخواهم"]).total() == 1, "one word of Persian, with a joiner inside"
    assert word_counts(["good ❤️ 👩‍👧"]) == {"good": 1}


@pytest.mark.parametrize("seed", range(3))
def test_jensen_shannon_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 50), rng.integers(0, 9, 50)
    counts = [Counter({f"w{i}": int(count) for i, count in enumerate(side) if count}) for side in (a, b)]
    assert jensen_shannon(*counts) == pytest.approx(jensenshannon(a, b, base=2) ** 2)


def test_jensen_shannon_by_hand():
    # a = (1/2, 1/2), b = (1, 0): middle (3/4, 1/4); in bits (1/2 log2 2/3 + 1/2 log2 2 + log2 4/3) / 2
    expected = (math.log2(2 / 3) / 2 + 1 / 2 + math.log2(4 / 3)) / 2
    assert jensen_shannon(Counter(x=3, y=3), Counter(x=7)) == pytest.approx(expected)


def test_jensen_shannon_is_0_for_equal_shares_and_1_without_a_common_word():
    many = Counter({f"w{i}": i + 1 for i in range(200)})
    assert jensen_shannon(many, Counter({word: 3 * count for word, count in many.items()})) == pytest.approx(
        0, abs=1e-12
    )
    assert jensen_shannon(many, Counter({word.upper(): 7 for word in many})) == pytest.approx(1)
    assert 0 <= jensen_shannon(many, many) <= jensen_shannon(many, Counter(z=1)) <= 1


@pytest.mark.parametrize("seed", range(40))
def test_rounding_takes_jensen_shannon_neither_below_0_nor_above_1(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(1, 100, (2, 30)).tolist()
    assert jensen_shannon(Counter(dict(enumerate(a))), Counter(dict(enumerate(b, start=30)))) <= 1
    large = rng.integers(10**14, 10**15, 30)  # shares that differ in their last digits
    nearly = large + rng.integers(0, 3, 30)
    assert jensen_shannon(*(Counter(dict(enumerate(side.tolist()))) for side in (large, nearly))) >= 0


def test_jensen_shannon_of_no_words_is_undefined():
    assert math.isnan(jensen_shannon(Counter(), Counter(x=1)))
    assert math.isnan(jensen_shannon(Counter(x=1), Counter()))
    assert most_shifted_words(Counter(), Counter(x=1)) == []


def test_most_shifted_words_come_by_contribution_and_then_by_the_alphabet():
    a, b = Counter(the=50, page=30, new=10, old=10), Counter(the=52, knife=28, new=10, old=10)
    assert most_shifted_words(a, b) == [["page", 0.3, 0.0], ["knife", 0.0, 0.28], ["the", 0.5, 0.52]]
    assert most_shifted_words(a, b, most=1) == [["page", 0.3, 0.0]]
    assert [word for word, _, _ in most_shifted_words(Counter(c=1, d=1), Counter(b=1, a=1))] == ["a", "b", "c", "d"]


def test_contributions_of_the_most_shifted_words_add_up_to_the_divergence():
    rng = np.random.default_rng(0)
    a, b = (Counter({f"w{i}": int(count) for i, count in enumerate(rng.integers(1, 30, 40))}) for _ in range(2))
    shares = most_shifted_words(a, b, most=40)
    bits = [
        (p * math.log2(2 * p / (p + q)) + q * math.log2(2 * q / (p + q))) / 2 for _, p, q in shares
    ]  # both occur everywhere, so no logarithm of 0
    assert bits == sorted(bits, reverse=True)
    assert sum(bits) == pytest.approx(jensen_shannon(a, b))
    assert len(most_shifted_words(a, b)) == 20


def test_a_rare_word_of_one_side_outweighs_the_same_difference_of_a_common_word():
    a, b = Counter(the=500, knife=0, rest=500), Counter(the=520, knife=20, rest=460)
    assert [word for word, _, _ in most_shifted_words(a, b)] == ["knife", "rest", "the"]


def test_out_of_vocabulary_rate_counts_repetitions():
    assert out_of_vocabulary_rate(Counter(the=9, book=1), Counter(the=6, knife=3, pan=1)) == 0.4
    assert out_of_vocabulary_rate(Counter(x=1), Counter(x=5)) == 0
    assert out_of_vocabulary_rate(Counter(x=0), Counter(x=5)) == 1
    assert math.isnan(out_of_vocabulary_rate(Counter(x=1), Counter()))


def test_length_ratio_is_of_mean_words_per_text():
    assert length_ratio(Counter(a=6, b=2), 4, Counter(c=9), 3) == 1.5, "3 words a text over 2"
    assert length_ratio(Counter(a=6), 3, Counter(), 2) == 0
    assert math.isnan(length_ratio(Counter(), 3, Counter(c=9), 3))
    assert math.isnan(length_ratio(Counter(c=9), 3, Counter(), 0))


# Labels


def test_label_shift_is_half_the_sum_of_differences_of_shares():
    assert label_shift(["pos", "pos", "pos", "neg"], ["pos", "neg"]) == pytest.approx((0.25 + 0.25) / 2)
    assert label_shift([0, 0, 1, 2], [0, 1, 1, 1]) == pytest.approx((0.25 + 0.5 + 0.25) / 2)
    assert label_shift(np.array([0, 1]), [1, 0, 1, 0]) == 0
    assert label_shift(np.array(["a"]), np.array(["b", "b"])) == 1


@pytest.mark.parametrize(
    "labels", [None, [], [0.5, 1.0], [["a"], ["a", "b"]], np.eye(2), np.array([0.1, 0.9]), [None, "a"]]
)
def test_labels_that_are_no_classes_have_no_shift(labels):
    assert label_shift(labels, ["a", "b"]) is None
    assert label_shift(["a", "b"], labels) is None


# All together


KEYS = [*FEATURE_KEYS, "jensen_shannon", "oov_rate", "length_ratio", "label_shift", "words"]


def test_a_description_holds_every_distance_under_its_own_name():
    source, target = normal(40, 3, 0), normal(30, 3, 1, shift=0.5)
    texts = ["a book of pages", "a page"], ["a sharp knife"]
    found = describe_distances(*texts, source, target, [0, 1], [1], seed=3, permutations=50)
    assert list(found) == KEYS
    assert (found["proxy_a"], found["proxy_a_p"]) == proxy_a_distance(source, target, 3)
    assert (found["mmd"], found["mmd_p"]) == maximum_mean_discrepancy(source, target, 50, 3)
    assert found["coral"] == coral_distance(source, target)
    assert found["frechet"] == frechet_distance(source, target)
    counts = [word_counts(side) for side in texts]
    assert found["jensen_shannon"] == jensen_shannon(*counts)
    assert found["words"] == most_shifted_words(*counts)
    assert found["oov_rate"] == pytest.approx(2 / 3)
    assert found["length_ratio"] == 1, "three words over the mean of four and two"
    assert found["label_shift"] == 0.5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_default_permutations_resolve_a_p_value_of_one_in_five_hundred():
    found = describe_distances(["a"], ["a"], normal(20, 2, 0), normal(20, 2, 1, shift=9), None, None, seed=0)
    assert found["mmd_p"] == 1 / 501


@pytest.mark.parametrize("missing", ["source", "target", "both"])
def test_without_features_and_labels_there_are_words_only(missing):
    features = [None if missing in (side, "both") else normal(9, 2, 0) for side in ("source", "target")]
    labels = [None if missing in (side, "both") else [0, 1] for side in ("source", "target")]
    found = describe_distances(["a b"], ["b c"], *features, *labels, seed=0)
    assert list(found) == KEYS
    assert all(found[key] is None for key in (*FEATURE_KEYS, "label_shift"))
    assert found["jensen_shannon"] == 0.5


def test_what_is_undefined_is_null():
    found = describe_distances(["a"], ["?"], normal(1, 2, 0), normal(5, 2, 1), [], [0], seed=0)
    assert {key for key, value in found.items() if value is None} == set(KEYS) - {"length_ratio", "words"}
    assert found["length_ratio"] == 0 and found["words"] == []


def test_more_than_a_thousand_rows_are_subsampled_the_same_way_for_a_seed(monkeypatch):
    seen = []
    monkeypatch.setattr(distances, "coral_distance", lambda source, target: seen.append((source, target)) or 0.0)
    source, target = normal(1500, 2, 0), normal(1001, 2, 1)
    for seed in (0, 0, 1):
        describe_distances(["a"], ["b"], source, target, None, None, seed=seed, permutations=2)
    assert all(len(side) == 1000 for pair in seen for side in pair)
    assert np.isin(seen[0][0], source).all() and np.isin(seen[0][1], target).all()
    assert len(np.unique(seen[0][0], axis=0)) == 1000, "drawn without replacement"
    assert (seen[0][0] == seen[1][0]).all() and (seen[0][1] == seen[1][1]).all()
    assert (seen[0][0] != seen[2][0]).any()


def test_bundled_reviews_of_kitchen_things_are_further_from_books_than_books_and_say_why():
    rows = load_source(DataConfig()).rows.to_list()
    texts = {name: [row["text"] for row in rows if row["domain"] == name] for name in ("books", "kitchen")}
    labels = {name: [row["label"] for row in rows if row["domain"] == name] for name in texts}
    half = len(texts["books"]) // 2
    order = np.random.default_rng(0).permutation(len(texts["books"]))
    first, second = ([texts["books"][i] for i in part] for part in (order[:half], order[half:]))
    across = describe_distances(first, texts["kitchen"][:half], None, None, labels["books"], labels["kitchen"], seed=0)
    within = describe_distances(first, second, None, None, None, None, seed=0)
    assert within["jensen_shannon"] < across["jensen_shannon"] - 0.1
    assert within["oov_rate"] < across["oov_rate"] - 0.1
    assert across["label_shift"] == 0, "as many of each class in every domain"
    assert 0.8 < across["length_ratio"] < 1.25

    shifted = most_shifted_words(word_counts(texts["books"]), word_counts(texts["kitchen"]))
    of_kitchen = {word for word, books, kitchen in shifted if kitchen > books}
    of_books = {word for word, books, kitchen in shifted if books > kitchen}
    assert {"hot", "handle", "plastic", "lid"} <= of_kitchen
    assert {"page", "pages", "book", "chapter"} <= of_books
