"""Floor 5: label the texts of a file of any size, a piece at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hf_transfer.errors import InputError, RunError
from hf_transfer.loading import LoadedModel, TextPredictions, check_device, engine_of, load
from hf_transfer.translating import Translator

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LONGEST_FIELD = 2**31 - 1
"""Characters of one CSV field; Python's own limit of 131,072 refuses long documents."""


def predict_file(
    model: str,
    source: Path,
    target: Path,
    text_column: str,
    text_pair_column: str | None,
    rows_at_once: int,
    device: str | None,
    overwrite: bool,
    engine: str | None = None,
) -> int:
    """Write ``source`` with predictions to ``target`` and return the number of rows.

    The input is read through once before the model is opened, so that a bad row is not found after hours of work. The
    output appears complete or not at all. Rows keep their order and columns; multi-label predictions are joined by
    ``|`` in CSV and lists in JSON lines. A model that translates predicts translations, as it was scored.

    Raises:
        InputError: unreadable file, absent column, existing output, formats that are not known.
        RunError: the output could not be written.
    """
    for path in (source, target):
        if path.suffix.lower() not in (*DELIMITERS, ".jsonl"):
            raise InputError(f"{path}: files end in .csv, .tsv or .jsonl; found {path.suffix or 'no suffix'}.")
    if rows_at_once < 1:
        raise InputError(f"--rows_at_once must be 1 or more, found {rows_at_once}.")
    if not source.is_file():
        raise InputError(f"--input {source}: there is no such file.")
    if target.exists() and (not overwrite or not target.is_file()):
        raise InputError(f"--output {target} exists: choose another file, or pass --overwrite.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--output {target}: the folder {target.parent} does not exist.")
    if engine_of(model, engine) == "torch":
        check_device(device)
    rows = RowReader(source)
    wanted = [text_column, *([text_pair_column] if text_pair_column else [])]
    columns = _check_rows(rows, wanted, as_table=target.suffix.lower() != ".jsonl")
    loaded = load(model, device, engine)
    if isinstance(loaded, Translator):
        if text_pair_column:
            raise InputError(f"--text_pair_column {text_pair_column}: {model} translates one text: leave it out.")
        loaded.translate([])  # a language that it must be told is not missed after hours of work
    _check_free(source, columns, _new_columns(loaded.labels.names))
    partial = target.with_name(target.name + ".partial")
    try:
        count = _write(loaded, rows, columns, partial, target.suffix.lower(), wanted, rows_at_once)
        partial.replace(target)
    except OSError as error:
        raise RunError(f"--output {target} could not be written ({error}).") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


class RowReader:
    """The rows of a file, again each time it is iterated over: row number (from 1) and columns."""

    def __init__(self, path: Path):
        self.path = path
        self.delimiter = DELIMITERS.get(path.suffix.lower())
        self._quoting = csv.QUOTE_MINIMAL
        if path.suffix.lower() == ".tsv" and not self._quotes_pair_up():
            self._quoting = csv.QUOTE_NONE

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from self._guarded(self._records if self.delimiter is None else self._fields)

    def header(self) -> tuple[str, ...]:
        """Column names of a CSV or TSV file."""
        return next(self._guarded(self._header))

    def _guarded(self, read: Callable[[TextIO], Iterator[Any]]) -> Iterator[Any]:
        """What ``read`` finds in the opened file, with what is undecodable and every csv field allowed its length."""
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                yield from read(file)
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {_undecodable(self.path)} is not UTF-8: save the file as UTF-8.") from None
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error}): check its permissions.") from None
        finally:
            csv.field_size_limit(limit)

    def _records(self, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{self.path}:{number} is not JSON ({error}): write one object per line.") from None
            if not isinstance(row, dict):
                raise InputError(f"{self.path}:{number} holds a {type(row).__name__}, not an object.")
            yield number, row

    def _header(self, file: TextIO) -> Iterator[tuple[str, ...]]:
        names = next(self._lines(file), [])
        repeated = sorted({name for name in names if names.count(name) > 1})
        if not names:
            raise InputError(f"{self.path} is empty: expected a header line with column names.")
        if repeated:
            raise InputError(f"{self.path}: column {', '.join(repeated)} stands twice in the header: rename one.")
        yield tuple(names)

    def _fields(self, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
        lines = self._lines(file)
        names = next(lines, [])
        number = 0
        try:
            for fields in lines:
                if not fields:  # an empty line
                    continue
                number += 1
                if len(fields) != len(names):
                    raise InputError(
                        f"{self.path}:{number} has {len(fields)} fields, the header {len(names)}: quote fields that "
                        "hold the separator or a line break."
                    )
                yield number, dict(zip(names, fields, strict=True))
        except csv.Error as error:
            cause = "a quote is opened and not closed" if "unexpected end" in str(error) else str(error)
            raise InputError(
                f"{self.path}:{number + 1} cannot be read ({cause}): quote the field, and double the quotes inside it."
            ) from None

    def _lines(self, file: TextIO) -> Iterator[list[str]]:
        return csv.reader(file, delimiter=self.delimiter or ",", quoting=self._quoting, strict=True)  # type: ignore[arg-type]

    def _quotes_pair_up(self) -> bool:
        """Whether a TSV file is quoted as CSV is: false where quotes as plain characters work and give more rows."""

        def count() -> int:
            try:
                return sum(1 for _ in self)
            except InputError:
                return -1

        quoted = count()
        self._quoting = csv.QUOTE_NONE
        plain = count()
        self._quoting = csv.QUOTE_MINIMAL
        return plain <= quoted


def _undecodable(path: Path) -> str:
    """The first line that is not UTF-8, and its first bad byte."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02x} of line {number:,}"
    return "the file"


def _check_rows(rows: RowReader, wanted: Sequence[str], as_table: bool) -> tuple[str, ...]:
    """The column names of all rows, once every row has been seen to have text where it is wanted.

    ``as_table``: the output has one set of columns for all rows, those of the first.
    """
    columns: dict[str, None] = {}
    if rows.delimiter is not None:
        columns = dict.fromkeys(rows.header())
        _check_columns(rows.path, tuple(columns), wanted)
    for number, row in rows:
        if not columns:
            columns = dict.fromkeys(row)
            _check_columns(rows.path, tuple(columns), wanted)
        for name in wanted:
            _text(rows.path, number, row, name)
        if row.keys() <= columns.keys():
            continue
        if as_table:
            extra = ", ".join(name for name in row if name not in columns)
            raise InputError(
                f"{rows.path}:{number} has {extra}, which the first row has not: a .csv or .tsv output would lose it; "
                "write .jsonl."
            )
        columns |= dict.fromkeys(row)
    return tuple(columns)


def _check_columns(path: Path, columns: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; its columns: {', '.join(columns)}. Name the right one with "
            "--text_column or --text_pair_column."
        )
    _check_free(path, columns, _new_columns(()))


def _check_free(path: Path, columns: Collection[str], new: Sequence[str]) -> None:
    """See that no column of the input has the name of a ``new`` one."""
    taken = [f"`{name}`" for name in new if name in columns]
    if taken:
        raise InputError(
            f"{path} has a column {', '.join(taken)}, which the predictions would replace: rename "
            f"{'it' if len(taken) == 1 else 'them'}."
        )


def _write(
    loaded: LoadedModel | Translator,
    source: RowReader,
    columns: Sequence[str],
    target: Path,
    suffix: str,
    wanted: Sequence[str],
    rows_at_once: int,
) -> int:
    rows = iter(source)
    count = 0
    # half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as JSON's escape for it
    with target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        write_row = _row_writer(file, suffix, [*columns, *_new_columns(loaded.labels.names)])
        while piece := list(islice(rows, rows_at_once)):
            texts = [[_text(source.path, number, row, name) for number, row in piece] for name in wanted]
            predicted = _predict(loaded, texts)
            for i, (_, row) in enumerate(piece):
                write_row(row | _new_fields(predicted, i, as_json=suffix == ".jsonl"))
            count += len(piece)
    return count


def _predict(loaded: LoadedModel | Translator, texts: list[list[str]]) -> TextPredictions:
    """Predictions for the texts of some rows, a list per column that was asked for."""
    if isinstance(loaded, Translator):
        return TextPredictions(loaded.translate(texts[0]), np.zeros((len(texts[0]), 0), np.float32), ())
    return loaded.predict(texts[0], texts[1] if len(texts) > 1 else None)


def _row_writer(file: TextIO, suffix: str, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    """What writes one row to ``file``; the header of a table is written at once."""
    if suffix == ".jsonl":
        return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")
    plain = csv.writer(file, delimiter=DELIMITERS[suffix], lineterminator="\n")
    quoted = csv.writer(file, delimiter=DELIMITERS[suffix], lineterminator="\n", quoting=csv.QUOTE_ALL)

    def cell(value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value

    def write(cells: Sequence[Any]) -> None:
        # Python before 3.11.9 and 3.12.3 leaves such a cell without quotes, and readers end the row there
        ends_within = any(isinstance(value, str) and "\r" in value for value in cells)
        (quoted if ends_within else plain).writerow(cells)

    write(columns)
    return lambda row: write([cell(row.get(name)) for name in columns])


def _text(path: Path, number: int, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"{path}:{number}: column {name} holds {value!r}, not text.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{path}:{number}: column {name} holds half a surrogate pair, which is no character: mend it.")
    return value


def _new_columns(label_names: Sequence[str]) -> list[str]:
    return ["predicted", *(f"probability_{name}" for name in label_names)]


def _new_fields(predicted: TextPredictions, i: int, as_json: bool) -> dict[str, Any]:
    """The new columns of row ``i``: the label, and a probability per class where there are classes."""
    label = predicted.labels[i]
    if isinstance(label, tuple):
        label = list(label) if as_json else "|".join(label)
    probabilities = [round(float(p), 6) for p in predicted.probabilities[i]] if predicted.label_names else []
    return dict(zip(_new_columns(predicted.label_names), [label, *probabilities], strict=True))
