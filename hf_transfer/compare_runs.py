"""Floor 5: compare strategies: plan the runs, make those that are not finished, and report on all of them.

Runs are made one after the other over the same text, so that what one has read, encoded or computed with a frozen
body serves the next; strategies that train alike (``full`` and ``interpolated``, say) train once. Each run leaves a
folder with its results.json; a comparison that was killed finds those and goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars

from hf_transfer.batching import steps_of, window_count
from hf_transfer.checkpoint import Handover, find_checkpoint_to_resume, load_state, training_of
from hf_transfer.comparison import Setting, join, name_of
from hf_transfer.config import (
    COMPARE_DEFAULTS,
    CONTROLS,
    OF_ADAPTERS,
    TRAINED_ALIKE,
    AdaptConfig,
    CompareConfig,
    DataConfig,
    RunConfig,
    TrainConfig,
    check_config,
    defaults_of,
    from_nested,
    share_of_general,
    to_yaml,
)
from hf_transfer.control_runs import DOES_NOT_APPLY, score_control, scratch_config
from hf_transfer.domain_distances import measure_distances
from hf_transfer.errors import InputError, RunError, printable
from hf_transfer.feature_store import FeatureStore, feature_store
from hf_transfer.folder import check_place, deciding_settings, feature_folder
from hf_transfer.launch import is_main_process, join_processes, leave_processes, let_models_go, start_processes
from hf_transfer.page import adapt
from hf_transfer.preemption import Notice
from hf_transfer.pretrained import find_checkpoint
from hf_transfer.records import Text
from hf_transfer.report import print_comparison, read_results, write_json, write_text
from hf_transfer.report.files import write_comparison, write_report
from hf_transfer.report.results import shown_config, shown_text
from hf_transfer.report.shown import surest_mistakes
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_rows, read_text
from hf_transfer.trackers import check_trackers
from hf_transfer.translation_run import learns_vocabulary
from hf_transfer.watch import here, met_by_all, one_for_all

OUTPUTS = (
    "results.json",
    "report.md",
    "report.html",
    "plan.json",
    "config.yaml",
    "distances.json",
    "figures",
    "runs",
    "features",
)


@dataclass(frozen=True)
class PlannedRun:
    """A run that a comparison consists of."""

    name: str
    """Of its folder."""
    strategy: str
    """Or the name of a control."""
    setting: Setting
    config: RunConfig
    keep_model: bool

    @property
    def facts(self) -> dict[str, Any]:
        """As ``runs`` of results.json lists it."""
        return {
            "name": self.name,
            "strategy": self.strategy,
            "seed": self.config.seed,
            "direction": name_of(self.setting),
            "target_domain": self.setting.target_domain,
            "target_examples": self.setting.target_examples,
            "with_source": self.setting.with_source,
        }


@dataclass(frozen=True)
class CompareResult:
    """What ``compare`` returns; ``output_dir/results.json`` holds the same facts."""

    results: dict[str, Any]
    """{} off the main process."""
    output_dir: Path


def compare(
    config: RunConfig,
    strategies: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> CompareResult:
    """Run every strategy, control and seed over the same data and say which differences are real.

    Args:
        config: a ``CompareConfig``, or the ``RunConfig`` of one run, whose strategy and seed then do not count.
        strategies, controls, seeds: replace those of ``config``.

    Raises:
        InputError: something given cannot be used, or the folder holds runs with other settings; nothing was written.
        RunError: no run finished.
    """
    disable_progress_bars()
    config = check_config(_as_comparison(config, strategies, controls, seeds))
    going_on = "the same command goes on with the runs that are missing"
    with Notice(lambda: going_on):
        join_processes()
        with one_for_all(f"Start all processes again: {going_on}."):
            if is_main_process():  # no other tracks
                check_trackers(config.report.trackers)
            results = _compare(config)
            leave_processes()
    return CompareResult(results, Path(config.output_dir))


def _compare(config: CompareConfig) -> dict[str, Any]:
    """Make all runs and report; the contents of results.json on the main process, {} on others."""
    output_dir = Path(config.output_dir)
    texts = Texts()
    plan = plan_runs(config, texts)
    check_place(config, OUTPUTS, "comparison")
    done = _finished(plan, output_dir, texts, config.overwrite)
    alike = _trained_alike(plan)
    if not learns_vocabulary(config):
        find_checkpoint(config.model)  # a comparison without its checkpoint has failed before it begins
    accelerator = start_processes(config.train, "", 1)
    accelerator.wait_for_everyone()  # all have looked before anything is written
    if accelerator.is_main_process:
        _open_folder(config, plan)
    accelerator.wait_for_everyone()
    failures: dict[str, str] = {}
    saved = bool(config.train.checkpoint_steps)
    with feature_store(feature_folder(config), config.train.feature_cache_bytes, True, outlives=saved) as store:
        texts.share(store)
        for number, run in enumerate(_in_turn(plan, alike), start=1):
            if run.name not in done:
                if accelerator.is_main_process:
                    print(f"run {number} of {len(plan)}: {run.name}", flush=True)
                handover = _handover(run, alike[run.name], done)
                failures |= _make(run, texts, handover, accelerator.is_main_process)
                let_models_go()
            if accelerator.is_main_process:  # after runs that were done too: a kill may have come just before this
                _drop_checkpoints(run, alike[run.name], done)
            accelerator.wait_for_everyone()
    here("writing the report")
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        results = _report(config, plan, failures, texts)
        print_comparison(results, output_dir=output_dir)
    return results


class Texts:
    """Texts by what decides them, each read once; stored features are shared by all."""

    def __init__(self) -> None:
        self._texts: dict[Any, Text] = {}
        self._features: FeatureStore | None = None

    def share(self, features: FeatureStore) -> None:
        """Let all texts, those read before too, look their features up here."""
        self._features = features
        for text in self._texts.values():
            text.shared["features"] = features

    def of(self, config: RunConfig) -> Text:
        """The text that ``config`` asks for."""
        data = config.data
        drawn_by_seed = data.max_train_examples is not None or any(data.target_examples)
        key = (data, config.train.class_weights, config.seed if drawn_by_seed else None)
        if key not in self._texts:
            text = Text(*read_text(data, config.train, TASKS[config.task], config.seed))
            if self._features is not None:
                text.shared["features"] = self._features
            self._texts[key] = text
        return self._texts[key]


# ---- the plan --------------------------------------------------------------------------------------------------


def plan_runs(config: CompareConfig, texts: Texts) -> list[PlannedRun]:
    """All runs of a comparison, in the order in which they are made: cheap controls first, then seed by seed."""
    settings = list(_settings(config, texts))
    plan = []
    for name in [*(c for c in CONTROLS if c in config.controls), *config.strategies]:
        for seed in config.seeds:
            for setting in settings:
                if setting.target_examples and name == "before":
                    continue  # it learns from nothing
                run = _planned(config, name, seed, setting, texts)
                if run is not None:
                    plan.append(run)
    assert len({run.name for run in plan}) == len(plan), "each run has a folder of its own"
    order = {seed: place for place, seed in enumerate(config.seeds)}
    cheap = ("before", "tfidf", "majority")
    return sorted(plan, key=lambda run: (run.strategy not in cheap, order[run.config.seed]))


def _settings(config: CompareConfig, texts: Texts) -> Iterator[Setting]:
    """Directions, and for each of them the numbers of target examples with and without the source."""
    data = config.data
    if config.matrix or config.leave_one_out:
        table, problems = read_rows(data, TASKS[config.task])
        if problems:
            raise InputError(problems)
        domains = data.train_domains or tuple(dict.fromkeys(table.rows["domain"]))
        if len(domains) < 2:
            flag = "matrix" if config.matrix else "leave_one_out"
            raise InputError(f"--{flag} needs two domains or more, found {len(domains)}: see --data.domain_column.")
        for domain in domains:
            yield Setting((domain,) if config.matrix else tuple(other for other in domains if other != domain))
        return
    splits = _source_text(config, texts).splits
    yield Setting(splits.train_domains)
    own = [name for name in splits.test if name not in splits.general_domains]
    shifted = [name for name in own if splits.role(name) == "shifted"]
    unknown = [domain for domain in data.target_domains if domain not in shifted]
    if unknown:
        raise InputError(
            f"--data.target_domains names {', '.join(unknown)}, which is no shifted test domain; there are "
            f"{', '.join(shifted) or 'none'}."
        )
    for count in data.target_examples:
        for domain in (data.target_domains or shifted) if count else ():
            yield Setting(splits.train_domains, domain, count, True)
            yield Setting(splits.train_domains, domain, count, False)


def _planned(config: CompareConfig, name: str, seed: int, setting: Setting, texts: Texts) -> PlannedRun | None:
    """One run; None where a control without chance was planned with the first seed already."""
    data = dataclasses.replace(
        config.data,
        train_domains=setting.train_domains,
        target_domains=(setting.target_domain,) if setting.target_domain else (),
        target_examples=(setting.target_examples,) if setting.target_examples else (),
        with_source=setting.with_source,
    )
    if name not in ("mixed", "interpolated"):  # general text is scored in every run, and learnt from in these
        data = dataclasses.replace(data, general_share=None)
    if not setting.with_source and config.task == "classification":  # a few target examples need not show every class
        labels = _source_text(config, texts).labels  # nor fractions of a regression
        problem = labels.problem
        assert problem != "translation", "of classification"
        data = dataclasses.replace(data, label_names=labels.names, problem=problem)
    drawn_by_seed = data.max_train_examples is not None or setting.target_examples
    by_chance = name not in ("before", "tfidf", "majority") or (drawn_by_seed and name != "before")
    if seed != config.seeds[0] and not by_chance:
        return None
    folder = _folder_name(name, seed, setting, config)
    # few target labels leave nothing to select on, and both sides of a comparison must select alike
    selection = "last" if any(config.data.target_examples) else config.evaluate.selection
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(RunConfig)}
    fields |= {
        "data": data,
        "adapt": _adapt_settings(config.adapt, name),
        "train": _budget(config, name, data, setting, texts),
        "evaluate": dataclasses.replace(config.evaluate, selection=selection),
        "publish": dataclasses.replace(config.publish, export=_export(config, name)),
        "output_dir": str(Path(config.output_dir) / "runs" / folder),
        "overwrite": False,
        "report": dataclasses.replace(config.report, tracker_run=_tracker_run(config, folder)),
        "seed": seed,
    }
    keep = config.keep_models == "all" or (config.keep_models == "first_seed" and seed == config.seeds[0])
    return PlannedRun(folder, name, setting, RunConfig(**fields), keep and not setting.target_examples)


def _tracker_run(config: CompareConfig, folder: str) -> str:
    """``compare/lora-s0``: runs of several comparisons may stand under one project."""
    whole = config.report.tracker_run or Path(config.output_dir).resolve().name
    return f"{re.sub(r'[^A-Za-z0-9_./-]', '-', whole)}/{folder}"


def _export(config: CompareConfig, name: str) -> tuple[str, ...]:
    """What is exported of a run: adapters and their merged models of lora alone, other forms of all that learns."""
    if name in (*CONTROLS, "knn"):
        return ()
    return tuple(form for form in config.publish.export if form not in OF_ADAPTERS or name == "lora")


def _source_text(config: CompareConfig, texts: Texts) -> Text:
    """The text without labels of a target."""
    base = dataclasses.replace(config.data, target_examples=(), target_domains=(), with_source=True)
    return texts.of(dataclasses.replace(config, data=base))


def _adapt_settings(adapt: AdaptConfig, name: str) -> AdaptConfig:
    """Those of the strategy, without what belongs to others; for a control, which has no strategy, those of full."""
    if name in CONTROLS:
        return dataclasses.replace(adapt, strategy="full", interpolation=None)
    return dataclasses.replace(
        adapt,
        strategy=name,  # type: ignore[arg-type]
        head_first=adapt.head_first and name != "probe",
        gradual_unfreezing=adapt.gradual_unfreezing and name == "freeze",
        interpolation=adapt.interpolation if name == "interpolated" else None,
        probe_layers=adapt.probe_layers if name == "probe" else None,
    )


def _budget(config: CompareConfig, name: str, data: DataConfig, setting: Setting, texts: Texts) -> TrainConfig:
    """The loop's settings with the comparison's budget: beside target examples, as many steps with the source as
    without it, which are those that the source with them takes."""
    train = dataclasses.replace(config.train, resume="auto", learning_rate=config.learning_rate_of(name))
    if config.budget.examples is not None:
        train = dataclasses.replace(train, max_steps=math.ceil(config.budget.examples / train.window_size))
    if config.budget.seconds is not None:
        train = dataclasses.replace(train, max_seconds=config.budget.seconds)
    if setting.target_examples and train.max_steps is None:
        splits = _source_text(config, texts).splits
        examples = len(splits.train) + setting.target_examples
        share = share_of_general(name, data.general_share)
        if share is not None and splits.general is not None:
            examples += min(round(examples * share / (1 - share)), len(splits.general))
        from_scratch = config.model.checkpoint.startswith("scratch:")
        passes = train.passes if name == "scratch" else train.passes_of(config.task, from_scratch)
        steps = steps_of(passes, window_count(examples, train.window_size))
        train = dataclasses.replace(train, max_steps=max(1, steps))
    return train


def _folder_name(name: str, seed: int, setting: Setting, config: CompareConfig) -> str:
    """``lora-s0``, with the direction in front where there are several: safe as a folder name, unique by number."""
    parts = [f"{name}-s{seed}"]
    if config.matrix or config.leave_one_out:
        parts.append(f"on-{_bounded('-'.join(map(_slug, setting.train_domains)))}")
    if setting.target_examples:
        side = "with" if setting.with_source else "without"
        parts.append(f"{setting.target_examples}-{_slug(str(setting.target_domain))}-{side}-source")
    return "_".join(parts)


def _slug(text: str) -> str:
    """Letters, digits and dots; what is lost from a name is made up for by a digest, so that names stay apart."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in ".") else "-" for c in text)
    return (
        plain if plain == text and len(plain) <= 40 else f"{plain[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    )


def _bounded(name: str) -> str:
    """``name`` cut to 77 characters with a digest of what is lost, so that long ones stay apart."""
    return name if len(name) <= 77 else f"{name[:66]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _trained_alike(plan: Sequence[PlannedRun]) -> dict[str, list[str]]:
    """For each run the names of those that train alike, itself included, in their order."""
    groups: dict[str, list[str]] = {}
    for run in plan:
        decides: dict[str, Any] = {"run": run.name}
        if run.strategy in TRAINED_ALIKE:
            decides = training_of(deciding_settings(run.config)) | {"seed": run.config.seed}
        groups.setdefault(json.dumps(decides, sort_keys=True), []).append(run.name)
    return {name: names for names in groups.values() for name in names}


def _in_turn(plan: Sequence[PlannedRun], alike: Mapping[str, list[str]]) -> list[PlannedRun]:
    """The order in which runs are made: that of ``plan``, but for those that train alike, which follow one another, so
    that one training at a time waits on disk for others."""
    place = {run.name: number for number, run in enumerate(plan)}
    return sorted(plan, key=lambda run: place[alike[run.name][0]])


# ---- making them -----------------------------------------------------------------------------------------------


def _as_comparison(
    config: RunConfig,
    strategies: Sequence[str] | None,
    controls: Sequence[str] | None,
    seeds: Sequence[int] | None,
) -> CompareConfig:
    if not isinstance(config, CompareConfig):
        fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(RunConfig)}
        if fields["evaluate"].controls:  # what a run calls its controls, a comparison has at the top
            fields["controls"] = fields["evaluate"].controls
            fields["evaluate"] = dataclasses.replace(fields["evaluate"], controls=())
        if fields["output_dir"] in (RunConfig.output_dir, defaults_of(config.task, RunConfig).get("output_dir")):
            del fields["output_dir"]  # of runs; a comparison has a place of its own
        config = CompareConfig(**COMPARE_DEFAULTS[config.task] | fields)
    given: dict[str, Any] = {"strategies": strategies, "controls": controls, "seeds": seeds}
    replaced: dict[str, Any] = {name: tuple(items) for name, items in given.items() if items is not None}
    return dataclasses.replace(config, **replaced)


def _finished(plan: Sequence[PlannedRun], output_dir: Path, texts: Texts, overwrite: bool) -> set[str]:
    """Names of runs that need not be made again.

    Raises:
        InputError: the folder holds runs of these names with other settings or data.
    """
    if overwrite:
        return set()
    done, problems = set(), []
    for run in plan:
        folder = output_dir / "runs" / run.name
        if not (folder / "results.json").exists():
            continue
        differing = _differing(folder, run, texts)
        if differing:
            problems.append(f"{folder} holds a run with other settings ({'; '.join(differing)})")
        else:
            done.add(run.name)
    if problems:
        raise InputError([f"{text}: choose another --output_dir, or pass --overwrite." for text in problems])
    return done


def _differing(folder: Path, run: PlannedRun, texts: Texts) -> list[str]:
    """What a finished run was made with, where it is not what is planned."""
    import yaml

    try:
        then = from_nested(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), RunConfig)
        before, now = deciding_settings(then), deciding_settings(run.config)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return ["its config.yaml is missing or of another version"]
    differing = [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name) != now[name]]
    if then.seed != run.config.seed:
        differing.append(f"seed {then.seed}, now {run.config.seed}")
    fingerprint = texts.of(run.config).table.fingerprint
    results = read_results(folder)
    if results["data"]["fingerprint"] != fingerprint:
        differing.append("other data")
    artefact = results["artefact"]
    if run.keep_model and run.strategy not in CONTROLS and artefact["kind"] == "none":
        differing.append("its model was not kept")
    elif run.keep_model:
        missing = [form for form in run.config.publish.export if form not in (artefact["kind"], *artefact["also"])]
        differing += [f"no {form} form of it" for form in missing]
    return differing


def _open_folder(config: CompareConfig, plan: Sequence[PlannedRun]) -> None:
    """Clear what a report will replace (the runs too, with ``overwrite``) and write config and plan."""
    folder = Path(config.output_dir)
    if config.overwrite:
        for name in OUTPUTS:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)  # its presence means that the comparison is finished
    write_text(folder / "config.yaml", to_yaml(config))
    write_json(folder / "plan.json", [run.facts for run in plan])


def _handover(run: PlannedRun, alike: Sequence[str], done: set[str]) -> Handover:
    """From which of the runs that train ``alike`` a run takes training over, and whether others will go on from its
    own."""
    runs = Path(run.config.output_dir).parent
    found = [find_checkpoint_to_resume(runs / name / "checkpoints", "auto")[0] for name in alike if name != run.name]
    furthest = max(filter(None, found), key=lambda path: load_state(path).step, default=None)
    return Handover(furthest, passed_on=bool(_still_to_make(run, alike, done)))


def _drop_checkpoints(run: PlannedRun, alike: Sequence[str], done: set[str]) -> None:
    """After ``run``, of the finished runs that train ``alike`` if none goes on from them any more: models are saved, or
    were not wanted. Where ``run`` has failed they stay, for the next call."""
    runs = Path(run.config.output_dir).parent
    finished = [name for name in alike if (runs / name / "results.json").is_file()]
    if run.name in finished and not _still_to_make(run, alike, done):
        for name in finished:
            shutil.rmtree(runs / name / "checkpoints", ignore_errors=True)


def _still_to_make(run: PlannedRun, alike: Sequence[str], done: set[str]) -> list[str]:
    """Of the runs that train ``alike``, those that are to be made after ``run``."""
    return [name for name in alike[alike.index(run.name) + 1 :] if name not in done]


def _make(run: PlannedRun, texts: Texts, handover: Handover, is_main: bool) -> dict[str, str]:
    """Make one run; its failure is returned by name, with what went wrong, and does not stop the others."""
    folder = Path(run.config.output_dir)
    try:
        text = texts.of(run.config)
        if run.strategy == "scratch":
            config = scratch_config(run.config)
            results = adapt(config, text, keep_model=False, stage="scratch").results
        elif run.strategy in CONTROLS:
            results = score_control(run.strategy, run.config, text, adapt)
        else:
            results = adapt(run.config, text, run.keep_model, handover=handover).results
    except (InputError, RunError, RuntimeError, ValueError, MemoryError, OSError) as error:
        met_by_all(f"run {run.name}", error)
        if is_main and DOES_NOT_APPLY in str(error):
            print(printable(str(error)), flush=True)
        elif is_main:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "error.txt", traceback.format_exc())
            print(printable(f"{run.name} failed: {error}"), flush=True)
        return {run.name: " ".join(str(error).split())}
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(run.config))
        (folder / "error.txt").unlink(missing_ok=True)
        write_report(folder, results)
    return {}


def _report(
    config: CompareConfig, plan: Sequence[PlannedRun], failures: dict[str, str], texts: Texts
) -> dict[str, Any]:
    """Join the finished runs and write the report."""
    output_dir = Path(config.output_dir)
    failures = {name: shown_text(text, dataclasses.asdict(config)) for name, text in failures.items()}
    finished = [run for run in plan if run.name not in failures]
    if not finished:
        raise RunError(f"none of {len(plan)} runs finished: {'; '.join(failures.values())}")
    read = [read_results(output_dir / "runs" / run.name) for run in finished]
    applicable = {name: text for name, text in failures.items() if DOES_NOT_APPLY not in text}
    failed = [run.facts | {"status": "failed", "error": applicable[run.name]} for run in plan if run.name in applicable]
    joined = join(
        read,
        config=shown_config(dataclasses.asdict(config)),
        other_runs=failed,
        distances=measure_distances(finished, texts.of, output_dir / "distances.json"),
        notes=[text for name, text in failures.items() if name not in applicable],
        examples_shown=surest_mistakes(read, texts.of(finished[0].config)) if config.report.show_examples else (),
    )
    write_comparison(output_dir, joined)
    return joined
