"""Floor 4: what of a finished run travels to the Hub: an allow-list, made safe for others, with its hashes.

Of the run's folder only the model (or adapter, with its merged form), its ONNX form, the picture of the scores and
facts from results.json are sent. Files that others could use to read the data, or that name places of this machine, are
written anew without that; anything unknown in the model's folder stops the push.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hf_transfer.errors import InputError
from hf_transfer.layers import HEAD_NAME, SETTINGS_NAME
from hf_transfer.loading import METADATA_NAME, read_metadata
from hf_transfer.onnx_engine import MODEL_NAME, WEIGHTS_NAME
from hf_transfer.report import read_results
from hf_transfer.report.card import make_card
from hf_transfer.report.card_metadata import head_problems, hub_base, leaderboard_files

_WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors")
_MODEL_FILES = {
    *("config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json"),
    *(METADATA_NAME, HEAD_NAME, SETTINGS_NAME),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "target_vocab.json", "source.spm", "target.spm", "spiece.model"),
    *("sentencepiece.bpe.model", "tokenizer.model", "spm.model", "bpe.codes"),
}
"""Names that a model, an adapter or a tokenizer is saved under."""
_EXPORTS = {"merged": (), "onnx": (MODEL_NAME, WEIGHTS_NAME)}
"""Further forms of a model that are sent, in a folder of that name, and the files that only they have."""
_FACTS = ("README.md", "results.json", "config.yaml", "shift.csv", "scores.svg")
_PICTURE = PurePosixPath("figures/scores.svg")
_OWN_NOTES = "README.md"  # beside a saved model; on the Hub the card stands in its place
_PIECE = 1 << 20


@dataclass(frozen=True)
class SentFile:
    """A file as it will be on the Hub."""

    path: str
    """In the repository."""
    content: Path | bytes
    size: int
    sha256: str
    git_sha1: str
    """Of the git blob: what the Hub names a file by that is not stored as a large one."""


@dataclass(frozen=True)
class Parcel:
    """Everything that a push sends, and nothing else."""

    files: tuple[SentFile, ...]
    notes: tuple[str, ...] = ()
    """Sentences about what was chosen."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)


def pack(folder: Path, repo_id: str, revision: str | None = None) -> Parcel:
    """What is to be sent of the finished run in ``folder``; files are read and hashed, nothing is sent.

    Args:
        repo_id, revision: Where it will be, for the lines on the card that open it.

    Raises:
        InputError: no finished run with a saved and proved model; files that do not belong to it, symbolic links; an
            adapter of a checkpoint that nobody else has; or a card that the Hub would refuse.
    """
    results = _results_to_send(folder)
    root, notes = _root_folder(folder, results)
    contents: dict[str, Path | bytes] = dict(_model_files(folder / root, ""))
    for export, further in _EXPORTS.items():
        if export in results["artefact"]["also"]:
            contents |= _model_files(folder / export, f"{export}/", further)
    if "ctranslate2" in results["artefact"]["also"]:
        notes += ("The CTranslate2 form is not sent: a run with --publish.export ctranslate2 makes it from the model.",)
    picture = folder / _PICTURE
    if picture.is_file() and not _is_linked(folder, picture):
        contents["scores.svg"] = picture
    card = make_card(results, repo_id, revision, "scores.svg" if "scores.svg" in contents else None)
    refused = [
        f"The Hub would refuse the card of {folder}: {problem}. It comes from results.json: repeat the run."
        for problem in head_problems(card)
    ]
    if refused:
        raise InputError(refused)
    contents["README.md"] = card.encode()
    contents["results.json"] = (json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    contents["config.yaml"] = _yaml(results["config"])
    contents["shift.csv"] = _shift_table(results).encode()
    contents |= {path: text.encode() for path, text in leaderboard_files(results).items()}
    files = [_hashed(_checked(path), contents[path]) for path in sorted(contents)]
    return Parcel(tuple(files), notes)


def is_ours(path: str) -> bool:
    """Whether a push writes files of this name; results of benchmarks aside, which others may have added."""
    export, slash, name = path.partition("/")
    if slash:
        return export in _EXPORTS and _is_model_file(name, _EXPORTS[export])
    return path in _FACTS or _is_model_file(path)


def was_pushed(path: str, there: Collection[str]) -> bool:
    """Whether an earlier push left ``path`` among the files that are ``there``: it has one of our names, and the file
    that only we write lies beside it. Others add an ONNX form under the same names."""
    folder, slash, _ = path.rpartition("/")
    return is_ours(path) and METADATA_NAME in there and folder + slash + METADATA_NAME in there


def _is_model_file(name: str, further: Sequence[str] = ()) -> bool:
    return name in _MODEL_FILES or name in further or _WEIGHTS.fullmatch(name) is not None


def _results_to_send(folder: Path) -> dict[str, Any]:
    """results.json without what it holds of single examples (ids, labels, predictions).

    Raises:
        InputError: not of a single run, or of one without a model that was proved to load.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the output folder of a finished run.")
    results = read_results(folder)
    if results.get("kind") == "comparison":
        raise InputError(f"{folder} is a comparison: push the run that you choose, as in {folder}/runs/full-s0.")
    if not results["artefact"].get("proved"):
        raise InputError(f"{folder} has no model that was proved to load: push a run that saved one.")
    artefact = dict(results["artefact"])
    if not artefact.get("metadata"):  # of an earlier version
        artefact["metadata"] = read_metadata(folder / "model")
    artefact["metadata"] = _shown_metadata(artefact["metadata"], results)
    return {name: value for name, value in results.items() if name != "examples"} | {"artefact": artefact}


def _shown_metadata(metadata: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """``hf_transfer.json`` with no path of this machine in it."""
    base = metadata["base_checkpoint"]
    if not hub_base(results) and not base.startswith(("package:", "scratch:")):
        base = re.split(r"[\\/]", base.rstrip("\\/"))[-1]
    return dict(metadata) | {"base_checkpoint": base}


def _root_folder(folder: Path, results: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Which of the run's folders others open; an adapter of a local checkpoint goes merged or not at all.

    Where the merged model goes alone, ``results`` is changed to say so.
    """
    artefact, base = results["artefact"], results["artefact"]["metadata"]["base_checkpoint"]
    if (folder / "model" / "knn").exists():
        raise InputError(
            f"{folder}/model holds the datastore of kNN-MT, from which the translations that it was built from can be "
            "read: it is not published."
        )
    if artefact["kind"] != "adapter" or hub_base(results) or base.startswith("package:"):
        return "model", ()
    if "merged" not in artefact["also"]:
        raise InputError(
            f"{folder} holds an adapter of {base}, a folder of this machine that nobody else has: adapt again with "
            "--publish.export merged, and the whole model is pushed."
        )
    results["artefact"] = artefact | {
        "kind": "full",
        "path": "merged",
        "also": [name for name in artefact["also"] if name != "merged"],
    }
    return "merged", (f"The adapter stays here, because nobody else has {base}: the merged model is sent.",)


def _model_files(folder: Path, prefix: str, further: Sequence[str] = ()) -> Iterator[tuple[str, Path | bytes]]:
    """Files of a saved model, and those of ``further`` names, by their path in the repository.

    Raises:
        InputError: the folder is missing, or holds links or files that no saved model has.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: push a run whose model is there.")
    found = sorted(folder.rglob("*"))
    links = [path for path in (folder, *found) if path.is_symlink()]
    if links:
        raise InputError(f"{_listed(links)}: symbolic links are not sent; put the file itself there.")
    names = [path.relative_to(folder).as_posix() for path in found if not path.is_dir()]
    unknown = [name for name in names if not _is_model_file(name, further) and name != _OWN_NOTES]
    if unknown:
        raise InputError(
            f"{folder} holds {_listed(unknown)}, which is no part of a saved model and may be private: move it away."
        )
    for name in names:
        if name == METADATA_NAME:
            yield prefix + name, _without_places(folder)
        elif name != _OWN_NOTES:
            yield prefix + name, folder / name


def _without_places(folder: Path) -> bytes:
    metadata = read_metadata(folder)
    base = metadata["base_checkpoint"]
    if not base.startswith("package:") and not metadata["base_revision"]:
        metadata["base_checkpoint"] = re.split(r"[\\/]", base.rstrip("\\/"))[-1]
    return json.dumps(metadata, indent=2, ensure_ascii=False).encode()


def _is_linked(folder: Path, path: Path) -> bool:
    """Whether ``path`` is a link, or lies behind one inside ``folder``."""
    return any(part.is_symlink() for part in (path, *path.parents) if part != folder and folder in part.parents)


def _listed(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _checked(path: str) -> str:
    """``path`` if it stays inside the repository."""
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or {"", ".", "..", ".git"} & set(parts) or not path.isprintable():
        raise InputError(f"{path!r} is no name for a file in a repository: rename it.")
    return path


def _yaml(config: Mapping[str, Any]) -> bytes:
    """The settings, folders outside the run by their names only, as ``--config`` reads them."""
    from huggingface_hub.utils import yaml_dump

    return yaml_dump(dict(config), sort_keys=False).encode()


def _shift_table(results: Mapping[str, Any]) -> str:
    """Scores of the model and its controls, a line each."""
    names = ("stage", "domain", "role", "split", "count", "metric", "value", "low", "high")
    table = io.StringIO()
    # names in quotes: Python before 3.11.9 and 3.12.3 sets none around a carriage return, and readers end the row there
    writer = csv.DictWriter(table, names, extrasaction="ignore", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(results["scores"])
    return table.getvalue()


def _hashed(path: str, content: Path | bytes) -> SentFile:
    """One pass over the content for both hashes."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for piece in _pieces(content):
        sha256.update(piece)
        sha1.update(piece)
    return SentFile(path, content, size, sha256.hexdigest(), sha1.hexdigest())


def _pieces(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
