"""Scores per domain, their means, the gap and the worst domain."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_transfer.errors import InputError
from hf_transfer.metrics import score_with_interval
from hf_transfer.records import DomainScore, Predictions
from hf_transfer.shift import notes_on_width, score_domains, shift_report, split_predictions
from hf_transfer.statistics import derived_seed


def predictions_of(domains: list[str], seed: int = 0) -> Predictions:
    """One example per entry of ``domains``, right in about two of three cases."""
    rng, count = np.random.default_rng(seed), len(domains)
    reference = rng.integers(0, 2, count)
    predicted = np.where(rng.random(count) < 0.66, reference, 1 - reference)
    ids = np.array([f"e{row}" for row in range(count)])
    return Predictions(ids, np.array(domains), predicted, reference, np.eye(2, dtype=np.float32)[predicted])


def role_of(domain: str) -> str:
    return "in_domain" if domain in ("books", "dvd") else "shifted"


def scored(predictions: Predictions, metrics=("accuracy", "f1_macro"), stage="adapted", seed=0):
    parts = split_predictions(predictions)
    return score_domains(stage, "test", parts, role_of, metrics, confidence=0.95, resamples=200, seed=seed)


def a_score(domain: str, value: float, metric: str = "accuracy", stage: str = "adapted") -> DomainScore:
    return DomainScore(stage, domain, role_of(domain), "test", 10, metric, value, value, value)


def test_predictions_are_split_by_domain_in_order_of_appearance():
    whole = predictions_of(["dvd", "books", "dvd", "kitchen", "books"])
    parts = split_predictions(whole)
    assert list(parts) == ["dvd", "books", "kitchen"]
    assert parts["dvd"].example_ids.tolist() == ["e0", "e2"]
    assert parts["books"].reference.tolist() == whole.reference[[1, 4]].tolist()
    assert parts["books"].predicted.tolist() == whole.predicted[[1, 4]].tolist()
    assert parts["books"].probabilities.tolist() == whole.probabilities[[1, 4]].tolist()
    assert set(parts["kitchen"].domain_ids) == {"kitchen"}
    assert all(type(domain) is str for domain in parts), "numpy strings do not go into JSON or YAML"


def test_no_predictions_have_no_domains():
    assert split_predictions(predictions_of([])) == {}


def test_every_domain_is_scored_by_every_metric_with_all_that_a_score_travels_with():
    predictions = predictions_of(["books"] * 30 + ["kitchen"] * 20)
    scores = scored(predictions)
    assert [(score.domain, score.metric) for score in scores] == [
        ("books", "accuracy"),
        ("books", "f1_macro"),
        ("kitchen", "accuracy"),
        ("kitchen", "f1_macro"),
    ]
    last = scores[2]
    assert (last.stage, last.split, last.role, last.count) == ("adapted", "test", "shifted", 20)
    right = predictions.predicted[30:] == predictions.reference[30:]
    assert last.value == pytest.approx(right.mean())
    assert last.low < last.value < last.high
    kitchen = split_predictions(predictions)["kitchen"]
    assert (last.value, last.low, last.high) == score_with_interval(
        "accuracy", kitchen, 0.95, 200, derived_seed(0, "kitchen")
    )


def test_the_interval_of_a_domain_does_not_depend_on_which_others_are_scored():
    domains = ["books"] * 30 + ["kitchen"] * 30
    parts = split_predictions(predictions_of(domains))
    alone = score_domains("adapted", "test", {"kitchen": parts["kitchen"]}, role_of, ("accuracy",), 0.95, 200, 0)
    assert alone[0] == scored(predictions_of(domains), ("accuracy",))[1]


def test_domains_with_equal_predictions_draw_their_own_resamples_and_stages_the_same():
    parts = split_predictions(predictions_of(["books"] * 200))
    twins = {"books": parts["books"], "kitchen": parts["books"]}
    books, kitchen = score_domains("adapted", "test", twins, role_of, ("f1_macro",), 0.95, 200, 0)
    assert books.value == kitchen.value
    assert (books.low, books.high) != (kitchen.low, kitchen.high)
    control = score_domains("before", "test", twins, role_of, ("f1_macro",), 0.95, 200, 0)
    assert [(score.low, score.high) for score in control] == [(books.low, books.high), (kitchen.low, kitchen.high)]


def test_another_seed_draws_other_resamples():
    predictions = predictions_of(["books"] * 200)
    ends = {(score.low, score.high) for seed in range(4) for score in scored(predictions, ("f1_macro",), seed=seed)}
    assert len(ends) > 1


def test_means_are_unweighted_over_domains_and_the_worst_of_all_domains_is_named():
    scores = [a_score("books", 0.9), a_score("dvd", 0.5), a_score("kitchen", 0.6), a_score("music", 0.7)]
    scores.append(a_score("kitchen", 0.1, metric="mcc"))
    report = shift_report(scores, "accuracy")
    assert report.in_domain_mean == pytest.approx(0.7)
    assert report.shifted_mean == pytest.approx(0.65)
    assert report.gap == pytest.approx(0.05)
    assert report.worst_domain == "dvd", "an in-domain domain can be the worst"
    assert report.scores == tuple(scores), "scores of other metrics are kept"


def test_the_gap_is_positive_for_a_loss_whichever_way_the_metric_points():
    lower_is_better = shift_report([a_score("books", 0.4, "log_loss"), a_score("kitchen", 0.9, "log_loss")], "log_loss")
    assert lower_is_better.gap == pytest.approx(0.5)
    assert lower_is_better.worst_domain == "kitchen"
    higher_is_better = shift_report([a_score("books", 0.4), a_score("kitchen", 0.9)], "accuracy")
    assert higher_is_better.gap == pytest.approx(-0.5)
    assert higher_is_better.worst_domain == "books"


def test_equal_domains_have_no_gap_and_the_first_is_named():
    report = shift_report([a_score("books", 0.8), a_score("kitchen", 0.8)], "accuracy")
    assert (report.gap, report.worst_domain) == (0.0, "books")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("domain", ["books", "kitchen"])
def test_the_gap_is_undefined_where_a_role_has_no_domain(domain):
    report = shift_report([a_score(domain, 0.8)], "accuracy")
    assert np.isnan(report.gap)
    assert np.isnan(report.shifted_mean if domain == "books" else report.in_domain_mean)
    assert (report.in_domain_mean if domain == "books" else report.shifted_mean) == 0.8
    assert report.worst_domain == domain


@pytest.mark.filterwarnings("error")
def test_an_undefined_score_makes_its_mean_undefined_and_is_never_the_worst():
    scores = [a_score("books", 0.9, "pearson"), a_score("kitchen", float("nan"), "pearson")]
    report = shift_report([*scores, a_score("music", 0.7, "pearson")], "pearson")
    assert report.in_domain_mean == 0.9
    assert np.isnan(report.shifted_mean)
    assert np.isnan(report.gap)
    assert report.worst_domain == "music"
    assert shift_report(scores[1:], "pearson").worst_domain == ""


def test_no_scores_make_an_empty_report():
    report = shift_report([], "accuracy")
    assert np.isnan([report.in_domain_mean, report.shifted_mean, report.gap]).all()
    assert report.worst_domain == ""


def test_unknown_metrics_are_refused():
    with pytest.raises(InputError, match="`acuracy` is not a metric: did you mean accuracy"):
        shift_report([a_score("books", 0.9)], "acuracy")
    with pytest.raises(InputError, match="`acuracy` is not a metric"):
        scored(predictions_of(["books"]), ("acuracy",))


def test_scores_of_two_stages_are_never_averaged():
    with pytest.raises(AssertionError, match="several stages"):
        shift_report([a_score("books", 0.9), a_score("books", 0.5, stage="before")], "accuracy")


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("count", [1, 9, 188])
def test_an_interval_without_width_is_said_with_the_exact_one(count, confidence):
    exact = {right: binomtest(right, count).proportion_ci(confidence, "exact") for right in (0, count)}
    scores = [replace(a_score("books", 1.0), count=count), replace(a_score("dvd", 0.0), count=count)]
    all_right, none_right = notes_on_width(scores, confidence)
    assert all_right.startswith(f"books: all of {count} test examples are right")
    assert all_right.endswith(f"goes down to {100 * exact[count].low:.1f}%.")
    assert none_right.startswith(f"dvd: none of {count}")
    assert none_right.endswith(f"goes up to {100 * exact[0].high:.1f}%.")


def test_other_intervals_need_no_word():
    some, other = a_score("books", 0.9), a_score("books", 1.0, "f1_macro")
    assert notes_on_width([some, other, replace(a_score("dvd", 1.0), low=0.9)], 0.95) == ()
