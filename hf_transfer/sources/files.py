"""One file, or a folder of them: .csv .tsv .jsonl .json .parquet.

A folder may mix formats, since every file is read by itself. File and folder names say what no column says:

    train.csv  test.jsonl                 splits of one domain (`dev`, `valid`, `val` are validation)
    books.csv  dvd.csv                    one domain per file
    books.train.csv  books.test.csv       both
    books/train.csv  dvd/reviews.jsonl    one domain per folder
    train/books.csv  test/books.csv       one split per folder, one domain per file
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.mapped import Chunks, on_disk
from hf_transfer.records import DomainTable
from hf_transfer.sources.base import (
    LISTS,
    TEXT,
    Part,
    assemble,
    closest,
    counted,
    field_names,
    missing_columns,
    name_classes,
    raise_if,
    shown,
    split_word,
    take_fields,
    used_columns,
)

ROWS_PER_CHUNK, LETTERS_PER_CHUNK = 10_000, 1 << 22
"""Of a file that is read in Python objects, which take several times the memory that Arrow does."""
LONGEST_FIELD = 2**31 - 1
"""Characters of one CSV field; Python's own limit of 131,072 refuses long documents."""
Result = TypeVar("Result")
SPLIT_ORDER = ("train", "validation", "test", "")


@dataclass(frozen=True)
class DataFile:
    """A file to read and what its name says."""

    path: Path
    place: str
    """Path inside the folder that was given."""
    split: str = ""
    domain: str = ""


def load_files(path: Path, data: DataConfig) -> DomainTable:
    """Read a file or a folder that exists.

    Raises:
        InputError: nothing readable there, or anything about the contents; the problems of all files together.
    """
    if path.is_dir():
        files, notes = find_files(path)
    else:
        files, notes = [DataFile(path, path.name)], []
    columns = used_columns(data)
    parts, problems = read_each(files, lambda file: read_file(file, columns))
    if problems:
        raise InputError([*problems, *missing_columns(parts, data)])
    return assemble(parts, path.resolve().name if path.is_dir() else path.stem, data, notes)


def read_each(files: Sequence[DataFile], read: Callable[[DataFile], Result]) -> tuple[list[Result], list[str]]:
    """What ``read`` gives for each file that can be read, and the problems of the others."""
    parts = []
    problems: list[str] = []
    for file in files:
        if not file.path.is_file():  # a pipe would be waited for, and a device may never end
            problems.append(f"--data.source {file.path} is no regular file: write what it gives to one first.")
            continue
        try:
            parts.append(read(file))
        except InputError as error:
            problems += error.problems
    return parts, problems


def no_such_path(path: Path) -> InputError:
    """The error for a source that looks like a path and is not there, with its nearest neighbours."""
    folder = path.parent
    if not folder.is_dir():
        return InputError(f"--data.source {path}: neither it nor its folder {folder} exists; give an existing path.")
    neighbours = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
    hint = closest(path.name, neighbours) or (f" It holds {shown(neighbours)}." if neighbours else " It is empty.")
    return InputError(f"--data.source {path} does not exist in folder {folder}.{hint} Give an existing path.")


def find_files(
    folder: Path, list_files: Callable[[Path], tuple[dict[Path, str], list[Path]]] | None = None, expected: str = ""
) -> tuple[list[DataFile], list[str]]:
    """The data files of a folder (else of its sub-folders), train before validation before test, and notes.

    ``list_files`` gives the data files of one folder, each with the stem that says what it is, and its other files;
    ``expected`` says for a message which files those are. By default they are those of ``TABLE_SUFFIXES``.
    """
    list_files = list_files or _data_files
    here, ignored = list_files(folder)
    inner = _visible_folders(folder)
    if here:
        files, unread = _by_name(here, folder)
        ignored += unread + [item for item in inner if list_files(item)[0]]
    else:
        files = []
        for sub_folder in inner:
            found, unread = list_files(sub_folder)
            named, unknown = _by_name(found, folder)
            files += [_under(sub_folder.name, file) for file in named]
            ignored += unread + unknown
            below = _visible_folders(sub_folder)  # not read, but a domain should not vanish unsaid
            too_deep = [item for item in below if list_files(item)[0]]
            if below and not (found or unread or too_deep):
                too_deep = [sub_folder]
            ignored += too_deep
    if not files:
        expected = expected or " ".join(TABLE_SUFFIXES)
        raise InputError(
            f"--data.source {folder} holds no data file, nor do its folders: expected {expected}; "
            f"found {shown(sorted(item.name for item in folder.iterdir())) or 'nothing'}."
        )
    files.sort(key=lambda file: (SPLIT_ORDER.index(file.split), file.place))
    notes = [_shared_split_note(files)] if _shared_split_note(files) else []
    if ignored:
        names = [item.relative_to(folder).as_posix() for item in ignored]
        notes.append(
            f"not read from {folder.name}, since their names say no split, they lie too deep or they are no data: "
            f"{shown(names)}."
        )
    return files, notes


def read_file(file: DataFile, columns: Sequence[str]) -> Part:
    """Those of ``columns`` that the file has; ``a.b`` is field b of the objects in column a."""
    reader = READERS.get(file.path.suffix.lower())
    if reader is None:
        raise InputError(
            f"--data.source {file.path} has the suffix {file.path.suffix!r}, expected one of "
            f"{' '.join(TABLE_SUFFIXES)}: convert the file."
        )
    try:
        return reader(file, columns)
    except UnicodeDecodeError:
        raise InputError(undecodable(file)) from None
    except OSError as error:
        raise InputError(f"{file.place} cannot be read ({error}): check its permissions.") from error


def read_csv(file: DataFile, columns: Sequence[str]) -> Part:
    """Comma-separated values; quoted fields may hold commas, line breaks and doubled quotes."""
    return _read_delimited(file, columns, ",", csv.QUOTE_MINIMAL)


def read_tsv(file: DataFile, columns: Sequence[str]) -> Part:
    """Tab-separated values, quoted as in CSV or not at all, whichever the file bears out.

    A quote character that opens no quoted field (``"Great" film``) would swallow the lines up to the next quote. So
    where taking quotes as plain characters works and gives more rows, they are plain.
    """
    problems: tuple[str, ...] = ()
    quoted = plain = None
    try:
        quoted = _read_delimited(file, columns, "\t", csv.QUOTE_MINIMAL)
    except InputError as error:
        problems = error.problems
    try:
        plain = _read_delimited(file, columns, "\t", csv.QUOTE_NONE)
    except InputError as error:
        problems = problems or error.problems
    if plain is not None and (quoted is None or plain.table.num_rows > quoted.table.num_rows):
        note = f"{file.place}: quotes are read as plain characters, since they do not pair up as in CSV."
        return replace(plain, notes=(note,))
    if quoted is None:
        raise InputError(problems)
    return quoted


def read_json_lines(file: DataFile, columns: Sequence[str]) -> Part:
    """One JSON object per line; empty lines are skipped."""
    with file.path.open(encoding="utf-8-sig") as stream:
        return _from_records(file, columns, _parse_lines(stream))


def read_json(file: DataFile, columns: Sequence[str]) -> Part:
    """One list of JSON objects, or one object per line."""
    with file.path.open(encoding="utf-8-sig") as stream:
        if not re.match(r"\s*\[", stream.read(1000)):
            stream.seek(0)
            return _from_records(file, columns, _parse_lines(stream))
        stream.seek(0)
        try:
            records = json.load(stream)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file.place} is not JSON ({error}): mend it, or write one object per line.") from None
    return _from_records(file, columns, records)


def read_parquet(file: DataFile, columns: Sequence[str]) -> Part:
    """Parquet; class numbers of a ``ClassLabel`` that datasets wrote become names."""
    from datasets import Features

    try:
        opened = pq.ParquetFile(file.path, memory_map=True)
        names = field_names(opened.schema_arrow, columns)
        wanted = [name for name in columns if name in names]
        read = _read_row_groups(opened, wanted)
    except pa.ArrowException as error:
        raise InputError(f"{file.place} is not a readable Parquet file ({error}): write it again.") from None
    table = take_fields(read, columns)
    problems = [problem for name in table.column_names for problem in _undecodable_rows(file, name, table[name])]
    raise_if(problems)
    features = Features.from_arrow_schema(read.schema)
    for name in columns:
        table = name_classes(table, features, name)
    return Part(file.place, names, table, file.split, file.domain)


def _read_row_groups(opened: pq.ParquetFile, columns: Sequence[str]) -> pa.Table:
    """All rows, each row group put away as it is read."""
    groups = [on_disk(opened.read_row_group(i, columns=columns)) for i in range(opened.num_row_groups)]
    return pa.concat_tables(groups) if groups else opened.read(columns=columns)


READERS: dict[str, Callable[[DataFile, Sequence[str]], Part]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
}
TABLE_SUFFIXES = tuple(READERS)


def visible_files(folder: Path) -> list[Path]:
    """Files of a folder by name, without those that start with a dot."""
    return sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith("."))


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))


def _data_files(folder: Path) -> tuple[dict[Path, str], list[Path]]:
    """Visible files of a folder: those of a known suffix with their stems, and the others."""
    files = visible_files(folder)
    known = {item: item.stem for item in files if item.suffix.lower() in TABLE_SUFFIXES}
    return known, [item for item in files if item not in known]


_SHARD = re.compile(r"[\d\W_]*|\d+-of-\d+(-[0-9a-f]+)?")
"""What names a part of one split, as the Hub exports them (train/0000.parquet, train-00000-of-00002-1f0c), and no
domain."""


def _by_name(paths: Mapping[Path, str], folder: Path) -> tuple[list[DataFile], list[Path]]:
    """What the files of one folder are by their stems, and those left out.

    If any name starts with a split, those are the splits and the others are left out; where all of them go on with a
    name (train_books, test_books), it is the domain. Else a name may end with a split after its domain; else it is a
    domain.
    """
    places = {path: path.relative_to(folder).as_posix() for path in paths}
    splits = {path: split_word(stem) for path, stem in paths.items()}
    if any(splits.values()):
        rests = {
            path: "".join(re.split(r"[-_.]", paths[path].strip(), maxsplit=1)[1:])
            for path, split in splits.items()
            if split
        }
        are_domains = not any(_SHARD.fullmatch(rest) for rest in rests.values())
        files = [
            DataFile(path, places[path], splits[path] or "", rest if are_domains else "")
            for path, rest in rests.items()
        ]
        return files, [path for path in paths if path not in rests]
    files = []
    for path, stem in paths.items():
        domain, _, last = re.fullmatch(r"(?:(.+)([-_.]))?(.+)", stem).groups()  # type: ignore[union-attr]
        split = split_word(last) if domain else None
        files.append(DataFile(path, places[path], split or "", domain if split else stem))
    return files, []


def _under(folder_name: str, file: DataFile) -> DataFile:
    """What a file of a sub-folder is: the folder names the domain, or the split of the domain that the file names."""
    split = split_word(folder_name)
    if split is None:
        return DataFile(file.path, file.place, file.split, folder_name)
    return DataFile(file.path, file.place, split, "" if _SHARD.fullmatch(file.domain) else file.domain)


def _shared_split_note(files: Sequence[DataFile]) -> str:
    """A sentence on splits that are read from several files; "" if there are none."""
    by_split: dict[tuple[str, str], list[str]] = {}
    for file in files:
        by_split.setdefault((file.domain, file.split), []).append(file.place)
    sentences = [
        f"{' '.join(filter(None, key)) or 'all'} is read from {len(places)} files ({shown(places)})"
        for key, places in by_split.items()
        if len(places) > 1
    ]
    return "; ".join(sentences) + "." if sentences else ""


def undecodable(file: DataFile) -> str:
    """Where the first byte stands that is not UTF-8."""
    offset = 0
    with file.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"byte 0x{line[error.start]:02x} at offset {offset + error.start:,} (line {number:,})"
                return f"{file.place}: {where} is not UTF-8: save the file as UTF-8."
            offset += len(line)
    return f"{file.place} is not UTF-8: save the file as UTF-8."


def _read_delimited(file: DataFile, columns: Sequence[str], delimiter: str, quoting: int) -> Part:
    """All values as strings, so that no label is a number in one file and a string in the next."""
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        with file.path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
            return _from_fields(file, columns, reader)
    finally:
        csv.field_size_limit(limit)


def _from_fields(file: DataFile, columns: Sequence[str], reader: Any) -> Part:
    """A part from rows of fields, the first of them the header. ``reader``: a ``csv.reader``."""
    header: list[str] = []
    chunks: dict[str, Chunks] = {}
    malformed: list[str] = []
    row = letters = 0
    try:
        header = next(reader, [])
        chosen = {name: header.index(name) for name in columns if name in header}
        raise_if(_header_problems(file, columns, header))
        pending: list[list[str]] = []
        for fields in reader:
            if not fields:  # an empty line
                continue
            row += 1
            if len(fields) != len(header):
                malformed.append(f"{file.place}:{row} (line {reader.line_num:,}) has {len(fields)}")
                continue
            pending.append([fields[i] for i in chosen.values()])
            letters += sum(map(len, pending[-1]))
            if len(pending) == ROWS_PER_CHUNK or letters >= LETTERS_PER_CHUNK:
                _append_chunk(chunks, chosen, pending)
                pending = []
                letters = 0
        _append_chunk(chunks, chosen, pending)
    except csv.Error as error:
        cause = "a quote is opened and not closed" if "unexpected end" in str(error) else str(error)
        raise InputError(
            f"{file.place}:{row + 1} cannot be read (line {reader.line_num:,}: {cause}): quote the field, and double "
            "the quotes inside it."
        ) from None
    if malformed:
        raise InputError(
            f"{file.place}: {counted(len(malformed), 'row')} without the {len(header)} fields of the header; "
            f"{shown(malformed)}: quote fields that hold the separator or a line break."
        )
    table = pa.table({name: pa.chunked_array(chunks[name].arrays(), TEXT) for name in chosen})
    return Part(file.place, tuple(header), table, file.split, file.domain, typed=False)


def _header_problems(file: DataFile, columns: Sequence[str], header: Sequence[str]) -> list[str]:
    if not header:
        return [f"{file.place} is empty: expected a header line with column names."]
    repeated = [name for name in columns if header.count(name) > 1]
    return [f"{file.place}: column {name!r} stands twice in the header: rename one of them." for name in repeated]


def _append_chunk(chunks: dict[str, Chunks], names: Iterable[str], rows: Sequence[Sequence[str]]) -> None:
    for i, name in enumerate(names):
        chunks.setdefault(name, Chunks()).append(pa.array([row[i] for row in rows], TEXT))


def _parse_lines(stream: TextIO) -> Iterator[Any]:
    """Each line's value, or the error where it is not JSON."""
    for line in stream:
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:  # no JSON; a number of 5,000 digits; a thousand open brackets
                yield error


def _from_records(file: DataFile, columns: Sequence[str], records: Iterable[Any]) -> Part:
    """A part from JSON values, of which each should be an object."""
    names: dict[str, None] = {}
    chosen = {name: JsonColumn(name, file.place) for name in columns}
    parents = tuple(dict.fromkeys(name.partition(".")[0] for name in columns if "." in name))
    pending: list[dict[str, Any]] = []
    malformed = []
    row = letters = 0
    for row, record in enumerate(records, 1):
        if not isinstance(record, dict):
            cause = str(record) if isinstance(record, Exception) else kind_of(record)
            if isinstance(record, json.JSONDecodeError):
                cause = f"{record.msg}, column {record.colno}"
            malformed.append(f"{file.place}:{row} ({cause})")
            record = {}
        names.update(dict.fromkeys(record))
        for parent in parents:
            if isinstance(record.get(parent), dict):
                names.update((f"{parent}.{field}", None) for field in record[parent])
        pending.append(record)
        letters += sum(len(value) for value in record.values() if isinstance(value, str))
        if len(pending) == ROWS_PER_CHUNK or letters >= LETTERS_PER_CHUNK:
            for column in chosen.values():
                column.add([_value(item, column.name) for item in pending], row - len(pending) + 1)
            pending = []
            letters = 0
    for column in chosen.values():
        column.add([_value(item, column.name) for item in pending], row - len(pending) + 1)
    problems = [problem for name, column in chosen.items() if name in names for problem in column.problems()]
    if malformed:
        count = counted(len(malformed), "row")
        problems.insert(0, f"{file.place}: {count} without a JSON object, {shown(malformed)}: write one for each row.")
    raise_if(problems)
    table = pa.table({name: column.values() for name, column in chosen.items() if name in names})
    return Part(file.place, tuple(names), table, file.split, file.domain)


def _value(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column, where ``a.b`` may be field b of the object in column a; None if there is none."""
    if name in record or "." not in name:
        return record.get(name)
    parent, _, field = name.partition(".")
    inner = record.get(parent)
    return inner.get(field) if isinstance(inner, dict) else None


KINDS = {str: "strings", bool: "true or false", float: "fractions", dict: "objects", type(None): "nothing"}
ARROW_TYPES = {
    "strings": TEXT,
    "true or false": pa.bool_(),
    "whole numbers": pa.int64(),
    "fractions": pa.float64(),
    "lists of strings": LISTS,
    "lists of whole numbers": pa.large_list(pa.int64()),
    "empty lists": LISTS,
    "nothing": pa.null(),
}
# of these two kinds together, the second one stands for both
COMPATIBLE = (
    ("whole numbers", "fractions"),
    ("empty lists", "lists of strings"),
    ("empty lists", "lists of whole numbers"),
)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for a message."""
    if type(value) is int:
        return "whole numbers" if -(2**63) <= value < 2**63 else "whole numbers of more than 64 bits"
    if type(value) is list:
        kinds = {kind_of(item) for item in value}
        return f"lists of {kinds.pop()}" if len(kinds) == 1 else "lists of mixed values" if kinds else "empty lists"
    return KINDS[type(value)]


class JsonColumn:
    """Collects one column of a JSON file as Arrow chunks, and what stands where of which kind.

    Arrow's own reader turns [1, "1"] into an error without a row, and dates in texts into timestamps.
    """

    def __init__(self, name: str, place: str):
        self.name = name
        self.place = place
        self.chunks = Chunks()
        self.counts: dict[str, int] = {}
        self.first_rows: dict[str, int] = {}
        self.surrogate_rows: list[int] = []

    def add(self, values: list[Any], first_row: int) -> None:
        """Take the values of rows ``first_row, first_row + 1, ...``; after a mix of kinds, only count them."""
        kinds = [kind_of(value) for value in values]
        for offset, kind in enumerate(kinds):
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.first_rows.setdefault(kind, first_row + offset)
        if self._kind() is None:
            return
        for offset, value in enumerate(values):
            if not _encodable(value):
                self.surrogate_rows.append(first_row + offset)
                values[offset] = None
        present = [kind for kind in dict.fromkeys(kinds) if kind != "nothing"]
        self.chunks.append(pa.array(values, ARROW_TYPES[_stand_in(present) or "nothing"]))

    def problems(self) -> list[str]:
        """What keeps this column from being used."""
        if self._kind() is None:
            found = ", ".join(
                f"{count:,} {kind} (first {self.place}:{self.first_rows[kind]})"
                for kind, count in self.counts.items()
                if kind != "nothing"
            )
            return [f"{self.place}: column {self.name!r} holds {found}: write all in one form."]
        if self.surrogate_rows:
            places = shown([f"{self.place}:{row}" for row in self.surrogate_rows])
            return [
                f"{self.place}: {counted(len(self.surrogate_rows), 'value')} of column {self.name!r} with half a "
                f"surrogate pair (\\ud800 to \\udfff), which is no character ({places}): remove or mend it."
            ]
        return []

    def values(self) -> pa.ChunkedArray:
        """The column, of one type; call it only where there are no problems."""
        kind = ARROW_TYPES[self._kind() or "nothing"]
        arrays = self.chunks.arrays()
        return pa.chunked_array([array if array.type == kind else array.cast(kind) for array in arrays], kind)

    def _kind(self) -> str | None:
        return _stand_in([kind for kind in self.counts if kind != "nothing"] or ["nothing"])


def _stand_in(kinds: Sequence[str]) -> str | None:
    """The one kind as which values of all these kinds can be held; None if there is none."""
    if len(kinds) == 2:
        return next((both[1] for both in COMPATIBLE if set(both) == set(kinds)), None)
    return kinds[0] if len(kinds) == 1 and kinds[0] in ARROW_TYPES else None


def _encodable(value: Any) -> bool:
    """False for a string (or a list with one) that holds a lone surrogate."""
    if isinstance(value, list):
        return all(_encodable(item) for item in value)
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _undecodable_rows(file: DataFile, name: str, column: pa.ChunkedArray) -> list[str]:
    """Parquet strings are not checked when read: bytes that are not UTF-8 would fail much later, without a place."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return []
    places = []
    row = 0
    for chunk in column.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid:
            raw = chunk.cast(pa.large_binary()).to_pylist()
            places += [f"{file.place}:{row + i}" for i, value in enumerate(raw, 1) if not _is_utf8(value)]
        row += len(chunk)
    if not places:
        return []
    count = counted(len(places), "value")
    return [f"{file.place}: {count} of column {name!r} not in UTF-8 ({shown(places)}): write the file again."]


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
