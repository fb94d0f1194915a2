"""What is done to a model before it learns."""

from test_train import Silent, open_tiny
from tiny import make_checkpoint

from hf_transfer.before_training import run_all_layers


def test_several_processes_run_all_layers(tmp_path):
    pretrained, _, _ = open_tiny(make_checkpoint(tmp_path, "bart"))
    pretrained.model.model.encoder.layerdrop = 0.5
    said = Silent()
    run_all_layers(pretrained.model, said)
    assert not any(getattr(module, "layerdrop", 0.0) for module in pretrained.model.modules())
    assert len(said.notes) == 1
    run_all_layers(pretrained.model, said)
    assert len(said.notes) == 1
