"""Strategies: which parameters each trains, which modules stay in eval mode, and the words for what cannot work."""

import copy
import dataclasses
import functools
import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import AutoPeftModelForSeq2SeqLM, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_pretrained import open_it, with_head
from tiny import ARCHITECTURES, make_checkpoint
from tiny_translation import FAMILIES, make_translation_checkpoint
from torch import nn

from hf_transfer.adapt import Adapted, apply_strategy
from hf_transfer.adapt.base import find_parts, new_modules
from hf_transfer.adapt.freeze import layer_list
from hf_transfer.adapt.lora import _is_attention, find_targets, save_adapter
from hf_transfer.config import AdaptConfig, ModelConfig, freeze_problems
from hf_transfer.errors import InputError
from hf_transfer.loading import _put_adapter
from hf_transfer.pretrained import align_labels, find_checkpoint
from hf_transfer.records import LabelSpace, Pretrained

ALL = {"embeddings", "layer 0", "layer 1", "layer 2", "layer 3", "pooler", "classifier"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: make_checkpoint(folder / name, name) for name in ARCHITECTURES}
    return made | {"bert-4": make_checkpoint(folder / "bert-4", num_hidden_layers=4)}


@functools.cache
def opened_once(name: str) -> Pretrained:
    return open_it(name)


def copy_of(name: object) -> Pretrained:
    """The opened checkpoint, to be changed at will; copying takes a tenth of the time that opening does."""
    opened = opened_once(str(name))
    return dataclasses.replace(opened, model=copy.deepcopy(opened.model))


def part_of(name: str) -> str:
    """The part of the tiny BERT that a parameter name tells, read without ``find_parts``."""
    pieces = name.split(".")
    if "layer" in pieces:
        return "layer " + pieces[pieces.index("layer") + 1]
    return next(part for part in ("embeddings", "pooler", "classifier") if part in pieces)


def parts_of(names) -> set[str]:
    return {part_of(name) for name in names}


def stages_of(adapted: Adapted) -> list[set[str]]:
    """The parts that each stage trains."""
    name_of = {id(p): name for name, p in adapted.model.named_parameters()}
    return [parts_of(name_of[id(p)] for p in stage.trainable) for stage in adapted.stages]


def freeze(folder: Path, spec: str, **adapt) -> Adapted:
    return apply_strategy(copy_of(folder), AdaptConfig(strategy="freeze", freeze=spec, **adapt))


# freeze


@pytest.mark.parametrize(
    ("spec", "frozen"),
    [
        ("0", set()),
        ("1", {"embeddings", "layer 0"}),
        ("3", {"embeddings", "layer 0", "layer 1", "layer 2"}),
        ("4", ALL - {"pooler", "classifier"}),
        ("embeddings", {"embeddings"}),
        ("encoder", ALL - {"classifier"}),
        ("fraction:0", set()),
        ("fraction:0.1", {"embeddings"}),
        ("fraction:0.125", {"embeddings", "layer 0"}),
        ("fraction:0.5", {"embeddings", "layer 0", "layer 1"}),
        ("fraction:0.66", {"embeddings", "layer 0", "layer 1", "layer 2"}),
        ("fraction:1", ALL - {"pooler", "classifier"}),
        ("0-2", {"layer 0", "layer 1", "layer 2"}),
        ("1,3", {"layer 1", "layer 3"}),
        ("0-1,3", {"layer 0", "layer 1", "layer 3"}),
        ("regex:embeddings|pooler", {"embeddings", "pooler"}),
        (r"regex:layer\.[02]\.", {"layer 0", "layer 2"}),
        ("embeddings+encoder", ALL - {"classifier"}),
        ("embeddings:trainable", ALL - {"classifier", "embeddings"}),
    ],
)
def test_each_form_of_freeze_keeps_what_it_says(folders, spec, frozen):
    assert freeze_problems(spec) == []
    adapted = freeze(folders["bert-4"], spec)
    named = dict(adapted.model.named_parameters())
    assert parts_of(name for name, p in named.items() if not p.requires_grad) == frozen
    learning = [name for name, p in named.items() if p.requires_grad]
    assert parts_of(learning) == ALL - frozen, "a part is frozen or trained whole"
    assert adapted.summary.names == tuple(learning)
    assert adapted.summary.trainable == sum(named[name].numel() for name in learning)
    assert adapted.summary.total == sum(p.numel() for p in named.values())
    assert adapted.head_names == ("classifier.weight", "classifier.bias")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("5", "--adapt.freeze 5: the checkpoint has only 4 layers"),
        ("1-4", "--adapt.freeze 1-4: the checkpoint has layers 0 to 3"),
        ("regex:nothing_like_it", r"matches no parameter; their names look like bert\.embeddings"),
        ("regex:.", "freezes everything, the head too: freeze less"),
        ("decoder", "--adapt.freeze decoder: the checkpoint is no encoder-decoder and has no decoder"),
        ("encoder+cross_attention", "--adapt.freeze cross_attention: the checkpoint is no .* has no cross-attention"),
    ],
)
def test_freezing_what_is_not_there_or_everything_is_refused(folders, spec, message):
    with pytest.raises(InputError, match=message):
        freeze(folders["bert-4"], spec)


@pytest.mark.parametrize(
    "spec", ["", "half", "-1", "fraction:2", "fraction:x", "fraction:nan", "regex:(", "3-", "a-b", "3-0", "5-3,0"]
)
def test_what_is_no_form_of_freeze_is_said_before_a_model_is_loaded(spec):
    (problem,) = AdaptConfig(strategy="freeze", freeze=spec).problems()
    assert problem.startswith(f"--adapt.freeze {spec}")


@pytest.mark.parametrize(
    "spec",
    ["encoder+decoder:trainable", "encoder:trainable+decoder", "encoder:", "encoder:frozen", "decoder:trainable:"],
)
def test_parts_that_are_frozen_and_parts_that_learn_are_not_mixed(spec):
    (problem,) = AdaptConfig(strategy="freeze", freeze=spec).problems()
    assert problem.startswith(f"--adapt.freeze {spec}: say of every part either nothing, to freeze them, or :trainable")


@pytest.mark.parametrize("spec", ["encoder+4", "encoders", "+", "encoder+", "cross attention"])
def test_parts_that_are_not_known_are_answered_with_those_that_are(spec):
    (problem,) = AdaptConfig(strategy="freeze", freeze=spec).problems()
    assert "parts (embeddings, encoder, decoder, cross_attention) joined by +" in problem


def test_a_list_of_layers_is_read_in_any_order():
    assert layer_list("0-3,5") == [0, 1, 2, 3, 5]
    assert layer_list("5,1-2,2") == [1, 2, 5]


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_freezing_the_encoder_of_an_encoder_decoder_leaves_the_decoder_alone(folders, architecture):
    adapted = freeze(folders[architecture], "encoder")
    for name, p in adapted.model.named_parameters():
        in_decoder_or_head = "decoder" in name.split(".") or "classification_head" in name
        assert p.requires_grad == in_decoder_or_head, name


@pytest.mark.parametrize("spec", ["1", "encoder", "fraction:0.5"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_can_be_frozen_in_part_and_keeps_its_head_learning(folders, architecture, spec):
    adapted = freeze(folders[architecture], spec)
    assert set(adapted.head_names) <= set(adapted.summary.names)
    assert len(adapted.summary.names) < len(list(adapted.model.parameters()))
    assert not adapted.model.get_input_embeddings().weight.requires_grad


def dropouts(module: nn.Module) -> list[bool]:
    return [inner.training for inner in module.modules() if isinstance(inner, nn.Dropout)]


def test_frozen_parts_run_in_eval_mode_while_the_others_train(folders):
    adapted = freeze(folders["bert-4"], "2")
    model = adapted.model
    model.eval()
    adapted.set_train_mode(model)
    layers = model.bert.encoder.layer
    for frozen in (model.bert.embeddings, layers[0], layers[1]):
        assert dropouts(frozen) and not any(dropouts(frozen))
        assert not frozen.training
    for learning in (layers[2], layers[3]):
        assert dropouts(learning) and all(dropouts(learning))
    assert model.training and model.dropout.training and model.classifier.training


def test_what_frozen_layers_compute_is_the_same_every_time_though_dropout_is_on(folders):
    adapted = freeze(folders["bert-4"], "2")
    adapted.set_train_mode(adapted.model)
    seen: dict[int, list[torch.Tensor]] = {1: [], 3: []}
    for i, outputs in seen.items():
        layer = adapted.model.bert.encoder.layer[i]
        layer.register_forward_hook(lambda *args, into=outputs: into.append(args[2]))
    for _ in range(2):
        adapted.model(torch.tensor([[2, 8, 9, 14, 22, 3]]))
    assert torch.equal(seen[1][0][0], seen[1][1][0])
    assert not torch.equal(seen[3][0][0], seen[3][1][0])


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_nothing_is_put_in_eval_mode_where_the_whole_body_learns(folders, strategy):
    adapted = apply_strategy(copy_of(folders["bert"]), AdaptConfig(strategy=strategy))
    adapted.set_train_mode(adapted.model)
    assert all(dropouts(adapted.model))


@pytest.mark.parametrize("targets", ["3.attention.self.query", "all-linear"])
def test_what_lies_below_the_lowest_lora_runs_in_eval_mode(folders, targets):
    adapted = apply_strategy(copy_of(folders["bert-4"]), AdaptConfig(strategy="lora", lora_targets=targets))
    adapted.set_train_mode(adapted.model)
    body = adapted.model.base_model.model.bert
    for below in (body.embeddings, *body.encoder.layer[:3]):
        modes = {module.training for module in below.modules()}
        assert dropouts(below) and modes == {targets == "all-linear"}
    for module in (*body.encoder.layer[3].modules(), adapted.model.base_model.model.dropout):
        assert module.training


def test_a_probe_trains_the_head_on_a_body_in_eval_mode(folders):
    adapted = apply_strategy(copy_of(folders["bert"]), AdaptConfig(strategy="probe"))
    adapted.set_train_mode(adapted.model)
    assert stages_of(adapted) == [{"classifier"}]
    assert not any(dropouts(adapted.model.bert)) and adapted.model.dropout.training


# stages


@pytest.mark.parametrize("strategy", ["full", "freeze", "lora"])
def test_head_first_trains_the_head_alone_on_a_body_in_eval_mode(folders, strategy):
    adapt = AdaptConfig(strategy=strategy, freeze="1", head_first=True, head_first_epochs=0.5)
    adapted = apply_strategy(copy_of(folders["bert-4"]), adapt)
    first, then = adapted.stages
    assert (first.name, first.epochs, first.own_schedule, first.as_probe) == ("head", 0.5, True, True)
    assert (then.name, then.epochs, then.own_schedule, then.as_probe) == (strategy, None, False, False)
    named = dict(adapted.model.named_parameters())
    assert {id(p) for p in first.trainable} == {id(named[name]) for name in adapted.head_names}
    assert {id(p) for p in then.trainable} == {id(named[name]) for name in adapted.summary.names}
    for stage in adapted.stages:
        ids = {id(p) for p in stage.trainable}
        for p in named.values():
            p.requires_grad_(id(p) in ids)
        adapted.set_train_mode(adapted.model)
        body = adapted.model.base_model.model.bert if strategy == "lora" else adapted.model.bert
        assert any(dropouts(body)) == (stage is then)


def test_gradual_unfreezing_thaws_a_layer_each_epoch_from_the_top(folders):
    adapted = freeze(folders["bert-4"], "0", gradual_unfreezing=True)
    assert stages_of(adapted) == [
        {"classifier"},
        {"classifier", "pooler", "layer 3"},
        {"classifier", "pooler", "layer 3", "layer 2"},
        {"classifier", "pooler", "layer 3", "layer 2", "layer 1"},
        ALL,
    ]
    assert [stage.epochs for stage in adapted.stages] == [1.0, 1.0, 1.0, 1.0, None]
    assert not any(stage.own_schedule or stage.as_probe for stage in adapted.stages)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("2", [{"classifier"}, {"classifier", "pooler", "layer 3"}, {"classifier", "pooler", "layer 3", "layer 2"}]),
        ("4", [{"classifier"}, {"classifier", "pooler"}]),
        ("0-3", [{"classifier"}, {"classifier", "pooler", "embeddings"}]),
        ("encoder", [{"classifier"}]),
        ("1-3", [{"classifier"}, {"classifier", "pooler", "layer 0", "embeddings"}]),
    ],
)
def test_gradual_unfreezing_ends_with_everything_that_is_not_frozen_for_good(folders, spec, wanted):
    adapted = freeze(folders["bert-4"], spec, gradual_unfreezing=True)
    assert stages_of(adapted) == wanted
    assert wanted[-1] == parts_of(adapted.summary.names)
    assert [stage.epochs for stage in adapted.stages] == [1.0] * (len(wanted) - 1) + [None]


def test_head_first_comes_before_gradual_unfreezing(folders):
    adapted = freeze(folders["bert-4"], "3", gradual_unfreezing=True, head_first=True)
    assert [stage.name for stage in adapted.stages] == ["head", "thaw 0", "thaw 1"]


@pytest.mark.parametrize("option", ["head_first", "gradual_unfreezing"])
def test_a_frozen_head_cannot_be_trained_first(folders, option):
    with pytest.raises(InputError, match=r"regex:classifier freezes the head or part of it, but --adapt.head_first"):
        freeze(folders["bert-4"], "regex:classifier", **{option: True})


# parts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parts_of_a_model_hold_every_parameter_once(folders, architecture):
    pretrained = copy_of(folders[architecture])
    parts = find_parts(pretrained)
    model = pretrained.model
    found = [id(p) for p in (*parts.body, *parts.head)]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters()}
    named = dict(model.named_parameters())
    assert {id(p) for p in parts.head} == {id(named[name]) for name in pretrained.newly_initialised}
    embeddings = {id(p) for p in parts.embeddings}
    assert id(model.get_input_embeddings().weight) in embeddings
    # ALBERT shares one layer; an encoder-decoder has two layers in either half
    depth = {"albert": 1, "bart": 4, "t5": 4}.get(architecture, 2)
    assert (len(parts.layers), parts.encoder_depth) == (depth, 2 if depth == 4 else depth)
    assert all(parts.layers)
    inside = {id(module) for layer in parts.layer_modules for module in layer.modules()}
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in inside]
    assert all(id(table.weight) in embeddings for table in tables)


def test_layers_are_ordered_from_the_bottom_and_the_encoder_comes_first(folders):
    parts = find_parts(copy_of(folders["bert-4"]))
    assert [len(layer) for layer in parts.layers] == [16] * 4
    pretrained = copy_of(folders["bart"])
    body = pretrained.model.base_model
    assert list(find_parts(pretrained).layer_modules) == [*body.encoder.layers, *body.decoder.layers]


@pytest.mark.parametrize("architecture", ["bert", "bart", "gpt2"])
def test_of_random_weights_the_head_is_what_the_task_adds(folders, architecture):
    trained, random = copy_of(folders[architecture]), copy_of(f"scratch:{folders[architecture]}")
    assert new_modules(random) == new_modules(trained)
    shapes = [[p.shape for p in find_parts(opened).head] for opened in (trained, random)]
    assert shapes[0] == shapes[1]


# LoRA

ATTENTION_OF = {
    "bert": {"query", "key", "value", "dense"},
    "distilbert": {"q_lin", "k_lin", "v_lin", "out_lin"},
    "roberta": {"query", "key", "value", "dense"},
    "xlm-roberta": {"query", "key", "value", "dense"},
    "electra": {"query", "key", "value", "dense"},
    "albert": {"query", "key", "value", "dense"},
    "deberta-v2": {"query_proj", "key_proj", "value_proj", "dense"},
    "modernbert": {"Wqkv", "Wo"},
    "mpnet": {"q", "k", "v", "o"},
    "bart": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "t5": {"q", "k", "v", "o"},
    "gpt2": {"c_attn", "c_proj"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
# linear layers of the tiny models' layers, counted by hand: attention projections, and the others: those of the
# feed-forward parts, and of DeBERTa's relative positions
LINEAR = {
    "bert": (8, 4),
    "distilbert": (8, 4),
    "roberta": (8, 4),
    "xlm-roberta": (8, 4),
    "electra": (8, 4),
    "albert": (4, 2),
    "deberta-v2": (8, 4 + 4),
    "modernbert": (4, 4),
    "mpnet": (8, 4),
    "bart": (8 + 16, 8),
    "t5": (8 + 16, 8),
    "gpt2": (4, 4),
    "llama": (8, 6),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_targets_are_found_in_every_family_and_none_lies_in_the_head(folders, architecture):
    pretrained = copy_of(folders[architecture])
    parts = find_parts(pretrained)
    model = pretrained.model
    attention, others = LINEAR[architecture]
    everywhere = find_targets(model, parts, "all-linear")
    attending = find_targets(model, parts, "attention")
    assert (len(attending), len(everywhere)) == (attention, attention + others)
    assert set(attending) < set(everywhere)
    assert {name.rsplit(".", 1)[-1] for name in attending} == ATTENTION_OF[architecture]
    head = {id(p) for p in parts.head}
    for name in everywhere:
        weight = model.get_submodule(name).weight
        assert weight.ndim == 2 and id(weight) not in head
        assert name.startswith(model.base_model_prefix + ".")


@pytest.mark.parametrize(
    ("name", "attends"),
    [
        ("gpt_neox.layers.0.attention.query_key_value", True),
        ("gpt_neox.layers.0.attention.dense", True),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h", False),
        ("funnel.encoder.blocks.0.0.attention.q_head", True),
        ("funnel.encoder.blocks.0.0.attention.post_proj", True),
        ("funnel.encoder.blocks.0.0.ffn.linear_1", False),
        ("bert.encoder.layer.0.intermediate.dense", False),
        ("bert.encoder.layer.0.output.dense", False),
        ("model.layers.0.mlp.Wo", False),
    ],
)
def test_attention_projections_are_known_by_name_in_families_beyond_those_made_here(name, attends):
    assert _is_attention(name) == attends


def test_lora_is_put_on_and_read_back_without_a_warning(folders, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrained = copy_of(folders["bert"])
        adapted = apply_strategy(pretrained, AdaptConfig(strategy="lora"))
        save_adapter(tmp_path, adapted.model, adapted.initial_update, str(folders["bert"]), None)
        _put_adapter(tmp_path, copy_of(folders["bert"]))


def test_lora_targets_may_be_named(folders):
    pretrained = copy_of(folders["bert"])
    parts = find_parts(pretrained)
    found = find_targets(pretrained.model, parts, "query, value")
    assert [name.split(".", 3)[3] for name in found] == [
        f"{i}.attention.self.{name}" for i in range(2) for name in ("query", "value")
    ]
    found = find_targets(pretrained.model, parts, "output.dense")
    assert len(found) == 4, "attention.output.dense and output.dense of two layers"


@pytest.mark.parametrize("wrong", ["classifier", "pooler", "uery", "q_proj"])
def test_a_lora_target_that_is_no_linear_layer_of_the_body_is_refused_with_the_names_that_are(folders, wrong):
    with pytest.raises(InputError) as caught:
        apply_strategy(copy_of(folders["bert"]), AdaptConfig(strategy="lora", lora_targets=f"query,{wrong}"))
    assert caught.value.problems == (
        f"--adapt.lora_targets query,{wrong}: no linear layer of the body is called {wrong}. "
        "Names here: dense, key, query, value; or use all-linear or attention.",
    )


def test_empty_lora_targets_are_refused(folders):
    with pytest.raises(InputError, match=r"--adapt\.lora_targets , finds no linear layer"):
        apply_strategy(copy_of(folders["bert"]), AdaptConfig(strategy="lora", lora_targets=","))


def test_lora_settings_reach_peft_and_the_update_begins_at_nothing(folders):
    pretrained = copy_of(folders["bert"])
    words = torch.tensor([[2, 8, 9, 14, 22, 3]])
    with torch.no_grad():
        before = pretrained.model.eval()(words).logits
        adapt = AdaptConfig(strategy="lora", lora_rank=3, lora_alpha=12.0, lora_dropout=0.25, lora_targets="query")
        adapted = apply_strategy(pretrained, adapt)
        after = adapted.model.eval()(words).logits
    assert torch.equal(before, after)
    query = adapted.model.base_model.model.bert.encoder.layer[0].attention.self.query
    assert (query.lora_A["default"].weight.shape, query.scaling["default"]) == ((3, 16), 4.0)
    assert query.lora_dropout["default"].p == 0.25
    # A and B of rank 3 on two 16 x 16 matrices, and the head for three classes
    assert adapted.summary.trainable == 2 * (3 * 16 + 16 * 3) + (16 * 3 + 3)


def saved_by(adapted: Adapted) -> set[str]:
    """Names of what the adapter file would hold, LoRA's matrices aside."""
    state = get_peft_model_state_dict(adapted.model, save_embedding_layers=False)
    return {name.removeprefix("base_model.model.") for name in state if "lora_" not in name}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_holds_every_new_weight(folders, architecture):
    pretrained = copy_of(folders[architecture])
    assert saved_by(apply_strategy(pretrained, AdaptConfig(strategy="lora"))) == set(pretrained.newly_initialised)


def test_an_adapter_holds_a_kept_head_as_well(tmp_path):
    labels = LabelSpace("single_label", ("bad", "good", "mixed"))
    folder = with_head(tmp_path, labels.names)
    labels, kept = align_labels(labels, find_checkpoint(ModelConfig(checkpoint=str(folder))))
    pretrained = open_it(folder, labels, kept)
    assert (kept, pretrained.newly_initialised) == (True, ())
    adapted = apply_strategy(pretrained, AdaptConfig(strategy="lora", lora_targets="query"))
    assert saved_by(adapted) == {"classifier.weight", "classifier.bias"}
    learning = {name for name in adapted.summary.names if "lora_" not in name}
    assert learning == set(adapted.head_names) and len(learning) == 2


def test_an_adapter_holds_a_kept_head_beside_a_new_pooler(tmp_path):
    labels = LabelSpace("single_label", ("bad", "good", "mixed"))
    folder = with_head(tmp_path, labels.names)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    adapted = apply_strategy(open_it(folder, labels, True), AdaptConfig(strategy="lora"))
    assert saved_by(adapted) == {f"{m}.{k}" for m in ("classifier", "bert.pooler.dense") for k in ("weight", "bias")}
    learning = {name for name in adapted.summary.names if "lora_" not in name}
    assert learning == set(adapted.head_names) and len(learning) == 4, "all of it learns at the head's rate"


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_an_initialisation_that_looks_at_data_is_refused_without_any(folders, init):
    with pytest.raises(InputError, match=f"--adapt.lora_init {init}: PEFT refuses it: it looks at train examples"):
        apply_strategy(copy_of(folders["bert"]), AdaptConfig(strategy="lora", lora_init=init))


def test_eva_starts_from_the_main_directions_of_the_activations(folders):
    """Against a singular value decomposition of what goes into the first query projection, over real tokens."""
    pretrained = copy_of(folders["bert"])
    inputs = {"input_ids": torch.randint(5, 40, (64, 12)), "attention_mask": torch.ones(64, 12, dtype=torch.long)}
    seen = []
    query = pretrained.model.bert.encoder.layer[0].attention.self.query
    hook = query.register_forward_hook(lambda module, given, output: seen.append(given[0].detach()))
    pretrained.model.eval()
    with torch.no_grad():
        pretrained.model(**inputs)
    hook.remove()
    states = seen[0].reshape(-1, seen[0].shape[-1])
    directions = torch.linalg.svd(states - states.mean(0))[2][:2]  # PEFT's are those of an incremental PCA
    adapt = AdaptConfig(strategy="lora", lora_init="eva", lora_rank=2, lora_targets="query")
    adapted = apply_strategy(pretrained, adapt, lambda: [inputs])
    first = next(p for name, p in adapted.model.named_parameters() if "layer.0" in name and "lora_A" in name)
    overlap = (first.detach() @ directions.T).abs()
    assert (overlap.max(dim=1).values > 0.9).all(), "random directions of 16 axes overlap by about 0.25"


# encoder-decoders that write


@pytest.fixture(scope="module")
def translators(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("translators")
    return {family: make_translation_checkpoint(family, folder / family) for family in FAMILIES}


@functools.cache
def translator_once(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def translator(folder: Path, new: tuple[str, ...] = ()) -> Pretrained:
    return Pretrained(copy.deepcopy(translator_once(folder)), None, str(folder), "", "", new)


def untied() -> Pretrained:
    """A Marian whose encoder, decoder and output layer have a matrix each."""
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 70}
    size |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 59}
    config = transformers.MarianConfig(
        **size, decoder_vocab_size=60, share_encoder_decoder_embeddings=False, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = transformers.MarianMTModel(config)
    assert model.lm_head.weight is not model.model.decoder.embed_tokens.weight
    return Pretrained(model, None, "untied", "", "", ())


def is_table(name: str) -> bool:
    """Read off the names of Marian's, T5's and M2M100's parameters; T5's relative positions lie in its layers."""
    tables = ("shared", "embed_tokens", "embed_positions", "layernorm_embedding", "lm_head")
    return any(word in name for word in tables)


def is_cross(name: str) -> bool:
    """T5's decoder layers have attention on themselves in layer.0, on the encoder in layer.1, then the rest."""
    return "encoder_attn" in name or ("decoder.block" in name and ".layer.1." in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_writes_has_no_head(translators, family):
    pretrained = translator(translators[family])
    parts = find_parts(pretrained)
    model = pretrained.model
    assert parts.head == () and new_modules(pretrained) == ()
    fixed = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")} if "marian" in family else set()
    learnable = [id(p) for name, p in model.named_parameters() if name not in fixed]
    assert sorted(id(p) for p in parts.body) == sorted(learnable)
    assert (len(parts.layers), parts.encoder_depth) == (4, 2)
    assert any(p is model.get_output_embeddings().weight for p in parts.embeddings), "tied"
    everything = tuple(name for name, _ in model.named_parameters())
    scratch = dataclasses.replace(pretrained, newly_initialised=everything)
    assert find_parts(scratch) == parts and new_modules(scratch) == ()
    adapted = apply_strategy(pretrained, AdaptConfig(strategy="full"))
    assert adapted.head_names == ()
    left = {name for name in everything if name not in adapted.summary.names}
    assert left == fixed, "sinusoidal positions are not saved, so that nothing may be learnt there"


def test_an_output_layer_of_its_own_is_at_the_top_of_the_body_and_frozen_with_the_embeddings():
    pretrained = untied()
    parts = find_parts(pretrained)
    assert parts.rest == (pretrained.model.lm_head.weight,)
    adapted = apply_strategy(pretrained, AdaptConfig(strategy="freeze", freeze="embeddings"))
    frozen = {name for name, p in adapted.model.named_parameters() if not p.requires_grad}
    assert frozen == {
        "lm_head.weight",
        "model.encoder.embed_tokens.weight",
        "model.encoder.embed_positions.weight",
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
    }


FROZEN = {
    "encoder": lambda name: "encoder" in name.split(".") and not is_table(name),
    "decoder": lambda name: "decoder" in name.split(".") and not is_table(name),
    "embeddings": is_table,
    "cross_attention": is_cross,
    "encoder+embeddings": lambda name: FROZEN["encoder"](name) or is_table(name),
    "decoder+encoder": lambda name: not is_table(name),
    "encoder:trainable": lambda name: not FROZEN["encoder"](name),
    "decoder:trainable": lambda name: not FROZEN["decoder"](name),
    "embeddings:trainable": lambda name: not is_table(name),
    "cross_attention:trainable": lambda name: not is_cross(name),
    "cross_attention:trainable+embeddings:trainable": lambda name: not (is_cross(name) or is_table(name)),
    r"regex:\.fc1\.|\.wo\.": lambda name: ".fc1." in name or ".wo." in name,
}


@pytest.mark.parametrize("spec", FROZEN)
@pytest.mark.parametrize("family", [*FAMILIES, "untied"])
def test_each_part_of_an_encoder_decoder_is_frozen_alone_or_trained_alone(translators, family, spec):
    assert freeze_problems(spec) == []
    pretrained = untied() if family == "untied" else translator(translators[family])
    adapted = apply_strategy(pretrained, AdaptConfig(strategy="freeze", freeze=spec))
    fixed = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}  # Marian's, by a formula
    named = dict(adapted.model.named_parameters())
    if "marian" in family or family == "untied":
        assert not any(named.pop(name).requires_grad for name in fixed)
    frozen = {name for name, p in named.items() if not p.requires_grad}
    assert frozen == {name for name in named if FROZEN[spec](name)}
    assert 0 < len(frozen) < len(named)


def test_the_attention_on_the_encoder_has_its_norm_with_it(translators):
    """By hand: per layer of the decoder, four projections with biases and a norm; T5's have no biases."""
    for family, wanted in (("marian", 2 * (4 * (16 * 16 + 16) + 2 * 16)), ("t5", 2 * (4 * 16 * 16 + 16))):
        adapt = AdaptConfig(strategy="freeze", freeze="cross_attention:trainable")
        assert apply_strategy(translator(translators[family]), adapt).summary.trainable == wanted


@pytest.mark.parametrize("family", ["marian", "t5", "nllb"])
@pytest.mark.parametrize(("spec", "layers"), [("2", (0, 1)), ("fraction:0.75", (0, 1, 2)), ("1-3", (1, 2, 3))])
def test_layers_of_an_encoder_decoder_are_counted_from_the_encoders_lowest_to_the_decoders_highest(
    translators, family, spec, layers
):
    adapted = apply_strategy(translator(translators[family]), AdaptConfig(strategy="freeze", freeze=spec))
    stacks = ("encoder.layers.", "decoder.layers.") if family != "t5" else ("encoder.block.", "decoder.block.")
    marks = [f"{stacks[i // 2]}{i % 2}." for i in layers]
    for name, p in adapted.model.named_parameters():
        tables = is_table(name) and (spec != "1-3" or "embed_positions" in name)  # Marian's positions never learn
        assert p.requires_grad != (tables or any(mark in name for mark in marks)), name


def test_freezing_all_of_a_model_without_a_head_is_refused(translators):
    with pytest.raises(InputError, match=r"encoder\+decoder\+embeddings freezes everything: freeze less"):
        freeze_all = AdaptConfig(strategy="freeze", freeze="encoder+decoder+embeddings")
        apply_strategy(translator(translators["marian"]), freeze_all)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"strategy": "probe"}, r"--adapt.strategy probe trains a head, and this model has none: .* Use full, lora or"),
        ({"strategy": "full", "head_first": True}, "--adapt.head_first begins by training a new head"),
        ({"strategy": "lora", "head_first": True}, "--adapt.head_first begins by training a new head"),
        ({"strategy": "freeze", "head_first": True}, "--adapt.head_first begins by training a new head"),
        (
            {"strategy": "freeze", "gradual_unfreezing": True},
            "--adapt.gradual_unfreezing begins by training a new head",
        ),
    ],
)
def test_what_begins_with_a_head_is_refused_where_there_is_none(translators, adapt, message):
    with pytest.raises(InputError, match=message):
        apply_strategy(translator(translators["t5"]), AdaptConfig(**adapt))


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_the_parts_of_a_classifier_are_those_it_had_and_its_head_always_learns(folders, architecture):
    def frozen(spec):
        adapted = freeze(folders[architecture], spec)
        assert set(adapted.head_names) <= set(adapted.summary.names) and adapted.head_names
        return {name for name, p in adapted.model.named_parameters() if not p.requires_grad}

    everything = {name for name, _ in copy_of(folders[architecture]).model.named_parameters()}
    body = {name for name in everything if "classification_head" not in name}
    assert frozen("encoder") == {name for name in body if "decoder" not in name.split(".")}
    assert frozen("decoder") == {name for name in body if "decoder" in name.split(".")}
    assert frozen("cross_attention:trainable") == {name for name in body if not is_cross(name)}


PAIR_IDS = {
    "input_ids": torch.tensor([[8, 9, 14, 22, 2], [30, 5, 2, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "decoder_input_ids": torch.tensor([[2, 7, 31, 12], [2, 40, 41, 2]]),
}


@pytest.mark.parametrize("family", [*FAMILIES, "untied"])
def test_lora_targets_of_a_model_that_writes_lie_in_its_layers(translators, family):
    pretrained = untied() if family == "untied" else translator(translators[family])
    parts = find_parts(pretrained)
    attending = find_targets(pretrained.model, parts, "attention")
    everywhere = find_targets(pretrained.model, parts, "all-linear")
    # four projections in each attention: one per layer of the encoder, two per layer of the decoder
    encoder, decoder = (1, 2) if family == "untied" else (2, 2)
    feed_forward = {"mt5": 3}.get(family, 2)  # gated
    assert len(attending) == 4 * encoder + 8 * decoder
    assert len(everywhere) == len(attending) + feed_forward * (encoder + decoder)
    assert set(attending) < set(everywhere)
    assert not any(is_table(name) for name in everywhere)
    endings = {"q", "k", "v", "o"} if "t5" in family else {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert {name.rsplit(".", 1)[-1] for name in attending} == endings


def test_corda_reads_each_side_of_a_pair_at_its_own_length(translators):
    pretrained = translator(translators["marian"])
    pad = pretrained.model.config.pad_token_id
    assert pretrained.model.config.decoder_start_token_id == pad, "the hardest case: the first token is one that pads"
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [5, 0, pad, pad]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "decoder_input_ids": torch.tensor([[pad, pad, pad, pad, pad, pad], [pad, 7, 31, 12, 9, 8]]),
    }
    batch["decoder_input_ids"][0, 1] = 9
    seen = []
    decoder = pretrained.model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, given, named: seen.append((named["input_ids"].tolist(), len(named["encoder_hidden_states"][0]))),
        with_kwargs=True,
    )
    adapt = AdaptConfig(strategy="lora", lora_init="corda", lora_rank=2, lora_targets="q_proj")
    apply_strategy(pretrained, adapt, lambda: [batch])
    assert sorted(seen)[:: len(seen) - 1] == sorted([([[pad, 9]], 4), ([[pad, 7, 31, 12, 9, 8]], 2)])


def test_eva_is_refused_for_a_model_that_writes(translators):
    with pytest.raises(InputError, match=r"--adapt.lora_init eva reads every layer's activations by the mask of the"):
        apply_strategy(
            translator(translators["marian"]), AdaptConfig(strategy="lora", lora_init="eva"), lambda: [PAIR_IDS]
        )


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_a_model_that_writes_learns_and_loads_with_peft_to_equal_logits(
    translators, family, targets, tmp_path
):
    folder = translators[family]
    adapted = apply_strategy(translator(folder), AdaptConfig(strategy="lora", lora_targets=targets, lora_dropout=0.0))
    model = adapted.model
    with torch.no_grad():
        start = model(**PAIR_IDS).logits
        assert torch.equal(start, translator_once(folder)(**PAIR_IDS).logits), "the update begins at nothing"
    assert adapted.head_names == () and all(".lora_" in name for name in adapted.summary.names)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        logits = model(**PAIR_IDS).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([7, 31, 12, 2, 40, 41, 2, 2]))
        loss.backward()
        if losses:  # at first B is zero, and A cannot learn
            assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    save_adapter(tmp_path, model, adapted.initial_update, str(folder), None)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".lora_" in name for name in saved)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_2_SEQ_LM" and not settings["modules_to_save"]
    model.eval()
    with torch.no_grad():
        wanted = model(**PAIR_IDS).logits
        assert (wanted - start).abs().max() > 1e-3
        again = PeftModel.from_pretrained(copy.deepcopy(translator_once(folder)), tmp_path).eval()
        assert torch.equal(again(**PAIR_IDS).logits, wanted)
        opened = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
        assert torch.equal(opened(**PAIR_IDS).logits, wanted)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**PAIR_IDS).logits, wanted, rtol=1e-5, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        stock = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(stock(**PAIR_IDS).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "target", "stacks"),
    [
        ("marian", "decoder.layers.1.fc1", "layers"),
        ("t5", "decoder.block.1.layer.2.DenseReluDense.wi", "block"),
    ],
)
def test_an_encoder_below_a_lora_in_the_decoder_runs_in_eval_mode_and_all_layers_of_the_decoder_do_not(
    translators, family, target, stacks
):
    adapted = apply_strategy(translator(translators[family]), AdaptConfig(strategy="lora", lora_targets=target))
    adapted.set_train_mode(adapted.model)
    model = adapted.model.base_model.model
    encoder, decoder = model.get_encoder(), model.get_decoder()
    assert not any(module.training for module in encoder.modules() if list(module.parameters()))
    layers = getattr(decoder, stacks)
    assert len(layers) == 2 and all(module.training for module in layers.modules())
