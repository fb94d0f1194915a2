"""What a plan says of a run is what the run then does, and what torch counts; planning leaves nothing behind."""

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import cli, dropout, planning, rehearsal, speed, store_cost
from hf_transfer.batching import cut_window, window_indices
from hf_transfer.before_training import activation_checkpointing
from hf_transfer.cost import activation_bytes, frozen_prefix, shapes_of, with_checkpointing
from hf_transfer.feature_store import FeatureStore
from hf_transfer.features import stored_features
from hf_transfer.flattened import flattened, real_tokens
from hf_transfer.layers import make_reader, pooled_states
from hf_transfer.report import read_results
from hf_transfer.report.plan_console import format_operations, print_plan
from hf_transfer.schedule import plan_stages

HIDDEN, INNER = 16, 24
"""Widths of the tiny checkpoints."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("planning")


@pytest.fixture(scope="module")
def source(folder) -> Path:
    return write_reviews(folder, count=24)


@pytest.fixture(scope="module")
def checkpoints(folder):
    made = {}

    def make(name: str) -> str:
        if name not in made:
            maker = (
                make_translation_checkpoint if name == "marian" else lambda kind, place: make_checkpoint(place, kind)
            )
            made[name] = maker(name, folder / name)
        return str(made[name])

    return make


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Two micro-batches are enough where speed is not looked at."""
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(speed, "_per_second", lambda *_: 1000.0)


def config_for(source, checkpoint, output_dir, strategy="full", adapt=(), train=(), **data) -> ht.RunConfig:
    return ht.RunConfig(
        data=ht.DataConfig(source=str(source), train_domains=("books",), **data),
        model=ht.ModelConfig(checkpoint=checkpoint),
        adapt=ht.AdaptConfig(strategy=strategy, **dict(adapt)),
        train=ht.TrainConfig(**{"epochs": 2, "window_size": 4, "tokens_per_micro_batch": 40, **dict(train)}),
        evaluate=ht.EvaluateConfig(resamples=100),
        output_dir=str(output_dir),
    )


def translation_config(checkpoint, output_dir, strategy="full", adapt=(), train=(), **data) -> ht.RunConfig:
    return ht.RunConfig(
        task="translation",
        data=ht.DataConfig(source="bundled:phrases", source_lang="en", target_lang="de", max_train_examples=9, **data),
        model=ht.ModelConfig(checkpoint=checkpoint, vocabulary_size=200),
        adapt=ht.AdaptConfig(strategy=strategy, **dict(adapt)),
        train=ht.TrainConfig(**{"epochs": 1, "window_size": 4, "tokens_per_micro_batch": 400, **dict(train)}),
        output_dir=str(output_dir),
    )


def counted_by_torch(config: ht.RunConfig, with_store: bool = False) -> int:
    """FLOPs of every window of the run, forward and backward, as torch counts them in its kernels."""
    run = rehearsal.rehearse(config)
    lengths = np.asarray(run.encoded.train["length"])
    copies = 2 if config.train.r_drop else 1
    # the counter leaves products out that are added in place, as translation's gradient of the output layer is
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counter, total = FlopCounterMode(display=False, custom_mapping=in_place), 0
    with ExitStack() as undo:
        undo.enter_context(activation_checkpointing(run.adapted.model, config.train.activation_checkpointing))
        features = None
        if with_store:
            trial = run.functions.make_batch(run.encoded.train[:2])
            features = undo.enter_context(stored_features(run.adapted, "counted", FeatureStore(), trial.inputs))
        for stage in plan_stages(run.adapted.stages, len(lengths), run.settings):
            if features is not None:
                features.begin(stage.stage)
            rehearsal.mark(run, stage)
            for step in range(stage.first_step, stage.end):
                window = window_indices(len(lengths), config.train.window_size, config.seed, step)
                for piece in cut_window(lengths[window], config.train.tokens_per_micro_batch // copies, run.flat):
                    batch = run.functions.train_batch(run.encoded.train[window[piece]])
                    # the plain form of attention, whose products the counter sees one by one
                    with sdpa_kernel(SDPBackend.MATH), flattened(run.adapted.model, *real_tokens(batch)), counter:
                        loss = run.functions.loss_function(run.adapted.model(**batch.inputs), batch).loss_sum
                        loss.backward()
                    run.adapted.model.zero_grad()
                    total += counter.get_total_flops()  # it starts anew each time
    return total


CLASSIFIERS = [
    ("bert", "probe", {}, {}),
    ("bert", "freeze", {"freeze": "1"}, {}),
    ("bert", "freeze", {"freeze": "0", "gradual_unfreezing": True}, {"epochs": 3}),
    ("bert", "lora", {"lora_rank": 4}, {}),
    ("bert", "lora", {"lora_rank": 4, "lora_targets": "attention", "head_first": True}, {}),
    ("bert", "full", {}, {}),
    ("bert", "full", {}, {"r_drop": 1.0}),
    ("distilbert", "freeze", {"freeze": "embeddings"}, {}),
    ("albert", "full", {}, {}),
    ("mpnet", "freeze", {"freeze": "1"}, {}),
    ("gpt2", "full", {}, {}),
    ("bart", "full", {}, {}),
    ("bert", "freeze", {"freeze": "1"}, {"activation_checkpointing": True}),
    ("bart", "full", {}, {"activation_checkpointing": True}),
]


IN_THE_UNIT_TIER = (1, 2, 4, 7, 9, 12, 13)
EACH = [
    row if i in IN_THE_UNIT_TIER else pytest.param(*row, marks=pytest.mark.slow) for i, row in enumerate(CLASSIFIERS)
]


@pytest.mark.parametrize(
    ("name", "strategy", "adapt", "train"), EACH, ids=lambda v: str(v) if isinstance(v, str) else None
)
def test_operations_of_a_classifier_are_those_that_torch_counts(
    name, strategy, adapt, train, source, checkpoints, tmp_path
):
    config = config_for(source, checkpoints(name), tmp_path, strategy, adapt, train)
    found = ht.plan(config)["operations"]
    assert found["total"] == pytest.approx(counted_by_torch(config), rel=1e-9)
    assert found["total"] == pytest.approx(
        found["forward"] + found["input_gradients"] + found["weight_gradients"], rel=1e-12
    )
    assert sum(part["forward"] + part["backward"] for part in found["parts"]) == pytest.approx(found["total"])


@pytest.mark.slow
def test_operations_of_dora_and_deberta_are_close_to_what_torch_counts(source, checkpoints, tmp_path):
    """Both multiply matrices once for each micro-batch, whatever is in it; DeBERTa's tables grow with its length."""
    for name, strategy, adapt in (
        ("bert", "lora", {"lora_use_dora": True, "lora_rank": 4}),
        ("deberta-v2", "full", {}),
    ):
        config = config_for(source, checkpoints(name), tmp_path, strategy, adapt)
        assert ht.plan(config)["operations"]["total"] == pytest.approx(counted_by_torch(config), rel=0.02)


@pytest.mark.parametrize(
    ("strategy", "adapt"),
    [
        ("full", {}),
        ("freeze", {"freeze": "encoder+embeddings"}),
        ("freeze", {"freeze": "cross_attention:trainable"}),
        ("lora", {"lora_rank": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("freeze", ""),
)
def test_operations_of_translation_are_those_that_torch_counts(strategy, adapt, checkpoints, tmp_path):
    config = translation_config(checkpoints("marian"), tmp_path, strategy, adapt)
    assert ht.plan(config)["operations"]["total"] == pytest.approx(counted_by_torch(config), rel=1e-9)


def test_the_forward_of_a_layer_and_what_freezing_saves_are_as_by_hand(source, checkpoints, tmp_path):
    config = config_for(source, checkpoints("bert"), tmp_path, "freeze", {"freeze": "1"})
    plan = ht.plan(config)
    run = rehearsal.rehearse(config)
    lengths = np.asarray(run.encoded.train["length"])
    # two epochs: 4 projections of 16 x 16 and 2 of 16 x 24 per token, 2 products of length x length x 16 per text
    layer = 2 * sum(2 * n * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + 2 * 2 * n * n * HIDDEN for n in lengths.tolist())
    parts = {part["name"]: part for part in plan["operations"]["parts"]}
    assert parts["layer 0"] == {"name": "layer 0", "forward": layer, "backward": 0}
    # the input of the lowest trained layer needs no gradient: one product less for query, key and value
    spared = 2 * 2 * int(lengths.sum()) * 3 * HIDDEN**2
    assert (parts["layer 1"]["forward"], parts["layer 1"]["backward"]) == (layer, 2 * layer - spared)
    cache = plan["cache"]
    (kept,) = cache["stages"]
    assert (kept["layers"], cache["of_layers"], kept["stored_share"]) == (1, 2, 1.0)
    assert cache["operations_to_fill"] == layer / 2, "one epoch of the two"
    assert cache["operations_with"] == pytest.approx(cache["operations_without"] - layer + layer / 2)
    assert cache["bytes"] == lengths.sum() * HIDDEN * 4 == plan["memory"]["store"]


def test_a_probe_keeps_what_its_head_reads_and_pays_for_the_body_once(source, checkpoints, tmp_path):
    plan = ht.plan(config_for(source, checkpoints("bert"), tmp_path, "probe"))
    cache, body = plan["cache"], sum(part["forward"] for part in plan["operations"]["parts"][1:-1])
    assert [row["holds"] for row in cache["stages"]] == ["one vector per example"]
    # the first position and the pooler's answer to it
    assert cache["bytes"] == plan["data"]["train_examples"] * 2 * HIDDEN * 4
    heads = cache["operations_without"] - cache["operations_with"] - body / 2
    assert 0 <= heads < 0.01 * body, "of two epochs one is left, and the pooler's share of the other"


def test_a_store_that_is_too_small_saves_its_share_only(source, checkpoints, tmp_path, monkeypatch):
    config = config_for(source, checkpoints("bert"), tmp_path, "freeze", {"freeze": "1"})
    whole = ht.plan(config)["cache"]
    monkeypatch.setattr(store_cost, "memory_limit", lambda: whole["bytes"] // 4)
    train = dataclasses.replace(config.train, feature_cache_bytes=whole["bytes"] // 2 - whole["bytes"] // 4)
    half = ht.plan(dataclasses.replace(config, train=train))
    saved = whole["operations_without"] - whole["operations_with"]
    assert half["cache"]["stages"][0]["stored_share"] == pytest.approx(0.5, rel=0.01)
    assert half["cache"]["operations_without"] - half["cache"]["operations_with"] == pytest.approx(saved / 2, rel=0.01)
    assert half["memory"]["store"] == whole["bytes"] // 2


def test_lora_on_the_upper_layers_keeps_the_states_below_them(source, checkpoints, tmp_path):
    upper = {"lora_targets": "1.attention.self.query"}
    cache = ht.plan(config_for(source, checkpoints("bert"), tmp_path, "lora", upper))["cache"]
    assert [(row["layers"], row["holds"]) for row in cache["stages"]] == [(1, "states of every token")]


def test_nothing_is_kept_where_embeddings_learn(source, checkpoints, tmp_path):
    for strategy, adapt in (("full", {}), ("freeze", {"freeze": "0-1"}), ("lora", {})):
        cache = ht.plan(config_for(source, checkpoints("bert"), tmp_path, strategy, adapt))["cache"]
        assert (cache["stages"], cache["bytes"]) == ([], 0)
        assert cache["operations_with"] == cache["operations_without"]


STAGED = [
    ("bert", "probe", {}, ["probe"]),
    ("bert", "freeze", {"freeze": "1"}, ["freeze"]),
    ("bert", "full", {"head_first": True, "head_first_epochs": 2}, ["head"]),
    ("bert", "lora", {"head_first": True, "lora_rank": 4, "lora_targets": "1.attention.self.query"}, ["head", "lora"]),
    ("bert", "freeze", {"freeze": "1", "head_first": True, "head_first_epochs": 2}, ["head", "freeze"]),
    ("bert", "freeze", {"freeze": "embeddings", "gradual_unfreezing": True}, ["thaw 0", "thaw 1"]),
    ("bart", "probe", {}, ["probe"]),
    ("bart", "freeze", {"freeze": "embeddings", "gradual_unfreezing": True}, ["thaw 0", "thaw 1", "thaw 2"]),
]


STAGED_IN_THE_UNIT_TIER = (0, 1, 4, 5, 6)
EACH_STAGED = [
    row if i in STAGED_IN_THE_UNIT_TIER else pytest.param(*row, marks=pytest.mark.slow) for i, row in enumerate(STAGED)
]


@pytest.mark.parametrize(
    ("architecture", "strategy", "adapt", "names"), EACH_STAGED, ids=lambda v: v if isinstance(v, str) else None
)
def test_a_run_with_its_store_computes_what_was_planned(
    architecture, strategy, adapt, names, source, checkpoints, tmp_path
):
    """Each stage keeps what has not learnt up to it, and another depth is filled anew."""
    config = config_for(source, checkpoints(architecture), tmp_path, strategy, adapt, {"epochs": 3})
    cache = ht.plan(config)["cache"]
    assert [row["name"] for row in cache["stages"]] == names
    assert cache["operations_with"] == pytest.approx(counted_by_torch(config, with_store=True), rel=1e-9)
    assert cache["operations_without"] == pytest.approx(counted_by_torch(config), rel=1e-9)
    spared = cache["operations_without"] - cache["operations_with"]
    # in a stage of one epoch nothing is looked up twice, but for the encoder while a decoder thaws
    assert (spared > 0) == ("thaw 0" not in names or architecture == "bart")
    assert cache["bytes"] == sum(row["bytes"] for row in cache["stages"])


@pytest.mark.parametrize(
    ("architecture", "freeze", "layers"), [("t5", "1", []), ("albert", "1", []), ("gpt2", "2", [1]), ("bert", "1", [1])]
)
def test_no_state_is_planned_that_the_run_does_not_look_up(architecture, freeze, layers, source, checkpoints, tmp_path):
    """T5's layers share a bias, ALBERT's are one layer gone through twice, and GPT-2's last norm learns."""
    config = config_for(source, checkpoints(architecture), tmp_path, "freeze", {"freeze": freeze}, {"epochs": 3})
    run, cache = rehearsal.rehearse(config), ht.plan(config)["cache"]
    with stored_features(
        run.adapted, "asked", FeatureStore(), run.functions.make_batch(run.encoded.train[:2]).inputs
    ) as features:
        features.begin(run.adapted.stages[0])
        assert ([features.layers] if features.depth else []) == layers
    assert [row["layers"] for row in cache["stages"]] == layers
    assert (cache["operations_with"] < cache["operations_without"]) == bool(layers)


def test_the_speed_of_a_plan_is_that_of_the_runs_own_dropout(source, checkpoints, tmp_path, monkeypatch):
    drawn = []
    own = dropout.keep_noise
    monkeypatch.setattr(dropout, "keep_noise", lambda *given: drawn.append(given) or own(*given))
    ht.plan(config_for(source, checkpoints("bert"), tmp_path))
    assert drawn


def test_a_prefix_ends_at_the_first_layer_that_learns():
    embeddings, *layers = ([torch.nn.Parameter(torch.zeros(1))] for _ in range(4))
    ids = [id(layer[0]) for layer in layers]
    assert frozen_prefix(layers, embeddings, {ids[1]}) == 1
    assert frozen_prefix(layers, embeddings, {ids[0], ids[2]}) == 0
    assert frozen_prefix(layers, embeddings, set()) == 3
    assert frozen_prefix(layers, embeddings, {id(embeddings[0]), ids[2]}) == 0


@pytest.mark.recipe
@pytest.mark.parametrize(("name", "strategy"), [("mpnet", "freeze"), ("bert", "lora"), ("marian", "freeze")])
def test_the_run_has_the_parameters_steps_and_tokens_that_were_planned(
    name, strategy, source, checkpoints, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)
    monkeypatch.setattr("hf_transfer.artefact._prove_translations", lambda *_: 0.0, raising=False)
    if name == "marian":
        config = translation_config(checkpoints(name), tmp_path / "run", strategy, {"freeze": "encoder"})
    else:
        config = config_for(source, checkpoints(name), tmp_path / "run", strategy)
    plan = ht.plan(config)
    assert not (tmp_path / "run").exists()
    ht.run(config)
    results = read_results(tmp_path / "run")
    timing, steps = results["timing"], plan["steps"]
    found = plan["parameters"]
    assert results["strategy"]["trainable_parameters"] == found["trainable"]
    assert results["strategy"]["total_parameters"] == found["total"]
    for key in ("trainable", "total"):
        assert sum(part[key] for part in found["parts"]) == found[key]
    assert (timing["steps"], timing["examples"]) == (steps["steps"], steps["examples"])
    assert timing["tokens"] == steps["tokens"]
    assert results["data"]["examples"]["train"] == plan["data"]["train_examples"]
    assert [note for note in results["notes"] if "runs padded" in note] == (
        [f"{plan['data']['why_padded']}"] if name == "mpnet" else []
    )
    if name == "mpnet":  # its layers see padding
        assert plan["data"]["path"] == "padded" and "mpnet" in plan["data"]["why_padded"]
        assert timing["padding_tokens"] == steps["padding_tokens"] > 0
        assert timing["padding_fraction"] == pytest.approx(plan["data"]["padding_fraction"])
    else:
        assert (plan["data"]["path"], plan["data"]["padding_fraction"], steps["padding_tokens"]) == ("flattened", 0, 0)
        assert plan["data"]["padding_fraction_of_batches"] > 0


def kept_by_autograd(run, rows) -> int:
    """Bytes that a forward pass of ``rows`` has autograd keep, parameters left out."""
    batch = run.functions.make_batch(run.encoded.train[rows])
    own = {p.untyped_storage().data_ptr() for p in (*run.adapted.model.parameters(), *run.adapted.model.buffers())}
    kept = {}

    def keep(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = run.adapted.model(**batch.inputs)
    assert outputs.logits.shape == (len(rows), 2)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


@pytest.mark.parametrize("name", ["mpnet", "bert"])
def test_what_autograd_keeps_is_what_was_planned(name, source, checkpoints, tmp_path):
    run = rehearsal.rehearse(config_for(source, checkpoints(name), tmp_path, train={"tokens_per_micro_batch": 200}))
    (stage,) = plan_stages(run.adapted.stages, len(run.source), run.settings)
    cost = rehearsal.cost_of(run, stage)
    rows = np.argsort(run.source)[-6:]
    shapes = shapes_of([rows], run.source, run.target)
    everything = kept_by_autograd(run, rows)
    assert activation_bytes(cost.trace, shapes, flat=False) == pytest.approx(everything, rel=0.05)
    if name == "mpnet":
        return  # has no checkpointing
    with activation_checkpointing(run.adapted.model, True):
        outside = kept_by_autograd(run, rows)
    layers, width = len(run.adapted.parts.layers), run.adapted.model.config.hidden_size
    one_layer = (everything - outside) / layers
    entering = 4 * width * len(rows) * run.source[rows].max()
    planned = activation_bytes(with_checkpointing(cost.trace), shapes, flat=False)
    assert planned == pytest.approx(outside + layers * entering + one_layer, rel=0.05)
    assert planned < 0.7 * everything


def test_memory_holds_weights_gradients_and_two_averages_of_what_learns(source, checkpoints, tmp_path):
    plans = {
        strategy: ht.plan(config_for(source, checkpoints("bert"), tmp_path, strategy)) for strategy in ("full", "probe")
    }
    for plan in plans.values():
        trainable = plan["parameters"]["trainable"]
        memory = plan["memory"]
        assert (memory["gradients"], memory["optimizer"]) == (4 * trainable, 8 * trainable)
        assert memory["weights"] >= 4 * plan["parameters"]["total"]
        named = ("weights", "gradients", "optimizer", "activations", "start", "store")
        assert memory["total"] == sum(memory[key] for key in named)
    assert plans["probe"]["memory"]["activations"] < plans["full"]["memory"]["activations"] / 20
    pulled = ht.plan(config_for(source, checkpoints("bert"), tmp_path, train={"l2_sp": 0.1}))
    parts = {part["name"]: part["total"] for part in pulled["parameters"]["parts"]}
    assert pulled["memory"]["start"] == 4 * (pulled["parameters"]["total"] - parts["head"])


def test_long_runs_are_planned_from_some_of_their_windows(source, checkpoints, tmp_path, monkeypatch):
    config = config_for(source, checkpoints("mpnet"), tmp_path, train={"epochs": 20})
    whole = ht.plan(config)
    monkeypatch.setattr(rehearsal, "MOST_WINDOWS", 20)
    part = ht.plan(config)
    assert whole["steps"]["windows_simulated"] == whole["steps"]["steps"] > 20 == part["steps"]["windows_simulated"]
    for key in ("steps", "examples", "tokens"):
        assert part["steps"][key] == whole["steps"][key], "these are counted, not estimated"
    assert part["operations"]["total"] == pytest.approx(whole["operations"]["total"], rel=0.03)
    assert part["operations"]["total"] != whole["operations"]["total"]


def test_an_epoch_of_a_plan_has_the_general_examples_that_are_drawn_for_it_and_no_more(checkpoints, tmp_path):
    pairs = [f"The street number {i} is wet.\tDie Straße Nummer {i} ist nass." for i in range(60)]
    (tmp_path / "streets.tsv").write_text("source\ttarget\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    general = {"general_source": str(tmp_path / "streets.tsv"), "general_share": 0.3}
    config = translation_config(checkpoints("marian"), tmp_path / "run", "mixed", train={"epochs": 3}, **general)
    encoded = rehearsal.rehearse(config).encoded
    assert encoded.epoch_size == 9 + encoded.mixture.drawn < len(encoded.train), "or this says nothing"
    steps = ht.plan(config)["steps"]
    per_epoch = -(-encoded.epoch_size // 4)
    assert (steps["windows_per_epoch"], steps["steps"], steps["epochs"]) == (per_epoch, 3 * per_epoch, 3)


def test_seconds_are_operations_at_the_measured_speed_and_the_optimizers_traffic(
    source, checkpoints, tmp_path, monkeypatch
):
    measured = speed.Measured("as told", 1e6, 2e6, 1e5, 3)
    monkeypatch.setattr(planning, "measure", lambda *_: measured)
    plan = ht.plan(config_for(source, checkpoints("bert"), tmp_path, "freeze", {"freeze": "1"}))
    time, steps = plan["time"], plan["steps"]["steps"]
    optimizer = plan["parameters"]["trainable"] * steps * 40 / 1e5
    assert time["seconds"] == pytest.approx(plan["operations"]["total"] / 1e6 + optimizer)
    assert time["seconds_with_cache"] == pytest.approx(plan["cache"]["operations_with"] / 1e6 + optimizer)
    assert time["seconds_per_step"] == pytest.approx(time["seconds"] / steps)


def test_a_machine_on_which_one_example_takes_too_long_is_judged_by_a_plain_product(
    source, checkpoints, tmp_path, monkeypatch
):
    config = config_for(source, checkpoints("bert"), tmp_path)
    assert ht.plan(config)["time"]["micro_batches_run"] == 1
    monkeypatch.setattr(speed, "_per_second", lambda *_: 1e-9)
    time = ht.plan(config)["time"]
    assert (time["micro_batches_run"], time["how"]) == (0, "a plain matrix product")
    assert time["operations_per_second"] == time["product_operations_per_second"] == 2 * 1024**3 * 1e-9


def test_knn_plans_one_pass_and_its_datastore(checkpoints, tmp_path):
    plan = ht.plan(translation_config(checkpoints("marian"), tmp_path, "knn"))
    assert (plan["parameters"]["trainable"], plan["steps"]["steps"], plan["memory"]["gradients"]) == (0, 0, 0)
    operations = plan["operations"]
    assert operations["total"] == operations["forward"] > 0
    assert plan["memory"]["store"] == plan["data"]["target_tokens"] * (HIDDEN + 1) * 4
    assert plan["time"]["seconds_per_step"] is None


@pytest.mark.parametrize("layers", ["auto", "all", "1"])
def test_a_probe_on_layers_plans_one_pass_through_its_body(layers, source, checkpoints, tmp_path):
    config = config_for(source, checkpoints("bert"), tmp_path, "probe", {"probe_layers": layers})
    plan = ht.plan(config)
    run = rehearsal.rehearse(config)
    counter, reader = FlopCounterMode(display=False), make_reader(run.adapted.model.body)
    with sdpa_kernel(SDPBackend.MATH), counter:
        pooled_states(reader, run.encoded.train, run.functions.make_batch, config.evaluate.tokens_per_batch)
    assert plan["operations"]["total"] == plan["operations"]["forward"] == counter.get_total_flops() > 0
    assert (plan["steps"]["steps"], plan["cache"]["stages"]) == (0, [])
    assert plan["time"]["seconds"] > 0
    words = " ".join(printed(plan, 100).split())
    assert "(one pass over train)" in words and "Cache" not in words


def test_lora_names_the_modules_that_it_stands_beside(source, checkpoints, tmp_path):
    config = config_for(source, checkpoints("bert"), tmp_path, "lora", {"lora_rank": 4, "lora_targets": "query,value"})
    plan = ht.plan(config)
    layers = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")]
    assert plan["lora"] == {"rank": 4, "count": 4, "modules": layers}
    assert plan["parameters"]["parts"][1]["trainable"] == 2 * 4 * (HIDDEN + HIDDEN), "A and B, query and value"
    assert ht.plan(config_for(source, checkpoints("bert"), tmp_path))["lora"] is None


# ---- nothing is written, and the same is refused ---------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", ["marian", "scratch:marian-tiny"])
def test_a_finished_run_in_the_folder_is_no_obstacle_and_stays_as_it_is(checkpoint, checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    name = checkpoints("marian") if checkpoint == "marian" else checkpoint
    json.dumps(ht.plan(translation_config(name, tmp_path / "run")), allow_nan=False)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["run", "run/results.json"]
    assert (tmp_path / "run" / "results.json").read_text() == "{}"


def test_what_a_run_refuses_a_plan_refuses_in_the_same_words(source, checkpoints, tmp_path):
    good = config_for(source, checkpoints("bert"), tmp_path)
    wrong = [
        config_for(source, checkpoints("bert"), tmp_path, train={"epochs": -1}),
        config_for(source, checkpoints("bert"), tmp_path, label_column="stars"),
        config_for(source, str(tmp_path / "nothing"), tmp_path),
        config_for(source, checkpoints("bert"), tmp_path, "freeze", {"freeze": "9"}),
        config_for(source, checkpoints("bert"), tmp_path, train={"precision": "fp16"}),
        translation_config(checkpoints("marian"), tmp_path, "freeze", {"freeze": "embeddings", "head_first": True}),
    ]
    assert ht.plan(good)["steps"]["steps"] > 0
    for config in wrong:
        with pytest.raises(ht.InputError) as of_plan:
            ht.plan(config)
        with pytest.raises(ht.InputError) as of_run:
            ht.run(config)
        assert of_plan.value.problems == of_run.value.problems


# ---- what is printed -------------------------------------------------------------------------------------------


def printed(plan, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_plan(plan, console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 160])
def test_everything_planned_is_printed_at_any_width(width, source, checkpoints, tmp_path):
    plan = ht.plan(config_for(source, checkpoints("bert"), tmp_path, "freeze", {"freeze": "1"}))
    text = printed(plan, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    parts = {part["name"]: part for part in plan["parameters"]["parts"]}
    assert f"layer 1 {parts['layer 1']['total']:,} {parts['layer 1']['trainable']:,}" in words
    assert f"{plan['data']['train_examples']} train examples, {plan['data']['tokens']:,} tokens" in words
    assert f"{plan['steps']['steps']} steps: 2 epochs of {plan['steps']['windows_per_epoch']} windows of 4" in words
    assert format_operations(plan["operations"]["total"]) in words
    assert "1 of 2 layers never change" in words
    assert "the layers see no padding" in words


def test_what_each_stage_keeps_is_printed(source, checkpoints, tmp_path):
    first = {"freeze": "1", "head_first": True}
    words = " ".join(printed(ht.plan(config_for(source, checkpoints("bert"), tmp_path, "freeze", first)), 100).split())
    assert "kept in head: 2 of 2 layers, one vector per example (" in words
    assert "; freeze: 1 of 2 layers, states of every token (" in words


def test_layers_that_are_alike_share_a_row_and_a_pooler_counts_with_the_head(source, checkpoints, tmp_path):
    words = " ".join(printed(ht.plan(config_for(source, checkpoints("bert"), tmp_path, "probe")), 100).split())
    assert "layers 0-1, each" in words and "layer 0 " not in words
    padded = " ".join(printed(ht.plan(config_for(source, checkpoints("mpnet"), tmp_path)), 100).split())
    assert "% padding: mpnet runs padded" in padded
    assert "nothing to keep" in padded


@pytest.mark.parametrize(
    ("count", "shown"), [(0.0, "0 FLOP"), (999.0, "999 FLOP"), (2.48e12, "2.48 TFLOP"), (1.5e15, "1.5 PFLOP")]
)
def test_operations_are_written_with_three_digits(count, shown):
    assert format_operations(count) == shown


def test_the_command_prints_a_plan_and_refuses_what_run_refuses(source, checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--data.source", str(source), "--model.checkpoint", checkpoints("bert"), "--train.epochs", "1"]
    cli.main(words)
    shown = capsys.readouterr().out
    assert "Steps" in shown and "Memory" in shown
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--train.epoch", "2"])
    assert left.value.code == 2
    assert "--train.epoch is not a setting" in capsys.readouterr().err
