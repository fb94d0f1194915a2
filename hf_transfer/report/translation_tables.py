"""Floor 4: the tables of translation: the forgetting ledger, what went wrong, and how scores were computed.

A run and a comparison have the same ones: ``as_comparison`` gives a run's results the form that they read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_transfer.report.cells import (
    LONG,
    ROLES,
    Item,
    Results,
    Section,
    Table,
    format_effect,
    make_facts,
    make_section,
    make_table,
    ordered_strategies,
    varies,
    words_of_intervals,
)
from hf_transfer.report.results import (
    format_amount,
    format_difference,
    format_interval,
    format_value,
    metric_title,
    metric_words,
    one_line,
)

LEFT_OUT = "Over the limit of length: left out of train, split up in test"
_BEFORE = "the checkpoint as it comes, on the same sentences"
# key of results.json -> head of its column
_FAULTS = {"copied": "Copied", "partly_copied": "Partly copied", "empty": "Empty", "repeated": "Repeated"}
_FAULTS_CAPTION = (
    "Length: tokens of the translations as a share of those of the references. Copied: equal to the source, which the "
    "reference is not. Partly copied: five tokens or more in a row are the source's alone. Empty: nothing but spaces. "
    "Repeated: up to four tokens come four times or more in a row, and not in the reference."
)


def as_comparison(results: Results) -> dict[str, Any]:
    """What the tables of this file read of a comparison, from the results of one run of translation."""
    name, described = results["strategy"]["name"], results.get("translation") or {}
    evaluate = results["config"]["evaluate"]
    direction = ", ".join(results["data"]["train_domains"])
    about = {"strategy": name, "seed": results["seed"], "direction": direction}
    return {
        "metric": results["shift"]["metric"],
        "strategies": [name],
        "controls": [],
        "scores": [],
        "confidence": evaluate["confidence"],
        "resamples": evaluate["resamples"],
        "interval": "percentile bootstrap over examples",
        "ledger": results.get("ledger") or [],
        "translation": [about | described] if described else [],
        "signatures": described.get("signatures") or {},
    }


def languages(config: Mapping[str, Any]) -> str:
    """What a translation run predicts, by its settings; columns of languages may name others, or several."""
    data = config.get("data") or {}
    named = [side for side in ("source_lang", "target_lang") if not data.get(f"{side}_column")]
    sides = [one_line(str(data[side])) for side in named if data.get(side)]
    return f"translations, {' to '.join(sides)}" if len(sides) == 2 else "translations"


def make_ledger(results: Results) -> Section:
    """What was gained in-domain and what it cost elsewhere, by strategy and by domain."""
    rows = results.get("ledger") or ()
    if len(rows) < 2:
        return make_section("ledger", _LEDGER, [], [_before_and_after(rows[0], results, 0)] if rows else [])
    tables = [_by_strategy(rows, results), *_changes(rows, results)]
    tables += [_before_and_after(row, results, number, folded=True) for number, row in enumerate(rows)]
    return make_section("ledger", _LEDGER, [], tables)


_LEDGER = "Gained and forgotten"


def _by_strategy(rows: Sequence[Item], results: Results) -> Table:
    cells = [
        [
            row["strategy"],
            row["direction"] if varies(rows, "direction") else "",
            *_judged(row["metric"], row["in_domain"]),
            *_judged(row["metric"], row["shifted"]),
            "" if row["kept"] is None else f"{100 * row['kept']:.0f}%",
            _worst(row),
        ]
        for row in rows
    ]
    caption = (
        f"Against {_BEFORE}, in points; a gain is positive. Elsewhere: mean over the domains that were not trained on. "
        f"Kept: share of the largest in-domain gain, of those whose verdict is helps. In brackets: "
        f"{words_of_intervals(results)}."
    )
    header = ["Strategy", "Trained on", "In-domain gain", "Verdict, gain", "Change elsewhere", "Verdict, change"]
    header += ["Kept", "Worst elsewhere"]
    gained = "gained" if results["higher_is_better"] else "improved"
    title = f"{metric_words(results['metric'])} {gained} in-domain, changed elsewhere"
    return make_table("ledger", title, caption, header, "llrlrlrl", cells, folded=len(cells) > LONG)


def _judged(metric: str, item: Item | None) -> list[str]:
    if item is None:
        return ["", ""]
    return [_effect(metric, item), item["verdict"] or ""]


def _effect(metric: str, item: Item) -> str:
    """A difference in points, with its interval, less the word for the unit: the tables are wide."""
    return format_effect(metric, item["difference"], item["low"], item["high"]).replace(" points", "")


def _worst(row: Item) -> str:
    for item in row["domains"]:
        if item["domain"] == row["worst_domain"]:
            return f"{item['domain']}, {_effect(row['metric'], item | {'low': None, 'high': None})}"
    return ""


def _changes(rows: Sequence[Item], results: Results) -> Iterable[Table]:
    """A row per domain and a column per strategy, in-domain first, a table for each direction."""
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    for number, direction in enumerate(directions):
        mine = [row for row in rows if row["direction"] == direction]
        lines = [_lines(row) for row in mine]
        cells = [
            [
                *(line[key] for key in ("domain", "role", "count")),
                format_value(results["metric"], line["item"]["before"]),
                *(_judged(row["metric"], own[place]["item"])[0] for row, own in zip(mine, lines, strict=True)),
            ]
            for place, line in enumerate(lines[0])
        ]
        place = f", trained on {direction}" if len(directions) > 1 else ""
        caption = (
            f"Before: {metric_words(results['metric'])} of {_BEFORE}. Columns of strategies: points gained or lost; "
            f"in brackets {words_of_intervals(results)}."
        )
        header = ["Domain", "Role", "Sentences", "Before", *(row["strategy"] for row in mine)]
        title, alignment = f"Changes by domain{place}", "llrr" + "r" * len(mine)
        yield make_table(f"changes-{number}", title, caption, header, alignment, cells, folded=len(directions) > 1)


def _before_and_after(row: Item, results: Results, number: int, folded: bool = False) -> Table:
    metric = row["metric"]
    cells = [
        [
            *(line[key] for key in ("domain", "role", "count")),
            *(format_value(metric, line["item"][key]) for key in ("before", "after")),
            *_judged(metric, line["item"]),
        ]
        for line in _lines(row)
    ]
    name = metric_words(metric)
    header = ["Domain", "Role", "Sentences", f"{name} before", f"{name} after", "Difference", "Verdict"]
    place = f"{row['strategy']}, trained on {row['direction']}" if varies(results["ledger"], "direction") else ""
    title = f"Before and after, {place or row['strategy']}"
    caption = f"Before: {_BEFORE}. Difference: points gained; in brackets {words_of_intervals(results)}."
    return make_table(f"before-and-after-{number}", title, caption, header, "llrrrrl", cells, folded)


def _lines(row: Item) -> list[dict[str, Any]]:
    """In-domain domains, then the others, each role followed by its mean where it has several."""
    lines = []
    for role, words in ROLES.items():
        mine = [item for item in row["domains"] if item["role"] == role]
        lines += [_line(item["domain"], words, item) for item in mine]
        if len(mine) > 1:
            lines.append(_line(f"mean of {len(mine)}", words, row[role]))
    return lines


def _line(name: str, role: str, item: Item) -> dict[str, Any]:
    return {"domain": name, "role": role, "count": f"{item['count']:,}", "item": item}


# ---- what the translations are like ----------------------------------------------------------------------------


def make_translation(results: Results) -> Section:
    """Outputs that look wrong, the choices of weight interpolation and kNN-MT, and signatures."""
    order = {name: place for place, name in enumerate(ordered_strategies(results))}
    items = sorted(results.get("translation") or (), key=lambda item: order.get(item["strategy"], len(order)))
    signatures = {metric_words(name): text for name, text in (results.get("signatures") or {}).items()}
    tables = [
        *_faults(items),
        _trade_offs(items, results["metric"]),
        _datastores(items),
        make_facts("signatures", "Signatures of the scores", signatures),
        _of_sacrebleu(items),
    ]
    return make_section("translation", "Translations", [], tables)


def _faults(items: Sequence[Item]) -> list[Table]:
    """Counts over all seeds: by role, and folded, where that is more, by domain."""
    several = varies(items, "direction")
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item["strategy"], item["direction"]), []).append(item)
    by_role, by_domain = [], []
    for (strategy, direction), group in groups.items():
        place = [strategy, direction if several else ""]
        for role, words in ROLES.items():
            domains = [name for name, facts in group[0]["domains"].items() if facts["role"] == role]
            counted = {name: [item["domains"][name] for item in group if name in item["domains"]] for name in domains}
            by_domain += [[*place, name, words, *_fault_cells(facts)] for name, facts in counted.items()]
            together = [facts for of_domain in counted.values() for facts in of_domain]
            if together:
                by_role.append([*place, "", words, *_fault_cells(together)])
    header = ["Strategy", "Trained on", "Domain", "Role", "Sentences", "Length", *_FAULTS.values()]
    alignment = "llll" + "r" * (2 + len(_FAULTS))
    caption, title = f"{_FAULTS_CAPTION} All seeds together.", "Translations that look wrong"
    if len(groups) < 2 and len(by_domain) <= LONG:
        return [make_table("faults", title, caption, header, alignment, by_domain)]
    return [
        make_table("faults", title, caption, header, alignment, by_role, folded=len(by_role) > 2 * LONG),
        make_table("faults-domains", f"{title}, by domain", "", header, alignment, by_domain, folded=True),
    ]


def _fault_cells(counted: Sequence[Item]) -> list[str]:
    """Sentences, mean length ratio, and each fault with its share."""
    total = sum(facts["count"] for facts in counted)
    ratios = [facts["length_ratio"] for facts in counted if facts["length_ratio"] is not None]
    cells = [f"{total:,}", f"{100 * sum(ratios) / len(ratios):.1f}%" if ratios else "undefined"]
    for key in _FAULTS:
        count = sum(facts[key] for facts in counted)
        cells.append(f"{count:,} ({100 * count / total:.1f}%)" if count and total else f"{count:,}")
    return cells


def _trade_offs(items: Sequence[Item], metric: str) -> Table:
    """Validation scores along the line from the checkpoint to the adapted weights."""
    found = [item for item in items if item.get("trade_off")]
    rows = [
        [
            item["strategy"] if varies(found, "strategy") else "",
            str(item["seed"]) if varies(found, "seed") else "",
            item["direction"] if varies(found, "direction") else "",
            f"{point['alpha']:g}",
            *("" if point[key] is None else format_value(metric, point[key]) for key in ("in_domain", "general")),
            "chosen" if point["alpha"] == item["trade_off"]["alpha"] else "",
        ]
        for item in found
        for point in item["trade_off"]["curve"]
    ]
    header = ["Strategy", "Seed", "Trained on", "Share of the adapted weights", "In-domain", "General", "Choice"]
    caption = (
        f"{metric_words(metric)} of greedy search on validation text, by the share of the adapted weights: 0 is the "
        "checkpoint as it comes, 1 the adapted model."
    )
    return make_table("trade-off", "Weight interpolation", caption, header, "lllrrrl", rows, folded=len(rows) > LONG)


def _datastores(items: Sequence[Item]) -> Table:
    found = [item for item in items if item.get("knn")]
    rows = [
        [
            str(item["seed"]) if varies(found, "seed") else "",
            item["direction"] if varies(found, "direction") else "",
            f"{knn['stored_tokens']:,}",
            f"{knn['neighbours']:,}",
            f"{knn['interpolation']:g}",
            f"{knn['temperature']:.3g}",
            *("undefined" if knn[key] is None else f"{knn[key]:.3f}" for key in ("plain_nll", "nll")),
            f"{knn['tokens']:,}",
        ]
        for item in found
        for knn in [item["knn"]]
    ]
    header = ["Seed", "Trained on", "Stored tokens", "Neighbours", "Interpolation", "Temperature"]
    header += ["Nats per token, model alone", "Nats per token, with neighbours", "Validation tokens"]
    caption = (
        "Settings of the kNN-MT datastore, chosen by the negative log likelihood of validation text. Interpolation: "
        "the probability that is given to the neighbours' tokens."
    )
    return make_table("knn", "Nearest neighbours", caption, header, "ll" + "r" * 7, rows)


def _of_sacrebleu(items: Sequence[Item]) -> Table:
    every = (facts["sacrebleu"] for item in items for facts in item["domains"].values())
    metrics = list(dict.fromkeys(name for facts in every for name in facts))
    rows = [
        [
            item["strategy"],
            str(item["seed"]) if varies(items, "seed") else "",
            item["direction"] if varies(items, "direction") else "",
            domain,
            *(_mean_and_half(facts["sacrebleu"].get(name)) for name in metrics),
        ]
        for item in items
        for domain, facts in item["domains"].items()
    ]
    header = ["Strategy", "Seed", "Trained on", "Domain", *(metric_title(name) for name in metrics)]
    caption = (
        "Mean of sacrebleu's own bootstrap and half its 95% interval, as `sacrebleu --confidence` prints them for this "
        "seed alone; the scores of the other tables are of the whole text."
    )
    title = "Intervals by sacrebleu"
    return make_table("sacrebleu", title, caption, header, "llll" + "r" * len(metrics), rows, folded=True)


def _mean_and_half(facts: Mapping[str, Any] | None) -> str:
    if facts is None or facts["mean"] is None:
        return ""
    return f"{facts['mean']:.1f} ± {facts['half_width']:.1f}"


# ---- in a sentence ---------------------------------------------------------------------------------------------


def change_in_words(metric: str, item: Item) -> str:
    """``gains 12.3 BLEU (10.1 to 14.5)``, ``lowers TER by 8.0 points``, or that nothing is known."""
    difference = item["difference"]
    if difference is None or item["verdict"] == "undefined":
        return "is undefined"
    if item["verdict"] == "too few examples":
        return "has too few test examples for a conclusion"
    if item["verdict"] == "no evidence" or not item["verdict"]:
        size = format_effect(metric, difference, item["low"], item["high"])
        return f"shows no evidence of a change ({size.replace(' (', ', ').rstrip(')')})"
    low, high = (item["low"], item["high"]) if difference > 0 else (-item["high"], -item["low"])
    interval = format_interval({"metric": metric, "value": abs(difference), "low": low, "high": high})
    size = f"{format_amount(metric, abs(difference))} ({interval})"
    if metric == "ter":
        return f"{'lowers' if difference > 0 else 'raises'} TER by {size}"
    return f"{'gains' if difference > 0 else 'loses'} {size}"


def ledger_in_words(row: Item) -> list[str]:
    """What was gained and what was lost, as clauses that follow the name of a strategy."""
    clauses = []
    for role, many in (("in_domain", "its {} train domains (mean)"), ("shifted", "{} other domains (mean)")):
        if row[role] is None:
            continue
        names = [item["domain"] for item in row["domains"] if item["role"] == role]
        where = names[0] if len(names) == 1 else many.format(len(names))
        clauses.append(f"{change_in_words(row['metric'], row[role])} in {where}")
    lost = next((item for item in row["domains"] if item["domain"] == row["worst_domain"]), None)
    if lost and row["shifted"]["domains"] > 1 and lost["difference"] < 0:
        clauses[-1] += f", most in {lost['domain']} ({format_difference(row['metric'], lost['difference'])})"
    return clauses
