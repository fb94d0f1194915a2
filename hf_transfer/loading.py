"""Floor 4: open what a run saved and predict with it.

Full models are opened by plain transformers, adapters by PEFT on the base that they name; the only file of our own
is ``hf_transfer.json``, which remembers what neither of them stores with an adapter: labels and the base's origin.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.batching import sorted_batches
from hf_transfer.config import ModelConfig
from hf_transfer.errors import InputError
from hf_transfer.layers import SETTINGS_NAME, open_probe
from hf_transfer.on_device import Room
from hf_transfer.onnx_engine import OnnxEngine, is_onnx_export
from hf_transfer.records import LabelSpace, Pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METADATA_NAME = "hf_transfer.json"
EXPORT_NAME = "ctranslate2"
"""Folder of a run that holds its CTranslate2 export."""
ONNX_NAME = "onnx"
"""Folder of a run that holds its ONNX export."""
ENGINES = ("torch", "ctranslate2", "onnx")
METADATA_SCHEMA = "hf-transfer/artefact/1"


@dataclass(frozen=True)
class TextPredictions:
    """Predictions for texts, in their order."""

    labels: list[Any]
    """A name per text; a tuple of names (multi-label); or a number (regression)."""
    probabilities: np.ndarray
    """[texts, classes]; [texts, 1] values for regression."""
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A saved model, ready to predict."""

    model: PreTrainedModel | OnnxEngine
    tokenizer: PreTrainedTokenizerBase
    labels: LabelSpace
    max_length: int

    def predict(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, tokens_per_batch: int = 8192
    ) -> TextPredictions:
        """Labels and probabilities for ``texts`` (and the second texts of pairs), sorted by length while at work."""
        from hf_transfer.tasks import TASKS

        task: Any = TASKS["classification"]
        if not texts:
            return TextPredictions([], np.zeros((0, self.labels.output_count), np.float32), self.labels.names)
        probabilities = self._run(texts, text_pairs, task.read_outputs, tokens_per_batch)
        decided = task.decide(probabilities, self.labels)
        return TextPredictions(name_predictions(decided, self.labels), probabilities, self.labels.names)

    def logits(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> np.ndarray:
        """[texts, classes] raw outputs in fp32: what the proof of an artefact compares."""
        return self._run(texts, text_pairs, lambda outputs, _: outputs.logits.float(), 8192)

    def _pads(self) -> bool:
        """Whether layers see the padding of a batch."""
        from hf_transfer.flattened import find_stacks

        return isinstance(self.model, OnnxEngine) or not find_stacks(self.model).flat

    def _outputs(self, inputs: Any) -> Any:
        """One forward pass; ``inputs`` as the tokenizer pads them."""
        import torch

        from hf_transfer.flattened import flattened

        if isinstance(self.model, OnnxEngine):
            return self.model(**inputs)
        device = next(self.model.parameters()).device
        with torch.no_grad(), flattened(self.model, inputs["attention_mask"]):
            return self.model(**inputs.to(device))

    def _run(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None, read: Callable[..., Any], tokens_per_batch: int
    ) -> np.ndarray:
        """What ``read`` keeps of each forward pass, in the order of ``texts``."""
        pairs = list(text_pairs) if text_pairs is not None else None
        encoded = self.tokenizer(list(texts), pairs, truncation=True, max_length=self.max_length)
        _fill_empty(encoded, self.tokenizer)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        batches = sorted_batches(lengths, tokens_per_batch, evenly=self._pads())

        def forward(chosen: np.ndarray) -> np.ndarray:
            columns = {name: [values[i] for i in chosen] for name, values in encoded.items()}
            inputs = self.tokenizer.pad(columns, padding_side="right", return_attention_mask=True, return_tensors="pt")
            return read(self._outputs(inputs), self.labels).cpu().numpy()

        room = Room()
        kept = [part for rows in batches for _, part in room.run(forward, rows, lengths[rows[0]])]
        return np.concatenate(kept)[np.argsort(np.concatenate(batches), kind="stable")]


def _fill_empty(encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give an empty text one token, in place, where the tokenizer adds none of its own (GPT-2's): a model reads no
    row without any."""
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    token = next((number for number in tokens if number is not None), 0)
    for row, ids in enumerate(encoded["input_ids"]):
        if not ids:
            for name, values in encoded.items():
                values[row] = [{"input_ids": token, "attention_mask": 1}.get(name, 0)]


def name_predictions(decided: np.ndarray, labels: LabelSpace) -> list[Any]:
    """Class ids as names, rows of 0/1 as tuples of names, values as floats."""
    if labels.problem == "regression":
        return [float(value) for value in decided]
    if labels.problem == "multi_label":
        return [tuple(name for name, on in zip(labels.names, row, strict=True) if on) for row in decided]
    return [labels.names[i] for i in decided]


def load(path: str | Path, device: str | None = None, engine: str | None = None) -> Any:
    """Open a saved artefact: a full model's folder, a merged one, an adapter's, an export, or the run's output folder.

    Returns a ``LoadedModel``, which predicts; of a model that translates a ``Translator``, which translates.

    Args:
        device: Where to put it, ``cuda:1`` say; by default a GPU if there is one.
        engine: ``torch``, or ``ctranslate2`` or ``onnx`` for the export of a run or of its model; by default torch,
            unless ``path`` itself is an export.

    Raises:
        InputError: nothing there that can be opened with that engine, weights in pickle form, or no such device.
    """
    import torch

    folder = Path(path)
    engine = engine_of(folder, engine)
    if engine == "ctranslate2":
        return _load_export(folder, _export_of(folder), device)
    if engine == "onnx":
        return _load_onnx(folder, _onnx_of(folder), device)
    check_device(device)
    if (folder / "results.json").is_file() and (folder / "model").is_dir():
        folder = folder / "model"
    if not folder.is_dir():
        raise InputError(f"{path} is not a folder: give the model folder of a run, or the run's output folder.")
    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter and not (folder / "adapter_model.safetensors").is_file():  # PEFT would unpickle an adapter_model.bin
        raise InputError(f"{folder} holds no adapter_model.safetensors: pickled adapters are not opened.")
    if _translates(folder):
        return _load_translator(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if is_adapter:
        model, tokenizer, labels, max_length = _load_adapter(folder)
    elif (folder / SETTINGS_NAME).is_file():
        model, tokenizer, labels, max_length = _load_probe(folder)
    elif (folder / "config.json").is_file():
        model, tokenizer, labels, max_length = _load_full(folder)
    else:
        raise InputError(f"{path} holds neither config.json nor adapter_config.json: it is not a saved model.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedModel(model.to(device).eval(), tokenizer, labels, max_length)


def engine_of(path: str | Path, engine: str | None) -> str:
    """The engine that ``load`` opens ``path`` with.

    Raises:
        InputError: there is no such engine, or torch is asked to open an export.
    """
    if engine not in (None, *ENGINES):
        raise InputError(f"there is no engine {engine!r}: use {', '.join(ENGINES[:-1])} or {ENGINES[-1]}.")
    folder = Path(path)
    exports = {"ctranslate2": _export_of(folder), "onnx": _onnx_of(folder)}
    own = next((name for name, export in exports.items() if export == folder), "torch")
    if engine == "torch" and own != "torch":
        kind = {"ctranslate2": "a CTranslate2", "onnx": "an ONNX"}[own]
        raise InputError(f"{path} is {kind} export, which torch cannot open: leave --engine torch out.")
    return engine or own


def check_device(device: str | None) -> None:
    """See that torch can use ``device`` here, where one is named.

    Raises:
        InputError: it is no device that torch knows, or not there.
    """
    import torch

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--device {device} cannot be used here ({cause}): try cpu, or leave it out.") from None


def _export_of(folder: Path) -> Path | None:
    """The CTranslate2 export that ``folder`` is, or that lies in it, or beside it if it is the model of a run."""
    from hf_transfer.ctranslate2_engine import is_export

    return next((place for place in _places(folder, EXPORT_NAME) if is_export(place)), None)


def _onnx_of(folder: Path) -> Path | None:
    """The same of an ONNX export."""
    return next((place for place in _places(folder, ONNX_NAME) if is_onnx_export(place)), None)


def _places(folder: Path, name: str) -> tuple[Path, ...]:
    """Where the export ``name`` of ``folder`` may lie."""
    return (folder, folder / name, *([folder.parent / name] if folder.name == "model" else []))


def _load_export(folder: Path, export: Path | None, device: str | None) -> Any:
    from hf_transfer.translating import open_export

    if export is None:
        model = folder / "model" if (folder / "model").is_dir() else folder
        if model.is_dir() and not _translates(model):
            raise InputError(f"{folder} does not translate, and CTranslate2 does nothing else: leave --engine out.")
        raise InputError(
            f"{folder} has no CTranslate2 export: adapt with --publish.export ctranslate2, or leave --engine out."
        )
    metadata = read_metadata(export) if (export / METADATA_NAME).is_file() else {}
    opened = open_export(export, _labels_of(metadata), metadata.get("max_length"), device)
    return replace(opened, **_decoding_of(metadata))


def _load_onnx(folder: Path, export: Path | None, device: str | None) -> LoadedModel:
    if export is None:
        model = folder / "model" if (folder / "model").is_dir() else folder
        if model.is_dir() and (_export_of(folder) is not None or _translates(model)):
            raise InputError(f"{folder} translates, and ONNX exports only classify: leave --engine onnx out.")
        raise InputError(f"{folder} has no ONNX export: adapt with --publish.export onnx, or leave --engine out.")
    metadata = read_metadata(export)
    opened = OnnxEngine(export, device)
    labels = LabelSpace(metadata["problem"], tuple(metadata["label_names"]))
    return LoadedModel(opened, opened.tokenizer, labels, metadata["max_length"])


def _decoding_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Beams and length penalty that a model was scored with; {} of one that does not say."""
    said = metadata.get("decoding")
    known = said if isinstance(said, dict) else {}
    kinds: dict[str, Any] = {"beams": int, "length_penalty": (int, float)}
    return {name: known[name] for name, kind in kinds.items() if isinstance(known.get(name), kind)}


def _labels_of(metadata: dict[str, Any]) -> LabelSpace:
    """Languages, prefix and tags of a model that translates."""
    return LabelSpace(
        "translation",
        source_lang=metadata.get("source_lang", ""),
        target_lang=metadata.get("target_lang", ""),
        source_prefix=metadata.get("source_prefix", ""),
        tags=tuple(metadata.get("tags", ())),
    )


def _translates(folder: Path) -> bool:
    """Whether the folder's metadata, or the architecture of a model that came without, is of translation."""
    if (folder / METADATA_NAME).is_file():
        return read_metadata(folder)["task"] == "translation"
    if not (folder / "config.json").is_file():
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(name) for name in config.get("architectures") or ()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / 'config.json'} is unreadable ({error}): save the model again.") from None
    return any(name.endswith(("ForConditionalGeneration", "MTModel")) for name in architectures)


def _load_translator(folder: Path, device: str) -> Any:
    from transformers import GenerationConfig

    from hf_transfer.pretrained import find_checkpoint, load_pretrained
    from hf_transfer.tasks import TASKS
    from hf_transfer.translating import make_translator

    metadata = read_metadata(folder) if (folder / METADATA_NAME).is_file() else {}
    is_adapter = (folder / "adapter_config.json").is_file()
    wanted = ModelConfig(checkpoint=str(folder))
    if is_adapter:
        wanted = ModelConfig(checkpoint=metadata["base_checkpoint"], revision=metadata["base_revision"] or None)
    auto_class = TASKS["translation"].auto_class
    opened = load_pretrained(wanted, find_checkpoint(wanted), auto_class, {}, keep_head=True, seed=0)
    model: Any = opened.model
    if is_adapter:
        _check_base(folder, metadata, opened)
        model = _put_adapter(folder, opened)
        model.generation_config = GenerationConfig.from_pretrained(folder)  # PEFT keeps the base's
        model.base_model.model.generation_config = model.generation_config
    model = model.to(device)
    labels = _labels_of(metadata)
    found = make_translator(model, opened.tokenizer, labels, metadata.get("max_length"), folder, opened.sha256)
    return replace(found, **_decoding_of(metadata))


Opened = tuple[Any, "PreTrainedTokenizerBase", LabelSpace, int]


def _load_full(folder: Path) -> Opened:
    """A plain transformers folder, ours or anybody's."""
    from hf_transfer.pretrained import NOT_WHOLE, find_checkpoint, load_pretrained, longest_input, refuse_new_weights
    from hf_transfer.tasks import TASKS

    wanted = ModelConfig(checkpoint=str(folder))
    auto_class = TASKS["classification"].auto_class
    opened = load_pretrained(wanted, find_checkpoint(wanted), auto_class, {}, keep_head=True, seed=0)
    without_head = (
        "it is a body without a head, and predictions from a random one mean nothing. Adapt it first, as "
        "--model.checkpoint of a run."
    )
    in_body = all(name.startswith(f"{opened.model.base_model_prefix}.") for name in opened.newly_initialised)
    refuse_new_weights(str(folder), opened.newly_initialised, NOT_WHOLE if in_body else without_head)
    config = opened.model.config
    problems = {"multi_label_classification": "multi_label", "regression": "regression"}
    # as transformers itself takes a single output of which nothing is said: of one class, nothing could be told
    unsaid = "regression" if config.num_labels == 1 else "single_label"
    problem: Any = problems.get(config.problem_type, "single_label") if config.problem_type else unsaid
    names = () if problem == "regression" else tuple(config.id2label[i] for i in range(config.num_labels))
    wanted_length = read_metadata(folder)["max_length"] if (folder / METADATA_NAME).is_file() else 512
    max_length = longest_input(opened.model, opened.tokenizer, wanted_length)
    return opened.model, opened.tokenizer, LabelSpace(problem, names), max_length


def _load_probe(folder: Path) -> Opened:
    """A plain checkpoint of a body, with a linear head on its states beside it."""
    from hf_transfer.pretrained import NOT_WHOLE, find_checkpoint, load_pretrained, longest_input, refuse_new_weights

    wanted = ModelConfig(checkpoint=str(folder))
    opened = load_pretrained(wanted, find_checkpoint(wanted), "AutoModel", {}, keep_head=True, seed=0)
    refuse_new_weights(str(folder), opened.newly_initialised, NOT_WHOLE)
    metadata = read_metadata(folder)
    labels = LabelSpace(metadata["problem"], tuple(metadata["label_names"]))
    max_length = longest_input(opened.model, opened.tokenizer, metadata["max_length"])
    return open_probe(folder, opened.model), opened.tokenizer, labels, max_length


def _load_adapter(folder: Path) -> Opened:
    """A PEFT folder of ours, on the base that it names."""
    from hf_transfer.pretrained import find_checkpoint, load_pretrained
    from hf_transfer.tasks import TASKS

    if not (folder / METADATA_NAME).is_file():
        raise InputError(
            f"{folder} has no {METADATA_NAME}, so its labels are unknown: open it with "
            "PeftModel.from_pretrained(base, folder) on a base that has the right labels."
        )
    metadata = read_metadata(folder)
    labels = LabelSpace(metadata["problem"], tuple(metadata["label_names"]))
    task = TASKS[metadata["task"]]
    wanted = ModelConfig(
        checkpoint=metadata["base_checkpoint"],
        revision=metadata["base_revision"] or None,
        layers=metadata.get("base_layers", {}).get("num_hidden_layers"),
    )
    base = load_pretrained(
        wanted, find_checkpoint(wanted), task.auto_class, task.head(labels), metadata["keeps_head"], seed=0
    )
    _check_base(folder, metadata, base)
    return _put_adapter(folder, base), base.tokenizer, labels, metadata["max_length"]


def _check_base(folder: Path, metadata: dict[str, Any], base: Pretrained) -> None:
    if metadata["base_sha256"] and base.sha256 != metadata["base_sha256"]:
        raise InputError(
            f"{folder} was trained on weights with sha256 {metadata['base_sha256']}, but {base.checkpoint_id} now has "
            f"{base.sha256}: get the revision that it was trained on."
        )


def _put_adapter(folder: Path, base: Pretrained) -> Any:
    """``base.model`` with the adapter of ``folder``."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():  # PEFT asks for it by a name that transformers has given up
            warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing`")
            return PeftModel.from_pretrained(base.model, folder)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # torch says RuntimeError for wrong shapes
        raise InputError(f"{folder} is damaged or not an adapter of {base.checkpoint_id} ({error}).") from None


METADATA_KINDS = {
    "task": str,
    "problem": str,
    "label_names": list,
    "max_length": int,
    "base_checkpoint": str,
    "base_revision": str,
    "base_sha256": str,
    "keeps_head": bool,
}


def read_metadata(folder: Path) -> dict[str, Any]:
    """The contents of ``hf_transfer.json``; raises InputError where it is not one."""
    path = folder / METADATA_NAME
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is unreadable ({error}): save the artefact again.") from None
    if not isinstance(metadata, dict) or metadata.get("schema") != METADATA_SCHEMA:
        raise InputError(f"{path} is not of schema {METADATA_SCHEMA}: it was written by something else.")
    wrong = [name for name, kind in METADATA_KINDS.items() if not isinstance(metadata.get(name), kind)]
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} missing or of the wrong kind: save the artefact again.")
    return metadata
