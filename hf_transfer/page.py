"""Floor 5: the page. A run in named steps, from config to report; recipes, the command line and Python all call it.

``run`` is one run and its controls; ``adapt`` is its middle, from text to scores and artefact, which a comparison
calls for each of its runs.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, disable_progress_bars

from hf_transfer.adapt import Adapted
from hf_transfer.artefact import save_artefact
from hf_transfer.checkpoint import BY_ITSELF, Handover, load_state
from hf_transfer.comparison import compare_with_controls, join
from hf_transfer.config import ReportConfig, RunConfig, check_config
from hf_transfer.control_runs import score_controls
from hf_transfer.feature_store import FeatureStore, feature_store
from hf_transfer.features import stored_features
from hf_transfer.flattened import find_stacks
from hf_transfer.folder import (
    after_a_signal,
    check_output_dir,
    disk_failures,
    drop_stale_features,
    drop_unasked_checkpoints,
    feature_folder,
    how_to_go_on,
    open_run_folder,
)
from hf_transfer.launch import (
    check_sharding,
    failing_together,
    is_main_process,
    join_processes,
    leave_processes,
    make_shell,
    peak_memory_bytes,
    precision_name,
    reset_peak_memory,
    start_processes,
    whole_model,
)
from hf_transfer.layer_runs import store_key
from hf_transfer.metrics import METRICS, score
from hf_transfer.model_selection import Chooser
from hf_transfer.predict import predict, scored_padding
from hf_transfer.preemption import Notice
from hf_transfer.preparing import Prepared, prepare
from hf_transfer.publishing import Published, check_publishing, push
from hf_transfer.records import (
    Artefact,
    DomainSplits,
    EncodedSplits,
    LabelSpace,
    Predictions,
    ShiftReport,
    Text,
)
from hf_transfer.report import Progress, build_results, describe_environment, print_results
from hf_transfer.report.examples import describe_calibration, describe_examples
from hf_transfer.report.files import write_report
from hf_transfer.report.results import describe_training, shown_config
from hf_transfer.report.shown import surest_mistakes
from hf_transfer.schedule import plan_stages
from hf_transfer.shift import notes_on_width, predictions_by_role, score_test
from hf_transfer.tasks import TASKS, TaskFunctions
from hf_transfer.text import read_text
from hf_transfer.trackers import Trackers, check_trackers
from hf_transfer.train import train
from hf_transfer.translation_run import (
    TranslationExtra,
    describe_translation,
    draw_validation,
    finish_strategy,
    no_vocabulary_left,
    proof_of_artefact,
    quicker,
    start_of,
    write_translations,
)
from hf_transfer.watch import here, one_for_all

PROOF_EXAMPLES = 8
"""Train texts whose logits the proof of the artefact compares."""
TIMED_EXAMPLES = 256
"""Test examples, spread over all domains, by which the speed of a model is measured that was not used itself."""


@dataclass(frozen=True)
class RunResult:
    """What ``run`` returns; ``output_dir/results.json`` holds the same facts."""

    results: dict[str, Any]
    """The contents of results.json on the main process; {} on others."""
    shift: ShiftReport
    predictions: Predictions
    """Of the examples of all test domains."""
    output_dir: Path

    def push_to_hub(
        self, repo_id: str, private: bool = False, revision: str | None = None, create_pr: bool = False
    ) -> Published:
        """Send the model, its card and its numbers to a Hub repository; see ``publishing.push``."""
        return push(self.output_dir, repo_id, private, revision, create_pr)


def run(config: RunConfig) -> RunResult:
    """Adapt a checkpoint to text, score it in and outside its training domains, save it, prove it and report.

    Every process of a launch calls this; the main one writes and prints.

    Raises:
        InputError: something given cannot be used; found before anything is written.
        RunError: training or the proof of the artefact failed, or the disk did; ``results.json`` is then absent. Or the
            run is finished and saved and could not be pushed to the Hub (``publish.repo_id``).
        Preempted: a signal said that the machine will be taken; what was learnt is on disk.
    """
    disable_progress_bars()
    check_config(config)
    with Notice(lambda: after_a_signal(Path(config.output_dir))):
        join_processes()
        with one_for_all(how_to_go_on(config)):
            if is_main_process():  # no other pushes or tracks, nor needs a token or the packages
                check_publishing(config)
                check_trackers(config.report.trackers)
            finished = _adapt_and_report(config)
            leave_processes()
    if finished.results and config.publish.repo_id is not None:
        publish = config.publish
        finished.push_to_hub(str(publish.repo_id), publish.private, publish.revision, publish.create_pr)
    return finished


def _adapt_and_report(config: RunConfig) -> RunResult:
    """A run from its data to its report, with the controls that were asked for."""
    output_dir = check_output_dir(config)
    text = Text(*read_text(config.data, config.train, TASKS[config.task], config.seed))
    saved = bool(config.train.checkpoint_steps)
    drop_stale_features(config)
    store = feature_store(feature_folder(config), config.train.feature_cache_bytes, outlives=saved)
    with disk_failures(output_dir):
        with no_vocabulary_left(config), store as text.shared["features"]:
            finished = adapt(config, text)
            controls, not_applicable = score_controls(config, text, adapt)
        here("writing the report")
        if not finished.results:  # off the main process
            return finished
        results = compare_with_controls(finished.results, controls, not_applicable, config)
        shown = surest_mistakes([finished.results], text) if config.report.show_examples else ()
        said = {"config": results["config"], "notes": not_applicable, "examples_shown": shown}
        write_report(output_dir, results, join([finished.results, *controls], **said))
        print_results(results, output_dir=output_dir)
        drop_unasked_checkpoints(config)
        return dataclasses.replace(finished, results=results)


def adapt(
    config: RunConfig, text: Text, keep_model: bool = True, stage: str = "adapted", handover: Handover = BY_ITSELF
) -> RunResult:
    """One run from text to scores: train, score every domain, save the model and prove it; writes no results.json.

    Args:
        keep_model: save the artefact and prove that it loads.
        stage: what the scores are called: ``adapted``, or the name of the control that this run is.
        handover: training that it has in common with other runs of a comparison.

    Raises:
        InputError, RunError: as ``run``.
    """
    task, splits = TASKS[config.task], text.splits
    output_dir = Path(config.output_dir)
    prepared = prepare(config, text, keep_model)
    settings, pretrained, labels, metrics = prepared.settings, prepared.pretrained, prepared.labels, prepared.metrics
    encoded, functions, adapted = prepared.encoded, prepared.functions, prepared.adapted
    accelerator = start_processes(settings, prepared.model_type, len(adapted.stages))
    check_sharding(accelerator, adapted.model, settings.l2_sp)
    reset_peak_memory(accelerator)
    shell = make_shell(adapted.model, accelerator)
    start = start_of(adapted.model, config.adapt)

    def predict_rows(rows: Any, model: Any, how: TaskFunctions = functions) -> Predictions:
        return predict(model, rows, how, accelerator, config.evaluate.tokens_per_batch)

    def validate_on(rows: Dataset, how: TaskFunctions = functions) -> Callable[[Any], float]:
        chosen = draw_validation(rows, labels, config)
        quick = quicker(how)
        return lambda model: score(metrics[0], predict_rows(chosen, model, quick)) if len(chosen) else math.nan

    # training
    higher_is_better = METRICS[metrics[0]].higher_is_better
    chooser = Chooser(config.evaluate.selection, metrics[0], higher_is_better, validate_on(encoded.validation))
    folder, resume_notes = open_run_folder(config, text.table.fingerprint, accelerator, handover, pretrained.sha256)
    padded = find_stacks(adapted.model).reason
    notes = (*prepared.notes, *resume_notes, *([padded] if padded else []))
    plans = plan_stages(adapted.stages, encoded.epoch_size, settings)
    store = text.shared.setdefault("features", FeatureStore())
    trial = functions.make_batch(encoded.train[: min(2, len(encoded.train))])
    with (
        stored_features(adapted, store_key(adapted, pretrained, config.seed), store, trial.inputs) as features,
        Progress(
            plans[-1].end if plans else 0,
            done_steps=folder.done_steps,
            is_main=accelerator.is_main_process,
        ) as progress,
        Trackers(
            config.report if accelerator.is_main_process and stage == "adapted" else ReportConfig(),
            output_dir,
            shown_config(dataclasses.asdict(config)),
            folder.done_steps,
            folder.continues_here,
            progress.note,
        ) as trackers,
    ):
        told = text.shared.setdefault("told", set())  # runs of a comparison share the text, and what is said of it
        for line in (*_describe(config, splits, labels, adapted), *text.table.notes, *splits.notes, *notes):
            if line not in told:
                progress.note(line)
            told.add(line)
        if folder.resume_from is not None and not folder.continues_here:
            trackers.catch_up(folder.log, load_state(folder.resume_from).history)
        trained = train(
            adapted, encoded.train, functions, chooser, accelerator, settings, folder, config.seed, progress, features,
            encoded.mixture, trackers if config.report.trackers else None,
        )  # fmt: skip
        adapted, functions, trained, extra = finish_strategy(
            adapted, trained, start, encoded, functions, validate_on, pretrained, labels, config, higher_is_better,
            text.shared, accelerator, progress,
        )  # fmt: skip

        # scores
        here("scoring the test domains")
        started = time.perf_counter()
        rows = concatenate_datasets(list(encoded.test.values()))
        predictions = predict_rows(rows, adapted.model, functions.counting(progress.scored(len(rows))))
        predict_seconds = time.perf_counter() - started
        shift = score_test(stage, predictions, splits, metrics, config.evaluate, config.seed)
        evaluate_seconds = time.perf_counter() - started
        trackers.scored(shift, trained)
        widths = notes_on_width(shift.scores, config.evaluate.confidence)
        for line in widths:
            progress.note(line)
        seen = encoded.validation if functions.translate is None else encoded.validation.select([])
        validation = predict_rows(seen, adapted.model)
        scoring_padding = scored_padding(adapted.model, rows, functions, config.evaluate)
        is_stored = bool(features.depth)
        notes = (*notes, *features.notes(), *widths)
    if is_stored:  # what was looked up says nothing about the speed of the model
        predict_seconds = _predict_seconds(encoded, lambda rows: predict_rows(rows, adapted.model))

    # artefact and report
    here("saving the model and proving that it loads")
    adapted = dataclasses.replace(adapted, model=whole_model(adapted.model, shell, accelerator))
    results: dict[str, Any] = {}
    with failing_together(accelerator):
        if accelerator.is_main_process:
            artefact = Artefact("none", "", False, math.nan, 0)
            if keep_model:
                artefact = _save_and_prove(config, prepared, splits, adapted, functions, extra)
            write_translations(output_dir / "translations", predictions, labels)
            results = build_results(
                task=task.name,
                seed=config.seed,
                strategy=adapted.strategy if stage == "adapted" else stage,
                config=dataclasses.asdict(config),
                table=text.table,
                splits=splits,
                truncated=encoded.truncated,
                max_length=prepared.max_length,
                labels=labels,
                pretrained=pretrained,
                trainable=adapted.summary,
                trained=trained,
                shift=shift,
                predict_seconds=predict_seconds,
                evaluate_seconds=evaluate_seconds,
                scoring_padding=scoring_padding,
                peak_memory_bytes=max(peak_memory_bytes(accelerator), trained.peak_memory_bytes),
                artefact=artefact,
                environment=describe_environment(
                    accelerator.num_processes, accelerator.device.type, precision_name(accelerator)
                ),
                notes=(*notes, *extra.layers.notes, *trackers.notes),
                layers=prepared.layers.facts | extra.layers.facts,
                examples=describe_examples(predictions, validation),
                calibration=describe_calibration(
                    labels,
                    predictions_by_role(predictions, splits),
                    validation,
                    config.evaluate.confidence,
                    config.seed,
                ),
                training=describe_training(folder.log, trained.history) if adapted.stages else {},
                translation=describe_translation(predictions, splits, labels, metrics, extra),
            )
    return RunResult(results, shift, predictions, output_dir)


def _save_and_prove(
    config: RunConfig,
    prepared: Prepared,
    splits: DomainSplits,
    adapted: Adapted,
    functions: TaskFunctions,
    extra: TranslationExtra,
) -> Artefact:
    """The model on disk, after a fresh process has opened it and computed the same."""
    proof, translate = proof_of_artefact(prepared.encoded, splits, prepared.labels, functions, PROOF_EXAMPLES)
    return save_artefact(
        Path(config.output_dir),
        adapted,
        prepared.pretrained,
        prepared.labels,
        config.task,
        prepared.max_length,
        prepared.keeps_head,
        config.publish.export,
        proof,
        translate,
        extra.store,
    )


def _predict_seconds(encoded: EncodedSplits, predict_rows: Callable[[Any], Predictions]) -> float:
    """Seconds that all test examples would take, from ``TIMED_EXAMPLES`` of them."""
    rows = concatenate_datasets(list(encoded.test.values()))
    timed = rows.select(np.linspace(0, len(rows) - 1, min(TIMED_EXAMPLES, len(rows))).astype(int))
    started = time.perf_counter()
    predict_rows(timed)
    return (time.perf_counter() - started) * len(rows) / len(timed)


def _describe(config: RunConfig, splits: DomainSplits, labels: LabelSpace, adapted: Adapted) -> Iterator[str]:
    """What is about to happen, in two lines."""
    tested = [domain for domain in splits.test if splits.role(domain) == "shifted"]
    classes = f"{len(labels.names)} classes" if labels.names else "a number"
    if labels.problem == "translation":
        classes = f"{labels.source_lang or 'source'} to {labels.target_lang or 'target'}"
    yield (
        f"{config.data.source}: {len(splits.train):,} train and {len(splits.validation):,} validation examples of "
        f"{', '.join(splits.train_domains)}; {classes}; shifted domains: {', '.join(tested) or 'none'}"
    )
    summary = adapted.summary
    learning = f"{summary.trainable:,} of {summary.total:,} parameters learn ({summary.trainable / summary.total:.1%})"
    beside = f"its {summary.total:,} parameters stay as they are, and what learns is solved for beside them"
    yield f"{config.model.checkpoint}: {adapted.strategy}, {learning if adapted.stages else beside}"
