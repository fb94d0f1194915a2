"""Predictions: one per row, in the order of the rows, the same however they are batched and shared."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from test_pretrained import open_it
from tiny import make_checkpoint
from toy import check_alike, encoded_rows, launch_two

from hf_transfer.config import RunConfig
from hf_transfer.predict import _in_order, predict
from hf_transfer.records import LabelSpace, Predictions
from hf_transfer.tasks import TASKS

THREE = LabelSpace("single_label", ("a", "b", "c"))
BUDGETS = [(11, 60), (11, 1), (1, 60)]  # an uneven share, a batch per row, and a process without any row


def open_with_rows(checkpoint: object, count: int, labels: LabelSpace = THREE):
    pretrained = open_it(checkpoint, labels)
    rows = encoded_rows(count, len(pretrained.tokenizer), 3)
    domains = [("books", "apps")[i % 2] for i in range(count)]
    rows = rows.remove_columns("domain").add_column("domain", domains)
    return pretrained.model, rows, TASKS["classification"].bind(labels, pretrained, RunConfig(), ())


def everything_about(predictions: Predictions) -> dict:
    return {
        "example_ids": predictions.example_ids.tolist(),
        "domain_ids": predictions.domain_ids.tolist(),
        "predicted": predictions.predicted.tolist(),
        "reference": predictions.reference.tolist(),
        "probabilities": predictions.probabilities.tolist(),
    }


def one_by_one(model: torch.nn.Module, rows: Dataset) -> np.ndarray:
    """[rows, outputs] of the plain forward of each row alone."""
    model.eval()
    with torch.no_grad():
        return np.concatenate([model(input_ids=torch.tensor([row["input_ids"]])).logits.numpy() for row in rows])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_predictions_stand_in_the_order_of_the_rows_and_equal_a_forward_of_each_alone(checkpoint, budget):
    model, rows, functions = open_with_rows(checkpoint, 11)
    found = predict(model, rows, functions, Accelerator(), budget)
    logits = one_by_one(model, rows)
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    assert found.predicted.tolist() == logits.argmax(axis=1).tolist()
    assert len(set(found.predicted)) > 1
    assert found.example_ids.tolist() == rows["example_id"][:]
    assert found.domain_ids.tolist() == rows["domain"][:]
    assert found.reference.tolist() == rows["labels"][:]


@pytest.mark.parametrize("most", [1, 3])
def test_a_batch_that_has_no_room_goes_in_pieces_with_the_same_predictions(checkpoint, most):
    """As many rows at once have room, whatever their length."""
    model, rows, functions = open_with_rows(checkpoint, 11)
    wanted = everything_about(predict(model, rows, functions, Accelerator(), 10_000))
    seen = []

    def no_more_room(module, args, kwargs):
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with model.register_forward_pre_hook(no_more_room, with_kwargs=True):
        found = everything_about(predict(model, rows, functions, Accelerator(), 10_000))
    np.testing.assert_allclose(found.pop("probabilities"), wanted.pop("probabilities"), atol=1e-6)
    assert found == wanted
    assert seen[0] == 11 and max(seen[-3:]) <= most


def test_texts_are_written_in_the_precision_of_training(checkpoint):
    model, rows, functions = open_with_rows(checkpoint, 3)
    entered = []

    @contextmanager
    def autocast():
        entered.append("on")
        yield
        entered.append("off")

    def translate(bare, chosen):
        assert bare is model
        entered.append(len(chosen))
        raise KeyError("seen")

    accelerator = SimpleNamespace(process_index=0, num_processes=1, autocast=autocast, unwrap_model=lambda given: given)
    with pytest.raises(KeyError, match="seen"):
        predict(model, rows, replace(functions, translate=translate), accelerator, 60)
    assert entered == ["on", 3]


def test_a_multi_label_prediction_has_every_class_at_or_over_one_half(checkpoint):
    labels = LabelSpace("multi_label", ("a", "b", "c"))
    model, rows, functions = open_with_rows(checkpoint, 11, labels)
    rows = rows.remove_columns("labels").add_column("labels", [[1.0, 0.0, float(i % 2)] for i in range(11)])
    found = predict(model, rows, functions, Accelerator(), 60)
    logits = one_by_one(model, rows)
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert found.predicted.tolist() == (logits >= 0).astype(int).tolist()
    assert found.reference.shape == (11, 3)


def test_a_regression_predicts_the_output_itself(checkpoint):
    model, rows, functions = open_with_rows(checkpoint, 11, LabelSpace("regression"))
    rows = rows.remove_columns("labels").add_column("labels", [i / 3 for i in range(11)])
    found = predict(model, rows, functions, Accelerator(), 60)
    np.testing.assert_allclose(found.predicted, one_by_one(model, rows)[:, 0], atol=1e-5)
    assert found.probabilities.shape == (11, 1)
    assert found.reference.tolist() == [i / 3 for i in range(11)]


def test_every_module_is_left_in_the_mode_in_which_it_was(checkpoint):
    model, rows, functions = open_with_rows(checkpoint, 3)
    model.train()
    model.bert.encoder.layer[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    seen = []
    model.classifier.register_forward_hook(lambda module, *_: seen.append(any(m.training for m in model.modules())))
    predict(model, rows, functions, Accelerator(), 60)
    assert seen == [False]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {True, False}


def test_no_gradient_is_kept(checkpoint):
    model, rows, functions = open_with_rows(checkpoint, 3)
    graphs = []
    model.classifier.register_forward_hook(lambda module, _, output: graphs.append(output.grad_fn))
    predict(model, rows, functions, Accelerator(), 60)
    assert graphs == [None]


def test_no_rows_give_no_predictions(checkpoint):
    model, rows, functions = open_with_rows(checkpoint, 3)
    found = predict(model, rows.select([]), functions, Accelerator(), 60)
    assert [len(values) for values in everything_about(found).values()] == [0] * 5


def test_an_example_id_that_occurs_twice_is_a_defect_of_ours(checkpoint):
    model, rows, functions = open_with_rows(checkpoint, 3)
    rows = rows.remove_columns("example_id").add_column("example_id", ["a", "b", "a"])
    with pytest.raises(AssertionError, match="example ids must be unique"):
        predict(model, rows, functions, Accelerator(), 60)


@pytest.mark.parametrize("positions", [[0, 1], [0, 1, 1], [0, 1, 2, 2]])
def test_a_row_that_is_missing_or_predicted_twice_is_a_defect_of_ours(positions):
    parts = [(np.array(positions), np.zeros((len(positions), 2)))]
    with pytest.raises(AssertionError, match=f"{len(positions)} predictions for 3 rows"):
        _in_order(encoded_rows(3, 20, 2), parts, lambda values: values.argmax(-1))


@pytest.mark.recipe
def test_two_processes_predict_each_example_once_and_as_one_process_does(checkpoint, tmp_path):
    launch_two(Path(__file__).parent / "two_processes_predict.py", checkpoint, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    for count, budget in BUDGETS:
        model, rows, functions = open_with_rows(checkpoint, count)
        alone = everything_about(predict(model, rows, functions, Accelerator(), budget))
        check_alike(first[f"{count} rows, {budget} tokens"], alone)
        assert sorted(alone["example_ids"], key=int) == [str(i) for i in range(count)]
