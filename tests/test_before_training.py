"""What is done to a model before it learns."""

import pytest
from test_train import Silent, open_tiny
from tiny import make_checkpoint

from hf_transfer.before_training import activation_checkpointing, run_all_layers
from hf_transfer.errors import RunError


def computing_again(model):
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


def test_activation_checkpointing_ends_with_training_also_where_that_fails(tmp_path):
    model = open_tiny(make_checkpoint(tmp_path))[0].model
    with pytest.raises(ValueError, match="in training"), activation_checkpointing(model, True):
        assert computing_again(model)
        raise ValueError("in training")
    assert not computing_again(model)
    with activation_checkpointing(model, False):
        assert not computing_again(model)


def test_an_architecture_without_activation_checkpointing_is_named_with_a_remedy(tmp_path, monkeypatch):
    model = open_tiny(make_checkpoint(tmp_path))[0].model
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    wanted = r"--train.activation_checkpointing: bert does not offer it; turn it off\."
    with pytest.raises(RunError, match=wanted), activation_checkpointing(model, True):
        pass


def test_several_processes_run_all_layers(tmp_path):
    pretrained, _, _ = open_tiny(make_checkpoint(tmp_path, "bart"))
    pretrained.model.model.encoder.layerdrop = 0.5
    said = Silent()
    run_all_layers(pretrained.model, said)
    assert not any(getattr(module, "layerdrop", 0.0) for module in pretrained.model.modules())
    assert len(said.notes) == 1
    run_all_layers(pretrained.model, said)
    assert len(said.notes) == 1
