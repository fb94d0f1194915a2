"""Floor 0: labels as they are read: class names, several of them, or numbers; and which kind of problem they make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hf_transfer.records import Problem

Label = str | float | tuple[str, ...]
"""One class name, a number with a fraction, or any number of class names."""


def read_label(raw: Any, separator: str | None) -> Label:
    """One raw label in canonical form: 3, "3" and 3.0 are the class "3"; a list or a separated string is a tuple."""
    if isinstance(raw, (list, tuple)):
        return tuple(_name(item) for item in raw)
    if separator is not None:
        return tuple(part.strip() for part in _name(raw).split(separator) if part.strip())
    if isinstance(raw, float) and not raw.is_integer():
        return raw
    return _name(raw)


def _name(raw: Any) -> str:
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    return str(raw).strip()


def as_names(label: Label) -> tuple[str, ...]:
    """The class names of a label."""
    return label if isinstance(label, tuple) else (str(label),)


def guess_problem(labels: Sequence[Label]) -> Problem:
    """Tuples are multi-label; numbers with at least one fraction are regression; anything else is single-label."""
    if any(isinstance(label, tuple) for label in labels):
        return "multi_label"
    numbers = [read_number(label) for label in labels]
    if all(number is not None for number in numbers) and any(number % 1 for number in numbers if number is not None):
        return "regression"
    return "single_label"


def read_number(label: Any) -> float | None:
    """A finite number, or None."""
    try:
        value = float(label)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None


def sort_names(names: Iterable[str]) -> list[str]:
    """Natural order: digits compare as numbers, so that "2" comes before "10"."""

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", name)
        return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]

    return sorted(names, key=lambda name: (key(name), name))
