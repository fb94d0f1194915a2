"""Floor 4: report.html of a comparison from results.json and its figures: one file, no script, nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from hf_transfer.report.cells import Section, Table
from hf_transfer.report.results import metric_title, one_line
from hf_transfer.report.tables import config_yaml, make_sections, make_warnings

if TYPE_CHECKING:
    from hf_transfer.report.plots import Figure

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What the page may load: nothing. Its styles stand in it, scripts and pictures from elsewhere never run or load."""

_VERDICT_CLASSES = {
    "helps": "helps",
    "hurts": "hurts",
    **dict.fromkeys(("no evidence", "too few examples", "undefined"), "unclear"),
}
_SHORT_HEADING, _SHORT_TEXT = 10, 24  # characters up to which a heading and a cell stay on one line

# Section -> beginnings of the names of the figures that it shows.
_FIGURES: dict[str, tuple[str, ...]] = {
    "scores": ("scores",),
    "ledger": ("ledger",),
    "comparisons": ("comparisons",),
    "translation": ("trade_off",),
    "matrix": ("matrix", "heat"),
    "learning-curves": ("learning",),
    "forgetting": ("forgetting",),
    "calibration": ("reliability", "risk_coverage", "calibration"),
    "distances": ("distance",),
    "robustness": ("robustness",),
    "confusion": ("confusion",),
    "training": ("training",),
}


@dataclass(frozen=True)
class _Part:
    """A section of the page: what Markdown shows too, and the figures."""

    name: str
    title: str
    paragraphs: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


def to_html(results: Mapping[str, Any], figures: Mapping[str, Figure] | None = None) -> str:
    """The whole report as one HTML page that needs no other file, no network and no script.

    Args:
        results: the contents of results.json of a comparison.
        figures: what ``make_figures`` drew from them; their SVG goes in as it is, all other text is escaped.

    Returns:
        The page, ending in a newline. Sections without data are left out.
    """
    import jinja2  # takes 0.1 s to import

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = resources.files("hf_transfer.report").joinpath("comparison.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        policy=POLICY,
        name=one_line(results["name"]),
        facts=_facts(results),
        answer=[one_line(sentence) for sentence in results["answer"]],
        warnings=make_warnings(results),
        parts=_parts(make_sections(results), tuple((figures or {}).values())),
        head=_head,
        body=_body,
        config=config_yaml(results),
        footer=_footer(results),
    )
    return page.strip() + "\n"


def _parts(sections: Sequence[Section], figures: Sequence[Figure]) -> list[_Part]:
    """Sections with their figures; a figure that belongs to no section that is shown gets one at the end."""
    parts, shown = [], set()
    for section in sections:
        mine = tuple(figure for figure in figures if figure.name.startswith(_FIGURES.get(section.name, ())))
        shown |= {figure.name for figure in mine}
        parts.append(_Part(section.name, section.title, section.paragraphs, section.tables, mine))
    rest = tuple(figure for figure in figures if figure.name not in shown)
    return [*parts, *([_Part("figures", "Further figures", (), (), rest)] if rest else [])]


# Rows are written here and not in the template, which took 2 s for the 55,000 cells of sixteen directions: here 0.1 s.


def _head(table: Table) -> str:
    """The headings of the columns, as HTML."""
    return "".join(
        f'<th scope="col" class="{_class(table, place, text)}{" word" if len(text) <= _SHORT_HEADING else ""}">'
        f"{escape(text)}</th>"
        for place, text in enumerate(table.header)
    )


def _body(table: Table) -> str:
    """The rows, as HTML; the first cell of a row is its heading."""
    lines = []
    for row in table.rows:
        cells = [
            f'<td class="{_class(table, place, text)}">{_cell(table, place, text)}</td>'
            for place, text in enumerate(row[1:], start=1)
        ]
        first = f'<th scope="row" class="{_class(table, 0, row[0])}">{_cell(table, 0, row[0])}</th>'
        lines.append(f"<tr>{first}{''.join(cells)}</tr>")
    return "\n".join(lines)


def _class(table: Table, place: int, text: str) -> str:
    if table.alignment[place] == "right":
        return "number"
    return "text short" if len(text) <= _SHORT_TEXT else "text"


def _cell(table: Table, place: int, text: str) -> str:
    """Verdicts as words with a ground; a number apart from its interval, which may stand below it."""
    if table.header[place].startswith("Verdict"):
        return f'<span class="verdict {_VERDICT_CLASSES.get(text, "")}">{escape(text)}</span>'
    number, bracket, interval = text.partition(" (")
    if bracket and table.alignment[place] == "right":
        return f'{escape(number)} <span class="interval">({escape(interval)}</span>'
    return escape(text)


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared, in a line below the title."""
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    metric = metric_title(results["metric"]).partition(" (")[0]
    facts = {
        "Checkpoint": results["checkpoint"]["id"],
        "Strategies": ", ".join(results["strategies"]),
        "Controls": ", ".join(results["controls"]),
        "Metric": f"{metric}, {'higher' if results['higher_is_better'] else 'lower'} is better",
        "Seeds" if len(results["seeds"]) > 1 else "Seed": seeds,
    }
    return [(term, one_line(fact)) for term, fact in facts.items() if fact]


def _footer(results: Mapping[str, Any]) -> str:
    version = results["environment"]["packages"].get("hf-transfer-learning")
    return f"Written by hf-transfer {one_line(version)}." if version else "Written by hf-transfer."
