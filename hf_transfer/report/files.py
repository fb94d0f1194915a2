"""Floor 4: the files of a report, written so that results.json comes last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_transfer.report.markdown import to_markdown
from hf_transfer.report.results import write_json, write_text


def write_report(output_dir: Path, results: Mapping[str, Any]) -> None:
    """Write report.md, then results.json, whose presence means that the run finished."""
    write_text(output_dir / "report.md", to_markdown(dict(results)))
    write_json(output_dir / "results.json", results)
