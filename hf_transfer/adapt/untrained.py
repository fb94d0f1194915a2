"""No training: the model stays as it is, because something beside it learns (kNN-MT's datastore)."""

from hf_transfer.adapt.base import Adapted, SampleInputs, find_parts, make_adapted, no_sample
from hf_transfer.config import AdaptConfig
from hf_transfer.records import Pretrained


def apply_untrained(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Nothing learns: there is no stage to train."""
    return make_adapted(pretrained.model, adapt.strategy, find_parts(pretrained), (), freezes_modules=True)
