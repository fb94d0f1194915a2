"""Floor 4: report.md of a comparison from results.json alone, with the tables that the HTML page shows too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_transfer.report.markdown import escape, section_to_markdown
from hf_transfer.report.tables import config_yaml, make_sections, make_warnings


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
        *(section_to_markdown(section) for section in make_sections(results)),
        _settings(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _settings(results: Mapping[str, Any]) -> str:
    text = config_yaml(results)
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    return (
        "## Settings\n\n<details>\n<summary>Every setting, as a file for --config</summary>\n\n"
        f"{fence}yaml\n{text}{fence}\n\n</details>"
    )
