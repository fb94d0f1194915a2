"""What counts as a word in the tfidf control, and how hard to regularise: the settings of hf_transfer/controls.py.

    python benchmarks/tfidf_grid.py [--data bundled:reviews] [--repeats 3]

Cross-validates each variant on the train rows of each domain apart, all variants on the same folds, redrawn for each
repeat; prints JSON lines: how they were made, then for each variant accuracy by C, mean log loss by C, and the
difference to the first variant at C = 10 with its 95% interval (normal, paired by example). The last lines are test
accuracies of the control as it is, trained on one domain: for the log, not for choosing.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from datasets import Dataset
from measuring import made_by
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier

from hf_transfer.config import DataConfig
from hf_transfer.controls import WORD, fit_tfidf
from hf_transfer.metrics import score
from hf_transfer.records import LabelSpace
from hf_transfer.sources import load_source

STRENGTHS = (0.3, 1.0, 10.0, 100.0, 1000.0)
COMPARED = STRENGTHS.index(10.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "words of two letters, sublinear counts": {"sublinear_tf": True},
    "words of two letters, plain counts": {},
    "words of two letters, presence": {"binary": True},
    "words and signs, sublinear counts": {"token_pattern": WORD, "sublinear_tf": True},
    "words and signs, presence": {"token_pattern": WORD, "binary": True},
    "words and signs, presence, also unrepeated": {"token_pattern": WORD, "binary": True, "min_df": 1},
    "words and signs, presence, 1-grams": {"token_pattern": WORD, "binary": True, "ngram_range": (1, 1)},
    "words and signs, presence, 1- to 3-grams": {"token_pattern": WORD, "binary": True, "ngram_range": (1, 3)},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bundled:reviews", help="any data.source with train and test rows")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps({"made_by": made_by()}), flush=True)
    table = load_source(DataConfig(source=arguments.data))
    by_domain: dict[str, dict[str, list[int]]] = {}
    for i, (domain, split) in enumerate(zip(table.rows["domain"], table.rows["split"], strict=True)):
        by_domain.setdefault(domain, {"train": [], "test": []}).setdefault(split, []).append(i)
    train = {domain: table.rows.select(rows["train"]) for domain, rows in by_domain.items()}
    first = None
    for name, variant in VARIANTS.items():
        started = time.process_time()
        measured = [cross_validate(rows, variant, arguments.repeats) for rows in train.values()]
        right, loss = (np.concatenate(parts) for parts in zip(*measured, strict=True))  # [examples, strengths]
        first = right if first is None else first
        difference = (right - first)[:, COMPARED]
        margin = 1.96 * difference.std() / np.sqrt(len(difference))
        record = {
            "variant": name,
            "accuracy": by_strength(right.mean(0) * 100),
            "log_loss": by_strength(loss.mean(0)),
            "difference": f"{difference.mean() * 100:+.2f} +- {margin * 100:.2f}",
            "examples": len(right),
            "seconds": round(time.process_time() - started, 1),
        }
        print(json.dumps(record), flush=True)
    names = tuple(sorted({str(label) for label in table.rows["label"]}))
    space = LabelSpace("single_label", names)
    for domain, rows in train.items():
        model = fit_tfidf(rows, rows.select([]), space, seed=0)
        tests = {other: table.rows.select(parts["test"]) for other, parts in by_domain.items() if parts["test"]}
        values = {other: round(score("accuracy", model.predict(held)) * 100, 1) for other, held in tests.items()}
        print(json.dumps({"trained_on": domain, "strength": model.settings["strength"], "test_accuracy": values}))


def by_strength(values: np.ndarray) -> dict[str, float]:
    """Numbers for one line of output."""
    return {f"{strength:g}": round(float(value), 3) for strength, value in zip(STRENGTHS, values, strict=True)}


def cross_validate(rows: Dataset, variant: dict[str, Any], repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, strengths] share of repeats in which each example was right while held out, and its mean log loss."""
    vectorizer = TfidfVectorizer(**({"ngram_range": (1, 2), "min_df": 2} | variant))
    features = vectorizer.fit_transform(list(rows["text"]))
    labels = np.array([str(label) for label in rows["label"]])
    right, loss = np.zeros((2, len(rows), len(STRENGTHS)))
    for repeat in range(repeats):
        for fit, held in StratifiedKFold(5, shuffle=True, random_state=repeat).split(labels, labels):
            for column, strength in enumerate(STRENGTHS):
                regression = LogisticRegression(C=strength, solver="liblinear", max_iter=1_000)
                model = OneVsRestClassifier(regression).fit(features[fit], labels[fit])
                probabilities = model.predict_proba(features[held])
                right[held, column] += model.classes_[probabilities.argmax(1)] == labels[held]
                true = probabilities[np.arange(len(held)), np.searchsorted(model.classes_, labels[held])]
                loss[held, column] -= np.log(np.clip(true, 1e-7, 1))
    return right / repeats, loss / repeats


if __name__ == "__main__":
    main()
