"""Floor 4: report.md from results.json alone, so that it can be written again long after the run.

Text that comes from data (domains, labels, notes) is escaped: it can neither break a table nor add HTML or links.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_transfer.report.cells import Section, Table
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
    one_line,
    rows_by_stage,
)
from hf_transfer.report.translation_tables import (
    LEFT_OUT,
    as_comparison,
    languages,
    ledger_in_words,
    make_ledger,
    make_translation,
)

Results = Mapping[str, Any]

_STRATEGIES = {
    "full": "Full fine-tuning of",
    "freeze": "Fine-tuning the unfrozen layers of",
    "lora": "LoRA fine-tuning of",
    "probe": "A head trained on the frozen features of",
    "mixed": "Fine-tuning on mixed text of",
    "interpolated": "Fine-tuning and weight interpolation of",
    "knn": "Without training, kNN-MT with",
}
_RULES = {
    "in_domain_validation": "the best on the validation split of the train domains",
    "last": "the last one, without looking at any score",
    "nothing is chosen": "nothing is trained",
}
_PROBLEMS = {"single_label": "one class per example", "multi_label": "any number of classes per example"}
ROLES = {"in_domain": "in-domain", "shifted": "shifted"}
# A number with its unit or interval needs no escape: inside a cell a leading sign starts no list.
_PLAIN_NUMBER = re.compile(r"[-+]?[0-9][0-9A-Za-z.,%() -]*")
_SHOWN_LABELS = 30  # beyond that a list of labels is longer than the report around it


def to_markdown(results: Results) -> str:
    """The whole report as Markdown with GitHub tables, ending in a newline."""
    sections = [
        f"# Transfer report: {escape(results['data']['name'])}",
        headline(results),
        _scores(results),
        *_translation(results),
        _comparisons(results),
        _strategy(results),
        _selection(results),
        _data_sheet(results),
        _cost(results),
        _artefact(results),
        _environment(results),
        _config(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def escape(text: Any) -> str:
    """``text`` on one line as Markdown and HTML that show it literally, also inside a table cell.

    Character references rather than backslashes: they mean the same in cells, in HTML and in plain paragraphs.
    """
    line = one_line(str(text))
    # an underscore between two word characters is never emphasis, and names are full of them
    special = r"[&<>|\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])|^[-+=#]"
    line = re.sub(special, lambda found: f"&#{ord(found.group())};", line)
    # a number with a point or bracket starts a list only where a space follows: versions stay readable
    return re.sub(r"^(\d{1,9})([.)])(?=\s|$)", lambda found: f"{found[1]}&#{ord(found[2])};", line)


# ---- the answer ------------------------------------------------------------------------------------------------


def headline(results: Results) -> str:
    """The answer in two or three sentences: scores at home and elsewhere, the gap, and what the controls say."""
    rows = rows_by_stage(results).get("adapted", [])
    own = [row for row in rows if row.role == "in_domain"]
    others = [row for row in rows if row.role == "shifted"]
    metric, shift = results["shift"]["metric"], results["shift"]
    is_translation = results["labels"]["problem"] == "translation"
    strategy, name = results["strategy"]["name"], escape(metric_words(metric))
    how = _STRATEGIES.get(strategy, f"The strategy {escape(strategy)} on")
    start = (
        f"{how} {escape(results['checkpoint']['id'])} on {domains_in_words(results['data']['train_domains'])} reaches"
    )
    in_domain, shifted = (format_value(metric, shift[key]) for key in ("in_domain_mean", "shifted_mean"))
    at_home = f"{in_domain} {name} {_where(own, 'in its own domains (mean of {})')}"
    if own and others:
        elsewhere = f"{shifted} {_where(others, 'on {} others')}"
        end = "" if is_translation else f": {_gap(results)}{_worst(results, rows)}"
        sentences = [f"{start} {at_home} and {elsewhere}{end}."]
    elif own:
        sentences = [
            f"{start} {at_home}{_worst(results, rows)}.",
            _OTHERS_UNKNOWN if is_translation else "No shifted domain was scored, so a gap does not apply.",
        ]
    elif others:
        sentences = [
            f"{start} {shifted} {name} {_where(others, 'on {} other domains (mean)')}{_worst(results, rows)}.",
            "None of its own domains was scored, so a gap does not apply.",
        ]
    else:
        sentences = ["The adapted model was scored on no domain."]
    return " ".join([*sentences, *_ledger(results), *_verdicts(results)])


_OTHERS_UNKNOWN = "No other domain was scored: nothing is known of what was forgotten."


def _ledger(results: Results) -> list[str]:
    """What a run of translation gained and forgot, against the checkpoint as it comes."""
    found = (" and ".join(ledger_in_words(row)) for row in results.get("ledger") or ())
    return [f"Against the checkpoint as it comes it {escape(words)}." for words in found]


def _where(rows: Sequence[DomainRow], many: str) -> str:
    return f"on {escape(rows[0].domain)}" if len(rows) == 1 else many.format(len(rows))


def _gap(results: Results) -> str:
    metric, gap = results["shift"]["metric"], results["shift"]["gap"]
    if gap is None:
        return "the gap is undefined"
    if gap < 0:
        return f"no loss, the shifted side is better by {format_difference(metric, -gap)}"
    return f"a gap of {format_difference(metric, gap)}"


def _worst(results: Results, rows: Sequence[DomainRow]) -> str:
    """The worst domain with its interval, as the end of a sentence; of a lone domain only what the mean left out."""
    metric = results["shift"]["metric"]
    for row in rows:
        score = row.scores.get(metric)
        if row.domain == results["shift"]["worst_domain"] and score:
            interval = format_interval(score)
            facts = f"{confidence_percent(results)} interval {interval}, " if interval else ""
            if len(rows) == 1:
                return f" ({facts}{row.count:,} examples)"
            value = format_value(metric, score["value"])
            return f", worst on {escape(row.domain)} ({value}, {facts}{row.count:,} examples)"
    return ""


def _verdicts(results: Results) -> list[str]:
    """One sentence per control: on how many domains the adapted model beats it beyond noise."""
    metric = results["shift"]["metric"]
    mine = [
        item
        for item in compared_domains(results)
        if item["a"] == "adapted"
        and item["metric"] == metric
        and not (item["b"] == "before" and results.get("ledger"))  # which has said it
    ]
    sentences = []
    for control in dict.fromkeys(item["b"] for item in mine):
        found = [item["verdict"] for item in mine if item["b"] == control]
        helps, hurts, unclear, few, open_ = map(
            found.count, ("helps", "hurts", "no evidence", "too few examples", "undefined")
        )
        sentences.append(
            f"Compared with {escape(control)} it helps on {helps} of {len(found)} domains and hurts on {hurts}"
            + (f"; on {unclear} there is no evidence either way" if unclear else "")
            + (f"; on {few} there are too few test examples" if few else "")
            + (f"; on {open_} the difference is undefined." if open_ else ".")
        )
    return sentences


# ---- sections --------------------------------------------------------------------------------------------------


def _scores(results: Results) -> str:
    metrics, blocks = metric_names(results), []
    for stage, rows in rows_by_stage(results).items():
        header = ["Domain", "Role", "Split", "Examples", *(escape(metric_title(metric)) for metric in metrics)]
        cells = [
            [
                escape(row.domain),
                ROLES.get(row.role, escape(row.role)),
                escape(row.split),
                f"{row.count:,}",
                *(format_score(row.scores[metric]) if metric in row.scores else "" for metric in metrics),
            ]
            for row in rows
        ]
        title = "Adapted model" if stage == "adapted" else f"Control: {escape(stage)}"
        blocks.append(f"### {title}\n\n{github_table(header, cells, right_from=3)}")
    shift = results["shift"]
    values = (format_value(shift["metric"], shift[key]) for key in ("in_domain_mean", "shifted_mean"))
    means = "| Mean in-domain | Mean shifted | Gap |\n| ---: | ---: | ---: |\n" + (
        f"| {' | '.join(values)} | {format_difference(shift['metric'], shift['gap'])} |"
    )
    note = (
        f"In brackets: {confidence_percent(results)} bootstrap intervals over examples, of one run with seed "
        f"{results['seed']}."
    )
    is_translation = results["labels"]["problem"] == "translation"
    if not is_translation:
        note += f" The gap, in {escape(shift['metric'])}, is positive where shifted domains score worse."
    roles = {row.role for row in rows_by_stage(results).get("adapted", [])}
    has_both = roles == {"in_domain", "shifted"} and not is_translation
    return "\n\n".join(["## Scores", note, *blocks, *(["### Gap", means] if has_both else [])])


def _comparisons(results: Results) -> str:
    is_translation = results["labels"]["problem"] == "translation"
    found = results["comparisons"] if is_translation else compared_domains(results)
    if not found:
        return ""
    header = ["Domain", "Metric", "Compared", "Difference", f"{confidence_percent(results)} interval"]
    header += ["p", "Adjusted p", "Verdict"]
    cells = [
        [
            escape(item["domain"]),
            escape(metric_title(item["metric"])),
            f"{escape(item['a'])} against {escape(item['b'])}",
            format_difference(item["metric"], item["difference"]),
            format_interval({**item, "value": item["difference"]}),
            "undefined" if item["p_value"] is None else f"{item['p_value']:.3g}",
            "" if item.get("p_adjusted") is None else f"{item['p_adjusted']:.3g}",
            escape(item["verdict"]),
        ]
        for item in found
    ]
    table = github_table(header, cells, right_from=3, left_from=7)
    return f"## Comparisons\n\n{table}\n\nVerdicts go by p as adjusted by Holm's method for the number of comparisons."


def _translation(results: Results) -> list[str]:
    """The sections that only a run of translation has."""
    if results["labels"]["problem"] != "translation":
        return []
    found = as_comparison(results)
    return [section_to_markdown(section) for section in (make_ledger(found), make_translation(found)) if section.tables]


def _strategy(results: Results) -> str:
    checkpoint, strategy = results["checkpoint"], results["strategy"]
    trainable, total = strategy["trainable_parameters"], strategy["total_parameters"]
    share = f" ({100 * trainable / total:.2f}%)" if total else ""
    facts = {
        "Checkpoint": escape(checkpoint["id"]),
        "Revision": escape(checkpoint["revision"] or "none (local files)"),
        "sha256 of the weights": escape(checkpoint["sha256"] or "none (random weights)"),
        "Newly initialised parameters": f"{len(checkpoint.get('newly_initialised', []))}",
        "Strategy": escape(strategy["name"]),
        "Trainable parameters": f"{trainable:,} of {total:,}{share}",
    }
    return f"## Model and strategy\n\n{fact_table(facts)}"


def _selection(results: Results) -> str:
    selection, steps = results["selection"], results["timing"]["steps"]
    rule = _RULES.get(selection["rule"], f"by the rule {escape(selection['rule'])}")
    probe = results.get("layers", {}).get("probe")
    value = selection.get("value")
    metric = selection["metric"]
    scored = f", {escape(metric_title(metric))} {format_value(metric, value)}" if value is not None else ""
    kept = f"Step {selection['step']:,} of {steps:,} was kept"
    if probe:  # layers and regularisation are what was chosen
        kept = f"Of the states of {probe['of']} layers the probe reads {escape(probe['layers'])}"
    return f"## Selection\n\n{kept}{scored}: {rule}. Test data took no part in the choice."


def _data_sheet(results: Results) -> str:
    data, leaks = results["data"], results["data"]["leaks"]
    counts = (f"{data['examples'][split]:,} {split}" for split in ("train", "validation", "test"))
    max_length = cut_length(results)
    cut = LEFT_OUT if results["labels"]["problem"] == "translation" else "Cut for length"
    facts = {
        "Source": escape(data["name"]),
        "sha256 of the rows": escape(data["fingerprint"]),
        "Examples": ", ".join(counts),
        "Trained on": domains_in_words(data["train_domains"], most=_SHOWN_LABELS),
        "Predicts": predicts_in_words(results["labels"], results["config"]),
        "Splits": escape(data["rule"]),
        cut: f"{data['truncated']:,} examples" + (f", at {max_length:,} tokens" if max_length else ""),
        "Test examples also in train": f"{leaks['exact']:,} exactly, {leaks['near']:,} nearly; "
        f"for {leaks['across_domains']:,} of them the twin is in another domain",
        "Repeated inside train": f"{leaks['inside_train']:,}",
        "Dropped as leaks": f"{leaks['dropped']:,}",
    }
    notes = "\n".join(f"- {escape(note)}" for note in results["notes"])
    return f"## Data\n\n{fact_table(facts)}" + (f"\n\nNotes:\n\n{notes}" if notes else "")


def predicts_in_words(labels: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if labels["problem"] == "regression":
        return "a number"
    if labels["problem"] == "translation":
        return escape(languages(config))
    names = [escape(name) for name in labels["names"]]
    more = f" and {len(names) - _SHOWN_LABELS} more" if len(names) > _SHOWN_LABELS else ""
    kind = _PROBLEMS.get(labels["problem"], escape(labels["problem"]))
    return f"{kind}, of {len(names)}: {', '.join(names[:_SHOWN_LABELS])}{more}"


def _cost(results: Results) -> str:
    timing = results["timing"]
    memory = timing["peak_memory_bytes"]
    padding = {"training": timing["padding_fraction"], "scoring": timing.get("scoring_padding_fraction")}
    shares = [f"{100 * share:.1f}% of all tokens in {where}" for where, share in padding.items() if share is not None]
    facts = {
        "Training": f"{seconds_in_words(timing['train_seconds'])}, {timing['steps']:,} steps",
        "Scoring the test domains": seconds_in_words(timing["evaluate_seconds"]),
        "Speed": f"{_rate(timing['examples_per_second'])} examples/s, {_rate(timing['tokens_per_second'])} tokens/s",
        "Padding": ", ".join(shares) or "undefined",
        "Peak memory": "not measured" if memory is None else bytes_in_words(memory),
    }
    if timing.get("skipped_steps"):
        facts["Skipped steps"] = f"{timing['skipped_steps']:,}, their loss or gradient was not finite"
    if timing.get("stopped_early"):
        facts["Stopped early"] = "yes, validation had stopped improving"
    return f"## Cost\n\n{fact_table(facts)}"


def _artefact(results: Results) -> str:
    artefact = results["artefact"]
    difference, size = artefact.get("largest_difference"), artefact.get("bytes")
    proof = "not proved: no fresh process has loaded it and given the same outputs"
    if artefact["proved"]:
        proof = "a fresh process loaded it and gave the same outputs"
        proof += "" if difference is None else f" (largest difference of a logit {difference:.1e})"
    facts = {
        "Folder": escape(artefact["path"]) + ("" if size is None else f", {bytes_in_words(size)}"),
        "Kind": escape(artefact["kind"]),
        "Proof": proof,
    }
    if artefact.get("also"):
        facts["Also exported"] = ", ".join(escape(folder) for folder in artefact["also"])
    return f"## Artefact\n\n{fact_table(facts)}"


def _environment(results: Results) -> str:
    environment = results["environment"]
    facts = {
        "Device": f"{escape(environment['device'])}, {environment['world_size']} process(es), "
        f"precision {escape(environment.get('precision', 'unknown'))}",
        "Python": escape(environment.get("python", "unknown")),
        "Platform": escape(environment.get("platform", "unknown")),
        **{escape(name): escape(version or "not installed") for name, version in environment["packages"].items()},
    }
    return f"## Versions\n\n{fact_table(facts)}"


def _config(results: Results) -> str:
    import yaml

    text = yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True)
    runs = re.findall(r"`{3,}", text)
    fence = "`" * (max(map(len, runs), default=2) + 1)  # longer than any run of backticks inside
    return (
        "## Settings\n\n<details>\n<summary>Every setting of this run: save it as a file and pass it with --config "
        "to repeat the run (folders outside the run appear by name only)</summary>\n\n"
        f"{fence}yaml\n{text}{fence}\n\n</details>"
    )


# ---- cells -----------------------------------------------------------------------------------------------------------


def section_to_markdown(section: Section) -> str:
    """A section of cells, with GitHub tables."""
    paragraphs = (escape(paragraph) for paragraph in section.paragraphs)
    return "\n\n".join([f"## {escape(section.title)}", *paragraphs, *(_cells_table(table) for table in section.tables)])


def _cells_table(table: Table) -> str:
    rule = ["---:" if side == "right" else "---" for side in table.alignment]
    lines = [[escape(text) for text in table.header], rule, *([_cell(text) for text in row] for row in table.rows)]
    caption = [escape(table.caption)] if table.caption else []
    return "\n\n".join([f"### {escape(table.title)}", *caption, "\n".join(_line(line) for line in lines)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text if not text or _PLAIN_NUMBER.fullmatch(text) else escape(text)


# ---- small pieces ----------------------------------------------------------------------------------------------


def github_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], right_from: int, left_from: int | None = None
) -> str:
    """A GitHub table; columns in ``[right_from, left_from)`` hold numbers and are aligned to the right."""
    last = len(header) if left_from is None else left_from
    rule = ["---:" if right_from <= column < last else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def fact_table(facts: Mapping[str, str]) -> str:
    return github_table(["What", "Value"], list(facts.items()), right_from=2)


def domains_in_words(names: Sequence[str], most: int = 4) -> str:
    """``books, dvd and kitchen``; a count where a list would drown the sentence."""
    if len(names) > most:
        return f"{len(names)} domains"
    shown = [escape(name) for name in names]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def seconds_in_words(seconds: float | None) -> str:
    if seconds is None:
        return "undefined"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _rate(per_second: float | None) -> str:
    return "undefined" if per_second is None else f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2f}"


def bytes_in_words(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
