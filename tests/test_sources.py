"""Sources: every format and folder shape gives the same table, and what cannot be used is refused with its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainTable
from hf_transfer.sources import bundled, check_rows, labelled, load_source, read_source
from hf_transfer.sources.parallel import read_pairs

ROWS = [
    {"text": "Good, really good", "label": "positive"},
    {"text": 'He said "no"\nand left', "label": "negative"},
    {"text": "Füße über Straßen", "label": "positive"},
]


def write(path: Path, rows: list[dict], bom: bool = False) -> Path:
    """Write rows in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        quoted = [['"' + str(row[name]).replace('"', '""') + '"' for name in names] for row in rows]
        text = "\n".join(separator.join(fields) for fields in [names, *quoted]) + "\n"
    elif path.suffix == ".json":
        text = json.dumps(rows, indent=1, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    return path


def load(source: Path | str, **settings) -> DomainTable:
    return read_source(DataConfig(source=str(source), **settings))


def refused(source: Path | str, **settings) -> str:
    with pytest.raises(InputError) as caught:
        load(source, **settings)
    return str(caught.value)


def column(table: DomainTable, name: str) -> list:
    return list(table.rows[name])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_rows_and_the_same_fingerprint(tmp_path, suffix):
    table = load(write(tmp_path / f"reviews{suffix}", ROWS))
    assert table.rows.column_names == ["example_id", "place", "domain", "split", "text", "label"]
    assert column(table, "text") == [row["text"] for row in ROWS]
    assert column(table, "label") == [row["label"] for row in ROWS]
    assert column(table, "place") == column(table, "example_id") == [f"reviews{suffix}:{i}" for i in (1, 2, 3)]
    assert set(column(table, "domain")) == {"reviews"} and set(column(table, "split")) == {""}
    assert table.name == "reviews"
    assert table.fingerprint == load(write(tmp_path / "other" / "reviews.jsonl", ROWS)).fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, suffix):
    assert column(load(write(tmp_path / f"a{suffix}", ROWS, bom=True)), "text")[0] == ROWS[0]["text"]


def test_the_fingerprint_changes_with_content_and_order_and_not_with_the_cutting_into_chunks(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(50)]
    whole = load(write(tmp_path / "a.jsonl", rows)).fingerprint
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    assert load(tmp_path / "a.parquet").fingerprint == whole
    assert load(write(tmp_path / "b" / "a.jsonl", rows[::-1])).fingerprint != whole
    assert load(write(tmp_path / "c" / "a.jsonl", [{**rows[0], "text": "text 0 "}, *rows[1:]])).fingerprint != whole
    # characters that move from one text to the next leave the joined text as it was
    moved = [{**rows[0], "text": "text 0t"}, {**rows[1], "text": "ext 1"}, *rows[2:]]
    assert load(write(tmp_path / "d" / "a.jsonl", moved)).fingerprint != whole


def test_text_pairs_ids_and_other_column_names_are_put_under_the_standard_names(tmp_path):
    rows = [
        {"nr": 7, "premise": "It rains.", "hypothesis": "It is wet.", "gold": "yes", "genre": "talk", "part": "Dev"}
    ]
    table = load(
        write(tmp_path / "nli.jsonl", rows),
        text_column="premise",
        text_pair_column="hypothesis",
        label_column="gold",
        domain_column="genre",
        split_column="part",
        id_column="nr",
    )
    assert table.rows[0] == {
        "example_id": "7",
        "place": "nli.jsonl:1",
        "domain": "talk",
        "split": "validation",
        "text": "It rains.",
        "text_pair": "It is wet.",
        "label": "yes",
    }


def test_csv_labels_stay_strings_whatever_they_look_like(tmp_path):
    write(tmp_path / "train.csv", [{"text": "a", "label": "01"}, {"text": "b", "label": "2"}])
    write(tmp_path / "test.csv", [{"text": "c", "label": "x"}])
    assert column(load(tmp_path), "label") == ["01", "2", "x"]


def test_labels_keep_their_type_where_the_format_has_types(tmp_path):
    cases = {"ints": [1, 2], "floats": [1, 2.5], "strings": ["1", "b"], "lists": [["a", "b"], []]}
    for name, labels in cases.items():
        rows = [{"text": "x", "label": label} for label in labels]
        for suffix in (".jsonl", ".parquet"):
            if suffix == ".jsonl" or name != "floats":  # a Parquet column has one type from the start
                assert column(load(write(tmp_path / f"{name}{suffix}", rows)), "label") == labels


def test_lists_of_numbers_become_lists_of_class_names(tmp_path):
    rows = [{"text": "x", "label": [3, 1]}, {"text": "y", "label": []}]
    assert column(load(write(tmp_path / "a.jsonl", rows)), "label") == [["3", "1"], []]


def test_ten_classes_keep_their_names(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 10 + 1} for i in range(40)]
    assert sorted(set(column(load(write(tmp_path / "a.jsonl", rows)), "label"))) == list(range(1, 11))


def test_numbers_of_a_typed_file_join_the_strings_of_a_csv(tmp_path):
    write(tmp_path / "train.csv", [{"text": "a", "label": "3"}])
    write(tmp_path / "test.jsonl", [{"text": "b", "label": 3}])
    assert column(load(tmp_path), "label") == ["3", "3"]


def test_whole_numbers_of_one_file_join_the_fractions_of_another(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "a", "label": 2.5}])
    write(tmp_path / "test.jsonl", [{"text": "b", "label": 3}])
    assert column(load(tmp_path), "label") == [2.5, 3.0]


def test_class_numbers_that_datasets_wrote_become_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert column(load(tmp_path / "a.parquet"), "label") == ["good", "bad", None]


# --- folders


def folder_of(tmp_path: Path, *names: str) -> DomainTable:
    for name in names:
        write(tmp_path / name, [{"text": f"text of {name}", "label": "a"}])
    return load(tmp_path)


def found(table: DomainTable) -> set[tuple[str, str, str]]:
    return set(zip(column(table, "place"), column(table, "domain"), column(table, "split"), strict=True))


def test_split_files_of_mixed_formats_are_read_with_train_first(tmp_path):
    table = folder_of(tmp_path, "test_2016.tsv", "train.csv", "dev.jsonl")
    name = tmp_path.name
    assert column(table, "place") == ["train.csv:1", "dev.jsonl:1", "test_2016.tsv:1"]
    assert column(table, "split") == ["train", "validation", "test"]
    assert set(column(table, "domain")) == {name} and table.name == name


@pytest.mark.parametrize("stem", ["validation", "valid", "val", "dev", "Valid-en", "val.clean"])
def test_every_word_for_validation_is_understood(tmp_path, stem):
    assert set(column(folder_of(tmp_path, "train.csv", f"{stem}.csv"), "split")) == {"train", "validation"}


def test_a_word_that_only_begins_like_a_split_is_none(tmp_path):
    assert found(folder_of(tmp_path, "trains.csv", "testimony.csv")) == {
        ("trains.csv:1", "trains", ""),
        ("testimony.csv:1", "testimony", ""),
    }


def test_a_domain_per_file(tmp_path):
    assert found(folder_of(tmp_path, "books.csv", "dvd.jsonl")) == {
        ("books.csv:1", "books", ""),
        ("dvd.jsonl:1", "dvd", ""),
    }


def test_a_domain_and_a_split_per_file(tmp_path):
    assert found(folder_of(tmp_path, "books-train.csv", "books-test.csv", "my_dvd.csv")) == {
        ("books-train.csv:1", "books", "train"),
        ("books-test.csv:1", "books", "test"),
        ("my_dvd.csv:1", "my_dvd", ""),
    }


def test_a_folder_per_domain(tmp_path):
    assert found(folder_of(tmp_path, "books/train.csv", "books/test.csv", "dvd/reviews.jsonl")) == {
        ("books/train.csv:1", "books", "train"),
        ("books/test.csv:1", "books", "test"),
        ("dvd/reviews.jsonl:1", "dvd", ""),
    }


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (["dvd/2023/train.csv"], "dvd/2023"),
        (["dvd/2023/a/train.csv"], "dvd"),
        (["dvd/train.csv", "dvd/2023/train.csv"], "dvd/2023"),
        (["dvd/about.md", "dvd/2023/train.csv"], "dvd/2023, dvd/about.md"),
    ],
)
def test_data_that_lie_too_deep_in_a_folder_are_told_of(beside, named, tmp_path):
    write(tmp_path / "reviews" / "books" / "train.csv", ROWS)
    (tmp_path / "reviews" / "empty").mkdir()
    for place in beside:
        path = tmp_path / "reviews" / place
        if path.suffix == ".md":
            path.parent.mkdir()
            path.write_text("mine")
        else:
            write(path, ROWS)
    table = load(tmp_path / "reviews")
    assert set(table.rows["domain"]) == {"books", *(["dvd"] if "dvd/train.csv" in beside else [])}
    (note,) = table.notes
    head, listed = note.removesuffix(".").split(": ")
    assert head == "not read from reviews, since their names say no split, they lie too deep or they are no data"
    assert ", ".join(sorted(listed.split(", "))) == named


def test_a_folder_per_split(tmp_path):
    assert found(folder_of(tmp_path, "train/books.csv", "test/books.csv")) == {
        ("train/books.csv:1", "books", "train"),
        ("test/books.csv:1", "books", "test"),
    }


def test_shards_of_a_folder_per_split_name_no_domain(tmp_path):
    table = folder_of(tmp_path, "train/0000.parquet", "train/0001.parquet", "test/0000.parquet")
    assert set(column(table, "domain")) == {tmp_path.name}


def test_a_domain_behind_the_split_of_every_file(tmp_path):
    assert found(folder_of(tmp_path, "train_books.csv", "train_dvd.csv", "test_books.csv", "test_dvd.csv")) == {
        ("train_books.csv:1", "books", "train"),
        ("train_dvd.csv:1", "dvd", "train"),
        ("test_books.csv:1", "books", "test"),
        ("test_dvd.csv:1", "dvd", "test"),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
        ("train-00000-of-00002-1f0c.parquet", "train-00001-of-00002-2ab3.parquet", "test-00000-of-00001-9d4e.parquet"),
        ("train/00000-of-00002-1f0c.parquet", "train/00001-of-00002-2ab3.parquet", "test/00000-of-00001.parquet"),
        ("train-1.csv", "train-2.csv", "test-1.csv"),
        ("train.csv", "test_books.csv"),
    ],
)
def test_numbers_behind_a_split_and_names_behind_some_of_them_are_no_domain(names, tmp_path):
    table = folder_of(tmp_path, *names)
    assert set(column(table, "domain")) == {tmp_path.name} and set(column(table, "split")) == {"train", "test"}


def test_a_domain_column_wins_over_file_names(tmp_path):
    write(tmp_path / "x.jsonl", [{"text": "t", "label": "a", "domain": "books", "split": "training"}])
    write(tmp_path / "y.jsonl", [{"text": "t", "label": "a", "domain": "dvd", "split": ""}])
    assert found(load(tmp_path)) == {("x.jsonl:1", "books", "train"), ("y.jsonl:1", "dvd", "")}


def test_a_column_that_is_the_label_is_not_taken_for_the_domain(tmp_path):
    table = load(write(tmp_path / "a.jsonl", [{"text": "t", "domain": "books"}]), label_column="domain")
    assert table.rows[0]["label"] == "books" and table.rows[0]["domain"] == "a"


def test_several_files_of_a_split_and_files_that_are_none_are_noted(tmp_path):
    (tmp_path / "README.md").write_text("read me")
    table = folder_of(tmp_path, "train-1.csv", "train-2.csv", "test.csv", "unlabeled.csv", "more/train.csv")
    assert table.rows.num_rows == 3
    assert "train is read from 2 files (train-1.csv, train-2.csv)" in table.notes[0]
    assert "README.md, unlabeled.csv, more" in table.notes[1]


def test_rows_of_an_unknown_split_are_dropped_with_a_note(tmp_path):
    rows = [{"text": "t", "label": "a", "split": split} for split in ("train", "unlabeled", "Eval", "unlabeled")]
    table = load(write(tmp_path / "a.csv", rows))
    assert column(table, "split") == ["train", "test"] and column(table, "place") == ["a.csv:1", "a.csv:3"]
    assert table.notes == ("dropped 2 rows whose split is 'unlabeled', which is none of train, validation and test.",)


# --- refusals


def test_a_path_that_is_not_there_is_refused_with_its_neighbours(tmp_path):
    write(tmp_path / "reviews.csv", ROWS)
    message = refused(tmp_path / "review.csv")
    assert f"{tmp_path / 'review.csv'} does not exist" in message and "Did you mean reviews.csv?" in message
    assert "its folder" in refused(tmp_path / "no" / "reviews.csv")


def test_an_unknown_suffix_and_an_empty_folder_are_refused_with_the_known_ones(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert "'.txt', expected one of .csv .tsv .jsonl .json .parquet" in refused(tmp_path / "a.txt")
    message = refused(tmp_path)
    assert "holds no data file" in message and "a.txt" in message


@pytest.mark.parametrize("name", ["reviews.csv.gz", "reviews.zip", "reviews.tar", "reviews.pkl", "reviews.npy"])
def test_archives_and_pickles_are_no_data_files(tmp_path, name):
    """Nothing is unpacked, so that no name inside an archive can lead anywhere."""
    (tmp_path / name).write_bytes(b"PK")
    assert "expected one of .csv .tsv .jsonl .json .parquet" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["pipe.csv", "pipe.tmx", "zero.csv"])
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path, name):
    if name.startswith("zero"):
        (tmp_path / name).symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / name)
    read = read_pairs if name.endswith("tmx") else read_source
    with pytest.raises(InputError, match=r"is no regular file: write what it gives to one first"):
        read(DataConfig(source=str(tmp_path / name), source_lang="en", target_lang="de"))


def test_links_that_a_user_made_are_followed_and_broken_ones_are_not_there(tmp_path):
    """Names of data files come from the user's own disk: a link is how its owner says where a file is."""
    write(tmp_path / "elsewhere.csv", ROWS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "books.csv").symlink_to(tmp_path / "elsewhere.csv")
    (tmp_path / "folder" / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    (tmp_path / "folder" / "around").symlink_to(tmp_path / "folder")
    table = load_source(DataConfig(source=str(tmp_path / "folder")))
    assert set(column(table, "domain")) == {"books"} and len(table.rows) == len(ROWS)


def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path):
    write(tmp_path / "a.csv", [{"Text": "t", "sentiment": "x"}])
    write(tmp_path / "b.csv", [{"Text": "t", "sentiment": "x"}])
    message = refused(tmp_path)
    assert "a.csv, b.csv: no column 'text'; found 'Text', 'sentiment'. Did you mean Text?" in message
    assert "no column 'label'" in message and "--data.label_column" in message


def test_a_domain_column_in_some_files_only_is_refused(tmp_path):
    write(tmp_path / "a.csv", [{"text": "t", "label": "x", "domain": "d"}])
    write(tmp_path / "b.csv", [{"text": "t", "label": "x"}])
    assert "column 'domain' is in a.csv but not in b.csv" in refused(tmp_path)


def test_undecodable_bytes_are_refused_with_offset_and_line(tmp_path):
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / name).write_bytes(b"text,label\nfine,x\nna\xefve,y\n")
    message = refused(tmp_path)
    assert "a.csv: byte 0xef at offset 20 (line 3) is not UTF-8" in message
    assert "b.jsonl: byte 0xef" in message  # the problems of all files together


def test_undecodable_parquet_strings_are_refused_with_their_row(tmp_path):
    raw = pa.array([b"fine", b"na\xefve"], pa.binary())
    text = pa.StringArray.from_buffers(2, *raw.buffers()[1:])
    pq.write_table(pa.table({"text": text, "label": ["a", "b"]}), tmp_path / "a.parquet")
    assert "1 value of column 'text' not in UTF-8 (a.parquet:2)" in refused(tmp_path / "a.parquet")


def test_a_row_with_too_many_or_too_few_fields_is_refused_with_its_row_and_line(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",x\na,b,c\nalone\n')
    message = refused(tmp_path / "a.csv")
    assert "2 rows without the 2 fields of the header; a.csv:2 (line 4) has 3, a.csv:3 (line 5) has 1" in message


def test_a_quote_that_is_not_closed_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\nfine,x\n"open,y\nmore,z\n')
    assert "a.csv:2 cannot be read (line 4: a quote is opened and not closed)" in refused(tmp_path / "a.csv")


def test_a_tsv_with_plain_quotes_loses_no_row(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"Great film\tpos\nfine\tpos\nbad"\tneg\n')
    table = load(tmp_path / "a.tsv")
    assert column(table, "text") == ['"Great film', "fine", 'bad"']
    assert "a.tsv: quotes are read as plain characters" in table.notes[0]


def test_long_documents_fit_into_a_csv_field(tmp_path):
    assert len(column(load(write(tmp_path / "a.csv", [{"text": "x" * 200_000, "label": "a"}])), "text")[0]) == 200_000


def test_an_empty_file_a_header_alone_and_a_doubled_column_are_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "double.csv").write_text("text,label,label\na,b,c\n")
    assert "empty.csv is empty" in refused(tmp_path / "empty.csv")
    assert "holds no rows" in refused(tmp_path / "header.csv")
    assert "'label' stands twice" in refused(tmp_path / "double.csv")


def test_labels_of_mixed_types_are_refused_with_file_and_row(tmp_path):
    rows = [{"text": "a", "label": 3}, {"text": "b", "label": 4}, {"text": "c", "label": "3"}]
    message = refused(write(tmp_path / "a.jsonl", rows))
    assert "column 'label' holds 2 whole numbers (first a.jsonl:1), 1 strings (first a.jsonl:3)" in message
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": ["x"]}]
    assert "1 lists of strings (first b.json:2)" in refused(write(tmp_path / "b.json", rows))


def test_labels_of_another_type_in_another_file_are_refused(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "a", "label": 3}])
    write(tmp_path / "test.jsonl", [{"text": "b", "label": "3"}])
    assert "mixed types, whole numbers in train.jsonl, strings in test.jsonl" in refused(tmp_path)


def test_labels_that_are_objects_and_texts_that_are_numbers_are_refused(tmp_path):
    assert "1 objects (first a.jsonl:1)" in refused(write(tmp_path / "a.jsonl", [{"text": "a", "label": {"x": 1}}]))
    assert "column 'text' holds int64" in refused(write(tmp_path / "b.jsonl", [{"text": 5, "label": "x"}]))


def test_mixed_types_are_found_beyond_the_first_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_transfer.sources.files.ROWS_PER_CHUNK", 2)
    rows = [{"text": "a", "label": None}] * 3 + [{"text": "a", "label": 1}] * 3 + [{"text": "b", "label": 1.5}]
    assert column(load(write(tmp_path / "a.jsonl", rows)), "label") == [None] * 3 + [1, 1, 1, 1.5]
    assert "1 strings (first b.jsonl:8)" in refused(write(tmp_path / "b.jsonl", [*rows, {"text": "b", "label": "1"}]))
    assert column(load(write(tmp_path / "c.csv", ROWS)), "text") == [row["text"] for row in ROWS]


def test_broken_json_is_refused_with_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n\n{"text": "a" "label"}\n[1]\n')
    message = refused(tmp_path / "a.jsonl")
    assert "2 rows without a JSON object" in message and "a.jsonl:2 (Expecting ',' delimiter" in message
    assert "a.jsonl:3 (lists of whole numbers)" in message
    (tmp_path / "b.json").write_text('[{"text": "a"')
    assert "b.json is not JSON" in refused(tmp_path / "b.json")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    assert "c.parquet is not a readable Parquet file" in refused(tmp_path / "c.parquet")


def test_half_a_surrogate_pair_is_refused_with_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine", "label": "x"}\n{"text": "\\ud800", "label": "x"}\n')
    assert "half a surrogate pair (\\ud800 to \\udfff), which is no character (a.jsonl:2)" in refused(
        tmp_path / "a.jsonl"
    )


def test_ids_that_stand_twice_are_refused_with_both_places(tmp_path):
    write(tmp_path / "train.csv", [{"id": "a7", "text": "t", "label": "x"}])
    write(tmp_path / "test.csv", [{"id": "b", "text": "t", "label": "x"}, {"id": "a7", "text": "t", "label": "x"}])
    message = checked(tmp_path, id_column="id")[1][0]
    assert "example id 'a7' stands more than once (train.csv:1, test.csv:2)" in message


def test_rows_without_a_domain_are_a_problem_and_left_out(tmp_path):
    rows = [{"text": "t", "label": "x", "genre": domain} for domain in ("books", " ", "dvd")]
    table, problems = checked(write(tmp_path / "a.csv", rows), domain_column="genre")
    assert len(problems) == 1 and "1 row with nothing in column 'genre' (a.csv:2)" in problems[0]
    assert "--data.domain_column" in problems[0]
    assert column(table, "domain") == ["books", "dvd"]


def test_ids_domains_and_labels_are_checked_together_in_the_order_of_mending(tmp_path):
    rows = [
        {"id": "a", "text": "t", "label": "x", "domain": "books"},
        {"id": "a", "text": "u", "label": "", "domain": "books"},
        {"id": "", "text": "v", "label": "x", "domain": ""},
        {"id": "", "text": " ", "label": "", "domain": ""},
    ]
    table, problems = checked(write(tmp_path / "a.csv", rows), id_column="id")
    wanted = ("example id 'a' stands", "1 row with nothing in column 'id' (a.csv:3)", "column 'domain' (a.csv:3)")
    for problem, part in zip(problems, (*wanted, "1 of 3 rows without a label (a.csv:2)"), strict=True):
        assert part in problem
    assert column(table, "place") == ["a.csv:1", "a.csv:2"]
    assert list(labelled(table.rows, DataConfig())["place"]) == ["a.csv:1"]


def test_unreadable_files_are_reported_with_the_missing_columns_of_the_others(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\nna\xefve,y\n")
    write(tmp_path / "b.csv", [{"Text": "t", "label": "x"}])
    message = refused(tmp_path)
    assert "a.csv: byte 0xef" in message and "b.csv: no column 'text'" in message


def test_texts_and_labels_of_the_wrong_type_are_reported_together(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": 5, "label": 3}])
    write(tmp_path / "test.jsonl", [{"text": "b", "label": "3"}])
    message = refused(tmp_path)
    assert "train.jsonl: column 'text' holds int64" in message and "labels are of mixed types" in message


# --- checks


def checked(source: Path, **settings) -> tuple[DomainTable, list[str]]:
    data = DataConfig(source=str(source), **settings)
    return check_rows(read_source(data), data)


def test_rows_with_an_empty_text_are_dropped_with_a_note_and_a_new_fingerprint(tmp_path):
    rows = [*ROWS, {"text": "", "label": "x"}, {"text": " \n", "label": "x"}, {"text": None, "label": "x"}]
    table, problems = checked(write(tmp_path / "a.jsonl", rows))
    assert problems == [] and table.rows.num_rows == 3
    assert table.notes == ("dropped 3 rows with an empty text (a.jsonl:4, a.jsonl:5, a.jsonl:6).",)
    assert table.fingerprint == checked(write(tmp_path / "b" / "a.jsonl", ROWS))[0].fingerprint


def test_a_table_that_loses_a_row_keeps_the_id_of_its_data_set(tmp_path):
    data = DataConfig(source=str(write(tmp_path / "a.jsonl", [*ROWS, {"text": " ", "label": "x"}])))
    table, _ = check_rows(replace(read_source(data), hub_id="owner/reviews"), data)
    assert (table.rows.num_rows, table.hub_id) == (3, "owner/reviews")


def test_rows_with_an_empty_second_text_are_dropped(tmp_path):
    rows = [{"text": "a", "text_pair": "b", "label": "x"}, {"text": "a", "text_pair": "", "label": "x"}]
    table, _ = checked(write(tmp_path / "a.csv", rows), text_pair_column="text_pair")
    assert column(table, "place") == ["a.csv:1"]


def test_missing_labels_are_a_problem_with_count_and_places(tmp_path):
    rows = [{"text": "t", "label": label} for label in ("x", "", "y", " ")]
    _, problems = checked(write(tmp_path / "a.csv", rows))
    assert (
        len(problems) == 1 and "2 of 4 rows without a label (a.csv:2, a.csv:4): fill in column 'label'" in problems[0]
    )
    for labels in ([1.5, None], [["a"], None], [["a"], ["b", None]], [3, None]):
        path = tmp_path / "b.parquet"
        pq.write_table(pa.table({"text": ["t", "t"], "label": labels}), path)
        assert "(b.parquet:2)" in checked(path)[1][0], labels
    write(tmp_path / "lists" / "train.parquet", [{"text": "t", "label": ["a"]}, {"text": "t", "label": []}])
    write(tmp_path / "lists" / "test.parquet", [{"text": "t", "label": ["a", "b"]}, {"text": "t", "label": [None]}])
    assert "1 of 4 rows without a label (test.parquet:2)" in checked(tmp_path / "lists")[1][0]
    pq.write_table(pa.table({"text": ["t", "t"], "label": [1.0, float("nan")]}), tmp_path / "c.parquet")
    assert "(c.parquet:2)" in checked(tmp_path / "c.parquet")[1][0]


def test_nan_is_a_missing_label_among_numbers_and_a_class_among_names(tmp_path):
    numbers = write(tmp_path / "a.csv", [{"text": "t", "label": label} for label in ("1.5", "2.25", "nan")])
    (problem,) = checked(numbers)[1]
    assert "1 of 3 rows without a label (a.csv:3): fill in column 'label'" in problem
    names = write(tmp_path / "b.csv", [{"text": "t", "label": label} for label in ("good", "nan")])
    table, problems = checked(names)
    assert problems == [] and column(table, "label") == ["good", "nan"]


def test_an_empty_label_means_no_class_where_a_separator_is_given(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": "t", "label": "a|b"}, {"text": "u", "label": ""}])
    assert checked(path, label_separator="|")[1] == []


def test_a_published_test_split_without_any_label_is_dropped_with_a_note(tmp_path):
    write(tmp_path / "train.csv", [{"text": "t", "label": "x"}])
    write(tmp_path / "test.csv", [{"text": "u", "label": ""}, {"text": "v", "label": ""}])
    table, problems = checked(tmp_path)
    assert problems == [] and column(table, "place") == ["train.csv:1"]
    assert "dropped all 2 rows of the published test split, none of which has a label" in table.notes[0]


def test_a_train_split_without_any_label_is_a_problem(tmp_path):
    write(tmp_path / "train.csv", [{"text": "t", "label": ""}])
    write(tmp_path / "test.csv", [{"text": "u", "label": "x"}])
    assert "1 of 2 rows without a label" in checked(tmp_path)[1][0]


def test_a_table_that_needs_no_change_is_returned_as_it_is(tmp_path):
    data = DataConfig(source=str(write(tmp_path / "a.csv", ROWS)))
    table = read_source(data)
    assert check_rows(table, data) == (table, [])


def test_loading_is_reading_and_checking(tmp_path):
    path = write(tmp_path / "a.csv", [*ROWS, {"text": "", "label": "x"}])
    assert load_source(DataConfig(source=str(path))).rows.num_rows == 3
    path = write(tmp_path / "b.csv", [*ROWS, {"text": "t", "label": ""}])
    with pytest.raises(InputError, match="1 of 4 rows without a label"):
        load_source(DataConfig(source=str(path)))


# --- bundled and Hub


def test_bundled_data_come_with_domains_and_a_recommendation(tmp_path, monkeypatch):
    for domain in ("books", "apps"):
        write(tmp_path / f"{domain}.jsonl", [{**ROWS[0], "split": split} for split in ("train", "test")])
    monkeypatch.setitem(bundled.BUNDLED, "tiny", bundled.Bundled(tmp_path, ("books",)))
    table = load("bundled:tiny")
    assert table.name == "bundled:tiny" and table.default_train_domains == ("books",)
    assert set(column(table, "domain")) == {"books", "apps"} and set(column(table, "split")) == {"train", "test"}


def test_an_unknown_bundled_name_is_refused_with_the_known_ones():
    assert "bundled:review is not known. Did you mean reviews? There is bundled:reviews" in refused("bundled:review")


def test_a_hub_dataset_gives_class_names_and_known_splits(monkeypatch):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def rows(*labels: int) -> datasets.Dataset:
        texts = [f"text {i}" for i in range(len(labels))]
        return datasets.Dataset.from_dict({"text": texts, "label": list(labels)}, features=features)

    asked = {}

    def load_dataset(*names, **options):
        asked.update(names=names, **options)
        return datasets.DatasetDict(test=rows(1), unsupervised=rows(0), train=rows(0, 1), validation_matched=rows(-1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = load("owner/reviews", subset="en", revision="abc")
    assert table.hub_id == "owner/reviews"
    assert asked == {"names": ("owner/reviews", "en"), "revision": "abc"}
    assert column(table, "place") == ["train:1", "train:2", "validation_matched:1", "test:1"]
    assert column(table, "label") == ["neg", "pos", None, "pos"]
    assert column(table, "split") == ["train", "train", "validation", "test"]
    assert set(column(table, "domain")) == {"reviews"} and table.name == "owner/reviews"
    assert table.notes == ("splits of owner/reviews that are not read: unsupervised.",)


def test_a_hub_dataset_with_lists_of_class_numbers_gives_lists_of_names(monkeypatch):
    labels = datasets.List(datasets.ClassLabel(names=["joy", "fear"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [[1, 0], [], [1]]}, features=features)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *_, **__: datasets.DatasetDict(train=rows.select([2, 0, 1]), test=rows.select([1, 2])),
    )
    assert column(load("emotions"), "label") == [["fear"], ["fear", "joy"], [], [], ["fear"]]


def test_a_hub_dataset_that_cannot_be_reached_is_refused_with_the_way_out(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'owner/reviews' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = refused("owner/reviews", subset="en")
    assert "owner/reviews (--data.subset en) is no local path and could not be loaded" in message
    assert "Couldn't reach" in message and "HF_HUB_OFFLINE is set" in message and "path of a file or folder" in message
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert "hf auth login" in refused("owner/reviews")


def test_importing_the_sources_imports_no_heavy_package():
    code = (
        "import sys, hf_transfer.sources, hf_transfer.splits, hf_transfer.duplicates\n"
        "print([name for name in ('datasets', 'torch', 'pandas', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stdout.strip() == "[]"
