"""A whole training of ours ends where ``transformers.Trainer`` and PEFT end: same start, windows and rates, no dropout.

The two sides are those that benchmarks/throughput.py holds against each other, so that its ratios are of equal work.
"""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WORDS, make_checkpoint
from tiny_translation import PAIRS, make_translation_checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

RATES = {"full": 1e-2, "freeze": 1e-2, "lora": 1e-2, "probe": 1e-1}


@pytest.fixture(scope="module")
def benchmarks(root: Path):
    """Modules of benchmarks/, which are no part of the package."""
    sys.path.insert(0, str(root / "benchmarks"))
    names = ("measuring", "our_side", "stock_trainer", "throughput")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(root / "benchmarks"))


@pytest.fixture(autouse=True)
def quickly(benchmarks, monkeypatch):
    """The speed of the machine is not asked here, nor whether artefacts open, which takes a fresh process each."""
    monkeypatch.setattr(benchmarks.measuring, "MATMUL_SECONDS", 0.0)
    monkeypatch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)
    monkeypatch.setattr("hf_transfer.artefact._prove_translations", lambda *_: 0.0)


def make_rows(counts: dict[str, int]) -> list[dict[str, str]]:
    """Texts of 2 to 30 words, of which good and bad ones share few."""
    rng = np.random.default_rng(0)
    rows = []
    for split, count in counts.items():
        for i in range(count):
            good = bool(rng.integers(2))
            words = rng.choice(WORDS[:24] if good else WORDS[18:], rng.integers(2, 31))
            label = "good" if good else "bad"
            rows.append({"id": f"{split}{i}", "text": " ".join(words), "label": label, "split": split})
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """70 train rows leave a small last window."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row) for row in make_rows({"train": 70, "validation": 8, "test": 40})]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def order(benchmarks, rows, tmp_path):
    """What both sides are told; the start is drawn."""
    order = benchmarks.measuring.Order(
        side="begin",
        way="full",
        case="full",
        checkpoint=str(make_checkpoint(tmp_path / "checkpoint")),
        size="",
        rows=str(rows),
        output=str(tmp_path / "start"),
        limit=24,
        window=32,
        epochs=4,
        learning_rate=1e-2,
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
    return replace(order, **benchmarks.our_side.draw_head(order), output=str(tmp_path / "run"))


@pytest.mark.parametrize("way", RATES)
def test_a_training_ends_where_the_stock_trainer_ends(way, benchmarks, order):
    order = replace(order, way=way, case=way, learning_rate=RATES[way])
    expected, found = (side.train(order) for side in (benchmarks.stock_trainer, benchmarks.our_side))
    assert found["tokens_by_step"] == expected["tokens_by_step"] and len(found["tokens_by_step"]) == 12
    assert found["final_loss"] == pytest.approx(expected["final_loss"], rel=1e-4)
    assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)
    assert found["predicted"] == expected["predicted"]
    assert found["final_loss"] < 0.66, "where nothing is learnt all would be equal"


def test_a_translator_ends_where_the_stock_trainer_ends(benchmarks, order, tmp_path):
    rows = [
        {"id": f"{split}{i}", "text": PAIRS[i][0], "reference": PAIRS[i][1], "split": split}
        for split, places in (("train", range(40)), ("validation", range(40, 44)), ("test", range(44, 56)))
        for i in places
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    checkpoint = str(make_translation_checkpoint("marian", tmp_path / "marian"))
    order = replace(order, way="translation", case="translation", rows=str(path), checkpoint=checkpoint, limit=64)
    order = replace(order, window=16, epochs=3, output=str(tmp_path / "pairs"))
    order = replace(order, **benchmarks.our_side.prepare(order))
    order = replace(order, **benchmarks.our_side.draw_head(order), output=str(tmp_path / "translated"))
    expected, found = benchmarks.stock_trainer.translate(order), benchmarks.our_side.train(order)
    assert found["tokens_by_step"] == expected["tokens_by_step"] and len(found["tokens_by_step"]) == 9
    assert found["final_loss"] == pytest.approx(expected["final_loss"], rel=1e-4)
    assert found["predicted"] == expected["predicted"] and len(set(found["predicted"])) > 3
    assert (found["ids"], found["reference"]) == (expected["ids"], expected["reference"])
    assert expected["padding_tokens"] > 0 == found["padding_tokens"]
    model = AutoModelForSeq2SeqLM.from_pretrained(order.checkpoint)
    lengths = benchmarks.our_side.encode(AutoTokenizer.from_pretrained(order.checkpoint), rows[:1], order)
    inputs = {name: torch.tensor(lengths[name]) for name in ("input_ids", "labels")}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs).loss.backward()
    path.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    shape = benchmarks.our_side.prepare(order)["shape"]
    tokens = sum(tensor.numel() for tensor in inputs.values())
    counted = tokens * benchmarks.measuring.flops_per_token("translation", 0, shape)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.1), "but for the upper half of causal attention"


def test_a_trainer_that_groups_by_length_is_scored_on_its_own_rows(benchmarks, order):
    still = replace(order, learning_rate=0.0, epochs=1)
    plain, grouped = (benchmarks.stock_trainer.train(replace(still, way=way)) for way in ("full", "full grouped"))
    assert grouped["tokens_by_step"] != plain["tokens_by_step"]
    assert grouped["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-6), "of each row's own label"


def test_a_pair_is_measured_on_equal_work(benchmarks, tmp_path, monkeypatch, capsys):
    data = tmp_path / "shared" / "data" / "fdu_mtl"
    data.mkdir(parents=True)
    table = pd.DataFrame(make_rows({"train": 100, "test": 60})).assign(domain="books")
    for split, part in table.groupby("split"):
        part.to_parquet(data / f"{split}.parquet")
    throughput = benchmarks.throughput

    def child(order, threads):
        return throughput.obey(order) | ({} if order.side in throughput.BEGINNINGS else {"whole_seconds": 1.0})

    monkeypatch.setattr(throughput, "child", child)
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    words = f"--shared {tmp_path / 'shared'} --checkpoint {checkpoint} --work {tmp_path / 'work'} --dropout 0 --pairs 1"
    words += f" --examples 70 --test_examples 40 --output {tmp_path / 'out.json'}"
    monkeypatch.setattr(sys, "argv", ["throughput.py", *words.split()])
    throughput.main()
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["quality"]["equal_outputs"] == 1.0 and record["settings"]["dropout"] == 0.0
    assert record["ours"]["final_loss"] == pytest.approx(record["stock"]["final_loss"], rel=1e-5)
    assert not list((tmp_path / "work" / "full").glob("*_start")), "a start is as large as a model"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--case", "evaluation"])
    with pytest.raises(SystemExit):
        throughput.main()
    assert "--dropout 0.0: in the case evaluation not both sides take steps" in capsys.readouterr().err
