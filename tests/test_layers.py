"""Layers that are dropped and states that are read: what stock transformers computes for the cut checkpoint."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_pretrained import open_it
from tiny import ARCHITECTURES, make_checkpoint
from toy import encoded_rows

from hf_transfer.config import ModelConfig, RunConfig
from hf_transfer.errors import InputError
from hf_transfer.layers import (
    LayerProbe,
    check_layers,
    cut_body,
    cut_values,
    depth_of,
    features_of,
    make_reader,
    open_probe,
    pooled_states,
)
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import LabelSpace
from hf_transfer.tasks import TASKS

THREE = LabelSpace("single_label", ("a", "b", "c"))
TASK = TASKS["classification"]
PAIRS = ("bart", "t5")  # encoder and decoder
ONE_STACK = tuple(name for name in ARCHITECTURES if name not in PAIRS)
WITH_FINAL_NORM = {"modernbert": "final_norm", "gpt2": "ln_f", "llama": "norm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_checkpoint(folder / name, name, **deeper(name)) for name in ARCHITECTURES}


def deeper(name: str) -> dict[str, int]:
    """Three layers in place of two."""
    if name in PAIRS:
        return {}
    return {{"distilbert": "n_layers", "gpt2": "n_layer"}.get(name, "num_hidden_layers"): 3}


def stock_states(folder: Path, layers: int, rows) -> np.ndarray:
    """[rows, width] by transformers alone: the checkpoint opened with so many layers, each text by itself, its mean."""
    settings = {"num_hidden_layers": layers}
    if "modernbert" in folder.name:
        settings["layer_types"] = transformers.AutoConfig.from_pretrained(folder).layer_types[:layers]
    body = transformers.AutoModel.from_pretrained(folder, **settings).eval()
    with torch.no_grad():
        found = [body(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy().mean(0) for ids in rows["input_ids"]]
    return np.stack(found)


def states_of(folder: Path, rows, tokens_per_batch: int = 40, **parts) -> np.ndarray:
    opened = open_it(folder, THREE)
    functions = TASK.bind(THREE, opened, RunConfig(), ())
    reader = make_reader(opened.model.base_model)
    return pooled_states(reader, rows, functions.make_batch, tokens_per_batch, **parts)


@pytest.mark.parametrize("architecture", ONE_STACK)
def test_states_are_those_of_stock_checkpoints_with_fewer_layers(folders, architecture):
    rows = encoded_rows(7, 40, 3)
    states = states_of(folders[architecture], rows)
    assert states.shape == (4, 7, 16)
    for layers in (1, 2, 3):
        expected = stock_states(folders[architecture], layers, rows)
        np.testing.assert_allclose(states[layers], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(states[1] - states[3]).max() > 0.01


@pytest.mark.parametrize("architecture", [name for name in ONE_STACK if name not in WITH_FINAL_NORM])
def test_without_a_final_norm_states_are_the_hidden_states_of_the_whole_model(folders, architecture):
    rows = encoded_rows(5, 40, 3)
    body = transformers.AutoModel.from_pretrained(folders[architecture]).eval()
    expected = np.empty((4, 5, 16), np.float32)
    for i, ids in enumerate(rows["input_ids"]):
        with torch.no_grad():
            hidden = body(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected[:, i] = [state[0].numpy().mean(0) for state in hidden]
    np.testing.assert_allclose(states_of(folders[architecture], rows), expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_between_layers_is_part_of_the_state_below_it(tmp_path):
    """DeBERTa's stands behind the first layer; the checkpoint that keeps this layer alone ends with it."""
    convolution = {"conv_kernel_size": 3, "conv_act": "gelu"}
    folder = make_checkpoint(tmp_path / "deberta-v2", "deberta-v2", num_hidden_layers=3, **convolution)
    rows = encoded_rows(5, 40, 3)
    body = transformers.AutoModel.from_pretrained(folder).eval()
    assert body.encoder.conv is not None
    reader, found = make_reader(body), []
    for i, ids in enumerate(rows["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        with torch.no_grad():
            hidden = body(**inputs, output_hidden_states=True).hidden_states
            found.append(torch.cat(reader.read(inputs)).numpy())
        np.testing.assert_allclose(found[i], [state[0].numpy().mean(0) for state in hidden], rtol=1e-5, atol=1e-5)
    cut = transformers.AutoModel.from_pretrained(folder).eval()
    cut_body(cut, 1)
    for layers, stock in ((1, cut), (2, transformers.AutoModel.from_pretrained(folder, num_hidden_layers=2).eval())):
        with torch.no_grad():
            wanted = [stock(torch.tensor([ids])).last_hidden_state[0].numpy().mean(0) for ids in rows["input_ids"]]
        np.testing.assert_allclose([states[layers] for states in found], wanted, rtol=1e-5, atol=1e-5)


def test_a_shared_layer_gives_a_state_each_time_that_it_is_run_through(folders):
    body = transformers.AutoModel.from_pretrained(folders["albert"]).eval()
    ids = torch.tensor([[2, 9, 14, 7, 3]])
    with torch.no_grad():
        hidden = body(ids, output_hidden_states=True).hidden_states
        states = make_reader(body).read({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert len(states) == depth_of(body.config) + 1 == 4
    for state, wanted in zip(states, hidden, strict=True):
        torch.testing.assert_close(state, wanted.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ONE_STACK)
def test_the_norm_after_the_last_layer_is_found_by_what_it_computes(folders, architecture):
    body = transformers.AutoModel.from_pretrained(folders[architecture])
    assert make_reader(body).final_norm == WITH_FINAL_NORM.get(architecture, "")
    assert body.training is False


def test_the_processes_of_a_launch_share_the_texts_out(folders):
    rows = encoded_rows(9, 40, 3)
    whole = states_of(folders["bert"], rows)
    parts = [states_of(folders["bert"], rows, process=i, processes=2) for i in range(2)]
    assert all((part == 0).all(axis=(0, 2)).any() for part in parts)
    np.testing.assert_array_equal(sum(parts), whole)
    added = states_of(folders["bert"], rows, over_processes=lambda states: states + 1)
    np.testing.assert_array_equal(added, whole + 1)


def test_states_become_features_one_by_one_as_their_mean_or_side_by_side():
    states = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(features_of(states, "1"), [[6, 7], [8, 9], [10, 11]])
    np.testing.assert_array_equal(features_of(states, "mean"), [[3, 4], [5, 6], [7, 8]])
    np.testing.assert_array_equal(features_of(states, "all"), [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])


# ---- model.layers ----------------------------------------------------------------------------------------------


def open_cut(folder: Path, layers: int | None):
    config = ModelConfig(checkpoint=str(folder), layers=layers)
    return load_pretrained(config, find_checkpoint(config), TASK.auto_class, TASK.head(THREE), False, seed=0)


@pytest.mark.parametrize("architecture", [name for name in ONE_STACK if name != "albert"])
def test_a_cut_model_is_a_smaller_stock_checkpoint_with_equal_logits(folders, architecture, tmp_path):
    opened = open_cut(folders[architecture], 2)
    assert opened.layers == 2 and opened.sha256 == open_cut(folders[architecture], None).sha256
    model = opened.model.eval()
    model.save_pretrained(tmp_path)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert depth_of(stock.config) == 2
    ids = torch.tensor([[2, 9, 14, 7, 3]])
    with torch.no_grad():
        torch.testing.assert_close(stock(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
        pooled = model.base_model(input_ids=ids).last_hidden_state[0].numpy().mean(0)
    rows = encoded_rows(1, 40, 3).map(lambda _: {"input_ids": ids[0].tolist(), "length": 5})
    np.testing.assert_allclose(pooled, states_of(folders[architecture], rows)[2][0], rtol=1e-5, atol=1e-5)
    assert (tmp_path / "model.safetensors").stat().st_size < (
        folders[architecture] / "model.safetensors"
    ).stat().st_size


def test_random_weights_are_made_for_the_layers_that_are_kept(folders):
    config = ModelConfig(checkpoint=f"scratch:{folders['bert']}", layers=1)
    opened = load_pretrained(config, find_checkpoint(config), TASK.auto_class, TASK.head(THREE), False, seed=0)
    assert len(opened.model.base_model.encoder.layer) == 1


@pytest.mark.parametrize(
    ("architecture", "layers", "says"),
    [
        ("bart", 1, r"--model.layers 1: .*\(bart\) is an encoder-decoder, whose two stacks no single number cuts"),
        ("t5", 1, r"\(t5\) is an encoder-decoder"),
        ("albert", 1, r"the 3 layers of .*\(albert\) share their weights, so that dropping some makes nothing smaller"),
        ("bert", 4, r"--model.layers 4: .* has 3 layers: give a number up to 3, or auto"),
        ("gpt2", 9, r"has 3 layers: give a number up to 3"),
    ],
)
def test_layers_that_cannot_be_dropped_are_refused_before_weights_are_read(tmp_path, architecture, layers, says):
    folder = make_checkpoint(tmp_path / architecture, architecture, **deeper(architecture))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=says) as caught:
        open_cut(folder, layers)
    assert len(caught.value.problems) == 1


def test_a_body_whose_layers_are_in_several_lists_is_refused():
    config = transformers.XLMConfig(emb_dim=16, n_layers=2, n_heads=2, vocab_size=40)
    with pytest.raises(InputError, match=r"states 2 layers and has stacks of \[2, 2, 2, 2\]: its upper layers cannot"):
        check_layers("xlm", config, "--model.layers 1", 1)


def test_shared_layers_are_run_through_less_often(folders):
    body = transformers.AutoModel.from_pretrained(folders["albert"]).eval()
    assert check_layers("albert", body.config, "--adapt.probe_layers 1", 1, may_share=True) == 3
    ids = torch.tensor([[2, 9, 14, 7, 3]])
    with torch.no_grad():
        expected = body(input_ids=ids, output_hidden_states=True).hidden_states[1]
        cut_body(body, 1)
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, expected)


def test_lists_with_an_entry_for_each_layer_are_cut_too():
    config = transformers.ModernBertConfig(num_hidden_layers=4, vocab_size=40)
    assert cut_values(config, 2) == {"num_hidden_layers": 2, "layer_types": config.layer_types[:2]}


# ---- the probe -------------------------------------------------------------------------------------------------


def make_probe(folder: Path, layers: str) -> LayerProbe:
    body = transformers.AutoModel.from_pretrained(folder).eval()
    norm = make_reader(body).final_norm
    probe = LayerProbe(body, 2)
    rng = torch.Generator().manual_seed(0)
    width = 16 * (4 if layers == "all" else 1)
    probe.settle(layers, norm, torch.randn(2, width, generator=rng), torch.randn(2, generator=rng))
    return probe.eval()


@pytest.mark.parametrize(("layers", "kept"), [("0", 1), ("1", 1), ("2", 2), ("3", 3), ("mean", 3), ("all", 3)])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "modernbert", "deberta-v2", "albert"])
def test_a_probe_keeps_what_it_reads_and_is_the_same_when_opened_again(folders, architecture, layers, kept, tmp_path):
    rows = encoded_rows(4, 40, 2)
    features = features_of(states_of(folders[architecture], rows), layers)
    probe = make_probe(folders[architecture], layers)
    assert depth_of(probe.config) == kept
    opened = open_it(folders[architecture], THREE)
    inputs = TASK.bind(THREE, opened, RunConfig(), ()).make_batch(rows[:]).inputs
    with torch.no_grad():
        logits = probe(**inputs).logits.numpy()
    expected = features @ probe.head.weight.detach().numpy().T + probe.head.bias.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    probe.save_pretrained(tmp_path)
    again = open_probe(tmp_path, transformers.AutoModel.from_pretrained(tmp_path).eval())
    assert (again.layers, again.final_norm) == (layers, probe.final_norm)
    with torch.no_grad():
        np.testing.assert_allclose(again(**inputs).logits.numpy(), logits, rtol=1e-5, atol=1e-5)


def test_a_probe_without_a_head_knows_nothing_and_runs_no_body(folders):
    body = transformers.AutoModel.from_pretrained(folders["bert"])
    body.register_forward_hook(lambda *_: pytest.fail("the body was run"))
    logits = LayerProbe(body, 3)(input_ids=torch.ones(2, 4, dtype=torch.long)).logits
    assert logits.tolist() == [[0.0] * 3] * 2


def test_a_damaged_probe_is_refused(folders, tmp_path):
    probe = make_probe(folders["bert"], "2")
    probe.save_pretrained(tmp_path)
    whole = transformers.AutoModel.from_pretrained(folders["bert"])
    with pytest.raises(InputError, match="it reads state 2 and the body ends with state 3"):
        open_probe(tmp_path, copy.deepcopy(whole))
    cut = transformers.AutoModel.from_pretrained(tmp_path)
    (tmp_path / "layer_probe.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"is not a whole layer probe .*: save the artefact again"):
        open_probe(tmp_path, cut)
    (tmp_path / "layer_probe.json").unlink()
    with pytest.raises(InputError, match="is not a whole layer probe"):
        open_probe(tmp_path, cut)
