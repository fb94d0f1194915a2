"""What ``load`` opens and what it refuses: a folder that would predict nonsense is worse than an error."""

import json

import numpy as np
import pytest
import torch
from tiny import make_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer.errors import InputError
from hf_transfer.loading import METADATA_SCHEMA, load


def stock_model(folder, architecture="bert", **settings):
    """A classification model as plain transformers saves it."""
    base = make_checkpoint(folder / "base", architecture, **settings)
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, **names).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "model")
    return folder / "model"


def test_a_stock_folder_opens_and_long_texts_are_cut_where_its_positions_end(tmp_path):
    folder = stock_model(tmp_path, max_position_embeddings=20)
    loaded = load(folder, device="cpu")
    assert loaded.max_length == 20
    predicted = loaded.predict(["good " * 50, "bad"])
    assert predicted.label_names == ("bad", "good")
    assert set(predicted.labels) <= {"bad", "good"}
    assert predicted.probabilities.sum(1) == pytest.approx([1, 1])
    assert loaded.predict([]).labels == []


@pytest.mark.parametrize("said", [None, "regression"])
def test_a_stock_folder_with_one_output_predicts_its_value(said, tmp_path):
    base = make_checkpoint(tmp_path / "base", "bert")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, problem_type=said)
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(tmp_path / "model")
    predicted = load(tmp_path / "model", device="cpu").predict(["good", "bad"])
    with torch.no_grad():
        stock = model.eval()(**tokenizer(["good", "bad"], return_tensors="pt")).logits[:, 0].tolist()
    assert predicted.labels == pytest.approx(stock, abs=1e-5) and predicted.label_names == ()


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_texts_of_any_length_are_predicted_as_each_alone_and_layers_see_no_padding(tmp_path, architecture):
    path = stock_model(tmp_path, architecture)
    texts = ["good", "bad book bad film good", "a film", "good " * 12, "bad"]
    loaded = load(path)
    widths = []
    linear = next(m for m in loaded.model.base_model.encoder.layer[0].modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[:2]))
    together = loaded.logits(texts)
    tokens = sum(len(ids) for ids in loaded.tokenizer(texts)["input_ids"])
    longest = max(len(ids) for ids in loaded.tokenizer(texts)["input_ids"])
    assert [tuple(width) for width in widths] == [(1, tokens) if architecture == "bert" else (len(texts), longest)]
    alone = np.concatenate([loaded.logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_body_without_a_head_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no weights for classifier\.bias, classifier\.weight"):
        load(make_checkpoint(tmp_path / "body"))


def test_a_folder_without_its_tokenizer_is_refused(tmp_path):
    folder = stock_model(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load(folder)


def test_damaged_weights_are_refused_in_one_sentence(tmp_path):
    folder = stock_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="could not be opened"):
        load(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": "other"}', json.dumps({"schema": METADATA_SCHEMA, "task": 3})]
)
def test_damaged_metadata_is_refused(tmp_path, content):
    folder = stock_model(tmp_path)
    (folder / "hf_transfer.json").write_text(content)
    with pytest.raises(InputError, match=r"hf_transfer\.json"):
        load(folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds neither config\.json nor adapter_config\.json"):
        load(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere")
