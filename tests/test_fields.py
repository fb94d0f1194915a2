"""Fields of a config record: their names, what fits into them, and how that is put into words."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from hf_transfer.fields import choices, fits, flatten, in_words, is_list, is_optional_text, kinds_of, nearest, options

Size = Literal["small", "large"]


@dataclass(frozen=True)
class Inner:
    size: Size = "small"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int = 3
    inner: Inner = field(default_factory=Inner)
    rate: float | None = None


def test_a_record_is_flattened_to_dotted_names_in_the_order_of_its_fields():
    flat = flatten(Outer(inner=Inner(names=("a", "b"))))
    assert list(flat.items()) == [("count", 3), ("inner.size", "small"), ("inner.names", ("a", "b")), ("rate", None)]


def test_every_flat_name_has_its_kind():
    kinds = kinds_of(Outer)
    assert kinds == {"count": int, "inner.size": Size, "inner.names": tuple[str, ...], "rate": float | None}
    assert list(kinds) == list(flatten(Outer()))


def test_a_union_has_members_and_another_kind_is_its_own_only_one():
    assert choices(float | None) == (float, type(None))
    assert choices(Size | None) == (Size, type(None))
    assert choices(int) == (int,)
    assert choices(tuple[str, ...]) == (tuple[str, ...],)


def test_lists_optional_text_and_words_to_choose_from_are_told_apart():
    kinds = {"list": tuple[int, ...], "text": str, "optional": str | None, "choice": Size, "maybe": Size | None}
    assert [name for name, kind in kinds.items() if is_list(kind)] == ["list"]
    assert [name for name, kind in kinds.items() if is_optional_text(kind)] == ["optional"]
    assert {name: options(kind) for name, kind in kinds.items() if options(kind)} == {
        "choice": ("small", "large"),
        "maybe": ("small", "large"),
    }


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [1.5, 2, float("nan")], [False, "1", None]),
        (bool, [True, False], [1, 0, "true", None]),
        (str, ["", "a"], [1, None, ("a",)]),
        (str | None, ["a", None], [1]),
        (float | None, [None, 1, 1.5], [True, "1"]),
        (Size, ["small"], ["medium", "", None, 1, ["small"]]),
        (Size | None, ["large", None], ["medium"]),
        (tuple[str, ...], [(), ("a",), ["a", "b"]], ["ab", ("a", 1), {"a"}, None, ("a", None)]),
        (tuple[int, ...], [(), (0,), [1, 2]], [1, ("1",), (True,), (1.0,), None]),
    ],
    ids=["int", "float", "bool", "str", "str?", "float?", "choice", "choice?", "names", "numbers"],
)
def test_what_fits_into_a_field_and_what_does_not(kind, fitting, others):
    assert [value for value in fitting if not fits(value, kind)] == []
    assert [value for value in others if fits(value, kind)] == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "text"),
        (str | None, "text or null"),
        (int | None, "a whole number or null"),
        (Size, "one of small, large"),
        (Size | None, "one of small, large or null"),
        (tuple[str, ...], "a list of names"),
        (tuple[int, ...], "a list of whole numbers"),
    ],
)
def test_what_a_field_expects_is_put_into_words(kind, words):
    assert in_words(kind) == words


KNOWN = ("train.epochs", "train.learning_rate", "train.head_learning_rate", "adapt.lora_rank", "seed", "seeds")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("train.epoch", ["train.epochs"]),
        ("epochs", ["train.epochs"]),  # without its section
        ("data.epochs", ["train.epochs"]),  # in another section
        ("sed", ["seed", "seeds"]),
        ("adapt.rank", ["adapt.lora_rank"]),
        ("quux", []),
        ("", []),
    ],
)
def test_the_nearest_names_are_found_with_or_without_the_section(name, close):
    found = nearest(name, KNOWN)
    assert found == ", ".join(close)


def test_at_most_three_names_are_offered_each_once():
    assert nearest("train.learning_rate", ["train.learning_rate"]) == "train.learning_rate"
    known = [f"{section}.rate{i}" for section in ("train", "data") for i in range(9)]
    offered = nearest("train.rate", known).split(", ")
    assert len(offered) == len(set(offered)) == 3
