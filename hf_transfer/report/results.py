"""Floor 4: results.json: built from the records, written whole or not at all, read back with a check.

The last part says how a score is written for people, so that report.md and the console cannot disagree.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import numbers
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from hf_transfer.errors import InputError, printable
from hf_transfer.records import (
    Artefact,
    DomainSplits,
    DomainTable,
    LabelSpace,
    Pretrained,
    ShiftReport,
    TrainableSummary,
    TrainResult,
)
from hf_transfer.version import __version__

SCHEMA = "hf-transfer/results/1"
MEANS = ("in-domain", "shifted domains")
"""Names that stand for a mean over domains where a comparison names its domain."""
CURVE_POINTS = 200
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "scikit-learn")

# Top-level keys that report, card and comparisons read; a file without one of them was not written by a run.
_OF_ALL: dict[str, type] = {
    **dict.fromkeys(("checkpoint", "selection", "data", "environment", "config"), dict),
    **dict.fromkeys(("scores", "comparisons", "notes"), list),
    "task": str,
    "seed": int,
}
_REQUIRED: dict[str, type] = {
    **_OF_ALL,
    **dict.fromkeys(("strategy", "labels", "shift", "timing", "artefact"), dict),
    "history": list,
}
_OF_COMPARISONS: dict[str, type] = {
    **_OF_ALL,
    **dict.fromkeys(("strategies", "controls", "directions", "summary", "cost", "runs", "answer", "distances"), list),
    "metric": str,
}
# Config fields that may hold a folder of the user's machine.
_PLACES = (
    *(("data", "source"), ("data", "general_source"), ("model", "checkpoint"), ("train", "resume")),
    (None, "output_dir"),
)


def build_results(
    *,
    task: str,
    seed: int,
    strategy: str,
    config: Mapping[str, Any],
    table: DomainTable,
    splits: DomainSplits,
    truncated: int,
    max_length: int | None,
    labels: LabelSpace,
    pretrained: Pretrained | None,
    trainable: TrainableSummary,
    trained: TrainResult,
    shift: ShiftReport,
    evaluate_seconds: float,
    peak_memory_bytes: int | None,
    artefact: Artefact,
    predict_seconds: float = math.nan,
    scoring_padding: float = math.nan,
    environment: Mapping[str, Any],
    notes: Iterable[str] = (),
    examples: Mapping[str, Any] | None = None,
    calibration: Iterable[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    translation: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of results.json: plain dicts, lists, strings and finite numbers; None for nan and infinity.

    ``config`` is the resolved config as nested dicts (``dataclasses.asdict``), ``truncated`` counts the examples
    cut at ``max_length`` tokens (None where nothing is cut), which is ``data.max_length`` or what tokenizer and
    checkpoint take, if that is less; ``environment`` comes from ``describe_environment``, ``examples`` and
    ``calibration`` from report/examples.py, ``training`` from ``describe_training``, ``translation`` from
    ``describe_translation``. An absolute path in ``config`` or in the checkpoint's id is recorded by its last
    component, also where a note mentions it.
    """
    shown_config = plain(config)
    shown_paths = _shorten_places(shown_config)
    all_notes = dict.fromkeys((*table.notes, *splits.notes, *notes))  # each once, whoever handed it on
    results = {
        "schema": SCHEMA,
        "task": task,
        "seed": seed,
        "checkpoint": _checkpoint_facts(pretrained),
        "strategy": {
            "name": strategy,
            "trainable_parameters": trainable.trainable,
            "total_parameters": trainable.total,
        },
        "selection": dataclasses.asdict(trained.selection),
        "data": _data_facts(table, splits, truncated, max_length),
        "labels": {"problem": labels.problem, "names": labels.names},
        "scores": [dataclasses.asdict(score) for score in shift.scores],
        "comparisons": shift.comparisons,
        "shift": _shift_facts(shift),
        "timing": _timing_facts(trained, predict_seconds, evaluate_seconds, scoring_padding, peak_memory_bytes, splits),
        "artefact": _artefact_facts(artefact),
        "environment": environment,
        "notes": [_replace_all(note, shown_paths) for note in all_notes],
        "config": shown_config,
        "history": trained.history,
        "training": training or {},
        "calibration": list(calibration),
        "examples": examples or {},
    }
    if translation:
        results["translation"] = translation
    if layers:
        results["layers"] = layers
    return plain(results)


def describe_environment(world_size: int, device: str, precision: str) -> dict[str, Any]:
    """What a run ran on: packages with their versions (None where one is not installed), never a host name."""
    return {
        "world_size": world_size,
        "device": device,
        "precision": precision,
        "packages": {"hf-transfer-learning": __version__, **{name: _installed(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def shown_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config as plain nested dicts, absolute paths shortened: what a report may show to others."""
    shown = plain(config)
    _shorten_places(shown)
    return shown


def shown_text(text: str, config: Mapping[str, Any]) -> str:
    """``text`` with the absolute paths of ``config`` shortened as ``shown_config`` does."""
    return _replace_all(text, _shorten_places(plain(config)))


def describe_training(log: Path, history: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Loss and validation by step, for curves; the loss as means over at most ``CURVE_POINTS`` stretches of the log.

    No loss where the log is gone, because somebody emptied the folder under the run.
    """
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    records = [json.loads(line) for line in text.splitlines()]
    stretch = max(1, math.ceil(len(records) / CURVE_POINTS))
    steps, losses = [], []
    for start in range(0, len(records), stretch):
        part = [record["loss"] for record in records[start : start + stretch]]
        steps.append(records[min(start + stretch, len(records)) - 1]["step"])
        losses.append(sum(part) / len(part))
    history = list(history)
    return {
        "steps": steps,
        "loss": losses,
        "validation_steps": [record["step"] for record in history],
        "validation": [record["value"] for record in history],
    }


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: tuples and arrays become lists, nan and infinities None, keys strings.

    Raises:
        TypeError: for anything that has no such form (a Path, a record).
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, whose 0-d values give a Python scalar
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON: convert it to text or numbers first.")


def write_json(path: str | Path, obj: Any) -> None:
    """Write ``obj`` as strict JSON, null for nan, all or nothing as ``write_text`` does."""
    write_text(path, _json(plain(obj)) + "\n")


def _json(value: Any, margin: str = "") -> str:
    """Indented by two spaces; a list of numbers, which may be thousands long, on one line."""
    inside = margin + "  "
    if isinstance(value, dict) and value:
        parts = [f"{inside}{json.dumps(key, ensure_ascii=False)}: {_json(item, inside)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list | str) for item in value):
        return "[\n" + ",\n".join(inside + _json(item, inside) for item in value) + f"\n{margin}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, so that ``path`` holds the old contents or all of the new ones, never a part."""
    path = Path(path)
    # in the same folder, because a rename is atomic only inside one file system
    half_written = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with half_written.open("wb") as file:
            # a lone surrogate (a file name of broken bytes) has no UTF-8; its backslash form is JSON's own escape
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        half_written.replace(path)
    finally:
        half_written.unlink(missing_ok=True)


def read_results(path: str | Path) -> dict[str, Any]:
    """The results of a finished run, from its results.json or from the output folder that holds it.

    Raises:
        InputError: the file is missing, is not strict JSON, or is not of this schema.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    remedy = "give the output folder of a finished run, or its results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {remedy}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, not finite, or nested beyond reading
        raise InputError(f"{path} is not JSON ({error}): {remedy}.") from None
    found = results.get("schema") if isinstance(results, dict) else None
    if found != SCHEMA:
        raise InputError(f"{path} must have the schema {SCHEMA!r}, found {found!r}: {remedy}, of this version.")
    required = _OF_COMPARISONS if results.get("kind") == "comparison" else _REQUIRED
    broken = [key for key, kind in required.items() if not isinstance(results.get(key), kind)]
    if broken:
        raise InputError(f"{path} lacks {', '.join(broken)}: {remedy}; if it was edited, repeat the run.")
    return results


# ---- how a score is written for people -------------------------------------------------------------------------


@dataclass(frozen=True)
class DomainRow:
    """All scores of one stage on one domain: a row of a table."""

    domain: str
    role: str
    split: str
    count: int
    scores: dict[str, dict[str, Any]]
    """Score records of results.json by metric."""


def rows_by_stage(results: Mapping[str, Any]) -> dict[str, list[DomainRow]]:
    """Rows of every stage, the adapted model first, in the order in which the domains were scored."""
    stages: dict[str, dict[tuple[str, str], DomainRow]] = {"adapted": {}}
    for score in results["scores"]:
        rows = stages.setdefault(score["stage"], {})
        empty = DomainRow(score["domain"], score["role"], score["split"], score["count"], {})
        rows.setdefault((score["domain"], score["split"]), empty).scores[score["metric"]] = score
    return {stage: list(rows.values()) for stage, rows in stages.items() if rows}


def metric_names(results: Mapping[str, Any]) -> list[str]:
    """Metrics that were scored, the one of the gap first."""
    found = [score["metric"] for score in results["scores"]]
    return list(dict.fromkeys(sorted(found, key=lambda metric: metric != results["shift"]["metric"])))


def confidence_percent(results: Mapping[str, Any]) -> str:
    """Level of the intervals, as in ``95%``."""
    return f"{100 * results['config']['evaluate']['confidence']:g}%"


def is_fraction(metric: str) -> bool:
    """Whether the metric is a share from 0 to 1 that people read as a percentage (f1_macro, say, but not log_loss)."""
    return not {"accuracy", "f1", "precision", "recall", "match"}.isdisjoint(metric.split("_"))


def in_points(metric: str) -> bool:
    """Whether the metric runs from 0 to 100, or beyond: those of translations."""
    return metric in ("bleu", "chrf", "ter", "comet")  # importing the table of all metrics takes a second


_METRIC_WORDS = {
    "f1": "F1",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "f1_weighted": "weighted F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "bleu": "BLEU",
    "chrf": "chrF++",
    "ter": "TER",
    "comet": "COMET",
}


def metric_words(metric: str) -> str:
    """The metric as people write it: ``macro F1`` for ``f1_macro``."""
    return _METRIC_WORDS.get(metric, metric.replace("_", " "))


def metric_title(metric: str) -> str:
    """The metric at the head of a column: its name in settings, or what papers call it."""
    return metric_words(metric) + " (lower is better)" * (metric == "ter") if in_points(metric) else metric


def compared_domains(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Comparisons of a run with its controls on single domains: what a table by domain holds, without the means."""
    domains = results["data"]["test_domains"]
    return [item for item in results["comparisons"] if item["domain"] not in MEANS or item["domain"] in domains]


def cut_length(results: Mapping[str, Any]) -> int | None:
    """Tokens at which examples were cut; None where none is cut. Files that do not hold it: what was asked for."""
    asked_for = results["config"].get("data", {}).get("max_length")
    length: int | None = results["data"].get("max_length", asked_for)
    return length


def format_value(metric: str, value: float | None) -> str:
    """``87.5%`` for fractions, ``0.412`` or ``27.3`` for the rest, ``undefined`` for None; of points one decimal."""
    if value is None:
        return "undefined"
    return _number(metric, value, value) + ("%" if is_fraction(metric) else "")


def format_interval(score: Mapping[str, Any]) -> str:
    """``69.0 to 83.0`` in the unit and precision of the score's value; "" where there is no interval."""
    if score["value"] is None or score["low"] is None or score["high"] is None:
        return ""
    low, high = (_number(score["metric"], score[end], score["value"]) for end in ("low", "high"))
    return f"{low} to {high}"


def format_score(score: Mapping[str, Any]) -> str:
    """Value and interval: ``76.0% (69.0 to 83.0)``."""
    value, interval = format_value(score["metric"], score["value"]), format_interval(score)
    return f"{value} ({interval})" if interval else value


def format_difference(metric: str, difference: float | None) -> str:
    """``7.4 points`` between two fractions or two BLEU scores, ``0.074`` between two of another metric."""
    if difference is None:
        return "undefined"
    text = _number(metric, difference, difference)
    return f"{text} points" if is_fraction(metric) or in_points(metric) else text


def format_amount(metric: str, difference: float | None) -> str:
    """A difference by which a score rises or falls: ``12.3 BLEU`` of translations, ``7.4 points`` of fractions."""
    text = format_difference(metric, difference)
    return text.replace(" points", f" {metric_words(metric)}") if in_points(metric) and metric != "ter" else text


def one_line(text: str) -> str:
    """Text from data on one line; what could steer a terminal or turn the writing direction shows as U+FFFD."""
    line = re.sub(r"[^\S ]+", " ", text).strip()  # spaces stay: notes align their columns with them
    return printable(line) or "(empty)"


def _number(metric: str, value: float, like: float) -> str:
    """``value`` with as many decimals as ``like`` needs, so that the ends of an interval match their middle."""
    if is_fraction(metric):
        value, decimals = 100 * value, 1
    elif in_points(metric):
        decimals = 1
    elif 0 < abs(like) < 0.0005:
        return f"{value:.1e}"
    else:
        decimals = 3 if abs(like) < 10 else 1
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0 turns -0.0 into 0.0


# ---- parts of results.json -------------------------------------------------------------------------------------


def _checkpoint_facts(pretrained: Pretrained | None) -> dict[str, Any]:
    if pretrained is None:  # a control without a transformer
        return {"id": "", "revision": "", "sha256": "", "newly_initialised": []}
    return {
        "id": _shortened(pretrained.checkpoint_id),
        "revision": pretrained.revision,
        "sha256": pretrained.sha256,
        "newly_initialised": pretrained.newly_initialised,
        "licence": pretrained.licence,
    }


def _shift_facts(shift: ShiftReport) -> dict[str, Any]:
    return {
        "metric": shift.metric,
        "in_domain_mean": shift.in_domain_mean,
        "shifted_mean": shift.shifted_mean,
        "gap": shift.gap,
        "worst_domain": shift.worst_domain,
    }


def _artefact_facts(artefact: Artefact) -> dict[str, Any]:
    facts = dataclasses.asdict(artefact)
    if "base_checkpoint" in facts["metadata"]:
        facts["metadata"]["base_checkpoint"] = _shortened(facts["metadata"]["base_checkpoint"])
    return facts


def _data_facts(table: DomainTable, splits: DomainSplits, truncated: int, max_length: int | None) -> dict[str, Any]:
    test_counts = {domain: len(rows) for domain, rows in splits.test.items()}
    return {
        "name": _shortened(table.name),
        "hub_id": table.hub_id,
        "fingerprint": table.fingerprint,
        "examples": {
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": sum(test_counts.values()),
        },
        "train_domains": splits.train_domains,
        "test_domains": test_counts,
        "leaks": dataclasses.asdict(splits.leaks),
        "rule": splits.rule,
        "truncated": truncated,
        "max_length": max_length,
    }


def _timing_facts(
    trained: TrainResult,
    predict_seconds: float,
    evaluate_seconds: float,
    scoring_padding: float,
    peak_memory_bytes: int | None,
    splits: DomainSplits,
) -> dict[str, Any]:
    test_count = sum(len(rows) for rows in splits.test.values())
    return {
        "train_seconds": trained.train_seconds,
        "evaluate_seconds": evaluate_seconds,
        "steps": trained.steps,
        "skipped_steps": trained.skipped_steps,
        "stopped_early": trained.stopped_early,
        "examples": trained.examples,
        "tokens": trained.tokens,
        "padding_tokens": trained.padding_tokens,
        "tokens_per_micro_batch": trained.tokens_per_micro_batch,
        "examples_per_second": _ratio(trained.examples, trained.train_seconds),
        "tokens_per_second": _ratio(trained.tokens, trained.train_seconds),
        "predict_examples_per_second": _ratio(test_count, predict_seconds),
        "padding_fraction": _ratio(trained.padding_tokens, trained.tokens + trained.padding_tokens),
        "scoring_padding_fraction": scoring_padding,
        "peak_memory_bytes": peak_memory_bytes,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _shortened(place: str) -> str:
    """The last component of an absolute path (``scratch:`` kept in front), of two aligned files each; any other text
    as it is."""
    prefix = "scratch:" if place.startswith("scratch:") else ""
    path = PureWindowsPath(place.removeprefix(prefix))  # takes both kinds of slash and drive letters
    absolute = str(path).startswith(("\\", "~")) or path.is_absolute()
    first, comma, second = place.partition(",")
    if comma and (not absolute or _shortened(second.strip()) != second.strip()):  # two files, not a comma in a name
        return ",".join(_shortened(side.strip()) for side in (first, second))
    return prefix + path.name if absolute and path.name else place


def _shorten_places(config: dict[str, Any]) -> dict[str, str]:
    """Shorten the paths in ``config`` in place; return every absolute spelling of them with what is shown instead."""
    spellings: dict[str, str] = {}
    for section_name, name in _PLACES:
        section = config if section_name is None else config.get(section_name, {})
        given = section.get(name)
        if not given:
            continue
        section[name] = _shortened(given)
        for place in {given, *map(str.strip, given.split(","))} - {""}:
            path = str(Path(place.removeprefix("scratch:")))  # without a slash at the end
            shown = _shortened(path)
            absolute = (Path(path).expanduser() if path.startswith("~/") else Path(path)).absolute()
            spellings.update(dict.fromkeys((path, str(absolute), str(absolute.resolve())), shown))
    # the root itself is left alone: it would match every slash of a note
    return {old: shown for old, shown in spellings.items() if old != shown and old.strip("/")}


def _replace_all(text: str, replacements: Mapping[str, str]) -> str:
    for old in sorted(replacements, key=len, reverse=True):  # a folder after what lies in it
        text = text.replace(old, replacements[old])
    return text
