"""Full fine-tuning: every parameter learns."""

from hf_transfer.adapt.base import (
    Adapted,
    SampleInputs,
    Stage,
    find_parts,
    make_adapted,
    no_sample,
    with_head_first,
)
from hf_transfer.config import AdaptConfig
from hf_transfer.records import Pretrained


def apply_full(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Train everything, after the head alone where ``adapt.head_first`` asks for it."""
    parts = find_parts(pretrained)
    stages: tuple[Stage, ...] = (Stage("full", (*parts.body, *parts.head)),)
    if adapt.head_first:
        stages = with_head_first(stages, parts, adapt.head_first_epochs)
    return make_adapted(pretrained.model, "full", parts, stages, freezes_modules=False)
