"""Unequal files: the line of the drift is found where it can be, and nothing is claimed where it cannot."""

from __future__ import annotations

import random

import pytest

from hf_transfer.sources import drift
from hf_transfer.sources.drift import describe_drift, find_drift

SYLLABLES = ("ba", "ko", "lin", "mer", "tas", "u", "ver", "zig")


def pairs(count: int, seed: int, anchored: float = 0.2) -> tuple[list[str], list[str]]:
    """Sentences of 2 to 20 words and as many of other words, a third longer; some with a number in both."""
    rng = random.Random(seed)
    source, target = [], []
    for _ in range(count):
        length = rng.randint(2, 20)
        number = f" {rng.randint(100, 9999)}" if rng.random() < anchored else ""
        end = rng.choice(".?!")
        for side, syllables in ((source, 2), (target, 3)):
            words = ("".join(rng.choices(SYLLABLES, k=syllables)) for _ in range(length + rng.randint(-1, 1)))
            side.append(" ".join(words) + number + end)
    return source, target


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("side", [0, 1])
def test_a_line_that_one_file_lacks_is_found_within_two_lines(seed, side):
    both = pairs(200, seed)
    del both[side][100]
    assert abs(find_drift(*both) - 101) <= 2


def test_several_extra_lines_are_found_where_they_begin():
    source, target = pairs(200, 1)
    target[60:60] = pairs(4, 99)[1]
    assert abs(find_drift(source, target) - 61) <= 2


def test_of_two_drifts_the_first_is_told():
    found = []
    for seed in range(5):
        source, target = pairs(300, seed)
        del target[220], target[90]
        found.append(find_drift(source, target))
    assert sorted(abs(line - 91) for line in found)[2] <= 2  # the median


def test_a_drift_in_the_first_line_is_found():
    source, target = pairs(100, 3)
    assert find_drift(source, ["A line before all others.", *target]) in (1, 2)


def test_a_file_that_goes_on_matches_up_to_the_end_of_the_other():
    source, target = pairs(200, 2)
    assert find_drift(source, target[:-3]) == 198
    assert describe_drift(source, target[:-3]) == "Lines 1 to 197 seem to match: look at what comes after them."


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_claimed_about_files_that_are_unrelated(seed):
    source, _ = pairs(200, seed)
    _, target = pairs(199, seed + 1000)
    assert find_drift(source, target) is None


def test_nothing_is_claimed_about_short_or_uniform_files():
    assert find_drift(["a"], []) is None
    assert find_drift(["a b c.", "d e f."], ["g h i."]) is None
    assert find_drift(["the same."] * 100, ["das gleiche."] * 99) is None
    assert "cannot be told" in describe_drift(["a"], [])


def test_only_the_first_lines_of_very_long_files_are_compared(monkeypatch):
    source, target = pairs(200, 2)
    monkeypatch.setattr(drift, "LINES_COMPARED", 100)
    assert describe_drift(source, target[:-1]) == "Lines 1 to 100 seem to match: look at what comes after them."
