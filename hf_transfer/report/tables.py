"""Floor 4: the tables of a comparison; those of translations are in translation_tables.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hf_transfer.report.cells import (
    LONG,
    ROLES,
    Item,
    Results,
    Section,
    Table,
    format_effect,
    level,
    make_facts,
    make_section,
    make_table,
    ordered_strategies,
    slug,
    varies,
    words_of_intervals,
)
from hf_transfer.report.results import (
    MEANS,
    format_difference,
    format_score,
    format_value,
    metric_title,
    metric_words,
    one_line,
)
from hf_transfer.report.translation_tables import LEFT_OUT, languages, make_ledger, make_translation

VERDICTS = ("helps", "hurts", "no evidence", "too few examples", "undefined")

_TOO_LONG = 40  # rows of a table that answers a question, which is folded only here
_WIDE = 8  # classes or domains; a wider matrix is folded
_DETAILED_DIRECTIONS = 3  # beyond that only the main metric: results.json holds the others
_NAMED = 30  # labels or domains in one cell; beyond that a list is longer than the table around it
_CONFUSIONS = 20  # pairs of classes, where there are too many for a matrix
_PROBLEMS = {"single_label": "one class per example", "multi_label": "any number of classes per example"}
_RULES = {
    "in_domain_validation": "the step with the best score on the validation split of the train domains",
    "last": "the last step, without looking at any score",
    "nothing is chosen": "nothing, where nothing is trained",
}
_ORACLE_WORDS = {"oracle", "shifted", "target", "test"}


def make_sections(results: Results) -> tuple[Section, ...]:
    """All sections of a comparison that have data, in the order of the report, from results.json alone."""
    makers: tuple[Callable[[Results], Section], ...] = (
        _scores,
        make_ledger,
        _comparisons,
        make_translation,
        _matrix,
        _learning_curves,
        _forgetting,
        _calibration,
        _distances,
        _robustness,
        _confusion,
        _training,
        _examples,
        _runs,
        _data_sheet,
        _selection,
        _versions,
    )
    sections = (make(results) for make in makers)
    return tuple(section for section in sections if section.tables)


def make_warnings(results: Results) -> list[str]:
    """What a reader must know before the numbers: the warnings of the comparison, an oracle rule, runs that failed."""
    found = [one_line(warning) for warning in results.get("warnings") or ()]
    rule = (results.get("selection") or {}).get("rule", "")
    if is_oracle(rule):
        found.append(f"Checkpoints were selected by {one_line(rule)}, an oracle rule: it saw labels of the target.")
    unfinished = [run for run in results.get("runs") or () if run["status"] != "finished"]
    if unfinished and not any(one_line(unfinished[0]["name"]) in warning for warning in found):
        counts = Counter(run["status"] for run in unfinished)
        what = " and ".join(f"{count} {one_line(status)}" for status, count in counts.items())
        total = len(results["runs"])
        found.append(f"Not every run finished ({what}, of {total}): the numbers are those of the others.")
    return list(dict.fromkeys(found))


def config_yaml(results: Results) -> str:
    """Every setting as YAML that ``--config`` reads."""
    import yaml

    return yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True)


def is_translation(results: Results) -> bool:
    """Whether a comparison is one of translations: without classes, and with scores of no common scale."""
    return results.get("problem") == "translation"


def is_oracle(rule: str) -> bool:
    """Whether a selection rule sees labels that nobody has when the model is needed."""
    return not _ORACLE_WORDS.isdisjoint(re.split(r"[^a-z]+", rule.lower()))


def format_seconds(seconds: float | None) -> str:
    """``48.2 s``, ``3.5 min`` or ``2.1 h``; ``not measured`` for None."""
    if seconds is None:
        return "not measured"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_bytes(count: int | None) -> str:
    """``4.1 kB``, ``91.0 MB`` or ``1.21 GB``, in powers of ten; ``not measured`` for None."""
    if count is None:
        return "not measured"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def format_rate(per_second: float | None) -> str:
    """Examples or tokens per second without their unit: ``1,240`` or ``0.62``; ``not measured`` for None."""
    if per_second is None:
        return "not measured"
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2f}"


def format_p(p_value: float | None) -> str:
    """Two digits; ``undefined`` for None."""
    return "undefined" if p_value is None else f"{p_value:.2g}"


def pooled_scores(results: Results, metric: str | None = None) -> list[dict[str, Any]]:
    """Test scores of all seeds together, of one metric (by default the main one), without those of learning curves.

    Where no score pools the seeds, each seed stands for itself: its strategy then reads ``lora, seed 1`` unless
    there is a single seed.
    """
    metric = metric or results["metric"]
    found = [
        score
        for score in results["scores"]
        if score["metric"] == metric and score.get("split", "test") == "test" and not score.get("target_examples")
    ]
    pooled = [score for score in found if score["seed"] is None]
    if pooled or len({score["seed"] for score in found}) < 2:
        return pooled or found
    return [{**score, "strategy": f"{score['strategy']}, seed {score['seed']}"} for score in found]


# ---- scores, cost and comparisons ------------------------------------------------------------------------------


def _scores(results: Results) -> Section:
    several = len(results["directions"]) > 1
    tables = [_overview(results, several), *([_cost(results)] if several else [])]
    many = len(results["directions"]) > _DETAILED_DIRECTIONS
    metrics = dict.fromkeys(score["metric"] for score in results["scores"] if not many)
    for metric in dict.fromkeys((results["metric"], *metrics)):
        by_direction: dict[str, list[Item]] = {}
        for score in pooled_scores(results, metric):
            by_direction.setdefault(score["direction"], []).append(score)
        for number, (direction, scores) in enumerate(by_direction.items()):
            place = f", trained on {direction}" if several else ""
            words = metric_title(metric) if is_translation(results) else metric_words(metric)
            title = f"Scores by domain{place}: {words}"
            folded = several or metric != results["metric"]
            tables.append(_score_table(results, scores, f"scores-{metric}-{number}", title, folded))
    return make_section("scores", "Scores and cost", [], tables)


def _overview(results: Results, several: bool) -> Table:
    """Means, gap and, where one direction was trained, the cost: one row per strategy or control."""
    metric = results["metric"]
    costs = {cost["strategy"]: cost for cost in results.get("cost") or ()}
    summary = _by_strategy(results, "summary")
    # where nothing is shifted, say, that mean is not undefined: there is none
    has = {key: _any_number(item[key] for item in summary) for key in ("in_domain_mean", "shifted_mean", "gap")}
    if is_translation(results):  # scores of different texts have no common scale: the ledger compares the same text
        has["gap"] = False
    rows = [
        [
            item["strategy"],
            item["direction"] if several else "",
            *(format_value(metric, item[key]) if has[key] else "" for key in ("in_domain_mean", "shifted_mean")),
            format_difference(metric, item["gap"]) if has["gap"] else "",
            (item["worst_domain"] or "") if not is_translation(results) else "",
            *([] if several else _cost_cells(costs.get(item["strategy"]))),
        ]
        for item in summary
    ]
    caption = f"Means of {metric_words(metric)} over domains; the gap is positive where shifted domains score worse."
    if is_translation(results):
        caption = f"Means of {metric_words(metric)} over domains, whose texts differ: compare within a column."
    header = ["Strategy", "Trained on", "In-domain", "Shifted", "Gap", "Worst domain"]
    alignment = "llrrrl"
    if not several:
        header, alignment, caption = [*header, *_COST_HEADER], alignment + "r" * 5, f"{caption} {_COST_CAPTION}"
    title = "Means" if is_translation(results) else "Means and gap" if several or not costs else "Means, gap"
    title += "" if several or not costs else " and cost"
    return make_table("overview", title, caption, header, alignment, rows, folded=len(rows) > LONG)


def _cost(results: Results) -> Table:
    rows = [[item["strategy"], *_cost_cells(item)] for item in _by_strategy(results, "cost")]
    return make_table("cost", "Cost", _COST_CAPTION, ["Strategy", *_COST_HEADER], "lrrrrr", rows)


_COST_HEADER = ["Trainable parameters", "Training", "Peak memory", "Artefact", "Examples/s"]
_COST_CAPTION = "Cost: medians over the runs of a strategy; examples per second when predicting."


def _cost_cells(cost: Item | None) -> list[str]:
    if cost is None:
        return [""] * len(_COST_HEADER)
    trainable, total = cost["trainable_parameters"], cost["total_parameters"]
    share = f" ({100 * trainable / total:.3g}%)" if trainable is not None and total else ""
    return [
        "" if trainable is None else f"{trainable:,.0f}{share}",
        format_seconds(cost["train_seconds"]),
        format_bytes(cost["peak_memory_bytes"]),
        "" if cost["artefact_bytes"] is None else format_bytes(cost["artefact_bytes"]),
        format_rate(cost["predict_examples_per_second"]),
    ]


def _score_table(results: Results, scores: Sequence[Item], name: str, title: str, folded: bool) -> Table:
    """One row per domain, in-domain first, one column per strategy or control."""
    found = {(score["domain"], score["strategy"]): score for score in scores}
    present = {score["strategy"] for score in scores}
    order = ordered_strategies(results)
    columns = [*(item for item in order if item in present), *sorted(present - set(order))]
    domains = {score["domain"]: score for score in sorted(scores, key=lambda score: score["role"] != "in_domain")}
    rows = [
        [
            domain,
            ROLES.get(first["role"], first["role"]),
            f"{first['count']:,}",
            *(format_score(found[domain, item]) if (domain, item) in found else "" for item in columns),
        ]
        for domain, first in domains.items()
    ]
    header = ["Domain", "Role", "Examples", *columns]
    caption = f"In brackets: {words_of_intervals(results, scores[0]['metric'])}."
    return make_table(name, title, caption, header, "llr" + "r" * len(columns), rows, folded=folded)


_QUESTIONS = {
    "control": "Against the controls",
    "strategies": "Strategies against each other",
    "shift": "Shifted domains against in-domain",
    "negative_transfer": "Does training on the source help or hurt the target?",
    "forgetting": "Before and after learning",
}


def _comparisons(results: Results) -> Section:
    known = {"negative_transfer", "forgetting"}  # shown beside their curves
    asked = dict.fromkeys((*_QUESTIONS, *(item["question"] for item in results.get("comparisons") or ())))
    tables = [table for question in asked if question not in known for table in _question(results, question)]
    return make_section("comparisons", "Comparisons", [], tables)


def _question(results: Results, question: str) -> list[Table]:
    """The comparisons of one question; those of single domains are folded where they are many."""
    items = [item for item in results.get("comparisons") or () if item["question"] == question]
    title = _QUESTIONS.get(question, question.replace("_", " "))
    alone = _alone(results)
    singles = [item for item in items if item["domain"] not in (*MEANS, *alone.get(item["direction"], ()))]
    # shifted domains first: what happens there is the question of a comparison
    means = sorted(
        (item for item in items if item not in singles),
        key=lambda item: item["domain"] == MEANS[0] or item["domain"] in item["direction"].split(", "),
    )
    name = f"comparisons-{slug(question)}"
    if len(items) <= LONG or not means:
        return [_comparison_table(results, [*means, *singles], name, title, folded=len(items) > _TOO_LONG)]
    return [
        _comparison_table(results, means, name, title, folded=len(means) > _TOO_LONG),
        _comparison_table(results, singles, f"{name}-domains", f"{title}, domain by domain", folded=True),
    ]


def _alone(results: Results) -> dict[str, list[str]]:
    """By direction the domains that are the only ones of their role, and so stand for its mean."""
    found: dict[str, list[str]] = {}
    for direction in results["directions"]:
        for is_own in (True, False):
            mine = [name for name in results["data"]["test_domains"] if (name in direction["train_domains"]) == is_own]
            found.setdefault(direction["name"], []).extend(mine if len(mine) == 1 else [])
    return found


def _comparison_table(results: Results, items: Sequence[Item], name: str, title: str, folded: bool) -> Table:
    metrics, directions, sizes = (varies(items, key) for key in ("metric", "direction", "target_examples"))
    rows = [
        [
            item["a"],
            item["b"],
            item["domain"],
            item["direction"] if directions else "",
            metric_title(item["metric"]) if metrics else "",
            f"{item['target_examples']:,}" if sizes and item.get("target_examples") is not None else "",
            format_effect(item["metric"], item["difference"], item["low"], item["high"]),
            format_p(item["p_value"]),
            format_p(item["p_adjusted"]),
            item["test"] or "",
            item["verdict"],
            f"{item['count']:,}" if item["count"] is not None else "",
        ]
        for item in items
    ]
    what = "" if metrics or not items else f" of {metric_words(items[0]['metric'])}"
    caption = (
        f"Difference{what}: how much better the strategy is than what it stands against; in brackets "
        f"{words_of_intervals(results)}. p by the test named; adjusted p: Holm's correction (Holm 1979) for the "
        "number of comparisons, those of means over domains and those of single domains apart."
    )
    header = ["Strategy", "Against", "Domain", "Trained on", "Metric", "Target examples"]
    header += ["Difference", "p", "Adjusted p", "Test", "Verdict", "Examples"]
    return make_table(name, title, caption, header, "lllllrrrrllr", rows, folded)


# ---- transfer from domain to domain ----------------------------------------------------------------------------


def _matrix(results: Results) -> Section:
    metric, tables = results["metric"], []
    words = metric_words(metric)
    for number, matrix in enumerate(results.get("matrix") or ()):
        rows = [
            [
                source,
                *(
                    _ranged(metric, *(_at(matrix.get(key), row, column) for key in ("values", "low", "high")))
                    for column in range(len(matrix["targets"]))
                ),
            ]
            for row, source in enumerate(matrix["sources"])
        ]
        header = ["Trained on", *matrix["targets"]]
        caption = f"{words}: rows are the domains trained on, columns those tested"
        caption += f"; in brackets {words_of_intervals(results)}."
        title = f"From domain to domain, {matrix['strategy']}"
        alignment = "l" + "r" * len(matrix["targets"])
        tables.append(make_table(f"matrix-{number}", title, caption, header, alignment, rows, folded=True))
    return make_section("matrix", "From domain to domain", [], tables)


def _learning_curves(results: Results) -> Section:
    metric, curves = results["metric"], results.get("learning_curves") or ()
    sizes = _sizes(curves)
    rows = []
    for curve in curves:
        at = {size: place for place, size in enumerate(curve["sizes"])}
        cells = (
            _ranged(metric, *(_at(curve.get(key), at[size]) for key in ("values", "low", "high"))) if size in at else ""
            for size in sizes
        )
        rows.append([*_curve_place(curve, curves), *cells])
    caption = (
        f"{metric_words(metric)} on the target, by the number of its examples learned from; in brackets "
        f"{words_of_intervals(results)}."
    )
    header = ["Strategy", "Source", "Target", "Trained on", *(f"{size:,}" for size in sizes)]
    title = "Score by target examples"
    curve_table = make_table("learning-curves", title, caption, header, "llll" + "r" * len(sizes), rows, folded=True)
    verdicts = _question(results, "negative_transfer")
    text = (
        "Negative transfer: training on the source as well leaves the target worse than training on the target alone."
    )
    return make_section("learning-curves", "Learning curves", [text], [*verdicts, curve_table])


def _forgetting(results: Results) -> Section:
    metric = results["metric"]
    curves = [curve for curve in results.get("learning_curves") or () if _any_number(curve.get("source_values"))]
    sizes = _sizes(curves)
    rows = []
    for curve in curves:
        at = {size: _at(curve["source_values"], place) for place, size in enumerate(curve["sizes"])}
        cells = (format_value(metric, at[size]) if size in at else "" for size in sizes)
        rows.append([*_curve_place(curve, curves), *cells])
    header = ["Strategy", "Source", "Target", "Trained on", *(f"{size:,}" for size in sizes)]
    caption = f"{metric_words(metric)} on the source domains, by the number of target examples learned from."
    title = "Score on the source by target examples"
    curve_table = make_table("source-curves", title, caption, header, "llll" + "r" * len(sizes), rows, len(rows) > LONG)
    return make_section("forgetting", "Forgetting", [], [*_question(results, "forgetting"), curve_table])


def _curve_place(curve: Item, curves: Sequence[Item]) -> list[str]:
    source = curve["direction"] if varies(curves, "direction") else ""
    return [curve["strategy"], source, curve["domain"], "source and target" if curve["with_source"] else "target alone"]


def _sizes(curves: Iterable[Item]) -> list[int]:
    return sorted({size for curve in curves for size in curve["sizes"]})


# ---- confidence, distance, robustness --------------------------------------------------------------------------


_PLACE_HEADER, _PLACE_ALIGNMENT = ["Strategy", "Seed", "Trained on", "Role", "Domains", "Examples"], "lrlllr"
_MEASURES = {  # header -> key of results.json, and the metric as which its numbers are written
    "Brier": ("brier", "brier"),
    "Temperature": ("temperature", "temperature"),
    "ECE after scaling": ("ece_scaled", "ece"),
    "Accuracy": ("accuracy", "accuracy"),
    "Accuracy at 80% coverage": ("accuracy_at_80", "accuracy"),
    "AURC": ("aurc", "aurc"),
}


def _calibration(results: Results) -> Section:
    items, seeds = _by_strategy(results, "calibration"), len(results["seeds"]) > 1
    header = [*_PLACE_HEADER, "ECE", *_MEASURES]
    alignment = _PLACE_ALIGNMENT + "r" * (1 + len(_MEASURES))
    rows = [
        [
            *_calibration_place(item, items, seeds),
            _ranged("ece", item.get("ece"), item.get("ece_low"), item.get("ece_high")),
            *(_number(metric, item.get(key)) for key, metric in _MEASURES.values()),
        ]
        for item in items
    ]
    caption = (
        "ECE: expected calibration error, 0 where confidence equals accuracy (Guo et al. 2017)%s. Temperature: fitted "
        "on validation data of the train domains. At 80%% coverage the model answers the 80%% of examples it is surest "
        "of. AURC: area under the risk-coverage curve, less is better (Geifman and El-Yaniv 2017)."
    )
    with_interval = caption % f", in brackets its {level(results)} interval"
    if len(rows) > LONG and varies(items, "seed"):
        means = [
            [*_calibration_place(group[0], items, seeds=False), *(_mean_cell(group, *of) for of in _mean_measures())]
            for group in _over_seeds(items)
        ]
        tables = [
            make_table("calibration-means", "Calibration, means over seeds", caption % "", header, alignment, means),
            make_table("calibration", "Calibration, seed by seed", with_interval, header, alignment, rows, folded=True),
        ]
    else:
        tables = [make_table("calibration", "Calibration", with_interval, header, alignment, rows)]
    return make_section("calibration", "Calibration and confidence", [], [*tables, _estimates(items, seeds)])


def _mean_measures() -> list[tuple[str, str]]:
    return [("ece", "ece"), *_MEASURES.values()]


def _mean_cell(group: Sequence[Item], key: str, metric: str) -> str:
    """The mean over the seeds that have a value."""
    values = [item[key] for item in group if item.get(key) is not None]
    return _number(metric, sum(values) / len(values)) if values else ""


def _over_seeds(items: Iterable[Item]) -> list[list[Item]]:
    """What differs by its seed alone, together."""
    groups: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        groups.setdefault((item["strategy"], item["direction"], item["role"], *item["domains"]), []).append(item)
    return list(groups.values())


def _calibration_place(item: Item, items: Sequence[Item], seeds: bool) -> list[str]:
    domains = item["domains"]
    return [
        item["strategy"],
        str(item["seed"]) if seeds else "",
        item["direction"] if varies(items, "direction") else "",
        ROLES.get(item["role"], item["role"]),
        _names(domains) if len(domains) < 4 else f"{len(domains)} domains",
        f"{item['count']:,}",
    ]


def _estimates(items: Sequence[Item], seeds: bool) -> Table:
    estimated = [item for item in items if _any_number((item.get("estimates") or {}).values())]
    rows = [[*_calibration_place(item, items, seeds), *_estimate_cells(item)] for item in estimated]
    header = [*_PLACE_HEADER, "Estimated accuracy", "Measured accuracy", "Measured lies"]
    header += ["ATC", "Average confidence", "Difference of confidences"]
    caption = (
        "The range of three estimates that need no labels of the tested domains: average thresholded confidence (ATC, "
        "Garg et al. 2022), average confidence, and difference of confidences (Guillory et al. 2021). Weak under large "
        "shift: they can be wrong by more than the range is wide, so never report one as a score."
    )
    alignment = _PLACE_ALIGNMENT + "rrlrrr"
    title = "Accuracy estimated without labels"
    return make_table("estimates", title, caption, header, alignment, rows, folded=len(rows) > LONG)


def _estimate_cells(item: Item) -> list[str]:
    estimates = item["estimates"]
    known = [value for value in estimates.values() if value is not None]
    low, high, measured = min(known), max(known), item.get("accuracy")
    lies = "" if measured is None else "inside" if low <= measured <= high else "below" if measured < low else "above"
    names = ("atc", "average_confidence", "difference_of_confidences")
    return [
        f"{100 * low:.1f}% to {100 * high:.1f}%",
        _number("accuracy", measured),
        lies,
        *(_number("accuracy", estimates.get(name)) for name in names),
    ]


def _distances(results: Results) -> Section:
    items, metric = results.get("distances") or (), results["metric"]
    strategies = list(dict.fromkeys(name for item in items for name in item.get("drop") or ()))
    rows = [
        [
            item["source"],
            item["target"],
            _with_p(item, "proxy_a"),
            _with_p(item, "mmd"),
            *(_number(key, item.get(key)) for key in ("coral", "frechet", "jensen_shannon")),
            _number("accuracy", item.get("oov_rate")),  # written as a percentage
            *(_number(key, item.get(key)) for key in ("length_ratio", "label_shift")),
            *(
                format_effect(metric, item["drop"][name]) if name in (item.get("drop") or {}) else ""
                for name in strategies
            ),
        ]
        for item in items
    ]
    header = ["Source", "Target", "Proxy A-distance", "MMD", "CORAL", "Fréchet", "Jensen-Shannon", "Unseen words"]
    header += ["Length ratio", "Label shift", *(f"Drop, {name}" for name in strategies)]
    caption = (
        "Distances between the texts, larger is further apart; in brackets p: of the proxy A-distance by a binomial "
        "test against chance, of MMD by permutations. Unseen words: share of the target's words that the source lacks. "
        "Length ratio: target to source. Label shift: total variation between the shares of labels. Drop: what "
        f"{metric_words(metric)} loses from source to target, positive where the target scores worse."
    )
    alignment = "ll" + "r" * (len(header) - 2)
    distances = make_table("distances", "Distances", caption, header, alignment, rows, folded=len(rows) > LONG)
    rows = [
        [item["source"], item["target"], _words(item["words"], rising=True), _words(item["words"], rising=False)]
        for item in items
        if item.get("words")
    ]
    header = ["Source", "Target", "More frequent in the target", "Less frequent in the target"]
    caption = "Words whose share differs most, with their share of all words in the source and in the target."
    words = make_table("words", "Most shifted words", caption, header, "llll", rows, folded=len(rows) > 4)
    return make_section("distances", "Distances between domains", [], [distances, words])


def _words(words: Iterable[tuple[str, float, float]], rising: bool) -> str:
    chosen = [(word, source, target) for word, source, target in words if (target > source) == rising]
    return ", ".join(f"{one_line(word)} ({_share(source)} to {_share(target)})" for word, source, target in chosen)


def _drop(metric: str, drops: Mapping[str, float | None], strategy: str) -> str:
    drop = drops.get(strategy)
    return "" if drop is None else format_effect(metric, drop)


def _share(share: float) -> str:
    return f"{100 * share:.2g}%"


def _with_p(item: Item, key: str) -> str:
    p_value, text = item.get(f"{key}_p"), _number(key, item.get(key))
    return text if p_value is None else f"{text} (p {format_p(p_value)})"


def _robustness(results: Results) -> Section:
    robustness, metric = results.get("robustness") or {}, results["metric"]
    effective, line = robustness.get("effective") or {}, robustness.get("line")
    rows = [[name, format_effect(metric, value)] for name, value in effective.items()]
    caption = (
        "How far a strategy's shifted score lies above the line that predicts it from its in-domain score (Taori et "
        "al. 2020); positive is more robust than its in-domain score explains."
    )
    tables = [
        make_table("robustness", "Effective robustness", caption, ["Strategy", "Effective robustness"], "lr", rows)
    ]
    points = robustness.get("points") or ()
    rows = [
        [
            item["strategy"],
            "" if item.get("seed") is None else str(item["seed"]),
            item["direction"] if varies(points, "direction") else "",
            format_value(metric, item["in_domain"]),
            format_value(metric, item["shifted"]),
        ]
        for item in points
    ]
    header, caption = (
        ["Strategy", "Seed", "Trained on", "In-domain", "Shifted"],
        f"Mean {metric_words(metric)} of each strategy and control in each direction, seeds together.",
    )
    name = "robustness-points"
    tables.append(make_table(name, "Strategies and controls", caption, header, "lrlrr", rows, folded=True))
    text = "The controls make no line, so effective robustness is not given."
    if line:
        slope, intercept = (_number("slope", line[key]) for key in ("slope", "intercept"))
        rough = " With so few points it is a rough guide." if line["points"] < 8 else ""
        text = f"The line, on a logit scale through {line['points']:,} scores of controls, has slope {slope} and "
        text += f"intercept {intercept}.{rough}"
    return make_section("robustness", "Effective robustness", [text], tables)


# ---- classes, training, runs -----------------------------------------------------------------------------------


def _confusion(results: Results) -> Section:
    items = _by_strategy(results, "confusion")
    several = varies(items, "direction")
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item["strategy"], item["direction"]), []).append(item)
    tables = [_class_table(groups, several)]
    for number, ((strategy, direction), group) in enumerate(groups.items()):
        place = f"{strategy}, trained on {direction}" if several else strategy
        if max(len(item["names"]) for item in group) > _WIDE:
            tables.append(_confusion_pairs(group, f"confusions-{number}", f"Most frequent confusions, {place}"))
        else:
            tables += [_confusion_matrix(item, f"confusion-{number}-{item['role']}", place) for item in group]
    return make_section("confusion", "Classes and confusions", [], tables)


def _class_table(groups: Mapping[tuple[str, str], Sequence[Item]], several: bool) -> Table:
    """Recall and precision of every class, both roles side by side."""
    roles = list(dict.fromkeys(item["role"] for group in groups.values() for item in group))
    rows = []
    for (strategy, direction), group in groups.items():
        measured = {item["role"]: _class_measures(item) for item in group}
        for label in dict.fromkeys(label for item in group for label in item["names"]):
            cells = (cell for role in roles for cell in measured.get(role, {}).get(label, [""] * 3))
            rows.append([strategy, direction if several else "", label, *cells])
    header = ["Strategy", "Trained on", "Class"]
    header += [f"{what}, {ROLES.get(role, role)}" for role in roles for what in ("Examples", "Recall", "Precision")]
    caption = (
        "Recall: share of the class's examples that were found. Precision: share of what was called this class that "
        "belongs to it. All seeds together."
    )
    alignment = "lll" + "r" * (len(header) - 3)
    return make_table("classes", "Class by class", caption, header, alignment, rows, folded=len(rows) > LONG)


def _class_measures(item: Item) -> dict[str, list[str]]:
    """Class -> examples, recall, precision, from counts [reference][predicted]."""
    counts = item["counts"]
    predicted = [sum(column) for column in zip(*counts, strict=True)]
    return {
        label: [
            f"{sum(counts[place]):,}",
            _ratio(counts[place][place], sum(counts[place])),
            _ratio(counts[place][place], predicted[place]),
        ]
        for place, label in enumerate(item["names"])
    }


def _confusion_matrix(item: Item, name: str, place: str) -> Table:
    rows = [
        [label, *(f"{count:,}" for count in counts)]
        for label, counts in zip(item["names"], item["counts"], strict=True)
    ]
    role = ROLES.get(item["role"], item["role"])
    header = ["Reference", *(f"predicted {label}" for label in item["names"])]
    caption = "Examples: rows are what they are, columns what was predicted."
    alignment = "l" + "r" * len(item["names"])
    return make_table(name, f"Confusions {role}, {place}", caption, header, alignment, rows, folded=True)


def _confusion_pairs(group: Sequence[Item], name: str, title: str) -> Table:
    found: Counter[tuple[str, str]] = Counter()
    by_role: list[dict[tuple[str, str], int]] = []
    for item in group:
        pairs = {
            (reference, predicted): count
            for reference, counts in zip(item["names"], item["counts"], strict=True)
            for predicted, count in zip(item["names"], counts, strict=True)
            if reference != predicted and count
        }
        found.update(pairs)
        by_role.append(pairs)
    rows = [[*pair, *(f"{pairs.get(pair, 0):,}" for pairs in by_role)] for pair, _ in found.most_common(_CONFUSIONS)]
    roles = [ROLES.get(item["role"], item["role"]) for item in group]
    header = ["Reference", "Predicted", *(f"Examples, {role}" for role in roles)]
    caption = f"The {len(rows)} most frequent pairs of {len(found):,} that occur."
    return make_table(name, title, caption, header, "ll" + "r" * len(roles), rows, folded=True)


def _training(results: Results) -> Section:
    items = _by_strategy(results, "training")
    metric = (results.get("selection") or {}).get("metric") or results["metric"]
    rows = [
        [
            item["strategy"],
            str(item["seed"]),
            item["direction"] if varies(items, "direction") else "",
            f"{max(item['steps']):,}" if item["steps"] else "",
            *(_number("loss", _at(item["loss"], place)) for place in (0, -1)),
            *(_number(metric, _at(item["validation"], place)) for place in (0, -1)),
        ]
        for item in items
    ]
    header = ["Strategy", "Seed", "Trained on", "Steps", "First loss", "Last loss"]
    header += [f"First validation {metric_words(metric)}", f"Last validation {metric_words(metric)}"]
    caption = (
        "Loss per target (an example; a piece of a translation; a label of several), first and last recorded; "
        "validation on the train domains."
    )
    table = make_table("training", "Training", caption, header, "lrlrrrrr", rows, folded=len(rows) > LONG)
    return make_section("training", "Training", [], [table])


def _examples(results: Results) -> Section:
    rows = [
        [
            item["text"],
            item["strategy"],
            item["domain"],
            str(item["reference"]),
            str(item["predicted"]),
            _number("accuracy", item.get("confidence")),
        ]
        for item in results.get("examples_shown") or ()
    ]
    header = ["Text", "Strategy", "Domain", "Reference", "Predicted", "Confidence"]
    table = make_table("examples", "Examples", "", header, "lllllr", rows, folded=len(rows) > LONG)
    return make_section("examples", "Examples", [], [table])


def _runs(results: Results) -> Section:
    runs = results.get("runs") or ()
    rows = [
        [
            run["name"],
            run["status"],
            run["strategy"],
            "" if run.get("seed") is None else str(run["seed"]),
            run["direction"] if len(results["directions"]) > 1 else "",
            f"{run['target_examples']:,} of {run['target_domain']}" if run.get("target_examples") else "",
            "" if run.get("step") is None else f"{run['step']:,}",
            run.get("error") or "",
        ]
        for run in runs
        if run["status"] != "finished"
    ]
    header = ["Run", "Status", "Strategy", "Seed", "Trained on", "Target examples", "Last step", "Error"]
    finished = sum(run["status"] == "finished" for run in runs)
    text = f"{finished:,} of {len(runs):,} runs finished. The others are in no number of this report."
    table = make_table("runs", "Runs that did not finish", "", header, "lllrlrrl", rows)
    return make_section("runs", "Failed and missing runs", [text], [table])


# ---- data, selection, versions ---------------------------------------------------------------------------------


def _data_sheet(results: Results) -> Section:
    data, leaks = results["data"], results["data"]["leaks"]
    several = len(results["directions"]) > 1
    counts = {split: count for split, count in data["examples"].items() if split == "test" or not several}
    facts = {
        "Source": data["name"],
        "sha256 of the rows": data["fingerprint"],
        "Examples": ", ".join(f"{count:,} {split}" for split, count in counts.items()),
        "Trained on": "one direction at a time" if several else _names(data["train_domains"]),
        "Predicts": _predicts(results),
        "Splits": data["rule"],
    }
    of_one_direction = {
        LEFT_OUT if is_translation(results) else "Cut for length": f"{data['truncated']:,} examples",
        "Test examples also in train": f"{leaks['exact']:,} exactly, {leaks['near']:,} nearly; "
        f"for {leaks['across_domains']:,} of them the twin is in another domain",
        "Repeated inside train": f"{leaks['inside_train']:,}",
        "Dropped as leaks": f"{leaks['dropped']:,}",
    }
    if not several:  # what is recorded is of the first one alone; the warnings name the direction that leaks most
        facts |= of_one_direction
    rows = [
        # with several directions a domain is in-domain in one and shifted in another
        [domain, "" if several else "in-domain" if domain in data["train_domains"] else "shifted", f"{count:,}"]
        for domain, count in data["test_domains"].items()
    ]
    notes = [[note] for note in results.get("notes") or ()]
    tables = [
        make_facts("data", "Data", facts),
        make_table("test-domains", "Test examples", "", ["Domain", "Role", "Examples"], "llr", rows, len(rows) > LONG),
        make_table("notes", "Notes on the data and the runs", "", ["Note"], "l", notes, len(notes) > LONG),
    ]
    return make_section("data", "Data", [], tables)


def _predicts(results: Results) -> str:
    if results["problem"] == "regression":
        return "a number"
    if is_translation(results):
        return languages(results["config"])
    names = results.get("label_names") or ()
    return f"{_PROBLEMS.get(results['problem'], results['problem'])}, of {len(names):,}: {_names(names)}"


def _selection(results: Results) -> Section:
    selection, checkpoint = results.get("selection") or {}, results["checkpoint"]
    rule = selection.get("rule") or "unknown"
    words = "; ".join(_RULES.get(part, f"by the rule {part}") for part in rule.split(", "))
    if is_oracle(rule):
        end = "Oracle: labels of the target took part in the choice, so the scores are out of reach without them."
    else:
        end = "Test data took no part in the choice."
    facts = {
        "Kept of each run": words + (f" ({selection['metric']})" if selection.get("metric") and rule != "last" else ""),
        "Labels of the target": end,
        "Checkpoint": checkpoint["id"],
        "Revision": checkpoint.get("revision") or "none (local files)",
        "sha256 of the weights": checkpoint.get("sha256") or "none (random weights)",
        "Newly initialised parameters": f"{len(checkpoint.get('newly_initialised') or ()):,}",
        "Seeds": ", ".join(str(seed) for seed in results["seeds"]),
    }
    return make_section("selection", "Selection and checkpoint", [], [make_facts("selection", "Selection", facts)])


def _versions(results: Results) -> Section:
    environment = results["environment"]
    facts = {
        "Device": f"{environment['device']}, {environment['world_size']} process(es), "
        f"precision {environment.get('precision', 'unknown')}",
        "Python": environment.get("python", "unknown"),
        "Platform": environment.get("platform", "unknown"),
        **{name: version or "not installed" for name, version in environment["packages"].items()},
    }
    return make_section("versions", "Versions", [], [make_facts("versions", "Versions", facts)])


# ---- small pieces ----------------------------------------------------------------------------------------------


def _by_strategy(results: Results, key: str) -> list[Item]:
    """What ``results`` holds under ``key``, strategies before controls."""
    order = {name: place for place, name in enumerate(ordered_strategies(results))}
    return sorted(results.get(key) or (), key=lambda item: order.get(item["strategy"], len(order)))


def _at(values: Any, *places: int) -> Any:
    """``values[a][b]...``; None where there is no such place."""
    for place in places:
        if values is None or not -len(values) <= place < len(values):
            return None
        values = values[place]
    return values


def _any_number(values: Iterable[float | None] | None) -> bool:
    return any(value is not None for value in values or ())


def _number(metric: str, value: float | None) -> str:
    return "" if value is None else format_value(metric, value)


def _ranged(metric: str, value: float | None, low: float | None, high: float | None) -> str:
    """Value and interval; "" where there is no value."""
    return "" if value is None else format_score({"metric": metric, "value": value, "low": low, "high": high})


def _ratio(part: float, whole: float) -> str:
    return format_value("accuracy", part / whole) if whole else "undefined"


def _names(names: Sequence[Any]) -> str:
    shown = ", ".join(one_line(str(name)) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
