"""Text: what is wrong with a data set is said at once, with place and remedy, and nothing that follows from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hf_transfer.config import DataConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.sources import parallel
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

TASK = TASKS["classification"]


def row(label: object, split: str = "train", domain: str = "books", text: str = "text") -> dict:
    return {"text": text, "label": label, "split": split, "domain": domain}


def good_rows(domain: str = "books", labels: str = "ab") -> list[dict]:
    return [
        row(labels[i % len(labels)], "test" if i % 3 == 0 else "train", domain, f"{domain} number {i}")
        for i in range(24)
    ]


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def read(path: Path, train: TrainConfig | None = None, **settings):
    return read_text(DataConfig(source=str(path), **settings), train or TrainConfig(), TASK, 0)


def problems_of(path: Path, train: TrainConfig | None = None, **settings) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read(path, train, **settings)
    return caught.value.problems


def test_good_text_gives_its_table_splits_and_labels(tmp_path):
    rows = [*good_rows(), row("a", text=" "), *good_rows("dvd")]
    table, splits, labels = read(write(tmp_path, rows), train_domains=("books",))
    assert table.notes == ("dropped 1 row with an empty text (rows.jsonl:25).",) and table.rows.num_rows == 48
    assert splits.train.num_rows + splits.validation.num_rows == 16
    assert {domain: found.num_rows for domain, found in splits.test.items()} == {"books": 8, "dvd": 8}
    assert labels.names == ("a", "b")


def test_rows_domains_and_labels_are_reported_together_with_place_and_remedy(tmp_path):
    rows = [
        *good_rows(),
        row("", text="which label?"),
        row("a", text=""),
        row("c", "test", text="a label that train lacks"),
    ]
    assert problems_of(write(tmp_path, rows), train_domains=("nowhere",)) == (
        "1 of 26 rows without a label (rows.jsonl:25): fill in column 'label', remove these rows, or name another "
        "--data.label_column.",
        "--data.train_domains names 'nowhere', which the data do not hold. There are books.",
        "label 'c' occurs 1 times in test:books (first at rows.jsonl:27) but not in train: mend it, add train examples "
        "of it, or declare the class set with --data.label_names.",
    )


def test_ids_domains_names_and_options_are_reported_together(tmp_path):
    rows = [{**item, "id": str(min(i, 22))} for i, item in enumerate(good_rows())] + [
        {**row("a", domain=""), "id": "x"}
    ]
    settings = {"id_column": "id", "test_domains": ("cd",), "problem": "multi_label"}
    found = problems_of(write(tmp_path, rows), TrainConfig(label_smoothing=0.1), **settings)
    wanted = ("example id '22'", "nothing in column 'domain'", "--data.test_domains names 'cd'", "--train.label_smooth")
    assert len(found) == len(wanted)
    for problem, part in zip(found, wanted, strict=True):
        assert part in problem


def test_a_label_of_any_domain_counts_where_nobody_knows_which_domain_was_meant(tmp_path):
    # 'c' may be trained on once 'dvdd' is mended; no domain has 'd' in train
    rows = [*good_rows(), *good_rows("dvd", "abcab"), row("d", "test")]
    path = write(tmp_path, rows)
    unknown, unseen = problems_of(path, train_domains=("books", "dvdd"))
    assert "Did you mean dvd?" in unknown and unseen.startswith("label 'd' occurs 1 times in test:books")
    known = problems_of(path, train_domains=("books",))
    assert [text.split(" but")[0] for text in known] == [
        "label 'd' occurs 1 times in test:books (first at rows.jsonl:49)",
        "label 'c' occurs 1 times in test:dvd (first at rows.jsonl:37)",
    ]


def test_only_the_test_domains_that_were_named_are_looked_at(tmp_path):
    path = write(tmp_path, [*good_rows(), *good_rows("dvd", "xy")])
    settings = {"train_domains": ("books",)}
    assert len(problems_of(path, test_domains=("cd", "books"), **settings)) == 1
    assert len(problems_of(path, test_domains=("cd",), **settings)) == 1
    assert len(problems_of(path, test_domains=("cd", "dvd"), **settings)) == 3


@pytest.mark.parametrize("labels", [[""] * 24, ["a", *[""] * 23]])
def test_missing_labels_are_not_followed_by_what_they_may_have_caused(tmp_path, labels):
    """One class only, classes that train lacks, nothing to train on: filling in the labels may mend all of it."""
    rows = [{**item, "label": label} for item, label in zip(good_rows()[1::3] * 3, labels, strict=True)]
    (problem,) = problems_of(write(tmp_path, [*rows, row("b", "test"), row("c", "test")]))
    assert "of 26 rows without a label" in problem


def test_a_domain_whose_labels_are_missing_is_no_unknown_domain(tmp_path):
    rows = [*good_rows(), *({**item, "label": None} for item in good_rows("dvd"))]
    (problem,) = problems_of(write(tmp_path, rows), train_domains=("dvd",), test_domains=("dvd",))
    assert "24 of 48 rows without a label" in problem


def test_one_class_only_is_said_beside_other_problems_where_no_label_is_missing(tmp_path):
    unknown, one_class = problems_of(write(tmp_path, good_rows(labels="a")), test_domains=("cd",))
    assert "'cd'" in unknown and one_class.startswith("train holds one class only ('a')")


def test_a_cap_that_leaves_a_class_out_is_not_blamed_on_rows_that_will_change(tmp_path):
    rows = good_rows(labels="aaabaaaa")
    assert "train holds one class only" in problems_of(write(tmp_path, rows), max_train_examples=1)[0]
    (missing,) = problems_of(write(tmp_path, [*rows, row(None, text="no label")]), max_train_examples=1)
    assert "without a label" in missing


def test_rows_without_any_domain_stop_the_checks_there(tmp_path):
    (problem,) = problems_of(write(tmp_path, [row("a", domain="") for _ in range(3)]), train_domains=("books",))
    assert "3 rows with nothing in column 'domain'" in problem


def test_what_cannot_be_read_is_said_by_itself(tmp_path):
    path = write(tmp_path, [row("a"), row(3)])
    (problem,) = problems_of(path, train_domains=("nowhere",))
    assert "column 'label' holds 1 strings (first rows.jsonl:1), 1 whole numbers" in problem


def test_text_without_train_or_test_rows_is_refused_with_its_labels(tmp_path):
    path = write(tmp_path, [row("a"), row("b", "validation")])
    assert "no domain has test rows" in problems_of(path, test_fraction=1e-9)[0]
    (problem,) = problems_of(write(tmp_path, [row("a", "test"), row("b", "test")]))
    assert "nothing is left to train on" in problem


def pairs(folder: Path, name: str, splits: str, count: int = 30) -> Path:
    """A file of pairs, whose published splits follow one another as the letters of ``splits`` do (- for none)."""
    names = {"t": "train", "e": "test", "-": ""}
    rows = [
        {"source": f"{name} {i} is here", "target": f"{name} {i} ist hier", "split": names[splits[i % len(splits)]]}
        for i in range(count)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def translation_splits(folder: Path, own: dict[str, str], general: int = 30, **settings):
    (folder / "own").mkdir()
    for name, splits in own.items():
        (folder / "own" / name).mkdir()
        pairs(folder / "own" / name, name, splits)
    data = DataConfig(
        source=str(folder / "own"), general_source=str(pairs(folder, "general", "-", general)), **settings
    )
    return read_text(data, TrainConfig(), TASKS["translation"], 0)[1]


def test_a_domain_that_is_only_tested_may_stand_beside_general_text(tmp_path):
    splits = translation_splits(tmp_path, {"captions": "t", "news": "e", "talks": "-"})
    assert splits.train_domains == ("captions", "talks")
    assert set(splits.test) == {"captions", "news", "talks", "general"}
    assert splits.general_domains == ("general",) and set(splits.general["domain"]) == {"general"}
    assert "not trained on, for want of train rows: news." in splits.notes


def test_general_text_without_test_rows_is_no_mistake_of_the_user_who_names_test_domains(tmp_path):
    splits = translation_splits(tmp_path, {"captions": "-", "news": "-"}, 3, test_domains=("news",), test_fraction=0.01)
    assert set(splits.test) == {"news"} and len(splits.general)
    assert "not scored, for want of test rows: general; raise --data.test_fraction." in splits.notes


def test_no_target_examples_are_drawn_from_general_text(tmp_path):
    settings = {"train_domains": ("captions",), "target_examples": (4,)}
    splits = translation_splits(tmp_path, {"captions": "-", "news": "-"}, **settings)
    counts = Counter(splits.train["domain"])
    assert set(counts) == {"captions", "news"} and counts["news"] == 4
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"--data.target_domains names 'general', which is no shifted test domain"):
        translation_splits(tmp_path / "again", {"captions": "-", "news": "-"}, **settings, target_domains=("general",))


def test_general_text_leaves_the_data_set_its_id_and_has_neither_its_subset_nor_its_revision(tmp_path, monkeypatch):
    asked, read_pairs = [], parallel.read_pairs

    def read_as_from_the_hub(data):
        asked.append((Path(data.source).stem, data.subset, data.revision))
        table = read_pairs(replace(data, subset=None, revision=None))
        return replace(table, hub_id=f"owner/{table.name}")

    monkeypatch.setattr(parallel, "read_pairs", read_as_from_the_hub)
    own, general = (str(pairs(tmp_path, name, "te")) for name in ("own", "general"))
    data = DataConfig(source=own, general_source=general, subset="de-en", revision="abc")
    table, *_ = read_text(data, TrainConfig(), TASKS["translation"], 0)
    assert asked == [("own", "de-en", "abc"), ("general", None, None)]
    assert (table.rows.num_rows, table.hub_id) == (60, "owner/own")
