"""Floor 4: what a finished comparison prints: the answer, one table of strategies, verdicts, and where the report lies.

Meaning is carried by words, bold and dim, never by colour, so that it survives colour blindness and log files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid

from hf_transfer.report.console import label_lines, plain_text, width_of
from hf_transfer.report.tables import MEANS, Table, make_sections, make_warnings

_SHOWN_ROWS = 20  # more scroll the answer out of sight
_SHOWN = ("overview", "cost", "comparisons-control")
_FEWER = {"comparisons-control": ("Strategy", "Against", "Domain", "Trained on", "Difference", "Verdict")}


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
    lines += [("Warning", warning) for warning in make_warnings(results)]
    lines += [("Report", str(folder / "report.html")), ("Numbers", str(folder / "results.json"))]
    console.print(label_lines(lines, console))


def _chosen(results: Mapping[str, Any]) -> list[Table]:
    """The tables that answer the question; of comparisons the rows and columns that a glance needs."""
    tables = [table for section in make_sections(results) for table in section.tables if table.name in _SHOWN]
    return [_glance(table, _FEWER[table.name]) if table.name in _FEWER else table for table in tables]


def _glance(table: Table, wanted: Sequence[str]) -> Table:
    """The rows about shifted domains together, where there are such, and the ``wanted`` columns."""
    about_all = [row for row in table.rows if MEANS[1] in row]
    return _with_columns(dataclasses.replace(table, rows=tuple(about_all or table.rows)), wanted)


def _with_columns(table: Table, wanted: Sequence[str]) -> Table:
    places = [place for place, name in enumerate(table.header) if name in wanted]
    return dataclasses.replace(
        table,
        header=tuple(table.header[place] for place in places),
        rows=tuple(tuple(row[place] for place in places) for row in table.rows),
        alignment=tuple(table.alignment[place] for place in places),
    )


def _print_table(table: Table, console: Console) -> list[str]:
    """Print what fits of ``table``; return the names of what does not."""
    columns = len(table.header)
    # a comparison without its verdict says nothing: there names fold instead
    while (
        table.name not in _FEWER and columns > 2 and width_of(_grid(table, columns, console), console) > console.width
    ):
        columns -= 1
    console.print(_grid(table, columns, console))
    hidden = list(table.header[columns:])
    more = len(table.rows) - _SHOWN_ROWS
    if more > 0:
        hidden.append(f"{more:,} rows of {table.title}")
    return hidden


def _grid(table: Table, columns: int, console: Console) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold", pad_edge=False)
    for name, side in zip(table.header[:columns], table.alignment, strict=False):
        # names fold rather than being cut: one that cannot be told from another is worse than a second line
        widest = None if side == "right" else max(12, console.width // 4)
        grid.add_column(
            plain_text(name, console), justify=side, no_wrap=side == "right", overflow="fold", max_width=widest
        )
    for row in table.rows[:_SHOWN_ROWS]:
        grid.add_row(*(plain_text(cell, console) for cell in row[:columns]))
    return grid
