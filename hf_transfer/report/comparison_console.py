"""Floor 4: what a finished comparison prints: the answer, one table of strategies, verdicts, and where the report lies.

Meaning is carried by words, bold and dim, never by colour, so that it survives colour blindness and log files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from hf_transfer.report.cells import Table, with_columns
from hf_transfer.report.console import LAST_COLUMNS, fitting, grid_of, label_lines, plain_text, signature_lines
from hf_transfer.report.results import MEANS
from hf_transfer.report.tables import make_sections, make_warnings

_SHOWN_ROWS = 20  # more scroll the answer out of sight
_SHOWN = ("overview", "cost", "ledger", "before-and-after-0", "comparisons-control")
_FEWER = {"comparisons-control": ("Strategy", "Against", "Domain", "Trained on", "Difference", "Verdict")}
_OF_LEDGER = ("ledger", "before-and-after-0")


def print_comparison(
    results: Mapping[str, Any], console: Console | None = None, output_dir: str | Path | None = None
) -> None:
    """Print answer, means, cost, the verdicts against controls, warnings, and where the report lies.

    Each table has as many of its columns as the console is wide, and at most 20 rows; what is left out is named.
    ``output_dir`` stands in front of the paths; by default as the config gives it. By default on standard output.
    """
    console = console or Console()
    folder = Path(output_dir if output_dir is not None else results["config"].get("output_dir", "."))
    for sentence in results["answer"]:
        console.print(Padding(plain_text(sentence, console), (0, 1)))
    console.print()
    hidden = [name for table in _chosen(results) for name in _print_table(table, console)]
    lines = [("Not shown", f"{', '.join(hidden)}: see the report")] if hidden else []
    lines += signature_lines(results.get("signatures") or {})
    lines += [("Warning", warning) for warning in make_warnings(results)]
    lines += [("Report", str(folder / "report.html")), ("Numbers", str(folder / "results.json"))]
    console.print(label_lines(lines, console))


def _chosen(results: Mapping[str, Any]) -> list[Table]:
    """The tables that answer the question; of comparisons the rows and columns that a glance needs."""
    tables = [table for section in make_sections(results) for table in section.tables if table.name in _SHOWN]
    names = [table.name for table in tables]
    if "ledger" in names:  # which has the strategies side by side
        tables = [table for table in tables if table.name != "before-and-after-0"]
    if not {*_OF_LEDGER}.isdisjoint(names):
        own = {direction["name"]: direction["train_domains"] for direction in results["directions"]}
        tables = [_without_before(table, own) if table.name in _FEWER else table for table in tables]
        tables = [table for table in tables if table.rows]
    return [_glance(table, _FEWER[table.name]) if table.name in _FEWER else table for table in tables]


def _glance(table: Table, wanted: Sequence[str]) -> Table:
    """The rows about shifted domains together, where there are such, and the ``wanted`` columns."""
    about_all = [row for row in table.rows if MEANS[1] in row]
    return with_columns(dataclasses.replace(table, rows=tuple(about_all or table.rows)), wanted)


def _without_before(table: Table, own: Mapping[str, Sequence[str]]) -> Table:
    """Comparisons with other controls than ``before``, of which the ledger tells; at home, where there are such.

    ``own``: train domains by the name of their direction, which rows name where there are several.
    """
    rows = [row for row in table.rows if "before" not in row[:2]]
    domain = table.header.index("Domain")
    trained_on = table.header.index("Trained on") if "Trained on" in table.header else None
    only = next(iter(own.values()))

    def is_at_home(row: Sequence[str]) -> bool:
        inside = only if trained_on is None else own.get(row[trained_on], ())
        return row[domain] == MEANS[0] or row[domain] in inside

    at_home = [row for row in rows if is_at_home(row)]
    return dataclasses.replace(table, rows=tuple(at_home or rows))


def _print_table(table: Table, console: Console) -> list[str]:
    """Print what fits of ``table``; return the names of what does not."""
    # a comparison without its verdict says nothing: there names fold instead
    last = () if table.name in _FEWER else LAST_COLUMNS.get(table.name, table.header[:1:-1])
    shown, hidden = fitting(table, last, console)
    console.print(grid_of(dataclasses.replace(shown, rows=shown.rows[:_SHOWN_ROWS]), console))
    more = len(table.rows) - _SHOWN_ROWS
    if more > 0:
        hidden.append(f"{more:,} rows of {table.title}")
    return hidden
