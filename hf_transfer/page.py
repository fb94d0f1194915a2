"""Floor 5: the page. A run in named steps, from config to report; recipes, the command line and Python all call it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets, disable_progress_bars

from hf_transfer.adapt import Adapted, apply_strategy
from hf_transfer.artefact import save_artefact
from hf_transfer.config import RunConfig, check_config
from hf_transfer.errors import InputError
from hf_transfer.folder import check_output_dir, open_run_folder
from hf_transfer.launch import make_shell, peak_memory_bytes, precision_name, start_processes, whole_model
from hf_transfer.metrics import METRICS, check_metrics, default_metrics, score
from hf_transfer.predict import predict
from hf_transfer.pretrained import align_labels, find_checkpoint, load_pretrained, longest_input
from hf_transfer.records import DomainSplits, LabelSpace, Predictions, ShiftReport
from hf_transfer.report import Progress, build_results, describe_environment, print_results
from hf_transfer.report.files import write_report
from hf_transfer.shift import score_domains, shift_report, split_predictions
from hf_transfer.sources import load_source
from hf_transfer.splits import split_by_domain
from hf_transfer.tasks import TASKS, bind
from hf_transfer.train import Chooser, plan_stages, train

PROOF_EXAMPLES = 8
"""Train texts whose logits the proof of the artefact compares."""


@dataclass(frozen=True)
class RunResult:
    """What ``run`` returns; ``output_dir/results.json`` holds the same facts."""

    results: dict[str, Any]
    shift: ShiftReport
    predictions: Predictions
    """Of the examples of all test domains."""
    output_dir: Path


def run(config: RunConfig) -> RunResult:
    """Adapt a checkpoint to text, score it in and outside its training domains, save it, prove it and report.

    Every process of a launch calls this; the main one writes and prints.

    Raises:
        InputError: something given cannot be used; found before anything is written.
        RunError: training or the proof of the artefact failed; ``results.json`` is then absent.
    """
    disable_progress_bars()
    check_config(config)
    task = TASKS[config.task]
    output_dir = check_output_dir(config)

    # text
    table = load_source(config.data)
    splits = split_by_domain(table, config.data, config.seed)
    labels = task.read_labels(splits, config.data, config.train)
    metrics = _choose_metrics(config, labels, splits)

    # model
    found = find_checkpoint(config.model)
    labels, keeps_head = align_labels(labels, found)
    pretrained = load_pretrained(config.model, found, task.auto_class, task.head(labels), keeps_head, config.seed)
    max_length = longest_input(pretrained.model, pretrained.tokenizer, config.data.max_length)
    encoded = task.encode(splits, labels, pretrained.tokenizer, max_length)
    adapted = apply_strategy(pretrained, config.adapt)
    accelerator = start_processes(config.train, found.model_type, len(adapted.stages))
    shell = make_shell(adapted.model, accelerator)
    functions = bind(task, labels, pretrained.tokenizer, config.train.label_smoothing)

    def predict_rows(rows: Any, model: Any) -> Predictions:
        return predict(model, rows, functions, accelerator, config.evaluate.tokens_per_batch)

    def validate(model: Any) -> float:
        return score(metrics[0], predict_rows(encoded.validation, model)) if len(encoded.validation) else math.nan

    # training
    chooser = Chooser(config.evaluate.selection, metrics[0], METRICS[metrics[0]].higher_is_better, validate)
    folder, resume_notes = open_run_folder(config, table.fingerprint, accelerator)
    plans = plan_stages(adapted.stages, len(encoded.train), config.train)
    notes = (*table.notes, *splits.notes, *resume_notes)
    total_steps, done_steps = plans[-1].first_step + plans[-1].steps, folder.done_steps
    with Progress(total_steps, done_steps=done_steps, is_main=accelerator.is_main_process) as progress:
        for line in (*_describe(config, splits, labels, adapted), *notes):
            progress.note(line)
        trained = train(
            adapted, encoded.train, functions, chooser, accelerator, config.train, folder, config.seed, progress
        )

    # scores
    started = time.perf_counter()
    predictions = predict_rows(concatenate_datasets(list(encoded.test.values())), adapted.model)
    by_domain = split_predictions(predictions)
    scored = config.evaluate
    scores = score_domains(
        "adapted", "test", by_domain, splits.role, metrics, scored.confidence, scored.resamples, config.seed
    )
    shift = shift_report(scores, metrics[0])
    evaluate_seconds = time.perf_counter() - started

    # artefact and report
    adapted = dataclasses.replace(adapted, model=whole_model(adapted.model, shell, accelerator))
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        proof = splits.train.select(range(min(PROOF_EXAMPLES, len(splits.train))))
        artefact = save_artefact(
            output_dir, adapted, pretrained, labels, task.name, max_length, keeps_head, config.publish.export, proof
        )
        results = build_results(
            task=task.name,
            seed=config.seed,
            strategy=adapted.strategy,
            config=dataclasses.asdict(config),
            table=table,
            splits=splits,
            truncated=encoded.truncated,
            labels=labels,
            pretrained=pretrained,
            trainable=adapted.summary,
            trained=trained,
            shift=shift,
            evaluate_seconds=evaluate_seconds,
            peak_memory_bytes=peak_memory_bytes(accelerator),
            artefact=artefact,
            environment=describe_environment(
                accelerator.num_processes, accelerator.device.type, precision_name(accelerator)
            ),
            notes=notes,
        )
        write_report(output_dir, results)
        print_results(results, output_dir=output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return RunResult(results, shift, predictions, output_dir)


def _choose_metrics(config: RunConfig, labels: LabelSpace, splits: DomainSplits) -> tuple[str, ...]:
    """The metrics to report, the selecting one first; raises InputError where they, or validation, do not serve."""
    metrics = config.evaluate.metrics or default_metrics(labels.problem)
    problems = check_metrics(metrics, labels.problem)
    if not len(splits.validation) and config.evaluate.selection != "last":
        problems.append(
            "no validation example is left to choose the step by: raise --data.validation_fraction, or use "
            "--evaluate.selection last."
        )
    if problems:
        raise InputError(problems)
    return tuple(metrics)


def _describe(config: RunConfig, splits: DomainSplits, labels: LabelSpace, adapted: Adapted) -> Iterator[str]:
    """What is about to happen, in two lines."""
    tested = [domain for domain in splits.test if splits.role(domain) == "shifted"]
    classes = f"{len(labels.names)} classes" if labels.names else "a number"
    yield (
        f"{config.data.source}: {len(splits.train):,} train and {len(splits.validation):,} validation examples of "
        f"{', '.join(splits.train_domains)}; {classes}; shifted domains: {', '.join(tested) or 'none'}"
    )
    summary = adapted.summary
    yield (
        f"{config.model.checkpoint}: {adapted.strategy}, {summary.trainable:,} of {summary.total:,} parameters learn "
        f"({summary.trainable / summary.total:.1%})"
    )
