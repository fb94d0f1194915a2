"""Floor 2: one file per strategy. A new strategy is a file here and a line in this table."""

from collections.abc import Callable

from hf_transfer.adapt.base import Adapted, Stage
from hf_transfer.adapt.freeze import apply_freeze
from hf_transfer.adapt.full import apply_full
from hf_transfer.adapt.lora import apply_lora
from hf_transfer.adapt.probe import apply_probe
from hf_transfer.config import AdaptConfig
from hf_transfer.records import Pretrained

STRATEGY_FUNCTIONS: dict[str, Callable[[Pretrained, AdaptConfig], Adapted]] = {
    "probe": apply_probe,
    "freeze": apply_freeze,
    "lora": apply_lora,
    "full": apply_full,
}


def apply_strategy(pretrained: Pretrained, adapt: AdaptConfig) -> Adapted:
    """Make ``pretrained.model`` ready to be trained as ``adapt`` says; the model is changed in place or wrapped."""
    return STRATEGY_FUNCTIONS[adapt.strategy](pretrained, adapt)


__all__ = ["Adapted", "Stage", "apply_strategy"]
