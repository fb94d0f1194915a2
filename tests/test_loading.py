"""What ``load`` opens and what it refuses: a folder that would predict nonsense is worse than an error."""

import json

import numpy as np
import pytest
import torch
from test_pretrained import drop_tensors
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from tokenizers import processors
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer.errors import InputError
from hf_transfer.layers import LayerProbe, make_reader
from hf_transfer.loading import METADATA_SCHEMA, load


def stock_model(folder, architecture="bert", **settings):
    """A classification model as plain transformers saves it."""
    base = make_checkpoint(folder / "base", architecture, **settings)
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, **names).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "model")
    return folder / "model"


def layer_probe(folder, architecture="bert"):
    """A probe on the mean of all states, as a run saves it."""
    base = make_checkpoint(folder / "base", architecture, id2label={0: "bad", 1: "good"})
    body = AutoModel.from_pretrained(base)
    probe = LayerProbe(body, 2)
    torch.manual_seed(0)
    probe.settle("mean", make_reader(body).final_norm, torch.randn(2, 16), torch.randn(2))
    (folder / "model").mkdir()
    probe.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "model")
    metadata = {"schema": METADATA_SCHEMA, "task": "classification", "problem": "single_label", "max_length": 32}
    metadata |= {"label_names": ["bad", "good"], "keeps_head": False}
    metadata |= dict.fromkeys(("base_checkpoint", "base_revision", "base_sha256"), "")
    (folder / "model" / "hf_transfer.json").write_text(json.dumps(metadata), encoding="utf-8")
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
def test_texts_of_any_length_are_predicted_as_each_alone_and_layers_see_little_padding_or_none(tmp_path, architecture):
    path = stock_model(tmp_path, architecture)
    texts = ["good", "bad book bad film good", "a film", "good " * 12, "bad"]
    loaded = load(path)
    widths = []
    linear = next(m for m in loaded.model.base_model.encoder.layer[0].modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[:2]))
    together = loaded.logits(texts)
    lengths = sorted(len(ids) for ids in loaded.tokenizer(texts)["input_ids"])
    padded = [(2, lengths[-1]), (3, lengths[-3])]  # at once they would take 70 positions for 33 tokens
    assert [tuple(width) for width in widths] == ([(1, sum(lengths))] if architecture == "bert" else padded)
    alone = np.concatenate([loaded.logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_body_without_a_head_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no weights for classifier\.bias, classifier\.weight: it is a body"):
        load(make_checkpoint(tmp_path / "body"))


@pytest.mark.parametrize(
    "tensor", ["model.decoder.layers.1.fc1.weight", "model.encoder.layers.0.final_layer_norm.bias"]
)
def test_a_model_that_translates_is_refused_where_it_is_not_whole(tmp_path, tensor):
    folder = make_translation_checkpoint("marian", tmp_path)
    assert len(load(folder, device="cpu").translate(["The soup is hot."])) == 1
    with pytest.raises(InputError, match=f"has no weights for {tensor}"):
        load(drop_tensors(folder, tensor))


@pytest.mark.parametrize(("make", "body"), [(stock_model, "bert."), (layer_probe, "")])
def test_a_classifier_is_refused_where_its_body_is_not_whole(tmp_path, make, body):
    folder = make(tmp_path)
    assert load(folder, device="cpu").predict(["a good book"]).label_names == ("bad", "good")
    tensor = f"{body}encoder.layer.0.output.dense.weight"
    with pytest.raises(InputError, match=f"has no weights for {tensor}: what comes out of it would be random"):
        load(drop_tensors(folder, tensor))


@pytest.mark.parametrize("make", [stock_model, layer_probe], ids=["head", "layer probe"])
def test_an_empty_text_is_predicted_though_the_tokenizer_adds_no_token_of_its_own(tmp_path, make):
    """As GPT-2's; alone it is what it is beside another text."""
    folder = make(tmp_path, "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokenizer.save_pretrained(folder)
    loaded = load(folder, device="cpu")
    assert loaded.tokenizer([""])["input_ids"] == [[]], "or this says nothing"
    alone = loaded.predict([""]).probabilities
    assert np.isfinite(alone).all() and alone.shape == (1, 2)
    together = loaded.predict(["", "good book"]).probabilities
    np.testing.assert_allclose(together[:1], alone, atol=1e-6)
    np.testing.assert_allclose(together[1:], loaded.predict(["good book"]).probabilities, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-4


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
