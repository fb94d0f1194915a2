"""Floor 0: what the fields of a config record are called, and what each of them may hold."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of a config record, in the order of its fields."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{item.name}."))
        else:
            flat[prefix + item.name] = value
    return flat


def kinds_of(record: type, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all fields and their types."""
    kinds: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(record).items():
        kinds |= kinds_of(kind, f"{name}.") if dataclasses.is_dataclass(kind) else {prefix + name: kind}  # type: ignore[arg-type]
    return kinds


def choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, else the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def is_list(kind: Any) -> bool:
    """Whether the field holds several values, which a command line separates by commas."""
    return typing.get_origin(kind) is tuple


def is_optional_text(kind: Any) -> bool:
    """Whether the field holds text or nothing."""
    return set(choices(kind)) == {str, types.NoneType}


def options(kind: Any) -> tuple[str, ...]:
    """The words that a field may hold; () where it may hold others."""
    return tuple(
        word for choice in choices(kind) if typing.get_origin(choice) is Literal for word in typing.get_args(choice)
    )


def fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the type ``kind``, a list counting as a tuple and a whole number as a float."""
    for choice in choices(kind):
        if typing.get_origin(choice) is Literal:
            ok = isinstance(value, str) and value in options(choice)
        elif is_list(choice):
            ok = isinstance(value, (tuple, list)) and all(fits(item, typing.get_args(choice)[0]) for item in value)
        elif choice in (int, float):
            ok = isinstance(value, (int, choice)) and not isinstance(value, bool)
        else:
            ok = isinstance(value, choice)
        if ok:
            return True
    return False


def in_words(kind: Any) -> str:
    """What a field expects, for a message."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    parts = [f"one of {', '.join(options(kind))}"] if options(kind) else []
    if is_list(kind):
        parts.append("a list of whole numbers" if int in typing.get_args(kind) else "a list of names")
    return " or ".join([*parts, *(words[choice] for choice in choices(kind) if choice in words)])


def nearest(name: str, known: Sequence[str]) -> str:
    """Up to three known names that look like ``name``, joined for a message; "" if none does."""
    last = name.rsplit(".", 1)[-1]
    by_last = {item.rsplit(".", 1)[-1]: item for item in known}
    close = difflib.get_close_matches(name, known, 3, 0.7)
    close += [by_last[item] for item in difflib.get_close_matches(last, list(by_last), 3, 0.75)]
    return ", ".join(list(dict.fromkeys(close))[:3])
