"""The whole page on toy data with a tiny model: every kind of problem, every strategy, one and two processes."""

import csv
import importlib.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_trackers import read_tensorboard
from tiny import make_checkpoint
from toy import launch_two, write_reviews

import hf_transfer as ht
from hf_transfer import trackers
from hf_transfer.folder import OUTPUTS
from hf_transfer.report import read_results

pytestmark = pytest.mark.recipe
GOLDEN = Path(__file__).parent.parent / "golden" / "text_cls_losses.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bert"), scale=0.1)


def config_for(source, checkpoint, folder, strategy="full", **data) -> ht.RunConfig:
    return ht.RunConfig(
        data=ht.DataConfig(source=str(source), **data),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        adapt=ht.AdaptConfig(strategy=strategy),
        train=ht.TrainConfig(epochs=4, learning_rate=1e-2, head_learning_rate=1e-2, window_size=8),
        evaluate=ht.EvaluateConfig(resamples=200),
        output_dir=str(folder),
    )


@pytest.fixture
def unproved(monkeypatch):
    """Leaves out the fresh process, which tests of the artefact cover and which takes seconds."""
    monkeypatch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_contract_says(tmp_path, checkpoint):
    source = write_reviews(tmp_path)
    result = ht.run(config_for(source, checkpoint, tmp_path / "run", train_domains=("books",)))
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "results.json",
        "report.md",
        "report.html",
        "figures",
        "log.jsonl",
        "checkpoints",
        "model",
    }
    assert {path.name for path in folder.iterdir()} <= set(OUTPUTS), "what --overwrite clears away"
    results = read_results(folder)
    assert results["schema"] == "hf-transfer/results/1"
    assert results["artefact"] == results["artefact"] | {"kind": "full", "path": "model", "proved": True}
    examples = results["data"]["examples"]
    assert (examples["train"] + examples["validation"], examples["test"]) == (80, 80)
    assert 1 <= examples["validation"] <= 20
    length = results["data"]["max_length"]
    assert length == results["artefact"]["metadata"]["max_length"] == 64, (
        "what the tokenizer takes, not the 256 asked for"
    )
    assert results["selection"]["rule"] == "in_domain_validation"
    assert [(s["domain"], s["role"]) for s in results["scores"] if s["metric"] == "accuracy"] == [
        ("books", "in_domain"),
        ("apps", "shifted"),
    ]
    assert result.shift.in_domain_mean > 0.7, "the toy problem is learnt"
    assert len(log_of(folder)) == results["timing"]["steps"] == 4 * math.ceil(examples["train"] / 8)
    assert sum(r["padding_tokens"] for r in log_of(folder)) == results["timing"]["padding_tokens"]
    text = json.dumps(results)
    assert str(tmp_path) not in text, "no path of this machine in what is shared"

    # the saved model predicts what the run scored
    loaded = ht.load(folder, device="cpu")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    test = [row for row in rows if row["split"] == "test"]
    predicted = loaded.predict([row["text"] for row in test]).labels
    by_id = dict(zip(result.predictions.example_ids, result.predictions.predicted, strict=True))
    places = [f"reviews.jsonl:{i}" for i, row in enumerate(rows, start=1) if row["split"] == "test"]
    assert predicted == [loaded.labels.names[by_id[place]] for place in places]

    # run again: refused, then replaced
    with pytest.raises(ht.InputError, match="already holds a finished run"):
        ht.run(config_for(source, checkpoint, folder, train_domains=("books",)))


def test_losses_are_what_they_were(tmp_path, checkpoint, unproved):
    """Guards refactors: the first steps of each strategy, stored. Delete the file to store them anew, and say why."""
    source = write_reviews(tmp_path)
    found = {}
    for strategy in ("probe", "freeze", "lora", "full"):
        ht.run(config_for(source, checkpoint, tmp_path / strategy, strategy))
        found[strategy] = [round(record["loss"], 6) for record in log_of(tmp_path / strategy)[:12]]
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(GOLDEN.read_text())
    for strategy, losses in found.items():
        np.testing.assert_allclose(losses, stored[strategy], rtol=2e-3, err_msg=strategy)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, checkpoint, unproved):
    source = write_reviews(tmp_path)
    config = config_for(source, checkpoint, tmp_path / "a")
    first = ht.run(config)
    second = ht.run(replace(config, output_dir=str(tmp_path / "b")))
    other = ht.run(replace(config, output_dir=str(tmp_path / "c"), seed=1))
    assert [r["loss"] for r in log_of(tmp_path / "a")] == [r["loss"] for r in log_of(tmp_path / "b")]
    np.testing.assert_array_equal(first.predictions.probabilities, second.predictions.probabilities)
    assert not np.array_equal(first.predictions.probabilities, other.predictions.probabilities)


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def toy_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in write_reviews(path).read_text().splitlines()]


def test_multi_label_runs_end_to_end(tmp_path, checkpoint, unproved):
    rows = toy_rows(tmp_path)
    for row in rows:
        row["label"] = [name for name in ("soup", "book", "slow") if name in row["text"].split()]
    result = ht.run(config_for(write_rows(tmp_path / "multi.jsonl", rows), checkpoint, tmp_path / "run"))
    assert result.results["labels"]["problem"] == "multi_label"
    assert {"f1_micro", "f1_macro", "subset_accuracy"} <= {s["metric"] for s in result.results["scores"]}
    assert set(ht.load(tmp_path / "run").predict(["soup book"]).labels[0]) <= {"soup", "book", "slow"}


def test_regression_runs_end_to_end(tmp_path, checkpoint, unproved):
    rows = toy_rows(tmp_path)
    for row in rows:
        row["label"] = len(row["text"].split()) / 10 + 0.05
    result = ht.run(config_for(write_rows(tmp_path / "numbers.jsonl", rows), checkpoint, tmp_path / "run"))
    assert result.results["labels"]["problem"] == "regression"
    assert {"pearson", "spearman", "mae"} <= {s["metric"] for s in result.results["scores"]}
    assert isinstance(ht.load(tmp_path / "run").predict(["soup book"]).labels[0], float)


def test_pairs_from_csv_with_string_integers_and_many_classes(tmp_path, checkpoint, unproved):
    rows = toy_rows(tmp_path)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "rating"])
        for i, row in enumerate(rows):
            writer.writerow([row["text"], rows[-i]["text"], 1 + i % 10])
    columns = {"text_column": "first", "text_pair_column": "second", "label_column": "rating"}
    result = ht.run(config_for(tmp_path / "pairs.csv", checkpoint, tmp_path / "run", **columns))
    assert result.results["labels"]["names"] == [str(i) for i in range(1, 11)]
    assert result.results["scores"][0]["domain"] == "pairs"
    assert len(ht.load(tmp_path / "run").predict(["a"], ["b"]).labels) == 1


def test_a_head_for_the_same_labels_is_kept(tmp_path, checkpoint, unproved):
    source = write_reviews(tmp_path)
    first = ht.run(config_for(source, checkpoint, tmp_path / "first"))
    again = config_for(source, tmp_path / "first" / "model", tmp_path / "again", "lora")
    result = ht.run(replace(again, train=ht.TrainConfig(max_steps=1, learning_rate=1e-9)))
    assert result.results["checkpoint"]["newly_initialised"] == []
    assert result.shift.in_domain_mean == pytest.approx(first.shift.in_domain_mean, abs=1e-9)
    metadata = json.loads((tmp_path / "again" / "model" / "hf_transfer.json").read_text())
    assert metadata["keeps_head"] is True


def test_lora_with_a_merged_export_is_proved_twice(tmp_path, checkpoint):
    config = config_for(write_reviews(tmp_path), checkpoint, tmp_path / "run", "lora")
    result = ht.run(replace(config, publish=ht.PublishConfig(export=("merged",))))
    assert result.results["artefact"]["kind"] == "adapter"
    assert result.results["artefact"]["also"] == ["merged"]
    adapter, merged = (ht.load(tmp_path / "run" / name, device="cpu") for name in ("model", "merged"))
    texts = ["good book", "a stale soup"]
    np.testing.assert_allclose(adapter.logits(texts), merged.logits(texts), rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "run" / "model" / "config.json").exists(), "transformers would take it for a full model"


@pytest.mark.parametrize(
    "adapt",
    [
        ht.AdaptConfig(strategy="freeze", freeze="0", gradual_unfreezing=True),
        ht.AdaptConfig(strategy="full", head_first=True, head_first_epochs=0.5),
        ht.AdaptConfig(strategy="lora", head_first=True),
    ],
    ids=["gradual", "head first, full", "head first, lora"],
)
def test_training_in_stages_runs_end_to_end(tmp_path, checkpoint, unproved, adapt):
    config = replace(config_for(write_reviews(tmp_path), checkpoint, tmp_path / "run"), adapt=adapt)
    result = ht.run(config)
    rates = [record["learning_rate"] for record in log_of(tmp_path / "run")]
    assert len(rates) == result.results["timing"]["steps"]
    assert result.shift.in_domain_mean > 0.6


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("recipes/text_cls.py", id="ddp"),
        pytest.param("tests/two_processes_fsdp.py", id="fsdp2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_run_of_one(tmp_path, checkpoint, root, script):
    """Uneven data, whole or sharded parameters: same rates and losses, each example scored once, a proved artefact."""
    source = write_reviews(tmp_path, count=41)
    flags = {
        "--data.source": source,
        "--model.checkpoint": checkpoint,
        "--model.dropout": 0,
        "--train.epochs": 2,
        "--train.window_size": 7,
        "--train.learning_rate": 0.003,
        "--evaluate.resamples": 200,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    launch_two(root / script, *words, "--output_dir", tmp_path / "two")
    ht.run(ht.load_config([*words, "--output_dir", str(tmp_path / "one")], "test"))
    one, two = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert two["environment"]["world_size"] == 2
    assert two["artefact"]["proved"] is True
    logs = [log_of(tmp_path / name) for name in ("one", "two")]
    assert [r["learning_rate"] for r in logs[0]] == [r["learning_rate"] for r in logs[1]]
    np.testing.assert_allclose([r["loss"] for r in logs[0]], [r["loss"] for r in logs[1]], rtol=1e-3)
    assert [(s["domain"], s["count"]) for s in one["scores"]] == [(s["domain"], s["count"]) for s in two["scores"]]
    assert one["timing"]["tokens"] == two["timing"]["tokens"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_the_log_and_the_scores_of_a_run_and_of_its_continuation(tmp_path, checkpoint, unproved):
    source = write_reviews(tmp_path, count=60)
    config = config_for(source, checkpoint, tmp_path / "run", train_domains=("books",))
    train = replace(config.train, epochs=None, max_steps=6, checkpoint_steps=2, validation_steps=3)
    config = replace(config, train=train, report=ht.ReportConfig(trackers=("tensorboard",)))
    config = replace(config, evaluate=replace(config.evaluate, controls=("scratch",)))

    def check():
        results, log = read_results(tmp_path / "run"), log_of(tmp_path / "run")
        found = read_tensorboard(tmp_path / "run")
        for name, key in trackers.KEYS.items():
            if name != "skipped":
                assert found[key] == [(r["step"], pytest.approx(r[name])) for r in log]
        assert [step for step, _ in found["eval/accuracy"]] == [3, 6]
        for item in results["scores"]:
            if item["stage"] == "adapted":
                assert found[f"test/{item['domain']}/{item['metric']}"] == [(6, pytest.approx(item["value"]))]
        assert not list((tmp_path / "run" / "controls").glob("*/trackers*")), "controls have no tracker run"
        assert str(tmp_path) not in next((tmp_path / "run").rglob("hparams.yml")).read_text()

    ht.run(config)
    check()
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-6")
    ht.run(replace(config, train=replace(train, resume="auto")))  # steps 5 and 6 once more
    check()
