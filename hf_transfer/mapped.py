"""Floor 0: columns and numbers that outgrow memory, in files that are mapped into it.

Up to ``MEMORY_BYTES`` all stays in memory. What is beyond lies in a file of the folder of the caches of datasets
(``HF_DATASETS_CACHE``) that has lost its name as soon as it is mapped: it is gone with the last use, however the
process ends, and the system drops and reads again its pages as memory demands. A disk that takes no more costs memory
instead.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both cost import time
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

MEMORY_BYTES = 64 << 20
"""Of one column or table that may stay in memory; also how much is put away at once."""
ROWS_PER_BATCH, BYTES_PER_BATCH = 1000, 4 << 20
"""Of text that is tokenised at once, of which a tokenizer makes some 30 bytes a letter."""


def on_disk(table: pa.Table) -> pa.Table:
    """``table``, mapped from a file if it takes more than ``MEMORY_BYTES``."""
    import pyarrow as pa

    if table.nbytes < MEMORY_BYTES:
        return table
    path = None
    try:
        path = _new_file()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except OSError:
        return table
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    """``table`` in slices of about ``MEMORY_BYTES`` of rows."""
    rows = rows_within(table.nbytes, table.num_rows, MEMORY_BYTES)
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def rows_within(total_bytes: int, row_count: int, wanted_bytes: int) -> int:
    """How many of the rows take about ``wanted_bytes``; at least 1."""
    return max(1, int(wanted_bytes * row_count / max(total_bytes, 1)))


def filtered(table: pa.Table, chosen: pa.ChunkedArray) -> pa.Table:
    """The rows of ``table`` for which ``chosen`` holds."""
    import pyarrow as pa

    kept = []
    start = 0
    for piece in pieces(table):
        kept.append(on_disk(piece.filter(chosen.slice(start, piece.num_rows))))
        start += piece.num_rows
    return pa.concat_tables(kept) if kept else table


class Chunks:
    """The Arrow arrays of a column that is being read."""

    def __init__(self) -> None:
        self._done: list[pa.Array] = []
        self._waiting: list[pa.Array] = []
        self._waiting_bytes = 0

    def append(self, array: pa.Array) -> None:
        """Add an array; when enough are in memory, they are put away."""
        import pyarrow as pa

        if self._waiting and self._waiting[-1].type != array.type:  # a file holds one type
            self._done += self._waiting
            self._waiting, self._waiting_bytes = [], 0
        self._waiting.append(array)
        self._waiting_bytes += array.nbytes
        if self._waiting_bytes >= MEMORY_BYTES:
            self._done += on_disk(pa.table({"": pa.chunked_array(self._waiting)}))[0].chunks
            self._waiting, self._waiting_bytes = [], 0

    def arrays(self) -> list[pa.Array]:
        """All of them in order."""
        return [*self._done, *self._waiting]


class Numbers:
    """Many whole numbers, each below 2**31, added one array after the other."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._waiting_count = self._count = 0
        self._path: Path | None = None
        self._disk_is_full = False

    def extend(self, numbers: Iterable[int]) -> int:
        """Add ``numbers``; returns how many there are now."""
        import numpy as np

        more = np.fromiter(numbers, dtype=np.int32)
        self._waiting.append(more)
        self._waiting_count += len(more)
        self._count += len(more)
        if len(self._waiting) >= 100_000 or 4 * self._waiting_count >= MEMORY_BYTES:
            self._put_away()
        return self._count

    def array(self) -> np.ndarray:
        """[count] int32, all of them; may be written to, and takes no memory of its own once there are many."""
        import numpy as np

        if self._path is not None:
            self._put_away()
        if self._path is None:
            return np.concatenate(self._waiting) if self._waiting else np.empty(0, dtype=np.int32)
        numbers = np.memmap(self._path, dtype=np.int32, mode="r+")
        self._path.unlink()
        return numbers

    def _put_away(self) -> None:
        import numpy as np

        together = np.concatenate(self._waiting) if self._waiting else np.empty(0, dtype=np.int32)
        self._waiting, self._waiting_count = [together], len(together)
        if together.nbytes < MEMORY_BYTES and self._path is None:
            return
        if self._disk_is_full:
            return
        try:
            self._path = self._path or _new_file()
            with self._path.open("ab") as file:
                together.tofile(file)
        except OSError:
            self._disk_is_full = True
            if self._path is not None:
                back = np.fromfile(self._path, dtype=np.int32, count=self._count - self._waiting_count)
                self._waiting.insert(0, back)
                self._path.unlink()
                self._path = None
            self._waiting_count = self._count
            return
        self._waiting, self._waiting_count = [], 0


def map_to_disk(
    rows: Dataset, encode: Callable[[dict[str, list[Any]]], dict[str, list[Any]]], dropped: list[str]
) -> Dataset:
    """``rows`` with the columns that ``encode`` makes of a batch in place of those ``dropped``, written to a file as
    they are made; in memory where the disk takes no more."""

    def mapped_to(path: str | None) -> Dataset:
        return rows.map(
            encode,
            batched=True,
            batch_size=min(ROWS_PER_BATCH, rows_within(rows.data.nbytes, rows.data.num_rows, BYTES_PER_BATCH)),
            remove_columns=dropped,
            # a name of our own: datasets would make one by pickling a tokenizer, which takes longer than tokenising
            new_fingerprint=uuid.uuid4().hex,
            cache_file_name=path,
            load_from_cache_file=False,
        )

    path = None
    try:
        path = _new_file()
        return mapped_to(str(path))
    except OSError:
        return mapped_to(None)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _new_file() -> Path:
    """An empty file beside the caches of datasets."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_transfer"
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix="mapped-", suffix=".arrow")
    os.close(handle)
    return Path(name)
