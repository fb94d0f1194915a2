"""Floor 0: a command line and its YAML file become a config.

Reading order: the task's defaults, then the YAML file of ``--config``, then the flags, wherever they stand. Unknown
names are refused with the nearest known ones. jsonargparse is imported only here, and only when a value needs it; it
reads numbers, switches and choices, while text is taken as it is written, because YAML would make "#" or "~" nothing.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hf_transfer.config import TASKS, RunConfig, check_config, chosen_values, defaults_of, from_flat, to_yaml
from hf_transfer.errors import InputError
from hf_transfer.fields import fits, flatten, in_words, is_list, is_optional_text, kinds_of, nearest, options

Config = TypeVar("Config", bound=RunConfig)
SWITCH_WORDS = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}

# Hugging Face users' names -> ours
RENAMED = {
    "learning_rate": "train.learning_rate",
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.window_size",
    "train_batch_size": "train.window_size",
    "batch_size": "train.window_size",
    "gradient_accumulation_steps": "train.tokens_per_micro_batch",
    "torch_compile": "train.compile",
    "auto_find_batch_size": "train.tokens_per_micro_batch",
    "per_device_eval_batch_size": "evaluate.tokens_per_batch",
    "model_name_or_path": "model.checkpoint",
    "model_name": "model.checkpoint",
    "model_revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "dataset_name": "data.source",
    "dataset_config_name": "data.subset",
    "train_file": "data.source",
    "text_column_name": "data.text_column",
    "text_column_names": "data.text_column",
    "label_column_name": "data.label_column",
    "max_seq_length": "data.max_length",
    "max_length": "data.max_length",
    "max_train_samples": "data.max_train_examples",
    "warmup_ratio": "train.warmup_fraction",
    "warmup_steps": "train.warmup_fraction",
    "lr_scheduler_type": "train.schedule",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_gradient_norm",
    "label_smoothing_factor": "train.label_smoothing",
    "eval_steps": "train.validation_steps",
    "eval_strategy": "train.validation_steps",
    "evaluation_strategy": "train.validation_steps",
    "early_stopping_patience": "train.patience",
    "save_steps": "train.checkpoint_steps",
    "save_strategy": "train.checkpoint_steps",
    "save_total_limit": "train.keep_checkpoints",
    "resume_from_checkpoint": "train.resume",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "mixed_precision": "train.precision",
    "metric_for_best_model": "evaluate.metrics",
    "load_best_model_at_end": "evaluate.selection",
    "lora_r": "adapt.lora_rank",
    "lora_rank": "adapt.lora_rank",
    "lora_alpha": "adapt.lora_alpha",
    "lora_dropout": "adapt.lora_dropout",
    "target_modules": "adapt.lora_targets",
    "lora_target": "adapt.lora_targets",
    "use_dora": "adapt.lora_use_dora",
    "use_rslora": "adapt.lora_use_rslora",
    "overwrite_output_dir": "overwrite",
    "data_seed": "seed",
}


def load_config(argv: Sequence[str], prog: str, defaults: Mapping[str, Any] | None = None) -> RunConfig:
    """``read_command_line`` for a single run."""
    return read_command_line(argv, prog, RunConfig, defaults)


def read_command_line(
    argv: Sequence[str], prog: str, record: type[Config], defaults: Mapping[str, Any] | None = None
) -> Config:
    """Read a command line into a checked config: a ``RunConfig``, or another ``record`` such as ``CompareConfig``.

    ``defaults`` are a recipe's own (dotted names). ``--help`` and ``--print_config`` print and raise SystemExit(0).

    Raises:
        InputError: unknown names (with the nearest known ones) and unreadable values, of flags and file together;
            else all settings that cannot work.
    """
    kinds = kinds_of(record)
    flags, switches, file_name, problems = _read_flags(argv, kinds)
    from_file: dict[str, Any] = {}
    if file_name is not None:
        from_file, file_problems = _read_yaml(file_name, kinds)
        problems += file_problems
    given = defaults or {}
    chosen = {**given, **from_file, **flags}
    task, source = str(chosen.get("task", record().task)), chosen.get("data.source")
    values = {**flatten(record()), **(defaults_of(task, record, source) if task in TASKS else {}), **given}
    if {"-h", "--help"} & set(switches) and not problems:
        _build_parser(prog, values, record).parse_args(["--help"])
    read, value_problems = _read_values(from_file | flags, kinds, lambda: _build_parser(prog, values, record))
    problems += value_problems
    if problems:
        raise InputError(problems)
    config = check_config(from_flat(values | read, record))
    if "--print_config" in switches:
        print(to_yaml(config), end="")
        if told := chosen_values(config):  # as a comment: read back, a written rate would hold for every strategy
            print(f"# null is chosen by task and strategy: {told}")
        raise SystemExit(0)
    return config


def _unknown(name: str, known: Iterable[str], shown: str) -> str:
    renamed = RENAMED.get(name) or RENAMED.get(name.rpartition(".")[2])
    if renamed:
        return f"{shown} is called --{renamed} here: run with --help for its meaning."
    close = nearest(name, list(known))
    hint = f"did you mean {', '.join('--' + item for item in close.split(', '))}?" if close else "see --help for all."
    return f"{shown} is not a setting: {hint}"


def _read_flags(
    argv: Sequence[str], kinds: Mapping[str, Any]
) -> tuple[dict[str, str | None], list[str], str | None, list[str]]:
    """Values by name as they are written (None for a null in place of text), the switches ``--help`` and
    ``--print_config``, the file's name, and problems."""
    given: dict[str, str | None] = {}
    switches: list[str] = []
    problems: list[str] = []
    file_name = None
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word in ("-h", "--help", "--print_config"):
            switches.append(word)
            continue
        if not word.startswith("--"):
            problems.append(f"{word!r} stands alone: settings are written --section.field value.")
            continue
        name, equals, value = word[2:].partition("=")
        if name != "config" and name not in kinds:
            problems.append(_unknown(name, kinds, f"--{name}"))
            if not equals and queue and not queue[0].startswith("--"):
                queue.pop(0)
            continue
        if not equals:
            if queue and not queue[0].startswith("--"):
                value = queue.pop(0)
            elif kinds.get(name) is bool:
                value = "true"
            else:
                example = in_words(kinds[name]) if name in kinds else "the path of a YAML file"
                problems.append(f"--{name} needs a value: {example}.")
                continue
        if name != "config":
            given[name] = None if value == "null" and is_optional_text(kinds[name]) else value
        elif file_name is None:
            file_name = value
        else:
            problems.append(f"--config stands twice ({file_name}, {value}): put all settings into one file.")
    return given, switches, file_name, problems


def _read_yaml(file_name: str, kinds: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Dotted names and values of a YAML file (text as written, None, or lists and mappings of these); problems."""
    import yaml

    class TextLoader(yaml.SafeLoader):
        """Reads no numbers, dates and switches: the label ``no`` stays ``no``, the revision ``0012`` stays ``0012``."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                    problem = f"`{key.value}` stands twice, and the second would replace the first"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            return super().construct_mapping(node, deep)

    TextLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        loaded = yaml.load(Path(file_name).read_text(encoding="utf-8"), TextLoader)
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"--config {file_name} cannot be read ({error}): give the path of a YAML file."]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        cause = getattr(error, "problem", None) or " ".join(str(error).split())
        return {}, [f"--config {file_name}{line} is not readable YAML: {cause}."]
    except (ValueError, RecursionError) as error:  # a value that its tag does not fit, a thousand open brackets
        return {}, [f"--config {file_name} is not readable YAML: {error}."]
    if loaded is None:
        return {}, []
    if not isinstance(loaded, dict):
        return {}, [f"--config {file_name} holds a {type(loaded).__name__}: write `section:` and fields below it."]
    flat: dict[str, Any] = {}
    problems = []
    sections = {name.split(".")[0] for name in kinds if "." in name}
    for key, value in loaded.items():
        if key not in sections:
            flat[str(key)] = value
        elif value is None or isinstance(value, dict):
            flat.update({f"{key}.{name}": item for name, item in (value or {}).items()})
        else:
            problems.append(f"{file_name}: `{key}` must hold fields, found {value!r}.")
    problems += [_unknown(name, kinds, f"{file_name}: `{name}`") for name in flat if name not in kinds]
    return {name: value for name, value in flat.items() if name in kinds}, problems


def _read_values(
    given: Mapping[str, Any], kinds: Mapping[str, Any], build_parser: Callable[[], Any]
) -> tuple[dict[str, Any], list[str]]:
    """The ``given`` values as what their fields hold; a problem for each unreadable one."""
    values: dict[str, Any] = {}
    to_parse: dict[str, str] = {}
    unreadable = []
    for name, raw in given.items():
        kind = kinds[name]
        if is_list(kind) or kind is str or is_optional_text(kind):
            values[name] = _read_list(raw, kind) if is_list(kind) else raw
            if not fits(values[name], kind):
                unreadable.append(name)
        elif kind is bool and isinstance(raw, str):
            to_parse[name] = SWITCH_WORDS.get(raw.lower(), raw)
        else:
            to_parse[name] = raw if isinstance(raw, str) else json.dumps(raw, default=str)
    parser: Any = build_parser() if to_parse else None  # half a second, mostly for its import
    parsed: dict[str, Any] = {}
    while to_parse:
        try:
            parsed = parser.parse_args([f"--{name}={raw}" for name, raw in to_parse.items()]).as_dict()
            break
        except Exception as error:  # jsonargparse wraps whatever went wrong in argparse's or its own error type
            # it stops at the first one: note that, and ask about the others
            found = re.search(r'Parser key "([^"]+)"', str(error))
            if not found or found.group(1) not in to_parse:
                raise InputError(" ".join(str(error).split())) from None
            del to_parse[found.group(1)]
            unreadable.append(found.group(1))
    for name in to_parse:
        section, _, last = name.rpartition(".")
        values[name] = parsed[section][last] if section else parsed[last]
    return values, [_unreadable(name, given[name], kinds[name]) for name in given if name in unreadable]


def _unreadable(name: str, raw: Any, kind: Any) -> str:
    close = difflib.get_close_matches(str(raw), options(kind), 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    found = "null" if raw is None else raw if isinstance(raw, str) else json.dumps(raw, default=str)
    return f"--{name} is unreadable: expected {in_words(kind)}, found {found!r}.{hint} See --help for its meaning."


def _read_list(raw: Any, kind: Any) -> Any:
    """``raw`` as a tuple of what the list ``kind`` holds; what is none comes back as it is."""
    items = _split_list(raw)
    if int not in typing.get_args(kind) or not isinstance(items, tuple):
        return items
    whole = [re.fullmatch(r"\s*-?\d+\s*", str(item)) is not None for item in items]
    return tuple(int(item) for item in items) if all(whole) else raw


def _split_list(raw: Any) -> Any:
    """``books,dvd`` and ``[books, dvd]`` as a tuple of names; what is neither comes back as it is.

    Brackets are YAML, so that a quoted name may hold a comma: ``["Home, Garden", dvd]``.
    """
    import yaml

    if raw is None:
        return ()
    if isinstance(raw, str) and raw.strip().startswith("["):
        try:
            raw = yaml.load(raw, yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError):
            return raw
    elif isinstance(raw, str):
        items = [item.strip() for item in raw.split(",")]
        quoted = [len(item) > 1 and item[0] == item[-1] and item[0] in "\"'" for item in items]
        raw = [item[1:-1] if is_quoted else item for item, is_quoted in zip(items, quoted, strict=True)]
        return tuple(item for item in raw if item)
    return tuple(raw) if isinstance(raw, list) else raw


def _build_parser(prog: str, values: Mapping[str, Any], record: type[RunConfig]) -> Any:
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        exit_on_error=False,
        usage="%(prog)s [--config FILE] [--section.field VALUE ...]",
        description="Adapt a pretrained transformer to your text, score it in and outside its training domain.",
        epilog="A YAML file given by --config sets defaults; flags win over it. Exit: 0 done, 1 failed, 2 refused.",
    )
    parser.add_argument("--print_config", action="store_true", help="Print the resolved config as YAML and stop.")
    parser.add_class_arguments(record)
    parser.set_defaults(dict(values))
    return parser
