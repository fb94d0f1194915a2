"""Effective robustness: a line through the controls on a logit scale, and how far above it a strategy lies."""

import math
from typing import Any

import numpy as np
import pytest

from hf_transfer.robustness import CORRELATIONS, effective_robustness, expected_score, fit_line
from hf_transfer.significance import RANGES


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def results(scores: dict[str, list[tuple[float | None, float | None]]], **fields: Any) -> dict[str, Any]:
    """``scores``: strategy or control -> in-domain and shifted score of each direction."""
    return {
        "controls": ["tfidf", "majority", "before"],
        "strategies": ["lora", "full"],
        "higher_is_better": True,
        "summary": [
            {"strategy": name, "direction": f"on {i}", "in_domain_mean": inside, "shifted_mean": outside}
            for name, pairs in scores.items()
            for i, (inside, outside) in enumerate(pairs)
        ],
        **fields,
    }


def test_the_line_through_two_controls_is_the_one_worked_out_by_hand():
    # logit 0.5 = 0, logit 0.8 = ln 4, logit 0.7 = ln 7/3
    line = fit_line([0.5, 0.8], [0.5, 0.7])
    assert line == {"slope": pytest.approx(math.log(7 / 3) / math.log(4)), "intercept": pytest.approx(0.0), "points": 2}
    # logit 2/3 = ln 2, half of ln 4, so that half of ln 7/3 is expected
    assert expected_score(2 / 3, line) == pytest.approx(math.sqrt(7 / 3) / (1 + math.sqrt(7 / 3)))


def test_the_line_through_many_controls_is_the_one_of_least_squares():
    rng = np.random.default_rng(0)
    inside, outside = rng.uniform(0.2, 0.95, 12), rng.uniform(0.2, 0.95, 12)
    design = np.stack([[logit(p) for p in inside], np.ones(12)], axis=1)
    (slope, intercept), *_ = np.linalg.lstsq(design, np.array([logit(p) for p in outside]), rcond=None)
    line = fit_line(inside.tolist(), outside.tolist())
    assert line == {"slope": pytest.approx(slope), "intercept": pytest.approx(intercept), "points": 12}


@pytest.mark.parametrize(
    "inside", [[], [0.7], [0.7, 0.7, 0.7], [1.0, 0.9995], [0.0, 0.0005]], ids=["none", "one", "equal", "top", "bottom"]
)
def test_scores_that_are_the_same_on_the_scale_make_no_line(inside):
    assert fit_line(inside, [0.5] * len(inside)) is None


def test_scores_of_0_and_1_have_a_place_at_the_ends():
    line = fit_line([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    assert line == {"slope": pytest.approx(1.0), "intercept": pytest.approx(0.0, abs=1e-12), "points": 3}
    assert expected_score(1.0, line) == pytest.approx(0.999)
    assert expected_score(0.0, line) == pytest.approx(0.001)


def test_a_strategy_is_as_robust_as_its_mean_height_above_the_line_of_the_controls():
    found = effective_robustness(
        results(
            {
                "majority": [(0.5, 0.5)],
                "tfidf": [(0.8, 0.7)],
                "lora": [(0.8, 0.75), (0.5, 0.53)],
                "full": [(0.8, 0.66)],
            }
        )
    )
    assert found["effective"] == {"lora": pytest.approx((0.05 + 0.03) / 2), "full": pytest.approx(-0.04)}
    assert found["line"]["points"] == 2, "strategies take no part in the line that they are measured by"
    assert found["points"][2] == {
        "strategy": "lora",
        "seed": None,
        "direction": "on 0",
        "in_domain": 0.8,
        "shifted": 0.75,
    }
    assert len(found["points"]) == 5


def test_without_a_line_there_are_points_and_nothing_is_robust():
    found = effective_robustness(results({"tfidf": [(0.8, 0.7)], "lora": [(0.8, 0.75)]}))
    assert (found["line"], found["effective"], len(found["points"])) == (None, {}, 2)


def test_undefined_scores_and_scores_beyond_the_scale_have_no_point():
    found = effective_robustness(
        results(
            {
                "majority": [(None, 0.5), (0.5, None), (0.5, 0.5)],
                "tfidf": [(-0.1, 0.5), (0.5, 1.2), (0.8, 0.7)],
                "lora": [(None, None)],
            }
        )
    )
    assert [(p["strategy"], p["direction"]) for p in found["points"]] == [("majority", "on 2"), ("tfidf", "on 2")]
    assert found["effective"] == {}


def test_losses_have_no_place_on_the_scale_even_between_0_and_1():
    scores = {"majority": [(0.5, 0.5)], "tfidf": [(0.2, 0.3)], "lora": [(0.1, 0.1)]}
    assert effective_robustness(results(scores, higher_is_better=False)) == {
        "points": [],
        "line": None,
        "effective": {},
    }


def test_correlations_have_no_place_on_the_scale_even_between_0_and_1():
    scores = {"majority": [(0.1, 0.1)], "tfidf": [(0.5, 0.4)], "lora": [(0.6, 0.5)]}
    assert effective_robustness(results(scores, metric="mcc")) == {"points": [], "line": None, "effective": {}}
    assert effective_robustness(results(scores, metric="accuracy"))["line"], "or this test says nothing"


def test_correlations_are_the_metrics_that_reach_down_to_minus_1():
    assert set(CORRELATIONS) == {metric for metric, (smallest, _) in RANGES.items() if smallest == -1}
