"""Floor 1: windows of examples, shared among processes and cut into micro-batches with little padding.

A window is what one optimizer step learns from. It is drawn at random; only then is it sorted by length and cut.
Because the loss is summed over the window and divided once, the cut does not change the gradient, so it may be
chosen for speed alone. Where the layers see real tokens only, a window within the budget is not cut at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Made = TypeVar("Made")

OVERHEAD_TOKENS = 45
"""What one more micro-batch costs beside its tokens, in tokens; measured on a CPU (benchmarks/LOG.md)."""
FLAT_OVERHEAD_TOKENS = 96
"""The same where padding meets the embeddings alone, and next to nothing is gained by a cut."""
EMBEDDING_SHARE = 0.01
"""What a token costs that only the embeddings see, relative to one that goes through the layers (benchmarks/LOG.md)."""
MOST_PADDED = 8
"""Where layers see real tokens only, padded tokens of a micro-batch may be this many times the budget."""


def window_count(examples: int, window_size: int) -> int:
    """Windows per epoch; the last may be smaller."""
    return math.ceil(examples / window_size)


def steps_of(passes: float, windows: int) -> int:
    """Steps of ``passes`` over so many ``windows``, the last one whole."""
    return math.ceil(round(passes * windows, 6))  # 1.1 of 100 windows are 110, not 110.00000000000001


def window_indices(examples: int, window_size: int, seed: int, window: int) -> np.ndarray:
    """Row numbers [window_size or fewer] of the ``window``-th window of training, counted over all epochs.

    Each epoch is its own permutation, drawn from (seed, epoch) alone, so that any window can be named without
    walking through those before it.
    """
    epoch, position = divmod(window, window_count(examples, window_size))
    order = _permutation(examples, seed, epoch)
    return order[position * window_size : (position + 1) * window_size]


class Ahead(Generic[Made]):
    """What the next window is made of, made before it is asked for: while a GPU still computes the present one."""

    def __init__(self, make: Callable[[int, int], Made]) -> None:
        """``make``: from the number of a window and the budget of tokens."""
        self._make = make
        self._ready: tuple[int, int, Made] | None = None

    def prepare(self, window: int, budget: int) -> None:
        """Make what will be asked for next."""
        self._ready = (window, budget, self._make(window, budget))

    def take(self, window: int, budget: int) -> Made:
        """What belongs to ``window``, made now if that was not prepared or the budget has changed."""
        ready, self._ready = self._ready, None
        return ready[2] if ready is not None and ready[:2] == (window, budget) else self._make(window, budget)


@dataclass(frozen=True)
class Mixture:
    """General rows drawn anew for each epoch beside the own ones (mixed fine-tuning, Chu, Dabre and Kurohashi 2017).

    The rows to learn from hold the own ones first and then all general ones. An epoch has all own rows and the next
    ``drawn`` general ones, which come round in an order of their own for each round.
    """

    own: int
    general: int
    """General rows that there are."""
    drawn: int
    """General rows of an epoch, at most ``general``."""
    seed: int

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self.own + self.drawn

    def rows(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Row numbers for ``places`` within an epoch, each from 0 to ``len(self)``."""
        turns = np.maximum(places - self.own, 0) + epoch * self.drawn
        found = np.array(places)
        for round_ in np.unique(turns // self.general):
            here = (turns // self.general == round_) & (places >= self.own)
            order = np.random.default_rng([self.seed, int(round_), self.general]).permutation(self.general)
            found[here] = self.own + order[turns[here] % self.general]
        return found


_last_permutation: tuple[tuple[int, int, int], np.ndarray] | None = None


def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch; the last one is kept, because a million rows take a while to shuffle."""
    global _last_permutation
    key = (examples, seed, epoch)
    if _last_permutation is None or _last_permutation[0] != key:
        _last_permutation = (key, np.random.default_rng([seed, epoch]).permutation(examples))
    return _last_permutation[1]


def share_window(lengths: np.ndarray, processes: int) -> list[np.ndarray]:
    """Positions of a window for each process, so that their tokens balance; their examples need not.

    ``lengths``: [window] tokens. The longest that is left goes to the process with the fewest tokens (Graham 1969);
    then the fullest and the emptiest process exchange examples while that brings the two together. Where each has
    eight examples, totals differ by 0.2 to 0.5% in the mean, with four by 0.4 to 3% (benchmarks/LOG.md).
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    totals = np.zeros(processes)
    for position in np.argsort(-lengths, kind="stable").tolist():
        rank = int(totals.argmin())
        shares[rank].append(position)
        totals[rank] += lengths[position]
    for _ in lengths:
        fullest, emptiest = int(totals.argmax()), int(totals.argmin())
        moved = _exchange(shares[fullest], shares[emptiest], lengths, totals[fullest] - totals[emptiest])
        if not moved:
            break
        totals[fullest] -= moved
        totals[emptiest] += moved
    return [np.array(share, dtype=int) for share in shares]


def _exchange(full: list[int], empty: list[int], lengths: np.ndarray, gap: float) -> float:
    """Give one example of ``full``, for one of ``empty`` or for none, so that the ``gap`` of tokens between them
    becomes as small as it can; the tokens that went over, 0 where nothing brings them together."""
    received = np.append(lengths[empty], 0)
    tokens = lengths[full][:, None] - received
    left = np.where((tokens > 0) & (tokens < gap), np.abs(gap - 2 * tokens), gap)
    if not left.size or left.min() >= gap:
        return 0.0
    given, taken = np.unravel_index(left.argmin(), left.shape)
    if taken < len(empty):
        full.append(empty.pop(int(taken)))
    empty.append(full.pop(int(given)))
    return float(tokens[given, taken])


def cut_window(lengths: np.ndarray, tokens_per_micro_batch: int, flat: bool = False) -> list[np.ndarray]:
    """Positions of each micro-batch, longest first, so that padding and the number of batches cost least together.

    Sorted by length, a micro-batch is a run of neighbours, padded to its longest; dynamic programming over the places
    to cut minimises sum(tokens + overhead). An example over the budget travels alone.

    Args:
        lengths: [window] tokens of each example.
        tokens_per_micro_batch: the budget of tokens that go through the layers at once.
        flat: the layers see real tokens only (flattened.py), so that padding costs what embeddings do with it.
    """
    order = np.argsort(-lengths, kind="stable")
    sorted_lengths = lengths[order]
    real_before = np.concatenate([[0], np.cumsum(sorted_lengths)])
    count = len(order)
    overhead = FLAT_OVERHEAD_TOKENS if flat else OVERHEAD_TOKENS
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    cut_before = np.zeros(count + 1, dtype=int)
    for end in range(1, count + 1):
        starts = np.arange(end)
        padded = sorted_lengths[starts] * (end - starts)
        real = real_before[end] - real_before[starts]
        tokens = real + EMBEDDING_SHARE * (padded - real) if flat else padded
        fits = (tokens <= tokens_per_micro_batch) & (padded <= MOST_PADDED * tokens_per_micro_batch)
        cost = np.where(fits | (starts == end - 1), best[:end] + tokens + overhead, np.inf)
        cut_before[end] = int(cost.argmin())
        best[end] = cost[cut_before[end]]
    pieces = []
    end = count
    while end:
        start = cut_before[end]
        pieces.append(order[start:end])
        end = start
    return pieces[::-1]


def padding_fraction(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Share of the tokens of ``batches``, each padded to its longest row, that are padding; nan without any token."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - int(np.sum(lengths)) / padded if padded else math.nan


def sorted_batches(
    lengths: Sequence[int] | np.ndarray, tokens_per_batch: int, evenly: bool = False
) -> list[np.ndarray]:
    """Row numbers of each batch of an evaluation: all rows sorted by length, filled up to the token budget.

    ``evenly``: where padding costs as much as tokens do, a batch ends where its cost for each real token, padding and
    ``OVERHEAD_TOKENS`` included, is least. From 200 rows on, that costs up to 1% more than the cheapest cut of all rows
    together, which takes half a second to find for 5,000 of them (benchmarks/LOG.md).
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    real_before = np.concatenate([[0], np.cumsum(lengths[order])])
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, tokens_per_batch // longest)
        if evenly:
            real = real_before[start + 1 : start + size + 1] - real_before[start]
            padded = longest * np.arange(1, len(real) + 1)
            size = int(((padded + OVERHEAD_TOKENS) / np.maximum(real, 1)).argmin()) + 1
        batches.append(order[start : start + size])
        start += size
    return batches
