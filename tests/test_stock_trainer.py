"""A whole training of ours ends where ``transformers.Trainer`` and PEFT end: same start, windows and rates, no dropout.

The two sides are those that benchmarks/throughput.py holds against each other, so that its ratios are of equal work.
"""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import WORDS, make_checkpoint

RATES = {"full": 1e-2, "freeze": 1e-2, "lora": 1e-2, "probe": 1e-1}


@pytest.fixture(scope="module")
def sides(root: Path):
    """The modules measuring, our_side and stock_trainer of benchmarks/, which are no part of the package."""
    sys.path.insert(0, str(root / "benchmarks"))
    yield [importlib.import_module(name) for name in ("measuring", "our_side", "stock_trainer")]
    sys.path.remove(str(root / "benchmarks"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Texts of 2 to 30 words, good ones with one class of words more often; 70 train rows leave a small last window."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for split, count in (("train", 70), ("validation", 8), ("test", 40)):
        for i in range(count):
            good = bool(rng.integers(2))
            words = rng.choice(WORDS[:24] if good else WORDS[18:], rng.integers(2, 31))
            label = "good" if good else "bad"
            lines.append({"id": f"{split}{i}", "text": " ".join(words), "label": label, "split": split})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("way", RATES)
def test_a_training_ends_where_the_stock_trainer_ends(way, sides, rows, tmp_path, monkeypatch):
    measuring, ours, stock = sides
    monkeypatch.setattr(measuring, "MATMUL_SECONDS", 0.0)
    order = measuring.Order(
        side="begin",
        way=way,
        case=way,
        checkpoint=str(make_checkpoint(tmp_path / "checkpoint")),
        size="",
        rows=str(rows),
        output=str(tmp_path / "start"),
        limit=24,
        window=32,
        epochs=4,
        learning_rate=RATES[way],
        frozen_layers=1,
        seed=3,
        device="cpu",
        precision="fp32",
        warm_up_steps=0,
        validation_steps=0,
        beams=1,
        dropout=0.0,
        shape={"layers": 2, "hidden": 16, "inner": 24, "layer_weights": 1792, "mean_length": 16, "context": 16},
    )
    order = replace(order, **ours.draw_head(order))
    expected, found = (side.train(replace(order, output=str(tmp_path / side.__name__))) for side in (stock, ours))
    assert found["tokens_by_step"] == expected["tokens_by_step"] and len(found["tokens_by_step"]) == 12
    assert found["final_loss"] == pytest.approx(expected["final_loss"], rel=1e-4)
    assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)
    assert found["predicted"] == expected["predicted"]
    assert found["final_loss"] < 0.66, "where nothing is learnt all would be equal"
