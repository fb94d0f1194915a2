"""What all sources share: parts, as they were read, become one table under the standard column names; its checks.

Everything stays in Arrow: a column operation in place of a Python list of all texts.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.labels import read_number
from hf_transfer.mapped import filtered, on_disk, pieces
from hf_transfer.records import DomainTable

if TYPE_CHECKING:
    from datasets import Dataset

PLACES_SHOWN = 3
LABELLED_FIELDS = ("text_column", "text_pair_column", "label_column", "id_column", "domain_column", "split_column")
"""Fields of ``DataConfig`` that name columns of labelled text."""
LEARNT_FROM = ("domain", "split", "text", "text_pair", "label", "source", "target", "source_lang", "target_lang")
ROWS_PER_HASH = 10_000
TEXT = pa.large_string()
LISTS = pa.large_list(TEXT)

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass(frozen=True)
class Part:
    """The rows of one file, or of one split of a Hub dataset, as they were read."""

    place: str
    """Path inside the folder, or split name: what stands before the row number in a place."""
    columns: tuple[str, ...]
    """Names of all columns that are there."""
    table: pa.Table
    """Those of them that ``used_columns`` asks for, under their own names."""
    split: str = ""
    """What the file name says: train, validation, test or ""."""
    domain: str = ""
    """What the file or folder name says, or ""."""
    typed: bool = True
    """False where every value was read as a string because the format knows no types (CSV, TSV)."""
    notes: tuple[str, ...] = ()
    row_names: pa.Array | None = None
    """[rows] strings that stand after the colon of a place where rows have names of their own; else 1, 2, 3, ..."""


def split_word(name: str) -> str | None:
    """train, validation or test if ``name`` is a word for it, alone or before ``-``, ``_`` or ``.``; else None."""
    return SPLIT_WORDS.get(re.split(r"[-_.]", name.strip().lower())[0])


def used_columns(data: DataConfig) -> tuple[str, ...]:
    """Names of the columns that a source should read, whether or not they are there."""
    named = [data.text_column, data.text_pair_column, data.label_column, data.id_column]
    named += [data.domain_column or "domain", data.split_column or "split"]
    return tuple(dict.fromkeys(name for name in named if name))


def closest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean a, b?`` with up to three known names that look like ``name``, or ""."""
    by_lower = {item.strip().lower(): item for item in known}
    found = difflib.get_close_matches(name.strip().lower(), list(by_lower), 3, 0.6)
    return f" Did you mean {', '.join(by_lower[item] for item in found)}?" if found else ""


def shown(items: Sequence[str]) -> str:
    """The first few items, for a message."""
    more = f" and {len(items) - PLACES_SHOWN:,} more" if len(items) > PLACES_SHOWN else ""
    return ", ".join(items[:PLACES_SHOWN]) + more


def counted(count: int, noun: str) -> str:
    """``1 row``, ``1,200 rows``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def shown_places(places: pa.ChunkedArray, chosen: pa.ChunkedArray) -> str:
    """The first few places where ``chosen`` holds, for a message."""
    return ", ".join(places.filter(chosen).slice(0, PLACES_SHOWN).to_pylist())


def assemble(parts: Sequence[Part], name: str, data: DataConfig, notes: Sequence[str] = ()) -> DomainTable:
    """One table under the standard column names from parts in the order given.

    Raises:
        InputError: missing columns, values of a kind that cannot be used, or no rows at all.
    """
    # 1. The columns that the config names must be in every part; `domain` and `split` in all or in none.
    # 2. Each part is put under the standard names, its labels still of its own type.
    # 3. All labels get one type; the parts are joined.
    # 4. Split names are put in one form; rows of splits that are not train, validation or test go, counted.
    taken = (data.text_column, data.text_pair_column, data.label_column, data.id_column)
    domain_column, problems = optional_column(parts, "domain", data.domain_column, taken)
    split_column, split_problems = optional_column(parts, "split", data.split_column, taken)
    raise_if(missing_columns(parts, data) + problems + split_problems)
    named = {"example_id": data.id_column, "domain": domain_column, "split": split_column}
    named |= {"text": data.text_column, "text_pair": data.text_pair_column}
    standard = [standard_columns(part, name, named) for part in parts]
    labels, problems = _one_label_type(parts, data.label_column)
    raise_if([problem for _, found in standard for problem in found] + problems)
    joined = [pa.table({**columns, "label": label}) for (columns, _), label in zip(standard, labels, strict=True)]
    return join(joined, name, (*notes, *(note for part in parts for note in part.notes)))


def join(tables: Sequence[pa.Table], name: str, notes: Sequence[str] = ()) -> DomainTable:
    """One ``DomainTable`` from tables with the same standard columns, split names put in one form.

    Raises:
        InputError: no rows at all.
    """
    table, dropped = _with_plain_splits(pa.concat_tables(tables))
    if not table.num_rows:
        raise InputError([f"{name} holds no rows to train on or to score: give data with at least one row.", *dropped])
    return make_table(_names_on_disk(table), name, notes=(*notes, *dropped))


def _names_on_disk(table: pa.Table) -> pa.Table:
    """``table`` with all that is not text put away where rows are many; texts have been as they were read."""
    names = [name for name in table.column_names if name not in ("text", "text_pair", "source", "target")]
    put_away = on_disk(table.select(names))
    return pa.table({name: put_away[name] if name in names else table[name] for name in table.column_names})


def make_table(
    table: pa.Table,
    name: str,
    default_train_domains: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    hub_id: str = "",
) -> DomainTable:
    """Wrap standard columns as a ``DomainTable`` with its fingerprint."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    fingerprint = hash_rows(table)
    # datasets would hash the whole table again, slowly, to name it
    rows = Dataset(InMemoryTable(table), fingerprint=fingerprint[:16])
    return DomainTable(rows, name, fingerprint, default_train_domains, notes, hub_id)


def with_rows(table: DomainTable, rows: pa.Table, notes: Iterable[str]) -> DomainTable:
    """``table`` with other rows and notes, by the name that it had."""
    return make_table(rows, table.name, table.default_train_domains, tuple(notes), table.hub_id)


def arrow_table(rows: Dataset) -> pa.Table:
    """All columns of a dataset as one Arrow table, without a copy where the rows are in their own order."""
    return rows.with_format("arrow")[:]


def hash_rows(table: pa.Table) -> str:
    """sha256 over what is learnt from, in order: domain, split, texts and label, or both sides and their languages.

    Places and ids stay out, and so does the cutting into Arrow chunks: the same rows give the same hash from a CSV
    file here and from a Parquet file elsewhere.
    """
    names = [name for name in LEARNT_FROM if name in table.column_names]
    digest = hashlib.sha256(" ".join(names).encode())
    for start in range(0, table.num_rows, ROWS_PER_HASH):
        for name in names:
            for block in _content_bytes(table[name].slice(start, ROWS_PER_HASH)):
                digest.update(block)
    return digest.hexdigest()


def check_rows(table: DomainTable, data: DataConfig) -> tuple[DomainTable, list[str]]:
    """Drop rows with an empty text (or an empty second text), noting where; list what stops a run about the others.

    Returns the table and its problems (repeated ids, missing domains, missing labels), each with a count, the first
    places and a remedy; [] if it can be used. A test or validation split without a single label, as published for
    leaderboards, is dropped with a note. With problems the table holds no row without a domain, so that no domain is
    called "", but still those without a label: ``labelled`` leaves them out.
    """
    rows = arrow_table(table.rows)
    notes = list(table.notes)
    empty = blank(rows["text"])
    if "text_pair" in rows.column_names:
        empty = pc.or_(empty, blank(rows["text_pair"]))
    empty_count = pc.sum(empty).as_py() or 0
    if empty_count:
        notes.append(
            f"dropped {counted(empty_count, 'row')} with an empty text ({shown_places(rows['place'], empty)})."
        )
        rows = filtered(rows, pc.invert(empty))
    missing = _missing_labels(rows["label"], data)
    rows, missing, unlabelled = _without_unlabelled_splits(rows, missing)
    problems, no_domain = name_problems(rows, data)
    missing_count = pc.sum(missing).as_py() or 0
    if missing_count:
        places = shown_places(rows["place"], missing)
        problems.append(
            f"{missing_count:,} of {counted(rows.num_rows, 'row')} without a label ({places}): "
            f"fill in column {data.label_column!r}, remove these rows, or name another --data.label_column."
        )
    if not rows.num_rows:
        problems.append(f"{table.name} holds no row with a text: look into column {data.text_column!r}.")
    if pc.any(no_domain).as_py():
        rows = filtered(rows, pc.invert(no_domain))
    if rows.num_rows == table.rows.num_rows:
        return table, problems
    return with_rows(table, rows, notes + unlabelled), problems


def labelled(rows: Dataset, data: DataConfig) -> Dataset:
    """The rows that have a label."""
    missing = _missing_labels(arrow_table(rows)["label"], data) if rows.num_rows else None
    if missing is None or not pc.any(missing).as_py():
        return rows
    return rows.select(pc.indices_nonzero(pc.invert(missing)).cast(pa.int64()).to_numpy())


def name_classes(table: pa.Table, features: Mapping[str, Any], column_name: str) -> pa.Table:
    """``table`` with class numbers of a ``ClassLabel`` column (or a list of them) as class names; -1 as missing."""
    feature = features.get(column_name)
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    if column_name not in table.column_names or names is None:
        return table
    names = pa.array(names, TEXT)
    column = table[column_name].combine_chunks()
    if inner is feature:
        numbers = pc.if_else(pc.greater_equal(column, 0), column, None)
        named = names.take(numbers)
    else:
        # rebuilt from lengths, because the offsets of a slice do not start at 0
        lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64())
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
        named = pa.LargeListArray.from_arrays(offsets, names.take(pc.list_flatten(column)), mask=column.is_null())
    return table.set_column(table.column_names.index(column_name), column_name, named)


def raise_if(problems: Sequence[str]) -> None:
    """Raise ``InputError`` with all problems, if there are any."""
    if problems:
        raise InputError(problems)


def field_names(schema: pa.Schema, columns: Iterable[str]) -> tuple[str, ...]:
    """All column names, and as ``a.b`` the fields of those structs ``a`` of which ``columns`` asks for any field."""
    names: dict[str, None] = dict.fromkeys(schema.names)
    for parent in dict.fromkeys(name.partition(".")[0] for name in columns if "." in name):
        if parent in names and pa.types.is_struct(schema.field(parent).type):
            names.update((f"{parent}.{field.name}", None) for field in schema.field(parent).type)
    return tuple(names)


def top_names(columns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of ``known`` that must be read to have ``columns``, where ``a.b`` may be field b of struct a."""
    wanted = {name if name in known else name.partition(".")[0] for name in columns}
    return [name for name in known if name in wanted]


def take_fields(table: pa.Table, columns: Iterable[str]) -> pa.Table:
    """Those of ``columns`` that the table has, fields of structs under their dotted names."""
    found = {}
    for name in columns:
        parent, _, field = name.partition(".")
        if name in table.column_names:
            found[name] = table[name]
        elif parent in table.column_names and name in field_names(table.schema, [name]):
            found[name] = pc.struct_field(table[parent], field)
    return pa.table(found)


def missing_columns(parts: Sequence[Part], data: DataConfig, fields: Sequence[str] = LABELLED_FIELDS) -> list[str]:
    """One problem for each configured column and each set of columns that lacks it, naming the files."""
    wanted = [column for field in fields if (column := getattr(data, field)) is not None]
    empty = [part.place for part in parts if not part.columns and not part.table.num_rows]
    parts = [part for part in parts if part.place not in empty]
    problems = []
    if empty and wanted:
        is_are = "is" if len(empty) == 1 else "are"
        expected = " and ".join(map(repr, wanted))
        problems.append(f"{shown(empty)} {is_are} empty: expected rows with {expected}.")
    for field in fields:
        column = getattr(data, field)
        lacking: dict[tuple[str, ...], list[str]] = {}
        for part in parts:
            if column is not None and column not in part.columns:
                lacking.setdefault(part.columns, []).append(part.place)
        for columns, places in lacking.items():
            problems.append(
                f"{shown(places)}: no column {column!r}; found {', '.join(map(repr, columns)) or 'none'}."
                f"{closest(column, columns)} Name the right one with --data.{field}."
            )
    return problems


def optional_column(
    parts: Sequence[Part], default: str, named: str | None, taken: Sequence[str | None]
) -> tuple[str | None, list[str]]:
    """The column named in the config, else ``default`` if every part has it and it is not ``taken``, else None."""
    if named is not None:
        return named, []
    if default in taken:
        return None, []
    having = [part.place for part in parts if default in part.columns]
    lacking = [part.place for part in parts if default not in part.columns]
    if having and lacking:
        return None, [
            f"column {default!r} is in {shown(having)} but not in {shown(lacking)}: "
            f"give it to every file, or name another column with --data.{default}_column."
        ]
    return (default if having else None), []


def standard_columns(part: Part, name: str, named: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """All standard columns but the label, and what cannot be used about them.

    ``named``: standard name -> the part's column that holds it, None where no column does.
    """
    row_count = part.table.num_rows
    row_names = part.row_names
    if row_names is None:
        row_names = pa.array(np.arange(1, row_count + 1))
    prefix = pa.scalar(f"{part.place}:", TEXT)
    places = pc.binary_join_element_wise(prefix, row_names.cast(TEXT), pa.scalar("", TEXT))
    columns: dict[str, Any] = {"example_id": places, "place": places}
    columns["domain"] = pa.repeat(pa.scalar(part.domain or name, TEXT), row_count)
    columns["split"] = pa.repeat(pa.scalar(part.split, TEXT), row_count)
    problems = []
    for standard, column in named.items():
        if column is None:
            continue
        strings = _strings(part.table[column], numbers=standard in ("example_id", "domain", "split"))
        if strings is None:
            problems.append(
                f"{part.place}: column {column!r} holds {part.table[column].type}, expected strings: "
                f"convert it, or name another --data.{'id' if standard == 'example_id' else standard}_column."
            )
        else:
            columns[standard] = strings
    return columns, problems


def _strings(column: pa.ChunkedArray, numbers: bool) -> pa.ChunkedArray | None:
    """``column`` as strings with "" for null; None where it holds something else (numbers count if allowed)."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    if not is_string and not (numbers and pa.types.is_primitive(kind)):
        return None
    strings = column if column.type == TEXT else column.cast(kind).cast(TEXT)
    return pc.fill_null(strings, "") if strings.null_count else strings


def _one_label_type(parts: Sequence[Part], label_column: str) -> tuple[list[pa.ChunkedArray], list[str]]:
    """The labels of each part, all of one type: strings, int64, float64 or lists of strings.

    What a CSV holds is strings for want of types, so labels of other files follow it; whole numbers follow fractions.
    """
    labels = [_plain_labels(part.table[label_column]) for part in parts]
    problems = [
        f"{part.place}: labels are of type {part.table[label_column].type}, expected strings, numbers or lists of "
        "names: convert them, or name another --data.label_column."
        for part, label in zip(parts, labels, strict=True)
        if label is None
    ]
    held = [(part, label) for part, label in zip(parts, labels, strict=True) if label is not None]
    places: dict[pa.DataType, list[str]] = {}
    for part, label in held:
        if label.null_count < len(label) and part.typed:
            places.setdefault(label.type, []).append(part.place)
    untyped = any(not part.typed for part in parts)
    if len(places) > 1 and set(places) != {pa.int64(), pa.float64()}:
        found = ", ".join(f"{_in_words(kind)} in {shown(where)}" for kind, where in places.items())
        problems.append(f"labels are of mixed types, {found}: write them in one form in all files.")
    if untyped and LISTS in places:
        problems.append(f"labels are lists in {shown(places[LISTS])} and strings elsewhere: write lists in all files.")
    if problems:
        return [], problems
    if untyped or not places:
        kind = TEXT
    else:
        kind = pa.float64() if pa.float64() in places else next(iter(places))
    return [label.cast(kind) if label.null_count < len(label) else _nulls(len(label), kind) for _, label in held], []


def _nulls(count: int, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(count, kind)])


def _in_words(kind: pa.DataType) -> str:
    return {TEXT: "strings", pa.int64(): "whole numbers", pa.float64(): "fractions", LISTS: "lists"}[kind]


def _plain_labels(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """``column`` as strings, int64, float64 (NaN as null) or lists of strings; None if it is of another kind."""
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_null(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
        return column.cast(TEXT)
    if types.is_integer(kind):
        return column.cast(pa.int64())
    if types.is_floating(kind):
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if types.is_list(kind) or types.is_large_list(kind):
        item = kind.value_type
        plain = types.is_integer(item) or types.is_string(item) or types.is_large_string(item) or types.is_null(item)
        return column.cast(LISTS) if plain else None
    return None


def _with_plain_splits(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Split names as train, validation, test or ""; rows of other splits (``unlabeled``) dropped with a note."""
    encoded = table["split"].combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    words = [split_word(value) if value.strip() else "" for value in values]
    plain = pa.array(words, TEXT).take(encoded.indices)
    table = table.set_column(table.column_names.index("split"), "split", plain)
    unknown = [value for value, word in zip(values, words, strict=True) if word is None]
    if not unknown:
        return table, []
    note = (
        f"dropped {counted(plain.null_count, 'row')} whose split is {', '.join(map(repr, unknown))}, which is none of "
        "train, validation and test."
    )
    return filtered(table, pa.chunked_array([plain.is_valid()])), [note]


def name_problems(rows: pa.Table, data: DataConfig) -> tuple[list[str], pa.ChunkedArray]:
    """Blank and repeated ids, and blank domains; and which rows have no domain."""
    problems = []
    for column, flag, standard in (
        (data.id_column, "id_column", "example_id"),
        (data.domain_column or "domain", "domain_column", "domain"),
    ):
        unnamed = blank(rows[standard])
        unnamed_count = pc.sum(unnamed).as_py() or 0
        if unnamed_count:
            places = shown_places(rows["place"], unnamed)
            problems.append(
                f"{counted(unnamed_count, 'row')} with nothing in column {column!r} ({places}): "
                f"fill it in, or name another --data.{flag}."
            )
    return _repeated_ids(rows, data) + problems, unnamed


def _repeated_ids(table: pa.Table, data: DataConfig) -> list[str]:
    if data.id_column is None:  # places are unique as they are
        return []
    counts = pc.value_counts(table["example_id"])
    unnamed = blank(pa.chunked_array([counts.field("values")])).combine_chunks()
    repeated = counts.filter(pc.and_(pc.greater(counts.field("counts"), 1), pc.invert(unnamed)))
    problems = []
    for value in repeated.field("values").slice(0, PLACES_SHOWN).to_pylist():
        places = shown_places(table["place"], pc.equal(table["example_id"], value))
        problems.append(
            f"example id {value!r} stands more than once ({places}): make the ids of column {data.id_column!r} "
            "unique, or leave out --data.id_column."
        )
    if len(repeated) > PLACES_SHOWN:
        problems.append(f"{len(repeated) - PLACES_SHOWN:,} more example ids stand more than once.")
    return problems


def blank(strings: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which strings are null, empty or white space."""
    found = []  # in pieces, since trimming copies
    for piece in pieces(pa.table({"": strings})):
        found += pc.equal(pc.utf8_trim_whitespace(pc.fill_null(piece[0], "")), "").chunks
    return pa.chunked_array(found, pa.bool_())


def _missing_labels(labels: pa.ChunkedArray, data: DataConfig) -> pa.ChunkedArray:
    """Null, blank (unless a separator makes that "no class"), ``nan`` among numbers, or a list with a null in it."""
    missing = labels.is_null()
    if labels.type == TEXT and data.label_separator is None:
        return pc.or_(pc.or_(missing, blank(labels)), _no_number(labels))
    if labels.type == LISTS:
        lists = labels.combine_chunks()  # so that a parent's index counts from the first row
        holes = pc.list_parent_indices(lists).filter(pc.list_flatten(lists).is_null())
        return pc.or_(missing, pc.is_in(pa.array(range(len(lists)), pa.int64()), holes))
    return missing


def _no_number(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of ``labels`` say ``nan`` where all others are numbers: what was missing as a file was written."""
    says_so = pc.fill_null(pc.equal(pc.utf8_lower(pc.utf8_trim_whitespace(labels)), "nan"), False)
    if not pc.any(says_so).as_py():
        return says_so
    others = labels.filter(pc.invert(pc.or_(says_so, blank(labels)))).unique().drop_null()
    are_numbers = all(read_number(label) is not None for label in others.to_pylist())
    return pc.and_(says_so, pa.scalar(are_numbers))


def _without_unlabelled_splits(rows: pa.Table, missing: pa.ChunkedArray) -> tuple[pa.Table, pa.ChunkedArray, list[str]]:
    """Drop a validation or test split whose labels are all missing, if the rest has labels."""
    notes = []
    for split in ("validation", "test"):
        inside = pc.equal(rows["split"], split)
        inside_count = pc.sum(inside).as_py() or 0
        if not inside_count or not pc.all(missing.filter(inside)).as_py() or pc.all(missing).as_py():
            continue
        outside = pc.invert(inside)
        notes.append(
            f"dropped all {counted(inside_count, 'row')} of the published {split} split, none of which has a label "
            f"({shown_places(rows['place'], inside)})."
        )
        rows, missing = filtered(rows, outside), missing.filter(outside)
    return rows, missing, notes


def _content_bytes(column: pa.ChunkedArray) -> Iterable[bytes | memoryview]:
    """Bytes that tell any two columns of values apart: which are null, how long each is, and what they hold."""
    if column.type != LISTS:
        yield from _string_bytes(column)
        return
    array = column.combine_chunks()
    yield array.is_null().to_numpy(zero_copy_only=False).tobytes()
    yield pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).tobytes()
    yield from _content_bytes(pa.chunked_array([pc.list_flatten(array)]))


def _string_bytes(column: pa.ChunkedArray) -> Iterable[bytes | memoryview]:
    """``_content_bytes`` of anything but lists, without a copy of the texts."""
    chunks = [chunk if chunk.type == TEXT else chunk.cast(TEXT) for chunk in column.chunks]
    chunks = [pc.fill_null(chunk, "") if chunk.null_count else chunk for chunk in chunks]
    yield column.is_null().to_numpy().tobytes()
    for chunk in chunks:
        yield pc.binary_length(chunk).to_numpy(zero_copy_only=False).tobytes()
    for chunk in chunks:
        if len(chunk):
            _, offsets, letters = chunk.buffers()
            first, last = np.frombuffer(offsets, dtype=np.int64)[[chunk.offset, chunk.offset + len(chunk)]].tolist()
            yield memoryview(letters)[first:last] if letters is not None else b""
