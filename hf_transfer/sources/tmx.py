"""Floor 1: translation memories in TMX (1.1 to 1.4b), plain or gzipped, read as a stream.

What a unit holds between ``<seg>`` and ``</seg>`` is text and inline elements. ``bpt``, ``ept``, ``ph``, ``it`` and
``ut`` hold the codes of the original format, which no reader of the sentence ever sees: they go, with all inside them.
``hi`` and anything else marks a part of the sentence: its text stays. Line breaks of the XML become spaces.

No entity but the five of XML is ever expanded: a file that declares one is refused where it does so, which leaves
nothing to an entity that grows (a thousand million laughs) or reads another file. A DTD that is only named, as most
translation memories name theirs, is not opened.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

import pyarrow as pa

from hf_transfer.errors import InputError
from hf_transfer.sources.base import TEXT, Part, closest, counted, shown

TMX_SUFFIXES = (".tmx", ".tmx.gz")
CODE_ELEMENTS = ("bpt", "ept", "ph", "it", "ut")
BYTES_PER_READ = 1 << 16
ROWS_PER_CHUNK = 10_000
LONGEST_SEGMENT = 1_000_000
"""Characters of one segment; what is longer is no sentence and would fill the memory."""


@dataclass
class Unit:
    """One translation unit."""

    number: int
    """Counted from 1 in the order of the file."""
    fields: dict[str, str]
    """Attributes of ``<tu>`` (``tuid``), and its ``<prop>`` by type."""
    variants: list[tuple[str, str]] = field(default_factory=list)
    """Language code as written, and text."""


def matching_languages(wanted: str, codes: Iterable[str]) -> list[str]:
    """Those of ``codes`` that stand for the language ``wanted``: the same code first, then those of a region.

    Case and ``-`` or ``_`` do not matter. ``en`` and ``en-US`` match each other; ``en-US`` and ``en-GB`` do not.
    """
    plain = _plain(wanted)
    codes = list(codes)
    same = [code for code in codes if _plain(code) == plain]
    wider = [code for code in codes if _plain(code).startswith(f"{plain}-") or plain.startswith(f"{_plain(code)}-")]
    return same + wider


def read_languages(path: Path, place: str) -> dict[str, int]:
    """Number of variants by language code, as the codes are written.

    Raises:
        InputError: as for ``read_tmx``.
    """
    counts: dict[str, int] = {}
    for unit in read_units(path, place):
        for code, _ in unit.variants:
            counts[code] = counts.get(code, 0) + 1
    return counts


def read_tmx(path: Path, place: str, source_lang: str, target_lang: str, columns: Sequence[str] = ()) -> Part:
    """The units that hold both languages, as columns ``source`` and ``target`` and those fields named in ``columns``.

    Of several variants of a language the one with the very code is used, else the first; such units, and those left
    out because a language is missing, are counted in the notes. A place is ``file:tu 12``.

    Raises:
        InputError: no TMX, broken XML, an entity declaration, or no unit with both languages.
    """
    chunks: list[pa.RecordBatch] = []
    rows: list[list[str | None]] = []
    lacking: list[str] = []
    several: list[str] = []
    counts: dict[str, int] = {}
    extra: dict[str, None] = {}
    wanted = [name for name in columns if name not in ("source", "target")]
    names = ["row", "source", "target", *wanted]

    def flush() -> None:
        arrays = [pa.array([row[i] for row in rows], TEXT) for i in range(len(names))]
        chunks.append(pa.RecordBatch.from_arrays(arrays, names))
        rows.clear()

    for unit in read_units(path, place):
        codes = [code for code, _ in unit.variants]
        for code in codes:
            counts[code] = counts.get(code, 0) + 1
        sources, targets = matching_languages(source_lang, codes), matching_languages(target_lang, codes)
        row_name = f"tu {unit.number}"
        if not sources or not targets or sources[0] == targets[0]:
            lacking.append(f"{place}:{row_name}")
            continue
        if len(sources) > 1 or len(targets) > 1:
            several.append(f"{place}:{row_name}")
        texts = dict(reversed(unit.variants))  # of equal codes the first
        extra.update(dict.fromkeys(unit.fields))
        rows.append([row_name, texts[sources[0]], texts[targets[0]], *(unit.fields.get(name) for name in wanted)])
        if len(rows) == ROWS_PER_CHUNK:
            flush()
    flush()
    table = pa.Table.from_batches(chunks)
    if not table.num_rows:
        raise InputError(_no_pairs(place, source_lang, target_lang, counts))
    notes = []
    if lacking:
        units = counted(len(lacking), "unit")
        notes.append(f"{place}: left out {units} without {source_lang} or {target_lang} ({shown(lacking)}).")
    if several:
        units = counted(len(several), "unit")
        notes.append(f"{place}: {units} with several variants of a language ({shown(several)}); the first is used.")
    return Part(
        place,
        tuple(extra),
        table.select(["source", "target", *(name for name in wanted if name in extra)]),
        notes=tuple(notes),
        row_names=table["row"],
    )


def read_units(path: Path, place: str) -> Iterator[Unit]:
    """The units of a file one after the other; no more than a few are held at a time.

    Raises:
        InputError: no TMX, broken XML, or an entity declaration, with the line.
    """
    reader = _Reader(place)
    try:
        with path.open("rb") as raw, _unpacked(raw) as stream:
            while block := stream.read(BYTES_PER_READ):
                reader.parser.Parse(block, False)
                yield from reader.take()
            reader.parser.Parse(b"", True)
    except expat.ExpatError as error:
        cause = expat.errors.messages[error.code]
        raise InputError(
            f"{place} is not well-formed XML (line {error.lineno:,}, column {error.offset + 1:,}: {cause}): "
            "mend it there, or export it again as UTF-8."
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{place} cannot be unpacked ({error}): copy or download it again.") from None
    except (UnicodeError, LookupError, ValueError) as error:  # an encoding that the XML declaration names
        raise InputError(f"{place} cannot be decoded ({error}): save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{place} cannot be read ({error}): check its permissions.") from error
    yield from reader.take()


class _Reader:
    """What the parser calls: gathers units, and refuses what must not be expanded."""

    def __init__(self, place: str):
        self.place = place
        self.number = 0
        self.done: list[Unit] = []
        self.unit: Unit | None = None
        self.path: list[str] = []
        self.language = ""
        self.property = ""
        self.text: list[str] | None = None
        """Pieces of the segment or property that is open."""
        self.length = 0
        self.codes_open = 0
        self.parser: Any = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.characters
        self.parser.EntityDeclHandler = self.refuse_declaration
        self.parser.SkippedEntityHandler = self.refuse_reference

    def take(self) -> list[Unit]:
        """The units that are complete since the last call."""
        done, self.done = self.done, []
        return done

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self.path and name != "tmx":
            raise InputError(f"{self.place} is no TMX: its first element is <{name}>, expected <tmx>.")
        parent = self.path[-1] if self.path else ""
        self.path.append(name)
        if name == "tu":
            self.number += 1
            self.unit = Unit(self.number, dict(attributes))
        elif name == "tuv":
            self.language = attributes.get("xml:lang") or attributes.get("lang") or ""
        elif name == "seg" or (name == "prop" and parent == "tu"):
            self.property = attributes.get("type", "")
            self.text, self.length, self.codes_open = [], 0, 0
        elif name in CODE_ELEMENTS:
            self.codes_open += 1

    def end(self, name: str) -> None:
        self.path.pop()
        if name in CODE_ELEMENTS:
            self.codes_open -= 1
        elif self.unit is None:
            return
        elif name == "tu":
            self.done.append(self.unit)
            self.unit = None
        elif self.text is not None and name in ("seg", "prop"):
            text = re.sub(r"\s*\n\s*", " ", "".join(self.text)).strip()
            if name == "seg":
                self.unit.variants.append((self.language, text))
            else:
                self.unit.fields[self.property] = text
            self.text = None

    def characters(self, text: str) -> None:
        if self.text is None or self.codes_open:
            return
        self.text.append(text)
        self.length += len(text)
        if self.length > LONGEST_SEGMENT:
            raise InputError(
                f"{self.place}:tu {self.number} holds a segment of more than {LONGEST_SEGMENT:,} characters "
                f"(line {self.parser.CurrentLineNumber:,}): split it into sentences."
            )

    def refuse_declaration(self, name: str, *_: Any) -> None:
        raise InputError(
            f"{self.place} declares the entity {name!r} (line {self.parser.CurrentLineNumber:,}), and entities are "
            "never expanded: write the text in its place and remove the declaration."
        )

    def refuse_reference(self, name: str, *_: Any) -> None:
        raise InputError(
            f"{self.place} refers to the entity {name!r} (line {self.parser.CurrentLineNumber:,}), which only another "
            "file could explain, and none is opened: write the character itself."
        )


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    """``raw`` or, where it begins as gzip does, what is packed in it."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.open(raw) if packed else raw  # type: ignore[return-value]


def _plain(code: str) -> str:
    return code.strip().lower().replace("_", "-")


def _no_pairs(place: str, source_lang: str, target_lang: str, counts: dict[str, int]) -> str:
    if not counts:
        return f"{place} holds no translation unit: expected <tu> with a <tuv> and <seg> for each language."
    found = ", ".join(f"{code or 'no language'} ({count:,})" for code, count in sorted(counts.items()))
    missing = [code for code in (source_lang, target_lang) if not matching_languages(code, counts)]
    hints = "".join(closest(code, counts) for code in missing)
    return (
        f"{place}: no unit has both {source_lang} and {target_lang}; languages are {found}.{hints} "
        "Name two of them with --data.source_lang and --data.target_lang."
    )
