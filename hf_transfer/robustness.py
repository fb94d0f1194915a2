"""Floor 1: effective robustness: does a strategy do better outside its domain than its score inside foretells?

The line is fitted through the controls on a logit scale (Taori 2020; Miller 2021); a strategy's effective robustness is
how far it lies above that line, in the unit of the metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

FEWEST_POINTS = 2
"""Points with different in-domain scores that a line needs; under eight it is a rough guide, which the report says."""
MARGIN = 1e-3
"""Scores are kept this far from 0 and 1, whose logits are infinite."""


CORRELATIONS = ("mcc", "pearson", "spearman")
"""Metrics that go below 0: of points near chance, those above it alone would be left."""


def effective_robustness(results: Mapping[str, Any]) -> dict[str, Any]:
    """Points, line and distances from it, from the ``summary`` of a comparison's results.

    Returns:
        ``points`` (strategy, direction, in_domain, shifted), ``line`` (slope and intercept on logits, and how many
        control points it goes through; None where they do not make a line) and ``effective`` by strategy, the mean
        over directions of shifted score minus the line's. Only scores from 0 to 1, of which more is better, have a
        place on a logit scale.
    """
    points = [
        {
            "strategy": row["strategy"],
            "seed": None,
            "direction": row["direction"],
            "in_domain": row["in_domain_mean"],
            "shifted": row["shifted_mean"],
        }
        for row in results["summary"]
        if results["higher_is_better"]
        and results.get("metric") not in CORRELATIONS
        and _is_share(row["in_domain_mean"])
        and _is_share(row["shifted_mean"])
    ]
    controls = [point for point in points if point["strategy"] in results["controls"]]
    line = fit_line([p["in_domain"] for p in controls], [p["shifted"] for p in controls])
    effective = {}
    for name in results["strategies"]:
        own = [point for point in points if point["strategy"] == name]
        if line and own:
            above = [p["shifted"] - expected_score(p["in_domain"], line) for p in own]
            effective[name] = float(np.mean(above))
    return {"points": points, "line": line, "effective": effective}


def fit_line(in_domain: list[float], shifted: list[float]) -> dict[str, Any] | None:
    """Least squares of logit(shifted) on logit(in-domain); None for fewer than two different in-domain scores."""
    from scipy.stats import linregress

    logits = _logit(np.array(in_domain))
    if len(set(logits.round(6))) < FEWEST_POINTS:  # 0.9995 and 1 are the same here
        return None
    fitted = linregress(logits, _logit(np.array(shifted)))
    return {"slope": float(fitted.slope), "intercept": float(fitted.intercept), "points": len(in_domain)}


def expected_score(in_domain: float, line: Mapping[str, Any]) -> float:
    """The shifted score that the line gives for an in-domain score."""
    height = line["slope"] * _logit(np.array(in_domain)) + line["intercept"]
    return float(1 / (1 + np.exp(-height)))


def _logit(values: np.ndarray) -> np.ndarray:
    kept = np.clip(values, MARGIN, 1 - MARGIN)
    return np.log(kept / (1 - kept))


def _is_share(value: float | None) -> bool:
    return value is not None and 0 <= value <= 1
