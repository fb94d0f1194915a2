"""Floor 1: where two files of unequal length, meant to be aligned line by line, stop to match.

Line i of the source is compared with line i + shift of the target for a few shifts. A line pair scores a log likelihood
ratio, translation against chance, from what a translation keeps: length in characters (Gale and Church 1993: the
logarithm of the ratio is near its median), closing punctuation, and rare tokens that stand in both files (numbers,
names, addresses). Up to the drift shift 0 scores best, from there on another one does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST_SHIFT = 10
NOTHING: frozenset[str] = frozenset()
LINES_COMPARED = 300_000
"""Lines of each file that are looked at: 5 seconds."""
SCORE_LIMIT = 4.0
"""Most and least that one line may count, in nats: no single line decides."""
LEAST_MEAN_GAIN = 0.3
"""Nats per line by which the other shift must be better after the drift, and worse before it."""
LEAST_T = 5.0
"""The same in standard errors: the best of many stretches of unrelated files reaches 3 to 4."""
FEWEST_LINES = 10
"""No shorter stretch shows anything."""
END_LINES = 40
"""All lines match only if the last ones do."""
LEAST_T_AT_END = 3.0
"""Those are no selected stretch."""


def describe_drift(source: Sequence[str], target: Sequence[str]) -> str:
    """One or two sentences on where the lines of two files begin to drift, or that it cannot be told."""
    line = find_drift(source, target)
    if line is None:
        return "Where they drift cannot be told: look for a line break or an empty line that only one of them has."
    compared = min(len(source), len(target), LINES_COMPARED)
    if line > compared:
        return f"Lines 1 to {compared:,} seem to match: look at what comes after them."
    return f"They seem to drift from line {line:,}: look for a line that only one of them has, there or shortly before."


def find_drift(source: Sequence[str], target: Sequence[str]) -> int | None:
    """The line, counted from 1, from which another shift explains both files clearly better; off by a few at times.

    One more than the number of lines that were compared if all of them match; None if nothing can be told.
    """
    # 1. Score each shift on the same lines. Shifts reach a little further than the difference of the lengths.
    # 2. For each shift, the sum of (its score - that of shift 0) over the first k lines falls before the drift and
    #    rises after it: its minimum is the drift, if both slopes are clear. The earliest of these is the answer.
    # 3. Without any, all lines match if shift 0 is clearly better than chance and than the other shifts to the end.
    longest = min(LONGEST_SHIFT, max(2, abs(len(source) - len(target))))
    source, target = source[:LINES_COMPARED], target[:LINES_COMPARED]
    count = min(len(source), len(target))
    if count < FEWEST_LINES:
        return None
    pairs = _Pairs(source, target)
    unshifted = pairs.scores(0, count)
    last = slice(-END_LINES, None)
    all_match = _is_clear(unshifted) and _is_clear(unshifted[last], LEAST_T_AT_END)
    found: list[int] = []
    for shift in (*range(-longest, 0), *range(1, longest + 1)):
        gain = pairs.scores(shift, count) - unshifted
        total = np.concatenate([[0.0], np.cumsum(gain)])
        start = int(np.argmin(total))
        end = start + int(np.argmax(total[start:]))
        if _is_clear(gain[start:end]) and (start < FEWEST_LINES or _is_clear(-gain[:start])):
            found.append(start)
        all_match = all_match and _is_clear(-gain) and _is_clear(-gain[last], LEAST_T_AT_END)
    if found:
        return min(found) + 1
    return count + 1 if all_match else None


def _is_clear(gain: np.ndarray, least_t: float = LEAST_T) -> bool:
    """Whether the mean of ``gain`` [lines], in nats, is over zero beyond chance."""
    if len(gain) < FEWEST_LINES:
        return False
    return bool(gain.mean() > max(LEAST_MEAN_GAIN, least_t * gain.std() / np.sqrt(len(gain))))


class _Pairs:
    """What of each line is compared."""

    def __init__(self, source: Sequence[str], target: Sequence[str]):
        self.lengths = [np.array([len(line.strip()) for line in lines], float) for lines in (source, target)]
        self.endings = [np.array([line.rstrip(" \"'»“”)")[-1:] for line in lines]) for lines in (source, target)]
        self.anchors = _anchors(source, target)
        typical = [np.median(np.log(lengths + 5)) for lengths in self.lengths]
        self.median_ratio = typical[1] - typical[0]
        # two lengths drawn by chance differ by this much
        self.spread = max(0.5, float(np.sqrt(sum(np.var(np.log(lengths + 5)) for lengths in self.lengths))))

    def scores(self, shift: int, count: int) -> np.ndarray:
        """[count] nats for source line i and target line i + shift; 0 where there is none."""
        rows = np.arange(count)
        inside = (rows + shift >= 0) & (rows + shift < len(self.lengths[1]))
        rows = rows[inside]
        first, second = self.lengths[0][rows], self.lengths[1][rows + shift]
        ratio = np.log(second + 5) - np.log(first + 5) - self.median_ratio
        near = 0.25
        score = np.log(self.spread / near) - ratio**2 / 2 * (near**-2 - self.spread**-2)
        score = np.clip(score, -SCORE_LIMIT / 2, SCORE_LIMIT / 2)
        score += np.where(self.endings[0][rows] == self.endings[1][rows + shift], 0.2, -0.8)
        both = np.zeros(count)
        both[inside] = score
        for row, tokens in self.anchors[0].items():
            if row < count:
                both[row] += 2.0 * min(2, len(tokens & self.anchors[1].get(row + shift, NOTHING)))
        return np.clip(both, -SCORE_LIMIT, SCORE_LIMIT)


def _anchors(source: Sequence[str], target: Sequence[str]) -> list[dict[int, set[str]]]:
    """By side and line, the tokens that stand in both files and in few lines of each; no line without any."""
    tokens = [[set(re.findall(r"\w*\d[\w.,]*\w|\d|\w{4,}", line)) for line in lines] for lines in (source, target)]
    counts = [Counter(token for line in side for token in line) for side in tokens]
    most = max(3, min(len(source), len(target)) // 200)
    kept = {token for token, count in counts[0].items() if count <= most and 0 < counts[1][token] <= most}
    return [{row: line & kept for row, line in enumerate(side) if not kept.isdisjoint(line)} for side in tokens]
