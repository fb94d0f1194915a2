"""Windows and micro-batches: every example once per epoch, shared fairly, cut at the least cost."""

import itertools
import math

import numpy as np
import pytest

from hf_transfer.batching import (
    EMBEDDING_SHARE,
    FLAT_OVERHEAD_TOKENS,
    MOST_PADDED,
    OVERHEAD_TOKENS,
    Mixture,
    cut_window,
    padding_fraction,
    share_window,
    sorted_batches,
    window_count,
    window_indices,
)


@pytest.mark.parametrize(("examples", "size"), [(100, 16), (96, 16), (5, 16), (1, 1)])
def test_the_windows_of_an_epoch_hold_every_example_once(examples, size):
    per_epoch = window_count(examples, size)
    for epoch in range(3):
        windows = [window_indices(examples, size, 0, epoch * per_epoch + i) for i in range(per_epoch)]
        assert sorted(np.concatenate(windows)) == list(range(examples))
        assert [len(window) for window in windows[:-1]] == [size] * (per_epoch - 1)
        assert len(windows[-1]) == examples - size * (per_epoch - 1)


def test_a_window_follows_from_the_seed_and_its_number_alone():
    in_order = [window_indices(50, 8, 3, i).tolist() for i in range(21)]
    out_of_order = {i: window_indices(50, 8, 3, i).tolist() for i in (20, 0, 13, 7, 6, 14)}
    assert all(in_order[i] == window for i, window in out_of_order.items())
    # numpy's own permutation of (seed, epoch) is the reference: three epochs of seven windows
    for epoch in range(3):
        wanted = np.random.default_rng([3, epoch]).permutation(50).tolist()
        assert list(itertools.chain(*in_order[7 * epoch : 7 * epoch + 7])) == wanted
    assert in_order[0] != in_order[7], "epochs differ"
    assert in_order[0] != window_indices(50, 8, 4, 0).tolist(), "seeds differ"


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 63, 64])
def test_processes_share_a_window_and_none_is_idle_while_there_are_examples(processes, count):
    lengths = np.random.default_rng(count).integers(3, 200, count)
    shares = share_window(lengths, processes)
    assert len(shares) == processes
    assert sorted(np.concatenate(shares)) == list(range(count))
    assert sum(len(share) > 0 for share in shares) == min(count, processes)


def spread(lengths: np.ndarray, processes: int) -> float:
    totals = [lengths[share].sum() for share in share_window(lengths, processes)]
    return max(totals) / min(totals) - 1


def drawn_lengths(kind: str, seed: int, count: int) -> np.ndarray:
    """Uniform, or like reviews: most are short, a few reach the limit of 256 tokens."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.integers(4, 129, count)
    return rng.lognormal(3.5, 0.8, count).clip(4, 256).astype(int)


@pytest.mark.parametrize("kind", ["uniform", "reviews"])
@pytest.mark.parametrize(("window", "processes"), [(16, 2), (32, 2), (32, 4), (64, 4), (64, 8)])
def test_processes_get_token_totals_within_five_percent(kind, window, processes):
    found = [spread(drawn_lengths(kind, seed, window), processes) for seed in range(50)]
    assert np.quantile(found, 0.9) < 0.05
    assert np.mean(found) < 0.02


@pytest.mark.parametrize("kind", ["uniform", "reviews"])
def test_four_examples_for_each_process_are_within_five_percent_as_a_rule(kind):
    assert np.median([spread(drawn_lengths(kind, seed, 16), 4) for seed in range(50)]) < 0.05


@pytest.mark.parametrize("seed", range(20))
def test_no_exchange_of_one_example_brings_the_fullest_and_the_emptiest_together(seed):
    lengths = drawn_lengths("reviews", seed, 12)
    shares = share_window(lengths, 3)
    totals = np.array([lengths[share].sum() for share in shares])
    full, empty = shares[totals.argmax()], shares[totals.argmin()]
    gap = totals.max() - totals.min()
    for given in full:
        for received in (0, *lengths[empty]):
            assert abs(gap - 2 * (lengths[given] - received)) >= gap


def partitions(items: list[int]):
    """Every way to part ``items`` into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for parted in partitions(rest):
        yield [[first], *parted]
        for i, group in enumerate(parted):
            yield [*parted[:i], [first, *group], *parted[i + 1 :]]


def cost(lengths: np.ndarray, groups: list) -> int:
    return sum(int(lengths[group].max()) * len(group) + OVERHEAD_TOKENS for group in groups)


@pytest.mark.parametrize("budget", [1, 150, 400, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_cut_within_the_budget_costs_less(budget, seed):
    lengths = np.random.default_rng(seed).integers(3, 300, 7)
    allowed = [
        groups
        for groups in partitions(list(range(len(lengths))))
        if all(len(group) == 1 or lengths[group].max() * len(group) <= budget for group in groups)
    ]
    assert cost(lengths, cut_window(lengths, budget)) == min(cost(lengths, groups) for groups in allowed)


@pytest.mark.parametrize("budget", [1, 200, 1000, 8192])
def test_a_cut_covers_the_window_within_the_budget_longest_first(budget):
    lengths = np.random.default_rng(0).integers(3, 257, 64)
    pieces = cut_window(lengths, budget)
    assert sorted(np.concatenate(pieces)) == list(range(64))
    assert all(len(piece) == 1 or lengths[piece].max() * len(piece) <= budget for piece in pieces)
    firsts = [int(lengths[piece].max()) for piece in pieces]
    assert firsts == sorted(firsts, reverse=True)


def flat_cost(lengths: np.ndarray, group: list[int]) -> float:
    """Tokens of a micro-batch whose padding meets the embeddings alone."""
    real, padded = lengths[group].sum(), lengths[group].max() * len(group)
    return real + EMBEDDING_SHARE * (padded - real)


@pytest.mark.parametrize("budget", [1, 150, 400, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_where_layers_see_real_tokens_only_these_are_what_the_budget_counts(budget, seed):
    lengths = np.random.default_rng(seed).integers(3, 300, 7)
    order = np.argsort(-lengths).tolist()
    costs = []
    for places in itertools.product([False, True], repeat=6):  # every way to cut the sorted window
        cuts = [0, *(i + 1 for i, cut in enumerate(places) if cut), 7]
        groups = [order[a:b] for a, b in itertools.pairwise(cuts)]
        if all(len(group) == 1 or flat_cost(lengths, group) <= budget for group in groups):
            costs.append(sum(flat_cost(lengths, group) + FLAT_OVERHEAD_TOKENS for group in groups))
    cut = cut_window(lengths, budget, flat=True)
    assert sum(flat_cost(lengths, piece) + FLAT_OVERHEAD_TOKENS for piece in cut) == pytest.approx(min(costs))


def test_a_window_within_the_budget_stays_whole_where_layers_see_real_tokens_only():
    lengths = np.array([256, *[8] * 31])
    assert len(cut_window(lengths, 8192, flat=True)) == 1
    assert len(cut_window(lengths, 8192)) == 2
    # a single long text among very many short ones would pad them to more than memory holds
    lengths = np.array([4000, *[3] * 400])
    pieces = cut_window(lengths, 8192, flat=True)
    assert len(pieces) > 1
    assert all(lengths[piece].max() * len(piece) <= MOST_PADDED * 8192 for piece in pieces)


def test_examples_of_one_length_stay_together_and_nothing_gives_no_batch():
    assert len(cut_window(np.full(20, 10), 8192)) == 1
    assert [len(piece) for piece in cut_window(np.full(20, 10), 100)] == [10, 10]
    assert cut_window(np.array([], dtype=int), 100) == []


@pytest.mark.parametrize("budget", [1, 100, 500, 100_000])
def test_batches_of_an_evaluation_hold_every_row_once_and_are_full(budget):
    lengths = np.random.default_rng(0).integers(3, 100, 40).tolist()
    batches = sorted_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(40))
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        longest = lengths[batch[0]]
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert longest * (len(batch) + 1) > budget, "one more row would not have fitted"


def test_no_rows_give_no_batches():
    assert sorted_batches([], 100) == []


def test_each_epoch_of_a_mixture_has_all_own_rows_and_other_general_ones_until_all_had_their_turn():
    mixture = Mixture(own=6, general=10, drawn=4, seed=3)
    assert len(mixture) == 10
    epochs = [mixture.rows(np.arange(10), epoch) for epoch in range(5)]
    for rows in epochs:
        assert rows[:6].tolist() == list(range(6))
        assert ((rows[6:] >= 6) & (rows[6:] < 16)).all()
    rounds = np.concatenate([rows[6:] for rows in epochs])
    assert sorted(rounds[:10]) == sorted(rounds[10:]) == list(range(6, 16))
    assert rounds[:10].tolist() != rounds[10:].tolist(), "each round has an order of its own"
    other = Mixture(6, 10, 4, seed=4)
    assert other.rows(np.arange(10), 0).tolist() != epochs[0].tolist()


def test_a_place_in_an_epoch_of_a_mixture_is_found_without_those_before_it():
    mixture = Mixture(own=5, general=7, drawn=7, seed=0)
    whole = [mixture.rows(np.arange(12), epoch) for epoch in range(4)]
    for epoch in (3, 0, 2):
        for place in (11, 4, 5, 8):
            assert mixture.rows(np.array([place]), epoch)[0] == whole[epoch][place]


def test_padding_of_batches_is_what_their_rows_are_short_of_the_longest():
    lengths = np.array([3, 10, 4, 10, 7])
    assert padding_fraction(lengths, [np.array([1, 3]), np.array([4, 2, 0])]) == pytest.approx(1 - 34 / (20 + 21))
    assert padding_fraction(lengths, [np.array([i]) for i in range(5)]) == 0
    assert math.isnan(padding_fraction(np.array([], dtype=int), []))
    drawn = np.random.default_rng(0).integers(1, 300, 500)
    filled, even = sorted_batches(drawn, 8192), sorted_batches(drawn, 8192, evenly=True)
    assert padding_fraction(drawn, even) < 0.05 < padding_fraction(drawn, filled)
    short = np.random.default_rng(1).integers(4, 40, 200)
    assert padding_fraction(short, sorted_batches(short, 16_384, evenly=True)) < 0.08
    assert len(sorted_batches(np.full(300, 7), 8192, evenly=True)) == 1, "equal rows are not cut"
    for batches in (filled, even):
        assert sorted(np.concatenate(batches)) == list(range(500))
        assert all(len(batch) * drawn[batch].max() <= 8192 for batch in batches)
