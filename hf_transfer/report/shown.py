"""Floor 4: test texts that a report quotes, if it was asked to: the mistakes of which a model was surest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.config import CONTROLS
from hf_transfer.records import Text
from hf_transfer.report.examples import read_confidence, read_examples

SHOWN_PER_DOMAIN = 3
LONGEST_TEXT = 400
"""Characters of a text that are shown."""
BETWEEN = " | "
"""Stands between the texts of a pair."""


def surest_mistakes(results_of_runs: Sequence[Mapping[str, Any]], text: Text) -> list[dict[str, Any]]:
    """For each strategy's first run and each test domain, up to ``SHOWN_PER_DOMAIN`` wrong predictions, surest first.

    [] where predictions are not one class with a probability.
    """
    if text.labels.problem != "single_label":
        return []
    shown, seen = [], set()
    for results in results_of_runs:
        strategy = results["strategy"]["name"]
        if strategy in seen or strategy in CONTROLS:
            continue
        seen.add(strategy)
        for domain, predictions in read_examples(results).items():
            rows = text.splits.test[domain]
            sides = [rows[name] for name in ("text", "text_pair") if name in rows.column_names]
            texts = dict(zip(rows["example_id"], map(BETWEEN.join, zip(*sides, strict=True)), strict=True))
            confidence = read_confidence(results, "test", domain)
            wrong = np.flatnonzero(predictions.predicted != predictions.reference)
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_PER_DOMAIN]:
                whole = texts[str(predictions.example_ids[i])]
                shown.append(
                    {
                        "strategy": strategy,
                        "domain": domain,
                        "text": whole if len(whole) <= LONGEST_TEXT else whole[:LONGEST_TEXT] + "…",
                        "reference": results["labels"]["names"][int(predictions.reference[i])],
                        "predicted": results["labels"]["names"][int(predictions.predicted[i])],
                        "confidence": float(confidence[i]),
                    }
                )
    return shown
