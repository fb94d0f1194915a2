"""Floor 4: report.md of a comparison from results.json alone, with the tables that the HTML page shows too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hf_transfer.report.markdown import escape
from hf_transfer.report.tables import Section, Table, config_yaml, make_sections, make_warnings

# A number with its unit or interval needs no escape: inside a cell a leading sign starts no list.
_PLAIN_NUMBER = re.compile(r"[-+]?[0-9][0-9A-Za-z.,%() -]*")


def comparison_to_markdown(results: Mapping[str, Any]) -> str:
    """The whole report as Markdown with GitHub tables, ending in a newline.

    Text that comes from data (domains, labels, words, errors) is escaped: it can neither break a table nor add HTML
    or links.
    """
    warnings = [f"- {escape(warning)}" for warning in make_warnings(results)]
    blocks = [
        f"# Transfer report: {escape(results['name'])}",
        "\n\n".join(escape(sentence) for sentence in results["answer"]),
        "\n".join(["**Warnings**", "", *warnings]) if warnings else "",
        *(_section(section) for section in make_sections(results)),
        _settings(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(section: Section) -> str:
    paragraphs = (escape(paragraph) for paragraph in section.paragraphs)
    return "\n\n".join([f"## {escape(section.title)}", *paragraphs, *(_table(table) for table in section.tables)])


def _table(table: Table) -> str:
    rule = ["---:" if side == "right" else "---" for side in table.alignment]
    lines = [[escape(text) for text in table.header], rule, *([_cell(text) for text in row] for row in table.rows)]
    caption = [escape(table.caption)] if table.caption else []
    return "\n\n".join([f"### {escape(table.title)}", *caption, "\n".join(_line(line) for line in lines)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text if not text or _PLAIN_NUMBER.fullmatch(text) else escape(text)


def _settings(results: Mapping[str, Any]) -> str:
    text = config_yaml(results)
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    return (
        "## Settings\n\n<details>\n<summary>Every setting, as a file for --config</summary>\n\n"
        f"{fence}yaml\n{text}{fence}\n\n</details>"
    )
