"""Floor 1: the files of a checkpoint that somebody else made: weights are safetensors, and no name leads elsewhere.

transformers opens by itself what some of these files name: the shards in an index, the weights in config.json, an
adapter that lies beside a model, a kernel of attention. Its newest release looks at most of these names too; what is
looked at here holds with every release that works.

A folder that is given may hold symbolic links: the snapshots of the Hub's cache consist of them, and whoever links the
files of their own disk knows what they do. What is refused are names written by others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_transfer.errors import InputError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX_NAME = "model.safetensors.index.json"
Find = Callable[[str], Path | None]
"""Where a file of the checkpoint lies, by its name; None where it has none of that name."""


def is_plain_name(name: object) -> bool:
    """Whether ``name`` is that of a file in a folder, and not a way to another place."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def check_weight_files(name: str, folder: Path) -> None:
    """Refuse the checkpoint ``name`` in ``folder`` if it has no safetensors.

    Raises:
        InputError: there are none, or only pickled weights.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise InputError(
            f"--model.checkpoint {name} holds only pickled weights ({', '.join(pickles)}), which can run code when "
            "opened. Convert them to safetensors first (save_pretrained in a sandbox does it)."
        )
    raise InputError(f"--model.checkpoint {name} holds no .safetensors file: give a folder that save_pretrained wrote.")


def check_no_adapter(name: str, find: Find) -> None:
    """Refuse the checkpoint ``name`` if transformers would take it for an adapter.

    Raises:
        InputError: it would be put on the base that it names, which nobody chose.
    """
    if find("adapter_config.json") is not None:
        raise InputError(
            f"--model.checkpoint {name}: adapter_config.json makes it an adapter, which would be put on a base that "
            "nobody chose: merge it into its base first (merge_and_unload)."
        )


def check_names(name: str, find: Find) -> None:
    """Refuse the checkpoint ``name`` if its files name others that are pickled, lie elsewhere or bring code.

    Raises:
        InputError: all that was found, together.
    """
    config = _read(name, find, "config.json")
    problems = [
        f"config.json asks for attention by {wanted!r}, which is code from the Hub: remove that line"
        for wanted in _attention(config)
        if "/" in wanted
    ]
    weights, indices = config.get("transformers_weights"), [INDEX_NAME]
    if weights is not None and not _holds_tensors(weights, (".safetensors", ".safetensors.index.json")):
        problems.append(f"config.json names {weights!r} as its weights, which is no safetensors file in its folder")
    elif isinstance(weights, str) and weights.endswith(".index.json"):
        indices.append(weights)
    for index in dict.fromkeys(indices):
        shards = _read(name, find, index).get("weight_map", {})
        wrong = sorted({str(shard) for shard in _values(shards) if not _holds_tensors(shard, (".safetensors",))})
        if wrong:
            problems.append(f"{index} names {_few(wrong)}, which are no safetensors files in its folder")
    fast = _read(name, find, "tokenizer_config.json").get("fast_tokenizer_files", [])
    wrong = sorted({str(file) for file in _values(fast) if not is_plain_name(file)})
    if wrong:
        problems.append(f"tokenizer_config.json names {_few(wrong)}, which are no files in its folder")
    if problems:
        raise InputError([f"--model.checkpoint {name}: {problem}." for problem in problems])


def _holds_tensors(file: object, endings: tuple[str, ...]) -> bool:
    return isinstance(file, str) and is_plain_name(file) and file.endswith(endings)


def _attention(config: Any) -> Iterator[str]:
    """What a config, and the configs inside it, say of how attention is computed."""
    for key, value in config.items():
        if key.endswith("attn_implementation"):
            yield from (item for item in ([value] if isinstance(value, str) else _values(value)) if item)
        elif isinstance(value, dict):
            yield from _attention(value)


def _values(items: Any) -> list[Any]:
    """Of an object or a list; anything else is one value that should not be there."""
    if isinstance(items, dict):
        return list(items.values())
    return items if isinstance(items, list) else [items]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read(name: str, find: Find, file: str) -> dict[str, Any]:
    """A JSON file of the checkpoint; {} where there is none."""
    path = find(file)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--model.checkpoint {name}: {file} cannot be read ({error}): save the folder again."
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"--model.checkpoint {name}: {file} is no JSON object: save the folder again.")
    return found
