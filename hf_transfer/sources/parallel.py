"""Floor 1: parallel text for translation. Each form of ``data.source`` gives one table with ``source`` and ``target``.

    train.en train.de  test.en test.de          aligned plain files: line n of one translates line n of the other
    kde4.en kde4.de  emea.test.en emea.test.de  a domain, or a domain and a split, per pair; or folders, as for tables
    data/train                                  one pair, by what the two names have in common
    a.txt,b.txt                                 two files, the source first
    pairs.csv pairs.tsv pairs.jsonl ...         tables, see below
    memory.tmx memory.tmx.gz                    translation memories
    owner/name                                  a Hub dataset

In a table the sides are, whichever both exist first: the columns ``data.source_column`` and ``data.target_column``;
columns named by the languages (``en``, ``de``); fields of ``translation`` named by them, as the Hub writes pairs.
What file and folder names say of domains and splits is the same as for labelled text (``files``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainTable
from hf_transfer.sources.base import (
    TEXT,
    Part,
    blank,
    closest,
    counted,
    join,
    missing_columns,
    optional_column,
    raise_if,
    standard_columns,
)
from hf_transfer.sources.drift import describe_drift
from hf_transfer.sources.files import (
    TABLE_SUFFIXES,
    DataFile,
    find_files,
    no_such_path,
    read_each,
    read_file,
    undecodable,
    visible_files,
)
from hf_transfer.sources.hub import may_be_hub_id, read_hub
from hf_transfer.sources.tmx import TMX_SUFFIXES, matching_languages, read_languages, read_tmx

PAIR_SUFFIXES = (*TABLE_SUFFIXES, *TMX_SUFFIXES)
SIDE_FIELDS = ("source_column", "target_column")
OTHER_FIELDS = ("source_lang_column", "target_lang_column", "id_column", "domain_column", "split_column")
"""Fields of ``DataConfig`` that name the other columns of parallel text."""
NESTED = "translation."
NO_LANGUAGES = re.compile("txt|md|log|csv|tsv|tmx|gz|bz|zip|tar|py|sh|pdf|ids|xml|dtd|bak|src|tgt", re.IGNORECASE)
"""Suffixes that look like the code of a language and are none."""
FLAGS = "--data.source_lang and --data.target_lang"


@dataclass(frozen=True)
class Sides:
    """A part, where it holds its two sides, and what is known of their languages."""

    part: Part
    source: str = ""
    """Column of the source; "" where none was found."""
    target: str = ""
    source_lang: str = ""
    target_lang: str = ""


@dataclass
class Aligned:
    """The aligned plain files of a source, gathered while its folders are listed."""

    source_lang: str = ""
    target_lang: str = ""
    partners: dict[Path, Path] = field(default_factory=dict)
    """Source file -> target file."""
    alone: dict[Path, list[str]] = field(default_factory=dict)
    """Folder -> a problem for each of its files that has no partner."""


def read_pairs(data: DataConfig) -> DomainTable:
    """Read ``data.source`` as parallel text.

    Columns ``example_id, place, domain, split, source, target, source_lang, target_lang``, all strings; a language is
    "" where neither the config nor a column nor a name says it. Rows are as they were found, except that those of
    splits other than train, validation and test are left out, with a note.

    Raises:
        InputError: nothing there, or contents that cannot be used; the problems of all files together.
    """
    if data.source.startswith("bundled:"):
        from hf_transfer.sources.bundled import find_bundled

        bundled = find_bundled(data.source.removeprefix("bundled:"), "translation")
        table = _read_folder(bundled.folder, data)
        return replace(table, name=data.source, default_train_domains=bundled.default_train_domains)
    path = Path(data.source).expanduser()
    if path.is_dir():
        return _read_folder(path, data)
    if path.exists():
        return _read_single(path, data)
    if "," in data.source:
        return _read_two_files(data)
    if _files_of_prefix(path):
        return _read_prefix(path, data)
    if not may_be_hub_id(data.source):
        raise no_such_path(path)
    parts, notes = read_hub(data, lambda columns: _columns_to_read(columns, data))
    found = _assemble([_sides_of_table(part, data) for part in parts], data.source, data, notes)
    return replace(found, hub_id=data.source)


# --- files


def _read_folder(folder: Path, data: DataConfig) -> DomainTable:
    aligned = Aligned(*_languages_of_names(_suffixes(folder), folder.name, data))
    endings = f".{data.source_lang or 'en'} and .{data.target_lang or 'de'}"
    expected = f"two files of one name that end in {endings} ({FLAGS}), or {' '.join(PAIR_SUFFIXES)}"
    try:
        files, notes = find_files(folder, lambda item: _list_pairs(item, aligned, data), expected)
    except InputError as error:
        near = [problems for place, problems in aligned.alone.items() if folder in (place, place.parent)]
        raise InputError([problem for problems in near for problem in problems] or error.problems) from None
    problems = aligned.alone.get(folder, [])
    for sub_folder in dict.fromkeys(file.path.parent for file in files if file.path.parent != folder):
        problems = problems + aligned.alone.get(sub_folder, [])
    return _read_files(files, aligned, folder.resolve().name, data, notes, problems)


def _read_single(path: Path, data: DataConfig) -> DomainTable:
    if not path.name.lower().endswith(PAIR_SUFFIXES):
        others = [item for item in _files_of_prefix(path.with_suffix("")).values() if item != path]
        raise InputError(
            f"--data.source {path} holds one side: give both files, the source first "
            f"({path},{others[0] if others else 'OTHER'}), or a file with both sides ({' '.join(PAIR_SUFFIXES)})."
        )
    return _read_files([DataFile(path, path.name)], Aligned(), _stem(path), data)


def _read_prefix(prefix: Path, data: DataConfig) -> DomainTable:
    found = _files_of_prefix(prefix)
    aligned = Aligned(*_languages_of_names(found, f"{prefix}.*", data))
    source = _source_file(prefix.name, found, aligned)
    raise_if(aligned.alone.get(prefix.parent, []))
    if source is None:
        raise InputError(_which_languages(found, f"--data.source {prefix}", data))
    return _read_files([DataFile(source, source.name)], aligned, prefix.name, data)


def _read_two_files(data: DataConfig) -> DomainTable:
    """``a.en,a.de``: the order is the direction; suffixes that look like languages must agree with it."""
    paths = [Path(item.strip()).expanduser() for item in data.source.split(",")]
    if len(paths) != 2 or paths[0] == paths[1]:
        raise InputError(f"--data.source {data.source}: expected two files with a comma between, the source first.")
    raise_if([problem for path in paths if not path.is_file() for problem in no_such_path(path).problems])
    suffixes = [path.suffix[1:] if _looks_like_language(path.suffix[1:]) else "" for path in paths]
    languages = [data.source_lang or "", data.target_lang or ""]
    raise_if(
        [
            f"--data.source {data.source}: {path.name} is the {side} and ends in .{suffix}, but --data.{side}_lang is "
            f"{language}: mend the order, the language or the name."
            for path, side, suffix, language in zip(paths, ("source", "target"), suffixes, languages, strict=True)
            if suffix and language and not matching_languages(language, [suffix])
        ]
    )
    source_lang, target_lang = (language or suffix for language, suffix in zip(languages, suffixes, strict=True))
    aligned = Aligned(source_lang, target_lang, {paths[0]: paths[1]})
    return _read_files([DataFile(paths[0], paths[0].name)], aligned, paths[0].stem, data)


def _read_files(
    files: Sequence[DataFile],
    aligned: Aligned,
    name: str,
    data: DataConfig,
    notes: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> DomainTable:
    """All files as one table; ``problems`` are those found so far."""

    def read(file: DataFile) -> Sides:
        if file.path in aligned.partners:
            part = _read_aligned(file, aligned.partners[file.path])
            return Sides(part, "source", "target", aligned.source_lang, aligned.target_lang)
        if file.path.name.lower().endswith(TMX_SUFFIXES):
            return _read_memory(file, data)
        part = read_file(file, _columns_to_read((), data))
        columns = _columns_to_read(part.columns, data)
        if any(column in part.columns and column not in part.table.column_names for column in columns):
            part = read_file(file, columns)  # `en-US` for en: known only once the file has been read
        return _sides_of_table(part, data)

    sides, found = read_each(files, read)
    if problems or found:
        raise InputError([*problems, *found, *_column_problems(sides, data)])
    return _assemble(sides, name, data, notes)


def _read_memory(file: DataFile, data: DataConfig) -> Sides:
    source_lang, target_lang = data.source_lang, data.target_lang
    if not source_lang or not target_lang:
        source_lang, target_lang = _languages_of_names(read_languages(file.path, file.place), file.place, data)
    part = read_tmx(file.path, file.place, source_lang, target_lang, _other_columns(data))
    return Sides(replace(part, split=file.split, domain=file.domain), "source", "target", source_lang, target_lang)


def _read_aligned(file: DataFile, partner: Path) -> Part:
    """Line n of one file with line n of the other.

    Raises:
        InputError: bytes that are not UTF-8 in either, or unequal numbers of lines.
    """
    other = DataFile(partner, file.place.removesuffix(file.path.name) + partner.name)
    sides = []
    problems = []
    for side in (file, other):
        try:
            sides.append(_read_lines(side.path))
        except UnicodeDecodeError:
            problems.append(undecodable(side))
        except OSError as error:
            problems.append(f"{side.place} cannot be read ({error}): check its permissions.")
    raise_if(problems)
    source, target = sides
    if len(source) != len(target):
        counts = [counted(len(lines), "line") for lines in sides]
        raise InputError(
            f"{file.place} has {counts[0]} and {other.place} has {counts[1]}: line n of one must be the translation of "
            f"line n of the other. {describe_drift(source, target)}"
        )
    table = pa.table({"source": pa.array(source, TEXT), "target": pa.array(target, TEXT)})
    return Part(file.place, (), table, file.split, file.domain)


def _read_lines(path: Path) -> list[str]:
    """Lines as other tools count them: they end in a line feed, before which a carriage return may stand.

    ``str.splitlines`` would also break at form feeds and line separators, and so move one side against the other.
    """
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _list_pairs(folder: Path, aligned: Aligned, data: DataConfig) -> tuple[dict[Path, str], list[Path]]:
    """Tables and source files of a folder with their stems, and its other files; partners go into ``aligned``."""
    files = visible_files(folder)
    tables = [item for item in files if item.name.lower().endswith(PAIR_SUFFIXES)]
    by_stem: dict[str, dict[str, Path]] = {}
    for item in files:
        if item.suffix and item not in tables:
            by_stem.setdefault(item.stem, {})[item.suffix[1:]] = item
    aligned.alone[folder] = []
    sources = [_source_file(stem, suffixes, aligned) for stem, suffixes in by_stem.items()]
    found = sorted([*tables, *(item for item in sources if item is not None)])
    languages = (aligned.source_lang or data.source_lang, aligned.target_lang or data.target_lang)
    read = {*found, *(aligned.partners[item] for item in found if item in aligned.partners)}
    stems = {item: _without_languages(_stem(item), languages) for item in found}
    return stems, [item for item in files if item not in read]


def _source_file(stem: str, suffixes: Mapping[str, Path], aligned: Aligned) -> Path | None:
    """The source file among those of one stem, by suffix; its partner, or that it has none, goes into ``aligned``."""
    source_lang, target_lang = aligned.source_lang, aligned.target_lang
    if not source_lang or not target_lang:
        return None
    sources, targets = matching_languages(source_lang, suffixes), matching_languages(target_lang, suffixes)
    if sources and targets and sources[0] != targets[0]:
        aligned.partners[suffixes[sources[0]]] = suffixes[targets[0]]
        return suffixes[sources[0]]
    if sources or targets:
        here = suffixes[(sources or targets)[0]]
        missing = f"{stem}.{target_lang if sources else source_lang}"
        aligned.alone.setdefault(here.parent, []).append(
            f"{here} has no partner {missing}: add it, name other languages with {FLAGS}, or move {here.name} "
            f"elsewhere.{closest(missing, [item.name for item in visible_files(here.parent) if item != here])}"
        )
    return None


def _suffixes(folder: Path) -> list[str]:
    """Suffixes that look like languages, in a folder and its folders, of plain files that differ in nothing else."""
    found: dict[str, None] = {}
    inner = [item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")]
    for place in (folder, *inner):
        by_stem: dict[str, list[str]] = {}
        for item in visible_files(place):
            if _looks_like_language(item.suffix[1:]):
                by_stem.setdefault(item.stem, []).append(item.suffix[1:])
        for suffixes in by_stem.values():
            found.update(dict.fromkeys(suffixes if len(suffixes) > 1 else ()))
    return list(found)


def _files_of_prefix(prefix: Path) -> dict[str, Path]:
    """Plain files whose name is that of ``prefix`` and a suffix that looks like a language, by suffix."""
    if not prefix.name or not prefix.parent.is_dir():
        return {}
    named = [item for item in visible_files(prefix.parent) if item.stem == prefix.name]
    return {item.suffix[1:]: item for item in named if _looks_like_language(item.suffix[1:])}


def _stem(path: Path) -> str:
    """The name without its suffix, or without both of ``.tmx.gz``."""
    return path.name[: -len(".tmx.gz")] if path.name.lower().endswith(".tmx.gz") else path.stem


def _without_languages(stem: str, languages: Sequence[str | None]) -> str:
    """``KDE4`` of ``KDE4.de-en``: the two languages at the end are no part of the domain."""
    match = re.fullmatch(r"(.+)[-._]([A-Za-z]{2,3})[-_]([A-Za-z]{2,3})", stem)
    if match is None:
        return stem
    primary = {re.split("[-_]", language or "")[0].lower() for language in languages}
    return match[1] if {match[2].lower(), match[3].lower()} == primary else stem


# --- languages


def _looks_like_language(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", name)) and not NO_LANGUAGES.fullmatch(name)


def _languages_of_names(codes: Iterable[str], place: str, data: DataConfig) -> tuple[str, str]:
    """Source and target language as configured, else the one that is not given as one of two codes that were found.

    ("", "") where no code was found.

    Raises:
        InputError: no language configured, so that either could be the source; more than two; or another one.
    """
    if data.source_lang and data.target_lang:
        return data.source_lang, data.target_lang
    codes = list(codes)
    if not codes:
        return "", ""
    found = _pick_languages(codes, data)
    if found is None:
        raise InputError(_which_languages(codes, place, data))
    return data.source_lang or found[0], data.target_lang or found[1]


def _pick_languages(codes: Sequence[str], data: DataConfig) -> tuple[str, str] | None:
    """Those of ``codes`` that are source and target; where one language is not configured, the other of two."""
    sources = matching_languages(data.source_lang, codes) if data.source_lang else []
    targets = matching_languages(data.target_lang, codes) if data.target_lang else []
    if len(codes) == 2 and not data.target_lang:
        targets = [code for code in codes if sources and code != sources[0]]
    elif len(codes) == 2 and not data.source_lang:
        sources = [code for code in codes if targets and code != targets[0]]
    return (sources[0], targets[0]) if sources and targets and sources[0] != targets[0] else None


def _which_languages(codes: Iterable[str], place: str, data: DataConfig) -> str:
    """The problem where ``_pick_languages`` finds none."""
    codes = sorted(codes)
    if not data.source_lang and not data.target_lang and len(codes) == 2:
        return (
            f"{place} holds {codes[0]} and {codes[1]}, and nothing says which is translated into which: give "
            f"--data.source_lang {codes[0]} --data.target_lang {codes[1]}, or the other way round."
        )
    given = [code for code in (data.source_lang, data.target_lang) if code]
    missing = [code for code in given if not matching_languages(code, codes)]
    hint = "".join(closest(code, codes) for code in missing)
    lacking = f", not {' and '.join(missing)}" if missing else ""
    return f"{place} holds {', '.join(codes)}{lacking}: name two of these with {FLAGS}.{hint}"


# --- columns


def _other_columns(data: DataConfig) -> list[str]:
    """Columns to read beside the two sides, whether or not they are there."""
    named = [getattr(data, name) for name in OTHER_FIELDS]
    defaults = [data.domain_column or "domain", data.split_column or "split"]
    return list(dict.fromkeys(name for name in (*named, *defaults) if name))


def _columns_to_read(columns: Sequence[str], data: DataConfig) -> list[str]:
    """What to read of a table with these columns; with () everything that could be a side under a known name."""
    sides: Sequence[str] | None = _find_sides(columns, data)
    if sides is None:
        languages = (data.source_lang or "source", data.target_lang or "target")
        sides = (data.source_column, data.target_column, *languages, *(NESTED + code for code in languages))
    return list(dict.fromkeys([*sides, *_other_columns(data)]))


def _find_sides(columns: Sequence[str], data: DataConfig) -> tuple[str, str] | None:
    """The columns of source and target; None if they are not there."""
    if data.source_column in columns and data.target_column in columns:
        return data.source_column, data.target_column
    if data.source_lang and data.target_lang:  # one alone would take any other short name for the second language
        found = _pick_languages([name for name in columns if _looks_like_language(name)], data)
        if found is not None:
            return found
    found = _pick_languages(_nested(columns), data)
    return None if found is None else (NESTED + found[0], NESTED + found[1])


def _nested(columns: Sequence[str]) -> list[str]:
    return [name.removeprefix(NESTED) for name in columns if name.startswith(NESTED)]


def _sides_of_table(part: Part, data: DataConfig) -> Sides:
    found = _find_sides(part.columns, data)
    if found is None:
        return Sides(part)
    languages = [data.source_lang or "", data.target_lang or ""]
    if found[0].startswith(NESTED):
        languages = [language or name.removeprefix(NESTED) for language, name in zip(languages, found, strict=True)]
    return Sides(part, *found, *languages)


def _column_problems(sides: Sequence[Sides], data: DataConfig) -> list[str]:
    """Columns that are missing, of all parts."""
    lacking = [item.part for item in sides if not item.source]
    flat = [part for part in lacking if not _nested(part.columns)]
    problems = missing_columns(flat, data, SIDE_FIELDS)
    problems += [
        _which_languages(_nested(part.columns), f"{part.place}: column 'translation'", data)
        for part in lacking
        if part not in flat
    ]
    empty = [part for part in flat if not part.columns]  # of these it has been said
    others = [item.part for item in sides if item.part not in empty]
    return problems + missing_columns(others, data, OTHER_FIELDS)


def _assemble(sides: Sequence[Sides], name: str, data: DataConfig, notes: Sequence[str] = ()) -> DomainTable:
    """One table under the standard column names.

    Raises:
        InputError: missing columns, values that are no strings, or no rows at all.
    """
    parts = [item.part for item in sides]
    taken = [data.id_column, data.source_lang_column, data.target_lang_column]
    taken += [column for item in sides for column in (item.source, item.target)]
    domain_column, problems = optional_column(parts, "domain", data.domain_column, taken)
    split_column, split_problems = optional_column(parts, "split", data.split_column, taken)
    raise_if(_column_problems(sides, data) + problems + split_problems)
    tables = []
    for item in sides:
        named = {"example_id": data.id_column, "domain": domain_column, "split": split_column}
        named |= {"source": item.source, "target": item.target}
        named |= {"source_lang": data.source_lang_column, "target_lang": data.target_lang_column}
        columns, found = standard_columns(item.part, name, named)
        problems += found
        for side, language in (("source_lang", item.source_lang), ("target_lang", item.target_lang)):
            columns[side] = _with_language(columns.get(side), language, item.part.table.num_rows)
        tables.append(columns)
    raise_if(problems)
    all_notes = (*notes, *(note for part in parts for note in part.notes))
    return join([pa.table(columns) for columns in tables], name, all_notes)


def _with_language(column: Any, language: str, row_count: int) -> Any:
    """The languages of a column, ``language`` where it says none or there is no column."""
    if column is None:
        return pa.repeat(pa.scalar(language, TEXT), row_count)
    return pc.if_else(blank(column), pa.scalar(language, TEXT), column)
