"""A dataset of the Hugging Face Hub, through ``datasets.load_dataset`` and its cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hf_transfer.config import DATA_SUFFIXES, DataConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainTable
from hf_transfer.sources.base import (
    Part,
    arrow_table,
    assemble,
    closest,
    field_names,
    name_classes,
    shown,
    split_word,
    take_fields,
    top_names,
    used_columns,
)


def may_be_hub_id(source: str) -> bool:
    """``name`` or ``owner/name``, without the suffix of a data file."""
    return bool(re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", source)) and not source.lower().endswith(DATA_SUFFIXES)


def load_hub(data: DataConfig) -> DomainTable:
    """All splits that are some form of train, validation or test, under the standard column names.

    Raises:
        InputError: no such dataset, subset or revision, no network and nothing in the cache, or unusable contents.
    """
    parts, notes = read_hub(data, lambda _: used_columns(data))
    return replace(assemble(parts, data.source, data, notes), hub_id=data.source)


def read_hub(
    data: DataConfig, choose_columns: Callable[[Sequence[str]], Sequence[str]]
) -> tuple[list[Part], list[str]]:
    """The same splits with those columns that ``choose_columns`` names when told all there are, and notes.

    Raises:
        InputError: no such dataset, subset or revision, no network and nothing in the cache, or no split of use.
    """
    import datasets

    try:
        found = datasets.load_dataset(data.source, data.subset, revision=data.revision)
    # what load_dataset raises: OSError where nothing is found or reached, ValueError for an unknown subset,
    # RuntimeError for a dataset that is a script, DatasetsError where its files do not parse
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(_not_loaded(data, error, datasets.config.HF_HUB_OFFLINE)) from error
    short_name = data.source.rsplit("/", 1)[-1]
    parts = []
    for split in sorted(found, key=str):
        word = split_word(str(split))
        if word is not None:
            rows = found[split]
            schema = rows.features.arrow_schema
            columns = choose_columns(field_names(schema, [f"{name}." for name in schema.names]))
            table = take_fields(arrow_table(rows.select_columns(top_names(columns, rows.column_names))), columns)
            for name in columns:
                table = name_classes(table, rows.features, name)
            parts.append(Part(str(split), field_names(schema, columns), table, word, short_name))
    parts.sort(key=lambda part: ("train", "validation", "test").index(part.split))
    others = [str(split) for split in found if split_word(str(split)) is None]
    if not parts:
        raise InputError(f"{data.source} has no split for train, validation or test, only {shown(others)}.")
    notes = [f"splits of {data.source} that are not read: {shown(others)}."] if others else []
    for word in dict.fromkeys(part.split for part in parts):
        places = [part.place for part in parts if part.split == word]
        if len(places) > 1:
            notes.append(f"{word} is read from {len(places)} splits ({shown(places)}).")
    return parts, notes


def _not_loaded(data: DataConfig, error: Exception, offline: bool) -> str:
    """What failed, and the way out of each likely cause."""
    subset = f" (--data.subset {data.subset})" if data.subset else ""
    revision = f" (--data.revision {data.revision})" if data.revision else ""
    cause = " ".join(str(error).split())
    remedy = (
        "HF_HUB_OFFLINE is set and the dataset is not in the cache: unset it, or load the dataset once with a network"
        if offline
        else "check its name, your network and, for a private dataset, `hf auth login`"
    )
    folder = Path(data.source).parent
    neighbours = closest(Path(data.source).name, [item.name for item in folder.iterdir()]) if folder.is_dir() else ""
    return (
        f"--data.source {data.source}{subset}{revision} is no local path and could not be loaded from the Hub "
        f"({type(error).__name__}: {cause[:400]}): {remedy}; or give the path of a file or folder.{neighbours}"
    )
