"""Floor 4: what a published model tells the Hub in YAML: the head of its card, and results for leaderboards.

Both formats are built by huggingface_hub, which follows the Hub's schemas; it is imported when a card is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_transfer.report.results import confidence_percent, format_interval, metric_names, metric_words

Results = Mapping[str, Any]

TASK_TAGS = {"classification": "text-classification", "translation": "translation"}
"""The Hub's names of the tasks."""
# ours -> the Hub's, where they differ
_METRICS = {
    "f1_macro": "f1",
    "f1_micro": "f1",
    "f1_weighted": "f1",
    "precision_macro": "precision",
    "precision_micro": "precision",
    "recall_macro": "recall",
    "recall_micro": "recall",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
_DIGITS = 6
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_base(results: Results) -> str | None:
    """Hub id of the checkpoint that was adapted; None for local ones, those in packages and random weights."""
    checkpoint = results["checkpoint"]
    is_hub = checkpoint["revision"] and not checkpoint["id"].startswith(("scratch:", "package:"))
    return checkpoint["id"] if is_hub else None


def head_of_card(results: Results, repo_id: str) -> str:
    """The YAML between the dashes at the top of a card."""
    from huggingface_hub import ModelCardData

    artefact, licence, base = results["artefact"], results["checkpoint"].get("licence") or {}, hub_base(results)
    is_adapter = artefact["kind"] == "adapter"
    library = "peft" if is_adapter else "transformers"
    if artefact["kind"] == "layer probe":  # the stock classes would open it with a random head
        library = "hf-transfer-learning"
    scores = _eval_results(results)
    data = ModelCardData(
        language=_languages(results),
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        library_name=library,
        pipeline_tag=TASK_TAGS[results["task"]],
        base_model=base,
        base_model_relation=None if base is None else "adapter" if is_adapter else "finetune",
        datasets=[results["data"]["hub_id"]] if results["data"].get("hub_id") else None,
        metrics=list(dict.fromkeys(_METRICS.get(name, name) for name in metric_names(results))),
        tags=["hf-transfer-learning", "domain-shift"],
        model_name=repo_id.rsplit("/", 1)[-1],
        eval_results=scores or None,
    )
    if not scores:  # the library takes a model's name out only where there are some
        data.pop("model_name")
    return data.to_yaml()


def _languages(results: Results) -> list[str] | None:
    """Source and target of a translation, where they are codes as the Hub has them."""
    data = results["config"].get("data", {})
    codes = [data.get("source_lang"), data.get("target_lang")] if results["task"] == "translation" else []
    known = [code for code in codes if code and re.fullmatch(r"[a-z]{2,3}", code)]
    return list(dict.fromkeys(known)) or None


def _adapted(results: Results) -> list[Mapping[str, Any]]:
    """Defined scores of the model itself."""
    return [score for score in results["scores"] if score["stage"] == "adapted" and score["value"] is not None]


def _eval_results(results: Results) -> list[Any]:
    from huggingface_hub import EvalResult

    data, task = results["data"], TASK_TAGS[results["task"]]
    return [
        EvalResult(
            task_type=task,
            dataset_type=data.get("hub_id") or re.sub(r"[^\w.-]+", "-", data["name"]).strip("-") or "data",
            dataset_name=f"{data['name']}, {score['domain']} ({score['role'].replace('_', '-')})",
            dataset_config=score["domain"],  # the only field by which the Hub tells two parts of a data set apart
            dataset_split=score["split"],
            dataset_revision=_revision(results),
            metric_type=_METRICS.get(score["metric"], score["metric"]),
            metric_name=metric_words(score["metric"]),
            metric_value=round(score["value"], _DIGITS),
        )
        for score in _adapted(results)
    ]


def _revision(results: Results) -> str | None:
    """Commit of a Hub data set, where one was pinned."""
    revision = results["config"].get("data", {}).get("revision") or ""
    return revision if results["data"].get("hub_id") and _COMMIT.fullmatch(revision) else None


def leaderboard_files(results: Results) -> dict[str, str]:
    """``.eval_results/NAME.yaml`` of a model that was scored on a Hub data set, by path; {} where it was not.

    The Hub takes these up where the data set is registered as a benchmark and has a task of that name, and passes
    over the others: the metric of the run, one entry per test domain. A lone domain is the task ``default`` (or the
    subset), as the Hub's documentation has it (https://huggingface.co/docs/hub/eval-results).
    """
    hub_id, main = results["data"].get("hub_id"), results["shift"]["metric"]
    scores = [score for score in _adapted(results) if score["metric"] == main]
    if not hub_id or not scores:
        return {}
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    alone = results["config"].get("data", {}).get("subset") or "default"
    entries = [
        EvalResultEntry(
            dataset_id=hub_id,
            task_id=alone if len(scores) == 1 else score["domain"],
            value=round(score["value"], _DIGITS),
            dataset_revision=_revision(results),
            notes=_note(results, score),
        )
        for score in scores
    ]
    name = re.sub(r"[^\w.-]+", "_", hub_id.rsplit("/", 1)[-1])
    return {f".eval_results/{name}.yaml": yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False)}


def _note(results: Results, score: Mapping[str, Any]) -> str:
    interval = format_interval(score)
    end = f", {confidence_percent(results)} interval {interval}" if interval else ""
    return f"{metric_words(score['metric'])} on {score['count']:,} examples ({score['split']}){end}"
