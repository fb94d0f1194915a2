"""Probe: the body stays as it is, in eval mode; only the head learns."""

from hf_transfer.adapt.base import (
    Adapted,
    SampleInputs,
    Stage,
    find_parts,
    make_adapted,
    no_sample,
)
from hf_transfer.config import AdaptConfig
from hf_transfer.layers import LayerProbe
from hf_transfer.records import Pretrained


def apply_probe(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Train the head on the frozen body (Alain and Bengio 2016).

    With ``adapt.probe_layers`` the head is another one, on the states of chosen layers, and there is nothing for the
    loop to train: it is solved afterwards (layer_runs.py).
    """
    parts = find_parts(pretrained)
    if adapt.probe_layers is not None:
        probe = LayerProbe(pretrained.model.base_model, pretrained.model.config.num_labels)
        return make_adapted(probe, "probe", parts, (), freezes_modules=False)
    stages = (Stage("probe", parts.head, as_probe=True),)
    return make_adapted(pretrained.model, "probe", parts, stages, freezes_modules=True)
