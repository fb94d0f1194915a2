"""hf_transfer: adapt pretrained transformers to your own text, and learn what it is worth outside its domain.

``run(RunConfig(...))`` does everything; ``load(path).predict(texts)`` uses what it saved. Public names are imported
on first use, so that ``import hf_transfer`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_transfer.version import __version__

if TYPE_CHECKING:
    from hf_transfer.adapt import apply_strategy
    from hf_transfer.command_line import load_config
    from hf_transfer.compare_runs import CompareResult, compare
    from hf_transfer.config import (
        AdaptConfig,
        BudgetConfig,
        CompareConfig,
        DataConfig,
        EvaluateConfig,
        ModelConfig,
        PublishConfig,
        ReportConfig,
        RunConfig,
        TrainConfig,
    )
    from hf_transfer.errors import InputError, RunError
    from hf_transfer.loading import LoadedModel, load
    from hf_transfer.page import RunResult, run
    from hf_transfer.planning import plan
    from hf_transfer.pretrained import find_checkpoint, load_pretrained
    from hf_transfer.publishing import push
    from hf_transfer.rebuild import rebuild_report
    from hf_transfer.sources import load_source
    from hf_transfer.splits import split_by_domain

_HOMES = {
    "run": "page",
    "RunResult": "page",
    "plan": "planning",
    "compare": "compare_runs",
    "CompareResult": "compare_runs",
    "rebuild_report": "rebuild",
    "CompareConfig": "config",
    "BudgetConfig": "config",
    "ReportConfig": "config",
    "load": "loading",
    "push": "publishing",
    "LoadedModel": "loading",
    "RunConfig": "config",
    "DataConfig": "config",
    "ModelConfig": "config",
    "AdaptConfig": "config",
    "TrainConfig": "config",
    "EvaluateConfig": "config",
    "PublishConfig": "config",
    "load_config": "command_line",
    "InputError": "errors",
    "RunError": "errors",
    "load_source": "sources",
    "split_by_domain": "splits",
    "find_checkpoint": "pretrained",
    "load_pretrained": "pretrained",
    "apply_strategy": "adapt",
}

__all__ = [
    "__version__",
    "run",
    "RunResult",
    "plan",
    "compare",
    "CompareResult",
    "rebuild_report",
    "CompareConfig",
    "BudgetConfig",
    "ReportConfig",
    "load",
    "push",
    "LoadedModel",
    "RunConfig",
    "DataConfig",
    "ModelConfig",
    "AdaptConfig",
    "TrainConfig",
    "EvaluateConfig",
    "PublishConfig",
    "load_config",
    "InputError",
    "RunError",
    "load_source",
    "split_by_domain",
    "find_checkpoint",
    "load_pretrained",
    "apply_strategy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(f"hf_transfer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
