"""Floor 1: what takes long to compute from text, found again by later runs on the same text.

Entries lie beside the caches of datasets (``HF_DATASETS_CACHE``), under the digest of all that they depend on: the
texts themselves, the tokenizer's rules, limits and the versions of the code. So nothing is ever out of date, and a
folder that was moved or a file that was written anew with the same rows finds its entries. An entry is written under a
name of its own and renamed; one that cannot be read is made anew, and none is needed: the folder may be deleted at any
time. The entries that were unused for longest go once all take more than ``LIMIT_BYTES``. ``datasets.disable_caching``
turns this off like all caches of datasets.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_transfer.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = "hf-transfer/content/3"
"""Counts up when what is computed from the same text changes."""
LIMIT_BYTES = 4 << 30
BATCH_ROWS = 500
EXTRAS = b"hf_transfer_extras"

Found = TypeVar("Found")


def content_key(kind: str, *parts: str | bytes) -> str:
    """Name of an entry that depends on ``parts``; begins with ``kind``, which says what it is."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (FORMAT, __version__, *_versions(), *parts):
        raw = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)  # with its length, so that parts cannot flow into another
    return f"{kind}-{digest.hexdigest()}"


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of what makes token ids; each takes 3 ms to find."""
    return tuple(f"{package} {version(package)}" for package in ("transformers", "tokenizers"))


def rows_digest(rows: Dataset, columns: list[str]) -> bytes:
    """Digest of what ``columns`` hold in each row, in order; those that ``rows`` have not are left out."""
    import pyarrow as pa

    digest = hashlib.blake2b(digest_size=16)
    there = [name for name in columns if name in rows.column_names]
    digest.update(json.dumps([there, len(rows)]).encode("utf-8"))
    for batch in rows.select_columns(there).with_format("arrow").iter(batch_size=BATCH_ROWS):
        sink = pa.BufferOutputStream()
        plain = batch.replace_schema_metadata(None).combine_chunks()
        with pa.ipc.new_stream(sink, plain.schema) as writer:
            writer.write_table(plain)
        digest.update(sink.getvalue())
    return digest.digest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Digest of all that decides which ids ``tokenizer`` gives to a text."""
    digest = hashlib.blake2b(digest_size=16)
    settings = [type(tokenizer).__name__, repr(tokenizer.added_tokens_decoder), str(tokenizer.special_tokens_map)]
    settings += [tokenizer.truncation_side, str(tokenizer.model_max_length), str(sorted(tokenizer.model_input_names))]
    digest.update(json.dumps(settings).encode("utf-8"))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode("utf-8"))
        return digest.digest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.name.encode("utf-8") + path.read_bytes())
    return digest.digest()


def kept_facts(key: str, make: Callable[[], Found]) -> Found:
    """What ``make`` returns, JSON throughout, or what it returned when it was last asked for ``key``."""
    path = _place(key, ".json")
    if path is None:
        return make()
    with suppress(OSError, ValueError):
        text = path.read_text(encoding="utf-8")
        os.utime(path)
        return json.loads(text)
    made = make()
    text = json.dumps(made)
    _keep(path, lambda place: place.write_text(text, encoding="utf-8"))
    return made


def kept_rows(key: str, make: Callable[[], tuple[Dataset, Any]]) -> tuple[Dataset, Any]:
    """The rows that ``make`` returns, and what it says of them (JSON); from disk, and mapped into memory, where they
    are known by ``key`` already."""
    path = _place(key, ".arrow")
    found = None if path is None else _open(path)
    if path is None or found is not None:
        return found or make()
    rows, extras = make()
    if not len(rows):
        return rows, extras
    _keep(path, lambda place: _write(place, rows, extras))
    return _open(path) or (rows, extras)


def _place(key: str, suffix: str) -> Path | None:
    """Where an entry lies; None where caching is turned off."""
    import datasets

    if not datasets.is_caching_enabled():
        return None
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_transfer" / f"{key}{suffix}"


def _open(path: Path) -> tuple[Dataset, Any] | None:
    """What an entry holds; None where there is none, or it cannot be read."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            extras = json.loads(stream.schema.metadata[EXTRAS])
        rows = Dataset.from_file(str(path))
        os.utime(path)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None
    return (rows, extras["of_rows"]) if extras["rows"] == len(rows) else None


def _write(path: Path, rows: Dataset, extras: Any) -> None:
    import pyarrow as pa

    said = json.dumps({"rows": len(rows), "of_rows": extras}).encode("utf-8")
    schema = rows.features.arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), EXTRAS: said})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            writer.write_table(batch.cast(schema))


def _keep(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file that then takes the name ``path``; a disk that is full or read-only costs time later
    on, and nothing now."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="writing-")
        os.close(handle)
        try:
            write(Path(name))
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def _make_room(folder: Path) -> None:
    """Delete the entries that were used least recently until the others take no more than ``LIMIT_BYTES``."""
    entries = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process deletes as well
            facts = path.stat()
            entries.append((facts.st_mtime, facts.st_size, path))
    taken = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if taken <= LIMIT_BYTES:
            break
        with suppress(OSError):
            path.unlink()
        taken -= size
