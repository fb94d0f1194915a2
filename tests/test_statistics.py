"""Resamples and intervals: counts are what drawing with replacement gives, and intervals cover as often as they say."""

import numpy as np
import pytest
from scipy import stats

from hf_transfer import statistics
from hf_transfer.statistics import bootstrap_counts, derived_seed, percentile_interval


def drawn(copies: list[int], resamples: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(bootstrap_counts(np.array(copies), resamples, np.random.default_rng(seed))))


@pytest.mark.parametrize("copies", [[1] * 7, [1, 2, 4], [30, 50]], ids=["each once", "some twice", "few rows"])
def test_every_resample_is_as_large_as_the_sample(copies):
    counts = drawn(copies, 50)
    assert counts.shape == (50, len(copies))
    assert (counts.sum(axis=1) == sum(copies)).all()


@pytest.mark.parametrize("copies", [[1] * 6, [3, 1, 2], [60, 20, 40]], ids=["each once", "some twice", "few rows"])
def test_counts_follow_the_multinomial_distribution(copies):
    counts, count = drawn(copies, 20_000), sum(copies)
    share = np.array(copies) / count
    covariance = count * (np.diag(share) - np.outer(share, share))
    assert counts.mean(axis=0) == pytest.approx(count * share, rel=0.03)
    assert np.cov(counts.T) == pytest.approx(covariance, rel=0.06, abs=0.02 * count)
    # the whole distribution of one count, not only its moments: it is binomial
    values = np.arange(count + 1)
    expected = stats.binom.pmf(values, count, share[0])
    assert np.bincount(counts[:, 0].astype(int), minlength=count + 1) / 20_000 == pytest.approx(expected, abs=0.015)


def test_chunks_are_bounded_in_memory_and_lose_no_resample(monkeypatch):
    monkeypatch.setattr(statistics, "NUMBERS_PER_CHUNK", 100)
    sizes = [chunk.shape for chunk in bootstrap_counts(np.ones(30, int), 10, np.random.default_rng(0))]
    assert sizes == [(3, 30), (3, 30), (3, 30), (1, 30)]
    one_by_one = [chunk.shape for chunk in bootstrap_counts(np.ones(101, int), 2, np.random.default_rng(0))]
    assert one_by_one == [(1, 101), (1, 101)]


def test_the_same_seed_draws_the_same_counts_and_another_seed_others():
    assert (drawn([1] * 9, 5, seed=3) == drawn([1] * 9, 5, seed=3)).all()
    assert (drawn([1] * 9, 5, seed=3) != drawn([1] * 9, 5, seed=4)).any()


def test_derived_seeds_differ_by_seed_and_name_and_stay_the_same_between_releases():
    seeds = [derived_seed(0), derived_seed(1), derived_seed(0, "a"), derived_seed(0, "b"), derived_seed(0, "a", "b")]
    seeds += [derived_seed(0, "ab"), derived_seed(0, "b", "a")]
    assert len(set(seeds)) == len(seeds)
    # printf '0\0a' | sha256sum | cut -c-16: published intervals must not move
    assert derived_seed(0, "a") == 0x5F1AA0C8DAD9DC73


def test_an_interval_holds_its_share_of_the_values():
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert percentile_interval(values, 0.95) == pytest.approx((25, 975))
    assert percentile_interval(values, 0.5) == pytest.approx((250, 750))


def test_resamples_without_a_score_are_left_out_of_the_interval():
    values = np.concatenate([np.arange(101.0), np.full(500, np.nan)])
    assert percentile_interval(values, 0.9) == pytest.approx((5, 95))


def test_the_interval_is_undefined_where_every_resample_is():
    assert np.isnan(percentile_interval(np.full(3, np.nan), 0.95)).all()


def coverage(confidence: float, simulations: int = 2000, examples: int = 200, accuracy: float = 0.8) -> float:
    """Share of simulated test sets whose accuracy interval holds the true accuracy."""
    rng = np.random.default_rng(2)
    held = 0
    for right in rng.binomial(examples, accuracy, size=simulations):
        copies = np.array([examples - right, right])
        counts = np.concatenate(list(bootstrap_counts(copies, 1000, rng)))
        low, high = percentile_interval(counts[:, 1] / examples, confidence)
        held += low <= accuracy <= high
    return held / simulations


def test_intervals_of_95_percent_cover_the_true_accuracy_in_93_to_97_percent_of_test_sets():
    assert 0.93 <= coverage(0.95) <= 0.97
    assert 0.77 <= coverage(0.80) <= 0.83, "the level must change the coverage, else the line above proves nothing"
