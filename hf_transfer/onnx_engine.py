"""Floor 3: a trained classifier as ONNX Runtime runs it: one file, which needs neither torch nor a model's own code.

An exported folder holds ``model.onnx``, config (with the labels), tokenizer and ``hf_transfer.json``. The weights are
inside ``model.onnx``; where they take more than 1.5 GB they lie beside it in ``model.onnx.data``, because a protobuf
file ends at 2 GB. Batch and length stay open in the graph: it is traced with sizes that have a name and no value.
"""

from __future__ import annotations

import functools
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_transfer.errors import InputError, RunError
from hf_transfer.eval_mode import in_eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_NAME = "model.onnx"
WEIGHTS_NAME = MODEL_NAME + ".data"
"""Where the weights lie that a protobuf file cannot hold."""
OUTPUT_NAME = "logits"
TRACED_LENGTH = 24
"""Tokens of the rows that a model is traced with: fewer than any checkpoint has positions, so that no slice of its
table of positions takes all of it, which would fix the length."""
EXTRA = 'pip install "hf-transfer-learning[onnx]"'


@dataclass(frozen=True)
class OnnxOutput:
    """What an exported classifier puts out."""

    logits: torch.Tensor
    """[batch, outputs] fp32."""


def is_onnx_export(folder: Path) -> bool:
    """Whether ``export_onnx`` wrote ``folder``; others put a ``model.onnx`` beside a checkpoint's own weights."""
    return (folder / MODEL_NAME).is_file() and (folder / "hf_transfer.json").is_file()


def check_onnx(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, before anything is trained, what could not be exported afterwards: ``model`` is traced, and not saved.

    Raises:
        InputError: a package of the extra is missing, or the architecture does what cannot be traced.
    """
    _exporter()
    try:
        with in_eval_mode(model):
            _traced(model, _example(tokenizer))
    except Exception as error:  # torch.export raises whatever the code of a model makes it stumble over
        raise InputError(
            f"--publish.export onnx: {_architecture(model)} cannot be traced ({_in_one_line(error)}): leave it out, "
            "or take another checkpoint."
        ) from error


def export_onnx(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, beside: Mapping[str, str]) -> None:
    """Write ``model``, in eval mode and fp32 on the CPU, to ``folder``, with batch and length left open.

    It appears complete or not at all, in place of what was there. An adapter is merged first, by the caller.

    Args:
        beside: further files, text by name.

    Raises:
        InputError: a package of the extra is missing.
        RunError: the model cannot be traced, or the folder not be written.
    """
    _exporter()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _traced(model, _example(tokenizer)).save(str(partial / MODEL_NAME))  # beyond 1.5 GB also WEIGHTS_NAME
        config: Any = model.config
        config._name_or_path = ""  # a path of this machine says nothing to others
        config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for name, content in beside.items():
            (partial / name).write_text(content, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception as error:  # as in check_onnx; and a disk that is full
        raise RunError(f"the ONNX export to {folder} failed ({_in_one_line(error)}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class OnnxEngine:
    """An exported classifier and its tokenizer; called with the tensors of a batch, it gives their logits."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        """Open ``folder`` on the CPU.

        Raises:
            InputError: ONNX Runtime is missing, the folder is damaged, or another device is asked for.
        """
        from transformers import AutoTokenizer

        runtime = _runtime()
        if device not in (None, "cpu"):
            raise InputError(
                f"--device {device}: the ONNX export is run on the CPU here; leave --device out, or open the model "
                "itself, which torch runs there."
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; they are raised as well
        try:
            self._session = runtime.InferenceSession(
                str(folder / MODEL_NAME), options, providers=["CPUExecutionProvider"]
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # of a damaged file, both raise whatever they stumble over
            raise InputError(
                f"{folder} could not be opened by ONNX Runtime ({_in_one_line(error)}): export the model again."
            ) from None
        self._names = [item.name for item in self._session.get_inputs()]

    def __call__(self, **inputs: torch.Tensor) -> OnnxOutput:
        """Logits of a batch: ``input_ids``, ``attention_mask`` and what else the graph asks for, [batch, length]."""
        (logits,) = self._session.run([OUTPUT_NAME], {name: inputs[name].numpy() for name in self._names})
        return OnnxOutput(torch.from_numpy(logits))


class _Logits(nn.Module):
    """A classifier as a function of tensors in a fixed order, since a graph's inputs have one."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """[batch, outputs] in fp32 from the inputs [batch, length] in the order of ``names``."""
        logits: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits.float()


def _example(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """What a model is traced with, [2, length] each: a padded row and a full one, as all inputs that ``tokenizer``
    makes."""
    rows = tokenizer(["a", "a " * TRACED_LENGTH], truncation=True, max_length=TRACED_LENGTH)
    return dict(tokenizer.pad(rows, padding_side="right", return_attention_mask=True, return_tensors="pt"))


def _traced(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The ONNX program of ``model``; nothing is written."""
    names = list(inputs)
    sizes = ({0: "batch", 1: "length"},) * len(names)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch's exporter names packages that it would use and does not need
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch and its exporter will change some day
            return torch.onnx.export(
                _Logits(model, names),
                tuple(inputs.values()),
                dynamo=True,
                input_names=names,
                output_names=[OUTPUT_NAME],
                dynamic_shapes=(sizes,),
                verbose=False,
            )
    finally:
        logging.disable(disabled)


def _architecture(model: nn.Module) -> str:
    config: Any = model.config
    return str(config.model_type)


def _in_one_line(error: Exception) -> str:
    """What a foreign error says first, or the one that it goes back to: torch's exporter wraps them in advice."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@functools.cache
def _exporter() -> None:
    """The packages that writing takes, all of the extra."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--publish.export onnx needs packages that are not installed ({error}): {EXTRA}.") from None
    _runtime()


@functools.cache
def _runtime() -> Any:
    """The package that reading takes."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX Runtime is not installed ({error}): {EXTRA}.") from None
    return onnxruntime
