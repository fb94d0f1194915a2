"""Floor 2: rows of hidden states, kept in memory first and then in a file, looked up by what they were computed from.

A row belongs to one text and one function of it: its key names the weights, the depth and the precision, and holds the
token ids, which say all about text, tokenizer and length limit. The file outlives a run that was killed: whoever opens
it again finds its rows, and a row that is damaged, cut off or of another key is computed anew.

Computed among other neighbours a row may differ in its last bit, since matrix products choose their way by the number
of tokens. A run that is to be continued to the bit therefore has every row in the file (``outlives``), and the rows of
one batch become findable together (``settle``): what is computed again is then computed in the same batches.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, torch.Tensor]
Key = tuple[str, bytes]

MEMORY_BYTES = 2 << 30
"""Memory for stored rows, unless a quarter of what is free is less. 2 GiB hold 1.4 million examples of which a head
reads one vector of 384 numbers, and 12,000 of which layers read 118 of them."""
FREE_DISK_BYTES = 1 << 30
"""What the file leaves of the disk."""
RESERVED_AT_ONCE = 16 << 20
"""Of the file, before rows are written to it."""
FORMAT = "hf-transfer/features/2"


class FeatureStore:
    """Rows in memory and, where a folder is given, in a file; beyond both they are computed each time."""

    def __init__(
        self,
        limit_bytes: int | None = None,
        folder: Path | None = None,
        file_bytes: int = 0,
        for_several: bool = False,
        outlives: bool = False,
    ) -> None:
        """``limit_bytes`` of memory, by default ``MEMORY_BYTES``; ``file_bytes`` of a file in ``folder``;
        ``for_several``: several runs look rows up, so that those of the test sets are kept too; ``outlives``: rows in
        memory are written to the file as well, for a run that is killed and continued."""
        self._rows: dict[bytes, Row] = {}
        self._limit_bytes = memory_limit() if limit_bytes is None else limit_bytes
        self._file = _RowFile(folder, file_bytes) if folder is not None and file_bytes else None
        self._outlives = outlives
        self.for_several = for_several
        self.bytes = 0
        """Memory that rows take."""
        self.computed = 0
        """Examples that were computed."""
        self.reused = 0
        """Examples that were looked up."""

    @property
    def file_bytes(self) -> int:
        """What rows take on disk."""
        return self._file.used if self._file is not None else 0

    def get(self, key: Key) -> Row | None:
        """The row of one example, on the host; None where it is not stored."""
        digest = _digest(key)
        row = self._rows.get(digest)
        if row is None and self._file is not None:
            return self._file.read(digest)
        return row

    def put(self, key: Key, row: Row) -> None:
        """Keep ``row`` if there is room."""
        digest = _digest(key)
        if digest in self._rows:
            return
        size = sum(tensor.numel() * tensor.element_size() for tensor in row.values())
        if self.bytes + size <= self._limit_bytes:
            self._rows[digest] = row
            self.bytes += size
            in_file = self._outlives
        else:
            in_file = True
        if in_file and self._file is not None:
            self._file.append(digest, row, size)

    def settle(self) -> None:
        """What was put into the file since the last call can be found after a kill: all of it, or nothing."""
        if self._file is not None:
            self._file.settle()

    def flush(self) -> None:
        """See that what was put into the file can be found again."""
        if self._file is not None:
            self._file.flush()

    def close(self, keep_file: bool = False) -> None:
        """Let go of everything; the file stays where ``keep_file`` says so."""
        self._rows.clear()
        self.bytes = 0
        if self._file is not None:
            self._file.close(keep_file)
            self._file = None


@contextmanager
def feature_store(
    folder: Path | None, file_bytes: int, for_several: bool = False, outlives: bool = False
) -> Iterator[FeatureStore]:
    """A store whose file lies in ``folder`` and goes when the work is done; after an error it stays, for whoever
    continues. ``for_several`` and ``outlives`` as in ``FeatureStore``."""
    store = FeatureStore(folder=folder, file_bytes=file_bytes, for_several=for_several, outlives=outlives)
    try:
        yield store
    except BaseException:
        store.close(keep_file=True)
        raise
    store.close()


def _bytes_of(dtype: str) -> int:
    """Of one number of the type that torch calls so."""
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"{dtype} is no type of numbers")
    return kind.itemsize


def _digest(key: Key) -> bytes:
    return hashlib.blake2b(key[0].encode() + b"\0" + key[1], digest_size=16).digest()


def memory_limit() -> int:
    """Bytes of memory that a store takes at most."""
    import psutil

    return min(MEMORY_BYTES, psutil.virtual_memory().available // 4)


@dataclass(frozen=True)
class _Place:
    """Where a row lies in the file."""

    offset: int
    size: int
    parts: tuple[tuple[str, tuple[int, ...], str], ...]
    """Name, shape and dtype of each tensor, one after the other."""
    crc: int


class _RowFile:
    """``rows.bin``, mapped into memory, and ``rows.jsonl``, one line per row behind a line with the format.

    A row is written before its line, and its line is believed only if the bytes add up to its checksum: after a crash
    nothing half-written passes for a row. Nothing is created before the first row.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._places: dict[bytes, _Place] = {}
        self._checked: set[bytes] = set()
        self._map: np.memmap | None = None
        self._index: Any = None
        self._lines: list[str] = []
        self.used = self._reserved = 0
        if (folder / "rows.jsonl").exists():
            self._reopen()

    def read(self, digest: bytes) -> Row | None:
        place = self._places.get(digest)
        if place is None or self._map is None:
            return None
        whole = np.array(self._map[place.offset : place.offset + place.size])  # a copy: the mapping may be closed
        if digest not in self._checked:
            if len(whole) != place.size or zlib.crc32(whole.data) != place.crc:
                del self._places[digest]
                return None
            self._checked.add(digest)
        row, start = {}, 0
        for name, shape, dtype in place.parts:
            kind = getattr(torch, dtype)
            end = start + int(np.prod(shape)) * kind.itemsize
            row[name] = torch.from_numpy(whole[start:end]).view(kind).reshape(shape)
            start = end
        return row

    def append(self, digest: bytes, row: Row, size: int) -> None:
        if digest in self._places or not self._open() or not self._has_room(size):
            return
        assert self._map is not None
        flat = [tensor.contiguous().view(torch.uint8).numpy().reshape(-1) for tensor in row.values()]
        whole = np.concatenate(flat) if len(flat) > 1 else flat[0]
        self._map[self.used : self.used + size] = whole
        parts = tuple((name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in row.items())
        place = _Place(self.used, size, parts, zlib.crc32(whole.data))
        self._places[digest] = place
        self._checked.add(digest)
        self.used += size
        line = [digest.hex(), place.offset, place.size, parts, place.crc]
        self._lines.append(json.dumps(line, separators=(",", ":")) + "\n")

    def settle(self) -> None:
        if self._lines:
            self._index.write("".join(self._lines).encode())  # unbuffered: one call of the system
            self._lines.clear()

    def flush(self) -> None:
        if self._map is not None:
            self._map.flush()
            self.settle()

    def close(self, keep: bool) -> None:
        self.flush()
        if self._index is not None:
            self._index.close()
        self._map = None
        self._places.clear()
        if not keep and self._folder.exists():
            shutil.rmtree(self._folder)
            with suppress(OSError):  # other processes keep theirs beside it
                self._folder.parent.rmdir()

    def _has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes fit under the limit and on the disk, which may have filled up in the meantime: a
        page of the mapping that finds no place on disk would kill the process (SIGBUS)."""
        if self.used + size > self._limit:
            return False
        if self.used + size > self._reserved and hasattr(os, "posix_fallocate"):
            ahead = min(max(size, RESERVED_AT_ONCE), self._limit - self.used)
            try:
                with (self._folder / "rows.bin").open("r+b") as file:
                    os.posix_fallocate(file.fileno(), self.used, ahead)
            except OSError:
                self._limit = self.used  # what is stored stays, what comes is computed each time
                return False
            self._reserved = self.used + ahead
        return True

    def _open(self) -> bool:
        """Map the file, as long as the limit and the disk allow; it is sparse, and takes what is written to it."""
        if self._map is not None:
            return True
        if not self._limit:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        room = self.used + shutil.disk_usage(self._folder).free - FREE_DISK_BYTES
        self._limit = min(self._limit, max(0, room))
        if not self._limit:
            return False
        fresh = not self._places
        path = self._folder / "rows.bin"
        with path.open("wb" if fresh else "r+b") as file:
            file.truncate(self._limit)
        self._map = np.memmap(path, dtype=np.uint8, mode="r+", shape=(self._limit,))
        self._index = (self._folder / "rows.jsonl").open("wb" if fresh else "ab", buffering=0)
        if fresh:
            self._index.write(json.dumps(FORMAT).encode() + b"\n")
        return True

    def _reopen(self) -> None:
        """Take up what an earlier process left; a store of another format or without its rows is begun anew."""
        try:
            lines = (self._folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
            on_disk = (self._folder / "rows.bin").stat().st_size
        except (OSError, UnicodeDecodeError):
            return
        if not lines or lines[0] != json.dumps(FORMAT):
            return
        believed = 0
        for line in lines[1:]:
            try:
                digest, offset, size, parts, crc = json.loads(line)
                place = _Place(offset, size, tuple((str(n), tuple(shape), kind) for n, shape, kind in parts), crc)
                whole = offset >= 0 and size == sum(math.prod(p[1]) * _bytes_of(p[2]) for p in place.parts)
                key = bytes.fromhex(digest)
            except (ValueError, TypeError, AttributeError, RecursionError):
                break  # the line that was being written, or one that nobody here wrote
            if not whole or offset + size > min(on_disk, self._limit):
                break
            self._places[key] = place  # of a row that was found damaged and computed anew, the later one
            self.used = offset + size
            believed += 1
        if believed and believed < len(lines) - 1:  # lines that are not believed would be read again
            kept = "\n".join(lines[: believed + 1]) + "\n"
            (self._folder / "rows.jsonl").write_text(kept, encoding="utf-8")
        if self._places:
            self._open()
