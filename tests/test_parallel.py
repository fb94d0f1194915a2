"""Parallel text: every form gives the same pairs with their places; what cannot be used is refused with a remedy."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from xml.sax.saxutils import escape

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainTable
from hf_transfer.sources import bundled
from hf_transfer.sources.parallel import read_pairs

PAIRS = [
    ("Good, really good.", "Gut, wirklich gut."),
    ('He said "no" & left', 'Er sagte "nein" & ging'),
    ("Feet on <streets>\u2028and lines", "Füße auf <Straßen>\u2028und Zeilen"),
]
EN_DE = {"source_lang": "en", "target_lang": "de"}
STANDARD = ["example_id", "place", "domain", "split", "source", "target", "source_lang", "target_lang"]


def write(path: Path, pairs: list[tuple[str, str]], names: tuple[str, str] = ("source", "target"), **more) -> Path:
    """Write pairs in the format of the suffix; ``more``: further columns with one value for all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(names, pair, strict=True), **more) for pair in pairs]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        quoted = [['"' + value.replace('"', '""') + '"' for value in row.values()] for row in rows]
        path.write_text("\n".join(separator.join(fields) for fields in [list(rows[0]), *quoted]) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.name.endswith((".tmx", ".tmx.gz")):
        units = "".join(
            f'<tu><tuv xml:lang="en"><seg>{escape(a)}</seg></tuv><tuv xml:lang="de"><seg>{escape(b)}</seg></tuv></tu>\n'
            for a, b in pairs
        )
        content = f'<?xml version="1.0"?>\n<tmx version="1.4"><header/><body>{units}</body></tmx>'.encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_plain(stem: Path, pairs: list[tuple[str, str]], languages: tuple[str, str] = ("en", "de")) -> Path:
    """Write ``stem.en`` and ``stem.de``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for side, language in enumerate(languages):
        lines = "".join(pair[side] + "\n" for pair in pairs)
        stem.with_name(f"{stem.name}.{language}").write_text(lines, encoding="utf-8", newline="")
    return stem


def write_nested(path: Path, pairs: list[tuple[str, str]], languages: tuple[str, str] = ("en", "de")) -> Path:
    """Write ``{"translation": {"en": ..., "de": ...}}`` as JSON lines or Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": str(i), "translation": dict(zip(languages, pair, strict=True))} for i, pair in enumerate(pairs)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(source: Path | str, **fields) -> DomainTable:
    return read_pairs(DataConfig(source=str(source), **fields))


def refused(source: Path | str, **fields) -> str:
    with pytest.raises(InputError) as caught:
        load(source, **fields)
    return str(caught.value)


def column(table: DomainTable, name: str) -> list[str]:
    return list(table.rows[name])


def pairs_of(table: DomainTable) -> list[tuple[str, str]]:
    return list(zip(column(table, "source"), column(table, "target"), strict=True))


def found(table: DomainTable) -> set[tuple[str, str, str]]:
    return set(zip(column(table, "place"), column(table, "domain"), column(table, "split"), strict=True))


# --- every form


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".tmx", ".tmx.gz"])
def test_every_format_gives_the_same_pairs_and_the_same_fingerprint(tmp_path, suffix):
    table = load(write(tmp_path / f"talks{suffix}", PAIRS), **EN_DE)
    assert table.rows.column_names == STANDARD
    assert pairs_of(table) == PAIRS
    before_number = "tu " if ".tmx" in suffix else ""
    places = [f"talks{suffix}:{before_number}{i}" for i in (1, 2, 3)]
    assert column(table, "place") == column(table, "example_id") == places
    assert set(column(table, "domain")) == {"talks"} and set(column(table, "split")) == {""}
    assert set(column(table, "source_lang")) == {"en"} and set(column(table, "target_lang")) == {"de"}
    assert table.name == "talks"
    assert table.fingerprint == load(write_plain(tmp_path / "plain" / "talks", PAIRS), **EN_DE).fingerprint


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_form_of_the_hub_gives_the_languages_that_are_asked_for(tmp_path, suffix):
    path = write_nested(tmp_path / f"talks{suffix}", PAIRS)
    assert pairs_of(load(path, **EN_DE)) == PAIRS
    turned = load(path, source_lang="de", target_lang="en")
    assert pairs_of(turned) == [pair[::-1] for pair in PAIRS] and turned.rows[0]["source_lang"] == "de"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_one_language_of_two_is_enough_for_the_form_of_the_hub(tmp_path, suffix):
    table = load(write_nested(tmp_path / f"talks{suffix}", PAIRS), target_lang="en")
    assert pairs_of(table) == [pair[::-1] for pair in PAIRS]
    assert (table.rows[0]["source_lang"], table.rows[0]["target_lang"]) == ("de", "en")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_columns_named_by_the_languages_are_used_where_the_configured_ones_are_not_there(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", PAIRS, ("en", "de"), id="7")
    assert pairs_of(load(path, **EN_DE)) == PAIRS
    both = write(tmp_path / f"b{suffix}", PAIRS, en="other", de="anderes")
    assert pairs_of(load(both, **EN_DE)) == PAIRS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_regional_names_of_columns_and_fields_match_the_language(tmp_path, suffix):
    assert pairs_of(load(write(tmp_path / f"a{suffix}", PAIRS, ("en-US", "de_DE")), **EN_DE)) == PAIRS
    if suffix != ".csv":
        assert pairs_of(load(write_nested(tmp_path / f"b{suffix}", PAIRS, ("en_XX", "de-AT")), **EN_DE)) == PAIRS


def test_named_columns_ids_domains_splits_and_languages_are_put_under_the_standard_names(tmp_path):
    row = {"nr": 7, "src": "Hi", "tgt": "Hallo", "genre": "talk", "part": "dev", "from": "en", "to": "de"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "nr": 8, "to": None}))
    named = {"source_column": "src", "target_column": "tgt", "id_column": "nr"}
    named |= {"domain_column": "genre", "split_column": "part"}
    table = load(tmp_path / "a.jsonl", **named, source_lang_column="from", target_lang_column="to", target_lang="nl")
    values = ["7", "a.jsonl:1", "talk", "validation", "Hi", "Hallo", "en", "de"]
    assert table.rows[0] == dict(zip(STANDARD, values, strict=True))
    assert table.rows[1]["target_lang"] == "nl"


def test_a_dotted_column_name_reaches_into_objects(tmp_path):
    rows = [{"doc": {"text": "Hi"}, "out": {"text": "Hallo", "score": 3}}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        assert pairs_of(load(tmp_path / name, source_column="doc.text", target_column="out.text")) == [("Hi", "Hallo")]


def test_the_side_columns_are_not_taken_for_the_domain(tmp_path):
    path = write(tmp_path / "a.csv", [("Hi", "Hallo")], ("domain", "split"))
    table = load(path, source_column="domain", target_column="split")
    assert found(table) == {("a.csv:1", "a", "")} and pairs_of(table) == [("Hi", "Hallo")]


def test_a_metadata_column_called_source_can_be_the_domain(tmp_path):
    table = load(write(tmp_path / "a.csv", PAIRS, ("en", "de"), source="wiki"), domain_column="source", **EN_DE)
    assert set(column(table, "domain")) == {"wiki"} and pairs_of(table) == PAIRS


def test_the_fingerprint_depends_on_sides_and_languages(tmp_path):
    path = write(tmp_path / "a.csv", PAIRS)
    fingerprints = {load(path, **names).fingerprint for names in ({}, EN_DE, {**EN_DE, "target_lang": "de_DE"})}
    fingerprints.add(load(path, source_column="target", target_column="source").fingerprint)
    fingerprints.add(load(write(tmp_path / "b" / "a.csv", PAIRS[::-1])).fingerprint)
    assert len(fingerprints) == 5


def test_empty_structs_and_fields_are_empty_sides(tmp_path):
    rows = [{"translation": {"en": "Hi", "de": None}}, {"translation": None}, {"translation": {"en": "a", "de": "b"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.parquet", "b.jsonl"):
        assert pairs_of(load(tmp_path / name, **EN_DE)) == [("Hi", ""), ("", ""), ("a", "b")]


# --- aligned plain files


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))] * 2), min_size=1
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_plain_files_give_back_every_line_whatever_is_in_it(tmp_path, pairs, ending, last_ending, mark):
    for side, language in enumerate(("en", "de")):
        text = ending.join(pair[side] for pair in pairs) + (ending if last_ending or not pairs[-1][side] else "")
        text = ("\ufeff" if mark or text.startswith("\ufeff") else "") + text
        (tmp_path / f"train.{language}").write_bytes(text.encode("utf-8"))
    table = load(tmp_path / "train", **EN_DE)
    assert pairs_of(table) == pairs
    assert column(table, "place") == [f"train.en:{i}" for i in range(1, len(pairs) + 1)]


def test_a_folder_of_plain_files_has_splits(tmp_path):
    for name in ("train", "dev", "test_2016"):
        write_plain(tmp_path / name, PAIRS[:1])
    table = load(tmp_path, **EN_DE)
    assert column(table, "place") == ["train.en:1", "dev.en:1", "test_2016.en:1"]
    assert column(table, "split") == ["train", "validation", "test"]
    assert set(column(table, "domain")) == {tmp_path.name} and table.name == tmp_path.name
    assert table.notes == ()


def test_a_pair_of_files_per_domain_or_per_domain_and_split(tmp_path):
    for name in ("kde4", "emea.train", "emea.test"):
        write_plain(tmp_path / name, PAIRS[:1])
    assert found(load(tmp_path, **EN_DE)) == {
        ("kde4.en:1", "kde4", ""),
        ("emea.train.en:1", "emea", "train"),
        ("emea.test.en:1", "emea", "test"),
    }


def test_a_folder_per_domain(tmp_path):
    for name in ("kde4/train", "kde4/test", "emea/all"):
        write_plain(tmp_path / name, PAIRS[:1])
    assert found(load(tmp_path, **EN_DE)) == {
        ("kde4/train.en:1", "kde4", "train"),
        ("kde4/test.en:1", "kde4", "test"),
        ("emea/all.en:1", "emea", ""),
    }


def test_languages_in_the_middle_of_a_name_are_no_part_of_the_domain(tmp_path):
    for name in ("KDE4.de-en", "EMEA.en_de"):
        write_plain(tmp_path / name, PAIRS[:1])
    write(tmp_path / "TED.de-en.tmx.gz", PAIRS[:1])
    write_plain(tmp_path / "x-fr-en", PAIRS[:1])
    assert set(column(load(tmp_path, **EN_DE), "domain")) == {"KDE4", "EMEA", "TED", "x-fr-en"}


def test_plain_files_tables_and_memories_may_stand_in_one_folder(tmp_path):
    write_plain(tmp_path / "kde4", PAIRS[:1])
    write(tmp_path / "emea.tmx", PAIRS[:1])
    write(tmp_path / "ted.csv", PAIRS[:1])
    (tmp_path / "README.md").write_text("read me")
    table = load(tmp_path, **EN_DE)
    assert found(table) == {("kde4.en:1", "kde4", ""), ("emea.tmx:tu 1", "emea", ""), ("ted.csv:1", "ted", "")}
    assert len(table.notes) == 1 and "README.md" in table.notes[0] and "kde4.de" not in table.notes[0]


def test_a_prefix_names_two_files_and_nothing_else(tmp_path):
    write_plain(tmp_path / "train", PAIRS)
    write_plain(tmp_path / "test", PAIRS[:1])
    table = load(tmp_path / "train", **EN_DE)
    assert pairs_of(table) == PAIRS and table.name == "train"


def test_two_files_with_a_comma_are_source_and_target_whatever_they_are_called(tmp_path):
    write_plain(tmp_path / "a", PAIRS)
    table = load(f"{tmp_path / 'a.de'},{tmp_path / 'a.en'}")
    assert pairs_of(table) == [pair[::-1] for pair in PAIRS]
    assert (table.rows[0]["source_lang"], table.rows[0]["target_lang"]) == ("de", "en")
    for name, side in (("left.txt", "a.en"), ("right.txt", "a.de")):
        (tmp_path / side).rename(tmp_path / name)
    table = load(f"{tmp_path / 'left.txt'}, {tmp_path / 'right.txt'}", target_lang="de")
    assert pairs_of(table) == PAIRS
    assert (table.rows[0]["source_lang"], table.rows[0]["target_lang"]) == ("", "de")


def test_one_language_of_two_is_enough_for_plain_files(tmp_path):
    write_plain(tmp_path / "train", PAIRS)
    for source in (tmp_path, tmp_path / "train"):
        assert pairs_of(load(source, source_lang="de")) == [pair[::-1] for pair in PAIRS]


def test_of_three_languages_the_two_that_are_named_are_read(tmp_path):
    write_plain(tmp_path / "train", PAIRS)
    write_plain(tmp_path / "train", PAIRS, ("en", "fr"))
    assert pairs_of(load(tmp_path, **EN_DE)) == PAIRS
    message = refused(tmp_path, source_lang="en")
    assert "holds de, en, fr: name two of these with --data.source_lang and --data.target_lang" in message


def test_regional_suffixes_match_and_the_very_code_goes_first(tmp_path):
    write_plain(tmp_path / "train", PAIRS, ("en-GB", "de"))
    assert pairs_of(load(tmp_path, **EN_DE)) == PAIRS
    write_plain(tmp_path / "train", PAIRS[::-1], ("en", "de"))
    assert column(load(tmp_path, **EN_DE), "place")[0] == "train.en:1"


# --- bundled and Hub


def test_bundled_pairs_come_with_domains_and_a_recommendation(tmp_path, monkeypatch):
    for domain in ("kitchen", "workshop"):
        write(tmp_path / f"{domain}.jsonl", PAIRS, split="train")
    monkeypatch.setitem(bundled.BUNDLED, "tiny", bundled.Bundled(tmp_path, ("kitchen",), "translation"))
    table = load("bundled:tiny", **EN_DE)
    assert table.name == "bundled:tiny" and table.default_train_domains == ("kitchen",)
    assert set(column(table, "domain")) == {"kitchen", "workshop"} and set(column(table, "split")) == {"train"}


def test_a_hub_dataset_gives_its_pairs_and_known_splits(monkeypatch):
    features = datasets.Features({"id": datasets.Value("string"), "translation": datasets.Translation(["en", "de"])})

    def rows(pairs: list[tuple[str, str]]) -> datasets.Dataset:
        values = [{"en": source, "de": target} for source, target in pairs]
        return datasets.Dataset.from_dict({"id": ["x"] * len(pairs), "translation": values}, features=features)

    asked = {}

    def load_dataset(*names, **options):
        asked.update(names=names, **options)
        return datasets.DatasetDict(test=rows(PAIRS[:1]), train=rows(PAIRS), other=rows(PAIRS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = load("owner/books", subset="de-en", **EN_DE)
    assert asked == {"names": ("owner/books", "de-en"), "revision": None}
    assert pairs_of(table) == [*PAIRS, PAIRS[0]]
    assert column(table, "place") == ["train:1", "train:2", "train:3", "test:1"]
    assert set(column(table, "domain")) == {"books"} and table.name == table.hub_id == "owner/books"
    assert table.notes == ("splits of owner/books that are not read: other.",)
    message = refused("owner/books", source_lang="en", target_lang="fr")
    assert "train: column 'translation' holds de, en, not fr" in message


def test_a_hub_dataset_with_flat_columns(monkeypatch):
    rows = datasets.Dataset.from_dict({"en": ["Hi"], "de": ["Hallo"], "domain": ["talk"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=rows))
    table = load("talks", **EN_DE)
    assert pairs_of(table) == [("Hi", "Hallo")] and column(table, "domain") == ["talk"]


def test_a_hub_id_stays_one_beside_a_file_that_begins_like_it(tmp_path, monkeypatch):
    for suffix in ("txt", "csv", "jsonl", "tmx"):
        (tmp_path / f"talks.{suffix}").write_text("notes")
    monkeypatch.chdir(tmp_path)
    rows = datasets.Dataset.from_dict({"source": ["Hi"], "target": ["Hallo"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=rows))
    assert pairs_of(load("talks")) == [("Hi", "Hallo")]


# --- refusals


@pytest.mark.parametrize("form", ["folder", "prefix", "nested", "memory"])
def test_two_languages_without_a_direction_are_refused_with_both_ways(tmp_path, form):
    source = {
        "folder": lambda: write_plain(tmp_path / "train", PAIRS).parent,
        "prefix": lambda: write_plain(tmp_path / "train", PAIRS),
        "nested": lambda: write_nested(tmp_path / "a.jsonl", PAIRS),
        "memory": lambda: write(tmp_path / "a.tmx", PAIRS),
    }[form]()
    message = refused(source)
    assert "holds de and en, and nothing says which is translated into which" in message
    assert "--data.source_lang de --data.target_lang en, or the other way round" in message


def test_unequal_files_are_refused_with_both_counts_and_the_line_of_the_drift(tmp_path):
    pairs = [
        (f"Number {i * 7919} {'la ' * (i**2 % 11)}.", f"Nummer {i * 7919} {'lo ' * (i**2 % 11)}.") for i in range(200)
    ]
    write_plain(tmp_path / "train", pairs)
    lines = (tmp_path / "train.de").read_text().splitlines(keepends=True)
    (tmp_path / "train.de").write_text("".join(lines[:120] + lines[121:]))
    message = refused(tmp_path, **EN_DE)
    assert "train.en has 200 lines and train.de has 199 lines: line n of one must be the translation" in message
    # line 121 of train.en has no translation: it matches as little with the shift as without
    assert re.search(r"They seem to drift from line 12[12]:", message)
    (tmp_path / "train.en").write_text("one\ntwo\n")
    (tmp_path / "train.de").write_text("eins\n")
    message = refused(tmp_path, **EN_DE)
    assert "train.en has 2 lines and train.de has 1 line:" in message and "cannot be told" in message


def test_a_file_without_its_partner_is_refused_with_the_nearest_name(tmp_path):
    write_plain(tmp_path / "train", PAIRS)
    write_plain(tmp_path / "test", PAIRS)
    (tmp_path / "test.de").rename(tmp_path / "tset.de")
    message = refused(tmp_path, **EN_DE)
    assert f"{tmp_path / 'test.en'} has no partner test.de: add it" in message and "Did you mean tset.de?" in message
    assert f"{tmp_path / 'tset.de'} has no partner tset.en" in message
    assert "train.fr" in refused(tmp_path / "train", source_lang="en", target_lang="fr")


def test_a_folder_with_other_languages_is_refused_with_the_suffixes_that_were_expected(tmp_path):
    write_plain(tmp_path / "train", PAIRS)
    message = refused(tmp_path, source_lang="fr", target_lang="it")
    assert "two files of one name that end in .fr and .it" in message and "train.de, train.en" in message
    message = refused(tmp_path / "train", source_lang="fr", target_lang="it")
    assert "holds de, en, not fr and it" in message
    message = refused(tmp_path, source_lang="fr")
    assert "holds de, en, not fr: name two of these" in message


def test_one_side_alone_is_refused_with_the_way_to_name_both(tmp_path):
    write_plain(tmp_path / "train", PAIRS)
    message = refused(tmp_path / "train.en", **EN_DE)
    assert "holds one side" in message and f"({tmp_path / 'train.en'},{tmp_path / 'train.de'})" in message


def test_two_files_that_contradict_the_languages_are_refused(tmp_path):
    write_plain(tmp_path / "a", PAIRS)
    message = refused(f"{tmp_path / 'a.de'},{tmp_path / 'a.en'}", **EN_DE)
    assert "a.de is the source and ends in .de, but --data.source_lang is en" in message
    assert "a.en is the target and ends in .en, but --data.target_lang is de" in message
    assert "expected two files" in refused(f"{tmp_path / 'a.de'},{tmp_path / 'a.de'}")
    message = refused(f"{tmp_path / 'a.en'},{tmp_path / 'a.da'}")
    assert "a.da does not exist" in message and "Did you mean a.de" in message


def test_the_problems_of_all_files_are_reported_together(tmp_path):
    write_plain(tmp_path / "talks", PAIRS)
    (tmp_path / "talks.de").write_bytes(b"gut\nna\xefv\nja\n")
    write_plain(tmp_path / "short", PAIRS)
    (tmp_path / "short.en").write_text("one\n")
    (tmp_path / "alone.en").write_text("one\n")
    (tmp_path / "odd.tsv").write_text("source\ttarget\nonly one\n")
    (tmp_path / "broken.tmx").write_text("<tmx>")
    write(tmp_path / "more.csv", PAIRS, ("src", "target"))
    message = refused(tmp_path, **EN_DE)
    for part in (
        "talks.de: byte 0xef at offset 6 (line 2) is not UTF-8",
        "short.en has 1 line and short.de has 3 lines",
        "alone.en has no partner alone.de",
        "odd.tsv: 1 row without the 2 fields of the header",
        "broken.tmx is not well-formed XML",
        "more.csv: no column 'source'; found 'src', 'target'",
    ):
        assert part in message, part


def test_missing_columns_are_refused_with_the_nearest_names(tmp_path):
    write(tmp_path / "a.csv", PAIRS, ("Source", "Taget"))
    write(tmp_path / "b.csv", PAIRS, ("Source", "Taget"))
    message = refused(tmp_path, id_column="nr", source_lang_column="from")
    assert "a.csv, b.csv: no column 'source'; found 'Source', 'Taget'. Did you mean Source?" in message
    assert "no column 'target'" in message and "Did you mean Taget?" in message and "--data.target_column" in message
    assert "no column 'nr'" in message and "no column 'from'" in message and "--data.source_lang_column" in message


def test_a_domain_in_some_files_only_is_refused(tmp_path):
    write_plain(tmp_path / "kde4", PAIRS)
    write(tmp_path / "ted.csv", PAIRS, domain="ted")
    assert "column 'domain' is in ted.csv but not in kde4.en" in refused(tmp_path, **EN_DE)


def test_sides_that_are_no_strings_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"source": 1, "target": "b"}\n')
    assert "column 'source' holds int64, expected strings" in refused(tmp_path / "a.jsonl")


def test_a_path_that_is_not_there_is_refused_with_its_neighbours(tmp_path):
    write(tmp_path / "talks.tmx", PAIRS)
    message = refused(tmp_path / "talk.tmx", **EN_DE)
    assert "does not exist" in message and "Did you mean talks.tmx?" in message


def test_empty_files_hold_no_rows(tmp_path):
    write_plain(tmp_path / "train", [])
    assert "holds no rows" in refused(tmp_path, **EN_DE)
