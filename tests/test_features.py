"""Stored bodies: a head that learns from looked-up rows ends where it would have, and each text is computed once."""

import contextlib
import copy
import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from test_pretrained import drop_tensors, open_it
from test_train_options import Course, losses_of
from tiny import ARCHITECTURES, make_checkpoint
from tiny_translation import FAMILIES, make_translation_checkpoint
from toy import encoded_rows

from hf_transfer.adapt import Adapted, apply_strategy
from hf_transfer.checkpoint import RunFolder
from hf_transfer.config import AdaptConfig, RunConfig, TrainConfig
from hf_transfer.decoding import decode
from hf_transfer.feature_store import FeatureStore
from hf_transfer.features import StoredFeatures, stored_features
from hf_transfer.flattened import flattened, real_tokens
from hf_transfer.layer_runs import body_key, store_key
from hf_transfer.model_selection import Chooser
from hf_transfer.predict import predict
from hf_transfer.records import LabelSpace, Pretrained
from hf_transfer.tasks import TASKS
from hf_transfer.train import train

THREE = LabelSpace("single_label", ("a", "b", "c"))
# where the head reads: of one vector per text only a fraction of the memory is needed
FIRST_POSITION = (
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "electra",
    "albert",
    "deberta-v2",
    "modernbert",
    "mpnet",
)
FLOAT_BYTES, WIDTH = 4, 16


@contextlib.contextmanager
def looked_up(adapted, key, store, batch):
    """As within the first stage of training."""
    with stored_features(adapted, key, store, batch) as features:
        features.begin(adapted.stages[0])
        yield features


class Losses:
    """A progress bar that remembers the loss of each window."""

    def __init__(self):
        self.seen = []

    def advance(self, loss, learning_rate, examples):
        self.seen.append(loss)

    def note(self, text):
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_checkpoint(folder / name, name) for name in ARCHITECTURES}


@functools.cache
def opened_once(folder: Path, **model) -> Pretrained:
    return open_it(folder, THREE, **model)


def fresh(folder: Path, strategy: str = "probe", model: tuple = (), **adapt) -> tuple[Adapted, Pretrained]:
    opened = opened_once(folder, **dict(model))
    torch.manual_seed(0)  # for LoRA's matrices
    opened = dataclasses.replace(opened, model=copy.deepcopy(opened.model))
    return apply_strategy(opened, AdaptConfig(strategy=strategy, **adapt)), opened


def functions_of(pretrained: Pretrained):
    return TASKS["classification"].bind(THREE, pretrained, RunConfig(), ())


def rows_for(pretrained: Pretrained, count: int = 20, seed: int = 0, types: bool = False) -> Dataset:
    """Texts of 3 to 21 tokens; with ``types``, those of the second half of each text are 1."""
    rows = encoded_rows(count, len(pretrained.tokenizer), 3, seed)
    if types:
        rows = rows.map(lambda row: {"token_type_ids": [int(i > row["length"] // 2) for i in range(row["length"])]})
    return rows


def trial_of(rows: Dataset, pretrained: Pretrained, count: int = 2) -> dict[str, torch.Tensor]:
    return dict(functions_of(pretrained).make_batch(rows[:count]).inputs)


def inputs_of(*texts: list[int], pad: int = 0) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    return {
        "input_ids": torch.tensor([text + [pad] * (longest - len(text)) for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts]),
    }


def logits(adapted: Adapted, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    adapted.model.eval()
    with torch.no_grad():
        return adapted.model(**inputs).logits


def examples_through(body: torch.nn.Module) -> list[int]:
    """Fills up with the number of examples of each pass through the body, seen at its embeddings or its encoder."""
    sizes: list[int] = []
    inside = body.encoder if body.config.is_encoder_decoder else body.get_input_embeddings()

    def note(module, args, kwargs):
        sizes.append(len(args[0] if args else kwargs["input_ids"]))

    inside.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def learn(
    adapted: Adapted,
    pretrained: Pretrained,
    rows: Dataset,
    folder: Path,
    features: StoredFeatures | None = None,
    **settings,
):
    """Two epochs; losses of all windows, what has learnt in the end and predictions of all rows."""
    progress, functions = Losses(), functions_of(pretrained)
    chooser = Chooser("last", "accuracy", True, lambda model: 0.0)
    usual = {"epochs": 2, "window_size": 5, "tokens_per_micro_batch": 60, "learning_rate": 1e-2, "warmup_fraction": 0.0}
    config = TrainConfig(**usual | settings)
    places = RunFolder(folder / "log.jsonl", folder / "checkpoints")
    train(adapted, rows, functions, chooser, Accelerator(), config, places, 0, progress, features)
    found = predict(adapted.model, rows, functions, Accelerator(), 100)
    learnt = dict(adapted.model.named_parameters())
    names = {*adapted.head_names, *adapted.summary.names}
    return progress.seen, {name: learnt[name].detach().clone() for name in names}, found.probabilities


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_probe_learns_and_predicts_the_same_from_stored_rows_and_computes_each_text_once(
    folders, architecture, tmp_path
):
    adapted, pretrained = fresh(folders[architecture])
    rows = rows_for(pretrained, types="token_type_ids" in pretrained.tokenizer.model_input_names)
    start = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    losses, head, probabilities = learn(adapted, pretrained, rows, tmp_path / "without")
    assert losses[0] != losses[-1] and any(not torch.equal(p, start[name]) for name, p in head.items())

    adapted, pretrained = fresh(folders[architecture])
    store = FeatureStore()
    with stored_features(adapted, "weights", store, trial_of(rows, pretrained)) as features:
        sizes = examples_through(adapted.model.base_model)
        stored_losses, stored_head, stored_probabilities = learn(adapted, pretrained, rows, tmp_path / "with", features)
        assert features.depth.startswith("the body")
    np.testing.assert_allclose(stored_losses, losses, rtol=1e-5)
    for name, parameter in head.items():
        torch.testing.assert_close(stored_head[name], parameter, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stored_probabilities, probabilities, atol=1e-5)
    assert (store.computed, store.reused) == (20, 20 + 20)  # two epochs, then the predictions
    # two texts more, a few times: to see which parameters learn, and whether the store serves
    assert sum(sizes) <= 20 + 5 * 2


def test_a_second_run_over_the_same_weights_computes_nothing(folders, tmp_path):
    store, heads = FeatureStore(), []
    for run in range(2):
        adapted, pretrained = fresh(folders["bert"])
        rows = rows_for(pretrained)
        with stored_features(adapted, "weights", store, trial_of(rows, pretrained)) as features:
            heads.append(learn(adapted, pretrained, rows, tmp_path / str(run), features)[1])
        assert store.computed == 20
    assert all(torch.equal(p, heads[1][name]) for name, p in heads[0].items())


TEXT, SHORT = [2, 8, 9, 14, 22, 3], [2, 8, 3]


def test_random_weights_of_another_vocabulary_do_not_share_rows(folders):
    small, large = (
        Pretrained(SimpleNamespace(config=SimpleNamespace(vocab_size=size)), None, "scratch:marian-tiny", "", "", ())
        for size in (400, 500)
    )
    assert body_key(small, 0, None) == body_key(small, 0, None) != body_key(large, 0, None)
    assert body_key(small, 0, None) != body_key(small, 1, None)


@pytest.fixture(scope="module")
def without_pooler(tmp_path_factory) -> Path:
    """As after continued masked-language training, whose model has no pooler."""
    return drop_tensors(make_checkpoint(tmp_path_factory.mktemp("no-pooler")), "pooler.")


ALL_OF_THE_BODY = AdaptConfig(strategy="freeze", freeze=r"regex:^bert\.")


def test_what_goes_through_a_new_pooler_that_stays_as_it_was_drawn_is_not_shared_by_seeds(without_pooler):
    store, keys, inputs = FeatureStore(for_several=True), [], inputs_of(TEXT, SHORT)
    for seed in (1, 2):
        opened = open_it(without_pooler, THREE, seed=seed)
        adapted = apply_strategy(opened, ALL_OF_THE_BODY)
        wanted = logits(adapted, inputs)
        keys.append(store_key(adapted, opened, seed))
        with looked_up(adapted, keys[-1], store, inputs) as features:
            assert features.depth.startswith("the body")
            torch.testing.assert_close(logits(adapted, inputs), wanted, rtol=1e-5, atol=1e-5)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("has_pooler", "adapt"),
    [
        (True, ALL_OF_THE_BODY),
        (False, AdaptConfig(strategy="probe")),
        (False, AdaptConfig(strategy="lora")),
    ],
    ids=["all is pretrained", "the new pooler learns", "the new pooler learns beside LoRA"],
)
def test_seeds_share_what_the_checkpoint_alone_decides(folders, without_pooler, has_pooler, adapt):
    keys = set()
    for seed in (1, 2):
        opened = open_it(folders["bert"] if has_pooler else without_pooler, THREE, seed=seed)
        keys.add(store_key(apply_strategy(opened, adapt), opened, seed))
    assert len(keys) == 1


def test_rows_of_another_precision_are_not_shared(folders):
    """Here of the CPU, of which torch's question without a device knows nothing."""
    adapted, pretrained = fresh(folders["bert"])
    with looked_up(adapted, "weights", FeatureStore(), trial_of(rows_for(pretrained), pretrained)):
        plain = logits(adapted, inputs_of(TEXT))
        with torch.autocast("cpu", torch.bfloat16):
            half = logits(adapted, inputs_of(TEXT))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half, logits(adapted, inputs_of(TEXT)))
    assert torch.equal(plain, logits(adapted, inputs_of(TEXT)))
    assert not torch.equal(plain, half)


def test_weights_of_another_name_do_not_share_rows(folders):
    store = FeatureStore()
    other_weights = dict.fromkeys(("first", "second"))
    for key in other_weights:
        adapted, _ = fresh(folders["bert"])
        if key == "second":
            with torch.no_grad():
                adapted.model.bert.embeddings.word_embeddings.weight.add_(torch.randn(48, WIDTH))
        wanted = logits(adapted, inputs_of(TEXT))
        with looked_up(adapted, key, store, inputs_of(TEXT, SHORT)):
            torch.testing.assert_close(logits(adapted, inputs_of(TEXT)), wanted)
        other_weights[key] = wanted
    assert not torch.allclose(*other_weights.values(), atol=1e-3)
    assert (store.computed, store.reused) == (2, 0)


def with_types(types: list[int]) -> dict[str, torch.Tensor]:
    return inputs_of(TEXT) | {"token_type_ids": torch.tensor([types])}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (with_types([0] * 6), with_types([0, 0, 0, 1, 1, 1])),
        (with_types([0, 0, 0, 1, 1, 1]), inputs_of(TEXT)),
        (inputs_of(TEXT), inputs_of(TEXT) | {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}),
        # holes and padding in front: the same number of tokens counts, but not the same ones
        (
            inputs_of(TEXT) | {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])},
            inputs_of(TEXT) | {"attention_mask": torch.tensor([[1, 0, 1, 1, 0, 1]])},
        ),
        (
            inputs_of(TEXT) | {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])},
            inputs_of(TEXT) | {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])},
        ),
    ],
    ids=["types", "types and none", "attention", "a hole", "padding in front"],
)
def test_equal_tokens_that_are_read_otherwise_do_not_share_rows(folders, one, other):
    adapted, _ = fresh(folders["bert"])
    wanted = [logits(adapted, inputs) for inputs in (one, other)]
    if "token_type_ids" not in one or "token_type_ids" in other:  # types that are left out count as 0
        assert not torch.allclose(*wanted, atol=1e-3)
    with looked_up(adapted, "weights", FeatureStore(), inputs_of(TEXT, SHORT)):
        for _ in range(2):
            for inputs, plain in zip((one, other), wanted, strict=True):
                torch.testing.assert_close(logits(adapted, inputs), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "bart", "gpt2", "llama"])
def test_padding_and_the_other_texts_of_a_batch_do_not_matter(folders, architecture):
    adapted, pretrained = fresh(folders[architecture])
    pad = pretrained.tokenizer.pad_token_id
    texts = [TEXT, [2, 30, 3], [2, 11, 12, 3], [2, 8, 3]]
    alone = torch.cat([logits(adapted, inputs_of(text, pad=pad)) for text in texts])
    store = FeatureStore()
    with looked_up(adapted, "weights", store, inputs_of(*texts[:2], pad=pad)) as features:
        assert features.depth
        first = logits(adapted, inputs_of(texts[1], texts[3], pad=pad))
        mixed = logits(adapted, inputs_of(*texts, pad=pad))  # two known, two new, all padded more than before
        again = logits(adapted, inputs_of(*texts[::-1], [2, *range(5, 20), 3], pad=pad))[:4].flip(0)
    torch.testing.assert_close(first, alone[[1, 3]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, alone, rtol=1e-5, atol=1e-5)
    assert (store.computed, store.reused) == (5, 2 + 4)


def test_of_a_head_that_reads_one_position_no_other_is_kept_and_padding_never(folders):
    for architecture in ARCHITECTURES:
        adapted, pretrained = fresh(folders[architecture])
        both, store = inputs_of(TEXT, SHORT, pad=pretrained.tokenizer.pad_token_id), FeatureStore()
        with looked_up(adapted, "weights", store, both):
            logits(adapted, both)
        vector = FLOAT_BYTES * WIDTH
        pooler = vector if architecture in ("bert", "albert") else 0
        wanted = 2 * (vector + pooler) if architecture in FIRST_POSITION else len(TEXT + SHORT) * vector
        assert store.bytes == wanted, architecture


def test_a_head_that_takes_the_mean_of_all_positions_gets_all_of_them(tmp_path):
    adapted, _ = fresh(make_checkpoint(tmp_path / "mean", "modernbert", classifier_pooling="mean"))
    both, store = inputs_of(TEXT, SHORT), FeatureStore()
    wanted = logits(adapted, both)
    with looked_up(adapted, "weights", store, both) as features:
        assert features.depth
        torch.testing.assert_close(logits(adapted, both), wanted, rtol=1e-5, atol=1e-5)
    assert store.bytes == len(TEXT + SHORT) * FLOAT_BYTES * WIDTH


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_texts_of_one_token_do_not_make_the_last_position_pass_for_the_first(folders, architecture):
    adapted, pretrained = fresh(folders[architecture])
    pad = pretrained.tokenizer.pad_token_id
    wanted = logits(adapted, inputs_of(TEXT, TEXT[:4], pad=pad))
    with looked_up(adapted, "weights", FeatureStore(), inputs_of([8], [9])):
        torch.testing.assert_close(logits(adapted, inputs_of(TEXT, TEXT[:4], pad=pad)), wanted, rtol=1e-5, atol=1e-5)


def test_rows_beyond_the_limit_of_memory_are_computed_each_time_and_right(folders):
    adapted, _ = fresh(folders["distilbert"])
    texts = [[2, word, 3] for word in range(5, 15)]
    wanted = logits(adapted, inputs_of(*texts))
    store = FeatureStore(limit_bytes=4 * FLOAT_BYTES * WIDTH + 1)
    with looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)):
        for _ in range(3):
            torch.testing.assert_close(logits(adapted, inputs_of(*texts)), wanted, rtol=1e-5, atol=1e-5)
    assert store.bytes == 4 * FLOAT_BYTES * WIDTH
    assert (store.computed, store.reused) == (10 + 6 + 6, 4 + 4)


def test_a_row_is_counted_once_however_often_it_is_put():
    store, row = FeatureStore(limit_bytes=64), {"last_hidden_state": torch.ones(1, 8)}
    for _ in range(3):
        store.put(("weights", b"text"), row)
    store.put(("weights", b"other"), {"last_hidden_state": torch.ones(1, 9)})
    assert store.bytes == 32
    assert store.get(("weights", b"text")) is row
    assert store.get(("weights", b"other")) is None
    store.put(("weights", b"other"), {"last_hidden_state": torch.ones(1, 8)})
    assert store.bytes == 64, "up to the limit, and with it"


def test_what_is_stored_keeps_no_graph_and_no_larger_memory_alive(folders):
    adapted, _ = fresh(folders["bert"])
    store = FeatureStore()
    with looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)):
        adapted.set_train_mode(adapted.model)
        adapted.model(**inputs_of(TEXT, SHORT)).logits.sum().backward()
    for row in store._rows.values():
        for tensor in row.values():
            assert not tensor.requires_grad
            assert tensor.untyped_storage().nbytes() == tensor.numel() * FLOAT_BYTES
    assert adapted.model.classifier.weight.grad is not None


def test_the_body_has_its_own_forward_again_afterwards_and_after_an_error(folders):
    adapted, _ = fresh(folders["bert"])
    body, store = adapted.model.bert, FeatureStore()
    with looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)):
        assert "forward" in vars(body)
    assert "forward" not in vars(body)
    with pytest.raises(KeyError), looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)):
        raise KeyError
    assert "forward" not in vars(body)
    logits(adapted, inputs_of(TEXT))
    assert (store.computed, store.reused) == (0, 0)


def test_the_trial_leaves_the_model_in_its_modes_and_the_store_empty(folders):
    adapted, _ = fresh(folders["bert"])
    adapted.set_train_mode(adapted.model)
    before = {name: module.training for name, module in adapted.model.named_modules()}
    assert set(before.values()) == {True, False}
    store = FeatureStore()
    with looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)):
        assert {name: module.training for name, module in adapted.model.named_modules()} == before
    assert (store.bytes, store.computed, store.reused) == (0, 0, 0)


@pytest.mark.parametrize(("architecture", "said"), [("t5", True), ("bert", False)])
def test_frozen_layers_that_nothing_is_looked_up_of_are_named(folders, architecture, said):
    adapted, _ = fresh(folders[architecture], "freeze", freeze="1")
    with looked_up(adapted, "weights", FeatureStore(), inputs_of(TEXT, SHORT)) as features:
        assert (features.depth == "") == said
        assert [note.startswith("frozen layers are computed in each pass") for note in features.notes()] == [
            True
        ] * said
        assert all("those of t5 need" in note for note in features.notes())


@pytest.mark.parametrize(
    ("strategy", "adapt"),
    [("full", {}), ("lora", {}), ("freeze", {"freeze": "embeddings"}), ("freeze", {"freeze": "1"})],
)
def test_where_all_layers_learn_nothing_is_looked_up(folders, strategy, adapt):
    architecture = "albert" if adapt == {"freeze": "1"} else "bert"  # its one layer is gone through twice
    adapted, _ = fresh(folders[architecture], strategy, **adapt)
    store = FeatureStore()
    with looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)) as features:
        assert not features.depth
        assert not any("forward" in vars(module) for module in adapted.model.modules())
        logits(adapted, inputs_of(TEXT))
    assert store.computed == 0


def test_a_body_whose_pooler_is_new_is_looked_up_as_far_as_its_last_layer_because_the_pooler_learns(folders):
    opened = opened_once(folders["bert"])
    new = tuple(name for name, _ in opened.model.named_parameters() if "pooler" in name or "classifier" in name)
    opened = dataclasses.replace(opened, model=copy.deepcopy(opened.model), newly_initialised=new)
    adapted = apply_strategy(opened, AdaptConfig(strategy="probe"))
    with looked_up(adapted, "weights", FeatureStore(), inputs_of(TEXT, SHORT)) as features:
        assert features.depth == "2 of 2 layers"


# --- a frozen bottom and layers that learn above it ---------------------------------------------------------------

NO_DROPOUT = (("dropout", 0.0),)
# no score depends on it, so that its gradient is rounding, which Adam scales up
KEY_BIAS = re.compile(r"(key|key_proj|k_proj|k_lin|attn\.k|c_attn)\.bias")
# T5 makes the bias of its positions in the first layer, ALBERT has one layer
FROM_A_LAYER = tuple(name for name in ARCHITECTURES if name not in ("t5", "albert"))


def passes_of(modules) -> list[int]:
    """Fills up with the number of examples, or 1 for a long row, of each pass through any of ``modules``."""
    sizes: list[int] = []

    def note(module, args, kwargs):
        sizes.append(len(args[0] if args else kwargs["hidden_states"]))

    for module in modules:
        module.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def same_course(folder, tmp_path, strategy, depth, model=NO_DROPOUT, rows=None, **adapt):
    """Train without and with a store; returns the store, and passes through the lowest layer with it and without."""
    adapted, pretrained = fresh(folder, strategy, model, **adapt)
    every_time = passes_of(adapted.parts.layer_modules[:1])
    rows = rows_for(pretrained, types="token_type_ids" in pretrained.tokenizer.model_input_names)
    start = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    losses, learnt, probabilities = learn(adapted, pretrained, rows, tmp_path / "without")
    moved = [name for name, p in learnt.items() if not torch.equal(p, start[name])]
    assert losses[0] != losses[-1] and len(moved) > len(adapted.head_names)

    adapted, pretrained = fresh(folder, strategy, model, **adapt)
    store, lowest = FeatureStore(), passes_of(adapted.parts.layer_modules[:1])
    with stored_features(adapted, "weights", store, trial_of(rows, pretrained)) as features:
        stored = learn(adapted, pretrained, rows, tmp_path / "with", features)
        assert features.depth == depth
        assert features.notes() == (
            f"computed once and then looked up: {depth} (20 examples computed, {store.reused} looked up).",
        )
    np.testing.assert_allclose(stored[0], losses, rtol=1e-5)
    for name, parameter in learnt.items():
        if not KEY_BIAS.search(name):
            torch.testing.assert_close(stored[1][name], parameter, rtol=1e-5, atol=1e-5, msg=name)
    np.testing.assert_allclose(stored[2], probabilities, atol=1e-5)
    return store, len(lowest), len(every_time)


IN_THE_UNIT_TIER = ("bert", "modernbert", "deberta-v2", "bart", "gpt2")
EACH = [n if n in IN_THE_UNIT_TIER else pytest.param(n, marks=pytest.mark.slow) for n in FROM_A_LAYER]


@pytest.mark.parametrize("architecture", EACH)
def test_layers_above_a_frozen_one_learn_the_same_from_stored_states(folders, architecture, tmp_path):
    store, lowest, store_free = same_course(folders[architecture], tmp_path, "freeze", "1 of 2 layers", freeze="1")
    assert (store.computed, store.reused) == (20, 20 + 20)  # two epochs, the predictions
    assert lowest < store_free


@pytest.mark.parametrize("architecture", [name for name in EACH if "mpnet" not in str(name)])  # which cannot
def test_a_layer_that_the_backward_runs_again_is_handed_the_stored_states_again(folders, architecture, tmp_path):
    found, passes = [], []
    for checkpointing in (False, True):
        adapted, pretrained = fresh(folders[architecture], "freeze", NO_DROPOUT, freeze="1")
        rows, folder = rows_for(pretrained), tmp_path / str(checkpointing)
        first_inside = next(m for m in adapted.parts.layer_modules[1].modules() if len(m._parameters))
        with stored_features(adapted, "weights", FeatureStore(), trial_of(rows, pretrained)) as features:
            sizes = passes_of([first_inside])
            found.append(learn(adapted, pretrained, rows, folder, features, activation_checkpointing=checkpointing))
            assert features.depth == "1 of 2 layers"
        passes.append(len(sizes))
    assert passes[1] > passes[0]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    for name, parameter in found[0][1].items():
        if not KEY_BIAS.search(name):
            torch.testing.assert_close(found[1][1][name], parameter, rtol=1e-5, atol=1e-5, msg=name)
    np.testing.assert_allclose(found[1][2], found[0][2], atol=1e-5)


def test_a_probe_reads_stored_rows_also_under_activation_checkpointing(folders, tmp_path):
    adapted, pretrained = fresh(folders["bert"])
    rows, store = rows_for(pretrained), FeatureStore()
    with stored_features(adapted, "weights", store, trial_of(rows, pretrained)) as features:
        learn(adapted, pretrained, rows, tmp_path, features, activation_checkpointing=True)
    assert (store.computed, store.reused) == (20, 20 + 20)


def test_upper_layers_draw_the_same_dropout_above_stored_states(folders, tmp_path):
    adapted, _ = fresh(folders["bert"])
    assert adapted.model.config.hidden_dropout_prob > 0
    same_course(folders["bert"], tmp_path, "freeze", "1 of 2 layers", model=(), freeze="1")


def test_the_states_of_a_frozen_encoder_are_looked_up(folders, tmp_path):
    store, lowest, store_free = same_course(folders["bart"], tmp_path, "freeze", "the encoder", freeze="2")
    assert store.computed == 20
    assert lowest < store_free


def test_lora_on_the_upper_layers_learns_from_stored_states(folders, tmp_path):
    upper = "1.attention.self.query,1.attention.self.value"
    store, _, _ = same_course(folders["bert"], tmp_path, "lora", "1 of 2 layers", lora_targets=upper, lora_dropout=0.0)
    assert store.computed == 20


def test_a_frozen_encoder_of_a_translation_model_is_looked_up_while_it_learns_and_while_it_writes(tmp_path):
    folder = make_translation_checkpoint("marian", tmp_path / "marian")
    usual = TrainConfig(epochs=2, window_size=4, learning_rate=1e-2, warmup_fraction=0.0)
    found, counts = [], []
    for stored, checkpointing in ((False, False), (True, False), (True, True)):
        config = dataclasses.replace(usual, activation_checkpointing=checkpointing)
        course = Course("translation", folder, config, "freeze", freeze="cross_attention:trainable")
        adapted, rows, make_batch = course.adapted, course.rows, course.functions.make_batch
        store, progress = FeatureStore(), Losses()
        features = StoredFeatures(adapted, "w", store, make_batch(rows[:2]).inputs) if stored else None
        places, chooser = (
            RunFolder(tmp_path / "log.jsonl", tmp_path / "c"),
            Chooser("last", "bleu", True, lambda m: 0.0),
        )
        train(adapted, rows, course.functions, chooser, Accelerator(), config, places, 0, progress, features)
        found.append((progress.seen, decode(adapted.model, rows["input_ids"][:], [None] * len(rows), 0)))
        if features is not None:
            assert features.depth == "the encoder"
            features.close()
            counts.append((store.computed, store.reused))
    for losses, written in found[1:]:
        np.testing.assert_allclose(losses, found[0][0], rtol=1e-5)
        assert written == found[0][1] and any(written)
    assert set(counts) == {(len(rows), 2 * len(rows))}, "writing reads what learning has left"


@pytest.mark.parametrize("family", [name for name in FAMILIES if "t5" not in name])  # nothing is looked up of T5
@pytest.mark.parametrize("padded", [False, True])
def test_sources_of_one_length_keep_their_own_states_whatever_the_lengths_of_their_targets(tmp_path, family, padded):
    """A window orders them by target, the states of an encoder alone are computed in another order."""
    folder = make_translation_checkpoint(family, tmp_path)
    course = Course("translation", folder, TrainConfig(), "freeze", freeze="cross_attention:trainable")
    rows = course.rows.map(lambda row: {"input_ids": (row["input_ids"] * 4)[: 6 + padded * int(row["example_id"]) % 2]})
    batch = course.functions.train_batch(rows[:])
    assert sorted(targets := (batch.labels != -100).sum(1).tolist()) != targets
    wanted = losses_of("translation", course.plain.eval(), batch)[0].sum().item()
    course.adapted.set_train_mode(course.adapted.model)
    store = FeatureStore()
    with looked_up(course.adapted, "weights", store, course.functions.make_batch(rows[:2]).inputs) as features:
        assert features.depth == "the encoder"
        for computed in (len(rows), len(rows)):  # computed, then looked up
            with flattened(course.adapted.model, *real_tokens(batch)):
                found = course.functions.loss_function(course.adapted.model(**batch.inputs), batch).loss_sum
            assert float(found) == pytest.approx(wanted, rel=1e-5)
            assert store.computed == computed


def test_all_layers_frozen_below_a_pooler_that_learns(folders, tmp_path):
    store, _, _ = same_course(folders["bert"], tmp_path, "freeze", "2 of 2 layers", freeze="2")
    assert store.computed == 20
    assert store.bytes == sum(rows_for(opened_once(folders["bert"]))["length"]) * FLOAT_BYTES * WIDTH


def test_each_stage_looks_up_what_has_not_learnt_until_then(folders, tmp_path):
    depths: list[str] = []

    class Noted(StoredFeatures):
        def begin(self, stage):
            super().begin(stage)
            depths.append(self.depth)

    for strategy, adapt, wanted in (
        ("freeze", {"freeze": "0", "gradual_unfreezing": True}, ["the body, 1 positions", "1 of 2 layers", ""]),
        ("full", {"head_first": True}, ["the body, 1 positions", ""]),
        ("lora", {"head_first": True}, ["the body, 1 positions", ""]),
        ("freeze", {"freeze": "1", "head_first": True}, ["the body, 1 positions", "1 of 2 layers"]),
    ):
        losses = []
        for stored in (False, True):
            adapted, pretrained = fresh(folders["bert"], strategy, NO_DROPOUT, **adapt)
            rows = rows_for(pretrained)
            features = Noted(adapted, "weights", FeatureStore(), trial_of(rows, pretrained)) if stored else None
            config = TrainConfig(epochs=3, window_size=5, learning_rate=1e-2, warmup_fraction=0.0)
            places = RunFolder(tmp_path / "log.jsonl", tmp_path / "checkpoints")
            progress, chooser = Losses(), Chooser("last", "accuracy", True, lambda model: 0.0)
            train(
                adapted, rows, functions_of(pretrained), chooser, Accelerator(), config, places, 0, progress, features
            )
            losses.append(progress.seen)
            if features is not None:
                features.close()
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        assert depths == wanted
        depths.clear()


def test_what_is_looked_at_after_training_is_kept_only_where_several_runs_share_the_store(folders, tmp_path):
    for several in (False, True):
        adapted, pretrained = fresh(folders["bert"], "freeze", freeze="1")
        rows, others = rows_for(pretrained), rows_for(pretrained, seed=1)
        store = FeatureStore(for_several=several)
        with stored_features(adapted, "weights", store, trial_of(rows, pretrained)) as features:
            learn(adapted, pretrained, rows, tmp_path / str(several), features)
            held = store.bytes
            predict(adapted.model, others, functions_of(pretrained), Accelerator(), 100)
        assert (store.bytes > held) == several


def test_a_layer_that_looks_at_those_below_is_left_alone(folders):
    """As DeBERTa's convolution after the first layer: dropping layers would move it."""
    adapted, _ = fresh(folders["bert"], "freeze", freeze="1")
    encoder = adapted.model.bert.encoder
    plain = encoder.forward
    encoder.forward = lambda states, *args, **kwargs: plain(states * len(encoder.layer), *args, **kwargs)
    with looked_up(adapted, "weights", FeatureStore(), inputs_of(TEXT, SHORT)) as features:
        encoder.layer[0].register_forward_hook(lambda module, args, output: output)
        wanted = logits(adapted, inputs_of(TEXT))
    assert features.depth == ""
    torch.testing.assert_close(logits(adapted, inputs_of(TEXT)), wanted)


@pytest.mark.parametrize("output", ["hidden_states", "attentions"])
def test_a_head_that_reads_more_than_is_stored_keeps_its_body(folders, output):
    adapted, _ = fresh(folders["bert"])
    model = adapted.model
    model.config._attn_implementation = "eager"  # the one that hands out attentions
    setattr(model.config, f"output_{output}", True)
    plain = type(model).forward

    def forward(**inputs):
        found = plain(model, **inputs)
        return dataclasses.replace(found, logits=found.logits + getattr(found, output)[0].abs().mean())

    model.forward = forward
    wanted = logits(adapted, inputs_of(TEXT))
    with looked_up(adapted, "weights", FeatureStore(), inputs_of(TEXT, SHORT)) as features:
        assert not features.depth
        assert torch.equal(logits(adapted, inputs_of(TEXT)), wanted)
    assert "forward" not in vars(model.bert)


def test_a_body_shared_out_among_processes_is_called_by_all_of_them_each_time(folders):
    """A stored row on one process and none on another would leave the second waiting for the first."""
    adapted, _ = fresh(folders["bert"])
    store = FeatureStore()
    with looked_up(adapted, "weights", store, inputs_of(TEXT, SHORT)) as features:
        assert features.depth  # nothing is shared out before training begins
        sizes = examples_through(adapted.model.bert)
        adapted.model.bert.encoder.layer[0].output.dense.weight.device_mesh = "as FSDP marks a shard"
        for _ in range(2):
            logits(adapted, inputs_of(TEXT))
    assert sizes == [1, 1]
