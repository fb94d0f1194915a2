"""Floor 4: what a published model tells the Hub in YAML: the head of its card, and results for leaderboards.

Both formats are built by huggingface_hub, which follows the Hub's schemas; it is imported when a card is made. What the
Hub refuses in a head is found here, before anything is sent: huggingface_hub itself asks the Hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hf_transfer.errors import printable
from hf_transfer.report.results import confidence_percent, format_interval, metric_names, metric_words

Results = Mapping[str, Any]

HUB = "https://huggingface.co"
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
# the list in the Hub's own refusal, https://github.com/huggingface/huggingface_hub/issues/4218
_LICENCES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
"""
_UNNAMED = "see-base-model"
_DIGITS = 6
_COMMIT = re.compile(r"[0-9a-f]{40}")
_URL = re.compile(r"https?://\S+")


def hub_base(results: Results) -> str | None:
    """Hub id of the checkpoint that was adapted; None for local ones, those in packages and random weights."""
    checkpoint = results["checkpoint"]
    is_hub = checkpoint["revision"] and not checkpoint["id"].startswith(("scratch:", "package:"))
    return checkpoint["id"] if is_hub else None


def head_of_card(results: Results, repo_id: str) -> str:
    """The YAML between the dashes at the top of a card."""
    from huggingface_hub import ModelCardData

    artefact, licence, base = results["artefact"], carried_licence(results), hub_base(results)
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
    return printable(data.to_yaml())


def carried_licence(results: Results) -> dict[str, str]:
    """``license``, ``license_name`` and ``license_link`` of the base, as the Hub takes them; {} where none is known.

    A licence that the Hub does not list becomes ``other`` under its name, and a link to a file beside the base one to
    the base's page: the file itself is not sent.
    """
    found = results["checkpoint"].get("licence") or {}
    name, link, base = found.get("license_name"), found.get("license_link"), hub_base(results)
    said = found.get("license") or name
    if not said:
        return {}
    licence = said.lower()
    if licence not in _LICENCES.split():
        licence, name = "other", name or re.sub(r"[^a-z0-9.]+", "-", licence).strip("-")
    if licence == "other":
        name = name or _UNNAMED
    if link and not _URL.fullmatch(link):
        link = f"{HUB}/{base}/blob/{results['checkpoint']['revision']}/{link}" if base else None
    facts = {"license": licence, "license_name": name, "license_link": link}
    return {key: value for key, value in facts.items() if value}


def _languages(results: Results) -> list[str] | None:
    """Source and target of a translation, where they are codes as the Hub has them; of columns, nothing is known."""
    data = results["config"].get("data", {})
    sides = ("source_lang", "target_lang") if results["task"] == "translation" else ()
    codes = [data.get(side) for side in sides if not data.get(f"{side}_column")]
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
            dataset_type=data.get("hub_id") or _data_name(data["name"]),
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


def _data_name(name: str) -> str:
    """``name`` as the Hub takes one that is no id."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-") or "data"


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


# ---- what the Hub refuses --------------------------------------------------------------------------------------


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


_ANY = (str.strip, "text")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
# the Hub's pattern in model-index, https://github.com/embeddings-benchmark/mteb/issues/1111
_DATA_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)
# field -> whether a text fits, what is expected; of one text or of each in a list
_FIELDS: dict[str, tuple[Callable[[str], object], str]] = {
    "license": (_LICENCES.split().__contains__, "a licence of the Hub's list, such as mit or other,"),
    "license_name": _ANY,
    "license_link": (re.compile(rf"LICENSE(\.md)?|{_URL.pattern}").fullmatch, "a URL or LICENSE"),
    "pipeline_tag": (tuple(TASK_TAGS.values()).__contains__, " or ".join(TASK_TAGS.values())),
    "base_model": (_is_hub_id, "a Hub id such as me/model"),
    "base_model_relation": (_RELATIONS.__contains__, " or ".join(_RELATIONS)),
    "datasets": (_is_hub_id, "a Hub id such as me/data"),
    "language": (re.compile("[a-z]{2,3}|code|multilingual").fullmatch, "a code of ISO 639 such as en"),
    "tags": _ANY,
    "metrics": _ANY,
}
_NEEDED = ("task_type", "dataset_type", "dataset_name", "metric_type")
_OPTIONAL = ("dataset_config", "dataset_split", "dataset_revision", "metric_name")


def head_problems(card: str) -> list[str]:
    """What the Hub would refuse in the YAML at the top of ``card``, in words; nothing is asked of it.

    After its specification (https://github.com/huggingface/hub-docs/blob/main/modelcard.md) and refusals that were
    reported. Whether what is named exists is not looked up.
    """
    from huggingface_hub import RepoCard

    head = RepoCard(card).data.to_dict()
    if not head:
        return ["there is no YAML at its top"]
    found = [problem for field in _FIELDS for problem in _misfits(field, head.get(field), *_FIELDS[field])]
    if head.get("license") == "other" and "license_name" not in head:
        found.append("license is 'other', which needs a license_name")
    if "model-index" in head:
        found += _index_problems(head["model-index"])
    return list(dict.fromkeys(found))


def _misfits(place: str, value: Any, fits: Callable[[str], object], expected: str) -> Iterator[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for each in values:
        if not (isinstance(each, str) and fits(each)):
            yield f"{place} has {each!r} where {expected} is expected"


def _index_problems(index: Any) -> Iterator[str]:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        name, scores = model_index_to_eval_results(index)
    except (KeyError, NameError, TypeError, ValueError) as error:  # NameError: of an empty list, as of 2.0
        yield f"model-index cannot be read ({type(error).__name__}: {error})"
        return
    yield from _misfits("model-index: name", [name], *_ANY)
    if not scores:
        yield "model-index has no scores"
    for score in scores:
        for field in _NEEDED + _OPTIONAL:
            value = getattr(score, field)
            fits, expected = (_DATA_ID.fullmatch, "a name such as me/data") if field == "dataset_type" else _ANY
            yield from _misfits(f"model-index: {field}", [value] if field in _NEEDED else value, fits, expected)
        value = score.metric_value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"model-index: metric_value has {value!r} where a number is expected"
