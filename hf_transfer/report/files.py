"""Floor 4: the files of a report: all is made before any is written, and results.json comes last, so that its presence
means that all is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_transfer.report.comparison_markdown import comparison_to_markdown
from hf_transfer.report.html import to_html
from hf_transfer.report.markdown import to_markdown
from hf_transfer.report.plots import make_figures
from hf_transfer.report.results import write_json, write_text


def write_report(output_dir: Path, results: Mapping[str, Any], joined: Mapping[str, Any] | None = None) -> None:
    """Write report.md and results.json of a run; with ``joined`` (the run as a comparison of one) report.html too."""
    _write(output_dir, to_markdown(dict(results)), results, joined)


def write_comparison(output_dir: Path, joined: Mapping[str, Any]) -> None:
    """Write report.html, its plots as files in ``figures``, report.md and results.json of a comparison."""
    _write(output_dir, comparison_to_markdown(dict(joined)), joined, joined)


def _write(output_dir: Path, markdown: str, results: Mapping[str, Any], joined: Mapping[str, Any] | None) -> None:
    """``markdown``, the plots that the data allow (alone and inside report.html; those of an earlier report go), and
    ``results``."""
    figures = make_figures(dict(joined)) if joined is not None else {}
    html = to_html(dict(joined), figures) if joined is not None else ""
    output_dir.mkdir(parents=True, exist_ok=True)
    if joined is not None:
        folder = output_dir / "figures"
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            write_text(folder / f"{name}.svg", figure.svg)
        for path in folder.glob("*.svg"):
            if path.stem not in figures:
                path.unlink()
        write_text(output_dir / "report.html", html)
    write_text(output_dir / "report.md", markdown)
    write_json(output_dir / "results.json", results)
