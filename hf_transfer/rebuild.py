"""Floor 5: a report made again from results.json files alone, also of runs that were made at different times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_transfer.checkpoint_files import is_plain_name
from hf_transfer.comparison import FinishedRun, join, run_facts
from hf_transfer.errors import InputError
from hf_transfer.report import read_results
from hf_transfer.report.files import write_comparison
from hf_transfer.report.results import shown_config

FACTS = ("strategy", "seed", "direction", "target_domain", "target_examples", "with_source")
"""What a plan says of a run, beside the name of its folder."""


def rebuild_report(folders: Sequence[str | Path], output_dir: str | Path | None = None) -> tuple[dict[str, Any], Path]:
    """Join the runs in ``folders`` and write report.html, report.md, figures and results.json.

    Args:
        folders: of runs, of comparisons (whose runs are taken), or results.json files. A comparison whose runs are
            gone is written again from its own results.json; it must then stand alone.
        output_dir: where to write; by default the one folder that was given.

    Returns:
        The joined results, and the folder.

    Raises:
        InputError: nothing to read, several folders and no ``output_dir``, runs that cannot be compared, or a folder
            whose results.json a report would replace; nothing was written.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("hf-transfer report needs one folder or more: of runs, or of a comparison.")
    for path in paths:
        if (path / "plan.json").exists() and not (path / "results.json").exists() and not _runs_inside(path):
            raise InputError(f"none of the runs planned in {path} is finished: repeat the comparison, which goes on.")
    if output_dir is None:
        if len(paths) > 1 or paths[0].is_file():
            raise InputError("several folders, or a file, need --output_dir: the folder for the joint report.")
        if not _runs_inside(paths[0]) and read_results(paths[0]).get("kind") != "comparison":
            raise InputError(
                f"{paths[0]} holds one run, whose own results.json a joint report would replace: give --output_dir."
            )
    output_dir = paths[0] if output_dir is None else Path(output_dir)
    _check_place(output_dir, paths)
    try:
        joined = _alone(paths[0]) if len(paths) == 1 and not _runs_inside(paths[0]) else None
        if joined is None:
            joined = _join(paths)
        write_comparison(output_dir, joined)
    except OSError as error:
        raise InputError(f"--output_dir {output_dir} cannot be written ({error}): choose another path.") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # the top of a results.json is checked when it is read; what was edited further down is found here
        given = ", ".join(map(str, paths))
        raise InputError(
            f"{given}: no report can be made of what its results.json holds ({type(error).__name__}: {error}): repeat "
            "the run, or give a file that nobody edited."
        ) from error
    return joined, output_dir


def _check_place(output_dir: Path, paths: Sequence[Path]) -> None:
    """Refuse a folder that holds the only copy of what a report would replace."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file, not a folder: choose another path.")
    if not (output_dir / "results.json").exists():
        return
    if read_results(output_dir).get("kind") != "comparison":
        what = "a run"
    elif _runs_inside(output_dir) and [path.resolve() for path in paths] != [output_dir.resolve()]:
        what = "a comparison with its runs"
    else:
        return
    raise InputError(f"--output_dir {output_dir} holds {what}, whose results.json this would replace: choose another.")


def _runs_inside(path: Path) -> list[Path]:
    """Folders of finished runs of a comparison."""
    return sorted(found.parent for found in path.glob("runs/*/results.json"))


def _alone(path: Path) -> dict[str, Any] | None:
    """A comparison whose runs are gone; None for a single run."""
    results = read_results(path)
    return results if results.get("kind") == "comparison" else None


@dataclass
class _Found:
    """What the folders hold, for ``join``."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    other_runs: list[dict[str, Any]] = field(default_factory=list)
    distances: dict[tuple[str, str], Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples_shown: list[Any] = field(default_factory=list)
    config: dict[str, Any] | None = None


def _join(paths: Sequence[Path]) -> dict[str, Any]:
    """The runs of all ``paths`` in the order given, those of a comparison in the order of its plan."""
    found = _Found()
    for path in paths:
        if _runs_inside(path):
            _add_comparison(found, path)
            continue
        results = read_results(path)
        if results.get("kind") == "comparison":
            raise InputError(f"{path} is a comparison without its runs, which cannot be joined with others.")
        found.runs.append(results)
        found.places.append(str(path))
        beside = dict.fromkeys(score["stage"] for score in results["scores"] if score["stage"] != "adapted")
        controls = [stage for stage in beside if stage != results["strategy"]["name"]]
        if controls:
            found.notes.append(
                f"{path.name} was scored beside {', '.join(controls)}, whose predictions it does not hold: that part "
                "is in its own report only."
            )
    there = {_key_of(results) for results in found.runs}  # what failed in one folder may be finished in another
    return join(
        found.runs,
        config=found.config or found.runs[0]["config"],
        other_runs=[facts for key, facts in _each_once(found.other_runs).items() if key not in there],
        distances=list(found.distances.values()),
        notes=found.notes,
        examples_shown=found.examples_shown,
        places=found.places,
    )


def _each_once(runs: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Runs that are not finished, by what tells them apart: failed where one failed, and lacks in another folder."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for facts in runs:
        key = _key(facts)
        if key not in found or facts["status"] != "missing":
            found[key] = facts
    return found


def _add_comparison(found: _Found, path: Path) -> None:
    """The planned runs of a comparison that are finished, and all that its own results.json knows beside them."""
    earlier = read_results(path) if (path / "results.json").exists() else None
    read = {folder.name: read_results(folder) for folder in _runs_inside(path)}
    plan = _plan_of(path)
    if plan is None:
        order = {_key(facts): place for place, facts in enumerate(earlier["runs"] if earlier else ())}
        names = sorted(read, key=lambda name: order.get(_key_of(read[name]), len(order)))
    else:
        names = [facts["name"] for facts in plan if facts["name"] in read]
        left_out = [name for name in read if name not in names]
        if left_out:
            found.notes.append(f"Not in the plan of the comparison, and left out: {', '.join(left_out)}.")
    found.runs += [read[name] for name in names]
    found.places += [str(path / "runs" / name) for name in names]
    there = {_key_of(read[name]) for name in names}
    if earlier is not None:
        found.config = found.config or earlier["config"]
        found.distances |= {(item["source"], item["target"]): item for item in earlier["distances"]}
        found.notes += earlier["notes"]
        found.examples_shown += earlier.get("examples_shown", [])
        # what was planned and is not listed had no meaning there, and a note says so
        found.other_runs += [
            facts if facts["status"] != "finished" else facts | {"status": "missing", "step": None}
            for facts in earlier["runs"]
            if _key(facts) not in there
        ]
        return
    found.config = found.config or _config_of(path)
    found.distances |= _distances_of(path)
    found.other_runs += [facts | _why_absent(path, facts["name"]) for facts in plan or () if facts["name"] not in read]


def _key(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the runs of a comparison apart; a plan may name train domains in another order than a run."""
    return *(facts[name] for name in FACTS if name != "direction"), *sorted(facts["direction"].split(", "))


def _key_of(results: Mapping[str, Any]) -> tuple[Any, ...]:
    return _key(run_facts(FinishedRun(results)))


def _plan_of(path: Path) -> list[dict[str, Any]] | None:
    """None where there is none: then what is missing cannot be known."""
    place = path / "plan.json"
    if not place.exists():
        return None
    remedy = "repeat the comparison, or remove the file to report on the runs that are there"
    try:
        plan = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{place} cannot be read ({error}): {remedy}.") from None
    if not isinstance(plan, list) or not all(isinstance(f, dict) and {"name", *FACTS} <= f.keys() for f in plan):
        raise InputError(f"{place} is not a plan of runs: {remedy}.")
    foreign = [facts["name"] for facts in plan if not is_plain_name(facts["name"])]
    if foreign:  # what went wrong in a run is read from the folder of its name
        raise InputError(f"{place} names {foreign[0]!r}, which is no folder in runs/: {remedy}.")
    return plan


def _config_of(path: Path) -> dict[str, Any] | None:
    """The config of a comparison that was stopped before its report."""
    import yaml

    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    evaluate = config.get("evaluate") if isinstance(config, dict) and "seed" in config else None
    is_whole = isinstance(evaluate, dict) and {"confidence", "resamples"} <= evaluate.keys()
    return shown_config(config) if is_whole else None


def _distances_of(path: Path) -> dict[tuple[str, str], Any]:
    """Distances that a stopped comparison measured; they are kept under what decides them, the pair coming last."""
    try:
        kept = json.loads((path / "distances.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = {tuple(name.split("\0")[-2:]): values for name, values in kept.items() if values}
    return {
        (source, target): {"source": source, "target": target} | values for (source, target), values in pairs.items()
    }


def _why_absent(path: Path, name: str) -> dict[str, Any]:
    """Failed, where an error was left behind; else missing."""
    error = path / "runs" / name / "error.txt"
    if error.exists():
        lines = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"status": "failed", "error": lines[-1] if lines else ""}
    return {"status": "missing", "error": ""}
