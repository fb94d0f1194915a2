"""Floor 4: save what was trained so that others can open it, and prove in a fresh process that it opens.

Full models are plain transformers folders. Adapters are plain PEFT folders, plus the tokenizer and the labels; there
is no ``config.json`` beside an adapter, because transformers would then take the folder for a full model. A probe on
chosen layers is the plain folder of its body, with a linear head beside it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from hf_transfer.adapt.base import Adapted
from hf_transfer.adapt.lora import save_adapter
from hf_transfer.ctranslate2_engine import export_ctranslate2
from hf_transfer.errors import RunError
from hf_transfer.languages import find_convention, source_heads
from hf_transfer.layers import LayerProbe, cut_values
from hf_transfer.loading import EXPORT_NAME, METADATA_NAME, METADATA_SCHEMA, ONNX_NAME, LoadedModel, load
from hf_transfer.onnx_engine import export_onnx
from hf_transfer.records import Artefact, LabelSpace, Pretrained
from hf_transfer.snippets import loading_notes, onnx_notes
from hf_transfer.translating import decoding_settings

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS_PER_TIE = 8
"""Of so many translations another engine may write one differently: between equal tokens rounding decides."""
TOLERANCE = 1e-5
"""Largest difference of a logit, absolute and relative to its size, at which two models count as the same."""
ONNX_TOLERANCE = 1e-4
"""The same for another engine, whose kernels add up in another order."""


def save_artefact(
    output_dir: Path,
    adapted: Adapted,
    pretrained: Pretrained,
    labels: LabelSpace,
    task: str,
    max_length: int,
    keeps_head: bool,
    export: Collection[str],
    proof: Dataset,
    translate: Callable[[Any], list[str]] | None = None,
    store: Any = None,
) -> Artefact:
    """Save ``adapted`` as ``output_dir/model`` (and ``merged``, ``ctranslate2``, ``onnx`` where asked), each proved
    by a fresh process.

    Args:
        keeps_head: Whether the checkpoint's own head was kept.
        proof: A few rows whose logits (of translation: translations) are compared; their texts are not stored.
        translate: What a model writes, greedily, for the sources of ``proof``; where translation is the task.
        store: kNN-MT's datastore and settings, saved as ``model/knn``.

    Raises:
        RunError: the fresh process could not open it, or its logits differ by more than ``TOLERANCE`` (of ONNX
            ``ONNX_TOLERANCE``).
    """
    device = next(adapted.model.parameters()).device
    model: Any = adapted.model.to("cpu").eval()  # compared in fp32 on the CPU, wherever it was trained
    metadata = {
        "schema": METADATA_SCHEMA,
        "task": task,
        "problem": labels.problem,
        "label_names": list(labels.names),
        "max_length": max_length,
        "base_checkpoint": _from_anywhere(pretrained.checkpoint_id),
        "base_revision": pretrained.revision,
        "base_sha256": pretrained.sha256,
        "keeps_head": keeps_head,
    }
    if pretrained.layers is not None:
        metadata["base_layers"] = cut_values(model.config, pretrained.layers)
    kind = "adapter" if adapted.strategy == "lora" else "full"
    if isinstance(model, LayerProbe):
        kind = "layer probe"
        metadata["layer_probe"] = {"layers": model.layers, "final_norm": model.final_norm}
    if translate is not None:
        convention = find_convention(adapted.model.config, pretrained.tokenizer)
        (head,) = source_heads(convention, [labels.source_lang], [labels.target_lang], labels.source_prefix)
        metadata |= {
            "source_head": head,
            "source_lang": labels.source_lang,
            "target_lang": labels.target_lang,
            "source_prefix": labels.source_prefix,
            "tags": list(labels.tags),
            "decoding": decoding_settings(adapted.model),
        }
        sources: list[str] = list(proof["source"])
        written = translate(model)
        pair = [proof[0][side] or getattr(labels, side) or None for side in ("source_lang", "target_lang")]

        def prove(folder: Path, ties: int = 0) -> float:
            return _prove_translations(folder, sources, written, pair, ties, proof[0]["tag"])

    else:
        texts: list[str] = list(proof["text"])
        text_pairs = list(proof["text_pair"]) if "text_pair" in proof.column_names else None
        expected = LoadedModel(model, pretrained.tokenizer, labels, max_length).logits(texts, text_pairs)

        def prove(folder: Path, ties: int = 0) -> float:
            return _prove(folder, texts, text_pairs, expected)

    write_model(output_dir / "model", model, adapted, pretrained, metadata)
    if store is not None:
        store.datastore.save(output_dir / "model" / "knn", store.choice)
    differences = [prove(output_dir / "model")]
    also: tuple[str, ...] = ()
    merged: Any = model
    if kind == "adapter" and set(export) - {"adapter"}:
        merged = copy.deepcopy(model).merge_and_unload()
    if "merged" in export:
        write_model(output_dir / "merged", merged, None, pretrained, metadata)
        differences.append(prove(output_dir / "merged"))
        also += ("merged",)
    if "ctranslate2" in export:
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".merged-") as scratch:
            whole = output_dir / ("merged" if "merged" in also else "model")
            if merged is not model and not also:
                whole = Path(scratch, "merged")
                write_model(whole, merged, None, pretrained, metadata)
            export_ctranslate2(whole, output_dir / EXPORT_NAME)
        differences.append(prove(output_dir / EXPORT_NAME, ties=len(proof) // TEXTS_PER_TIE))
        also += (EXPORT_NAME,)
    if "onnx" in export:
        opened = LoadedModel(model, pretrained.tokenizer, labels, max_length)
        try:
            differences.append(_save_onnx(output_dir / ONNX_NAME, merged, opened, texts, text_pairs, metadata))
        except RunError as error:
            raise RunError(
                f"{error} The trained model is whole and proved in {output_dir / 'model'}; leave --publish.export onnx "
                "out to finish a run of it."
            ) from error
        also += (ONNX_NAME,)
    adapted.model.to(device)
    size = sum(path.stat().st_size for path in (output_dir / "model").rglob("*") if path.is_file())
    return Artefact(kind, "model", True, max(differences), size, also, metadata)


def write_model(
    folder: Path, model: Any, adapted: Adapted | None, pretrained: Pretrained, metadata: dict[str, Any]
) -> None:
    """Write a model, its tokenizer, ``metadata`` and loading notes beside ``folder``, then put all of it there.

    ``adapted`` is None for a merged model, which is saved like a full one.
    """
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        if adapted is not None and adapted.strategy == "lora":
            revision = pretrained.revision or None
            save_adapter(temporary, model, adapted.initial_update, metadata["base_checkpoint"], revision)
            if metadata["task"] == "translation":  # PEFT would leave the base's own to whoever opens it
                model.generation_config.save_pretrained(temporary)
        else:
            model.config._name_or_path = ""  # a path of this machine says nothing to others
            model.save_pretrained(temporary)
        pretrained.tokenizer.save_pretrained(temporary)
        (temporary / METADATA_NAME).write_text(json.dumps(metadata, indent=2, ensure_ascii=False), encoding="utf-8")
        notes = loading_notes(metadata, is_adapter=(temporary / "adapter_config.json").exists())
        (temporary / "README.md").write_text(notes, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, ValueError, SafetensorError) as error:  # a full disk is the last one while tensors are written
        raise RunError(f"the model could not be saved to {folder} ({error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_onnx(
    folder: Path,
    model: Any,
    expected_of: LoadedModel,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    metadata: dict[str, Any],
) -> float:
    """Export ``model`` and prove it; returns the largest difference of a logit from those of ``expected_of``.

    A traced graph may have taken the shape of what it was traced with for a constant. So all of ``texts`` go through it
    together and each by itself, and with them one that is longer than any.
    """
    beside = {METADATA_NAME: json.dumps(metadata, indent=2, ensure_ascii=False), "README.md": onnx_notes(metadata)}
    export_onnx(model, expected_of.tokenizer, folder, beside)
    more = [*texts, " ".join(texts)]
    more_pairs = [*text_pairs, " ".join(text_pairs)] if text_pairs is not None else None
    expected = _logits_in_batches(expected_of, more, more_pairs, True)
    return _prove(folder, more, more_pairs, expected, ONNX_TOLERANCE, True)


def _logits_in_batches(
    model: LoadedModel, texts: Sequence[str], text_pairs: Sequence[str] | None, alone: bool
) -> np.ndarray:
    """[texts, outputs] logits; with ``alone`` [2 x texts, outputs], of all together and then of each by itself."""
    found = [model.logits(texts, text_pairs)]
    if alone:
        found += [
            model.logits([text], [text_pairs[i]] if text_pairs is not None else None) for i, text in enumerate(texts)
        ]
    return np.concatenate(found)


def _from_anywhere(checkpoint_id: str) -> str:
    """A folder's full path, so that an adapter finds its base from any working directory; anything else as it is."""
    folder = Path(checkpoint_id).expanduser()
    return str(folder.resolve()) if folder.is_dir() else checkpoint_id


def _prove_translations(
    folder: Path,
    texts: Sequence[str],
    expected: Sequence[str],
    languages: Sequence[str | None],
    ties: int = 0,
    tag: str = "",
) -> float:
    """Load ``folder`` in a fresh, offline process and compare what it writes, greedily; the share that differs.

    As many as ``ties`` may. ``tag``: that of the domain of all texts, or "".
    """
    request = {
        "path": str(folder.resolve()),
        "sources": list(texts),
        "languages": list(languages),
        "domain": tag or None,
    }
    found = _ask_fresh_process(folder, request)
    differing = [i for i, (theirs, ours) in enumerate(zip(found, expected, strict=True)) if theirs != ours]
    if len(differing) > ties:
        raise RunError(
            f"{folder} was saved and opens, but a fresh process translates {len(differing)} of {len(expected)} texts "
            "in another way. It must not be used."
        )
    return len(differing) / max(1, len(expected))


def _prove(
    folder: Path,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    expected: np.ndarray,
    tolerance: float = TOLERANCE,
    alone: bool = False,
) -> float:
    """Load ``folder`` in a fresh, offline process and compare logits; returns the largest difference.

    ``expected``: as ``_logits_in_batches`` gives them.
    """
    request = {
        "path": str(folder.resolve()),
        "texts": list(texts),
        "text_pairs": list(text_pairs) if text_pairs is not None else None,
        "alone": alone,
    }
    found = np.array(_ask_fresh_process(folder, request), dtype=np.float32)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=tolerance, atol=tolerance):
        far = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
        raise RunError(
            f"{folder} was saved and opens, but a fresh process gives other logits (shapes {found.shape} and "
            f"{expected.shape}, largest difference {far:.3g}, allowed {tolerance}). It must not be used."
        )
    return float(np.abs(found - expected).max())


def _ask_fresh_process(folder: Path, request: dict[str, Any]) -> Any:
    """What a fresh process answers to ``request`` (see ``_answer``)."""
    request = request | {"threads": torch.get_num_threads()}
    # the launcher's variables would make the child wait for its siblings; a GPU would round differently
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCELERATE_", "TORCHELASTIC", "FSDP"))
        and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer.json")
        child = subprocess.run(
            [sys.executable, "-m", "hf_transfer.artefact", str(answer)],
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            said = child.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise RunError(f"{folder} was saved, but a fresh process cannot open it. It said: {said[0]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def _answer(answer: Path) -> None:
    """The fresh process: open, predict, write the logits or the translations."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    if "sources" in request:
        translator = load(request["path"], device="cpu")
        written = translator.translate(request["sources"], *request["languages"], beams=1, domain=request["domain"])
        answer.write_text(json.dumps(written), encoding="utf-8")
        return
    opened = load(request["path"], device="cpu")
    logits = _logits_in_batches(opened, request["texts"], request["text_pairs"], request["alone"])
    answer.write_text(json.dumps(logits.tolist()), encoding="utf-8")


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
