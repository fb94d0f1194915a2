"""Several runs together: pooled scores, who is compared with whom and with what sign, verdicts, refusals."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from comparison_example import translation_alone, translation_example, translation_run, translation_runs
from simulated_runs import RESAMPLES, classes, compare_config, numbers, run_results, together

from hf_transfer.comparison import FinishedRun, _too_coarse, compare_with_controls, join, with_shares
from hf_transfer.config import EvaluateConfig, RunConfig
from hf_transfer.errors import InputError
from hf_transfer.records import LabelSpace, Predictions
from hf_transfer.report import read_results, write_json
from hf_transfer.report.examples import describe_examples, read_examples
from hf_transfer.report.tables import make_sections
from hf_transfer.significance import (
    SACREBLEU_TEST,
    hierarchical_interval,
    holm,
    paired_difference,
    paired_difference_of_means,
    shift_difference,
)

FEW = {"confidence": 0.95, "resamples": 200}
RIGHT = {"books": 0.9, "dvd": 0.8, "kitchen": 0.7, "apps": 0.6}
HOME = ("books", "dvd")


def runs_of(strategies=("lora", "full"), controls=("tfidf",), seeds=(0, 1), right=RIGHT, **about):
    """Strategies one point apart by seed, controls (with one seed) ten points below."""
    found = [
        run_results(name, seed, {d: v - 0.01 * seed - 0.05 * place for d, v in right.items()}, train=HOME, **about)
        for place, name in enumerate(strategies)
        for seed in seeds
    ]
    return found + [
        run_results(name, 0, {d: v - 0.1 for d, v in right.items()}, train=HOME, **about) for name in controls
    ]


def joined_of(runs, **changes):
    return join(runs, config=compare_config(evaluate=FEW), **changes)


def of_question(joined, question):
    return [item for item in joined["comparisons"] if item["question"] == question]


def one(items, **facts):
    (found,) = [item for item in items if all(item[key] == value for key, value in facts.items())]
    return found


def numbers_of(difference):
    return {key: getattr(difference, key) for key in ("difference", "low", "high", "p_value", "test", "count")}


def only_numbers(item):
    return {key: item[key] for key in ("difference", "low", "high", "p_value", "test", "count")}


@pytest.fixture(scope="module")
def joined():
    return joined_of(runs_of())


# ---- scores ----------------------------------------------------------------------------------------------------


def test_scores_over_seeds_are_means_of_the_seeds_by_hand(joined):
    pooled = {(s["strategy"], s["domain"]): s["value"] for s in joined["scores"] if s["seed"] is None}
    assert pooled["lora", "books"] == pytest.approx((0.9 + 0.89) / 2)
    assert pooled["full", "apps"] == pytest.approx((0.55 + 0.54) / 2)
    assert pooled["tfidf", "kitchen"] == pytest.approx(0.6)
    seeds = {(s["strategy"], s["seed"]): s["value"] for s in joined["scores"] if s["domain"] == "books"}
    assert (seeds["lora", 0], seeds["lora", 1]) == (pytest.approx(0.9), pytest.approx(0.89))


def test_the_interval_over_seeds_is_hierarchical_and_that_of_a_single_run_its_own():
    runs = runs_of()
    joined = joined_of(runs)
    books = [read_examples(run)["books"] for run in runs[:2]]
    pooled = one(joined["scores"], strategy="lora", domain="books", seed=None)
    assert (pooled["value"], pooled["low"], pooled["high"]) == hierarchical_interval("accuracy", books, 0.95, 200, 0)
    own = one(runs[-1]["scores"], domain="books")
    control = one(joined["scores"], strategy="tfidf", domain="books", seed=None)
    assert (control["low"], control["high"]) == (own["low"], own["high"])
    assert joined["interval"] == "hierarchical bootstrap over 2 seeds x examples"
    assert joined_of(runs_of(seeds=(0,)))["interval"] == "percentile bootstrap over examples"


def test_a_score_whose_probabilities_were_not_kept_has_its_mean_and_no_interval():
    runs = runs_of(metrics=("accuracy", "log_loss"), controls=())
    for run in runs:
        for columns in run["examples"]["test"].values():
            columns["confidence"] = np.max(columns.pop("probabilities"), 1).tolist()
    joined = joined_of(runs)
    own = [one(run["scores"], domain="books", metric="log_loss")["value"] for run in runs[:2]]
    pooled = one(joined["scores"], strategy="lora", domain="books", metric="log_loss", seed=None)
    assert pooled["value"] == pytest.approx(np.mean(own))
    assert pooled["low"] is None and pooled["high"] is None


def test_a_metric_that_one_seed_lacks_is_not_pooled():
    runs = runs_of(("lora",), ())
    more = run_results("lora", 2, RIGHT, train=HOME, metrics=("accuracy", "mcc"))
    scores = joined_of([*runs, more])["scores"]
    assert {s["metric"] for s in scores if s["seed"] is None} == {"accuracy"}
    assert {s["metric"] for s in scores if s["seed"] == 2} == {"accuracy", "mcc"}


def test_intervals_of_a_run_with_another_level_are_made_again_and_others_are_left_as_they_are():
    ninety = run_results("lora", 0, RIGHT, train=HOME, confidence=0.9, calibration=[calibrated()])
    ninety_five = run_results("lora", 0, RIGHT, train=HOME, calibration=[calibrated()])
    again, kept = (join([run], config=compare_config()) for run in (ninety, ninety_five))
    assert again["scores"] == kept["scores"]
    assert one(kept["scores"], domain="books", seed=0)["low"] == one(ninety_five["scores"], domain="books")["low"]
    assert one(ninety["scores"], domain="books")["low"] != one(ninety_five["scores"], domain="books")["low"]
    assert (again["calibration"][0]["ece_low"], kept["calibration"][0]["ece_low"]) == (None, 0.01)


def calibrated():
    return {"role": "in_domain", "count": 400, "ece": 0.03, "ece_low": 0.01, "ece_high": 0.05}


def test_scores_of_controls_inside_a_run_do_not_pass_for_its_own():
    config = dataclasses.replace(RunConfig(), evaluate=EvaluateConfig(resamples=200))
    lora, tfidf = runs_of(("lora",), ("tfidf",), seeds=(0,))
    with_controls = compare_with_controls(lora, [tfidf], [], config)
    assert {score["stage"] for score in with_controls["scores"]} == {"adapted", "tfidf"}
    assert joined_of([with_controls])["scores"] == joined_of([lora])["scores"]


# ---- who is compared with whom ---------------------------------------------------------------------------------


def test_every_pair_is_compared_on_each_domain_and_on_the_means_of_each_role(joined):
    places = {"books", "dvd", "kitchen", "apps", "in-domain", "shifted domains"}
    for question, pairs in {
        "control": {("lora", "tfidf"), ("full", "tfidf")},
        "strategies": {("lora", "full")},
    }.items():
        found = [(item["a"], item["b"], item["domain"]) for item in of_question(joined, question)]
        assert sorted(found) == sorted((a, b, place) for a, b in pairs for place in places)
    assert [(i["a"], i["b"], i["domain"]) for i in of_question(joined, "shift")] == [
        ("lora", "in-domain", "shifted domains"),
        ("full", "in-domain", "shifted domains"),
    ]
    assert {item["question"] for item in joined["comparisons"]} == {"control", "strategies", "shift"}
    assert all(item["direction"] == "books, dvd" and item["target_examples"] == 0 for item in joined["comparisons"])


def test_differences_are_positive_where_a_is_better(joined):
    control = of_question(joined, "control")
    assert one(control, a="lora", domain="books")["difference"] == pytest.approx(0.895 - 0.8)
    assert one(control, a="full", domain="in-domain")["difference"] == pytest.approx((0.845 + 0.745) / 2 - 0.75)
    assert one(of_question(joined, "strategies"), domain="shifted domains")["difference"] == pytest.approx(0.05)
    assert one(of_question(joined, "shift"), a="lora")["difference"] == pytest.approx(0.65 - 0.85)


def test_comparisons_hold_what_the_paired_tests_say():
    runs = runs_of()
    joined = joined_of(runs)
    read = [read_examples(run) for run in runs]
    lora, tfidf = [read[0], read[1]], [read[4]]
    expected = paired_difference("accuracy", [r["apps"] for r in lora], [r["apps"] for r in tfidf], 0.95, 200, 0)
    item = one(of_question(joined, "control"), a="lora", domain="apps")
    assert only_numbers(item) == numbers_of(expected)
    pairs = {d: ([r[d] for r in lora], [r[d] for r in tfidf]) for d in ("kitchen", "apps")}
    expected = paired_difference_of_means("accuracy", pairs, 0.95, 200, 0)
    item = one(of_question(joined, "control"), a="lora", domain="shifted domains")
    assert only_numbers(item) == numbers_of(expected)
    sides = ({d: [r[d] for r in lora] for d in domains} for domains in (("kitchen", "apps"), HOME))
    expected = shift_difference("accuracy", *sides, 0.95, 200, 0)
    assert only_numbers(one(of_question(joined, "shift"), a="lora")) == numbers_of(expected)


def test_where_an_error_is_measured_the_lower_one_is_better():
    def errors(name, seed, at_home, elsewhere):
        parts = {
            d: numbers(d, 60, at_home if d == "books" else elsewhere, (name, str(seed))) for d in ("books", "apps")
        }
        return run_results(name, seed, predictions=parts, metrics=("mae",), labels=LabelSpace("regression"))

    joined = joined_of([errors("lora", 0, 0.2, 0.5), errors("full", 0, 0.3, 0.4), errors("tfidf", 0, 0.7, 0.7)])
    assert joined["higher_is_better"] is False
    assert one(of_question(joined, "control"), a="lora", domain="books")["difference"] == pytest.approx(0.5)
    assert one(of_question(joined, "strategies"), domain="apps")["difference"] == pytest.approx(-0.1)
    assert one(of_question(joined, "shift"), a="lora")["difference"] == pytest.approx(-0.3)
    row = one(joined["summary"], strategy="lora")
    assert row["gap"] == pytest.approx(0.3) and row["worst_domain"] == "apps"
    assert joined["confusion"] == []


def test_log_loss_is_an_error_too():
    runs = runs_of(metrics=("log_loss", "accuracy"), seeds=(0,))
    joined = joined_of(runs)
    item = one(of_question(joined, "control"), a="lora", domain="books")
    mine, theirs = (one(run["scores"], domain="books", metric="log_loss")["value"] for run in (runs[0], runs[2]))
    assert item["difference"] == pytest.approx(theirs - mine, abs=1e-5)
    assert {i["metric"] for i in joined["comparisons"]} == {"log_loss"}


def test_forgetting_is_the_adapted_checkpoint_against_itself_before_on_each_shifted_domain():
    joined = joined_of(runs_of(("lora", "full"), ("before",)))
    found = of_question(joined, "forgetting")
    assert [(i["a"], i["b"], i["domain"]) for i in found] == [
        (name, "before", domain) for name in ("lora", "full") for domain in ("kitchen", "apps")
    ]
    assert found[0]["difference"] == pytest.approx(0.695 - 0.6)


def target_runs(with_source, alone, count=32, name="full", domain="kitchen"):
    right = {**RIGHT}
    return [
        run_results(name, 0, right | {domain: with_source}, train=HOME, target=(domain, count)),
        run_results(name, 0, right | {domain: alone}, train=HOME, target=(domain, count), with_source=False),
    ]


def test_target_labels_are_compared_with_and_without_the_source_and_the_source_before_and_after():
    base = run_results("full", 0, RIGHT, train=HOME)
    (with_source, alone) = target_runs(0.75, 0.6)
    forgetful = copy.deepcopy(with_source)
    parts = {
        d: classes(d, 200, v, ("later",)) for d, v in (RIGHT | {"books": 0.6, "dvd": 0.6, "kitchen": 0.75}).items()
    }
    forgetful["examples"] = describe_examples(together(parts), together({}))
    joined = joined_of([base, forgetful, alone])
    (transfer,) = of_question(joined, "negative_transfer")
    assert (transfer["a"], transfer["b"]) == ("full, with source", "full, target only")
    assert (transfer["domain"], transfer["target_domain"], transfer["target_examples"]) == ("kitchen", "kitchen", 32)
    assert transfer["difference"] == pytest.approx(0.15)
    (forgetting,) = of_question(joined, "forgetting")
    assert (forgetting["a"], forgetting["b"]) == ("full, 32 of kitchen", "full, none of kitchen")
    assert forgetting["domain"] == "in-domain"
    assert forgetting["difference"] == pytest.approx(0.6 - 0.85)


def test_target_labels_are_compared_within_their_size_and_domain_only():
    runs = [*target_runs(0.8, 0.6, 16), *target_runs(0.7, 0.7, 64), *target_runs(0.8, 0.5, 16, domain="apps")]
    found = of_question(joined_of(runs), "negative_transfer")
    assert {(i["domain"], i["target_examples"]): round(i["difference"], 6) for i in found} == {
        ("kitchen", 16): 0.2,
        ("kitchen", 64): 0.0,
        ("apps", 16): 0.3,
    }


def test_many_directions_are_compared_on_means_only_and_few_on_each_domain():
    domains = ("books", "dvd", "kitchen", "apps")

    def matrix(sources):
        return joined_of([
            run_results(name, 0, dict.fromkeys(domains, 0.8), train=(source,), count=40)
            for source in sources
            for name in ("lora", "tfidf")
        ])  # fmt: skip

    assert {i["domain"] for i in of_question(matrix(domains), "control")} == {"in-domain", "shifted domains"}
    assert {i["domain"] for i in of_question(matrix(domains[:3]), "control")} == {*domains, "shifted domains"}
    assert [d["name"] for d in matrix(domains)["directions"]] == list(domains)


# ---- verdicts --------------------------------------------------------------------------------------------------


def test_a_domain_split_in_two_shows_no_gap():
    parts = {half: 0.85 for half in ("books, first half", "books, second half")}
    runs = [run_results("lora", seed, parts, train=("books, first half",), count=400) for seed in range(3)]
    (shift,) = of_question(join(runs, config=compare_config()), "shift")
    assert abs(shift["difference"]) < 0.02 and shift["low"] < 0 < shift["high"]
    assert shift["verdict"] == "no evidence"


@pytest.mark.parametrize(
    ("with_source", "alone", "verdict"), [(0.6, 0.85, "hurts"), (0.85, 0.6, "helps"), (0.8, 0.8, "no evidence")]
)
def test_a_source_that_hurts_or_helps_is_found(with_source, alone, verdict):
    joined = join(target_runs(with_source, alone), config=compare_config())
    (found,) = of_question(joined, "negative_transfer")
    assert found["verdict"] == verdict
    assert found["difference"] == pytest.approx(with_source - alone)


def test_p_values_are_adjusted_within_each_question_means_and_domains_apart(joined):
    for question in ("control", "strategies", "shift"):
        items = of_question(joined, question)
        of_means = [item for item in items if item["domain"] in ("in-domain", "shifted domains")]
        of_domains = [item for item in items if item not in of_means]
        assert of_means and (of_domains or question == "shift")
        for family in (of_means, of_domains):
            assert [item["p_adjusted"] for item in family] == holm([item["p_value"] for item in family])


def test_the_only_domain_of_a_role_is_corrected_with_the_means_and_not_with_all_domains():
    runs = [
        run_results(name, 0, {d: v - 0.05 * place for d, v in RIGHT.items()}, train=HOME[:1])
        for place, name in enumerate(("lora", "tfidf"))
    ]
    found = of_question(joined_of(runs), "control")
    roles = [item for item in found if item["domain"] in ("books", "shifted domains")]
    others = [item for item in found if item not in roles]
    assert (len(roles), len(others)) == (2, 3)
    for family in (roles, others):
        assert [item["p_adjusted"] for item in family] == holm([item["p_value"] for item in family])


def test_too_few_examples_give_no_verdict_and_do_not_count_as_comparisons():
    counts = {"books": 200, "dvd": 200, "kitchen": 29, "apps": 30}
    right = {"books": 0.9, "dvd": 0.9, "kitchen": 0.0, "apps": 0.9}
    lora = run_results("lora", 0, right, train=HOME, count=counts)
    tfidf = run_results("tfidf", 0, {"books": 0.9, "dvd": 0.9, "kitchen": 1.0, "apps": 0.9}, train=HOME, count=counts)
    items = of_question(joined_of([lora, tfidf]), "control")
    small = one(items, domain="kitchen")
    assert (small["verdict"], small["p_adjusted"]) == ("too few examples", None)
    assert small["p_value"] < 1e-6, "it would have been a finding"
    decided = [item for item in items if item is not small]
    assert len(decided) == 5 and "too few examples" not in {item["verdict"] for item in decided}
    domains = [item for item in decided if item["domain"] in counts]
    assert [item["p_adjusted"] for item in domains] == holm([item["p_value"] for item in domains])
    assert one(items, domain="apps")["verdict"] == "no evidence"


def test_a_mean_with_a_tiny_domain_is_left_out_as_well():
    counts = {"books": 200, "dvd": 200, "kitchen": 9, "apps": 200}
    runs = [run_results(name, 0, RIGHT, train=HOME, count=counts) for name in ("lora", "tfidf")]
    items = of_question(joined_of(runs), "control")
    mean = one(items, domain="shifted domains")
    assert mean["count"] == 209 and (mean["verdict"], mean["p_adjusted"]) == ("too few examples", None)
    assert [i["p_adjusted"] for i in items if i["p_adjusted"] is not None] == [1.0] * 4


def test_a_run_is_compared_with_its_controls_domain_by_domain():
    config = dataclasses.replace(RunConfig(), evaluate=EvaluateConfig(resamples=200))
    lora, tfidf, majority = runs_of(("lora",), ("tfidf", "majority"), seeds=(0,))
    results = compare_with_controls(lora, [tfidf, majority], ["before does not apply."], config)
    found = [(i["a"], i["b"], i["domain"]) for i in results["comparisons"]]
    places = (*RIGHT, "in-domain", "shifted domains")
    assert found == [("adapted", control, place) for control in ("tfidf", "majority") for place in places]
    assert results["comparisons"][0]["difference"] == pytest.approx(0.1)
    assert results["notes"] == ["before does not apply."]
    assert results["scores"][: len(lora["scores"])] == lora["scores"] and lora["comparisons"] == []


def test_a_run_alone_and_in_a_comparison_has_the_same_verdicts():
    """One shifted domain stands for its role, and is corrected together with the mean of the others."""
    config = dataclasses.replace(RunConfig(), evaluate=EvaluateConfig(resamples=200))
    right = {"books": 0.9, "dvd": 0.8, "kitchen": 0.7}
    runs = [
        run_results(name, 0, {domain: value - change for domain, value in right.items()}, train=HOME)
        for name, change in (("lora", 0), ("tfidf", 0.1), ("majority", 0.06))
    ]
    alone, together = compare_with_controls(runs[0], runs[1:], [], config), joined_of(runs)
    facts = ("difference", "low", "high", "p_value", "p_adjusted", "verdict")
    kept = {(item["b"], item["domain"]): [item[name] for name in facts] for item in alone["comparisons"]}
    items = of_question(together, "control")
    assert kept == {(item["b"], item["domain"]): [item[name] for name in facts] for item in items}
    p, p_adjusted = kept["tfidf", "kitchen"][3:5]
    assert p_adjusted == pytest.approx(3 * p), "the second smallest of four; without the means the smallest of two"


# ---- tables ----------------------------------------------------------------------------------------------------


def test_the_summary_holds_means_gap_and_worst_domain(joined):
    row = one(joined["summary"], strategy="lora")
    assert row == {
        "strategy": "lora",
        "stage": "adapted",
        "direction": "books, dvd",
        "in_domain_mean": pytest.approx(0.845),
        "shifted_mean": pytest.approx(0.645),
        "gap": pytest.approx(0.2),
        "worst_domain": "apps",
        "validation": pytest.approx(0.8),
    }
    assert one(joined["summary"], strategy="tfidf")["stage"] == "tfidf"


def test_costs_are_medians_over_seeds_and_count_only_what_was_measured():
    runs = runs_of(("lora",), ("tfidf",), seeds=(0, 1, 5))
    lora = one(joined_of(runs)["cost"], strategy="lora")
    assert lora["train_seconds"] == 11.0, "of 10, 11 and 15"
    assert lora["peak_memory_bytes"] is None
    assert lora["artefact_bytes"] == 5000, "only the first seed saved its model"
    assert (lora["trainable_parameters"], lora["total_parameters"], lora["runs"]) == (10, 100, 3)
    even = copy.deepcopy(runs[:2])
    even[1]["timing"]["tokens"] = 1003
    assert joined_of(even)["cost"][0]["tokens"] == 1002, "no half tokens"


def test_costs_leave_out_runs_with_target_labels():
    joined = joined_of([run_results("full", 0, RIGHT, train=HOME), *target_runs(0.7, 0.7)])
    assert one(joined["cost"], strategy="full")["runs"] == 1


def test_the_matrix_has_sources_as_rows_and_targets_as_columns():
    values = {("books", "books"): 0.9, ("books", "apps"): 0.7, ("apps", "books"): 0.6, ("apps", "apps"): 0.8}
    runs = [
        run_results("lora", 0, {target: values[source, target] for target in ("books", "apps")}, train=(source,))
        for source in ("books", "apps")
    ]
    runs.append(run_results("full", 0, {"books": 0.5, "apps": 0.5}, train=("books",)))
    lora, full = joined_of(runs)["matrix"]
    assert (lora["sources"], lora["targets"]) == (["books", "apps"], ["books", "apps"])
    assert lora["values"] == [[pytest.approx(0.9), pytest.approx(0.7)], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert full["values"] == [[pytest.approx(0.5), pytest.approx(0.5)], [None, None]]
    assert lora["low"][0][0] < 0.9 < lora["high"][0][0]


def test_one_source_makes_no_matrix(joined):
    assert joined["matrix"] == []


def test_learning_curves_start_at_the_run_without_target_labels():
    runs = [*target_runs(0.85, 0.8, 64), *target_runs(0.75, 0.6, 16), run_results("full", 0, RIGHT, train=HOME)]
    with_source, alone = joined_of(runs)["learning_curves"]
    assert with_source["sizes"] == [0, 16, 64] and with_source["with_source"] is True
    assert with_source["values"] == [pytest.approx(v) for v in (0.7, 0.75, 0.85)]
    assert with_source["source_values"] == [pytest.approx(0.85)] * 3
    assert alone["sizes"] == [16, 64] and alone["values"] == [pytest.approx(0.6), pytest.approx(0.8)]
    assert (alone["strategy"], alone["domain"], alone["direction"]) == ("full", "kitchen", "books, dvd")


def test_each_target_domain_has_its_own_learning_curve():
    runs = [*target_runs(0.85, 0.8, 16), *target_runs(0.95, 0.5, 16, domain="apps")]
    values = {(c["domain"], c["with_source"]): c["values"] for c in joined_of(runs)["learning_curves"]}
    assert values == {
        ("kitchen", True): [pytest.approx(0.85)],
        ("kitchen", False): [pytest.approx(0.8)],
        ("apps", True): [pytest.approx(0.95)],
        ("apps", False): [pytest.approx(0.5)],
    }


def test_target_labels_leave_the_tables_of_transfer_alone_untouched():
    base = run_results("full", 0, RIGHT, train=HOME)
    alone, among = joined_of([base]), joined_of([base, *target_runs(0.9, 0.9)])
    for key in ("summary", "directions", "cost", "confusion", "training"):
        assert among[key] == alone[key], key


def test_confusion_counts_all_seeds_and_domains_of_a_role():
    runs = runs_of(("lora",), ())
    at_home, elsewhere = joined_of(runs)["confusion"]
    expected = np.zeros((2, 2), int)
    for run in runs:
        for domain in HOME:
            columns = run["examples"]["test"][domain]
            for reference, predicted in zip(columns["reference"], columns["predicted"], strict=True):
                expected[reference, predicted] += 1
    assert at_home["counts"] == expected.tolist()
    assert (at_home["role"], elsewhere["role"]) == ("in_domain", "shifted")
    assert np.sum(elsewhere["counts"]) == 800 and np.trace(elsewhere["counts"]) == 140 + 138 + 120 + 118


def test_drops_and_robustness_come_from_the_summary():
    runs = runs_of(controls=("tfidf",))
    runs.append(run_results("majority", 0, dict.fromkeys(RIGHT, 0.5), train=HOME))
    distances = [{"source": "books, dvd", "target": "apps", "mmd": 0.2, "words": []}]
    joined = joined_of(runs, distances=distances)
    assert joined["distances"][0]["drop"] == {"lora": pytest.approx(0.845 - 0.595), "full": pytest.approx(0.25)}
    assert "drop" not in distances[0], "what was given stays as it was"
    assert joined["robustness"]["line"]["points"] == 2 and set(joined["robustness"]["effective"]) == {"lora", "full"}
    tables = {table.name: table for section in make_sections(joined) for table in section.tables}
    found = tables["robustness-points"]
    assert [row[0] for row in found.rows] == ["lora", "full", "tfidf", "majority"], "one row for two seeds"
    assert found.caption == "Mean accuracy of each strategy and control in each direction, seeds together."


def test_calibration_and_curves_are_those_of_the_first_seed():
    runs = runs_of(("lora",), ())
    for run in runs:
        run["calibration"] = [calibrated() | {"ece": 0.1 + run["seed"]}]
    joined = joined_of(runs[::-1])
    (item,) = joined["calibration"]
    assert (item["ece"], item["seed"], item["domains"]) == (0.1, 0, ["books", "dvd"])
    assert [(t["strategy"], t["seed"]) for t in joined["training"]] == [("lora", 0)]


def test_data_and_checkpoint_are_those_of_a_trained_run_though_a_control_comes_first():
    tfidf, lora = runs_of(("lora",), ("tfidf",), seeds=(0,))[::-1]
    joined = joined_of([tfidf, lora])
    assert joined["data"]["truncated"] == 7, "a bag of words cuts nothing"
    assert joined["checkpoint"]["id"] == "org/small-bert"
    assert joined["selection"] == {"rule": "in_domain_validation", "metric": "accuracy"}
    assert (joined["strategies"], joined["controls"]) == (["lora"], ["tfidf"])


def test_a_run_that_learnt_from_target_labels_is_reported_alone():
    joined = joined_of(target_runs(0.75, 0.6)[:1])
    assert [d["name"] for d in joined["directions"]] == ["books, dvd"]
    assert one(joined["summary"], strategy="full")["shifted_mean"] == pytest.approx((0.75 + 0.6) / 2)
    assert joined["cost"] and joined["notes"] == [
        "Every run learnt from 32 labelled examples of kitchen besides the source."
    ]
    assert joined["runs"][0]["target_examples"] == 32


def test_runs_with_target_labels_but_none_without_have_a_direction_and_no_summary():
    joined = joined_of(target_runs(0.75, 0.6))
    assert [d["name"] for d in joined["directions"]] == ["books, dvd"]
    assert joined["summary"] == [] and len(of_question(joined, "negative_transfer")) == 1


def test_runs_are_listed_with_what_they_learnt_from_and_failed_ones_stay():
    failed = {"name": "full-s3", "strategy": "full", "seed": 3, "status": "failed", "error": "no memory"}
    runs = joined_of(target_runs(0.7, 0.7), other_runs=[failed])["runs"]
    assert [run["status"] for run in runs] == ["finished", "finished", "failed"]
    assert runs[1]["name"] == "full, seed 0, on books, dvd, 32 of kitchen without source"
    assert (runs[0]["target_examples"], runs[0]["with_source"], runs[1]["with_source"]) == (32, True, False)
    assert runs[0]["step"] == 40 and runs[2]["error"] == "no memory"


# ---- warnings --------------------------------------------------------------------------------------------------


def test_nothing_is_warned_of_where_all_is_well():
    assert join(runs_of(), config=compare_config())["warnings"] == []


def test_warnings_say_what_a_reader_must_know():
    counts = {"books": 29, "dvd": 30, "kitchen": 200, "apps": 200}
    runs = runs_of(("lora",), (), count=counts)
    runs[1]["data"]["leaks"] |= {"exact": 3, "near": 2}
    runs[1]["data"]["fingerprint"] = "a" * 64
    others = [{"name": "a-s0", "status": "failed", "error": "x"}, {"name": "b-s0", "status": "missing", "error": ""}]
    warnings = " ".join(joined_of(runs, other_runs=others)["warnings"])
    assert "No conclusion is possible on books (29): fewer than 30 test examples." in warnings
    assert "1 of 4 runs failed and is not in the tables: a-s0." in warnings
    assert "1 run is missing: b-s0." in warnings
    assert "5 of 459 test examples also occur in train" in warnings
    assert "different versions of the data" in warnings


def test_leaks_that_were_dropped_flatter_nothing():
    runs = runs_of(("lora",), ())
    for run in runs:
        run["data"]["leaks"] |= {"exact": 3, "dropped": 3}
    assert joined_of(runs)["warnings"] == []


def test_uneven_seeds_are_named_but_controls_without_chance_have_none():
    runs = [*runs_of(("lora",), ("tfidf",), seeds=(0, 1)), run_results("full", 1, RIGHT, train=HOME)]
    assert "Not all strategies have the same seeds: lora 0, 1; full 1." in joined_of(runs)["warnings"]
    runs = [*runs_of(("lora",), ("tfidf",)), run_results("scratch", 0, RIGHT, train=HOME)]
    assert "Not all strategies have the same seeds: lora 0, 1; scratch 0." in joined_of(runs)["warnings"]


def test_resamples_that_are_too_few_for_so_many_comparisons_are_warned_of():
    # an inverted interval of R resamples reaches 2 / (R + 1), which the 4 of single domains make 8 / (R + 1)
    runs = runs_of(("lora",), ("tfidf",))
    few, enough = (
        join(runs, config=compare_config(evaluate={"confidence": 0.95, "resamples": count})) for count in (150, 170)
    )
    (warning,) = few["warnings"]
    assert (
        warning.startswith("150 resamples are too few for 4 comparisons (control, by domain)") and "to 1,000" in warning
    )
    assert enough["warnings"] == []


@pytest.mark.parametrize(
    ("count", "resamples", "says"),
    [
        # T trials reach 1 / (T + 1), which n comparisons make n / (T + 1); there are at most 10,000 trials
        (300, 10_000, None),
        (300, 5_000, r"5,000 resamples are too few for 300 comparisons \(control, by domain\): .* to 6,000\.$"),
        (600, 24_000, "10,000 trials, the most that sacrebleu's test makes here, are too few for 600 comparisons"),
    ],
)
def test_more_resamples_are_asked_for_where_they_serve_the_test_of_sacrebleu(count, resamples, says):
    items = [
        {"question": "control", "domain": f"domain {n}", "test": SACREBLEU_TEST, "p_adjusted": 1.0}
        for n in range(count)
    ]
    found = list(_too_coarse({"confidence": 0.95, "resamples": resamples, "comparisons": items}))
    assert len(found) == (says is not None)
    for warning in found:
        assert re.match(says, warning) and ("--evaluate.resamples" in warning) == (resamples < 10_000)


def test_the_table_of_a_metric_beside_the_main_one_names_its_own_resamples():
    def captions(seeds):
        runs = [
            run_results("lora", seed, {"books": 0.9}, count=40, metrics=("accuracy", "f1_macro"), resamples=10_000)
            for seed in seeds
        ]
        joined = join(runs, config=compare_config(evaluate={"confidence": 0.95, "resamples": 10_000}))
        tables = {table.name: table for section in make_sections(joined) for table in section.tables}
        return [tables[f"scores-{metric}-0"].caption for metric in ("accuracy", "f1_macro")]

    pooled = "In brackets: 95% intervals (hierarchical bootstrap over 3 seeds x examples, {} resamples)."
    assert captions((0, 1, 2)) == [pooled.format("10,000"), pooled.format("2,000")]
    own = "In brackets: 95% intervals (percentile bootstrap over examples, 10,000 resamples)."
    assert captions((0,)) == [own, own], "those that the run brings"


# ---- what cannot be compared -----------------------------------------------------------------------------------


def changed(run, **changes):
    run = copy.deepcopy(run)
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = run
        for section in sections:
            place = place[section]
        place[key] = value
    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "regression"}, "task is regression, not classification"),
        ({"shift__metric": "mcc"}, "metric is mcc, not accuracy"),
        ({"labels__names": ["bad", "good"]}, "labels is bad, good, not negative, positive"),
        (
            {"checkpoint": {"id": "org/other", "sha256": "0" * 64}},
            r"checkpoint is org/other \(sha256 00000000\), not org",
        ),
    ],
)
def test_runs_that_differ_are_refused_with_field_and_both_runs(changes, words):
    lora, full = runs_of(("lora", "full"), (), seeds=(0,))
    names = r"full, seed 0, on books, dvd \(b\) cannot be compared with lora, seed 0, on books, dvd \(a\): "
    with pytest.raises(InputError, match=names + words):
        joined_of([lora, changed(full, **changes)], places=["a", "b"])


def test_runs_over_other_test_examples_are_refused():
    lora = run_results("lora", 0, RIGHT, train=HOME)
    fewer = run_results("full", 0, RIGHT, train=HOME, count=dict.fromkeys(RIGHT, 200) | {"apps": 150})
    with pytest.raises(InputError, match=r"the test examples of apps differ \(150 and 200 examples\): run both on"):
        joined_of([lora, fewer])
    without = run_results("full", 0, {"books": 0.9}, train=HOME)
    with pytest.raises(InputError, match="test domains is books, not apps, books, dvd, kitchen"):
        joined_of([lora, without])
    flipped = copy.deepcopy(lora) | {"strategy": {"name": "full"}}
    reference = flipped["examples"]["test"]["books"]["reference"]
    reference[0] = 1 - reference[0]
    with pytest.raises(InputError, match=r"references .* of the test examples of books differ"):
        joined_of([lora, flipped])


def test_all_problems_are_told_at_once():
    lora, full, probe = runs_of(("lora", "full", "probe"), (), seeds=(0,))
    with pytest.raises(InputError) as caught:
        joined_of([lora, changed(full, task="other", shift__metric="mcc"), changed(probe, task="third")])
    assert len(caught.value.problems) == 3


def test_scratch_and_bags_of_words_have_no_checkpoint_to_differ_in():
    scratch = run_results("scratch", 0, RIGHT, train=HOME)
    scratch["checkpoint"] |= {"id": "scratch:org/small-bert", "sha256": ""}
    assert joined_of([*runs_of(("lora",), ("tfidf",), seeds=(0,)), scratch])["checkpoint"]["id"] == "org/small-bert"


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.pop("examples"),
        lambda run: run["examples"]["test"].pop("apps"),
        lambda run: run["examples"]["test"]["apps"].pop("predicted"),
        lambda run: run["examples"]["test"]["apps"]["predicted"].pop(),
        lambda run: run["examples"].update(test=[1]),
    ],
)
def test_a_run_without_all_its_predictions_is_refused(damage):
    lora, full = runs_of(("lora", "full"), (), seeds=(0,))
    damage(full)
    with pytest.raises(InputError, match=r"full, seed 0, on books, dvd.*: repeat the run"):
        joined_of([lora, full])


def test_a_run_given_twice_is_refused_with_both_places():
    (lora,) = runs_of(("lora",), (), seeds=(0,))
    with pytest.raises(InputError, match=r"two runs of lora, seed 0, on books, dvd are given \(a and b\).*: give one"):
        joined_of([lora, lora], places=["a", "b"])


def test_no_run_is_refused():
    with pytest.raises(InputError, match="no finished run"):
        joined_of([])


def test_classes_in_another_order_are_put_in_the_first_runs_order():
    lora, tfidf = runs_of(("lora",), ("tfidf",), seeds=(0,), metrics=("accuracy", "log_loss"))
    turned = copy.deepcopy(lora)
    turned["labels"]["names"] = ["positive", "negative"]
    for columns in turned["examples"]["test"].values():
        columns["reference"] = [1 - value for value in columns["reference"]]
        columns["predicted"] = [1 - value for value in columns["predicted"]]
        columns["probabilities"] = [row[::-1] for row in columns["probabilities"]]
    expected, found = joined_of([tfidf, lora]), joined_of([tfidf, turned])
    for key in ("comparisons", "confusion", "scores", "label_names", "summary"):
        assert found[key] == expected[key], key
    config = dataclasses.replace(RunConfig(), evaluate=EvaluateConfig(resamples=200))
    items = [compare_with_controls(run, [tfidf], [], config)["comparisons"] for run in (lora, turned)]
    assert [i["difference"] for i in items[0]] == [i["difference"] for i in items[1]]


# ---- as a file -------------------------------------------------------------------------------------------------


def test_what_is_joined_equals_what_is_read_back(tmp_path):
    diverged = numbers("apps", 40, 0.1, ("x",))
    diverged.predicted[3] = np.nan
    parts = {"books": numbers("books", 40, 0.1, ("x",)), "apps": diverged}
    about = {"labels": LabelSpace("regression"), "metrics": ("pearson", "mae")}
    runs = [run_results(name, 0, predictions=parts, **about) for name in ("lora", "tfidf")]
    for given in (runs, runs_of()):
        joined = joined_of(given, distances=[{"source": "books", "target": "apps", "mmd": float("nan")}])
        write_json(tmp_path / "results.json", joined)
        assert read_results(tmp_path) == joined
    assert one(joined_of(runs)["scores"], strategy="lora", domain="apps", metric="mae", seed=None)["value"] is None


def test_an_undefined_score_makes_an_undefined_difference_and_no_claim():
    flat = numbers("books", 40, 0.1, ("x",))
    flat = dataclasses.replace(flat, predicted=np.ones(40), probabilities=np.ones((40, 1)))
    about = {"labels": LabelSpace("regression"), "metrics": ("pearson",), "predictions": {"books": flat}}
    joined = joined_of([run_results("lora", 0, **about), run_results("tfidf", 0, **about)])
    (item,) = of_question(joined, "control")
    assert (item["difference"], item["p_value"], item["p_adjusted"], item["verdict"]) == (
        None,
        None,
        None,
        "undefined",
    )


@pytest.mark.parametrize("wrong", [{"schema": "hf-transfer/results/2"}, {"schema": None}])
def test_a_results_file_of_another_schema_is_refused(tmp_path, wrong):
    (lora,) = runs_of(("lora",), (), seeds=(0,))
    (tmp_path / "results.json").write_text(json.dumps(lora | wrong))
    with pytest.raises(InputError, match="must have the schema 'hf-transfer/results/1', found"):
        read_results(tmp_path)


@pytest.mark.parametrize("name", ["in-domain", "shifted domains", "a, b", "", "a\0b", "<b>$x$\u202e", "None", "lora"])
def test_domains_may_have_any_name(name):
    right = {"books": 0.9, name: 0.6}
    joined = joined_of([run_results(s, 0, right, train=("books",)) for s in ("lora", "tfidf")])
    assert [(i["domain"], i["count"]) for i in of_question(joined, "control")] == [("books", 200), (name, 200)]
    assert one(joined["summary"], strategy="lora")["shifted_mean"] == pytest.approx(0.6)
    assert joined["answer"][1].startswith("LoRA of org/small-bert reaches 90.0% accuracy")


def test_the_setting_of_a_run_is_what_it_learnt_from():
    run = FinishedRun(run_results("lora", 0, RIGHT, train=HOME, target=("apps", 16), with_source=False))
    assert dataclasses.astuple(run.setting) == (("books", "dvd"), "apps", 16, False)
    plain_run = FinishedRun(run_results("lora", 0, RIGHT, train=HOME, with_source=False))
    assert dataclasses.astuple(plain_run.setting) == (("books", "dvd"), None, 0, True), "no target, no choice"
    assert isinstance(run.predictions["apps"], Predictions) and RESAMPLES == 2_000


# ---- translation -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def translated():
    return translation_example()


def bleu(run, domain):
    return one(run["scores"], domain=domain, metric="bleu")["value"]


def test_the_ledger_holds_what_each_strategy_changed_against_the_checkpoint_as_it_comes(translated):
    before, full = translation_run("before"), translation_run("full")
    row = one(translated["ledger"], strategy="full")
    assert [(item["domain"], item["role"]) for item in row["domains"]] == [
        ("emea", "in_domain"),
        ("koran", "shifted"),
        ("jrc acquis", "shifted"),
    ]
    for item in row["domains"]:
        then, now = (bleu(run, item["domain"]) for run in (before, full))
        assert (item["before"], item["after"], item["difference"]) == pytest.approx((then, now, now - then))
        assert item["low"] < item["difference"] < item["high"]
    koran, jrc = (item["difference"] for item in row["domains"][1:])
    assert row["shifted"]["difference"] == pytest.approx((koran + jrc) / 2)
    assert (row["shifted"]["domains"], row["shifted"]["count"], row["in_domain"]["domains"]) == (2, 120, 1)
    assert row["worst_domain"] == "koran" and koran < jrc
    assert row["in_domain"]["difference"] == row["domains"][0]["difference"]


def test_the_ledger_takes_its_intervals_and_verdicts_from_the_paired_comparisons(translated):
    row = one(translated["ledger"], strategy="full")
    asked = [item for item in of_question(translated, "control") if (item["a"], item["b"]) == ("full", "before")]
    keys = ("low", "high", "p_value", "p_adjusted", "verdict")
    for place, item in (("emea", row["domains"][0]), ("emea", row["in_domain"]), ("shifted domains", row["shifted"])):
        found = one(asked, domain=place)
        assert {key: item[key] for key in keys} == {key: found[key] for key in keys}
    assert (row["in_domain"]["verdict"], row["shifted"]["verdict"]) == ("helps", "hurts")


def test_the_gain_kept_is_a_share_of_the_largest(translated):
    gains = {row["strategy"]: row["in_domain"]["difference"] for row in translated["ledger"]}
    assert list(gains) == translated["strategies"], "controls have no place in it"
    for row in translated["ledger"]:
        is_gain = row["in_domain"]["verdict"] == "helps"
        assert row["kept"] == (pytest.approx(gains[row["strategy"]] / gains["full"]) if is_gain else None)
    assert sum(row["kept"] is not None for row in translated["ledger"]) >= 3
    worse = join([translation_run("before"), translation_run("full", mistakes=(0.7, 0.7))], config=FAST)
    assert worse["ledger"][0]["kept"] is None, "of a loss nothing is kept"
    assert worse["ledger"][0]["in_domain"]["difference"] < 0


def test_a_gain_that_may_be_chance_keeps_nothing_of_the_largest():
    found = {
        "full": (3.0, "helps"),
        "lora": (5.0, "no evidence"),
        "freeze": (1.5, "helps"),
        "probe": (None, "undefined"),
    }
    rows = [
        {"strategy": name, "direction": "emea", "in_domain": {"difference": gain, "verdict": verdict}}
        for name, (gain, verdict) in found.items()
    ]
    rows.append({"strategy": "knn", "direction": "emea", "in_domain": None})
    assert {row["strategy"]: row["kept"] for row in with_shares(rows)} == {
        "full": 1.0,
        "lora": None,
        "freeze": 0.5,
        "probe": None,
        "knn": None,
    }


FAST = compare_config(evaluate={"confidence": 0.95, "resamples": 100})


def test_an_error_rate_that_falls_is_a_gain_in_the_ledger():
    runs = [translation_run(name, metrics=("ter",)) for name in ("before", "full")]
    row = join(runs, config=FAST)["ledger"][0]
    assert row["in_domain"]["after"] < row["in_domain"]["before"]
    assert row["in_domain"]["difference"] == pytest.approx(row["in_domain"]["before"] - row["in_domain"]["after"])
    assert row["in_domain"]["difference"] > 0 > row["shifted"]["difference"]
    assert row["worst_domain"] == min(row["domains"][1:], key=lambda item: item["difference"])["domain"]


def test_without_the_checkpoint_as_it_comes_there_is_no_ledger():
    assert join([translation_run("full"), translation_run("scratch")], config=FAST)["ledger"] == []
    assert joined_of(runs_of(controls=("before",), seeds=(0,)))["ledger"] == [], "classes have no checkpoint before"


def test_the_ledger_of_a_lone_domain_has_no_other_side():
    runs = [translation_run(name, domains=("emea",)) for name in ("before", "full")]
    row = join(runs, config=FAST)["ledger"][0]
    assert row["shifted"] is None and row["worst_domain"] == "" and row["in_domain"]["domains"] == 1


def test_scores_of_different_texts_are_not_compared_in_translation(translated):
    assert {item["question"] for item in translated["comparisons"]} == {"control", "strategies"}
    assert translated["robustness"] == {"points": [], "line": None, "effective": {}}
    assert translated["calibration"] == translated["confusion"] == []
    apart = [{"source": "emea", "target": "koran", "mmd": 0.1}]
    joined = join([translation_run("full")], config=FAST, distances=apart)
    assert joined["distances"] == [apart[0] | {"drop": {}}]


def test_what_runs_say_of_their_translations_is_carried_along(translated):
    runs = translation_runs()
    assert [item["strategy"] for item in translated["translation"]] == [run["strategy"]["name"] for run in runs]
    for item, run in zip(translated["translation"], runs, strict=True):
        assert item["domains"] == run["translation"]["domains"]
        assert (item["seed"], item["direction"]) == (0, "emea")
        assert item["trade_off"] == run["translation"].get("trade_off")
        assert item["knn"] == run["translation"].get("knn")
    assert translated["signatures"] == runs[0]["translation"]["signatures"]
    assert not any("sacrebleu" in warning for warning in translated["warnings"])


def test_runs_that_another_sacrebleu_scored_are_warned_about():
    runs = [translation_run("full"), translation_run("lora")]
    runs[1] = copy.deepcopy(runs[1])
    runs[1]["translation"]["signatures"]["bleu"] += "0"
    assert any("versions of sacrebleu" in warning for warning in join(runs, config=FAST)["warnings"])


def test_a_run_with_controls_has_the_ledger_of_a_comparison_of_one():
    alone = translation_alone(name="full")
    runs = [translation_run(name) for name in ("before", "scratch", "full")]
    config = compare_config(evaluate={"confidence": 0.95, "resamples": 1000})
    assert alone["ledger"] == join(runs, config=config)["ledger"]
    assert {item["domain"] for item in alone["comparisons"]} == {"emea", "koran", "jrc acquis", "shifted domains"}
    assert translation_alone(("scratch",), "full")["ledger"] == []


def test_results_of_translations_hold_no_sentence(translated, tmp_path):
    from sentences import references_of

    write_json(tmp_path / "results.json", translated)
    write_json(tmp_path / "run.json", translation_alone())
    text = "".join((tmp_path / name).read_text(encoding="utf-8") for name in ("results.json", "run.json"))
    assert not any(reference in text for reference in references_of(60) if len(reference) > 12)
