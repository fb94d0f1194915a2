"""What is kept by content: found again by equal texts, by nothing else, and never needed."""

import os
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import content_cache, splits
from hf_transfer.content_cache import content_key, kept_facts, kept_rows, rows_digest, tokenizer_digest
from hf_transfer.preparing import prepare
from hf_transfer.records import Text
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

ROWS = {"example_id": ["a", "b", "c"], "input_ids": [[1, 2], [], [3]], "note": ["x", None, "ü"]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where entries lie, empty at first."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_transfer"


class Counted:
    """A function that counts its calls."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def __call__(self):
        self.calls += 1
        return self.answer


def test_rows_and_what_is_said_of_them_come_back(folder):
    make = Counted((Dataset.from_dict(ROWS), ["line 2", 7]))
    for _ in range(3):
        rows, extras = kept_rows("rows-1", make)
        assert rows[:] == ROWS
        assert extras == ["line 2", 7]
        assert rows.features == make.answer[0].features
        assert [Path(file["filename"]).parent for file in rows.cache_files] == [folder], "mapped, not in memory"
    assert make.calls == 1
    assert [path.name for path in folder.iterdir()] == ["rows-1.arrow"]


def test_facts_come_back():
    make = Counted({"twins": [1, 2], "near": 3})
    assert [kept_facts("facts-1", make) for _ in range(3)] == [make.answer] * 3
    assert make.calls == 1
    other = Counted(5)
    assert kept_facts("facts-2", other) == 5


def test_nothing_is_kept_where_datasets_may_not_cache(folder):
    make, facts = Counted((Dataset.from_dict(ROWS), 0)), Counted(1)
    datasets.disable_caching()
    try:
        for _ in range(2):
            assert kept_rows("rows-1", make)[0][:] == ROWS
            assert kept_facts("facts-1", facts) == 1
    finally:
        datasets.enable_caching()
    assert (make.calls, facts.calls) == (2, 2)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(folder):
    folder.parent.write_text("a file where the folder should be")
    make, facts = Counted((Dataset.from_dict(ROWS), "said")), Counted([1])
    for _ in range(2):
        rows, extras = kept_rows("rows-1", make)
        assert (rows[:], extras, kept_facts("facts-1", facts)) == (ROWS, "said", [1])
    assert (make.calls, facts.calls) == (2, 2)


def test_a_disk_that_is_full_leaves_nothing_behind(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(content_cache, "_write", full)
    rows, extras = kept_rows("rows-1", lambda: (Dataset.from_dict(ROWS), "said"))
    assert (rows[:], extras) == (ROWS, "said")
    assert not list(folder.iterdir())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_entry_is_made_anew(folder, data):
    def make():
        return Dataset.from_dict(ROWS), {"cut": 1}

    kept_rows("rows-1", make)
    kept_facts("facts-1", lambda: {"near": [1, 2, 3]})
    for name in ("rows-1.arrow", "facts-1.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    rows, extras = kept_rows("rows-1", make)
    assert (rows[:], extras) == (ROWS, {"cut": 1})
    assert kept_facts("facts-1", lambda: {"near": [1, 2, 3]}) == {"near": [1, 2, 3]}
    assert kept_rows("rows-1", Counted(None))[0][:] == ROWS, "the entry was mended"


def test_what_was_unused_for_longest_goes_first(folder, monkeypatch):
    for number in range(4):
        kept_facts(f"facts-{number}", lambda: "x" * 1000)
        os.utime(folder / f"facts-{number}.json", (number, number))
    kept_facts("facts-0", Counted(None))  # used again, and so the youngest
    monkeypatch.setattr(content_cache, "LIMIT_BYTES", 2500)
    kept_facts("facts-9", lambda: "new")
    assert sorted(path.stem for path in folder.iterdir()) == ["facts-0", "facts-3", "facts-9"]


def test_a_key_tells_its_parts_apart():
    keys = [content_key("k", *parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (b"abc", b"", b""))]
    assert len(set(keys)) == len(keys)
    assert content_key("k", "ab") == content_key("k", b"ab") != content_key("l", "ab")


def test_a_digest_of_rows_is_that_of_their_content(tmp_path):
    rows = Dataset.from_dict(ROWS)
    columns = ["example_id", "note", "absent"]
    same = [rows.select([0, 1, 2]), rows.select([2, 1, 0]).select([2, 1, 0]), rows.remove_columns("input_ids")]
    rows.save_to_disk(tmp_path / "saved")
    same.append(Dataset.load_from_disk(tmp_path / "saved"))
    assert {rows_digest(other, columns) for other in same} == {rows_digest(rows, columns)}
    different = [rows.select([0, 1]), rows.select([1, 0, 2]), Dataset.from_dict({**ROWS, "note": ["x", "", "ü"]})]
    different += [Dataset.from_dict({**ROWS, "note": ["xü", None, ""]}), rows.remove_columns("note")]
    digests = {rows_digest(other, columns) for other in [rows, *different]}
    assert len(digests) == 6


def test_a_digest_of_a_tokenizer_is_that_of_its_rules(tmp_path):
    bert, marian = make_checkpoint(tmp_path / "bert"), make_translation_checkpoint("marian", tmp_path / "marian")
    from transformers import AutoTokenizer

    for path in (bert, marian):
        first, again, other = (AutoTokenizer.from_pretrained(path) for _ in range(3))
        assert tokenizer_digest(first) == tokenizer_digest(again)
        other.add_tokens(["<books>"])
        assert tokenizer_digest(other) != tokenizer_digest(first)
        again.truncation_side = "left"
        assert tokenizer_digest(again) != tokenizer_digest(first)


# ---- runs on the same text


def config_for(task, source, checkpoint, **data) -> ht.RunConfig:
    return ht.RunConfig(
        task=task,
        data=ht.DataConfig(source=str(source), **data),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        output_dir="unused",
    )


def prepared(config):
    task = TASKS[config.task]
    text = Text(*read_text(config.data, config.train, task, config.seed))
    return text, prepare(config, text)


def pairs(path: Path) -> Path:
    sources = [f"the {word} is {'very ' * (i % 7)}old" for i in range(30) for word in ("cat", "dog")]
    targets = [f"die {word} ist {'sehr ' * (i % 5)}alt" for i in range(30) for word in ("Katze", "Hündin")]
    lines = [f"{source}\t{target}\n" for source, target in zip(sources, targets, strict=True)]
    path.mkdir()
    (path / "zoo.tsv").write_text("source\ttarget\n" + "".join(lines), encoding="utf-8")
    return path


def parts_of(encoded) -> dict[str, dict]:
    named = {"train": encoded.train, "validation": encoded.validation, **encoded.test}
    return {name: rows[:] for name, rows in named.items() if len(rows)}


def forbidden(*_, **__):
    raise AssertionError("this was to be found again")


@pytest.mark.parametrize("task", ["classification", "translation"])
def test_a_second_run_on_the_same_text_tokenises_nothing_and_finds_the_same(task, tmp_path, monkeypatch, folder):
    if task == "classification":
        source, checkpoint = write_reviews(tmp_path), make_checkpoint(tmp_path / "model")
    else:
        source, checkpoint = pairs(tmp_path / "pairs"), make_translation_checkpoint("marian", tmp_path / "model")
    config = config_for(task, source, checkpoint)
    text, first = prepared(config)
    with monkeypatch.context() as patched:
        patched.setattr(splits, "find_leaks", forbidden)
        patched.setattr("hf_transfer.content_cache._write", forbidden)
        text_again, again = prepared(config)
    assert parts_of(again.encoded) == parts_of(first.encoded)
    assert (again.encoded.truncated, again.encoded.notes) == (first.encoded.truncated, first.encoded.notes)
    assert text_again.splits.leaks == text.splits.leaks
    datasets.disable_caching()
    try:
        _, alone = prepared(config)
    finally:
        datasets.enable_caching()
    assert parts_of(alone.encoded) == parts_of(first.encoded), "as without any cache"
    shorter = replace(config, data=replace(config.data, max_length={"classification": 5, "translation": 14}[task]))
    entries = set(folder.iterdir())
    _, cut = prepared(shorter)
    assert max(np.max(part["length"]) for part in parts_of(cut.encoded).values()) != max(
        np.max(part["length"]) for part in parts_of(first.encoded).values()
    )
    assert set(folder.iterdir()) > entries


def test_another_row_is_seen(tmp_path):
    source, checkpoint = write_reviews(tmp_path), make_checkpoint(tmp_path / "model")
    config = config_for("classification", source, checkpoint)
    _, first = prepared(config)
    lines = Path(source).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(source).write_text("".join([lines[0], lines[1].replace("e", "o"), *lines[2:]]), encoding="utf-8")
    _, second = prepared(config)
    assert parts_of(first.encoded) != parts_of(second.encoded)
