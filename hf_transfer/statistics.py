"""Floor 1: how sure a score is. Bootstrap resamples, intervals and the seeds that make them repeatable.

A resample is written as counts, how often it holds each row, and never as a list of drawn rows: a score of counts
is a few array operations for hundreds of resamples at once, and equal examples can share one row.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

NUMBERS_PER_CHUNK = 1 << 18
"""Counts made at a time: 2 MB, which stay in the cache. Chunks of 8 MB took up to twice as long, of 64 MB more."""

EXAMPLES_PER_CELL = 10
"""Examples per distinct row from which one multinomial draw per row (about 120 ns) beats one integer draw per
example (about 12 ns)."""


def derived_seed(seed: int, *names: str) -> int:
    """Return a seed of 64 bits for the thing called ``names`` in a run with ``seed``.

    The same on every machine and in every process (``hash`` of a string is not), and free of whatever else is
    drawn in the run.
    """
    text = "\0".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def bootstrap_counts(copies: np.ndarray, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each row occurs in resamples drawn with replacement from the examples.

    Drawing examples and then counting equal ones is the same as drawing the counts of the distinct ones from a
    multinomial distribution, so a metric that only sees few distinct rows costs no more for many examples.

    Args:
        copies: [rows] integers, examples that each distinct row stands for; ones if each row is one example.
        resamples: how many to draw in all.
        rng: where the draws come from.

    Yields:
        [chunk, rows] float64 (ready for matrix products); each row sums to ``copies.sum()``. The chunks add up
        to ``resamples``; each holds at most ``NUMBERS_PER_CHUNK`` numbers, or one resample if that is more.
    """
    rows, examples = len(copies), int(copies.sum())
    assert examples > 0, "there is nothing to resample: scores of no examples are settled before"
    few_rows = rows * EXAMPLES_PER_CELL <= examples
    row_of_example = np.repeat(np.arange(rows), copies)
    chunk = max(1, NUMBERS_PER_CHUNK // (rows if few_rows else examples))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        if few_rows:
            counts = rng.multinomial(examples, copies / examples, size=size)
        else:
            drawn = row_of_example[rng.integers(0, examples, size=(size, examples))]
            drawn += rows * np.arange(size)[:, None]  # a range of its own per resample: one bincount for all
            counts = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        yield counts.astype(np.float64)


def percentile_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the percentile bootstrap interval of ``values``.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), equation 13.5. The interval is that of the
    resamples: where all examples agree (every prediction right, say) it has no width, however few they are.

    Args:
        values: [resamples] scores. Those that are nan, because the score is undefined in that resample, are left out.
        confidence: level in (0, 1).

    Returns:
        ``(low, high)``; both nan where no resample has a score.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
