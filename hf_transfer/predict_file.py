"""Floor 5: label the texts of a file of any size, a piece at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hf_transfer.errors import InputError
from hf_transfer.loading import LoadedModel, TextPredictions, load

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def predict_file(
    model: str,
    source: Path,
    target: Path,
    text_column: str,
    text_pair_column: str | None,
    rows_at_once: int,
    device: str | None,
    overwrite: bool,
) -> int:
    """Write ``source`` with predictions to ``target`` and return the number of rows.

    The output appears complete or not at all. Rows keep their order and columns; multi-label predictions are joined
    by ``|`` in CSV and lists in JSON lines.

    Raises:
        InputError: unreadable file, absent column, existing output, formats that are not known.
    """
    for path in (source, target):
        if path.suffix not in (*DELIMITERS, ".jsonl"):
            raise InputError(f"{path}: files end in .csv, .tsv or .jsonl; found {path.suffix or 'no suffix'}.")
    if rows_at_once < 1:
        raise InputError(f"--rows-at-once must be 1 or more, found {rows_at_once}.")
    if not source.is_file():
        raise InputError(f"--input {source}: there is no such file.")
    if target.exists() and not overwrite:
        raise InputError(f"--output {target} exists: choose another file, or pass --overwrite.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--output {target}: the folder {target.parent} does not exist.")
    wanted = [text_column, *([text_pair_column] if text_pair_column else [])]
    _check_columns(source, wanted)
    loaded = load(model, device)
    partial = target.with_name(target.name + ".partial")
    try:
        count = _write(loaded, source, partial, target.suffix, wanted, rows_at_once)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return count


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number (from 1) and columns of each row, one at a time."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise InputError(f"{path}:{number} holds a {type(row).__name__}, not an object.")
                        yield number, row
            else:
                for number, row in enumerate(csv.DictReader(file, delimiter=DELIMITERS[path.suffix]), start=1):
                    if None in row or None in row.values():
                        raise InputError(f"{path}:{number} does not have as many fields as the header: mend that row.")
                    yield number, row
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{path}, near row {number + 1}, cannot be read ({error}): save it as UTF-8 text.") from None


def _check_columns(path: Path, wanted: Sequence[str]) -> None:
    first = next(read_rows(path), None)
    missing = [name for name in wanted if first is not None and name not in first[1]]
    if missing:
        known = ", ".join(first[1]) if first else ""
        raise InputError(f"{path} has no column {', '.join(missing)}; its columns: {known}. Use --text-column.")


def _write(
    loaded: LoadedModel, source: Path, target: Path, suffix: str, wanted: Sequence[str], rows_at_once: int
) -> int:
    rows = read_rows(source)
    count = 0
    writer: Any = None
    with target.open("w", encoding="utf-8", newline="") as file:
        while piece := list(islice(rows, rows_at_once)):
            columns = [[_text(source, number, row, name) for number, row in piece] for name in wanted]
            predicted = loaded.predict(columns[0], columns[1] if len(columns) > 1 else None)
            for i, (_, row) in enumerate(piece):
                labelled = row | _fields(predicted, i, as_json=suffix == ".jsonl")
                if suffix == ".jsonl":
                    file.write(json.dumps(labelled, ensure_ascii=False) + "\n")
                    continue
                if writer is None:
                    writer = csv.DictWriter(file, list(labelled), delimiter=DELIMITERS[suffix], extrasaction="ignore")
                    writer.writeheader()
                writer.writerow(labelled)
            count += len(piece)
    return count


def _text(path: Path, number: int, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"{path}:{number}: column {name} holds {value!r}, not text.")
    return value


def _fields(predicted: TextPredictions, i: int, as_json: bool) -> dict[str, Any]:
    """The new columns of row ``i``."""
    label = predicted.labels[i]
    if isinstance(label, tuple):
        label = list(label) if as_json else "|".join(label)
    names = predicted.label_names
    return {"predicted": label} | {
        f"probability_{name}": round(float(p), 6) for name, p in zip(names, predicted.probabilities[i], strict=False)
    }
