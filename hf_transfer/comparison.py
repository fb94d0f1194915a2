"""Floor 4: what several runs say together, from their results.json alone: scores over seeds, paired tests, verdicts.

A *setting* is what a run learns from: a direction (its train domains), and labelled examples of a target domain, if
any. Within a setting, strategies and controls are compared on the same test examples, all seeds of each together.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics as middle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hf_transfer.config import CONTROLS, RunConfig
from hf_transfer.errors import InputError
from hf_transfer.metrics import find_metric
from hf_transfer.records import Predictions
from hf_transfer.report.answer import answer
from hf_transfer.report.examples import read_examples
from hf_transfer.robustness import effective_robustness
from hf_transfer.significance import (
    Difference,
    hierarchical_interval,
    holm,
    paired_difference,
    paired_difference_of_means,
    shift_difference,
    verdict,
)

FEWEST_EXAMPLES = 30
"""Test examples of a domain below which no verdict is given: an interval of 29 is some 30 points wide."""
SIDE_RESAMPLES = 2_000
"""Resamples for intervals of metrics beside the main one."""
MOST_DETAILED_DIRECTIONS = 3
"""Directions up to which each has its own calibration, confusion and curves: a matrix would drown in them."""
MEANS = {"in_domain": "in-domain", "shifted": "shifted domains"}


@dataclass(frozen=True)
class Setting:
    """What a run learns from."""

    train_domains: tuple[str, ...]
    target_domain: str | None = None
    target_examples: int = 0
    with_source: bool = True


@dataclass(frozen=True)
class FinishedRun:
    """One results.json, read for comparison."""

    results: Mapping[str, Any]

    @property
    def strategy(self) -> str:
        """The strategy, or the name of the control."""
        return self.results["strategy"]["name"]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.results["seed"]

    @property
    def is_control(self) -> bool:
        """Whether the run answers "compared with what?"."""
        return self.strategy in CONTROLS

    @functools.cached_property
    def setting(self) -> Setting:
        """What it learnt from."""
        data = self.results["config"]["data"]
        count = (data.get("target_examples") or [0])[0]
        targets = data.get("target_domains") or []
        train_domains = tuple(self.results["data"]["train_domains"])
        if not count:
            return Setting(train_domains)
        return Setting(train_domains, ", ".join(targets) or None, count, data.get("with_source", True))

    @functools.cached_property
    def predictions(self) -> dict[str, Predictions]:
        """Of the test examples, by domain."""
        return read_examples(self.results)


def compare_with_controls(
    results: Mapping[str, Any], controls: Sequence[Mapping[str, Any]], not_applicable: Sequence[str], config: RunConfig
) -> dict[str, Any]:
    """The results of a run with the scores of its controls, and the run compared with each of them by domain."""
    joined = dict(results)
    joined["scores"] = [*results["scores"], *(score for control in controls for score in control["scores"])]
    joined["notes"] = [*results["notes"], *not_applicable]
    runs = [FinishedRun(item) for item in (results, *controls)]
    evaluate = config.evaluate
    tests = Tests(results["shift"]["metric"], evaluate.confidence, evaluate.resamples, config.seed)
    found = []
    for control in runs[1:]:
        for domain, mine in runs[0].predictions.items():
            difference = tests.on_domain([mine], [control.predictions[domain]], domain)
            found.append(_comparison("control", domain, "adapted", control.strategy, difference, tests.metric))
    joined["comparisons"] = with_verdicts(found, evaluate.confidence)
    return joined


def join(
    results_of_runs: Sequence[Mapping[str, Any]],
    *,
    config: Mapping[str, Any],
    other_runs: Sequence[Mapping[str, Any]] = (),
    distances: Sequence[Mapping[str, Any]] = (),
    notes: Iterable[str] = (),
    examples_shown: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The contents of a comparison's results.json.

    Args:
        results_of_runs: finished runs, in the order in which they are reported.
        config: the comparison's, as plain nested dicts; ``evaluate`` and ``seed`` of it are used.
        other_runs: failed and missing ones, as the ``runs`` of results.json list them.
        distances: ``describe_distances`` of source and target domains.

    Raises:
        InputError: no finished run, or runs that cannot be compared.
    """
    runs = [FinishedRun(results) for results in results_of_runs]
    check_comparable(runs)
    first = runs[0].results
    tests = Tests(
        first["shift"]["metric"], config["evaluate"]["confidence"], config["evaluate"]["resamples"], config["seed"]
    )
    groups = _by_setting(runs)
    scores = [score for setting, group in groups.items() for score in _scores(setting, group, tests)]
    strategies = list(dict.fromkeys(run.strategy for run in runs))
    seeds = sorted({run.seed for run in runs})
    several = max(len(members) for group in groups.values() for members in group.values()) > 1
    joined: dict[str, Any] = {
        "schema": first["schema"],
        "kind": "comparison",
        "task": first["task"],
        "name": first["data"]["name"],
        "metric": tests.metric,
        "higher_is_better": find_metric(tests.metric).higher_is_better,
        "confidence": tests.confidence,
        "resamples": tests.resamples,
        "interval": (
            f"hierarchical bootstrap over {len(seeds)} seeds x examples"
            if several
            else "percentile bootstrap over examples"
        ),
        "seed": seeds[0],
        "seeds": seeds,
        "strategies": [name for name in strategies if name not in CONTROLS],
        "controls": [name for name in strategies if name in CONTROLS],
        "problem": first["labels"]["problem"],
        "label_names": first["labels"]["names"],
        "checkpoint": next((run.results["checkpoint"] for run in runs if not run.is_control), first["checkpoint"]),
        "selection": {"rule": _selection_rule(runs), "metric": tests.metric},
        "directions": [
            {"name": name_of(setting), "train_domains": list(setting.train_domains)}
            for setting in groups
            if setting == base_of(setting)
        ],
        "scores": scores,
        "comparisons": with_verdicts(_comparisons(groups, tests), tests.confidence),
        "summary": _summary(groups, scores, tests.metric),
        "cost": _cost(runs),
        "matrix": _matrices(groups, scores, tests.metric),
        "learning_curves": _learning_curves(groups, scores, tests.metric),
        "calibration": _calibration(groups),
        "distances": [dict(item) for item in distances],
        "confusion": _confusion(groups, first["labels"]),
        "training": _training(groups),
        "data": first["data"],
        "runs": [*(_run_facts(run) for run in runs), *other_runs],
        "examples_shown": list(examples_shown),
        "notes": list(dict.fromkeys([*notes, *(note for run in runs for note in run.results["notes"])])),
        "environment": first["environment"],
        "config": dict(config),
    }
    joined["robustness"] = effective_robustness(joined)
    _add_drops(joined)
    joined["warnings"] = _warnings(joined, runs)
    joined["answer"] = answer(joined)
    return joined


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise InputError, naming every differing field, unless all runs may stand in one table."""
    if not runs:
        raise InputError("there is no finished run to report on: give folders that hold a results.json.")
    first = runs[0].results
    fields = {
        "task": lambda results: results["task"],
        "metric": lambda results: results["shift"]["metric"],
        "labels": lambda results: (results["labels"]["problem"], results["labels"]["names"]),
        "test domains": lambda results: sorted(results["data"]["test_domains"]),
    }
    problems = []
    for run in runs[1:]:
        name, other = _label(run), _label(runs[0])
        for field, read in fields.items():
            theirs, ours = read(run.results), read(first)
            if theirs != ours:
                problems.append(f"{name} cannot be compared with {other}: {field} is {theirs}, not {ours}.")
        for domain, their in run.predictions.items():
            mine = runs[0].predictions.get(domain)
            if mine is None:
                continue  # said above
            if not np.array_equal(mine.example_ids, their.example_ids):
                problems.append(
                    f"{name} cannot be compared with {other}: the test examples of {domain} differ "
                    f"({len(their.example_ids):,} and {len(mine.example_ids):,} examples): run both on the same data "
                    "and splits."
                )
            elif not np.array_equal(mine.reference, their.reference):
                problems.append(
                    f"{name} cannot be compared with {other}: labels of the test examples of {domain} differ."
                )
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


# ---- paired tests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tests:
    """How differences are tested in one comparison."""

    metric: str
    confidence: float
    resamples: int
    seed: int

    def on_domain(self, a: Sequence[Predictions], b: Sequence[Predictions], domain: str) -> Difference:
        """``a`` against ``b`` on one domain; each holds one item per seed."""
        return paired_difference(self.metric, a, b, self.confidence, self.resamples, self.seed)

    def on_means(self, a: Sequence[FinishedRun], b: Sequence[FinishedRun], domains: Sequence[str]) -> Difference:
        """``a`` against ``b`` on the unweighted mean over ``domains``."""
        pairs = {
            domain: ([run.predictions[domain] for run in a], [run.predictions[domain] for run in b])
            for domain in domains
        }
        return paired_difference_of_means(self.metric, pairs, self.confidence, self.resamples, self.seed)

    def of_shift(self, runs: Sequence[FinishedRun], own: Sequence[str], others: Sequence[str]) -> Difference:
        """The mean over ``others`` against the mean over ``own`` domains: different examples, the same models."""
        return shift_difference(
            self.metric,
            {domain: [run.predictions[domain] for run in runs] for domain in others},
            {domain: [run.predictions[domain] for run in runs] for domain in own},
            self.confidence,
            self.resamples,
            self.seed,
        )


Groups = dict[Setting, dict[str, list[FinishedRun]]]


def _by_setting(runs: Sequence[FinishedRun]) -> Groups:
    """Runs by setting and strategy, seeds in order; settings in order of appearance."""
    groups: Groups = {}
    for run in runs:
        groups.setdefault(run.setting, {}).setdefault(run.strategy, []).append(run)
    for group in groups.values():
        for members in group.values():
            members.sort(key=lambda run: run.seed)
            repeated = len({run.seed for run in members}) < len(members)
            if repeated:
                raise InputError(f"two runs of {_label(members[0])} are given, which learn from the same: give one.")
    return groups


def base_of(setting: Setting) -> Setting:
    """The setting without target labels."""
    return Setting(setting.train_domains)


def name_of(setting: Setting) -> str:
    """A direction in words: its train domains."""
    return ", ".join(setting.train_domains)


def _domains(run: FinishedRun, role: str) -> list[str]:
    own = run.setting.train_domains
    return [domain for domain in run.predictions if (domain in own) == (role == "in_domain")]


def _comparisons(groups: Groups, tests: Tests) -> list[dict[str, Any]]:
    """Every comparison that the runs allow, in the order in which they are reported."""
    found: list[dict[str, Any]] = []
    directions = [setting for setting in groups if setting == base_of(setting)]
    for setting in directions:
        group = groups[setting]
        strategies = [name for name in group if name not in CONTROLS]
        controls = [name for name in group if name in CONTROLS]
        pairs = [("control", a, b) for a in strategies for b in controls]
        pairs += [("strategies", a, b) for a, b in combinations(strategies, 2)]
        for question, a, b in pairs:
            by_domain = len(directions) <= MOST_DETAILED_DIRECTIONS
            for where, difference in _differences(group[a], group[b], tests, by_domain):
                found.append(_comparison(question, where, a, b, difference, tests.metric, setting))
        for name in strategies:
            own, others = (_domains(group[name][0], role) for role in ("in_domain", "shifted"))
            if own and others:
                difference = tests.of_shift(group[name], own, others)
                where = MEANS["shifted"]
                found.append(_comparison("shift", where, name, "in-domain", difference, tests.metric, setting))
        for name in strategies if "before" in group else ():
            for domain in _domains(group[name][0], "shifted"):
                mine = [run.predictions[domain] for run in group[name]]
                then = [run.predictions[domain] for run in group["before"]]
                difference = tests.on_domain(mine, then, domain)
                found.append(_comparison("forgetting", domain, name, "before", difference, tests.metric, setting))
    found += _of_target_labels(groups, tests)
    return found


def _differences(
    a: Sequence[FinishedRun], b: Sequence[FinishedRun], tests: Tests, by_domain: bool
) -> Iterator[tuple[str, Difference]]:
    """``a`` against ``b`` on the means of each role, and on each domain."""
    for role, words in MEANS.items():
        domains = _domains(a[0], role)
        if len(domains) > 1 or (domains and not by_domain):
            yield words, tests.on_means(a, b, domains)
    if by_domain:
        for domain in a[0].predictions:
            mine, theirs = ([run.predictions[domain] for run in runs] for runs in (a, b))
            yield domain, tests.on_domain(mine, theirs, domain)


def _of_target_labels(groups: Groups, tests: Tests) -> Iterator[dict[str, Any]]:
    """Does the source help (against target-only training of the same size), and is the source forgotten?"""
    for setting, group in groups.items():
        if not setting.target_examples or not setting.with_source or setting.target_domain is None:
            continue
        alone = groups.get(dataclasses.replace(setting, with_source=False), {})
        before = groups.get(base_of(setting), {})
        domain = setting.target_domain
        for name, runs in group.items():
            if name in CONTROLS:
                continue
            if name in alone and domain in runs[0].predictions:
                mine, theirs = ([run.predictions[domain] for run in side] for side in (runs, alone[name]))
                difference = tests.on_domain(mine, theirs, domain)
                yield _comparison(
                    "negative_transfer", domain, f"{name}, with source", f"{name}, target only", difference,
                    tests.metric, setting,
                )  # fmt: skip
            own = _domains(runs[0], "in_domain")
            if name in before and own:
                difference = tests.on_means(runs, before[name], own)
                after, earlier = f"{name}, {setting.target_examples} of {domain}", f"{name}, none of {domain}"
                yield _comparison("forgetting", MEANS["in_domain"], after, earlier, difference, tests.metric, setting)


def _comparison(
    question: str,
    domain: str,
    a: str,
    b: str,
    difference: Difference,
    metric: str,
    setting: Setting | None = None,
) -> dict[str, Any]:
    facts: dict[str, Any] = {"question": question, "domain": domain, "metric": metric, "a": a, "b": b}
    if setting is not None:
        facts |= {
            "direction": name_of(setting),
            "target_domain": setting.target_domain,
            "target_examples": setting.target_examples,
        }
    return facts | dataclasses.asdict(difference)


def with_verdicts(found: Sequence[dict[str, Any]], confidence: float) -> list[dict[str, Any]]:
    """Comparisons with Holm-adjusted p-values over each question, and the verdicts that follow."""
    names = {item.name for item in dataclasses.fields(Difference)}
    for question in dict.fromkeys(item["question"] for item in found):
        family = [item for item in found if item["question"] == question]
        decided = [item for item in family if item["count"] >= FEWEST_EXAMPLES]  # the others claim nothing
        adjusted = dict(zip(map(id, decided), holm([item["p_value"] for item in decided]), strict=True))
        for item in family:
            item["p_adjusted"] = float(adjusted.get(id(item), float("nan")))
            difference = Difference(**{name: item[name] for name in names})
            item["verdict"] = verdict(difference, item["p_adjusted"], confidence, FEWEST_EXAMPLES)
    return list(found)


# ---- tables ----------------------------------------------------------------------------------------------------


def _scores(setting: Setting, group: Mapping[str, Sequence[FinishedRun]], tests: Tests) -> list[dict[str, Any]]:
    """Scores of each run, then of all seeds of a strategy together (seed None)."""
    about = {
        "direction": name_of(setting),
        "target_domain": setting.target_domain,
        "target_examples": setting.target_examples,
        "with_source": setting.with_source,
    }
    scores = []
    for name, runs in group.items():
        for run in runs:
            own = [score for score in run.results["scores"] if score["stage"] in ("adapted", name)]
            scores += [score | about | {"strategy": name, "seed": run.seed} for score in own]
        if len(runs) == 1:
            scores += [score | about | {"strategy": name, "seed": None} for score in own]
            continue
        for score in own:
            resamples = tests.resamples if score["metric"] == tests.metric else min(tests.resamples, SIDE_RESAMPLES)
            parts = [run.predictions[score["domain"]] for run in runs]
            value, low, high = hierarchical_interval(score["metric"], parts, tests.confidence, resamples, tests.seed)
            scores.append(score | about | {"strategy": name, "seed": None, "value": value, "low": low, "high": high})
    return scores


def _pooled(scores: Iterable[Mapping[str, Any]], metric: str, setting: Setting, strategy: str) -> dict[str, Any]:
    """Scores of all seeds together by domain."""
    return {
        score["domain"]: score
        for score in scores
        if score["seed"] is None
        and score["metric"] == metric
        and score["strategy"] == strategy
        and score["direction"] == name_of(setting)
        and score["target_domain"] == setting.target_domain
        and score["target_examples"] == setting.target_examples
        and score["with_source"] == setting.with_source
    }


def _summary(groups: Groups, scores: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    sign = 1 if find_metric(metric).higher_is_better else -1
    rows = []
    for setting, group in groups.items():
        if setting != base_of(setting):
            continue
        for name in group:
            pooled = _pooled(scores, metric, setting, name)
            means = {
                role: _mean([score["value"] for score in pooled.values() if score["role"] == role]) for role in MEANS
            }
            defined = [score for score in pooled.values() if score["value"] is not None]
            worst = min(defined, key=lambda score: sign * score["value"], default=None)
            in_domain, shifted = means["in_domain"], means["shifted"]
            rows.append(
                {
                    "strategy": name,
                    "stage": name if name in CONTROLS else "adapted",
                    "direction": name_of(setting),
                    "in_domain_mean": in_domain,
                    "shifted_mean": shifted,
                    "gap": None if in_domain is None or shifted is None else sign * (in_domain - shifted),
                    "worst_domain": worst["domain"] if worst else "",
                    "validation": _mean([run.results["selection"]["value"] for run in group[name]]),
                }
            )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there is no value, or one is undefined."""
    if not values or any(value is None for value in values):
        return None
    return float(np.mean(np.array(values, dtype=float)))


def _cost(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Medians over the runs of each strategy without target labels."""
    rows = []
    for name in dict.fromkeys(run.strategy for run in runs):
        own = [run.results for run in runs if run.strategy == name and not run.setting.target_examples]

        def median(section: str, field: str, own: Sequence[Mapping[str, Any]] = own) -> float | None:
            values = [results[section].get(field) for results in own]
            known = [value for value in values if value is not None]
            return middle.median(known) if known else None

        sizes = [results["artefact"]["bytes"] for results in own if results["artefact"]["bytes"]]
        if own:
            rows.append(
                {
                    "strategy": name,
                    "trainable_parameters": own[0]["strategy"]["trainable_parameters"],
                    "total_parameters": own[0]["strategy"]["total_parameters"],
                    "train_seconds": median("timing", "train_seconds"),
                    "peak_memory_bytes": median("timing", "peak_memory_bytes"),
                    "artefact_bytes": middle.median(sizes) if sizes else None,
                    "predict_examples_per_second": median("timing", "predict_examples_per_second"),
                    "tokens": median("timing", "tokens"),
                    "runs": len(own),
                }
            )
    return rows


def _matrices(groups: Groups, scores: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Sources by targets for each strategy, where there are several single-domain sources."""
    settings = [s for s in groups if s == base_of(s) and len(s.train_domains) == 1]
    if len(settings) < 2:
        return []
    sources = [setting.train_domains[0] for setting in settings]
    seen = dict.fromkeys(domain for s in settings for runs in groups[s].values() for domain in runs[0].predictions)
    targets = [*sources, *(domain for domain in seen if domain not in sources)]
    matrices = []
    for name in dict.fromkeys(name for setting in settings for name in groups[setting]):
        pooled = [_pooled(scores, metric, setting, name) for setting in settings]
        ends = {
            end: [[row[domain][key] if domain in row else None for domain in targets] for row in pooled]
            for end, key in (("values", "value"), ("low", "low"), ("high", "high"))
        }
        matrices.append({"strategy": name, "sources": sources, "targets": targets, **ends})
    return matrices


def _learning_curves(groups: Groups, scores: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    curves = []
    with_target = [setting for setting in groups if setting.target_examples and setting.target_domain]
    keys = dict.fromkeys((base_of(s), s.target_domain, s.with_source, name) for s in with_target for name in groups[s])
    for base, domain, with_source, name in keys:
        settings = [
            s
            for s in with_target
            if base_of(s) == base and s.target_domain == domain and s.with_source == with_source and name in groups[s]
        ]
        if with_source and name in groups.get(base, {}):
            settings.append(base)
        settings.sort(key=lambda s: s.target_examples)
        pooled = [_pooled(scores, metric, setting, name) for setting in settings]
        points = [row.get(str(domain), {}) for row in pooled]
        curves.append(
            {
                "strategy": name,
                "direction": name_of(base),
                "domain": domain,
                "with_source": with_source,
                "sizes": [setting.target_examples for setting in settings],
                "values": [point.get("value") for point in points],
                "low": [point.get("low") for point in points],
                "high": [point.get("high") for point in points],
                "source_values": [
                    _mean([score["value"] for score in row.values() if score["role"] == "in_domain"]) for row in pooled
                ],
            }
        )
    return curves


def _detailed(groups: Groups) -> Iterator[tuple[Setting, str, FinishedRun]]:
    """The first seed of each strategy of each direction; nothing where there are many directions."""
    settings = [setting for setting in groups if setting == base_of(setting)]
    if len(settings) <= MOST_DETAILED_DIRECTIONS:
        for setting in settings:
            for name, runs in groups[setting].items():
                yield setting, name, runs[0]


def _calibration(groups: Groups) -> list[dict[str, Any]]:
    return [
        item
        | {
            "strategy": name,
            "seed": run.seed,
            "direction": name_of(setting),
            "domains": _domains(run, item["role"]),
        }
        for setting, name, run in _detailed(groups)
        for item in run.results.get("calibration", [])
    ]


def _training(groups: Groups) -> list[dict[str, Any]]:
    return [
        run.results["training"] | {"strategy": name, "seed": run.seed, "direction": name_of(setting)}
        for setting, name, run in _detailed(groups)
        if run.results.get("training")
    ]


def _confusion(groups: Groups, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts [reference][predicted] over all domains of a role and all seeds."""
    if labels["problem"] != "single_label":
        return []
    size = len(labels["names"])
    tables = []
    for setting, name, run in _detailed(groups):
        for role in MEANS:
            domains = _domains(run, role)
            if not domains:
                continue
            counts = np.zeros((size, size), dtype=np.int64)
            for each in groups[setting][name]:
                for domain in domains:
                    np.add.at(counts, (each.predictions[domain].reference, each.predictions[domain].predicted), 1)
            tables.append(
                {
                    "strategy": name,
                    "direction": name_of(setting),
                    "role": role,
                    "names": list(labels["names"]),
                    "counts": counts.tolist(),
                }
            )
    return tables


def _add_drops(joined: dict[str, Any]) -> None:
    """How much worse than in-domain each strategy is on the target of each distance."""
    sign = 1 if joined["higher_is_better"] else -1
    own = {(row["strategy"], row["direction"]): row["in_domain_mean"] for row in joined["summary"]}
    found = {
        (score["strategy"], score["direction"], score["domain"]): score["value"]
        for score in joined["scores"]
        if score["seed"] is None and score["metric"] == joined["metric"] and not score["target_examples"]
    }
    for item in joined["distances"]:
        drops = {}
        for strategy in joined["strategies"]:
            at_home = own.get((strategy, item["source"]))
            there = found.get((strategy, item["source"], item["target"]))
            if at_home is not None and there is not None:
                drops[strategy] = sign * (at_home - there)
        item["drop"] = drops


def _selection_rule(runs: Sequence[FinishedRun]) -> str:
    rules = dict.fromkeys(run.results["selection"]["rule"] for run in runs if not run.is_control)
    return ", ".join(rules) or runs[0].results["selection"]["rule"]


def _run_facts(run: FinishedRun) -> dict[str, Any]:
    return {
        "name": _label(run),
        "strategy": run.strategy,
        "seed": run.seed,
        "direction": name_of(run.setting),
        "target_domain": run.setting.target_domain,
        "target_examples": run.setting.target_examples,
        "with_source": run.setting.with_source,
        "status": "finished",
        "error": "",
        "step": run.results["selection"]["step"],
    }


def _label(run: FinishedRun) -> str:
    setting = run.setting
    parts = [f"{run.strategy}, seed {run.seed}, on {name_of(setting)}"]
    if setting.target_examples:
        source = "with" if setting.with_source else "without"
        parts.append(f"{setting.target_examples} of {setting.target_domain} {source} source")
    return ", ".join(parts)


def _warnings(joined: Mapping[str, Any], runs: Sequence[FinishedRun]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    small = {domain: count for domain, count in joined["data"]["test_domains"].items() if count < FEWEST_EXAMPLES}
    if small:
        counts = ", ".join(f"{domain} ({count})" for domain, count in small.items())
        found.append(
            f"No conclusion is possible on {counts}: fewer than {FEWEST_EXAMPLES} test examples. Give more of them."
        )
    failed = [item["name"] for item in joined["runs"] if item["status"] == "failed"]
    if failed:
        found.append(
            f"{len(failed)} of {len(joined['runs'])} runs failed and are not in the tables: {'; '.join(failed)}."
        )
    absent = [item["name"] for item in joined["runs"] if item["status"] == "missing"]
    if absent:
        found.append(f"{len(absent)} runs are missing: {'; '.join(absent)}.")
    uneven = _uneven_seeds(runs)
    if uneven:
        found.append(f"Not all strategies have the same seeds: {uneven}.")
    leaks = joined["data"]["leaks"]
    leaked = leaks["exact"] + leaks["near"]
    if leaked and not leaks["dropped"]:
        total = joined["data"]["examples"]["test"]
        found.append(
            f"{leaked:,} of {total:,} test examples also occur in train, which flatters every score: "
            "--data.drop_leaks removes their twins."
        )
    return found


def _uneven_seeds(runs: Sequence[FinishedRun]) -> str:
    """Seeds of each trained strategy, where they differ within a setting; "" where they do not."""
    for group in _by_setting(runs).values():
        seeds = {name: [run.seed for run in members] for name, members in group.items() if name not in CONTROLS}
        if len({tuple(found) for found in seeds.values()}) > 1:
            return "; ".join(f"{name} {', '.join(map(str, found))}" for name, found in seeds.items())
    return ""
