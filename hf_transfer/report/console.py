"""Floor 4: what a finished run prints: one table of scores and a few lines below it, at any width of terminal.

Meaning is carried by words, bold and dim, never by colour, so that it survives colour blindness and log files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_transfer.report.cells import Table as Cells
from hf_transfer.report.cells import with_columns
from hf_transfer.report.results import (
    DomainRow,
    confidence_percent,
    format_difference,
    format_interval,
    format_score,
    format_value,
    metric_names,
    metric_title,
    metric_words,
    one_line,
    rows_by_stage,
)
from hf_transfer.report.translation_tables import as_comparison, ledger_in_words, make_ledger

Column = tuple[str, Callable[[DomainRow], str]]

_ROLES = {"in_domain": "in-domain", "shifted": "shifted"}

LAST_COLUMNS = {
    "before-and-after-0": ("Sentences", "Role"),
    "ledger": ("Worst elsewhere", "Verdict, gain", "Verdict, change", "Kept"),
}
"""Columns of the ledger that go first where a console is narrow; the others stay, and names fold."""


def print_results(
    results: Mapping[str, Any], console: Console | None = None, output_dir: str | Path | None = None
) -> None:
    """Print scores, gap, artefact and where the report lies; by default on standard output.

    The table holds as many of the further columns (controls, then other metrics) as the console is wide; what is
    left out is named. ``output_dir`` stands in front of the paths; by default as the config of the run gives it.
    """
    console = console or Console()
    folder = Path(output_dir if output_dir is not None else results["config"]["output_dir"])
    extras = _extra_columns(results)
    shown = len(extras)
    while shown and width_of(_score_table(results, extras[:shown], console), console) > console.width:
        shown -= 1
    console.print(_score_table(results, extras[:shown], console))
    is_translation = results["labels"]["problem"] == "translation"
    hidden: list[str] = []
    for table in make_ledger(as_comparison(results)).tables if is_translation else ():
        fits, hidden = fitting(table, LAST_COLUMNS[table.name], console)
        console.print(grid_of(fits, console))
    lines = {
        **(dict(_translation_lines(results)) if is_translation else {"Gap": _gap_line(results)}),
        "Artefact": _artefact_line(results, folder),
        "Report": str(folder / "report.html"),
    }
    hidden += [header for header, _ in extras[shown:]]
    if hidden:
        lines["Not shown"] = ", ".join(hidden) + ": see the report"
    console.print(label_lines(lines.items(), console))


def _extra_columns(results: Mapping[str, Any]) -> list[Column]:
    """Columns beyond the main score, most wanted first: each control on the main metric, then the other metrics."""
    main, *others = metric_names(results) or [results["shift"]["metric"]]
    controls: list[Column] = [
        (stage, _control_cell(rows, main))
        for stage, rows in rows_by_stage(results).items()
        if stage != "adapted" and not (stage == "before" and results.get("ledger"))  # which has a table for it
    ]
    return controls + [(metric_title(metric), _metric_cell(metric)) for metric in others]


def _control_cell(rows: Sequence[DomainRow], metric: str) -> Callable[[DomainRow], str]:
    found = {(row.domain, row.split): row.scores[metric]["value"] for row in rows if metric in row.scores}

    def cell(row: DomainRow) -> str:
        place = (row.domain, row.split)
        return format_value(metric, found[place]) if place in found else ""

    return cell


def _metric_cell(metric: str) -> Callable[[DomainRow], str]:
    return lambda row: format_score(row.scores[metric]) if metric in row.scores else ""


def _score_table(results: Mapping[str, Any], extras: Sequence[Column], console: Console) -> Table:
    metric = results["shift"]["metric"]
    title = f"Scores with {confidence_percent(results)} intervals"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    # folded, not cut: a domain that cannot be told from another is worse than a second line
    table.add_column("domain", overflow="fold", max_width=max(20, console.width // 3))
    table.add_column("role", no_wrap=True, overflow="fold")
    for header in ("n", one_line(metric_title(metric)), *(one_line(header) for header, _ in extras)):
        table.add_column(plain_text(header, console), justify="right", no_wrap=True, overflow="fold")
    for row in rows_by_stage(results).get("adapted", []):
        score = row.scores.get(metric)
        main = Text(format_value(metric, score["value"]) if score else "", style="bold")
        interval = format_interval(score) if score else ""
        main.append(f" ({interval})" if interval else "", style="not bold")
        cells = [plain_text(cell(row), console) for _, cell in extras]
        role = _ROLES.get(row.role, row.role)
        table.add_row(plain_text(row.domain, console), plain_text(role, console), f"{row.count:,}", main, *cells)
    return table


def _gap_line(results: Mapping[str, Any]) -> str:
    shift = results["shift"]
    metric, worst = shift["metric"], f"; worst: {shift['worst_domain']}" if shift["worst_domain"] else ""
    roles = {row.role for row in rows_by_stage(results).get("adapted", [])}
    if "shifted" not in roles:
        return "does not apply: no shifted domain was scored"
    if "in_domain" not in roles:
        return f"does not apply: no train domain was scored{worst}"
    means = " to ".join(format_value(metric, shift[key]) for key in ("in_domain_mean", "shifted_mean"))
    if shift["gap"] is None:
        return f"undefined: {metric} goes from {means}"
    sign = "worse" if shift["gap"] > 0 else "better" if shift["gap"] < 0 else "apart"
    difference = format_difference(metric, abs(shift["gap"]))
    return f"{difference} {sign} on shifted domains (mean {metric} {means}){worst}"


def _translation_lines(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was gained and forgotten, what the translations are like, and how they were scored."""
    rows, described = results.get("ledger") or (), results.get("translation") or {}
    change = "; ".join(clause for row in rows for clause in ledger_in_words(row))
    if not results["config"]["model"]["checkpoint"].startswith("scratch:"):
        yield "Change", change or "not known: --evaluate.controls before scores the checkpoint as it comes"
    domains = list((described.get("domains") or {}).values())
    faults = {"empty": "empty", "copied": "copied from the source", "repeated": "repeating themselves"}
    counts = [(sum(facts[key] for facts in domains), words) for key, words in faults.items()]
    found = ", ".join(f"{count:,} {words}" for count, words in counts if count)
    total = sum(facts["count"] for facts in domains)
    said = f", of which {found}" if found else ": none is empty, copied or repeats itself"
    if domains:
        yield "Outputs", f"{total:,} translations{said}"
    yield from signature_lines(described.get("signatures") or {})


def signature_lines(signatures: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """How scores were computed, in one line, as papers ask for it."""
    if signatures:
        yield "Signatures", "; ".join(f"{metric_words(metric)} {text}" for metric, text in signatures.items())


def _artefact_line(results: Mapping[str, Any], folder: Path) -> str:
    artefact = results["artefact"]
    proof = "proved: loads in a fresh process, same outputs" if artefact["proved"] else "NOT PROVED to load"
    return f"{folder / artefact['path']} ({artefact['kind']}; {proof})"


def label_lines(lines: Iterable[tuple[str, str]], console: Console) -> Padding:
    """Pairs of a label and its text, one below the other: what stands under the tables."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, line in lines:
        grid.add_row(label, plain_text(line, console))
    return Padding(grid, (0, 0, 0, 1))  # one column in, as the rows of the tables above


def plain_text(text: str, console: Console) -> Text:
    """Text from data: no markup, no control characters, and nothing that the console's encoding cannot show."""
    return Text(one_line(text).encode(console.encoding, "backslashreplace").decode(console.encoding) if text else "")


def grid_of(table: Cells, console: Console) -> Table:
    """``table`` as a console shows it."""
    title = plain_text(table.title, console)
    grid = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for name, side in zip(table.header, table.alignment, strict=True):
        # names fold rather than being cut: one that cannot be told from another is worse than a second line
        widest = None if side == "right" else max(12, console.width // 4)
        grid.add_column(
            plain_text(name, console), justify=side, no_wrap=side == "right", overflow="fold", max_width=widest
        )
    for row in table.rows:
        grid.add_row(*(plain_text(cell, console) for cell in row))
    return grid


def fitting(table: Cells, last: Sequence[str], console: Console) -> tuple[Cells, list[str]]:
    """``table`` without the ``last`` of its columns, one after the other, until it fits; and what was left out."""
    shown = table
    for name in last:
        if width_of(grid_of(shown, console), console) <= console.width:
            break
        shown = with_columns(shown, [other for other in shown.header if other != name])
    return shown, [name for name in table.header if name not in shown.header]


def width_of(table: Table, console: Console) -> int:
    """Columns that ``table`` takes when nothing is squeezed."""
    return Measurement.get(console, console.options.update_width(10_000), table).maximum
