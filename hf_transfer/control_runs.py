"""Floor 4: controls, the runs that answer "compared with what?".

``before`` is the checkpoint as it comes, ``scratch`` the same architecture trained from random weights on the same
budget, ``tfidf`` a bag of words with logistic regression, ``majority`` the most frequent class of train.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets

from hf_transfer.config import SCRATCH_RATES, RunConfig
from hf_transfer.controls import fit_majority, fit_tfidf
from hf_transfer.encoding import encode
from hf_transfer.errors import InputError
from hf_transfer.launch import let_models_go, peak_memory_bytes, precision_name, reset_peak_memory, start_processes
from hf_transfer.metrics import choose_metrics, score
from hf_transfer.predict import predict
from hf_transfer.pretrained import align_labels, find_checkpoint, load_pretrained
from hf_transfer.records import (
    Artefact,
    LabelSpace,
    Predictions,
    Pretrained,
    Selection,
    Text,
    TrainableSummary,
    not_by_the_loop,
)
from hf_transfer.report import build_results, describe_environment
from hf_transfer.report.examples import describe_calibration, describe_examples
from hf_transfer.shift import predictions_by_role, score_test
from hf_transfer.tasks import TASKS
from hf_transfer.translation_run import TranslationExtra, describe_translation, draw_validation, write_translations
from hf_transfer.watch import met_by_all

DOES_NOT_APPLY = "does not apply"
"""Words of an InputError by which a comparison tells a control that has no meaning here from one that failed."""


@dataclass(frozen=True)
class _Fitted:
    """A control that is ready to predict."""

    labels: LabelSpace
    test: Predictions
    validation: Predictions
    pretrained: Pretrained | None
    trainable: int
    total: int
    fit_seconds: float
    predict_seconds: float
    rule: str
    """How whatever it chose was chosen."""
    max_length: int | None = None
    """Tokens of an example at most; None where texts are read whole."""
    truncated: int = 0
    """Examples that are longer."""


def score_controls(config: RunConfig, text: Text, adapt: Callable[..., Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of each of ``evaluate.controls`` ([] off the main process), and a sentence for each that does not apply.

    ``adapt`` is the page's: what trains the one control that is trained like any run.
    """
    scored: list[dict[str, Any]] = []
    not_applicable: list[str] = []
    for name in config.evaluate.controls:
        let_models_go()
        inside = dataclasses.replace(config, output_dir=str(Path(config.output_dir) / "controls" / name))
        if config.train.resume is not None:  # a named checkpoint is of the run itself
            inside = dataclasses.replace(inside, train=dataclasses.replace(config.train, resume="auto"))
        try:
            scored.append(score_control(name, inside, text, adapt))
        except InputError as error:
            met_by_all(f"control {name}", error)
            not_applicable += error.problems
    return [results for results in scored if results], not_applicable


def score_control(name: str, config: RunConfig, text: Text, adapt: Callable[..., Any]) -> dict[str, Any]:
    """Score one control on every test domain: contents of a results.json, {} off the main process.

    Raises:
        InputError: the control does not apply to this checkpoint; says why.
    """
    if name == "scratch":
        return adapt(scratch_config(config), text, keep_model=False, stage="scratch").results
    accelerator = start_processes(config.train, "", 1)
    reset_peak_memory(accelerator)
    fitted = _before(config, text, accelerator) if name == "before" else _baseline(name, config, text)
    splits, labels = text.splits, fitted.labels
    metrics = choose_metrics(config.evaluate, labels.problem, len(splits.validation))
    shift = score_test(name, fitted.test, splits, metrics, config.evaluate, config.seed)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return {}
    write_translations(Path(config.output_dir) / "translations", fitted.test, labels)
    value = score(metrics[0], fitted.validation) if len(fitted.validation.example_ids) else math.nan
    return build_results(
        task=config.task,
        seed=config.seed,
        strategy=name,
        config=dataclasses.asdict(config),
        table=text.table,
        splits=splits,
        truncated=fitted.truncated,
        max_length=fitted.max_length,
        labels=labels,
        pretrained=fitted.pretrained,
        trainable=TrainableSummary(fitted.trainable, fitted.total, ()),
        trained=not_by_the_loop(Selection(fitted.rule, metrics[0], 0, value), fitted.fit_seconds, len(splits.train)),
        shift=shift,
        predict_seconds=fitted.predict_seconds,
        evaluate_seconds=fitted.predict_seconds,
        peak_memory_bytes=peak_memory_bytes(accelerator),
        artefact=Artefact("none", "", False, math.nan, 0),
        environment=describe_environment(
            accelerator.num_processes, accelerator.device.type, precision_name(accelerator)
        ),
        examples=describe_examples(fitted.test, fitted.validation),
        calibration=describe_calibration(
            labels,
            predictions_by_role(fitted.test, splits),
            fitted.validation,
            config.evaluate.confidence,
            config.seed,
        ),
        translation=describe_translation(fitted.test, splits, labels, metrics, TranslationExtra()),
    )


def scratch_config(config: RunConfig) -> RunConfig:
    """``config`` with random weights in place of pretrained ones, all of which learn, for as many passes."""
    train = dataclasses.replace(config.train, epochs=config.train.passes)
    if train.learning_rate is None:
        rate = SCRATCH_RATES[config.task]
        head_rate = rate if config.task == "classification" else None
        train = dataclasses.replace(train, learning_rate=rate, head_learning_rate=head_rate)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, checkpoint=f"scratch:{config.model.checkpoint}"),
        adapt=dataclasses.replace(
            config.adapt, strategy="full", head_first=False, gradual_unfreezing=False, probe_layers=None
        ),
        train=train,
        evaluate=dataclasses.replace(config.evaluate, controls=()),
        publish=dataclasses.replace(config.publish, export=()),
    )


def _before(config: RunConfig, text: Text, accelerator: Accelerator) -> _Fitted:
    """The checkpoint with the head that it came with, and all its layers: it expects what the last one puts out."""
    task = TASKS[config.task]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=None))
    if text.labels.problem == "translation" and config.model.checkpoint.startswith("scratch:"):
        raise InputError(f"control before {DOES_NOT_APPLY}: {config.model.checkpoint} starts from random weights.")
    found = find_checkpoint(config.model)
    labels, keeps_head = align_labels(text.labels, found)
    if not keeps_head:
        raise InputError(
            f"control before {DOES_NOT_APPLY}: {found.id} has no head for {', '.join(labels.names) or 'these labels'}."
        )
    started = time.perf_counter()
    pretrained = load_pretrained(config.model, found, task.auto_class, task.head(labels), True, config.seed)
    labels = task.settle(labels, pretrained, config)
    encoded, limit = encode(text, labels, pretrained, task, config.data.max_length)
    metrics = choose_metrics(config.evaluate, labels.problem, len(text.splits.validation))
    functions = task.bind(labels, pretrained, config, metrics)
    model = pretrained.model.to(accelerator.device)
    loaded = time.perf_counter()

    def predict_rows(rows: Dataset) -> Predictions:
        return predict(model, rows, functions, accelerator, config.evaluate.tokens_per_batch)

    test = predict_rows(concatenate_datasets(list(encoded.test.values())))
    predicted = time.perf_counter()
    total = sum(p.numel() for p in model.parameters())
    validation = predict_rows(draw_validation(encoded.validation, labels, config))
    return _Fitted(
        *(labels, test, validation, pretrained, 0, total, loaded - started, predicted - loaded),
        rule="nothing is chosen",
        max_length=limit,
        truncated=encoded.truncated,
    )


def _baseline(name: str, config: RunConfig, text: Text) -> _Fitted:
    """A control that knows no transformer. Every process fits it for itself: it is quick, and needs no exchange."""
    splits, labels = text.splits, text.labels
    started = time.perf_counter()
    if name == "tfidf":
        model = fit_tfidf(splits.train, splits.validation, labels, config.seed)
    else:
        model = fit_majority(splits.train, labels)
    fitted = time.perf_counter()
    test = model.predict(concatenate_datasets(list(splits.test.values())))
    predicted = time.perf_counter()
    validation = model.predict(splits.validation)
    rule = "cross-validation on train" if name == "tfidf" else "nothing is chosen"
    count = model.parameters
    return _Fitted(labels, test, validation, None, count, count, fitted - started, predicted - fitted, rule)
