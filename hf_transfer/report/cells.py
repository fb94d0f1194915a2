"""Floor 4: what the tables of a report are made of: plain text in cells, so that HTML and Markdown say the same.

Nothing here is escaped: cells hold text from data on one line, and whoever renders them escapes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hf_transfer.report.results import format_difference, format_interval, one_line

Results = Mapping[str, Any]
Item = Mapping[str, Any]
Alignment = Literal["left", "right"]

LONG = 14
"""Rows; a longer table is folded where a page can fold."""
ROLES = {"in_domain": "in-domain", "shifted": "shifted"}


@dataclass(frozen=True)
class Table:
    """Cells as text. Columns that hold numbers are aligned to the right; the first column names the row."""

    name: str
    """Unique in a comparison, of letters, digits, ``-`` and ``_``."""
    title: str
    caption: str
    """What the numbers are, in sentences; "" where the title says it all."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """[rows][columns]; an empty cell where there is nothing to say."""
    alignment: tuple[Alignment, ...]
    folded: bool = False
    """Long, or the numbers behind a figure: a page may show the title alone until it is asked for more."""


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it: paragraphs, then tables."""

    name: str
    title: str
    paragraphs: tuple[str, ...]
    tables: tuple[Table, ...]


def make_section(name: str, title: str, paragraphs: Iterable[str], tables: Iterable[Table]) -> Section:
    """A section with those of ``tables`` that have rows."""
    return Section(name, title, tuple(paragraphs), tuple(table for table in tables if table.rows))


def make_table(
    name: str,
    title: str,
    caption: str,
    header: Sequence[str],
    alignment: str,
    rows: Sequence[Sequence[Any]],
    folded: bool = False,
) -> Table:
    """A table without the columns that are empty in every row; ``alignment`` is a letter per column, l or r."""
    clean = [[one_line(str(cell)) if cell != "" else "" for cell in row] for row in rows]
    kept = [place for place in range(len(header)) if any(row[place] for row in clean)]
    sides: dict[str, Alignment] = {"l": "left", "r": "right"}
    return Table(
        name=slug(name),
        title=one_line(title),
        caption=one_line(caption[0].upper() + caption[1:]) if caption else "",
        header=tuple(one_line(str(header[place])) for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in clean),
        alignment=tuple(sides[alignment[place]] for place in kept),
        folded=folded,
    )


def make_facts(name: str, title: str, facts: Mapping[str, Any]) -> Table:
    """A table of what and its value."""
    return make_table(name, title, "", ["What", "Value"], "ll", list(facts.items()))


def with_columns(table: Table, wanted: Sequence[str]) -> Table:
    """``table`` with the columns whose headings are ``wanted``, in its own order."""
    places = [place for place, name in enumerate(table.header) if name in wanted]
    return replace(
        table,
        header=tuple(table.header[place] for place in places),
        rows=tuple(tuple(row[place] for place in places) for row in table.rows),
        alignment=tuple(table.alignment[place] for place in places),
    )


def slug(name: str) -> str:
    """``name`` with a dash in the place of all that an id or a file name had better not hold."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name)


def ordered_strategies(results: Results) -> list[str]:
    """Strategies, then controls, then whatever else was scored, each once."""
    found = (score["strategy"] for score in results["scores"])
    return list(dict.fromkeys((*results["strategies"], *results["controls"], *found)))


def format_effect(metric: str, difference: float | None, low: float | None = None, high: float | None = None) -> str:
    """A difference with its sign and interval: ``+7.0 points (3.0 to 10.0)``."""
    if difference is None:
        return "undefined"
    interval = format_interval({"metric": metric, "value": difference, "low": low, "high": high})
    sign = "+" if difference > 0 else ""
    return f"{sign}{format_difference(metric, difference)}" + (f" ({interval})" if interval else "")


def varies(items: Iterable[Item], key: str) -> bool:
    """Whether ``items`` differ in what they hold under ``key``."""
    return len({item.get(key) for item in items}) > 1


def level(results: Results) -> str:
    """Of all intervals: ``95%``."""
    return f"{100 * results['confidence']:g}%"


def words_of_intervals(results: Results, metric: str | None = None) -> str:
    """``95% intervals (percentile bootstrap over examples, 10,000 resamples)``, of the main metric or of another."""
    resamples = results["resamples"]
    if metric not in (None, results.get("metric")):
        resamples = results.get("side_resamples", resamples)
    return f"{level(results)} intervals ({one_line(results['interval'])}, {resamples:,} resamples)"
