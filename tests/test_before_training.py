"""What is done to a model before it learns."""

import pytest
import torch
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


def test_under_activation_checkpointing_the_backward_ends_where_nothing_learns_any_more(tmp_path):
    model = open_tiny(make_checkpoint(tmp_path))[0].model.train()
    lowest, upper = model.base_model.encoder.layer
    for parameter in (*model.base_model.embeddings.parameters(), *lowest.parameters()):
        parameter.requires_grad_(False)
    needs = []
    for layer in (lowest, upper):
        layer.register_forward_hook(lambda module, args, output: needs.append(output.requires_grad))
    with activation_checkpointing(model, True):
        model(input_ids=torch.tensor([[2, 8, 9, 3]])).logits.sum().backward()
    assert needs[:2] == [False, True]
    assert all(p.grad is not None for p in upper.parameters())
    assert not model.get_input_embeddings()._forward_hooks


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
