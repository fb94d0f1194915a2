"""Floor 4: the files of a report, written so that results.json comes last: its presence means that all is there."""

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
    write_text(output_dir / "report.md", to_markdown(dict(results)))
    if joined is not None:
        _write_html(output_dir, joined)
    write_json(output_dir / "results.json", results)


def write_comparison(output_dir: Path, joined: Mapping[str, Any]) -> None:
    """Write report.html, its plots as files in ``figures``, report.md and results.json of a comparison."""
    _write_html(output_dir, joined)
    write_text(output_dir / "report.md", comparison_to_markdown(dict(joined)))
    write_json(output_dir / "results.json", joined)


def _write_html(output_dir: Path, joined: Mapping[str, Any]) -> None:
    """The plots that the data allow, alone and inside report.html; plots of an earlier report go."""
    figures = make_figures(dict(joined))
    folder = output_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        write_text(folder / f"{name}.svg", figure.svg)
    for path in folder.glob("*.svg"):
        if path.stem not in figures:
            path.unlink()
    write_text(output_dir / "report.html", to_html(dict(joined), figures))
