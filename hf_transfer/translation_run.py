"""Floor 4: what a run of translation has that others have not: a vocabulary of its own, a datastore, written texts."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from hf_transfer.adapt import Adapted
from hf_transfer.batching import sorted_batches
from hf_transfer.config import AdaptConfig, ModelConfig, RunConfig
from hf_transfer.errors import InputError
from hf_transfer.interpolation import TradeOff, choose_interpolation, start_weights
from hf_transfer.knn import Datastore, KnnChoice, knn_logits
from hf_transfer.layer_runs import LayersTold, is_unsolved, solve_probe
from hf_transfer.pretrained import longest_input
from hf_transfer.records import DomainSplits, EncodedSplits, LabelSpace, Predictions, Pretrained, Text, TrainResult
from hf_transfer.shift import split_predictions
from hf_transfer.tasks import TaskFunctions
from hf_transfer.tasks.translation import tag_of

if TYPE_CHECKING:
    from hf_transfer.step_log import ProgressBar

SCRATCH = re.compile(r"scratch:marian-\w+")
TOKENS_PER_DATASTORE_BATCH = 4096


@dataclass(frozen=True)
class Neighbours:
    """kNN-MT's datastore and the settings chosen for it."""

    datastore: Datastore
    choice: KnnChoice

    def facts(self) -> dict[str, Any]:
        """As results.json tells of it."""
        facts = dataclasses.asdict(dataclasses.replace(self.choice, table=()))
        facts.pop("table")
        return facts | {"stored_tokens": len(self.datastore)}


@dataclass(frozen=True)
class TranslationExtra:
    """What a strategy found out or made beside the model."""

    trade_off: TradeOff | None = None
    store: Neighbours | None = None
    layers: LayersTold = field(default_factory=LayersTold)


def learns_vocabulary(config: RunConfig) -> bool:
    """Whether the checkpoint is ``scratch:marian-SIZE``, a shape without a vocabulary."""
    return config.task == "translation" and SCRATCH.fullmatch(config.model.checkpoint) is not None


def with_vocabulary(config: RunConfig, text: Text) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model's config with ``scratch:marian-SIZE`` as a folder: a vocabulary learnt from train, and a shape; and
    what there is to tell of the vocabulary."""
    if not learns_vocabulary(config):
        return config.model, ()
    from hf_transfer.vocabulary import read_notices, scratch_folder

    train = text.splits.train
    folder = scratch_folder(
        config.model.checkpoint.removeprefix("scratch:"),
        train["source"][:],
        train["target"][:],
        Path(config.output_dir) / "vocabulary",
        pieces=config.model.vocabulary_size,
        source_lang=text.labels.source_lang,
        target_lang=text.labels.target_lang,
        seed=config.seed,
    )
    return dataclasses.replace(config.model, checkpoint=f"scratch:{folder}"), read_notices(folder)


@contextmanager
def no_vocabulary_left(config: RunConfig) -> Iterator[None]:
    """Take a vocabulary away again that ``with_vocabulary`` has written for a run that is then refused.

    Only what this run has made goes: the vocabulary, and folders on the way to it that are then empty.
    """
    folder = Path(config.output_dir) / "vocabulary"
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        yield
    except InputError:
        if folder in made and not (folder.parent / "config.yaml").exists():  # else the run had begun
            shutil.rmtree(folder, ignore_errors=True)
            for path in made[1:]:
                with suppress(OSError):  # another process was quicker, or there is more in it
                    path.rmdir()
        raise


def draw_validation(rows: Dataset, labels: LabelSpace, config: RunConfig) -> Dataset:
    """The validation rows by which a step is chosen: all, or as many as are translated while training."""
    count = config.evaluate.validation_examples
    if labels.problem != "translation" or not count or len(rows) <= count:
        return rows
    drawn = np.random.default_rng(config.seed).permutation(len(rows))[:count]
    return rows.select(np.sort(drawn))


def quicker(functions: TaskFunctions) -> TaskFunctions:
    """``functions`` with greedy search, where texts are written: what training is watched by."""
    if functions.translate is None:
        return functions
    return dataclasses.replace(functions, translate=partial(functions.translate, beams=1))


def start_of(model: nn.Module, adapt: AdaptConfig) -> dict[str, torch.Tensor]:
    """The weights that a strategy needs again after the loop; {} for most."""
    return start_weights(model) if adapt.strategy == "interpolated" else {}


def finish_strategy(
    adapted: Adapted,
    trained: TrainResult,
    start: Mapping[str, torch.Tensor],
    encoded: EncodedSplits,
    functions: TaskFunctions,
    validate_on: Callable[..., Callable[[Any], float]],
    pretrained: Pretrained,
    labels: LabelSpace,
    config: RunConfig,
    higher_is_better: bool,
    shared: dict[Any, Any],
    accelerator: Accelerator,
    progress: ProgressBar,
) -> tuple[Adapted, TaskFunctions, TrainResult, TranslationExtra]:
    """Do what a strategy has left for after the loop; for most that is nothing.

    ``interpolated`` walks back towards ``start``, ``knn`` builds its datastore, a probe on chosen layers gets its head.
    The validation score of the result is then that of the model as it is used from here on.

    Args:
        validate_on: makes, of encoded rows and functions, what scores a model on them.
        shared: what the runs over the same text share.
    """
    extra, name = TranslationExtra(), config.adapt.strategy
    if is_unsolved(adapted.model):
        metric = trained.selection.metric
        adapted, trained, told = solve_probe(
            adapted, encoded, functions, pretrained, labels, config, metric, shared, accelerator
        )
        progress.note(told.notes[0])
        return adapted, functions, trained, TranslationExtra(layers=told)
    value = trained.selection.value
    if name == "interpolated":
        validate, general = validate_on(encoded.validation), encoded.general_validation
        trade_off = choose_interpolation(
            adapted.model, start, config.adapt, higher_is_better, validate, validate_on(general) if general else None
        )
        extra, value = TranslationExtra(trade_off=trade_off), trade_off.value
    elif name == "knn":
        functions, extra = with_datastore(adapted, encoded, functions, pretrained, config, accelerator, progress)
        value = validate_on(encoded.validation, functions)(adapted.model)
    selection = dataclasses.replace(trained.selection, value=value)
    return adapted, functions, dataclasses.replace(trained, selection=selection), extra


def with_datastore(
    adapted: Adapted,
    encoded: EncodedSplits,
    functions: TaskFunctions,
    pretrained: Pretrained,
    config: RunConfig,
    accelerator: Accelerator,
    progress: ProgressBar,
) -> tuple[TaskFunctions, TranslationExtra]:
    """Build kNN-MT's datastore from train, choose its settings on validation, and translate with it from here on.

    Every process builds its own: nothing is exchanged while texts are written.

    Raises:
        InputError: no validation pair is short enough to go through the model whole.
    """
    from hf_transfer.knn import KnnGrid, build_datastore, choose

    model, adapt = adapted.model.to(accelerator.device), config.adapt
    limit = longest_input(pretrained.model, pretrained.tokenizer, config.data.max_length)
    held_out = draw_validation(_within(encoded.validation, limit), LabelSpace("translation"), config)
    if not len(held_out):
        raise InputError(
            f"--adapt.strategy knn chooses its settings on validation, of which every pair has more than {limit} "
            "tokens on one side: give shorter pairs, or raise --data.max_length where the checkpoint takes more."
        )
    train, mixture = encoded.train, encoded.mixture
    if mixture is not None:
        train = train.select(mixture.rows(np.arange(len(mixture)), 0))
    batches = [functions.make_batch(train[rows]) for rows in _sorted(train)]
    datastore = build_datastore(model, batches, accelerator.device, weights_sha256=pretrained.sha256)
    grid = KnnGrid()
    if adapt.knn_neighbours is not None:
        grid = dataclasses.replace(grid, neighbours=(adapt.knn_neighbours,))
    if adapt.knn_interpolation is not None:
        grid = dataclasses.replace(grid, interpolations=(adapt.knn_interpolation,))
    if adapt.knn_temperature is not None:
        grid = dataclasses.replace(grid, temperatures=(adapt.knn_temperature,), relative_temperatures=())
    validation = [functions.make_batch(held_out[rows]) for rows in _sorted(held_out)]
    choice = choose(model, datastore, validation, accelerator.device, grid)
    progress.note(
        f"kNN-MT: {len(datastore):,} target tokens stored; {choice.neighbours} neighbours, interpolation "
        f"{choice.interpolation:g} and temperature {choice.temperature:.3g} chosen on validation "
        f"({choice.plain_nll:.3f} -> {choice.nll:.3f} nats per token)"
    )
    written = functions.translate
    assert written is not None

    def translate(module: Any, rows: Dataset, **settings: Any) -> np.ndarray:
        with knn_logits(module, datastore, choice.neighbours, choice.interpolation, choice.temperature):
            return written(module, rows, **settings)

    return dataclasses.replace(functions, translate=translate), TranslationExtra(store=Neighbours(datastore, choice))


def _within(rows: Dataset, limit: int) -> Dataset:
    """Those of at most ``limit`` tokens on both sides: what is translated part by part elsewhere cannot be forced
    through the model with its translation, and a table of positions ends somewhere."""
    sides = (rows["input_ids"][:], rows["labels"][:])
    return rows.select([i for i, both in enumerate(zip(*sides, strict=True)) if max(map(len, both)) <= limit])


def _sorted(rows: Dataset) -> list[np.ndarray]:
    """Row numbers of batches of like length, each of about ``TOKENS_PER_DATASTORE_BATCH`` tokens."""
    return sorted_batches(np.asarray(rows["length"][:]), TOKENS_PER_DATASTORE_BATCH)


def proof_of_artefact(
    encoded: EncodedSplits, splits: DomainSplits, labels: LabelSpace, functions: TaskFunctions, most: int
) -> tuple[Dataset, Callable[[Any], list[str]] | None]:
    """Rows whose outputs prove that a saved model loads: of train, by their logits; of translation, of test, and what
    a model writes for them, greedily.

    The latter are short enough to be one piece (of texts that are all longer it is one, in several), of one pair of
    languages and one domain, whose tag stands beside them.
    """
    if labels.problem != "translation":
        return splits.train.select(range(min(most, len(splits.train)))), None
    pair = ("source_lang", "target_lang")
    places = [(domain, i) for domain, rows in encoded.test.items() for i in range(len(rows))]
    short = (place for place in places if len(encoded.test[place[0]][place[1]]["pieces"]) == 1)
    domain, first = next(short, places[0])
    rows, plain = encoded.test[domain], splits.test[domain]
    wanted = tuple(plain[first][side] for side in pair)
    chosen = [
        i
        for i, (pieces, *languages) in enumerate(zip(rows["pieces"], *(plain[side] for side in pair), strict=True))
        if len(pieces) == 1 and tuple(languages) == wanted
    ][:most]
    rows = rows.select(chosen or [first])
    same = dict(zip((*pair, "tag"), (*wanted, tag_of(domain, labels)), strict=True))
    columns = {"source": rows["source"][:], **{name: [value] * len(rows) for name, value in same.items()}}
    translate = quicker(functions).translate
    assert translate is not None
    return Dataset.from_dict(columns), lambda model: list(translate(model, rows))


def describe_translation(
    predictions: Predictions, splits: DomainSplits, labels: LabelSpace, metrics: Sequence[str], extra: TranslationExtra
) -> dict[str, Any]:
    """What results.json says of translations beside their scores, numbers only and no text; {} of other tasks."""
    if labels.problem != "translation":
        return {}
    from hf_transfer.translation_scores import quality_counts, sacrebleu_interval, signature

    domains = {}
    for domain, part in split_predictions(predictions).items():
        sources = splits.test[domain]["source"][:]
        domains[domain] = {
            "role": splits.role(domain),
            **quality_counts(sources, list(part.predicted), list(part.reference)),
            "sacrebleu": {
                name: dict(zip(("mean", "half_width"), sacrebleu_interval(name, part.probabilities), strict=True))
                for name in metrics
                if name != "comet"
            },
        }
    described: dict[str, Any] = {
        "domains": domains,
        "signatures": {name: signature(name, labels.tokenize) for name in metrics},
    }
    if extra.trade_off is not None:
        described["trade_off"] = dataclasses.asdict(extra.trade_off)
    if extra.store is not None:
        described["knn"] = extra.store.facts()
    return described


def write_translations(folder: Path, predictions: Predictions, labels: LabelSpace) -> None:
    """One file per domain and side, a line per test example in their order: what sacrebleu's command line takes.

    Nothing of other tasks.
    """
    if labels.problem != "translation":
        return
    folder.mkdir(parents=True, exist_ok=True)
    for domain, part in split_predictions(predictions).items():
        name = _file_name(domain)
        for side, texts in (("hypothesis", part.predicted), ("reference", part.reference)):
            lines = [" ".join(str(text).split("\n")) + "\n" for text in texts]
            (folder / f"{name}.{side}.txt").write_text("".join(lines), encoding="utf-8")


def _file_name(domain: str) -> str:
    """A domain as the beginning of a file's name: inside its folder, short, and no other domain's."""
    plain = re.sub(r"[^\w.-]", "-", domain)
    if plain == domain and len(plain.encode()) <= 100:
        return plain
    return f"{plain[:25]}-{hashlib.sha256(domain.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
