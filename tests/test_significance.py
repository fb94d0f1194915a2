"""Intervals cover as often as they say, tests agree with SciPy, statsmodels and sacrebleu, A/A finds 5%."""

import time

import numpy as np
import pytest
from scipy import stats
from sentences import references_of, translated, with_mistakes

from hf_transfer import significance, statistics
from hf_transfer.errors import InputError
from hf_transfer.metrics import METRICS, arrays_of, score, score_with_interval
from hf_transfer.records import Predictions
from hf_transfer.significance import (
    Difference,
    hierarchical_interval,
    hierarchical_interval_of_means,
    holm,
    paired_difference,
    paired_difference_of_means,
    shift_difference,
    verdict,
)
from hf_transfer.statistics import derived_seed
from hf_transfer.translation_scores import sentence_statistics

Models = list[Predictions]


def make(reference, predicted, probabilities=None) -> Predictions:
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    ids = np.arange(len(reference)).astype(str)
    given = predicted.reshape(len(predicted), -1) if probabilities is None else probabilities
    return Predictions(ids, np.full(len(ids), "books"), predicted, reference, np.asarray(given, np.float32))


def right(flags) -> Predictions:
    """Two classes; ``flags`` [n] says which examples are right. References alternate."""
    flags = np.asarray(flags, bool)
    reference = np.arange(len(flags)) % 2
    return make(reference, np.where(flags, reference, 1 - reference))


def models(problem: str, count: int = 60, number: int = 2, seed: int = 0) -> Models:
    """Predictions of one kind by several models that are right on much the same examples."""
    rng = np.random.default_rng(seed)
    if problem == "regression":
        reference = rng.normal(3, 1, count)
        return [make(reference, (reference + rng.normal(size=count)).astype(np.float32)) for _ in range(number)]
    if problem == "translation":
        return [translated(count, 0.3, number * seed + one, reference_seed=seed) for one in range(number)]
    if problem == "multi_label":
        reference = (rng.random((count, 3)) < 0.4).astype(int)
        kept = [rng.random((count, 3)) < 0.8 for _ in range(number)]
        return [make(reference, np.where(keep, reference, 1 - reference)) for keep in kept]
    reference, difficulty = rng.integers(0, 3, count), rng.normal(size=(count, 1))
    found = []
    for _ in range(number):
        logits = rng.normal(size=(count, 3)) + (1.5 + difficulty) * (reference[:, None] == np.arange(3))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found.append(make(reference, probabilities.argmax(axis=1), probabilities))
    return found


CASES = [(name, problem) for name, metric in METRICS.items() for problem in metric.problems]


# --- differences on fixed inputs ---


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_a_difference_is_positive_where_a_is_better_whichever_way_the_metric_points(name, problem):
    a, b = models(problem)
    better = score(name, a) - score(name, b) if METRICS[name].higher_is_better else score(name, b) - score(name, a)
    found = paired_difference(name, [a], [b], 0.95, 200, 0)
    back = paired_difference(name, [b], [a], 0.95, 200, 0)
    assert found.difference == pytest.approx(better) == pytest.approx(-back.difference)
    assert found.low <= better <= found.high
    assert (found.count, found.smallest_count, found.seeds_a, found.seeds_b) == (60, 60, 1, 1)


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_intervals_and_p_values_equal_those_of_single_examples(name, problem):
    """Nothing is grouped here: every example is drawn, or swapped, on its own."""
    a, b = models(problem, 40, seed=1)
    metric, rng, count, draws = METRICS[name], np.random.default_rng(3), 40, 5000
    (reference, said_a), (_, said_b) = (arrays_of(metric, one) for one in (a, b))
    resampled = np.zeros((draws, count))
    np.add.at(resampled, (np.arange(draws)[:, None], rng.integers(0, count, (draws, count))), 1)
    differences = metric.weighted(resampled, reference, said_a) - metric.weighted(resampled, reference, said_b)
    swapped = (rng.random((draws, count)) < 0.5).astype(float)
    both = np.concatenate([reference, reference]), np.concatenate([said_a, said_b])
    left = metric.weighted(np.hstack([1 - swapped, swapped]), *both)
    right = metric.weighted(np.hstack([swapped, 1 - swapped]), *both)

    found = paired_difference(name, [a], [b], 0.9, 5000, 0)
    sign = 1 if metric.higher_is_better else -1
    step = 1 / count if name in significance.RIGHT_OR_WRONG else 0  # quantiles of shares of 40 may be a step apart
    expected = np.quantile(sign * differences, [0.05, 0.95])
    assert (found.low, found.high) == pytest.approx(expected, abs=0.15 * differences.std() + step)
    assert found.p_value == pytest.approx((np.abs(left - right) >= abs(found.difference) - 1e-9).mean(), abs=0.03)


def test_intervals_equal_those_of_scipy():
    a, b = models("single_label", 200, seed=2)
    flags = [(one.predicted == one.reference).astype(float) for one in (a, b)]
    found = paired_difference("accuracy", [a], [b], 0.9, 20_000, 0)
    expected = stats.bootstrap(
        flags,
        lambda left, right, axis: left.mean(axis) - right.mean(axis),
        paired=True,
        method="percentile",
        confidence_level=0.9,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    # steps of 1/200: one apart at most
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.0051)


def test_p_values_equal_the_permutation_test_of_scipy_over_all_permutations():
    a, b = models("regression", 12, seed=4)
    errors = [np.abs(one.reference - one.predicted) for one in (a, b)]
    exact = stats.permutation_test(
        errors,
        lambda left, right, axis: left.mean(axis) - right.mean(axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    found = paired_difference("mae", [a], [b], 0.95, 40_000, 0)
    assert found.test == "paired permutation"
    assert found.p_value == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    # statsmodels 0.15.0, mcnemar(table, exact=True).pvalue
    [(3, 12, 0.03515625), (0, 5, 0.0625), (7, 7, 1.0), (40, 61, 0.046044066929342785)],
)
def test_mcnemar_equals_statsmodels(only_a, only_b, expected):
    a = [True] * only_a + [False] * only_b + [True] * 100 + [False] * 9
    b = [False] * only_a + [True] * only_b + [True] * 100 + [False] * 9
    found = paired_difference("accuracy", [right(a)], [right(b)], 0.95, 100, 0)
    assert (found.test, found.p_value) == ("exact McNemar", pytest.approx(expected, rel=1e-12))
    assert found.difference == pytest.approx((only_a - only_b) / len(a))


def test_models_that_agree_everywhere_are_not_told_apart():
    a = right([True, True, False, True] * 10)
    found = paired_difference("accuracy", [a], [a], 0.95, 100, 0)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    found = paired_difference("f1_macro", [a], [a], 0.95, 100, 0)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_mcnemar_asks_for_sets_of_labels_whether_all_are_right():
    reference = [[1, 0], [0, 1], [1, 1]]
    a, b = make(reference, reference), make(reference, [[1, 1], [0, 0], [1, 1]])
    found = paired_difference("subset_accuracy", [a], [b], 0.95, 100, 0)
    assert (found.test, found.p_value) == ("exact McNemar", 0.5)


def test_p_values_equal_the_approximate_randomisation_of_sacrebleu():
    """BLEU of one-word sentences, unigrams only, is accuracy. sacrebleu leaves out permutations exactly as large as
    what was observed, which are 2 Binom(k; n, 1/2) of them."""
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    rng, words = np.random.default_rng(0), np.array(["one", "two", "three"])
    reference = rng.integers(0, 3, 120)
    a, b = (np.where(rng.random(120) < accuracy, reference, (reference + 1) % 3) for accuracy in (0.85, 0.75))
    bleu = BLEU(max_ngram_order=1, smooth_method="none", tokenize="none", references=[words[reference].tolist()])
    systems = [("b", words[b].tolist()), ("a", words[a].tolist())]
    _, table = PairedTest(systems, {"BLEU": bleu}, None, test_type="ar", n_samples=10_000)()
    theirs = table["BLEU"][1].p_value

    only_a, only_b = ((a == reference) & (b != reference)).sum(), ((b == reference) & (a != reference)).sum()
    ties = 2 * stats.binom.pmf(only_a, only_a + only_b, 0.5)
    pair = [make(reference, a)], [make(reference, b)]
    mcnemar = paired_difference("accuracy", *pair, 0.95, 100, 0)
    permuted = paired_difference_of_means("accuracy", {"books": pair}, 0.95, 10_000, 0)
    assert mcnemar.p_value - ties == pytest.approx(theirs, abs=0.012)
    assert permuted.p_value == pytest.approx(mcnemar.p_value, abs=0.015)


def test_no_permutation_gives_a_p_value_of_0():
    reference = np.arange(50.0)
    found = paired_difference("mae", [make(reference, reference + 0.1)], [make(reference, reference + 9)], 0.95, 999, 0)
    assert found.p_value == 1 / 1000


def test_permutations_that_differ_only_by_rounding_count_as_equal():
    """All examples differ by 0.2, with errors that sum to something else in each order: an exact sign test."""
    reference = np.zeros(30)
    smaller = np.random.default_rng(1).random(30)
    a, b = smaller.copy(), smaller + 0.2
    a[:10], b[:10] = b[:10].copy(), a[:10].copy()
    found = paired_difference("mae", [make(reference, a)], [make(reference, b)], 0.95, 40_000, 0)
    assert found.p_value == pytest.approx(stats.binomtest(10, 30).pvalue, abs=0.006)


# --- translations ---


def systems(count: int, shares: tuple[float, float] = (0.25, 0.3)) -> tuple[list[str], list[list[str]], Models]:
    """References, what two systems made of them, and what a run keeps of it."""
    references = references_of(count)
    texts = [with_mistakes(references, share, seed) for seed, share in enumerate(shares, start=1)]
    return references, texts, [translated(count, share, seed) for seed, share in enumerate(shares, start=1)]


def test_translations_are_compared_by_the_approximate_randomisation_of_sacrebleu(monkeypatch):
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.significance import PairedTest

    references, (a, b), pair = systems(60)
    for name, theirs in (("bleu", BLEU()), ("chrf", CHRF(word_order=2))):
        test = PairedTest([("b", b), ("a", a)], {name: theirs}, [references], test_type="ar", n_samples=400)
        expected, of_a = list(test()[1].values())[1]
        found = paired_difference(name, pair[:1], pair[1:], 0.95, 400, 0)
        assert (found.test, found.p_value) == ("approximate randomization (sacrebleu)", of_a.p_value)
        assert found.difference == of_a.score - expected.score and 0.01 < found.p_value < 0.9
    assert paired_difference("comet", pair[:1], pair[1:], 0.95, 400, 0).test == "paired permutation"

    monkeypatch.setattr(significance, "MOST_TRIALS", 9)
    few = paired_difference("bleu", pair[:1], pair[1:], 0.95, 400, 0).p_value
    assert 10 * few == pytest.approx(round(10 * few)), "9 trials have p-values of tenths"
    monkeypatch.setattr(significance, "MOST_SWAPS", 9 * 60 - 1)
    assert paired_difference("bleu", pair[:1], pair[1:], 0.95, 400, 0).test == "paired permutation"


def test_means_over_domains_and_seeds_of_translations_are_compared_as_others_are():
    _, _, (a, b) = systems(60)
    alone = paired_difference("bleu", [a], [b], 0.95, 4000, derived_seed(0, "kitchen"))
    found = paired_difference_of_means("bleu", {"kitchen": ([a], [b])}, 0.95, 4000, 0)
    assert found.test == "paired permutation" and found.p_value == pytest.approx(alone.p_value, abs=0.03)
    assert (found.difference, found.low, found.high) == (alone.difference, alone.low, alone.high)
    other = translated(60, 0.25, 7)
    several = paired_difference("bleu", [a, other], [b, b], 0.95, 400, 0)
    assert several.test == "hierarchical bootstrap" and several.low < several.difference < several.high
    assert several.difference == pytest.approx((score("bleu", a) + score("bleu", other)) / 2 - score("bleu", b))
    gap = shift_difference("ter", {"kitchen": [b]}, {"books": [a]}, 0.95, 400, 0)
    assert gap.difference == pytest.approx(score("ter", a) - score("ter", b)) and gap.low < gap.difference < gap.high


def test_differences_and_intervals_of_translations_are_those_of_the_paired_bootstrap_of_sacrebleu():
    from sacrebleu.metrics import BLEU, CHRF, TER
    from sacrebleu.significance import PairedTest

    references, (a, b), pair = systems(100)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 100, 100) for _ in range(4000)]
    for name, theirs in (("bleu", BLEU()), ("chrf", CHRF(word_order=2)), ("ter", TER())):
        test = PairedTest([("b", b), ("a", a)], {name: theirs}, [references], test_type="bs", n_samples=2000)
        of_b, of_a = list(test()[1].values())[1]
        sign = 1 if METRICS[name].higher_is_better else -1
        found = paired_difference(name, pair[:1], pair[1:], 0.95, 10_000, 0)
        assert found.difference == sign * (of_a.score - of_b.score)
        for system, result in zip(pair, (of_a, of_b), strict=True):
            value, low, high = score_with_interval(name, system, 0.95, 10_000, 0)
            assert value == result.score
            assert (high - low) / 2 == pytest.approx(float(result.ci), rel=0.06)

        # sacrebleu prints an interval of each system only: that of the difference from its scores of its statistics
        rows = [np.array(theirs._extract_corpus_statistics(text, [references])) for text in (a, b)]
        scores = [[theirs._compute_score_from_stats(own[chosen].sum(0)).score for chosen in drawn] for own in rows]
        differences = sign * np.subtract(*scores)
        expected = np.quantile(differences, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(expected, abs=0.15 * differences.std())


def test_equal_translations_are_not_told_apart():
    _, _, (a, _) = systems(60)
    for name in ("bleu", "chrf", "ter", "comet"):
        found = paired_difference(name, [a], [a], 0.95, 200, 0)
        assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_ten_thousand_resamples_of_two_thousand_translations_take_less_than_two_seconds():
    ids, nothing = np.arange(2000).astype(str), np.full(2000, "", dtype=object)
    a, b = (
        Predictions(ids, np.full(2000, "kitchen"), nothing, nothing, np.tile(one.probabilities, (20, 1)))
        for one in models("translation", 100)
    )
    begun = time.process_time()
    paired_difference("bleu", [a], [b], 0.95, 10_000, 0)
    paired_difference_of_means("bleu", {"kitchen": ([a], [b])}, 0.95, 10_000, 0)
    assert time.process_time() - begun < 4, "the two took 1.0 s"


# --- several seeds and domains ---


def test_one_seed_gives_the_interval_of_a_single_score():
    for name, problem in (("accuracy", "single_label"), ("f1_macro", "multi_label"), ("pearson", "regression")):
        one = models(problem, seed=5)[0]
        assert hierarchical_interval(name, [one], 0.9, 300, 7) == score_with_interval(name, one, 0.9, 300, 7)
        alone = hierarchical_interval_of_means(name, {"books": [one]}, 0.9, 300, 7)
        assert alone == score_with_interval(name, one, 0.9, 300, derived_seed(7, "books"))


def test_one_domain_gives_the_difference_of_a_single_comparison():
    for seeds in (1, 2):
        several = models("single_label", number=2 * seeds, seed=5)
        a, b = several[:seeds], several[seeds:]
        expected = paired_difference("f1_macro", a, b, 0.9, 300, derived_seed(7, "books"))
        found = paired_difference_of_means("f1_macro", {"books": (a, b)}, 0.9, 300, 7)
        assert (found.difference, found.test, found.count) == (expected.difference, expected.test, expected.count)
        if seeds == 1:
            assert found == expected


def test_no_bootstrap_gives_a_p_value_of_0():
    better, worse = [right([True] * 40)] * 2, [right([False] * 40)] * 2
    assert paired_difference("accuracy", better, worse, 0.95, 999, 0).p_value == 2 / 1000
    assert paired_difference("accuracy", better, better, 0.95, 999, 0).p_value == 1


def test_equal_seeds_add_nothing_to_the_interval():
    one, other = models("single_label", 200, seed=5)
    assert hierarchical_interval("f1_macro", [one] * 3, 0.9, 300, 7) == pytest.approx(
        score_with_interval("f1_macro", one, 0.9, 300, 7)
    )
    single = paired_difference("f1_macro", [one], [other], 0.9, 300, 7)
    several = paired_difference("f1_macro", [one] * 3, [other] * 2, 0.9, 300, 7)
    assert (several.low, several.high) == pytest.approx((single.low, single.high))
    assert (several.test, several.seeds_a, several.seeds_b) == ("hierarchical bootstrap", 3, 2)


def test_seeds_without_noise_of_examples_get_the_t_interval_of_their_mean():
    """The same three values on every example: only seeds vary, and Student's interval is exact."""
    reference = np.zeros(50)
    seeds = [make(reference, np.full(50, value)) for value in (1.0, 1.5, 2.3)]
    expected = stats.t.interval(0.9, 2, loc=1.6, scale=np.std([1.0, 1.5, 2.3], ddof=1) / np.sqrt(3))
    value, low, high = hierarchical_interval("mae", seeds, 0.9, 100_000, 0)
    assert (value, low, high) == pytest.approx((1.6, *expected), abs=0.03)

    # two sides: Welch's interval and p-value, from SciPy
    other = [make(reference, np.full(50, value)) for value in (2.0, 2.9, 3.1, 2.2)]
    welch = stats.ttest_ind([2.0, 2.9, 3.1, 2.2], [1.0, 1.5, 2.3], equal_var=False)
    found = paired_difference("mae", seeds, other, 0.9, 100_000, 0)
    interval = welch.confidence_interval(0.9)
    assert found.difference == pytest.approx(2.55 - 1.6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.03)
    assert found.p_value == pytest.approx(welch.pvalue, abs=0.01)


def test_noise_of_examples_is_not_counted_again_as_a_difference_between_seeds():
    """Seeds that are equally good and err on other examples: the interval is that of 3 x 400 independent answers."""
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(40):
        seeds = [right(rng.random(400) < 0.8) for _ in range(3)]
        _, low, high = hierarchical_interval("accuracy", seeds, 0.95, 400, 0)
        widths.append(high - low)
    assert np.median(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 1200), rel=0.15)


def test_a_mean_over_domains_is_unweighted_and_resamples_examples_within_each():
    sizes, accuracies = {"books": 400, "kitchen": 50}, {"books": (0.9, 0.8), "kitchen": (0.6, 0.7)}
    pairs = {
        domain: tuple([right(np.arange(sizes[domain]) < share * sizes[domain])] for share in accuracies[domain])
        for domain in sizes
    }
    found = paired_difference_of_means("accuracy", pairs, 0.95, 20_000, 0)
    assert found.difference == pytest.approx((0.1 - 0.1) / 2)
    assert (found.count, found.smallest_count, found.test) == (450, 50, "paired permutation")
    # discordant examples all go one way: 40 of 400 to a, 5 of 50 to b
    deviation = np.sqrt(0.1 * 0.9 / 400 + 0.1 * 0.9 / 50) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.03)
    permuted = np.random.default_rng(0).binomial([[40, 5]], 0.5, (20_000, 2))
    apart = ((2 * permuted - [[40, 5]]) / [[400, 50]]).mean(axis=1)
    assert paired_difference_of_means(
        "accuracy", {**pairs, "kitchen": pairs["kitchen"][::-1]}, 0.95, 20_000, 0
    ).p_value == pytest.approx((np.abs(apart) >= 0.1 - 1e-9).mean(), abs=0.01)

    first, second = pairs["books"][0], pairs["kitchen"][0]
    value, low, high = hierarchical_interval_of_means("accuracy", {"books": first, "kitchen": second}, 0.95, 20_000, 0)
    deviation = np.sqrt(0.9 * 0.1 / 400 + 0.6 * 0.4 / 50) / 2
    assert (value, low, high) == pytest.approx((0.75, 0.75 - 1.96 * deviation, 0.75 + 1.96 * deviation), abs=0.006)


def test_a_seed_is_the_same_model_in_every_domain():
    """Seeds that are better everywhere do not average out over domains; seeds that trade places do."""
    reference = np.zeros(50)
    low, middle, high = (make(reference, np.full(50, value)) for value in (1.0, 2.0, 3.0))
    same = {"books": [low, middle, high], "kitchen": [low, middle, high]}
    traded = {"books": [low, middle, high], "kitchen": [high, middle, low]}
    _, *interval = hierarchical_interval_of_means("mae", same, 0.8, 20_000, 0)
    assert interval == pytest.approx(stats.t.interval(0.8, 2, loc=2, scale=1 / np.sqrt(3)), abs=0.05)
    assert hierarchical_interval_of_means("mae", traded, 0.8, 500, 0) == pytest.approx((2, 2, 2))


def test_the_difference_between_shifted_and_in_domain_has_independent_examples_and_the_same_seeds():
    books, kitchen, dvd = (right(np.arange(size) < share * size) for size, share in ((400, 0.9), (50, 0.6), (100, 0.8)))
    found = shift_difference("accuracy", {"kitchen": [kitchen], "dvd": [dvd]}, {"books": [books]}, 0.95, 20_000, 0)
    deviation = np.sqrt(0.9 * 0.1 / 400 + (0.6 * 0.4 / 50 + 0.8 * 0.2 / 100) / 4)
    assert (found.difference, found.count, found.smallest_count) == (pytest.approx(-0.2), 550, 50)
    assert (found.low, found.high) == pytest.approx((-0.2 - 1.96 * deviation, -0.2 + 1.96 * deviation), abs=0.006)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.2 / deviation), abs=1e-3)

    # a loss points the other way; seeds that are worse in both places leave the gap alone, others do not
    reference = np.zeros(50)
    seeds = [make(reference, np.full(50, value)) for value in (1.0, 2.0, 3.0)]
    worse = [make(reference, np.full(50, value)) for value in (1.5, 2.5, 3.5)]
    found = shift_difference("mae", {"kitchen": worse}, {"books": seeds}, 0.8, 500, 0)
    assert (found.difference, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    found = shift_difference("mae", {"kitchen": worse[::-1]}, {"books": seeds}, 0.8, 50_000, 0)
    expected = stats.t.interval(0.8, 2, loc=-0.5, scale=2 / np.sqrt(3))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.06)


def test_few_seeds_do_not_stretch_an_interval_beyond_what_the_metric_can_be():
    same, other = (
        sentence_statistics(["ein Hund lief weg"] * 40, [text] * 40, ["bleu", "chrf", "ter"])
        for text in ("ein Hund lief weg", "Opa")
    )
    extremes = {
        "single_label": ([0, 1] * 20, [1, 0] * 20),
        "multi_label": ([[0, 1], [1, 0]] * 20, [[1, 0], [0, 1]] * 20),
    }
    assert set(significance.RANGES) == set(METRICS), "state the range of the new metric"
    for name, (lowest, highest) in significance.RANGES.items():
        if name == "comet":
            assert lowest == -float("inf") and highest == float("inf"), "nothing to stretch beyond"
            continue
        problem = METRICS[name].problems[-1]
        reference, wrong = extremes.get(problem, (np.arange(40.0), -np.arange(40.0)))
        best, worst = make(reference, reference, np.eye(2)[[0, 1] * 20]), make(reference, wrong, np.eye(2)[[1, 0] * 20])
        if problem == "translation":
            best, worst = (
                Predictions(best.example_ids, best.domain_ids, reference, reference, one) for one in (same, other)
            )
        ends = sorted([score(name, best), score(name, worst)])
        assert ends[0] == pytest.approx(lowest, abs=1e-6)
        assert ends[1] == pytest.approx(highest) or highest == float("inf")
        _, low, high = hierarchical_interval(name, [best, worst], 0.95, 500, 0)
        assert (low, high) == (lowest, pytest.approx(highest)) or highest == float("inf") != high > ends[1]
        found = paired_difference(name, [best, worst], [worst, best], 0.95, 500, 0)
        assert found.low >= lowest - highest and found.high <= highest - lowest


def test_undefined_scores_are_recorded():
    nan = float("nan")
    constant, other = make(np.arange(40.0), np.ones(40)), make(np.arange(40.0), np.arange(40.0) ** 2)
    for a in ([constant], [other, constant]):
        found = paired_difference("pearson", a, [other], 0.95, 100, 0)
        assert np.isnan([found.difference, found.low, found.high, found.p_value]).all()
        assert verdict(found, nan, 0.95) == "undefined"
    assert np.isnan(hierarchical_interval("pearson", [other, constant], 0.95, 100, 0)).all()
    nothing = [make(np.array([], int), np.array([], int), np.empty((0, 2)))]
    for name in ("accuracy", "f1_macro"):
        found = paired_difference(name, nothing, nothing, 0.95, 100, 0)
        assert np.isnan([found.difference, found.low, found.high, found.p_value]).all() and found.count == 0
    gap = shift_difference("accuracy", {"kitchen": nothing}, {"books": [right([True] * 40)]}, 0.95, 100, 0)
    assert np.isnan([gap.difference, gap.low, gap.high, gap.p_value]).all()
    diverged = [make(np.arange(40.0), np.full(40, nan))]
    assert np.isnan(paired_difference("mae", diverged, [other], 0.95, 100, 0).p_value)


def test_predictions_that_are_not_about_the_same_examples_are_refused():
    a = right([True] * 40)
    shuffled = Predictions(a.example_ids[::-1], a.domain_ids, a.predicted, a.reference, a.probabilities)
    relabelled = Predictions(a.example_ids, a.domain_ids, a.predicted, 1 - a.reference, a.probabilities)
    for b in (shuffled, relabelled, right([True] * 39)):
        with pytest.raises(AssertionError, match="examples"):
            paired_difference("accuracy", [a], [b], 0.95, 100, 0)
        with pytest.raises(AssertionError, match="examples"):
            hierarchical_interval("accuracy", [a, b], 0.95, 100, 0)
    with pytest.raises(AssertionError, match="a seed is missing"):
        paired_difference_of_means("accuracy", {"books": ([a], [a]), "dvd": ([a, a], [a])}, 0.95, 100, 0)
    with pytest.raises(InputError, match="did you mean accuracy"):
        paired_difference("acuracy", [a], [a], 0.95, 100, 0)


def test_the_same_seed_gives_the_same_result_and_chunks_change_nothing(monkeypatch):
    three = models("single_label", 60, 3)
    found = paired_difference("f1_macro", three[:2], three[2:], 0.95, 200, 3)
    assert found == paired_difference("f1_macro", three[:2], three[2:], 0.95, 200, 3)
    assert found != paired_difference("f1_macro", three[:2], three[2:], 0.95, 200, 4)
    alone = paired_difference("mae", *([one] for one in models("regression")), 0.95, 200, 3)
    monkeypatch.setattr(statistics, "NUMBERS_PER_CHUNK", 1000)
    assert found == paired_difference("f1_macro", three[:2], three[2:], 0.95, 200, 3)
    in_chunks = paired_difference("mae", *([one] for one in models("regression")), 0.95, 200, 3)
    assert in_chunks.p_value == pytest.approx(alone.p_value, abs=0.1)
    assert (in_chunks.low, in_chunks.high) == (alone.low, alone.high)


def test_ten_thousand_resamples_of_five_thousand_examples_take_less_than_a_second():
    for name in ("accuracy", "f1_macro"):
        a, b = models("single_label", 5000)
        begun = time.process_time()
        paired_difference(name, [a], [b], 0.95, 10_000, 0)
        assert time.process_time() - begun < 1


# --- simulations: how often intervals cover and tests find what is not there ---


def simulated(rng: np.random.Generator, margin: float, seeds: int, seeds_apart: float, hard: np.ndarray) -> Models:
    """Models that are right where ``margin`` + difficulty + own noise + noise of the seed is positive."""
    own = 0.5 * rng.normal(size=(seeds, len(hard))) + seeds_apart * rng.normal(size=(seeds, 1))
    return [right(row > 0) for row in margin + hard + own]


def true_accuracy(margin: float, seeds_apart: float) -> float:
    return float(stats.norm.cdf(margin / np.sqrt(1 + 0.25 + seeds_apart**2)))


def covered(seeds_a: int, seeds_b: int, apart: float, simulations: int, confidence: float = 0.95) -> float:
    """Share of simulated comparisons whose interval holds the true difference in accuracy, of 300 examples each."""
    rng, held = np.random.default_rng(1), 0
    apart_b = apart if seeds_b > 1 else 0.0
    truth = true_accuracy(1.5, apart) - true_accuracy(1.2, apart_b)
    for number in range(simulations):
        hard = rng.normal(size=300)
        a = simulated(rng, 1.5, seeds_a, apart, hard)
        b = simulated(rng, 1.2, seeds_b, apart_b, hard)
        found = paired_difference("accuracy", a, b, confidence, 400, number)
        held += found.low <= truth <= found.high
    return held / simulations


@pytest.mark.slow
def test_intervals_of_one_seed_cover_the_true_difference_in_93_to_97_percent():
    assert 0.93 <= covered(1, 1, 0.0, 700) <= 0.97
    assert 0.77 <= covered(1, 1, 0.0, 300, confidence=0.8) <= 0.83, "the level must change the coverage"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "apart", "simulations", "most"),
    [
        (3, 3, 0.15, 400, 0.97),  # 2 points of accuracy between seeds
        (5, 5, 0.15, 300, 0.97),
        # 1,000 simulations of these two gave 96.3% and 97.8%: the t distribution of three seeds errs on the safe side
        (3, 1, 0.15, 400, 0.98),
        (3, 3, 0.0, 300, 0.99),
    ],
)
def test_intervals_over_seeds_and_examples_cover_the_true_difference(seeds_a, seeds_b, apart, simulations, most):
    assert 0.93 <= covered(seeds_a, seeds_b, apart, simulations) <= most


@pytest.mark.slow
def test_an_interval_over_three_seeds_covers_the_true_score_in_93_to_97_percent():
    rng, held = np.random.default_rng(2), 0
    truth = true_accuracy(1.5, 0.15)
    for number in range(500):
        seeds = simulated(rng, 1.5, 3, 0.15, rng.normal(size=300))
        _, low, high = hierarchical_interval("accuracy", seeds, 0.95, 400, number)
        held += low <= truth <= high
    assert 0.93 <= held / 500 <= 0.97


@pytest.mark.slow
def test_intervals_of_means_over_domains_cover_the_true_difference():
    rng, held = np.random.default_rng(3), 0
    margins = {"books": (1.5, 1.2), "kitchen": (0.8, 0.9)}
    truth = np.mean([true_accuracy(a, 0.15) - true_accuracy(b, 0.15) for a, b in margins.values()])
    for number in range(200):
        # a seed that is better is so in both domains
        better = 0.15 * rng.normal(size=(2, 3, 1))
        pairs = {}
        for domain, size in (("books", 150), ("kitchen", 80)):
            hard = rng.normal(size=size)
            pairs[domain] = tuple(
                [right(row > 0) for row in margin + hard + shift + 0.5 * rng.normal(size=(3, size))]
                for margin, shift in zip(margins[domain], better, strict=True)
            )
        found = paired_difference_of_means("accuracy", pairs, 0.95, 400, number)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 200 <= 0.98


@pytest.mark.slow
def test_equal_models_are_told_apart_in_3_to_7_percent_of_comparisons():
    """McNemar's test in fewer: its p-values are discrete, and 0.05 is between two of them."""
    rng, simulations = np.random.default_rng(5), 400
    by_interval, by_permutation, by_mcnemar, by_both = 0, 0, 0, 0
    for number in range(simulations):
        hard = rng.normal(size=300)
        pair = simulated(rng, 1.3, 1, 0.0, hard), simulated(rng, 1.3, 1, 0.0, hard)
        accuracy = paired_difference("accuracy", *pair, 0.95, 400, number)
        by_interval += accuracy.low > 0 or accuracy.high < 0
        by_mcnemar += accuracy.p_value < 0.05
        by_both += verdict(accuracy, accuracy.p_value, 0.95) != "no evidence"
        by_permutation += paired_difference("f1_macro", *pair, 0.95, 400, number).p_value < 0.05
    assert 0.03 <= by_interval / simulations <= 0.07
    assert 0.03 <= by_permutation / simulations <= 0.07
    assert 0.01 <= by_mcnemar / simulations <= 0.07
    assert by_both <= min(by_interval, by_mcnemar)


def test_equal_models_of_several_seeds_are_told_apart_in_3_to_7_percent_of_comparisons():
    rng, found, simulations = np.random.default_rng(6), 0, 300
    for number in range(simulations):
        hard = rng.normal(size=300)
        pair = (simulated(rng, 1.3, 3, 0.2, hard) for _ in range(2))
        found += paired_difference("accuracy", *pair, 0.95, 400, number).p_value < 0.05
    assert 0.03 <= found / simulations <= 0.07


def test_a_difference_that_is_there_is_found():
    rng, found = np.random.default_rng(7), 0
    for number in range(50):
        hard = rng.normal(size=300)
        pair = simulated(rng, 1.5, 3, 0.05, hard), simulated(rng, 0.9, 3, 0.05, hard)
        difference = paired_difference("accuracy", *pair, 0.95, 400, number)
        found += verdict(difference, difference.p_value, 0.95) == "helps"
    assert found >= 40


# --- many comparisons, verdicts ---


def test_holm_equals_statsmodels_and_leaves_out_what_was_not_tested():
    # statsmodels 0.15.0, multipletests(p, method="holm")[1]
    p_values, expected = [0.01, 0.04, 0.03, 0.005, 0.6, 0.03], [0.05, 0.12, 0.12, 0.03, 0.6, 0.12]
    assert holm(p_values) == pytest.approx(expected)
    nan = float("nan")
    with_gaps = holm([nan, *p_values[:3], nan, *p_values[3:]])
    assert with_gaps == pytest.approx([nan, *expected[:3], nan, *expected[3:]], nan_ok=True)
    assert holm([0.7, 0.8]) == [1, 1], "at most 1"
    assert holm([]) == [] and np.isnan(holm([nan])).all()


def difference_of(value: float, low: float, high: float, count: int = 400, smallest: int = 400) -> Difference:
    return Difference(value, low, high, 0.01, "exact McNemar", count, smallest, 1, 1)


@pytest.mark.parametrize(
    ("difference", "p_adjusted", "confidence", "expected"),
    [
        (difference_of(0.05, 0.01, 0.09), 0.02, 0.95, "helps"),
        (difference_of(-0.05, -0.09, -0.01), 0.02, 0.95, "hurts"),
        (difference_of(0.05, 0.01, 0.09), 0.02, 0.99, "no evidence"),
        (difference_of(0.05, 0.01, 0.09), 0.06, 0.95, "no evidence"),
        (difference_of(-0.05, -0.09, -0.01), 0.06, 0.95, "no evidence"),
        (difference_of(0.05, 0.0, 0.09), 0.02, 0.95, "no evidence"),
        (difference_of(0.05, -0.01, 0.09), 0.02, 0.95, "no evidence"),
        (difference_of(0.05, 0.01, 0.09), float("nan"), 0.95, "no evidence"),
        (difference_of(0.05, 0.01, 0.09, count=29, smallest=29), 0.02, 0.95, "too few examples"),
        (difference_of(0.05, 0.01, 0.09, count=30, smallest=30), 0.02, 0.95, "helps"),
        (difference_of(0.05, 0.01, 0.09, count=400, smallest=9), 0.02, 0.95, "too few examples"),
        (difference_of(0.05, 0.01, 0.09, count=400, smallest=10), 0.02, 0.95, "helps"),
    ],
)
def test_a_verdict_needs_an_interval_without_0_and_a_p_value_and_enough_examples(
    difference, p_adjusted, confidence, expected
):
    assert verdict(difference, p_adjusted, confidence) == expected


def test_fewer_examples_may_be_enough_if_asked():
    assert verdict(difference_of(0.05, 0.01, 0.09, count=8, smallest=8), 0.02, 0.95, fewest=5) == "helps"
