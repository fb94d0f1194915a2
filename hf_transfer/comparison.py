"""Floor 4: what several runs say together, from their results.json alone: scores over seeds, paired tests, verdicts.

A *setting* is what a run learns from: a direction (its train domains), and labelled examples of a target domain, if
any. Within a setting, strategies and controls are compared on the same test examples, all seeds of each together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics as middle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from hf_transfer.config import CONTROLS, RunConfig
from hf_transfer.errors import InputError
from hf_transfer.metrics import find_metric
from hf_transfer.records import Predictions
from hf_transfer.report.answer import FEWEST_EXAMPLES, MEANS, answer, family_of
from hf_transfer.report.examples import read_examples, relabelled
from hf_transfer.report.results import plain
from hf_transfer.robustness import effective_robustness
from hf_transfer.significance import (
    MOST_TRIALS,
    SACREBLEU_TEST,
    Difference,
    hierarchical_interval,
    holm,
    paired_difference,
    paired_difference_of_means,
    shift_difference,
    verdict,
)
from hf_transfer.statistics import derived_seed

SIDE_RESAMPLES = 2_000
"""Resamples for intervals of metrics beside the main one."""
WITHOUT_SEEDS = ("before", "tfidf", "majority")
"""Controls that are the same for every seed, unless the seed draws what they learn from."""
MOST_DETAILED_DIRECTIONS = 3
"""Directions up to which each has its own calibration, confusion and curves: a matrix would drown in them."""


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
    place: str = ""
    """Where it was read from, for messages."""
    label_names: Sequence[str] | None = None
    """The order of classes that predictions are put in; by default the run's own."""

    @property
    def strategy(self) -> str:
        """The strategy, or the name of the control."""
        return self.results["strategy"]["name"]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.results["seed"]

    @property
    def confidence(self) -> float:
        """Level of its own intervals."""
        return self.results["config"]["evaluate"]["confidence"]

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
        own = read_examples(self.results)
        names = self.results["labels"]["names"]
        wanted = names if self.label_names is None else list(self.label_names)
        if wanted == names or sorted(wanted) != sorted(names):  # other classes are refused, not reordered
            return own
        return {domain: relabelled(part, names, wanted) for domain, part in own.items()}


def compare_with_controls(
    results: Mapping[str, Any], controls: Sequence[Mapping[str, Any]], not_applicable: Sequence[str], config: RunConfig
) -> dict[str, Any]:
    """The results of a run with the scores of its controls, and the run compared with each of them by domain.

    It is compared on means over domains too, as ``join`` compares the same run: families of other sizes would give the
    same comparison another verdict. A run of translation with the control ``before`` gets a ``ledger``.
    """
    joined = dict(results)
    joined["scores"] = [*results["scores"], *(score for control in controls for score in control["scores"])]
    joined["notes"] = [*results["notes"], *not_applicable]
    runs = [FinishedRun(item, label_names=results["labels"]["names"]) for item in (results, *controls)]
    evaluate = config.evaluate
    tests = Tests(results["shift"]["metric"], evaluate.confidence, evaluate.resamples, config.seed)
    found = []
    for control in runs[1:]:
        for domain, mine in runs[0].predictions.items():
            difference = tests.on_domain([mine], [control.predictions[domain]], domain)
            is_alone = domain in _alone(runs[0])
            found.append(
                _comparison("control", domain, "adapted", control.strategy, difference, tests.metric, None, is_alone)
            )
        for words, difference in _on_means([runs[0]], [control], tests):
            found.append(_comparison("control", words, "adapted", control.strategy, difference, tests.metric))
    joined["comparisons"] = plain(with_verdicts(found, evaluate.confidence))
    if _is_translation(results):
        own, before = (
            {s["domain"]: s for s in joined["scores"] if (s["stage"], s["metric"]) == (stage, tests.metric)}
            for stage in ("adapted", "before")
        )
        against = {item["domain"]: item for item in joined["comparisons"] if item["b"] == "before"}
        about = {"strategy": runs[0].strategy, "direction": name_of(runs[0].setting), "metric": tests.metric}
        rows = [about | _ledger_row(own, before, against, tests.metric)] if before else []
        joined["ledger"] = plain(with_shares(rows))
    return joined


def _is_translation(results: Mapping[str, Any]) -> bool:
    return results["labels"]["problem"] == "translation"


def join(
    results_of_runs: Sequence[Mapping[str, Any]],
    *,
    config: Mapping[str, Any],
    other_runs: Sequence[Mapping[str, Any]] = (),
    distances: Sequence[Mapping[str, Any]] = (),
    notes: Iterable[str] = (),
    examples_shown: Sequence[Mapping[str, Any]] = (),
    places: Sequence[str] = (),
) -> dict[str, Any]:
    """The contents of a comparison's results.json: as it will be read, None for nan.

    Args:
        results_of_runs: finished runs, in the order in which they are reported.
        config: the comparison's, as plain nested dicts (``shown_config``); ``evaluate`` and ``seed`` of it are used.
        other_runs: failed and missing ones, as the ``runs`` of results.json list them.
        distances: ``describe_distances`` of source and target domains.
        places: where each of ``results_of_runs`` was read from, for messages.

    Raises:
        InputError: no finished run, or runs that cannot be compared.
    """
    if not results_of_runs:
        raise InputError("there is no finished run to report on: give folders that hold a results.json.")
    places = places or [""] * len(results_of_runs)
    label_names = results_of_runs[0]["labels"]["names"]
    runs = [FinishedRun(results, place, label_names) for results, place in zip(results_of_runs, places, strict=True)]
    check_comparable(runs)
    first = next((run for run in runs if not run.is_control), runs[0]).results
    tests = Tests(
        first["shift"]["metric"], config["evaluate"]["confidence"], config["evaluate"]["resamples"], config["seed"]
    )
    groups, more_notes = _without_lone_target(_by_setting(runs))
    scores = plain([score for setting, group in groups.items() for score in _scores(setting, group, tests)])
    strategies = list(dict.fromkeys(run.strategy for run in runs))
    seeds = sorted({run.seed for run in runs})
    several = max(len(members) for group in groups.values() for members in group.values()) > 1
    every_note = [*notes, *more_notes, *(note for run in runs for note in run.results["notes"])]
    joined: dict[str, Any] = {
        "schema": first["schema"],
        "kind": "comparison",
        "task": first["task"],
        "name": first["data"]["name"],
        "metric": tests.metric,
        "higher_is_better": find_metric(tests.metric).higher_is_better,
        "confidence": tests.confidence,
        "resamples": tests.resamples,
        # of metrics beside the main one; a single run brings its own intervals along
        "side_resamples": min(tests.resamples, SIDE_RESAMPLES) if several else tests.resamples,
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
        "label_names": label_names,
        "checkpoint": first["checkpoint"],
        "selection": {"rule": _selection_rule(runs), "metric": tests.metric},
        "directions": [
            {"name": name_of(setting), "train_domains": list(setting.train_domains)} for setting in _directions(groups)
        ],
        "scores": scores,
        "comparisons": with_verdicts(_comparisons(groups, tests), tests.confidence),
        "summary": _summary(groups, scores, tests.metric),
        "cost": _cost(groups),
        "matrix": _matrices(groups, scores, tests.metric),
        "learning_curves": _learning_curves(groups, scores, tests.metric),
        "calibration": _calibration(groups, tests.confidence),
        "distances": [dict(item) for item in distances],
        "confusion": _confusion(groups, first["labels"]["problem"], label_names),
        "training": _training(groups),
        "data": first["data"],
        "runs": [*map(run_facts, runs), *other_runs],
        "examples_shown": list(examples_shown),
        "notes": list(dict.fromkeys(every_note)),
        "environment": first["environment"],
        "config": dict(config),
    }
    joined = plain(joined)  # what follows reads None for nan, as whoever reads the file does
    # BLEU of different texts has no common scale: of translations, what is compared is the same text before and after
    nothing: dict[str, Any] = {"points": [], "line": None, "effective": {}}
    joined["robustness"] = nothing if _is_translation(first) else plain(effective_robustness(joined))
    _add_drops(joined)
    joined["ledger"] = plain(_ledger(groups, joined)) if _is_translation(first) else []
    joined["translation"] = plain(_translation(groups))
    joined["signatures"] = next((each["signatures"] for each in _described(runs)), {})
    joined["warnings"] = _warnings(joined, runs)
    joined["answer"] = answer(joined)
    return joined


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise InputError, naming every differing field, unless all runs may stand in one table.

    Their classes may come in another order (a checkpoint that brings its head brings its order), and their intervals
    may be of another level: both are made equal.
    """
    fields = {
        "task": lambda results: results["task"],
        "metric": lambda results: results["shift"]["metric"],
        "problem": lambda results: results["labels"]["problem"],
        "labels": lambda results: ", ".join(sorted(results["labels"]["names"])),
        "test domains": lambda results: ", ".join(sorted(results["data"]["test_domains"])),
    }
    problems = [problem for run in runs for problem in _problems_alone(run)]
    if problems:
        raise InputError(problems)
    for run in runs[1:]:
        cannot = f"{_label(run, True)} cannot be compared with {_label(runs[0], True)}"
        differing = [
            f"{cannot}: {field} is {read(run.results)}, not {read(runs[0].results)}."
            for field, read in fields.items()
            if read(run.results) != read(runs[0].results)
        ]
        problems += differing or _differing_examples(run, runs[0], cannot)
    started = [run for run in runs if run.results["checkpoint"]["sha256"]]
    for run in started[1:]:
        theirs, ours = (each.results["checkpoint"] for each in (run, started[0]))
        if theirs["sha256"] != ours["sha256"]:
            problems.append(
                f"{_label(run, True)} cannot be compared with {_label(started[0], True)}: checkpoint is "
                f"{_version(theirs)}, not {_version(ours)}."
            )
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


def _version(checkpoint: Mapping[str, Any]) -> str:
    return f"{checkpoint['id']} (sha256 {checkpoint['sha256'][:8]})"


def _problems_alone(run: FinishedRun) -> list[str]:
    """Why a run cannot be compared with anything."""
    try:
        counts = {domain: len(part.example_ids) for domain, part in run.predictions.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"{_label(run, True)}: its examples are damaged ({type(error).__name__}: {error}): repeat the run."]
    wanted = {domain: count for domain, count in run.results["data"]["test_domains"].items() if count}
    if counts == wanted:
        return []
    return [
        f"{_label(run, True)} holds predictions of {sum(counts.values()):,} test examples, not of all "
        f"{sum(wanted.values()):,}: repeat the run."
    ]


def _differing_examples(run: FinishedRun, first: FinishedRun, cannot: str) -> list[str]:
    """Test examples, or their labels, in which two runs over the same domains differ."""
    problems = []
    for domain, mine in first.predictions.items():
        theirs = run.predictions[domain]
        counts = f"{len(theirs.example_ids):,} and {len(mine.example_ids):,} examples"
        if not np.array_equal(mine.example_ids, theirs.example_ids):
            problems.append(
                f"{cannot}: the test examples of {domain} differ ({counts}): run both on the same data and splits."
            )
        elif not np.array_equal(mine.reference, theirs.reference):
            problems.append(f"{cannot}: references (the given labels) of the test examples of {domain} differ.")
    return problems


# ---- paired tests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tests:
    """How differences are tested in one comparison."""

    metric: str
    confidence: float
    resamples: int
    seed: int

    def resamples_of(self, metric: str) -> int:
        """Resamples for the interval of a score."""
        return self.resamples if metric == self.metric else min(self.resamples, SIDE_RESAMPLES)

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
            for run, after in pairwise(members):
                if run.seed == after.seed:
                    where = f" ({run.place} and {after.place})" if run.place else ""
                    what = f"two runs of {_label(run)} are given{where}"
                    raise InputError(f"{what}, which learn from the same: give one.")
    return groups


def _without_lone_target(groups: Groups) -> tuple[Groups, list[str]]:
    """A single setting that holds target labels is reported as the direction that it is, and a note says what it is."""
    (setting, group), *others = groups.items()
    if others or not setting.target_examples:
        return groups, []
    source = "besides the source" if setting.with_source else "and no source"
    note = f"Every run learnt from {setting.target_examples:,} labelled examples of {setting.target_domain} {source}."
    return {base_of(setting): group}, [note]


def _directions(groups: Groups) -> list[Setting]:
    """What was trained on, target labels apart, in order of appearance; none of it need have been run alone."""
    return list(dict.fromkeys(base_of(setting) for setting in groups))


def base_of(setting: Setting) -> Setting:
    """The setting without target labels."""
    return Setting(setting.train_domains)


def name_of(setting: Setting) -> str:
    """A direction in words: its train domains."""
    return ", ".join(setting.train_domains)


def _domains(run: FinishedRun, role: str) -> list[str]:
    own = run.setting.train_domains
    return [domain for domain in run.predictions if (domain in own) == (role == "in_domain")]


def _alone(run: FinishedRun) -> set[str]:
    """Domains that are the only one of their role, and stand for it."""
    of_roles = (_domains(run, role) for role in MEANS)
    return {domains[0] for domains in of_roles if len(domains) == 1}


def _comparisons(groups: Groups, tests: Tests) -> list[dict[str, Any]]:
    """Every comparison that the runs allow, in the order in which they are reported."""
    found: list[dict[str, Any]] = []
    directions = _directions(groups)
    is_translation = any(_is_translation(runs[0].results) for group in groups.values() for runs in group.values())
    for setting in directions:
        group = groups.get(setting, {})
        strategies = [name for name in group if name not in CONTROLS]
        controls = [name for name in group if name in CONTROLS]
        pairs = [("control", a, b) for a in strategies for b in controls]
        pairs += [("strategies", a, b) for a, b in combinations(strategies, 2)]
        for question, a, b in pairs:
            by_domain = len(directions) <= MOST_DETAILED_DIRECTIONS
            alone = _alone(group[a][0])
            for where, difference in _differences(group[a], group[b], tests, by_domain):
                found.append(_comparison(question, where, a, b, difference, tests.metric, setting, where in alone))
        for name in strategies:
            own, others = (_domains(group[name][0], role) for role in ("in_domain", "shifted"))
            if own and others and not is_translation:
                difference = tests.of_shift(group[name], own, others)
                where = MEANS["shifted"]
                found.append(_comparison("shift", where, name, "in-domain", difference, tests.metric, setting))
        for name in strategies if "before" in group and not is_translation else ():  # there the ledger says it
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
    yield from _on_means(a, b, tests, fewest=2 if by_domain else 1)
    if by_domain:
        for domain in a[0].predictions:
            mine, theirs = ([run.predictions[domain] for run in runs] for runs in (a, b))
            yield domain, tests.on_domain(mine, theirs, domain)


def _on_means(
    a: Sequence[FinishedRun], b: Sequence[FinishedRun], tests: Tests, fewest: int = 2
) -> Iterator[tuple[str, Difference]]:
    """``a`` against ``b`` on the mean over the domains of each role that has ``fewest`` of them."""
    for role, words in MEANS.items():
        domains = _domains(a[0], role)
        if len(domains) >= fewest:
            yield words, tests.on_means(a, b, domains)


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
    alone_in_role: bool = False,
) -> dict[str, Any]:
    facts: dict[str, Any] = {"question": question, "domain": domain, "metric": metric, "a": a, "b": b}
    facts["alone_in_role"] = alone_in_role
    if setting is not None:
        facts |= {
            "direction": name_of(setting),
            "target_domain": setting.target_domain,
            "target_examples": setting.target_examples,
        }
    return facts | dataclasses.asdict(difference)


def with_verdicts(found: Sequence[dict[str, Any]], confidence: float) -> list[dict[str, Any]]:
    """Comparisons with Holm-adjusted p-values over each family, and the verdicts that follow.

    A family is a question, asked of roles as a whole (a mean over domains, or the one domain) or of single domains: a
    reader of the few need not pay for the many. What has too few examples for a verdict claims nothing, so that
    it does not count as a comparison.
    """
    names = [item.name for item in dataclasses.fields(Difference)]

    def judged(item: Mapping[str, Any], p_adjusted: float) -> str:
        return verdict(Difference(**{name: item[name] for name in names}), p_adjusted, confidence, FEWEST_EXAMPLES)

    for name in dict.fromkeys(map(family_of, found)):
        family = [item for item in found if family_of(item) == name]
        for item in family:
            item["p_adjusted"], item["verdict"] = float("nan"), judged(item, float("nan"))
        decided = [item for item in family if item["verdict"] != "too few examples"]
        for item, p_adjusted in zip(decided, holm([item["p_value"] for item in decided]), strict=True):
            item["p_adjusted"], item["verdict"] = p_adjusted, judged(item, p_adjusted)
    return list(found)


# ---- translation: what was gained and what it cost elsewhere ---------------------------------------------------


def _ledger(groups: Groups, joined: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each strategy of each direction in which the checkpoint was scored as it comes (``before``)."""
    rows = []
    for setting, group in groups.items():
        if setting != base_of(setting) or "before" not in group:
            continue
        before = _pooled(joined["scores"], joined["metric"], setting, "before")
        for name in group:
            if name in CONTROLS:
                continue
            own = _pooled(joined["scores"], joined["metric"], setting, name)
            found = {
                item["domain"]: item
                for item in joined["comparisons"]
                if (item["question"], item["direction"]) == ("control", name_of(setting))
                and (item["a"], item["b"], item["target_examples"]) == (name, "before", 0)
            }
            about = {"strategy": name, "direction": name_of(setting), "metric": joined["metric"]}
            rows.append(about | _ledger_row(own, before, found, joined["metric"]))
    return with_shares(rows)


def _ledger_row(
    own: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Mapping[str, Any]],
    metric: str,
) -> dict[str, Any]:
    """What one strategy changed, from scores by domain and comparisons by domain or words of ``MEANS``.

    Returns:
        ``domains``: of each, in-domain first, ``domain, role, count, before, after, difference, low, high, p_value,
        p_adjusted, verdict``; a difference over 0 is a gain, whichever way the metric points. ``in_domain`` and
        ``shifted``: the same of the mean over the domains of a role, with their number as ``domains``; None where
        there are none. ``worst_domain``: of the shifted ones, that which lost most.
    """
    sign = 1 if find_metric(metric).higher_is_better else -1

    def entry(values: Sequence[tuple[float | None, float | None]], item: Mapping[str, Any] | None) -> dict[str, Any]:
        then, now = (_mean(side) for side in zip(*values, strict=True))
        facts = {"before": then, "after": now}
        if item is not None:
            return facts | {key: item[key] for key in LEDGER_FACTS}
        difference = None if then is None or now is None else sign * (now - then)
        return facts | dict.fromkeys(LEDGER_FACTS) | {"difference": difference, "verdict": ""}

    domains = [
        {"domain": name, "role": score["role"], "count": score["count"]}
        | entry([(before[name]["value"], score["value"])], found.get(name))
        for name, score in sorted(own.items(), key=lambda pair: pair[1]["role"] != "in_domain")
        if name in before
    ]
    row: dict[str, Any] = {"domains": domains}
    for role, words in MEANS.items():
        mine = [item for item in domains if item["role"] == role]
        lone = found.get(mine[0]["domain"]) if len(mine) == 1 else None
        values = [(item["before"], item["after"]) for item in mine]
        facts = {"domains": len(mine), "count": sum(item["count"] for item in mine)}
        row[role] = facts | entry(values, found.get(words, lone)) if mine else None
    elsewhere = [item for item in domains if item["role"] == "shifted" and item["difference"] is not None]
    row["worst_domain"] = min(elsewhere, key=lambda item: item["difference"], default={"domain": ""})["domain"]
    return row


LEDGER_FACTS = ("difference", "low", "high", "p_value", "p_adjusted", "verdict")
"""Of a comparison, what the ledger holds."""


def with_shares(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``kept``: the in-domain gain as a share of the largest one of the same direction that is no chance.

    None for a gain that may be chance: it can be over the largest that is none, and would keep 167% of it.
    """
    gains: dict[str, float] = {}
    for row in rows:
        found = row["in_domain"] or {}
        if found.get("verdict") == "helps":
            gains[row["direction"]] = max(found["difference"], gains.get(row["direction"], 0.0))
    for row in rows:
        found = row["in_domain"] or {}
        is_gain = found.get("verdict") == "helps"
        row["kept"] = found["difference"] / gains[row["direction"]] if is_gain else None
    return list(rows)


def _described(runs: Iterable[FinishedRun]) -> Iterator[Mapping[str, Any]]:
    return (run.results["translation"] for run in runs if run.results.get("translation"))


def _translation(groups: Groups) -> list[dict[str, Any]]:
    """What each run without target labels says of its translations beside their scores."""
    settings = [setting for setting in groups if setting == base_of(setting)]
    if len(settings) > MOST_DETAILED_DIRECTIONS:
        return []
    return [
        {"strategy": name, "seed": run.seed, "direction": name_of(setting), "domains": described["domains"]}
        | {key: described.get(key) for key in ("trade_off", "knn")}
        for setting in settings
        for name, runs in groups[setting].items()
        for run in runs
        for described in _described([run])
    ]


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
        by_run = [_own_scores(run, name, tests) for run in runs]
        for run, own in zip(runs, by_run, strict=True):
            scores += [score | about | {"strategy": name, "seed": run.seed} for score in own.values()]
        for key, score in by_run[0].items():
            if all(key in own for own in by_run):
                pooled = score if len(runs) == 1 else _over_seeds(score, runs, [own[key] for own in by_run], tests)
                scores.append(pooled | about | {"strategy": name, "seed": None})
    return scores


def _own_scores(run: FinishedRun, name: str, tests: Tests) -> dict[tuple[str, str], dict[str, Any]]:
    """Scores of the run itself, not of controls beside it, by domain and metric, with intervals of this comparison."""
    own = {
        (score["domain"], score["metric"]): score
        for score in run.results["scores"]
        if score["stage"] in ("adapted", name) and score["split"] == "test"
    }
    if run.confidence == tests.confidence:
        return own
    again = {}
    for (domain, metric), score in own.items():
        seed = derived_seed(run.results["seed"], domain)
        part = run.predictions[domain]
        _, low, high = hierarchical_interval(metric, [part], tests.confidence, tests.resamples_of(metric), seed)
        again[domain, metric] = score | {"low": low, "high": high}
    return again


def _over_seeds(
    score: dict[str, Any], runs: Sequence[FinishedRun], own: Sequence[Mapping[str, Any]], tests: Tests
) -> dict[str, Any]:
    """A score as the mean over the seeds; without an interval where the probabilities that it needs were not kept."""
    metric = score["metric"]
    parts = [run.predictions[score["domain"]] for run in runs]
    _, low, high = hierarchical_interval(metric, parts, tests.confidence, tests.resamples_of(metric), tests.seed)
    return score | {"value": _mean([item["value"] for item in own]), "low": low, "high": high}


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


def _cost(groups: Groups) -> list[dict[str, Any]]:
    """Medians over the runs of each strategy without target labels."""
    rows = []
    groups = {setting: group for setting, group in groups.items() if setting == base_of(setting)}
    for name in dict.fromkeys(name for group in groups.values() for name in group):
        own = [run.results for group in groups.values() for run in group.get(name, [])]

        def median(section: str, field: str, own: Sequence[Mapping[str, Any]] = own) -> float | None:
            values = [results[section].get(field) for results in own]
            return _median([value for value in values if value is not None])

        sizes = [results["artefact"]["bytes"] for results in own if results["artefact"]["bytes"]]
        rows.append(
            {
                "strategy": name,
                "trainable_parameters": median("strategy", "trainable_parameters"),
                "total_parameters": median("strategy", "total_parameters"),
                "train_seconds": median("timing", "train_seconds"),
                "peak_memory_bytes": median("timing", "peak_memory_bytes"),
                "artefact_bytes": _median(sizes),
                "predict_examples_per_second": median("timing", "predict_examples_per_second"),
                "tokens": median("timing", "tokens"),
                "runs": len(own),
            }
        )
    return rows


def _median(values: Sequence[float]) -> float | None:
    """None of no values; half a byte or half a parameter is rounded away."""
    if not values:
        return None
    median = middle.median(values)
    return round(median) if all(isinstance(value, int) for value in values) else median


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
        settings.sort(key=lambda s: s.target_examples)
        pooled = [_pooled(scores, metric, setting, name) for setting in settings]
        start = (
            name if with_source else "before"
        )  # without the source, none of the target is the checkpoint as it comes
        if start in groups.get(base, {}):
            settings.insert(0, base)
            pooled.insert(0, _pooled(scores, metric, base, start))
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


def _calibration(groups: Groups, confidence: float) -> list[dict[str, Any]]:
    """As each first seed describes it; without its intervals where they are of another level."""
    return [
        item
        | ({} if run.confidence == confidence else {"ece_low": None, "ece_high": None})
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


def _confusion(groups: Groups, problem: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Counts [reference][predicted] over all domains of a role and all seeds."""
    if problem != "single_label":
        return []
    size = len(names)
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
                    "names": list(names),
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
    strategies = [] if joined["problem"] == "translation" else joined["strategies"]
    for item in joined["distances"]:
        drops = {}
        for strategy in strategies:
            at_home = own.get((strategy, item["source"]))
            there = found.get((strategy, item["source"], item["target"]))
            if at_home is not None and there is not None:
                drops[strategy] = sign * (at_home - there)
        item["drop"] = drops


def _selection_rule(runs: Sequence[FinishedRun]) -> str:
    rules = dict.fromkeys(run.results["selection"]["rule"] for run in runs if not run.is_control)
    return ", ".join(rules) or runs[0].results["selection"]["rule"]


def run_facts(run: FinishedRun) -> dict[str, Any]:
    """A finished run, as ``runs`` of results.json lists it."""
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


def _label(run: FinishedRun, with_place: bool = False) -> str:
    setting = run.setting
    parts = [f"{run.strategy}, seed {run.seed}, on {name_of(setting)}"]
    if setting.target_examples:
        source = "with" if setting.with_source else "without"
        parts.append(f"{setting.target_examples} of {setting.target_domain} {source} source")
    return ", ".join(parts) + (f" ({run.place})" if with_place and run.place else "")


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
        what = "failed and is not in the tables" if len(failed) == 1 else "failed and are not in the tables"
        found.append(f"{len(failed)} of {len(joined['runs'])} runs {what}: {'; '.join(failed)}.")
    absent = [item["name"] for item in joined["runs"] if item["status"] == "missing"]
    if absent:
        what = "1 run is missing" if len(absent) == 1 else f"{len(absent)} runs are missing"
        found.append(f"{what}: {'; '.join(absent)}.")
    uneven = _uneven_seeds(runs)
    if uneven:
        found.append(f"Not all strategies have the same seeds: {uneven}.")
    if len({run.results["data"]["fingerprint"] for run in runs}) > 1:
        found.append("Runs read different versions of the data; their test examples have the same ids and labels.")
    signatures = [each["signatures"] for each in _described(runs)]
    if any(each != signatures[0] for each in signatures):
        found.append("Runs were scored with different settings or versions of sacrebleu: the tables name the first.")
    found += _too_coarse(joined)
    data = max((run.results["data"] for run in runs), key=_leaked)
    if _leaked(data):
        total = data["examples"]["test"]
        where = f" of {', '.join(data['train_domains'])}" if len(joined["directions"]) > 1 else ""
        found.append(
            f"{_leaked(data):,} of {total:,} test examples also occur in train{where}, which flatters every score: "
            "--data.drop_leaks removes their twins."
        )
    return found


def _too_coarse(joined: Mapping[str, Any]) -> Iterator[str]:
    """Families of so many comparisons that the smallest resampled p-value, corrected for them, is no finding."""
    level = 1 - joined["confidence"]
    for family in dict.fromkeys(map(family_of, joined["comparisons"])):
        decided = [
            item for item in joined["comparisons"] if family_of(item) == family and item["p_adjusted"] is not None
        ]
        tests = {item["test"] for item in decided} - {"exact McNemar"}
        # permutations and sacrebleu's trials reach 1 / (number + 1), an inverted interval twice that
        parts = [1 if name in ("paired permutation", SACREBLEU_TEST) else 2 for name in tests]
        needed = max(parts, default=0) * len(decided) / level
        trials = len(decided) / level if SACREBLEU_TEST in tests else 0.0
        asked = f"{len(decided):,} comparisons ({family[0].replace('_', ' ')}, {'means' if family[1] else 'by domain'})"
        if trials >= MOST_TRIALS + 1:
            yield (
                f"{MOST_TRIALS:,} trials, the most that sacrebleu's test makes here, are too few for {asked}: real "
                "differences may go unseen. Compare fewer strategies, domains or directions at once."
            )
        elif needed >= joined["resamples"] + 1:
            yield (
                f"{joined['resamples']:,} resamples are too few for {asked}: real differences may go unseen. Raise "
                f"--evaluate.resamples to {1000 * math.ceil(needed / 1000):,}."
            )


def _leaked(data: Mapping[str, Any]) -> int:
    """Test examples with a twin in train that was not removed."""
    leaks = data["leaks"]
    return 0 if leaks["dropped"] else leaks["exact"] + leaks["near"]


def _uneven_seeds(runs: Sequence[FinishedRun]) -> str:
    """Seeds of everything trained by chance, where they differ within a setting; "" where they do not."""
    for setting, group in _by_setting(runs).items():
        seeds = {name: [run.seed for run in members] for name, members in group.items() if name not in WITHOUT_SEEDS}
        if len({tuple(found) for found in seeds.values()}) > 1:
            listed = "; ".join(f"{name} {', '.join(map(str, found))}" for name, found in seeds.items())
            targets = f" (with {setting.target_examples} of {setting.target_domain})" if setting.target_examples else ""
            return listed + targets
    return ""
