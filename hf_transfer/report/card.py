"""Floor 4: the model card (README.md on the Hub), from results.json alone.

What it says of use and limits follows from the numbers. It quotes no text of the data and names no place of the machine
that trained. Domains, labels and the like are escaped as in report.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_transfer.config import RunConfig, chosen_values, from_nested
from hf_transfer.errors import InputError
from hf_transfer.report.card_limits import limits
from hf_transfer.report.card_metadata import HUB, TASK_TAGS, carried_licence, head_of_card, hub_base
from hf_transfer.report.markdown import (
    ROLES,
    bytes_in_words,
    domains_in_words,
    escape,
    fact_table,
    github_table,
    headline,
    predicts_in_words,
    seconds_in_words,
)
from hf_transfer.report.results import (
    DomainRow,
    compared_domains,
    confidence_percent,
    cut_length,
    format_difference,
    format_interval,
    format_score,
    format_value,
    metric_names,
    metric_title,
    metric_words,
    rows_by_stage,
)
from hf_transfer.snippets import merged_code, onnx_code, own_code, stock_code

Results = Mapping[str, Any]

ALSO = {"merged": " and the merged model", "onnx": " and its ONNX form"}
"""What else is published, by its folder."""
_LOCAL = "a checkpoint that is not on the Hub"


def make_card(results: Results, repo_id: str, revision: str | None = None, picture: str | None = None) -> str:
    """README.md for the Hub: YAML and Markdown.

    Args:
        repo_id: Where the model will be, ``me/model``: what the lines that open it name.
        revision: Branch that they name; None for main.
        picture: Path, in the repository, of the plot of the scores.

    Raises:
        InputError: results of a version that did not record what opening the artefact takes.
    """
    if not results["artefact"].get("metadata"):
        raise InputError("results.json was written by an earlier version, without what a card needs: repeat the run.")
    shown = dict(results) | {"checkpoint": dict(results["checkpoint"]) | {"id": _base_name(results)}}
    sections = [
        f"# {escape(repo_id.rsplit('/', 1)[-1])}",
        headline(shown),
        _use(results, repo_id, revision),
        _scores(results, picture),
        _controls(results),
        "## Intended use and limits\n\n" + "\n".join(f"- {sentence}" for sentence in limits(results)),
        _calibration(results),
        _model(results),
        _data(results),
        _training(results),
        _licence(results),
        _citation(repo_id),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{head_of_card(results, repo_id)}\n---\n\n{body}\n"


def _base_name(results: Results) -> str:
    """The base checkpoint without any path of the machine that trained."""
    name = results["checkpoint"]["id"]
    start = "random weights in the shape of " if name.startswith("scratch:") else ""
    name = name.removeprefix("scratch:")
    if hub_base(results) or name.startswith("package:"):
        return start + name
    is_shape = start and re.fullmatch(r"marian-\w+", name)
    return start + (name if is_shape else _LOCAL)


# ---- sections --------------------------------------------------------------------------------------------------


def _use(results: Results, repo_id: str, revision: str | None) -> str:
    metadata, is_adapter = results["artefact"]["metadata"], results["artefact"]["kind"] == "adapter"
    needs_folder = revision is not None or "layer_probe" in metadata
    parts = ["## Use", _block(stock_code(metadata, is_adapter), repo_id, revision, needs_folder)]
    if "merged" in results["artefact"].get("also", ()):
        parts += ["The same as a full model, without PEFT:", _block(merged_code(metadata), repo_id, revision, True)]
    if "onnx" in results["artefact"].get("also", ()):
        parts += ["With ONNX Runtime, without torch:", _block(onnx_code(), repo_id, revision, True)]
    more = "splits long texts at sentence ends" if results["task"] == "translation" else "cuts texts as in training"
    parts += [f"With hf-transfer-learning, which also {more}:", _block(own_code(metadata), repo_id, revision, True)]
    return "\n\n".join(parts)


def _block(code: str, repo_id: str, revision: str | None, needs_folder: bool) -> str:
    return f"```python\n{_placed(code, repo_id, revision, needs_folder)}\n```"


def _placed(code: str, repo_id: str, revision: str | None, needs_folder: bool) -> str:
    """``code`` with the repository, or a folder that it is fetched to, in the place of PATH."""
    if not needs_folder:
        return code.replace('"PATH"', f'"{repo_id}"')
    at = f', revision="{revision}"' if revision is not None else ""
    lines = code.splitlines()
    first = 1 + max(number for number, line in enumerate(lines) if line.startswith(("import ", "from ")))
    fetch = ["from huggingface_hub import snapshot_download", "", f'folder = snapshot_download("{repo_id}"{at})']
    rest = "\n".join([*lines[:first], *fetch, *lines[first:]])
    return rest.replace('"PATH"', "folder").replace('"PATH/', 'f"{folder}/')


def _scores(results: Results, picture: str | None) -> str:
    """One row per domain: all metrics of the model, and the first metric of each control."""
    stages, metrics, main = rows_by_stage(results), metric_names(results), results["shift"]["metric"]
    controls = [stage for stage in stages if stage != "adapted"]
    header = ["Domain", "Role", "Examples", *(escape(metric_title(metric)) for metric in metrics)]
    header += [f"{escape(control)}: {escape(metric_title(main))}" for control in controls]
    beside = {control: {row.domain: row for row in stages[control]} for control in controls}
    cells = [
        [
            escape(row.domain),
            ROLES.get(row.role, escape(row.role)),
            f"{row.count:,}",
            *(_cell(row, metric) for metric in metrics),
            *(_cell(beside[control].get(row.domain), main) for control in controls),
        ]
        for row in stages.get("adapted", [])
    ]
    note = (
        f"On test examples that took no part in training or selection. In brackets: {confidence_percent(results)} "
        "bootstrap intervals over these examples."
    )
    parts = ["## Scores", note, github_table(header, cells, right_from=2)]
    parts += _gap(results)
    signatures = results.get("translation", {}).get("signatures", {}).items()
    if signatures:
        said = "; ".join(f"{escape(metric_words(name))} {escape(signature)}" for name, signature in signatures)
        parts.append(f"Signatures: {said}.")
    if picture:
        parts.append(f"![Scores by domain, with intervals]({picture})")
    return "\n\n".join(parts)


def _cell(row: DomainRow | None, metric: str) -> str:
    return format_score(row.scores[metric]) if row is not None and metric in row.scores else ""


def _gap(results: Results) -> list[str]:
    """The gap and the worst domain, where there are domains of both roles."""
    shift = results["shift"]
    if {row.role for row in rows_by_stage(results).get("adapted", [])} != {"in_domain", "shifted"}:
        return []
    if results["task"] == "translation":  # scores of different texts say little about each other
        return []
    home, away = (format_value(shift["metric"], shift[key]) for key in ("in_domain_mean", "shifted_mean"))
    return [
        f"Mean {escape(metric_words(shift['metric']))} in-domain {home}, shifted {away}: a gap of "
        f"{format_difference(shift['metric'], shift['gap'])} (positive where shifted domains are worse). Worst domain: "
        f"{escape(shift['worst_domain'])}."
    ]


def _controls(results: Results) -> str:
    main = results["shift"]["metric"]
    compared = results["comparisons"] if results["task"] == "translation" else compared_domains(results)
    found = [item for item in compared if item["a"] == "adapted" and item["metric"] == main]
    if not found:
        return ""
    header = ["Domain", "Against", "Difference", f"{confidence_percent(results)} interval", "Verdict"]
    cells = [
        [
            escape(item["domain"]),
            escape(item["b"]),
            format_difference(main, item["difference"]),
            format_interval({**item, "value": item["difference"]}),
            escape(item["verdict"]),
        ]
        for item in found
    ]
    words = {
        "before": "`before` is the checkpoint as it came",
        "scratch": "`scratch` the same architecture from random weights",
        "tfidf": "`tfidf` a bag of words with logistic regression",
        "majority": "`majority` the most frequent class",
    }
    present = [words[name] for name in words if any(item["b"] == name for item in found)]
    note = (
        f"Differences in {escape(metric_words(main))} on the same examples, paired; p-values are corrected for the "
        f"number of comparisons before a verdict is given. {', '.join(present)}."
    )
    return f"## Compared with controls\n\n{note}\n\n{github_table(header, cells, right_from=2, left_from=4)}"


def _calibration(results: Results) -> str:
    if not results.get("calibration"):
        return ""
    header = [
        "Role",
        "Examples",
        "Expected calibration error",
        "Brier score",
        "Temperature",
        "Error at that temperature",
    ]
    cells = [
        [
            ROLES.get(item["role"], escape(item["role"])),
            f"{item['count']:,}",
            f"{item['ece']:.3f} ({item['ece_low']:.3f} to {item['ece_high']:.3f})",
            _decimals(item["brier"]),
            _decimals(item["temperature"], 2),
            _decimals(item["ece_scaled"]),
        ]
        for item in results["calibration"]
        if item["ece"] is not None and item["ece_low"] is not None and item["ece_high"] is not None
    ]
    note = (
        "The error is the mean distance between confidence and accuracy. The temperature, by which logits are divided, "
        "was fitted on in-domain validation; the saved model does not apply it."
    )
    return f"## Calibration\n\n{note}\n\n{github_table(header, cells, right_from=1)}" if cells else ""


def _decimals(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _model(results: Results) -> str:
    checkpoint, strategy, artefact = results["checkpoint"], results["strategy"], results["artefact"]
    base, hub_id = escape(_base_name(results)), hub_base(results)
    if hub_id:
        base = f"[{escape(hub_id)}]({HUB}/{hub_id}) at commit `{checkpoint['revision']}`"
    trainable, total = strategy["trainable_parameters"], strategy["total_parameters"]
    facts = {
        "Base model": base,
        "sha256 of its weights": escape(checkpoint["sha256"] or "none (random weights)"),
        "Task": f"{TASK_TAGS[results['task']]}: {predicts_in_words(results['labels'], results['config'])}",
        "Strategy": escape(strategy["name"]),
        "Trained parameters": f"{trainable:,} of {total:,}" + (f" ({100 * trainable / total:.2f}%)" if total else ""),
        "What is published": {"adapter": "a PEFT adapter", "layer probe": "the body and a linear probe"}.get(
            artefact["kind"], "a full model"
        )
        + "".join(words for export, words in ALSO.items() if export in artefact.get("also", ())),
        "Proof": "opened in a fresh process before publishing, with the same outputs"
        if artefact["proved"]
        else "not proved to load",
    }
    return f"## Model\n\n{fact_table(facts)}"


def _data(results: Results) -> str:
    data, leaks = results["data"], results["data"]["leaks"]
    name = escape(data["name"])
    if data.get("hub_id"):
        name = f"[{escape(data['hub_id'])}]({HUB}/datasets/{data['hub_id']})"
    max_length = cut_length(results)
    cut = "Left out or split for length" if results["task"] == "translation" else "Cut for length"
    facts = {
        "Source": name,
        "Examples": ", ".join(f"{data['examples'][split]:,} {split}" for split in ("train", "validation", "test")),
        "Trained on": domains_in_words(data["train_domains"], most=30),
        "Splits": escape(data["rule"]),
        "Test examples also in train": f"{leaks['exact']:,} exactly, {leaks['near']:,} nearly"
        + (f"; their {leaks['dropped']:,} twins there were removed" if leaks["dropped"] else ""),
        cut: f"{data['truncated']:,} examples" + (f", at {max_length:,} tokens" if max_length else ""),
        "sha256 of the rows": escape(data["fingerprint"]),
    }
    return f"## Data\n\n{fact_table(facts)}"


def _training(results: Results) -> str:
    timing, selection, environment = results["timing"], results["selection"], results["environment"]
    settings = results["config"].get("train", {})
    config = from_nested(results["config"], RunConfig)
    metric, value = selection["metric"], selection.get("value")
    scored = "" if value is None else f", {escape(metric_words(metric))} {format_value(metric, value)}"
    memory = timing["peak_memory_bytes"]
    packages = environment["packages"].items()
    chosen = chosen_values(config).replace("train.", "").replace("_", " ")
    window = settings.get("window_size", "?")
    facts = {
        "Steps": f"{timing['steps']:,}, of {window} examples; step {selection['step']:,} was kept{scored}",
        "Chosen by task and strategy": escape(chosen) if chosen else "",
        "Given": _given(settings),
        "Time": f"{seconds_in_words(timing['train_seconds'])} of training on {environment['world_size']} "
        f"process{'es' * (environment['world_size'] > 1)} ({escape(environment['device'])}, "
        f"{escape(environment.get('precision', 'precision unknown'))})",
        "Peak memory": "not measured" if memory is None else bytes_in_words(memory),
        "Seed": f"{results['seed']}",
        "Versions": ", ".join(f"{escape(name)} {escape(version)}" for name, version in packages if version),
    }
    facts = {name: value for name, value in facts.items() if value}
    end = "Every setting is in [config.yaml](config.yaml), every number in [results.json](results.json)."
    return f"## Training\n\n{fact_table(facts)}\n\n{end}"


def _given(settings: Mapping[str, Any]) -> str:
    """Rates and passes that the user has set, in the words of the settings."""
    names = ("epochs", "max_steps", "learning_rate", "head_learning_rate")
    found = [f"{name.replace('_', ' ')} {settings[name]:g}" for name in names if settings.get(name) is not None]
    return ", ".join(found)


def _licence(results: Results) -> str:
    licence = results["checkpoint"].get("licence") or {}
    name = licence.get("license_name") or licence.get("license")
    if name is None:
        said = "No licence was found beside the base model where this one was trained: see the base model's own page."
        if results["checkpoint"]["id"].startswith("scratch:"):
            said = "None was chosen. The weights were trained from random ones."
    else:
        link = carried_licence(results).get("license_link")
        said = f"{escape(name)}, carried over from the base model" + (f" ({escape(link)})" if link else "") + "."
    return f"## Licence\n\n{said} The licence of the training data may bind as well."


def _citation(repo_id: str) -> str:
    key, shown = re.sub(r"\W+", "_", repo_id), repo_id.replace("_", r"\_")  # TeX stops at a bare _
    lines = [
        f"@misc{{{key},",
        f"  title = {{{shown.rsplit('/', 1)[-1]}}},",
        f"  author = {{{shown.split('/', maxsplit=1)[0]}}}," if "/" in repo_id else "",
        f"  howpublished = {{\\url{{{HUB}/{repo_id}}}}},",
        "  note = {Adapted and evaluated with hf-transfer-learning}",
        "}",
    ]
    return "## Citation\n\n```bibtex\n" + "\n".join(line for line in lines if line) + "\n```"
