"""Floor 4: what the numbers of a run say about using its model: the sentences of a card, each with its number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_transfer.report.markdown import domains_in_words, escape
from hf_transfer.report.results import (
    DomainRow,
    compared_domains,
    confidence_percent,
    cut_length,
    format_difference,
    format_score,
    format_value,
    metric_words,
    rows_by_stage,
)

Results = Mapping[str, Any]

FEW_EXAMPLES = 30
"""Below it no verdicts are given, and a score says little."""
NOTICEABLE_ERROR = 0.05
"""Calibration error from which confidence should not be read as a probability, where its interval leaves out 0."""


def limits(results: Results) -> list[str]:
    """Sentences in Markdown about where the model may be used and where not, in the order of a card."""
    rows = rows_by_stage(results).get("adapted", [])
    return [
        *_purpose(results, rows),
        *_elsewhere(results, rows),
        *_against_chance(results, rows),
        *_against_controls(results),
        *_few(rows),
        *_confidence(results),
        *_outputs(results),
        *_leaks(results),
        *_untested(results),
    ]


def _purpose(results: Results, rows: Sequence[DomainRow]) -> Iterator[str]:
    own = [row for row in rows if row.role == "in_domain"]
    on = domains_in_words(results["data"]["train_domains"])
    verb = "translate" if results["task"] == "translation" else "label"
    yield f"Made to {verb} text like that of {on}{_reached(results, own)}."


def _reached(results: Results, rows: Sequence[DomainRow]) -> str:
    metric, mean = results["shift"]["metric"], results["shift"]["in_domain_mean"]
    if not rows or mean is None:
        return ", where it was not scored"
    if len(rows) == 1 and metric in rows[0].scores:
        return f", where it reaches {format_score(rows[0].scores[metric])} {escape(metric_words(metric))}"
    return f", where it reaches {format_value(metric, mean)} {escape(metric_words(metric))} (mean of {len(rows)})"


def _elsewhere(results: Results, rows: Sequence[DomainRow]) -> Iterator[str]:
    shift, others = results["shift"], [row for row in rows if row.role == "shifted"]
    if not others:
        yield "It was scored on no domain but its own: nothing is known of other text, where it may do much worse."
        return
    metric, where = shift["metric"], domains_in_words([row.domain for row in others])
    worst = next((row for row in others if row.domain == shift["worst_domain"]), None)
    least = f", and {format_score(worst.scores[metric])} on {escape(worst.domain)}" if worst and len(others) > 1 else ""
    mean, gap = shift["shifted_mean"], shift["gap"]
    if mean is None:
        yield f"On {where}, which it was not trained on, its score is undefined."
    elif results["task"] == "translation" or gap is None:
        yield (
            f"On {where}, which it was not trained on, it reaches {format_value(metric, mean)} "
            f"{escape(metric_words(metric))}{least}; texts differ in difficulty, so this is no measure of what is lost."
        )
    else:  # of the means only: some of the domains may be better than its own and others worse
        on, average = ("On average over", " on average") if len(others) > 1 else ("On", "")
        own = sum(row.role == "in_domain" for row in rows)
        home = format_value(metric, shift["in_domain_mean"]) + (" on its own" if own == 1 else f" over its own {own}")
        worse = f"worse by {_loss(metric, gap)}" if gap > 0 else "no worse"
        yield (
            f"{on} {where}, which it was not trained on, it reaches {format_value(metric, mean)} "
            f"{escape(metric_words(metric))}{least}, against {home}: {worse}{average}. Other domains were not tried."
        )


def _loss(metric: str, gap: float) -> str:
    """``less than 0.1 points`` where so little is lost that it would be written as nothing; only points can be."""
    shown = format_difference(metric, gap)
    return "less than 0.1 points" if shown == format_difference(metric, 0.0) else shown


def _against_chance(results: Results, rows: Sequence[DomainRow]) -> Iterator[str]:
    """Domains on which one class of several is told no better than by guessing."""
    classes = len(results["labels"]["names"])
    if results["labels"]["problem"] != "single_label" or results["shift"]["metric"] != "accuracy" or classes < 2:
        return
    scores = {row.domain: row.scores.get("accuracy") for row in rows}
    unsure = [
        name for name, score in scores.items() if score and score["low"] is not None and score["low"] <= 1 / classes
    ]
    if unsure:
        yield (
            f"Not to be used on {domains_in_words(unsure)}: the interval of its accuracy reaches down to what guessing "
            f"among {classes} equally frequent classes gives ({format_value('accuracy', 1 / classes)})."
        )


def _against_controls(results: Results) -> Iterator[str]:
    main = results["shift"]["metric"]
    mine = [item for item in compared_domains(results) if item["a"] == "adapted" and item["metric"] == main]
    simpler = {"tfidf": "a bag of words", "majority": "always the most frequent class"}
    for control in dict.fromkeys(item["b"] for item in mine):
        of = {verdict: _names(mine, control, verdict) for verdict in ("hurts", "no evidence", "undefined", "helps")}
        name = f"{escape(control)}" + (f" ({simpler[control]})" if control in simpler else "")
        if of["hurts"]:
            yield f"Worse than {name} on {domains_in_words(of['hurts'])}: there, use that instead."
        if of["no evidence"]:
            yield f"No evidence that it differs from {name} on {domains_in_words(of['no evidence'])}."
        if of["undefined"]:
            yield f"The difference from {name} is undefined on {domains_in_words(of['undefined'])}."
        if of["helps"]:
            yield f"Better than {name} on {domains_in_words(of['helps'])}."


def _names(items: Sequence[Mapping[str, Any]], control: str, verdict: str) -> list[str]:
    return [item["domain"] for item in items if item["b"] == control and item["verdict"] == verdict]


def _few(rows: Sequence[DomainRow]) -> Iterator[str]:
    few = [row.domain for row in rows if row.count < FEW_EXAMPLES]
    if few:
        yield f"Fewer than {FEW_EXAMPLES} test examples on {domains_in_words(few)}: those scores say little."


def _confidence(results: Results) -> Iterator[str]:
    roles = {"in_domain": "in its own domains", "shifted": "on shifted ones"}
    for item in results.get("calibration") or ():
        is_sure = item["ece"] is not None and item["ece"] >= NOTICEABLE_ERROR and (item["ece_low"] or 0) > 0
        if is_sure and item["role"] in roles:
            yield (
                f"Do not read its confidence as a probability {roles[item['role']]}: the two lie "
                f"{format_difference('accuracy', item['ece'])} apart on average."
            )


def _outputs(results: Results) -> Iterator[str]:
    """Translations that look wrong whatever their score."""
    domains = results.get("translation", {}).get("domains", {})
    count = sum(found["count"] for found in domains.values())
    faults = {name: sum(found[name] for found in domains.values()) for name in ("repeated", "copied", "empty")}
    words = {"repeated": "repeat themselves", "copied": "copy their source", "empty": "are empty"}
    said = [f"{number:,} {words[name]}" for name, number in faults.items() if number]
    if said:
        yield f"Of {count:,} test translations {', '.join(said)}."


def _leaks(results: Results) -> Iterator[str]:
    leaks = results["data"]["leaks"]
    count = leaks["exact"] + leaks["near"]
    if count and not leaks["dropped"]:
        yield (
            f"{count:,} test example{'s' * (count > 1)} also stand{'s' * (count == 1)} in train, exactly or nearly, so "
            "scores may be a little too high."
        )


def _untested(results: Results) -> Iterator[str]:
    length = cut_length(results)
    cut = f" Text beyond {length:,} tokens was cut off." if length and results["task"] != "translation" else ""
    yield (
        f"All numbers are of one run with seed {results['seed']}; the {confidence_percent(results)} intervals say how "
        f"they would vary with other test examples, not with other seeds.{cut}"
    )
