"""Floor 5: a report made again from results.json files alone, also of runs that were made at different times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_transfer.comparison import join
from hf_transfer.errors import InputError
from hf_transfer.report import read_results
from hf_transfer.report.files import write_comparison


def rebuild_report(folders: Sequence[str | Path], output_dir: str | Path | None = None) -> tuple[dict[str, Any], Path]:
    """Join the runs in ``folders`` and write report.html, report.md, figures and results.json.

    Args:
        folders: of runs, of comparisons (whose runs are taken), or results.json files. A comparison whose runs are
            gone is written again from its own results.json; it must then stand alone.
        output_dir: where to write; by default the one folder that was given.

    Returns:
        The joined results, and the folder.

    Raises:
        InputError: nothing to read, several folders and no ``output_dir``, or runs that cannot be compared.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("hf-transfer report needs one folder or more: of runs, or of a comparison.")
    if output_dir is None:
        if len(paths) > 1 or not paths[0].is_dir():
            raise InputError("several folders, or a file, need --output_dir: the folder for the joint report.")
        if not _runs_inside(paths[0]) and read_results(paths[0]).get("kind") != "comparison":
            raise InputError(
                f"{paths[0]} holds one run, whose own results.json a joint report would replace: give --output_dir."
            )
        output_dir = paths[0]
    output_dir = Path(output_dir)
    joined = _alone(paths[0]) if len(paths) == 1 and not _runs_inside(paths[0]) else None
    if joined is None:
        joined = _join(paths)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_comparison(output_dir, joined)
    return joined, output_dir


def _runs_inside(path: Path) -> list[Path]:
    """Folders of finished runs of a comparison."""
    return sorted(found.parent for found in path.glob("runs/*/results.json"))


def _alone(path: Path) -> dict[str, Any] | None:
    """A comparison whose runs are gone; None for a single run."""
    results = read_results(path)
    return results if results.get("kind") == "comparison" else None


def _join(paths: Sequence[Path]) -> dict[str, Any]:
    """The runs of all ``paths`` in the order given, those of a comparison in the order of its plan."""
    read: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    config: dict[str, Any] | None = None
    distances: dict[tuple[str, str], Any] = {}
    for path in paths:
        inside = _runs_inside(path) if path.is_dir() else []
        if not inside:
            results = read_results(path)
            if results.get("kind") == "comparison":
                raise InputError(f"{path} is a comparison without its runs, which cannot be joined with others.")
            read.append(results)
            continue
        plan = _plan_of(path)
        order = {facts["name"]: place for place, facts in enumerate(plan)}
        inside.sort(key=lambda folder: order.get(folder.name, len(order)))
        read += [read_results(folder) for folder in inside]
        finished = {folder.name for folder in inside}
        other += [facts | _why_absent(path, facts["name"]) for facts in plan if facts["name"] not in finished]
        if (path / "results.json").exists():
            earlier = read_results(path)
            config = config or earlier["config"]
            distances |= {(item["source"], item["target"]): item for item in earlier["distances"]}
    if not read:
        raise InputError("none of the folders holds a finished run (a results.json).")
    return join(read, config=config or read[0]["config"], other_runs=other, distances=list(distances.values()))


def _plan_of(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((path / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'plan.json'} cannot be read ({error}): repeat the comparison.") from None


def _why_absent(path: Path, name: str) -> dict[str, str]:
    """Failed, where an error was left behind; else missing."""
    error = path / "runs" / name / "error.txt"
    if error.exists():
        lines = error.read_text(encoding="utf-8").strip().splitlines()
        return {"status": "failed", "error": lines[-1] if lines else ""}
    return {"status": "missing", "error": ""}
