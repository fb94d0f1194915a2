"""Floor 1: where text comes from. Each form of ``data.source`` has its file; all give one ``DomainTable``.

Arrow and datasets are imported when a source is loaded, not before: that keeps ``import hf_transfer`` quick.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainTable

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["check_rows", "labelled", "load_source", "read_source"]


def load_source(data: DataConfig) -> DomainTable:
    """Read and check ``data.source``: every row that is returned has a text, a domain and a label.

    Rows with an empty text are dropped with a note.

    Raises:
        InputError: nothing there, contents that cannot be read; else all problems of the rows together.
    """
    table, problems = check_rows(read_source(data), data)
    if problems:
        raise InputError(problems)
    return table


def read_source(data: DataConfig) -> DomainTable:
    """Read ``data.source``: ``bundled:NAME``, else a path that exists, else a Hub dataset id.

    Rows are as they were found, except that those of splits other than train, validation and test are left out, with
    a note.

    Raises:
        InputError: nothing there, or contents that cannot be used; the problems of all files together.
    """
    if data.source.startswith("bundled:"):
        from hf_transfer.sources.bundled import find_bundled
        from hf_transfer.sources.files import load_files

        bundled = find_bundled(data.source.removeprefix("bundled:"), "classification")
        table = load_files(bundled.folder, data)
        return replace(table, name=data.source, default_train_domains=bundled.default_train_domains)
    from hf_transfer.sources.hub import load_hub, may_be_hub_id

    path = Path(data.source).expanduser()
    if path.exists() or not may_be_hub_id(data.source):
        from hf_transfer.sources.files import load_files, no_such_path

        if not path.exists():
            raise no_such_path(path)
        return load_files(path, data)
    return load_hub(data)


def check_rows(table: DomainTable, data: DataConfig) -> tuple[DomainTable, list[str]]:
    """Drop rows with an empty text, noting where, and list what stops a run: repeated ids, no domain, no label."""
    from hf_transfer.sources import base

    return base.check_rows(table, data)


def labelled(rows: Dataset, data: DataConfig) -> Dataset:
    """The rows that have a label."""
    from hf_transfer.sources import base

    return base.labelled(rows, data)
