"""Floor 2: one file per strategy. A new strategy is a file here and a line in this table."""

from collections.abc import Callable

from hf_transfer.adapt.base import Adapted, SampleInputs, Stage, no_sample
from hf_transfer.adapt.freeze import apply_freeze
from hf_transfer.adapt.full import apply_full
from hf_transfer.adapt.lora import apply_lora
from hf_transfer.adapt.probe import apply_probe
from hf_transfer.adapt.untrained import apply_untrained
from hf_transfer.config import AdaptConfig
from hf_transfer.records import Pretrained

STRATEGY_FUNCTIONS: dict[str, Callable[[Pretrained, AdaptConfig, SampleInputs], Adapted]] = {
    "probe": apply_probe,
    "freeze": apply_freeze,
    "lora": apply_lora,
    "full": apply_full,
    "mixed": apply_full,  # on other examples
    "interpolated": apply_full,  # and part of the way back
    "knn": apply_untrained,
}


def apply_strategy(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Make ``pretrained.model`` ready to be trained as ``adapt`` says; the model is changed in place or wrapped.

    ``sample_inputs`` gives inputs of train examples to initialisations that look at data (LoRA's eva and corda).
    """
    return STRATEGY_FUNCTIONS[adapt.strategy](pretrained, adapt, sample_inputs)


__all__ = ["Adapted", "Stage", "apply_strategy"]
