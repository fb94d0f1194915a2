"""Floor 3: checkpoints that are complete or absent, and continuing from one.

A checkpoint holds what training changes: trainable parameters, the optimizer's averages, and ``RunState``. It is
written to a temporary folder, flushed and renamed; a manifest lists size and sha256 of each file. Tensors are
safetensors, the rest is JSON: nothing on the way back is unpickled. Draws need no state, because each window's order
and dropout are derived from (seed, step, process).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hf_transfer.config import TRAINED_ALIKE, share_of_general
from hf_transfer.errors import InputError, NotWritten, RunError
from hf_transfer.launch import whole_tensor
from hf_transfer.records import RunState

AVERAGES = ("exp_avg", "exp_avg_sq", "step")
AFTER_TRAINING = ("adapt.interpolation", "adapt.general_weight")
"""Settings of what ``interpolated`` does with a model that is trained."""


@dataclass(frozen=True)
class Handover:
    """Training that several runs of a comparison have in common, and one of them does."""

    taken_from: Path | None = None
    """The checkpoint to go on from."""
    passed_on: bool = False
    """Another run will go on from this one's last step."""


BY_ITSELF = Handover()
"""Of a run that has no training in common with others."""


@dataclass(frozen=True)
class RunFolder:
    """Where training leaves its log and checkpoints."""

    log: Path
    checkpoints: Path
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What must be equal for a checkpoint to be continued from."""
    resume_from: Path | None = None
    keeps_end: bool = False
    """A checkpoint of the last step is written in any case, for other runs to go on from."""

    @property
    def continues_here(self) -> bool:
        """Whether the run that is continued was made in this folder, so that its log goes on."""
        return self.resume_from is not None and self.resume_from.parent.resolve() == self.checkpoints.resolve()

    @property
    def done_steps(self) -> int:
        """Steps that lie behind a run that is continued."""
        return load_state(self.resume_from).step if self.resume_from else 0


def read_parameters(model: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Copies of the named parameters on the host, whole even where processes hold shards. All processes call it."""
    wanted = set(names)
    return {name: whole_tensor(p) for name, p in model.named_parameters() if name in wanted}


def write_parameters(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy ``tensors`` into the parameters of the same names, in place."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name].copy_(_like(tensor, named[name]))


def save_best(folder: Path, model: nn.Module, names: Iterable[str], step: int, accelerator: Accelerator) -> None:
    """Keep the trainable parameters of ``step``, the best so far, under ``folder/best/at-N``.

    Those of earlier steps go, but for the ones that a checkpoint calls its best: a run that is continued from there may
    end before it comes past ``step`` again.
    """
    tensors = read_parameters(accelerator.unwrap_model(model), names)
    if accelerator.is_main_process:
        _write_folder(folder / "best" / f"at-{step}", tensors, {})
        needed = {f"at-{number}" for number in (step, *(_state_in(path).best_step for path in _checkpoints(folder)))}
        for path in (folder / "best").glob("at-*"):
            if path.name not in needed:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def load_best(folder: Path, model: nn.Module, step: int, accelerator: Accelerator) -> None:
    """Put the parameters of the best ``step`` back.

    Raises:
        RunError: they are gone, or not what was written.
    """
    write_parameters(accelerator.unwrap_model(model), _parameters_in(_best_folder(folder, step)))


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    names: Iterable[str],
    optimizer: torch.optim.Optimizer | None,
    state: RunState,
    identity: Mapping[str, Any],
    keep: int,
    accelerator: Accelerator,
) -> None:
    """Write ``folder/step-N``; older checkpoints beyond ``keep`` go once it is complete.

    ``optimizer``: None after the last step, where only the parameters are of use to others.
    """
    module = accelerator.unwrap_model(model)
    tensors = read_parameters(module, names)
    if optimizer is not None:
        tensors |= _read_averages(module, optimizer)
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        record = {"state": dataclasses.asdict(state), "identity": dict(identity), "scaler": scaler}
        _write_folder(folder / f"step-{state.step}", tensors, record)
        drop_older(folder, state.step, keep)
    accelerator.wait_for_everyone()


def drop_older(folder: Path, step: int, keep: int) -> None:
    """Take away the checkpoints beyond the newest ``keep`` of those up to ``step``.

    Those of later steps belong to a run that this one was continued in place of: they never push a good one out.
    """
    written = [path for path in _checkpoints(folder) if _step_of(path) <= step]
    for old in written[keep:]:
        shutil.rmtree(old)


def save_for_average(
    folder: Path, model: nn.Module, names: Iterable[str], steps: Iterable[int], accelerator: Accelerator
) -> None:
    """Write the parameters of the last of ``steps`` to ``folder/average``; those of other steps go, but for the ones
    that a run needs which is continued from a checkpoint."""
    tensors = read_parameters(accelerator.unwrap_model(model), names)
    steps = list(steps)
    if accelerator.is_main_process:
        _write_folder(folder / "average" / f"at-{steps[-1]}", tensors, {})
        validated = [item["step"] for path in _checkpoints(folder) for item in _state_in(path).history[-len(steps) :]]
        needed = {*steps, *validated}
        for path in (folder / "average").glob("at-*"):
            if path.name not in {f"at-{step}" for step in needed}:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def load_average(folder: Path, model: nn.Module, steps: Iterable[int], accelerator: Accelerator) -> None:
    """Put the mean of the parameters that ``save_for_average`` wrote at ``steps`` into ``model``.

    Raises:
        RunError: some are gone, or not what was written.
    """
    paths = [folder / "average" / f"at-{step}" for step in steps]
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        for name, tensor in _parameters_in(path).items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    write_parameters(
        accelerator.unwrap_model(model), {name: (tensor / len(paths)).float() for name, tensor in total.items()}
    )


def find_checkpoint_to_resume(folder: Path, resume: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint that ``train.resume`` means, and sentences about damaged ones that were passed over.

    Raises:
        InputError: a named checkpoint that is absent or damaged.
    """
    if resume is None:
        return None, []
    if resume != "auto":
        damage = _damage(Path(resume))
        if damage:
            raise InputError(f"--train.resume {resume}: {damage}. Give a complete step-N folder, or auto.")
        return Path(resume), []
    notes: list[str] = []
    for candidate in _checkpoints(folder):
        damage = _damage(candidate)
        if not damage:
            return candidate, notes
        notes.append(f"checkpoint {candidate.name} passed over: {damage}")
    return None, notes


def check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to continue a run of another kind.

    Raises:
        InputError: not all fields that decide the numbers are the same.
    """
    differing = differing_fields(path, identity)
    if differing:
        raise InputError(
            f"--train.resume: {path.name} belongs to another run ({'; '.join(differing[:5])}). "
            "Resume with the same settings, or start afresh with another --output_dir."
        )


def differing_fields(path: Path, identity: Mapping[str, Any]) -> list[str]:
    """What decides the numbers of training and is not the same in the checkpoint ``path``, in words."""
    saved = load_identity(path)
    current = json.loads(json.dumps(identity))
    if saved.get("train.precision") == "auto":  # of an earlier version, which did not say what that had become
        current.pop("train.precision", None)
    if "weights" not in saved:  # likewise, which did not say whose they were
        current.pop("weights", None)
    then, now = training_of(saved), training_of(current)
    differing = []
    for name in [name for name in now if then.get(name) != now[name]]:
        given = (saved.get(name), current[name])
        was, is_now = given if given[0] != given[1] else (then.get(name), now[name])
        differing.append(f"{name} was {was!r}, now {is_now!r}")
    return differing


def training_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``identity`` decides what the loop learns: the same for strategies that train alike."""
    decides = {name: value for name, value in identity.items() if name not in AFTER_TRAINING}
    strategy = decides.get("adapt.strategy")
    if strategy not in TRAINED_ALIKE:
        return decides
    share = share_of_general(strategy, decides.get("data.general_share"))
    return decides | {"adapt.strategy": TRAINED_ALIKE[0], "data.general_share": share}


def load_identity(path: Path) -> dict[str, Any]:
    """What decided the numbers of the training that left the checkpoint ``path``, by dotted name."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))["identity"]


def load_state(path: Path) -> RunState:
    """The ``RunState`` of a checkpoint."""
    return _read_state(json.loads((path / "state.json").read_text(encoding="utf-8")))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, accelerator: Accelerator
) -> None:
    """Put parameters, fp16's scale, and the averages of ``optimizer`` where it is given, back as they were."""
    tensors = load_file(path / "parameters.safetensors")
    averages = {name: tensor for name, tensor in tensors.items() if "|" in name}
    module = accelerator.unwrap_model(model)
    write_parameters(module, {name: tensor for name, tensor in tensors.items() if "|" not in name})
    scaler = json.loads((path / "state.json").read_text(encoding="utf-8"))["scaler"]
    if scaler and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(scaler)
    if optimizer is None:
        return
    names = {id(p): name for name, p in module.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = names[id(p)]
            if f"{name}|step" in averages:
                optimizer.state[p] = {
                    key: _like(averages[f"{name}|{key}"], p) if key != "step" else averages[f"{name}|step"].to(p.device)
                    for key in AVERAGES
                }


def _read_averages(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{names[id(p)]}|{key}": whole_tensor(value)
        for group in optimizer.param_groups
        for p in group["params"]
        for key, value in optimizer.state.get(p, {}).items()
        if key in AVERAGES
    }


def _like(tensor: torch.Tensor, parameter: Any) -> torch.Tensor:
    """``tensor`` on the device of ``parameter``, sharded the same way."""
    tensor = tensor.to(parameter.device)
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def _checkpoints(folder: Path) -> list[Path]:
    """``step-N`` folders, newest first."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _best_folder(folder: Path, step: int) -> Path:
    """Where ``save_best`` has left the parameters of ``step``."""
    best = folder / "best" / f"at-{step}"
    return best if best.is_dir() else best.with_name(f"{best.name}.old")  # died between two renames


def _parameters_in(path: Path) -> dict[str, torch.Tensor]:
    damage = _changed_files(path)
    if damage:
        raise RunError(
            f"{path}, which the run is to end with, was damaged: {damage}. Continue with --train.resume auto, which "
            "takes the newest checkpoint with all that belongs to it, or start afresh."
        )
    return load_file(path / "parameters.safetensors")


def _write_folder(target: Path, tensors: dict[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write everything beside ``target``, flush it to disk, and rename it into place.

    Raises:
        NotWritten: the disk failed, or the folder of all checkpoints is gone: it is not made anew, since what belongs
            to the run would then lie in two places.
    """
    temporary = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.parent.name in ("best", "average"):
            target.parent.mkdir(exist_ok=True)
        temporary.mkdir()
        save_file(tensors, temporary / "parameters.safetensors")
        (temporary / "state.json").write_text(json.dumps(record), encoding="utf-8")
        manifest = {path.name: [path.stat().st_size, _sha256(path)] for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        old = target.with_name(target.name + ".old")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a process that died just here
            target.replace(old)
        temporary.replace(target)
        for folder in (target.parent, target.parent.parent):  # the latter for the first one in a folder of its kind
            flush(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # a full disk is the latter while tensors are written
        raise NotWritten(
            f"checkpoint {target} could not be written ({error}); those before it are untouched."
        ) from error


def _read_state(record: Mapping[str, Any]) -> RunState:
    """The state in what state.json holds.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: it is not what ``save_checkpoint`` writes.
    """
    saved = record["state"]
    as_tuples = {name: tuple(saved.get(name, ())) for name in ("history", "processes")}
    state = RunState(**(saved | as_tuples))
    for field in dataclasses.fields(RunState):
        value, usual = getattr(state, field.name), field.default
        kinds = (int, float) if isinstance(usual, float) else type(usual)
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual, bool):
            raise ValueError(f"{field.name} is {value!r}")
    if state.step < 0 or not all(isinstance(item["step"], int) and "value" in item for item in state.history):
        raise ValueError(f"step {state.step}, validated at {state.history!r}")
    if not all(type(count) is int for count in state.processes):
        raise ValueError(f"shared by {state.processes!r} processes")
    if not isinstance(record["identity"], dict):
        raise ValueError(f"identity is {record['identity']!r}")
    return state


def _state_in(path: Path) -> RunState:
    """The state of the checkpoint ``path``; one of a run that has not begun where it cannot be continued from."""
    try:
        return load_state(path)
    except (ValueError, TypeError, AttributeError, LookupError, OSError, RecursionError):
        return RunState()


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint folder, or the best parameters that it names; "" if all is complete."""
    changed = _changed_files(path)
    if changed:
        return changed
    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if "state" not in record:
            return "it holds parameters only, without the state of training"
        state = _read_state(record)
        averaged = int(record["identity"].get("train.average_checkpoints", 0))
        validated = [item["step"] for item in state.history]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        return f"its state is unreadable ({error})"
    if state.best_step >= 0:
        changed = _changed_files(_best_folder(path.parent, state.best_step))
        if changed:
            return f"the parameters of its best step, best/at-{state.best_step}: {changed}"
    for step in validated[-averaged:] if averaged > 0 else ():
        changed = _changed_files(path.parent / "average" / f"at-{step}")
        if changed:
            return f"the parameters to be averaged, average/at-{step}: {changed}"
    return ""


def _changed_files(path: Path) -> str:
    """What of ``path`` is not as its manifest says; "" if all is."""
    if not (path / "manifest.json").is_file():
        return "it is not there, or has no manifest"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, (size, digest) in manifest.items():
            file = path / name
            if file.parent != path or file.is_symlink():
                return f"its manifest names {name!r}, which is no file of its own"
            if not file.is_file() or file.stat().st_size != size or _sha256(file) != digest:
                return f"{name} is missing or changed"
        if "parameters.safetensors" not in manifest or "state.json" not in manifest:
            return "its manifest does not list parameters.safetensors and state.json"
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        return f"its manifest is unreadable ({error})"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk, so that they outlive the machine.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
