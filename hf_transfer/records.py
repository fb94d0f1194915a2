"""Floor 0: the records that travel from file to file, in the order in which a run makes them.

All are frozen. Arrays are numpy on the host and torch on the device; a comment under each field states axes,
units and the value that means "ignored".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # importing hf_transfer must not import any of these (0.3 s limit)
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Problem = Literal["single_label", "multi_label", "regression", "translation"]
Role = Literal["in_domain", "shifted"]


@dataclass(frozen=True)
class DomainTable:
    """All rows of a source under one set of column names, before any split."""

    rows: Dataset
    """Columns ``example_id, place, domain, split`` (all strings; ``split`` is "" where none was published)
    and ``text[, text_pair], label`` or ``source, target, source_lang, target_lang``. ``place`` is "file:row", rows
    counted from 1."""
    name: str
    """What the source is called in reports: a file stem, a folder, a Hub id or a bundled name."""
    fingerprint: str
    """sha256 over the contents of all rows, in order."""
    default_train_domains: tuple[str, ...] = ()
    """Train domains of a source that comes with a recommendation (bundled data); () where it has none."""
    notes: tuple[str, ...] = ()
    """Sentences about what was dropped or changed while reading, for the log and the report."""
    hub_id: str = ""
    """The data set's id, where it came from the Hub."""


@dataclass(frozen=True)
class Leaks:
    """Examples that occur twice where they must not."""

    exact: int = 0
    """Test examples whose text also occurs in train (of any train domain)."""
    near: int = 0
    """Further test examples with a nearly equal text in train (word-set Jaccard at or over the threshold)."""
    across_domains: int = 0
    """Test examples among those two whose twin in train belongs to another domain."""
    inside_train: int = 0
    """Train examples whose text occurred earlier in train."""
    dropped: int = 0
    """Examples removed by ``data.drop_leaks`` from train, validation and what target examples are drawn from."""


@dataclass(frozen=True)
class DomainSplits:
    """Train and validation rows of the train domains, test rows of every test domain."""

    train: Dataset
    validation: Dataset
    test: dict[str, Dataset]
    """Test rows by domain, in the order in which scores are reported: train domains first."""
    train_domains: tuple[str, ...]
    leaks: Leaks
    rule: str
    """How the splits came about: ``published``, ``hash`` or both, in words for the report."""
    notes: tuple[str, ...] = ()
    general: Dataset | None = None
    """Train rows of ``data.general_source``, to be mixed in; its domains are test domains, and none is a train
    domain."""
    general_validation: Dataset | None = None
    general_domains: tuple[str, ...] = ()
    """Domains of ``data.general_source``, with and without train rows."""

    def role(self, domain: str) -> Role:
        """``in_domain`` for the domains that were trained on, else ``shifted``."""
        return "in_domain" if domain in self.train_domains else "shifted"


@dataclass(frozen=True)
class LabelSpace:
    """What the head predicts."""

    problem: Problem
    names: tuple[str, ...] = ()
    """Class names in the order of the head's outputs; () for regression."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the loss; () for equal weights."""
    separator: str | None = None
    """What splits a label string into several labels; None where labels are lists or single."""
    source_lang: str = ""
    """Translation: the language translated from, in the checkpoint's own form; "" where it needs none."""
    target_lang: str = ""
    source_prefix: str = ""
    """Translation: what stands in front of every source."""
    tags: tuple[str, ...] = ()
    """Translation: domain names that may stand in front of a source; () without ``data.domain_tags``."""
    tokenize: str = "13a"
    """Translation: sacrebleu's tokenizer for BLEU."""

    @property
    def output_count(self) -> int:
        """Number of outputs of the head: one per class, or 1 for regression."""
        return 1 if self.problem == "regression" else len(self.names)  # none of its own in translation


@dataclass(frozen=True)
class Text:
    """The text of a run, read, split and checked, and what runs over the same text share."""

    table: DomainTable
    splits: DomainSplits
    labels: LabelSpace
    shared: dict[Any, Any] = field(default_factory=dict)
    """Encoded splits and stored features by what they depend on; filled by the first run that needs them."""


@dataclass(frozen=True)
class Pretrained:
    """An opened checkpoint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    checkpoint_id: str
    revision: str
    """Commit of a Hub checkpoint; "" for local files."""
    sha256: str
    """Over the weight files; "" where the weights are random."""
    newly_initialised: tuple[str, ...]
    """Names of parameters that the checkpoint did not hold, as transformers' loading info lists them."""
    layers: int | None = None
    """How many of the checkpoint's layers were kept (``model.layers``); None for all."""
    licence: dict[str, str] = field(default_factory=dict)
    """``license``, ``license_name`` and ``license_link`` of the checkpoint's own card; {} where none lies beside it."""


@dataclass(frozen=True)
class EncodedSplits:
    """The splits of ``DomainSplits`` as token ids."""

    train: Dataset
    """Columns ``input_ids`` (list of int), ``labels``, ``domain`` , ``example_id``, ``length`` (tokens); translation
    also
    ``decoder_input_ids``, and for what is translated ``source, reference, forced, pieces`` (see
    tasks/translation.py)."""
    validation: Dataset
    test: dict[str, Dataset]
    truncated: int
    """Examples over the limit of length, which were cut; in translation, left out of train or split up."""
    general: Dataset | None = None
    """Encoded ``DomainSplits.general``."""
    general_validation: Dataset | None = None
    notes: tuple[str, ...] = ()
    """Sentences about what was left out or split up."""
    mixture: Any = None
    """A ``batching.Mixture`` where ``train`` has general rows behind its own."""

    @property
    def epoch_size(self) -> int:
        """Examples of one pass over train."""
        return len(self.mixture or self.train)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what goes through the model at once."""

    inputs: dict[str, torch.Tensor]
    """``input_ids``, ``attention_mask`` (and ``token_type_ids``): [batch, length], padding masked with 0; translation
    also
    ``decoder_input_ids`` [batch, target length]."""
    labels: torch.Tensor
    """[batch] class ids with -100 where ignored; [batch, classes] 0/1 floats; [batch] floats; or [batch, target length]
    piece ids with -100 where ignored."""
    example_ids: tuple[str, ...]
    tokens: int
    """Real tokens, padding not counted."""
    padding_tokens: int
    target_count: int
    """Targets that carry loss: what the window's loss sum is divided by. 0 in a filler batch."""
    target_places: torch.Tensor | None = None
    """Of a translation: [targets] where in ``labels``, read as one row, the targets that carry loss are."""


@dataclass(frozen=True)
class LossSum:
    """Loss of a batch before division, so that sums over micro-batches and processes stay exact."""

    loss_sum: torch.Tensor
    """Scalar, with gradient."""
    target_count: int


@dataclass(frozen=True)
class TrainableSummary:
    """What a strategy trains."""

    trainable: int
    total: int
    names: tuple[str, ...]
    """Names of the trainable parameters."""


@dataclass(frozen=True)
class Predictions:
    """One row per example, each example exactly once over all processes."""

    example_ids: np.ndarray
    """[n] strings, unique."""
    domain_ids: np.ndarray
    """[n] strings: the domain of each example."""
    predicted: np.ndarray
    """[n] class ids, [n, classes] 0/1, or [n] floats; [n] translations as objects."""
    reference: np.ndarray
    """Same shape and meaning as ``predicted``."""
    probabilities: np.ndarray
    """[n, classes] float32; [n, 1] holding the predicted value for regression; [n, 37] float64 sufficient statistics
    of each translation (translation_scores.py), which is all that corpus scores are made of."""


@dataclass(frozen=True)
class DomainScore:
    """One score with everything that it must never travel without."""

    stage: str
    """``adapted``, or the name of a control."""
    domain: str
    role: Role
    split: str
    count: int
    """Examples scored."""
    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ShiftReport:
    """Scores of every domain and what they say together."""

    scores: tuple[DomainScore, ...]
    metric: str
    """The metric of the numbers below."""
    in_domain_mean: float
    """Unweighted mean over the in-domain test domains; nan where there are none."""
    shifted_mean: float
    """Unweighted mean over the shifted domains; nan where there are none."""
    gap: float
    """How much worse shifted domains score: positive means a loss, whichever way the metric points."""
    worst_domain: str
    comparisons: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which step was kept and by which rule."""

    rule: str
    metric: str
    step: int
    value: float


@dataclass(frozen=True)
class TrainResult:
    """What the loop leaves: the model is changed in place."""

    selection: Selection
    """Its value is that of the model as it is used, where weights are interpolated or neighbours added afterwards."""
    steps: int
    history: tuple[dict[str, Any], ...]
    """One record per validation: ``step, epoch, metric, value, seconds``."""
    train_seconds: float
    """From the first to the last optimizer step; validation and checkpoint writing excluded."""
    examples: int
    tokens: int
    padding_tokens: int
    skipped_steps: int
    """Windows whose loss or gradient was not finite, so that no step was taken."""
    stopped_early: bool
    tokens_per_micro_batch: int = 0
    """The budget in the end: as given, as measured, or halved where memory ran out; 0 where no step was taken."""
    peak_memory_bytes: int = 0
    """Most memory held by the time of the last checkpoint, in this process or in one that it goes on from; 0 without
    one."""


def not_by_the_loop(selection: Selection, seconds: float, examples: int) -> TrainResult:
    """What is said of the training of what took no optimizer step."""
    return TrainResult(
        selection=selection,
        steps=0,
        history=(),
        train_seconds=seconds,
        examples=examples,
        tokens=0,
        padding_tokens=0,
        skipped_steps=0,
        stopped_early=False,
    )


@dataclass(frozen=True)
class WindowSums:
    """What a window amounted to, over all processes."""

    loss: float = 0.0
    gradient_norm: float = 0.0
    examples: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    targets: int = 0
    stepped: bool = True
    in_search: bool = False
    """No step, as fp16's scaler still looks for its scale."""
    not_finite: tuple[str, ...] = ()
    """Ids of the examples of a window whose step was left out."""


@dataclass(frozen=True)
class RunState:
    """Everything about a training run, beside tensors, that continuing it needs."""

    step: int = 0
    """Optimizer steps done, skipped windows included, over all stages."""
    history: tuple[dict[str, Any], ...] = ()
    best_step: int = -1
    """Step of the best validation so far; -1 before the first."""
    best_value: float = float("nan")
    bad_validations: int = 0
    """Validations since the best one."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    train_seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    stopped_early: bool = False
    processes: tuple[int, ...] = ()
    """How many shared the windows, from the start on: a number for each time that it changed."""
    most_tokens: int = 0
    """Of a micro-batch, since one had no room in memory; 0 before."""
    tokens_per_micro_batch: int = 0
    """What the budget was when this was written."""
    peak_memory_bytes: int = 0
    """Most memory that the main process had held by then."""


@dataclass(frozen=True)
class Artefact:
    """What was saved and what the proof said."""

    kind: str
    """``full``, ``adapter`` or ``merged``."""
    path: str
    """Relative to the output folder."""
    proved: bool
    """A fresh process loaded it and gave the same logits."""
    largest_difference: float
    """Largest absolute difference between the two sets of logits; of translations the share of texts that differ."""
    bytes: int
    also: tuple[str, ...] = field(default=())
    """Further exported folders, relative to the output folder, proved in the same way."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The contents of its ``hf_transfer.json``: what opening it takes."""
