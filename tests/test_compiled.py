"""Layers through torch's compiler learn the same, are compiled once for all shapes, and only where it pays."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_flattened import PADDED, SERVED, class_loss, outcome, texts
from test_flattened import opened as in_double_precision
from test_train_options import PLAIN, Course, losses_in
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint

from hf_transfer import compiled
from hf_transfer.compiled import COUNTED, UNCOUNTED, CompiledLayers
from hf_transfer.errors import RunError
from hf_transfer.layers import layer_stacks


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    """Everything but the making of machine code, which takes ten seconds and a C++ compiler."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "classification": make_checkpoint(tmp_path_factory.mktemp("bert")),
        "translation": make_translation_checkpoint("marian", tmp_path_factory.mktemp("marian")),
    }


def alone(device="cpu", processes=1):
    return SimpleNamespace(device=torch.device(device), num_processes=processes)


def layers_of(model):
    return [layer for _, stack in layer_stacks(model.base_model) for layer in stack]


LENGTHS = ((1, 33, 7, 7, 3, 12), (5, 5, 9), (2, 1, 40), (6, 4), (11, 3, 3, 8), (3, 17), (20, 2, 2, 2, 2), (9, 8, 7))


@pytest.mark.slow  # test_a_course_of_training_is_the_same compiles layers with every change
@pytest.mark.parametrize("architecture", (*SERVED, *PADDED))
def test_every_architecture_learns_the_same_and_is_compiled_once_for_all_shapes(architecture):
    plain = copy.deepcopy(in_double_precision(architecture)).train()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model = copy.deepcopy(plain)
    layers = CompiledLayers(layers_of(model), "always", alone(), pytest.fail)
    layers.begin(len(LENGTHS))
    graphs = []
    for lengths in LENGTHS:
        inputs = texts(plain, lengths)
        masks = (inputs["attention_mask"],) if architecture in SERVED else None
        expected, found = (outcome(one, inputs, class_loss, masks) for one in (plain, model))
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
        for name, gradient in expected[2].items():
            torch.testing.assert_close(found[2][name], gradient, rtol=1e-7, atol=1e-8, msg=name)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    layers.close()
    assert not any("forward" in vars(layer) for layer in layers_of(model))
    assert graphs[0] > 0
    assert graphs[-1] == graphs[2], graphs


COURSES = [
    ("full", "classification", {}),
    ("full", "classification", {"activation_checkpointing": True}),
    pytest.param("lora", "classification", {}, marks=pytest.mark.slow),
    pytest.param("full", "translation", {"r_drop": 1.0}, marks=pytest.mark.slow),
    pytest.param("freeze", "classification", {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("strategy", "task", "change"), COURSES, ids=str)
def test_a_course_of_training_is_the_same(task, strategy, change, folders, tmp_path):
    found = []
    for wanted in ("never", "always"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = replace(PLAIN, learning_rate=1e-2, compile=wanted, **change)
        course = Course(task, folders[task], config, strategy, dropout=0.1)
        course.run(tmp_path / wanted, validate=lambda model: 0.0)
        found.append((losses_in(tmp_path / wanted), course.parameters()))
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == (wanted == "always")
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for name, parameter in found[1][1].items():
        torch.testing.assert_close(parameter, found[0][1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_machine_code_learns_the_same(folders, tmp_path, monkeypatch):
    """Losses, since AdamW makes a step of the rounding in which the gradient of a key's bias, 0, comes out."""
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    for wanted in ("never", "always"):
        config = replace(PLAIN, learning_rate=1e-2, compile=wanted)
        Course("classification", folders["classification"], config, dropout=0.1).run(tmp_path / wanted)
    assert torch._dynamo.utils.counters["inductor"]
    assert losses_in(tmp_path / "always") == pytest.approx(losses_in(tmp_path / "never"), rel=1e-4)


# ---- where it pays ---------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def forward(self, states):
        return states + 1


@pytest.fixture
def calls(monkeypatch):
    """Calls of what is compiled, in the place of a compiler."""
    made = []

    def compiler(function, **settings):
        def quick(*args):
            made.append(settings.get("dynamic"))
            return function(*args)

        return quick

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compiled, "TRIED_ON", ("cpu",))
    return made


def test_what_is_not_learnt_from_does_not_go_through_the_compiler(calls):
    layer = Layer()
    layers = CompiledLayers([layer], "always", alone(), pytest.fail)
    layers.begin(1)
    calls.clear()
    states = torch.zeros(2)
    with torch.no_grad():
        layer(states)
    layer.eval()
    layer(states)
    assert not calls
    layer.train()
    assert torch.equal(layer(states), states + 1)
    assert calls == [True]
    layers.close()
    layer(states)
    assert calls == [True]


def learn(layers, seconds, windows=UNCOUNTED + COUNTED):
    """Windows of 100 tokens, of which the first take longer."""
    for i in range(windows):
        layers.learnt(50.0 if i < UNCOUNTED else seconds, 100)


@pytest.mark.parametrize(("seconds", "stays"), [(1.5, True), (2.0, False), (3.0, False)])
def test_what_is_faster_stays(calls, seconds, stays):
    layer, said = Layer(), []
    layers = CompiledLayers([layer], "auto", alone(), said.append)
    layers.begin(1000)
    learn(layers, 2.0)
    assert "forward" in vars(layer)
    learn(layers, seconds)
    assert ("forward" in vars(layer)) is stays
    end = "they stay" if stays else "they go"
    assert said == [f"compiled layers: {2 / seconds:.2f} times as fast, 150.0 s for the first 3 windows; {end}"]
    learn(layers, 9.0, 50)
    assert ("forward" in vars(layer)) is stays
    layers.begin(10)
    assert "forward" not in vars(layer), "another stage is another matter"


def test_nothing_is_tried_where_too_little_is_left_or_on_a_cpu(calls, monkeypatch):
    layer = Layer()
    layers = CompiledLayers([layer], "auto", alone(), pytest.fail)
    layers.begin(300)  # 289 windows of 2 s are left: a tenth of them is less than a minute
    learn(layers, 2.0, 300)
    monkeypatch.setattr(compiled, "TRIED_ON", ("cuda",))
    layers.begin(10_000)
    learn(layers, 2.0, 300)
    assert not calls
    CompiledLayers([layer], "never", alone(), pytest.fail).begin(10_000)
    assert not calls


def test_a_machine_without_a_compiler_is_told(monkeypatch):
    def no_compiler(function, **settings):
        def quick(*args):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nwhere")

        return quick

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(compiled, "TRIED_ON", ("cpu",))
    layer, said = Layer(), []
    with pytest.raises(
        RunError, match=r"--train.compile always: torch cannot compile here \(no C\+\+ compiler\): leave"
    ):
        CompiledLayers([layer], "always", alone(), pytest.fail).begin(10)
    layers = CompiledLayers([layer], "auto", alone(), said.append)
    layers.begin(1000)
    learn(layers, 2.0, 100)
    assert said == ["layers are not compiled: torch cannot do it here (no C++ compiler)"]
    assert "forward" not in vars(layer)


def test_a_layer_that_cannot_be_compiled_runs_as_it_is_or_ends_the_run(monkeypatch):
    def compiler(function, **settings):
        def quick(*args):
            if settings.get("dynamic"):
                raise torch._dynamo.exc.TorchDynamoException("a call that is not known\nwhere")
            return function(*args)

        return quick

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compiled, "TRIED_ON", ("cpu",))
    pair, said = [Layer(), Layer()], []
    layers = CompiledLayers(pair, "auto", alone(), said.append)
    layers.begin(1000)
    learn(layers, 2.0)
    states = torch.zeros(2)
    assert torch.equal(pair[1](pair[0](states)), states + 2)
    assert said == ["layers are not compiled: torch cannot do it with these (a call that is not known)"]
    assert not any("forward" in vars(layer) for layer in pair)
    learn(layers, 2.0, 100)
    assert len(said) == 1
    layers = CompiledLayers(pair, "always", alone(), pytest.fail)
    layers.begin(10)
    with pytest.raises(RunError, match=r"cannot compile a layer \(a call that is not known\): leave it out"):
        pair[0](states)


def test_processes_decide_alike(calls):
    """The other one has the longer windows as they are, and the shorter ones compiled."""
    layer, said, others = Layer(), [], iter([0.04, 4.0, 0.0, 0.01, 0.0])

    def reduce(value, reduction):
        assert reduction == "sum"
        return value + next(others)

    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2, reduce=reduce)
    layers = CompiledLayers([layer], "auto", accelerator, said.append)
    layers.begin(1000)
    learn(layers, 2.0)
    learn(layers, 3.0)
    assert "1.50 times as fast" in said[0]
    assert "forward" in vars(layer)
    others = iter([0.04, 4.0, 0.0, 0.01, 1.0])
    layers.begin(1000)
    learn(layers, 2.0)
    learn(layers, 1.0)
    assert said[1:] == ["layers are not compiled: torch cannot do it on another process"]
    assert "forward" not in vars(layer)
