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
from hf_transfer.records import Pretrained


def apply_probe(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Train the head on the frozen body (Alain and Bengio 2016)."""
    parts = find_parts(pretrained)
    stages = (Stage("probe", parts.head, as_probe=True),)
    return make_adapted(pretrained.model, "probe", parts, stages, freezes_modules=True)
