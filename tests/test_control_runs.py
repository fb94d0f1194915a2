"""Runs of controls: the checkpoint as it came is plain transformers, and each leaves a whole results.json."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import accuracy_score
from test_pretrained import with_head
from tiny import make_checkpoint
from toy import write_reviews

from hf_transfer.config import (
    SCRATCH_RATES,
    AdaptConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PublishConfig,
    RunConfig,
    TrainConfig,
)
from hf_transfer.control_runs import (
    DOES_NOT_APPLY,
    score_control,
    score_controls,
    scratch_config,
)
from hf_transfer.controls import fit_majority, fit_tfidf
from hf_transfer.errors import InputError
from hf_transfer.records import Predictions, Text
from hf_transfer.report.results import read_results, write_json
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

FEW = EvaluateConfig(resamples=100)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data"), count=60)


@pytest.fixture(scope="module")
def headless(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def fitting(tmp_path_factory) -> Path:
    """A head for the classes of the reviews, in the other order and in capitals."""
    return with_head(tmp_path_factory.mktemp("with_head"), ("GOOD", "BAD"))


def config_of(checkpoint: Path | str, source: Path, **fields) -> RunConfig:
    return RunConfig(
        data=DataConfig(source=str(source), train_domains=("books",)),
        model=ModelConfig(checkpoint=str(checkpoint)),
        **{"evaluate": FEW, "train": TrainConfig(precision="fp32"), **fields},
    )


def text_of(config: RunConfig) -> Text:
    return Text(*read_text(config.data, config.train, TASKS[config.task], config.seed))


def never(*arguments, **settings):
    raise AssertionError("nothing is trained here")


@pytest.mark.parametrize(("resume", "wanted"), [(None, None), ("auto", "auto"), ("runs/x/checkpoints/step-4", "auto")])
def test_a_control_goes_on_from_its_own_checkpoint_whatever_the_run_goes_on_from(headless, source, resume, wanted):
    config = config_of(headless, source, train=TrainConfig(precision="fp32", resume=resume))
    config = dataclasses.replace(config, evaluate=dataclasses.replace(FEW, controls=("scratch",)))
    asked = []

    def adapt(inside, text, keep_model, stage):
        asked.append(inside.train.resume)
        return SimpleNamespace(results={"scores": []})

    assert score_controls(config, text_of(config), adapt) == ([{"scores": []}], [])
    assert asked == [wanted]


# before


def test_before_predicts_what_plain_transformers_predicts_with_the_head_that_came(fitting, source):
    config = config_of(fitting, source)
    text = text_of(config)
    results = score_control("before", config, text, never)
    tokenizer = transformers.AutoTokenizer.from_pretrained(fitting)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(fitting).eval()
    seen = set()
    for split, by_domain in (("test", text.splits.test), ("validation", {"books": text.splits.validation})):
        for domain, rows in by_domain.items():
            with torch.no_grad():
                logits = [model(**tokenizer(words, return_tensors="pt")).logits[0] for words in rows["text"]]
            probabilities = torch.stack(logits).softmax(-1).numpy()
            found = results["examples"][split][domain]
            assert found["ids"] == rows["example_id"][:]
            np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
            names = [model.config.id2label[i].lower() for i in probabilities.argmax(-1)]
            ours = results["labels"]["names"]
            assert [ours[i] for i in found["predicted"]] == names
            assert [ours[i] for i in found["reference"]] == rows["label"][:]
            seen |= set(names)
            if split == "test":
                (score,) = (s for s in results["scores"] if s["domain"] == domain and s["metric"] == "accuracy")
                assert score["value"] == pytest.approx(accuracy_score(rows["label"][:], names))
    assert results["labels"]["names"] == ["good", "bad"], "in the order of the head"
    assert seen == {"good", "bad"}, "a checkpoint that always says the same would prove little"


def test_before_trains_nothing_and_says_so(fitting, source):
    config = config_of(fitting, source)
    text = text_of(config)
    results = score_control("before", config, text, never)
    assert results["strategy"]["trainable_parameters"] == 0
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(fitting)
    assert results["strategy"]["total_parameters"] == sum(p.numel() for p in plain.parameters())
    assert results["checkpoint"]["newly_initialised"] == []
    assert len(results["checkpoint"]["sha256"]) == 64
    assert results["selection"]["rule"] == "nothing is chosen"
    assert (results["timing"]["steps"], results["timing"]["tokens"]) == (0, 0)
    assert results["timing"]["predict_examples_per_second"] > 0
    assert results["artefact"]["kind"] == "none" and not results["artefact"]["proved"]
    limit = transformers.AutoTokenizer.from_pretrained(fitting).model_max_length
    assert results["data"]["max_length"] == limit < min(plain.config.max_position_embeddings, config.data.max_length)


def test_before_counts_the_texts_that_it_cuts_as_the_run_beside_it_does(fitting, source):
    config = config_of(fitting, source)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=8))
    text = text_of(config)
    found = score_control("before", config, text, never)["data"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(fitting)
    rows = [*text.splits.train["text"], *text.splits.validation["text"]]
    rows += [words for domain in text.splits.test.values() for words in domain["text"]]
    longer = sum(len(tokenizer(words).input_ids) > 8 for words in rows)
    assert (found["max_length"], found["truncated"]) == (8, longer)
    assert 0 < longer < len(rows), "all or none would prove little"


@pytest.mark.parametrize("form", ["no head", "unnamed", "other names", "random"])
def test_before_does_not_apply_without_a_head_for_these_classes(form, headless, fitting, source, tmp_path):
    checkpoint = {
        "no head": headless,
        "unnamed": with_head(tmp_path / "unnamed", ("LABEL_0", "LABEL_1")),
        "other names": with_head(tmp_path / "other", ("sports", "politics")),
        "random": f"scratch:{fitting}",
    }[form]
    config = config_of(checkpoint, source)
    with pytest.raises(InputError) as caught:
        score_control("before", config, text_of(config), never)
    name = str(checkpoint).removeprefix("scratch:")
    assert caught.value.problems == (f"control before {DOES_NOT_APPLY}: {name} has no head for bad, good.",)


def test_before_does_not_apply_to_numbers(fitting, source, tmp_path):
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text("".join(json.dumps({**row, "label": i / 7}) + "\n" for i, row in enumerate(rows)))
    config = config_of(fitting, numbers)
    with pytest.raises(InputError, match=f"control before {DOES_NOT_APPLY}: .* has no head for these labels"):
        score_control("before", config, text_of(config), never)


# tfidf and majority


def assert_same_examples(found: dict, wanted: Predictions) -> None:
    assert found["ids"] == wanted.example_ids.tolist()
    assert found["predicted"] == wanted.predicted.tolist()
    assert found["reference"] == wanted.reference.tolist()
    np.testing.assert_allclose(found["probabilities"], wanted.probabilities, rtol=1e-5)


@pytest.mark.parametrize("name", ["tfidf", "majority"])
def test_the_results_of_a_control_without_a_transformer_are_whole(name, headless, source, tmp_path):
    config = config_of(headless, source, seed=3)
    text = text_of(config)
    results = score_control(name, config, text, never)
    write_json(tmp_path / "results.json", results)
    assert read_results(tmp_path) == results, "plain JSON, of the schema of a run"

    if name == "tfidf":
        model = fit_tfidf(text.splits.train, text.splits.validation, text.labels, 3)
    else:
        model = fit_majority(text.splits.train, text.labels)
    for domain, rows in text.splits.test.items():
        assert_same_examples(results["examples"]["test"][domain], model.predict(rows))
    assert_same_examples(results["examples"]["validation"]["books"], model.predict(text.splits.validation))
    own = model.predict(text.splits.validation)
    assert results["selection"] == {
        "rule": "cross-validation on train" if name == "tfidf" else "nothing is chosen",
        "metric": "accuracy",
        "step": 0,
        "value": pytest.approx(accuracy_score(own.reference, own.predicted)),
    }
    assert results["strategy"] == {
        "name": name,
        "trainable_parameters": model.parameters,
        "total_parameters": model.parameters,
    }
    assert {(s["stage"], s["domain"], s["role"], s["split"], s["count"]) for s in results["scores"]} == {
        (name, "books", "in_domain", "test", 20),
        (name, "apps", "shifted", "test", 20),
    }
    assert results["checkpoint"] == {"id": "", "revision": "", "sha256": "", "newly_initialised": []}
    assert results["timing"]["examples"] == len(text.splits.train)
    assert results["timing"]["train_seconds"] > 0
    assert results["data"]["fingerprint"] == text.table.fingerprint
    assert results["data"]["max_length"] is None, "nothing is cut"
    assert {entry["role"] for entry in results["calibration"]} == {"in_domain", "shifted"}
    assert (results["seed"], results["training"], results["history"]) == (3, {}, [])
    assert results["config"]["data"]["train_domains"] == ["books"]


def test_without_validation_rows_what_a_control_scores_there_is_undefined(headless, source):
    config = config_of(headless, source, evaluate=EvaluateConfig(resamples=100, selection="last"))
    text = text_of(config)
    text = dataclasses.replace(
        text, splits=dataclasses.replace(text.splits, validation=text.splits.validation.select([]))
    )
    results = score_control("majority", config, text, never)
    assert results["selection"]["value"] is None
    assert "validation" not in results["examples"]
    assert len(results["scores"]) > 0


# scratch


def test_scratch_is_the_run_with_random_weights_all_of_which_learn():
    config = RunConfig(
        model=ModelConfig(checkpoint="a/b", revision="main", dropout=0.2),
        adapt=AdaptConfig(strategy="lora", head_first=True, lora_rank=4),
        train=TrainConfig(epochs=7, layer_decay=0.9),
        evaluate=EvaluateConfig(controls=("scratch", "tfidf"), resamples=200),
        publish=PublishConfig(export=("merged",)),
        seed=5,
    )
    changed = scratch_config(config)
    assert changed.problems() == []
    assert changed == dataclasses.replace(
        config,
        model=ModelConfig(checkpoint="scratch:a/b", revision="main", dropout=0.2),
        adapt=AdaptConfig(strategy="full", lora_rank=4),
        train=TrainConfig(epochs=7, layer_decay=0.9, learning_rate=3e-4, head_learning_rate=3e-4),
        evaluate=EvaluateConfig(resamples=200),
        publish=PublishConfig(),
    )
    assert changed.train.learning_rate == SCRATCH_RATES["classification"]


def test_a_rate_that_was_given_holds_for_scratch_too():
    given = RunConfig(train=TrainConfig(learning_rate=1e-3))
    assert scratch_config(given).train == dataclasses.replace(given.train, epochs=3.0), "as many passes as the others"
    both = RunConfig(train=TrainConfig(epochs=2, learning_rate=1e-3, head_learning_rate=1e-2))
    assert scratch_config(both).train == both.train


def test_scratch_drops_gradual_unfreezing_with_the_strategy_that_it_belongs_to():
    config = RunConfig(adapt=AdaptConfig(strategy="freeze", freeze="0", gradual_unfreezing=True))
    assert scratch_config(config).problems() == []


class Adapting:
    """The page's ``adapt``, which only remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, config, text, keep_model=True, stage="adapted"):
        self.asked.append((config, keep_model, stage))
        return type("Result", (), {"results": {"strategy": {"name": stage}}})


def test_scratch_is_trained_as_any_run_and_no_model_is_kept(headless, source):
    config, adapt = config_of(headless, source), Adapting()
    results = score_control("scratch", config, text_of(config), adapt)
    assert results == {"strategy": {"name": "scratch"}}
    assert adapt.asked == [(scratch_config(config), False, "scratch")]


# all of them


def test_controls_are_scored_in_order_each_in_its_folder_and_those_that_do_not_apply_are_said(
    headless, source, tmp_path
):
    controls = ("majority", "before", "scratch")
    config = config_of(
        headless, source, evaluate=EvaluateConfig(resamples=100, controls=controls), output_dir=str(tmp_path / "run")
    )
    adapt = Adapting()
    scored, not_applicable = score_controls(config, text_of(config), adapt)
    assert [results["strategy"]["name"] for results in scored] == ["majority", "scratch"]
    assert not_applicable == [f"control before {DOES_NOT_APPLY}: {headless} has no head for bad, good."]
    ((asked, _, _),) = adapt.asked
    assert asked.output_dir == str(tmp_path / "run" / "controls" / "scratch")
    assert not math.isnan(scored[0]["timing"]["train_seconds"])


def test_no_controls_are_no_results(headless, source):
    config = config_of(headless, source)
    assert score_controls(config, text_of(config), never) == ([], [])
