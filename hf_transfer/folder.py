"""Floor 4: the output folder: whether it may be used, and what a run leaves in it."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_transfer.checkpoint import (
    BY_ITSELF,
    Handover,
    RunFolder,
    check_identity,
    differing_fields,
    find_checkpoint_to_resume,
    flush,
    load_identity,
    load_state,
)
from hf_transfer.config import CompareConfig, RunConfig, to_yaml
from hf_transfer.errors import InputError, NotWritten, RunError

OUTPUTS = (
    "results.json",
    "report.md",
    "report.html",
    "figures",
    "log.jsonl",
    "config.yaml",
    "model",
    "merged",
    "checkpoints",
    "features",
    "controls",
    "translations",
    "ctranslate2",
    "trackers",
    "trackers.json",
    "onnx",
)
TRACKED = ("trackers", "trackers.json")
# Settings that may change between a stop and its continuation: they do not change what is learnt from (the cut of a
# window changes dropout's draws only), and where data come from may change since the fingerprint may not.
FREE_TO_CHANGE = {
    "checkpoint_steps",
    "keep_checkpoints",
    "resume",
    "tokens_per_micro_batch",
    "feature_cache_bytes",
    "activation_checkpointing",
    "compile",
    "source",
    "subset",
}


SECONDS_TO_APPEAR = 60
"""In which a file that one machine wrote is seen by the others; NFS keeps what it knows of a folder for up to 60."""
DISK_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}


def check_output_dir(config: RunConfig) -> Path:
    """The output folder, if a run may write there; nothing is created.

    Raises:
        InputError: ``overwrite`` is off and it holds a finished run, or files of other origin that bear the names of a
            run's; or it cannot be written.
    """
    folder = Path(config.output_dir)
    if (folder / "results.json").exists() and not config.overwrite:
        raise InputError(
            f"--output_dir {folder} already holds a finished run (results.json): choose another folder, or pass "
            "--overwrite to replace it."
        )
    check_place(config, OUTPUTS, "run")
    unfinished = sorted(path.name for path in (folder / "checkpoints").glob("step-*[0-9]"))
    if unfinished and not config.overwrite and config.train.resume is None and not (folder / "results.json").exists():
        raise InputError(
            f"--output_dir {folder} holds an unfinished run with checkpoints ({', '.join(unfinished)}): continue it "
            "with --train.resume auto, or start afresh with --overwrite."
        )
    return folder


def check_place(config: RunConfig, outputs: Sequence[str], kind: str) -> None:
    """See that ``outputs`` may be written and replaced in the output folder of a ``kind``: a run or a comparison.

    Raises:
        InputError: they are of other origin and ``overwrite`` is off, or this run reads one of them; or the folder
            cannot be written.
    """
    folder = Path(config.output_dir)
    if folder.resolve() in (Path(folder.resolve().anchor), Path.home()):
        raise InputError(f"--output_dir {folder} is no place for a {kind}'s files: choose a folder of its own.")
    taken = [name for name in outputs if os.path.lexists(folder / name)]
    if taken and not config.overwrite and not _is_of(folder, type(config)):
        raise InputError(
            f"--output_dir {folder} holds {', '.join(taken)}, which no {kind} has left there (its config.yaml is "
            f"missing or of another kind) and which a {kind} would replace: choose another folder, or pass --overwrite."
        )
    for flag, path in _read_from(config):
        if any(path.is_relative_to((folder / name).resolve()) for name in taken):
            raise InputError(
                f"--{flag} {path} lies in --output_dir {folder}, where this {kind} would replace it: choose another "
                "--output_dir."
            )
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"--output_dir {folder}: {nearest} is a file, not a folder; choose another path.")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"--output_dir {folder}: {nearest} cannot be written; choose another path.")


def _read_from(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Files and folders on this machine that a run reads, under the flags that name them."""
    given = [("model.checkpoint", config.model.checkpoint.removeprefix("scratch:"))]
    for flag, text in (("data.source", config.data.source), ("data.general_source", config.data.general_source or "")):
        given += [(flag, item) for item in (text, *text.split(","))]  # two files, or a name with a comma
    for flag, name in given:
        path = Path(name.strip()).expanduser()
        if name.strip() and path.exists():
            yield flag, path.resolve()


def open_run_folder(
    config: RunConfig, fingerprint: str, accelerator: Accelerator, handover: Handover = BY_ITSELF, weights: str = ""
) -> tuple[RunFolder, tuple[str, ...]]:
    """Clear what an earlier run left (its checkpoints stay where this run continues from them) and write the config.

    ``weights``: sha256 of those that training starts from, since its checkpoints hold what learns alone; "" of random
    ones, which the seed decides.

    Returns where training writes, and sentences about damaged checkpoints, and training that was taken over.

    Raises:
        InputError: a checkpoint to resume that is absent, damaged or of another run, and nothing has been changed; or
            processes that do not see the same folder.
    """
    folder = Path(config.output_dir)
    resume_from, notes = find_checkpoint_to_resume(folder / "checkpoints", config.train.resume)
    identity = run_identity(config, fingerprint, accelerator) | {"weights": weights}
    taken = handover.taken_from if resume_from is None else None
    if taken is not None and not differing_fields(taken, identity):
        resume_from = taken
    else:
        taken = None
    opened = RunFolder(folder / "log.jsonl", folder / "checkpoints", identity, resume_from, handover.passed_on)
    if resume_from is not None:
        check_identity(resume_from, identity)
    stay: tuple[str, ...] = ()
    if opened.continues_here or (resume_from is not None and not config.overwrite):
        stay = ("checkpoints", "log.jsonl", *TRACKED)
        _check_that_checkpoints_are_of(opened)
    # all have looked before anything goes, and go on from the same place
    _see_the_same(_place_of(opened), "continue from checkpoint", folder)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            if name in stay or (name == "controls" and opened.continues_here):
                continue  # controls of another run would be continued in vain
            if name == "features":  # open already, by each process its own (``drop_stale_features``)
                _drop_features_of_others(folder / name, accelerator.num_processes)
                continue
            path = folder / name
            if name == "config.yaml":  # replaced below: it marks the folder as a run's, so it must never be missing
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        _write_durably(folder / "config.yaml", to_yaml(config))
        _bring_best(resume_from, folder / "checkpoints")
        if taken is not None:
            _bring_log(taken, opened.log)
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        _see_the_same(_config_in(folder, to_yaml(config)), "find a config.yaml", folder)
    notes += _other_processes(resume_from, accelerator.num_processes)
    if taken is not None:
        theirs = load_identity(taken)["adapt.strategy"]
        notes.append(
            f"{config.adapt.strategy} trains as {theirs} does and took its training over: the seconds, tokens and "
            "memory of training told here are those of that one"
        )
    return opened, tuple(notes)


def _write_durably(path: Path, text: str) -> None:
    """Write ``text`` so that it outlives the machine: without it, nobody could tell whose the checkpoints are."""
    path.write_text(text, encoding="utf-8")
    for written in (path, path.parent, path.absolute().parent.parent):
        flush(written)


def _see_the_same(mine: str, do: str, folder: Path) -> None:
    """Refuse a folder in which the processes see different things. All of them call it.

    Raises:
        InputError: the folder is not on storage that all machines share.
    """
    seen = gather_object([mine])
    if len(set(seen)) > 1:
        views = ", ".join(f"process {rank}: {view}" for rank, view in enumerate(seen))
        raise InputError(
            f"--output_dir {folder} is not one folder for all processes, which {do} ({views}): choose one on storage "
            "that all machines share."
        )


def _config_in(folder: Path, expected: str) -> str:
    """Whether ``config.yaml`` there is the one just written; network storage may show it after a while only."""
    path, deadline = folder / "config.yaml", time.monotonic() + SECONDS_TO_APPEAR
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text(encoding="utf-8") == expected:
            return "of this run"
        time.sleep(0.2)
    return "of another run" if path.is_file() else "missing"


def _other_processes(resume_from: Path | None, processes: int) -> list[str]:
    """A sentence if the checkpoint comes from another number of processes."""
    before = load_state(resume_from).processes if resume_from is not None else ()
    if set(before) <= {processes}:
        return []
    names = " then ".join(map(str, before if before[-1] == processes else (*before, processes)))
    return [
        f"continued on another number of processes ({names}): the gradient of each window is the same to rounding "
        "(1e-6, and but for the draws of dropout), the run is not the same to the bit"
    ]


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Say in one sentence that ``folder`` cannot be written any more, and what is left to go on from.

    Raises:
        RunError: the disk is full, read-only, broken or gone.
    """
    try:
        yield
    except (OSError, NotWritten) as error:
        if isinstance(error, OSError) and error.errno not in DISK_FAILURES and folder.is_dir():
            raise
        whole, _ = find_checkpoint_to_resume(folder / "checkpoints", "auto")
        if not folder.is_dir():
            rest = "It is gone: bring it back and go on with --train.resume auto, or start again."
        elif whole:
            rest = f"{whole} is complete: mend the disk and go on with --train.resume auto."
        else:
            rest = "No checkpoint was written (--train.checkpoint_steps): mend the disk and start again."
        raise RunError(f"{folder} cannot be written any more ({error}). {rest}") from error


def how_to_go_on(config: RunConfig) -> str:
    """What to do after a run of several processes was cut short."""
    if config.train.checkpoint_steps:
        return "Start all processes again with --train.resume auto to go on from the last checkpoint."
    return "Start all processes again; with --train.resume auto they go on from a checkpoint if there is one."


def after_a_signal(output_dir: Path) -> str:
    """What to do after a run was told to leave."""
    if any((output_dir / "checkpoints").glob("step-*")):
        return "the same command with --train.resume auto goes on from the last checkpoint"
    return "there is no checkpoint, and the same command begins anew"


def drop_unasked_checkpoints(config: RunConfig) -> None:
    """A finished run, with its controls, keeps no state of training that was only written for the case that it would
    not finish."""
    if not config.train.checkpoint_steps:
        for folder in ("checkpoints", "controls/*/checkpoints"):
            for path in Path(config.output_dir).glob(f"{folder}/step-*"):
                shutil.rmtree(path)


def drop_stale_features(config: RunConfig) -> None:
    """Take away what this process stored in an earlier run, unless this one continues it. Before the store is opened:
    under an open one, rows could neither be found nor added."""
    resume, checkpoints = config.train.resume, Path(config.output_dir) / "checkpoints"
    if resume is None or (resume == "auto" and not any(checkpoints.glob("step-*"))):
        shutil.rmtree(feature_folder(config), ignore_errors=True)


def _drop_features_of_others(features: Path, processes: int) -> None:
    """Those of an earlier run of more processes."""
    for path in features.glob("*"):
        if path.name not in map(str, range(processes)):
            shutil.rmtree(path)


def feature_folder(config: RunConfig | CompareConfig) -> Path:
    """Where this process keeps stored features that memory does not hold; gone when the work is done."""
    return Path(config.output_dir) / "features" / os.environ.get("RANK", "0")


def _bring_best(resume_from: Path | None, checkpoints: Path) -> None:
    """What a run may end with lies beside the checkpoint: the best step so far, and the steps whose weights are
    averaged; a run that continues it elsewhere needs them there."""
    if resume_from is None or resume_from.parent.resolve() == checkpoints.resolve():
        return
    for name in ("best", "average"):
        if (resume_from.parent / name).is_dir():
            shutil.copytree(resume_from.parent / name, checkpoints / name, dirs_exist_ok=True)


def _bring_log(taken: Path, log: Path) -> None:
    """The records of a training that is taken over, in place of any that lie there; gone where they were lost."""
    log.unlink(missing_ok=True)
    theirs = taken.parent.parent / log.name
    if theirs.is_file():
        shutil.copyfile(theirs, log)


def _place_of(opened: RunFolder) -> str:
    """Which checkpoint is continued from, in words that do not depend on where a machine has its disks."""
    path = opened.resume_from
    if path is None:
        return "none"
    return path.name if opened.continues_here else f"{path.name} of {path.parent.parent.name}"


def _check_that_checkpoints_are_of(opened: RunFolder) -> None:
    """Refuse to put checkpoints among those of another run: by their numbers, they would pass for one.

    Raises:
        InputError: names what differs.
    """
    own, _ = find_checkpoint_to_resume(opened.checkpoints, "auto")
    differing = differing_fields(own, opened.identity) if own is not None else []
    if differing:
        raise InputError(
            f"--output_dir {opened.checkpoints.parent} holds an unfinished run of other settings "
            f"({'; '.join(differing[:5])}): choose another folder for what goes on from --train.resume "
            f"{opened.resume_from}, or pass --overwrite."
        )


def _is_of(folder: Path, record: type[RunConfig]) -> bool:
    """Whether ``config.yaml`` has the sections of ``record`` that a run or a comparison writes, in that order."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.findall(r"^(\w+):", text, re.MULTILINE) == [item.name for item in dataclasses.fields(record)]


def run_identity(config: RunConfig, fingerprint: str, accelerator: Accelerator) -> dict[str, object]:
    """What must be equal for a checkpoint to be continued from: data, seed, what decides the numbers, flat."""
    precision = accelerator.mixed_precision.replace("no", "fp32")  # what `auto` has become
    about = {"fingerprint": fingerprint, "seed": config.seed}
    return about | deciding_settings(config) | {"train.precision": precision}


def deciding_settings(config: RunConfig) -> dict[str, object]:
    """Settings that decide the numbers of a run, flat."""
    sections: dict[str, Any] = {
        "data": config.data,
        "model": config.model,
        "adapt": config.adapt,
        "train": config.train,
        "evaluate": config.evaluate,
    }
    return {
        f"{section}.{name}": value
        for section, record in sections.items()
        for name, value in dataclasses.asdict(record).items()
        if name not in FREE_TO_CHANGE
    }
