"""Splits: published ones are kept, missing ones are drawn by content and leave no class out, leaks are announced."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainSplits, DomainTable
from hf_transfer.splits import split_by_domain

SHARED = Path(os.environ.get("HF_TRANSFER_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def table_of(rows: list[dict], **fields) -> DomainTable:
    """Rows need a text; the rest has defaults."""
    full = [
        {"example_id": str(i), "place": f"t:{i}", "domain": "books", "split": "", "label": "a", **row}
        for i, row in enumerate(rows, 1)
    ]
    return DomainTable(datasets.Dataset.from_list(full), "t", "f", **fields)


def numbered(count: int, domain: str = "books", split: str = "", classes: int = 2) -> list[dict]:
    return [
        {"text": f"{domain} number {i}", "domain": domain, "split": split, "label": str(i % classes)}
        for i in range(count)
    ]


def split(rows: list[dict] | DomainTable, seed: int = 0, **settings) -> DomainSplits:
    table = rows if isinstance(rows, DomainTable) else table_of(rows)
    return split_by_domain(table, DataConfig(**settings), seed)


def refused(rows: list[dict], **settings) -> str:
    with pytest.raises(InputError) as caught:
        split(rows, **settings)
    return str(caught.value)


def texts(rows: datasets.Dataset) -> list[str]:
    return list(rows["text"])


def assigned(splits: DomainSplits) -> dict[str, str]:
    """Split of each text."""
    named = {"train": splits.train, "validation": splits.validation, **splits.test}
    return {text: name for name, rows in named.items() for text in texts(rows)}


def test_missing_splits_are_drawn_at_their_fractions_in_every_domain_and_label():
    rows = numbered(2000, classes=4) + numbered(1000, "dvd", classes=4)
    splits = split(rows, test_fraction=0.2, validation_fraction=0.1)
    assert splits.rule == (
        "test drawn by content hash (20%, at least 1 text of a class with 5); "
        "validation drawn from train by content hash (10%, at least 1 text of a class with 4)"
    )
    assert sum(splits.test[domain].num_rows for domain in splits.test) + splits.train.num_rows + (
        splits.validation.num_rows
    ) == len(rows)
    # 4 standard deviations of a binomial draw
    for domain, count in (("books", 2000), ("dvd", 1000)):
        assert abs(splits.test[domain].num_rows - 0.2 * count) < 4 * (count * 0.2 * 0.8) ** 0.5
        for label, in_class in Counter(splits.test[domain]["label"]).items():
            assert abs(in_class - 0.05 * count) < 4 * (count / 4 * 0.2 * 0.8) ** 0.5, label
    assert abs(splits.validation.num_rows - 0.1 * 2400) < 4 * (2400 * 0.1 * 0.9) ** 0.5


def test_the_validation_draw_is_independent_of_the_test_draw():
    # one draw for both would leave no row under 10% once those under 20% are test
    splits = split(numbered(400), test_fraction=0.2, validation_fraction=0.1)
    assert splits.validation.num_rows > 10


def test_a_row_keeps_its_split_when_rows_are_added_or_moved_and_for_every_seed():
    rows = numbered(200)
    before = assigned(split(rows))
    for after in (
        assigned(split(numbered(50, "dvd") + rows[::-1] + numbered(300)[200:])),
        assigned(split(rows, seed=7)),
        assigned(split([{**row, "label": "other"} for row in rows])),
    ):
        assert {text: after[text] for text in before} == before


def test_equal_texts_never_part():
    rows = [row for i in range(100) for row in ({"text": f"Text {i}"}, {"text": f"text  {i}", "label": "b"})]
    splits = split(rows)
    assert splits.leaks.exact == 0
    assert len({text.lower().replace("  ", " ") for text in assigned(splits)}) == 100


def test_the_second_text_of_a_pair_takes_part_in_the_draw():
    rows = [{"text": "the same premise", "text_pair": f"hypothesis {i}"} for i in range(200)]
    splits = split(rows)
    assert 0 < splits.test["books"].num_rows < 200


def test_published_splits_are_kept():
    rows = [
        *numbered(30, split="train"),
        {"text": "held out", "split": "validation"},
        {"text": "scored", "split": "test"},
        {"text": "of no split", "split": ""},
    ]
    splits = split(rows)
    assert texts(splits.validation) == ["held out"] and texts(splits.test["books"]) == ["scored"]
    assert splits.train.num_rows == 31
    assert splits.rule == "test published; validation published"


def test_published_test_without_validation_takes_validation_from_train_only():
    splits = split(numbered(300, split="train") + [{"text": f"scored {i}", "split": "test"} for i in range(50)])
    assert splits.test["books"].num_rows == 50 and 10 < splits.validation.num_rows < 60
    assert splits.rule == (
        "test published; validation drawn from train by content hash (10%, at least 1 text of a class with 4)"
    )


def test_a_domain_without_published_test_is_drawn_by_content_beside_one_that_has_it():
    rows = [*numbered(100, split="train"), {"text": "scored", "split": "test"}, *numbered(100, "dvd")]
    splits = split(rows)
    assert splits.test["books"].num_rows == 1 and 5 < splits.test["dvd"].num_rows < 40
    assert splits.rule.startswith("test published, for dvd drawn by content hash (20%, ")


def test_a_domain_has_the_same_test_rows_whether_or_not_it_is_trained_on():
    rows = numbered(100) + numbered(100, "dvd")
    there, back = split(rows, train_domains=("books",)), split(rows, train_domains=("dvd",))
    for domain in ("books", "dvd"):
        assert texts(there.test[domain]) == texts(back.test[domain])
    assert set(there.train["domain"]) == set(there.validation["domain"]) == {"books"}
    assert (there.role("books"), there.role("dvd")) == ("in_domain", "shifted")


def test_test_domains_come_train_domains_first_each_in_order_of_appearance():
    rows = [row for domain in ("dvd", "books", "music", "apps") for row in numbered(60, domain)]
    splits = split(rows, train_domains=("apps", "books"))
    assert list(splits.test) == ["books", "apps", "dvd", "music"] and splits.train_domains == ("books", "apps")
    assert list(split(rows, train_domains=("books",), test_domains=("music", "dvd")).test) == ["dvd", "music"]


def test_default_train_domains_are_the_recommended_ones_else_all():
    rows = numbered(60) + numbered(60, "dvd")
    assert split(rows).train_domains == ("books", "dvd")
    recommended = table_of(rows, default_train_domains=("dvd",))
    assert split(recommended).train_domains == ("dvd",) and list(split(recommended).test) == ["dvd", "books"]
    assert split(recommended, train_domains=("books",)).train_domains == ("books",)


def test_a_domain_with_test_rows_only_is_shifted_by_default_and_noted():
    splits = split(numbered(60, split="train") + numbered(5, "dvd", split="test"))
    assert splits.train_domains == ("books",) and list(splits.test) == ["books", "dvd"]
    assert "not trained on, for want of train rows: dvd." in splits.notes


def test_a_domain_without_test_rows_is_noted_and_refused_if_it_was_named():
    rows = [*numbered(60), {"text": "held out", "domain": "dvd", "split": "validation"}]
    splits = split(rows, train_domains=("books",))
    assert list(splits.test) == ["books"] and any("not scored, for want of test rows: dvd" in n for n in splits.notes)
    assert "--data.test_domains names 'dvd', which has no test rows" in refused(rows, test_domains=("dvd",))
    assert "--data.train_domains names 'dvd', which has no train rows" in refused(rows, train_domains=("dvd",))


def test_unknown_domains_are_refused_together_with_the_nearest_known_ones():
    message = refused(numbered(40) + numbered(40, "dvd"), train_domains=("book",), test_domains=("cd",))
    assert (
        "train_domains names 'book', which the data do not hold. Did you mean books? There are books, dvd." in message
    )
    assert "test_domains names 'cd'" in message


def test_data_with_nothing_to_train_on_are_refused():
    message = refused(numbered(40, split="test"))
    assert "nothing is left to train on" in message and "40 test" in message and "--data.train_domains" in message
    assert "no domain has test rows" in refused([{"text": "x", "split": "validation"}])


def kinds(rows: datasets.Dataset) -> set[tuple[str, str]]:
    return set(zip(rows["domain"], rows["label"], strict=True))


@pytest.mark.parametrize("series", range(20))
def test_a_rare_class_reaches_test_validation_and_train(series):
    # 3% of 200 rows: by the draw alone, test would lack the class in 26 of 100 cases and validation in 60 of the rest
    rows = [{"text": f"text {series} {i}", "label": "rare" if i % 33 == 1 else "common"} for i in range(200)]
    assert sum(row["label"] == "rare" for row in rows) == 7
    splits = split(rows)
    for found in (splits.test["books"], splits.validation, splits.train):
        assert kinds(found) == {("books", "rare"), ("books", "common")}
    assert splits.train["label"][:].count("rare") >= 3 and splits.notes == ()


def position(salt: str, text: str) -> float:
    """The number that decides, worked out anew: the first 64 bits of two nested sha256."""
    digest = hashlib.sha256(salt.encode() + b"\0" + hashlib.sha256(text.encode()).digest()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def test_a_class_lends_its_nearest_text_and_only_where_none_falls_under_the_fraction():
    rows = [{"text": f"text {i}", "label": str(i // 6)} for i in range(240)]
    splits = split(rows, test_fraction=0.2, validation_fraction=0.1)
    by_class = {str(label): [row["text"] for row in rows if row["label"] == str(label)] for label in range(40)}
    lending = 0
    for label, members in by_class.items():
        test = {text for text in members if position("test", text) < 0.2}
        lending += not test
        test = test or {min(members, key=lambda text: position("test", text))}
        rest = set(members) - test
        validation = {text for text in rest if position("validation", text) < 0.1}
        if not validation and len(rest) >= 4:
            validation = {min(rest, key=lambda text: position("validation", text))}
        assert {text for text in texts(splits.test["books"]) if text in members} == test, label
        assert {text for text in texts(splits.validation) if text in members} == validation, label
    assert 3 < lending < 20


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Texts that were there before and are in another split now."""
    return {text: (before[text], after[text]) for text in before if before[text] != after[text]}


@pytest.mark.parametrize("seed", range(3))
def test_added_rows_move_lent_texts_only_and_at_most_one_of_a_class_out_of_test(seed):
    # 60 classes that grow from 5 texts to 20, in 15 steps of 60 rows
    rng = random.Random(seed)
    rows = [{"text": f"text {seed} {i}", "label": str(i % 60)} for i in range(1200)]
    label_of = {row["text"]: row["label"] for row in rows}
    there, coming = rows[:300], rows[300:]
    rng.shuffle(coming)

    def nearest_of_each_class() -> dict[str, str]:
        texts_of: dict[str, list[str]] = {}
        for row in there:
            texts_of.setdefault(row["label"], []).append(row["text"])
        return {label: min(members, key=lambda text: position("test", text)) for label, members in texts_of.items()}

    before, nearest, moved, out_of_test = assigned(split(there)), nearest_of_each_class(), 0, 0
    for step in range(15):
        added = coming[60 * step : 60 * step + 60]
        there = rng.sample(there + added, len(there) + 60)
        after, nearest_now = assigned(split(there)), nearest_of_each_class()
        found = changes(before, after)
        assert {label_of[text] for text in found} <= {row["label"] for row in added}, "the other classes stay"
        returned = {text for label, text in nearest.items() if position("test", text) >= 0.2} - {*nearest_now.values()}
        assert {text for text, (old, new) in found.items() if "books" in (old, new)} == returned
        moved, out_of_test = moved + len(found), out_of_test + len(returned)
        before, nearest = after, nearest_now
    # 60 x 0.8 ** 5 = 20 classes lend to test at first, and until one of their texts falls under the fraction
    assert 10 < out_of_test < 40
    # a plain draw would move none, exact quotas any; each class lends to validation too, and longer
    assert out_of_test < moved < 120


def test_a_class_with_a_text_under_the_fraction_keeps_all_its_texts_where_they_are():
    rows = numbered(2000)
    assert changes(assigned(split(rows[:100])), assigned(split(rows))) == {}


def test_a_lent_text_takes_its_twins_along_in_every_class_and_domain():
    rows = [
        {"text": f"Text {i}", "label": str(i // 5), "domain": domain} for i in range(100) for domain in ("books", "dvd")
    ]
    rows += [{"text": f"text  {i}", "label": "twin"} for i in range(100)]
    splits = split(rows)
    assert splits.leaks.exact == 0
    of = {}
    for name, found in (
        ("train", splits.train),
        ("validation", splits.validation),
        *(("test", r) for r in splits.test.values()),
    ):
        for text in texts(found):
            of.setdefault(text.lower().replace("  ", " "), set()).add(name)
    assert len(of) == 100 and all(len(names) == 1 for names in of.values())
    assert kinds(splits.test["books"]) >= {("books", str(i)) for i in range(20)}, "as each of five texts lends"


def test_twins_count_once_towards_the_texts_that_a_class_needs_to_lend():
    lent = {"test_fraction": 1e-9, "validation_fraction": 1e-9}
    four = [{"text": f"text {i % 4}"} for i in range(12)]
    assert "no domain has test rows" in refused(four, **lent)
    five = split([{"text": f"text {i % 5}"} for i in range(15)], **lent)
    assert [rows.num_rows for rows in (five.train, five.validation, five.test["books"])] == [9, 3, 3]


def test_each_class_of_a_text_with_several_is_represented():
    rows = [{"text": f"text {i}", "label": ["often"] + ["rare"] * (i % 30 == 0)} for i in range(200)]
    lists = split(rows)
    joined = split([{**row, "label": "|".join(row["label"])} for row in rows], label_separator="|")
    for splits in (lists, joined):
        for found in (splits.train, splits.validation, splits.test["books"]):
            assert any("rare" in label for label in found["label"])
    assert assigned(lists) == assigned(joined)


def test_numbers_to_regress_are_represented_by_domain_and_never_listed_as_classes():
    rows = [{"text": f"{d} {i}", "label": i / 7, "domain": d} for d in ("books", "dvd") for i in range(5)]
    splits = split(rows)
    assert all(found.num_rows for found in splits.test.values()) and set(splits.validation["domain"]) == {
        "books",
        "dvd",
    }
    assert splits.notes == ()


def test_validation_is_never_empty_where_train_can_spare_a_row():
    rows = [*numbered(3, split="train"), {"text": "scored", "split": "test", "label": "0"}]
    splits = split(rows, validation_fraction=0.0001)
    assert splits.validation.num_rows == 1 and splits.train.num_rows == 2
    assert "no row fell to validation by content" in splits.notes[0]
    one = split([{"text": "only", "split": "train"}, {"text": "scored", "split": "test"}])
    assert (one.train.num_rows, one.validation.num_rows) == (1, 0)


def test_classes_without_validation_or_test_rows_are_noted_smallest_first():
    scored = [{"text": f"scored {domain}", "domain": domain, "split": "test"} for domain in ("books", "dvd")]
    rows = [
        *numbered(9, split="train", classes=3),
        *numbered(30, "dvd", split="train", classes=1),
        {"text": "held out", "split": "validation", "label": "1"},
        {"text": "by itself", "domain": "dvd", "label": "alone"},
        *scored,
    ]
    assert split(rows, validation_fraction=1e-9, test_domains=("dvd",)).notes == (
        "no validation row, so selection does not see them: dvd 'alone' (1 row), books '0' (3 rows), books '2' (3 "
        "rows); give more rows.",
        "no test row, so no score speaks for them: dvd 'alone' (1 row), dvd '0' (30 rows); give more rows.",
    )
    many = [{"text": f"text {i}", "label": str(i // 2)} for i in range(40)]
    note = split([*many, *scored[:1]]).notes[-1]
    assert note == (
        "no test row, so no score speaks for them: books '0' (2 rows), books '1' (2 rows), books '2' (2 rows) and 17 "
        "more; give more rows."
    )
    bare = split([*numbered(20), *numbered(2, "dvd", split="train"), *scored], validation_fraction=1e-9)
    assert "no validation row, so selection does not see them: dvd (2 rows); give more rows." in bare.notes


def test_caps_are_met_nested_repeatable_and_stratified():
    rows = numbered(600, classes=3) + numbered(300, "dvd", classes=3)
    chosen = {cap: texts(split(rows, max_train_examples=cap).train) for cap in (30, 90, 300)}
    assert {cap: len(rows) for cap, rows in chosen.items()} == {30: 30, 90: 90, 300: 300}
    assert set(chosen[30]) < set(chosen[90]) < set(chosen[300])
    assert texts(split(rows, max_train_examples=90).train) == chosen[90]
    assert set(texts(split(rows, seed=1, max_train_examples=90).train)) != set(chosen[90])
    capped = split(rows, max_train_examples=90).train
    strata = Counter(zip(capped["domain"], capped["label"], strict=True))
    whole = split(rows).train
    for stratum, count in Counter(zip(whole["domain"], whole["label"], strict=True)).items():
        assert abs(strata[stratum] - 90 * count / whole.num_rows) <= 1.5, stratum
    assert split(rows, max_train_examples=10_000).train.num_rows == whole.num_rows


def test_a_cap_leaves_validation_and_test_alone():
    full, capped = split(numbered(300)), split(numbered(300), max_train_examples=20)
    assert texts(full.validation) == texts(capped.validation) and texts(full.test["books"]) == texts(
        capped.test["books"]
    )


LEAKING = [
    *numbered(40, split="train"),
    {"text": "A text that stands twice", "split": "train"},
    {"text": "a text that stands  twice", "split": "test"},
    {"text": "held out and scored too", "split": "validation"},
    {"text": "held out and scored too", "split": "test"},
]


def test_leaks_into_train_and_validation_are_counted_and_warned_about():
    splits = split(LEAKING)
    assert (splits.leaks.exact, splits.leaks.dropped) == (2, 0)
    assert splits.train.num_rows == 41
    assert "2 of 2 test examples also occur in train or validation (2 exactly, 0 nearly" in splits.notes[-1]
    assert "--data.drop_leaks true" in splits.notes[-1]


def test_drop_leaks_removes_the_twins_and_keeps_test():
    splits = split(LEAKING, drop_leaks=True)
    assert splits.leaks.exact == 2 and splits.leaks.dropped == 2
    assert not set(texts(splits.train) + texts(splits.validation)) & {
        "A text that stands twice",
        "held out and scored too",
    }
    assert splits.test["books"].num_rows == 2 and "their 2 twins there were removed" in splits.notes[-1]


def test_a_cap_is_met_after_leaks_are_dropped_and_leaks_are_counted_after_a_cap():
    assert split(LEAKING, drop_leaks=True, max_train_examples=38).train.num_rows == 38
    assert split(LEAKING[:42], max_train_examples=1).leaks.exact <= 1


def test_data_whose_train_is_all_leaks_are_refused_with_drop_leaks():
    rows = [{"text": "one", "split": "train"}, {"text": "one", "split": "test"}]
    assert "nothing is left to train on once leaks are dropped" in refused(rows, drop_leaks=True)


# target examples

TARGETS = [row for domain in ("books", "dvd", "apps") for row in numbered(300, domain, classes=3)]


def drawn(splits: DomainSplits, domain: str) -> set[str]:
    return {text for text, of in zip(splits.train["text"], splits.train["domain"], strict=True) if of == domain}


def test_target_examples_are_drawn_from_the_rows_that_each_target_would_be_trained_on():
    plain = split(TARGETS, train_domains=("books",))
    splits = split(TARGETS, train_domains=("books",), target_examples=(16,))
    for domain in ("dvd", "apps"):
        as_source = split(TARGETS, train_domains=(domain,))
        assert len(drawn(splits, domain)) == 16
        assert drawn(splits, domain) < set(texts(as_source.train))
        assert not drawn(splits, domain) & set(texts(splits.test[domain]))
        assert not drawn(splits, domain) & set(texts(as_source.validation))
    assert drawn(splits, "books") == set(texts(plain.train))
    assert splits.train.num_rows == plain.train.num_rows + 32
    assert texts(splits.validation) == texts(plain.validation)
    assert {name: texts(rows) for name, rows in splits.test.items()} == {
        name: texts(rows) for name, rows in plain.test.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_draw_of_target_examples_lies_inside_a_larger_one_of_the_same_seed(seed):
    sizes = (1, 16, 64, 150)
    draws = [drawn(split(TARGETS, seed, train_domains=("books",), target_examples=(n,)), "dvd") for n in sizes]
    assert [len(draw) for draw in draws] == list(sizes)
    assert draws[0] < draws[1] < draws[2] < draws[3]
    assert drawn(split(TARGETS, seed, train_domains=("books",), target_examples=(16,)), "dvd") == draws[1]
    assert drawn(split(TARGETS, seed + 9, train_domains=("books",), target_examples=(16,)), "dvd") != draws[1]


def test_target_examples_hold_the_classes_evenly():
    splits = split(TARGETS, train_domains=("books",), target_examples=(30,))
    labels = Counter(
        label for label, of in zip(splits.train["label"], splits.train["domain"], strict=True) if of == "dvd"
    )
    assert set(labels) == {"0", "1", "2"}
    assert max(labels.values()) - min(labels.values()) <= 2


def test_only_the_named_target_domains_give_examples_and_the_draw_of_one_does_not_depend_on_the_other():
    both = split(TARGETS, train_domains=("books",), target_examples=(16,))
    one = split(TARGETS, train_domains=("books",), target_examples=(16,), target_domains=("apps",))
    assert (len(drawn(one, "apps")), drawn(one, "dvd")) == (16, set())
    assert drawn(one, "apps") == drawn(both, "apps")


def test_a_target_stays_a_shifted_domain():
    for with_source in (True, False):
        splits = split(TARGETS, train_domains=("books",), target_examples=(16,), with_source=with_source)
        assert splits.train_domains == ("books",)
        assert [splits.role(domain) for domain in splits.test] == ["in_domain", "shifted", "shifted"]


def test_without_the_source_the_same_target_examples_are_all_there_is():
    settings = {"train_domains": ("books",), "target_examples": (16,), "target_domains": ("dvd",)}
    with_it, without = split(TARGETS, **settings), split(TARGETS, with_source=False, **settings)
    assert set(texts(without.train)) == drawn(with_it, "dvd")
    assert without.train.num_rows == 16
    assert without.validation.num_rows == 0, "the source's validation rows would select by the source"
    assert texts(without.test["dvd"]) == texts(with_it.test["dvd"])


def test_no_target_examples_change_nothing():
    plain = split(TARGETS, train_domains=("books",))
    none = split(TARGETS, train_domains=("books",), target_examples=(0,), target_domains=("dvd",))
    assert assigned(none) == assigned(plain)


def test_target_examples_come_on_top_of_a_cap_on_train():
    splits = split(TARGETS, train_domains=("books",), target_examples=(16,), max_train_examples=40)
    assert [len(drawn(splits, domain)) for domain in ("books", "dvd", "apps")] == [40, 16, 16]


def test_more_target_examples_than_there_are_train_rows_are_refused_with_the_count_of_each_domain():
    rows = [*numbered(100), *numbered(40, "dvd", split="train"), *numbered(9, "dvd", split="test")]
    rows += [*numbered(300, "apps")]
    available = split(rows, train_domains=("dvd",)).train.num_rows
    settings = {"train_domains": ("books",)}
    assert split(rows, target_examples=(available,), **settings)
    assert refused(rows, target_examples=(available + 1,), **settings) == (
        f"--data.target_examples {available + 1}: dvd has {available} train rows to draw from; ask for fewer."
    )
    message = refused(rows, target_examples=(1000,), **settings)
    assert f"dvd has {available} train rows" in message and "apps has" in message


def test_a_target_domain_must_be_a_shifted_test_domain():
    settings = {"train_domains": ("books",), "target_examples": (16,)}
    assert refused(TARGETS, target_domains=("cd", "dvd"), **settings) == (
        "--data.target_domains names 'cd', which is no shifted test domain; there are dvd, apps."
    )
    assert "names 'books', which is no shifted test domain" in refused(TARGETS, target_domains=("books",), **settings)
    assert "names 'apps', which is no shifted test domain; there are dvd." in refused(
        TARGETS, target_domains=("apps",), test_domains=("books", "dvd"), **settings
    )
    assert "--data.target_examples needs a shifted domain to draw from" in refused(
        TARGETS, train_domains=("books", "dvd", "apps"), target_examples=(16,)
    )


LEAKING_TARGET = [
    *numbered(40),
    *numbered(30, "dvd", split="train"),
    *[{"text": f"twin {i}", "domain": "dvd", "split": split} for i in range(4) for split in ("train", "test")],
    {"text": "scored", "domain": "books", "split": "test"},
]


def test_drop_leaks_keeps_twins_of_test_rows_out_of_the_target_examples():
    twins = {f"twin {i}" for i in range(4)}
    settings = {"train_domains": ("books",), "validation_fraction": 1e-9}
    everything = 34 - 1  # one text is lent to validation
    assert len(drawn(split(LEAKING_TARGET, target_examples=(everything - 4,), **settings), "dvd") & twins) > 0
    clean = split(LEAKING_TARGET, target_examples=(everything - 6,), drop_leaks=True, **settings)
    assert len(drawn(clean, "dvd")) == everything - 6
    assert not drawn(clean, "dvd") & twins
    assert (clean.leaks.exact, clean.leaks.dropped) == (3, 3), "the fourth is lent to validation, none is in books"
    assert "their 3 twins there were removed" in clean.notes[-1] and "flatter" not in " ".join(clean.notes)


def test_target_examples_are_as_many_as_asked_for_or_refused_where_leaks_are_dropped():
    settings = {"train_domains": ("books",), "validation_fraction": 1e-9, "drop_leaks": True}
    try:
        splits = split(LEAKING_TARGET, target_examples=(31,), **settings)
    except InputError as error:
        assert "dvd has" in str(error)
    else:
        assert len(drawn(splits, "dvd")) == 31


def test_labels_of_every_type_can_be_split():
    for labels in (["a", "b"], [1, 2], [0.5, 1.5], [["a"], ["a", "b"]]):
        rows = [{"text": f"text {i}", "label": labels[i % 2]} for i in range(60)]
        assert split(rows, max_train_examples=20).train.num_rows == 20


def test_the_splits_hold_every_column_of_the_table():
    assert split(numbered(60)).train.column_names == ["example_id", "place", "domain", "split", "label", "text"]


@pytest.mark.skipif(not (SHARED / "data" / "fdu_mtl").is_dir(), reason=f"needs {SHARED}/data/fdu_mtl")
def test_fdu_mtl_is_split_as_published_and_its_leak_is_reported():
    from hf_transfer.sources import load_source

    names = ("books", "dvd", "magazines")
    data = DataConfig(source=str(SHARED / "data" / "fdu_mtl"), train_domains=names[:2], test_domains=names)
    table = load_source(data)
    assert table.rows.num_rows == 15_968 + 4_000 - 1  # one empty text
    assert "train.parquet:13889" in table.notes[-1] and "unlabeled.parquet" in table.notes[0]
    splits = split_by_domain(table, data, 0)
    assert {name: rows.num_rows for name, rows in splits.test.items()} == dict.fromkeys(names, 400)
    assert splits.train.num_rows + splits.validation.num_rows == 3_200
    assert splits.leaks.exact > 0 and "also occur in train" in splits.notes[-1]
