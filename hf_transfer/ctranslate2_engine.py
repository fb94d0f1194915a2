"""Floor 3: a trained model as CTranslate2 runs it: quicker on processors, and without torch where it is put to work.

What an exported folder holds: CTranslate2's own files (``model.bin``, ``config.json``, ``shared_vocabulary.json``),
``transformers/`` with config, generation settings and tokenizer, and ``hf_transfer.json``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.batching import sorted_batches
from hf_transfer.decoding import TOKENS_PER_BATCH, answer_tokens, most_new_tokens
from hf_transfer.errors import InputError, RunError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUANTIZATIONS = ("float32", "float16", "bfloat16", "int16", "int8", "int8_float32", "int8_float16", "int8_bfloat16")
STOCK_FOLDER = "transformers"
"""Where an export keeps what transformers reads; CTranslate2's ``config.json`` would take its place otherwise."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
# Settings of generation that CTranslate2 has no equal of: an export would write other translations in silence.
_WITHOUT_EQUAL = (
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "min_length",
    "min_new_tokens",
    "sequence_bias",
    "suppress_tokens",
)


def check_export(config: PretrainedConfig, generation: Any, quantization: str | None = None) -> None:
    """Refuse, before anything is trained, what could not be exported afterwards.

    Raises:
        InputError: the package is missing, an architecture without a conversion, or generation settings without equal.
    """
    problems = []
    try:
        _ctranslate2()
    except InputError as error:
        problems += error.problems
    if quantization is not None and quantization not in QUANTIZATIONS:
        problems.append(f"quantization {quantization!r} is not known: use one of {', '.join(QUANTIZATIONS)}.")
    if config.model_type not in _FAMILIES:
        problems.append(
            f"CTranslate2 export: {config.model_type} is not among the architectures that are converted "
            f"({', '.join(sorted(_FAMILIES))}): leave --publish.export out."
        )
    elif config.model_type == "marian" and not config.share_encoder_decoder_embeddings:
        problems.append(
            "CTranslate2 export: this Marian checkpoint has a vocabulary for each side, which is not converted: leave "
            "--publish.export out."
        )
    unlike = [name for name in _WITHOUT_EQUAL if getattr(generation, name, None)]
    if unlike:
        problems.append(
            f"CTranslate2 export: it has no equal of {', '.join(unlike)} in generation_config.json: remove them, or "
            "leave --publish.export out."
        )
    if problems:
        raise InputError(problems)


def export_ctranslate2(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    output_folder: Path,
    quantization: str | None = None,
) -> None:
    """Convert ``model``, which was saved as ``model_folder`` and opened from there, to ``output_folder``.

    The folder appears complete or not at all, in place of what was there; it needs nothing outside itself. An adapter is
    merged first, by the caller.

    Args:
        quantization: One of ``QUANTIZATIONS``; None keeps fp32.

    Raises:
        InputError: see ``check_export``; a tokenizer whose ids are not the model's rows.
        RunError: the folder could not be written.
    """
    check_export(model.config, model.generation_config, quantization)
    spec = _FAMILIES[model.config.model_type]()(model, tokenizer)
    _check_vocabulary(spec.get_source_vocabulary_size()[0], spec, tokenizer, model_folder)
    partial = output_folder.with_name(output_folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        spec.validate()
        spec.optimize(quantization=quantization)
        (partial / STOCK_FOLDER).mkdir(parents=True)
        spec.save(str(partial))
        for path in sorted(model_folder.iterdir()):
            if path.name == "hf_transfer.json":
                shutil.copyfile(path, partial / path.name)
            elif path.is_file() and path.name != "README.md" and not path.name.endswith(WEIGHT_SUFFIXES):
                shutil.copyfile(path, partial / STOCK_FOLDER / path.name)
        shutil.rmtree(output_folder, ignore_errors=True)
        partial.rename(output_folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"the CTranslate2 export to {output_folder} failed ({error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
