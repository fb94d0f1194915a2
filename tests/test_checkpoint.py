"""Checkpoints for resuming: complete or absent, damage is noticed, and nothing in them is pickled."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hf_transfer import checkpoint as module
from hf_transfer.checkpoint import (
    check_identity,
    find_checkpoint_to_resume,
    load_average,
    load_best,
    load_checkpoint,
    load_state,
    save_best,
    save_checkpoint,
    save_for_average,
)
from hf_transfer.errors import InputError, RunError
from hf_transfer.records import RunState

NAMES = ("0.weight", "0.bias", "2.weight")  # of four parameters, one is frozen
IDENTITY = {"seed": 0, "train.window_size": 16}
STATE = RunState(step=5, history=({"step": 3, "value": 0.1 + 0.2},), best_value=0.30000000000000004, tokens=7)


class Run:
    """A small model with an optimizer that has averages, and its folder."""

    def __init__(self, folder: Path, seed: int = 0):
        torch.manual_seed(seed)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        named = dict(self.model.named_parameters())
        named["2.bias"].requires_grad_(False)
        self.optimizer = torch.optim.AdamW([named[name] for name in NAMES], lr=0.1)
        self.accelerator = Accelerator()

    def step(self) -> None:
        self.model(torch.ones(2, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step: int = 5, keep: int = 2, state: RunState = STATE) -> Path:
        state = replace(state, step=step)
        save_checkpoint(self.folder, self.model, NAMES, self.optimizer, state, IDENTITY, keep, self.accelerator)
        return self.folder / f"step-{step}"

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for i, state in self.optimizer.state_dict()["state"].items():
            found |= {f"{i}.{key}": value.clone() for key, value in state.items()}
        return found


@pytest.fixture
def run(tmp_path) -> Run:
    made = Run(tmp_path / "checkpoints")
    made.step()
    return made


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fails_with(error: Exception):
    def save_file(tensors, path):
        Path(path).write_bytes(b"half a fi")
        raise error

    return save_file


def test_a_checkpoint_brings_back_parameters_averages_and_state_to_the_bit(run):
    path = run.save()
    wanted = run.tensors()
    run.step()
    assert any(not torch.equal(tensor, wanted[name]) for name, tensor in run.tensors().items())
    other = Run(run.folder, seed=9)
    with torch.no_grad():
        other.model[2].bias.copy_(run.model[2].bias)  # frozen: it comes from the pretrained checkpoint
    load_checkpoint(path, other.model, other.optimizer, other.accelerator)
    found = other.tensors()
    assert set(found) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert load_state(path) == STATE
    other.step()
    assert all(torch.equal(tensor, run.tensors()[name]) for name, tensor in other.tensors().items())


def test_only_what_learns_is_stored_and_nothing_is_pickled(run):
    path = run.save()
    save_best(run.folder, run.model, NAMES, 4, run.accelerator)
    stored = load_file(path / "parameters.safetensors")
    assert {name for name in stored if "|" not in name} == set(NAMES)
    assert {name for name in stored if "|" in name} == {
        f"{n}|{k}" for n in NAMES for k in ("exp_avg", "exp_avg_sq", "step")
    }
    files = [file for file in run.folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            load_file(file)


def test_the_best_parameters_come_back(run):
    save_best(run.folder, run.model, NAMES, 4, run.accelerator)
    wanted = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.step()
    load_best(run.folder, run.model, 4, run.accelerator)
    assert all(torch.equal(p, wanted[name]) for name, p in run.model.named_parameters())


def test_the_best_parameters_survive_a_process_that_dies_between_two_renames(run):
    save_best(run.folder, run.model, NAMES, 4, run.accelerator)
    wanted = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    best = run.folder / "best" / "at-4"
    best.rename(best.with_name("at-4.old"))
    run.step()
    load_best(run.folder, run.model, 4, run.accelerator)
    assert all(torch.equal(p, wanted[name]) for name, p in run.model.named_parameters())
    shutil.copytree(best.with_name("at-4.old"), best)
    save_best(run.folder, run.model, NAMES, 4, run.accelerator)
    assert names_in(run.folder / "best") == {"at-4"}, "what was left behind does not stand in the way of the next"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_save_that_fails_ends_the_run_in_words_and_leaves_the_earlier_checkpoint(run, monkeypatch, error):
    earlier = run.save(5)
    contents = {path.name: path.read_bytes() for path in earlier.iterdir()}
    with monkeypatch.context() as broken:
        broken.setattr(module, "save_file", fails_with(error))
        with pytest.raises(RunError, match=r"step-6 could not be written .*No space left.*before it are untouched"):
            run.save(6)
        with pytest.raises(RunError):
            run.save(5)
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == contents
    assert find_checkpoint_to_resume(run.folder, "auto") == (earlier, [])
    assert find_checkpoint_to_resume(run.folder, str(earlier)) == (earlier, [])


def test_a_process_that_dies_while_saving_leaves_nothing_that_looks_complete(run, monkeypatch):
    earlier = run.save(5)
    with monkeypatch.context() as killed:
        killed.setattr(module, "save_file", fails_with(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run.save(6)
    assert not (run.folder / "step-6").exists()
    assert find_checkpoint_to_resume(run.folder, "auto") == (earlier, [])
    later = run.save(6)
    assert names_in(run.folder) == {"step-5", "step-6"}, "what was left behind is cleared by the next save"
    assert find_checkpoint_to_resume(run.folder, "auto") == (later, [])


def truncate(path: Path) -> None:
    file = path / "parameters.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    file = path / "parameters.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)


def lose_the_state(path: Path) -> None:
    (path / "state.json").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def spoil_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"state.json": [12,')


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


def list_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def name_a_file_outside(path: Path) -> None:
    """One that is there, with its right size and hash."""
    outside = path.parent / "elsewhere.json"
    outside.write_text("{}")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= {"../elsewhere.json": [2, hashlib.sha256(b"{}").hexdigest()]}
    (path / "manifest.json").write_text(json.dumps(manifest))


def name_a_file_by_its_whole_path(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[str(path.parent / "state.json")] = manifest.pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))


def link_a_file(path: Path) -> None:
    (path / "state.json").rename(path.parent / "state.json")
    (path / "state.json").symlink_to(path.parent / "state.json")


DAMAGES = {
    name_a_file_outside: "its manifest names '../elsewhere.json', which is no file of its own",
    name_a_file_by_its_whole_path: "its manifest names '/",
    link_a_file: "its manifest names 'state.json', which is no file of its own",
    truncate: "parameters.safetensors is missing or changed",
    flip_a_bit: "parameters.safetensors is missing or changed",
    lose_the_state: "state.json is missing or changed",
    lose_the_manifest: "it is not there, or has no manifest",
    spoil_the_manifest: "its manifest is unreadable",
    empty_the_manifest: "its manifest does not list",
    list_the_manifest: "its manifest is unreadable",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named_or_refused_where_it_was_asked_for(run, damage):
    good, damaged = run.save(5), run.save(6)
    damage(damaged)
    found, notes = find_checkpoint_to_resume(run.folder, "auto")
    assert found == good
    assert len(notes) == 1
    assert notes[0].startswith(f"checkpoint step-6 passed over: {DAMAGES[damage]}")
    with pytest.raises(InputError, match=f"--train.resume {damaged}: {DAMAGES[damage]}.*Give a complete step-N"):
        find_checkpoint_to_resume(run.folder, str(damaged))


def lose_it(path: Path) -> None:
    shutil.rmtree(path)


def lose_the_parameters(path: Path) -> None:
    (path / "parameters.safetensors").unlink()


@pytest.mark.parametrize("damage", [lose_it, lose_the_parameters, truncate, flip_a_bit, spoil_the_manifest])
def test_a_checkpoint_whose_best_step_is_damaged_is_passed_over_and_the_step_is_not_put_back(run, damage):
    """A run that went on from there would come to its end and then have nothing to end with."""
    save_best(run.folder, run.model, NAMES, 3, run.accelerator)
    good = run.save(4, state=replace(STATE, best_step=3))
    save_best(run.folder, run.model, NAMES, 5, run.accelerator)
    later, last = (run.save(step, keep=3, state=replace(STATE, best_step=5)) for step in (5, 6))
    assert find_checkpoint_to_resume(run.folder, "auto") == (last, [])
    damage(run.folder / "best" / "at-5")
    found, notes = find_checkpoint_to_resume(run.folder, "auto")
    assert found == good
    assert [note.split(": ")[0] for note in notes] == [f"checkpoint step-{n} passed over" for n in (6, 5)]
    assert all("the parameters of its best step, best/at-5: " in note for note in notes)
    with pytest.raises(InputError, match=f"{later}: the parameters of its best step, best/at-5: "):
        find_checkpoint_to_resume(run.folder, str(later))
    before = run.tensors()
    with pytest.raises(RunError, match=r"best/at-5.*was damaged: .*--train\.resume auto"):
        load_best(run.folder, run.model, 5, run.accelerator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.tensors().items())


@pytest.mark.parametrize("damage", [lose_it, truncate, flip_a_bit])
def test_steps_to_average_that_are_damaged_are_not_averaged(run, damage):
    for steps in ((2,), (2, 4)):
        save_for_average(run.folder, run.model, NAMES, steps, run.accelerator)
    damage(run.folder / "average" / "at-2")
    with pytest.raises(RunError, match=r"average/at-2.*was damaged: .*start afresh"):
        load_average(run.folder, run.model, (2, 4), run.accelerator)


def test_the_scale_of_fp16_comes_back_without_an_optimizer_too(run):
    """As where a stage begins with the first step after the checkpoint."""
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    run.accelerator.scaler.scale(torch.ones(()))
    path = run.save(5)
    scaler = run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    load_checkpoint(path, run.model, None, run.accelerator)
    assert scaler.get_scale() == 8.0


def averaging(run, monkeypatch, steps, count=2):
    """A checkpoint at the last of ``steps``, each of which was validated and may be averaged, the last ``count``."""
    monkeypatch.setitem(IDENTITY, "train.average_checkpoints", count)
    for last in range(1, len(steps) + 1):
        save_for_average(run.folder, run.model, NAMES, steps[:last][-count:], run.accelerator)
    return run.save(
        steps[-1], state=replace(STATE, best_step=-1, history=tuple({"step": n, "value": 0} for n in steps))
    )


def test_steps_that_a_checkpoint_averages_outlive_those_that_came_after_it(run, monkeypatch):
    """A run that goes on from there may end before it comes past them again."""
    path = averaging(run, monkeypatch, (1, 2, 3))
    for steps in ((3, 4), (4, 5), (5, 6)):
        save_for_average(run.folder, run.model, NAMES, steps, run.accelerator)
    assert names_in(run.folder / "average") == {"at-2", "at-3", "at-5", "at-6"}
    assert find_checkpoint_to_resume(run.folder, "auto") == (path, [])
    load_average(run.folder, run.model, (2, 3), run.accelerator)


@pytest.mark.parametrize("damage", [lose_it, truncate, flip_a_bit])
def test_a_checkpoint_whose_steps_to_average_are_damaged_is_passed_over(run, monkeypatch, damage):
    path = averaging(run, monkeypatch, (1, 2, 3))
    assert find_checkpoint_to_resume(run.folder, "auto") == (path, [])
    damage(run.folder / "average" / "at-2")
    found, (note,) = find_checkpoint_to_resume(run.folder, "auto")
    assert found is None
    assert note.startswith("checkpoint step-3 passed over: the parameters to be averaged, average/at-2: ")


def test_there_may_be_nothing_to_resume(run):
    assert find_checkpoint_to_resume(run.folder, None) == (None, [])
    assert find_checkpoint_to_resume(run.folder, "auto") == (None, [])
    truncate(run.save(5))
    found, notes = find_checkpoint_to_resume(run.folder, "auto")
    assert (found, len(notes)) == (None, 1)
    with pytest.raises(InputError, match="nowhere: it is not there"):
        find_checkpoint_to_resume(run.folder, "nowhere")


def test_the_folder_of_the_best_parameters_is_no_checkpoint_to_resume_from(run):
    save_best(run.folder, run.model, NAMES, 4, run.accelerator)
    with pytest.raises(InputError, match="it holds parameters only, without the state of training"):
        find_checkpoint_to_resume(run.folder, str(run.folder / "best" / "at-4"))
    assert find_checkpoint_to_resume(run.folder, "auto") == (None, [])


def test_the_newest_is_found_by_number_and_only_those_beyond_keep_are_deleted(run):
    for step in (8, 9, 10):
        run.save(step, keep=3)
    (run.folder / "step-notes").mkdir()
    assert find_checkpoint_to_resume(run.folder, "auto")[0] == run.folder / "step-10"
    run.save(11, keep=2)
    assert names_in(run.folder) == {"step-10", "step-11", "step-notes"}


def test_nothing_is_deleted_before_the_new_checkpoint_is_complete(run, monkeypatch):
    run.save(5, keep=1)
    with monkeypatch.context() as broken:
        broken.setattr(module, "save_file", fails_with(OSError(28, "No space left on device")))
        with pytest.raises(RunError):
            run.save(6, keep=1)
    assert find_checkpoint_to_resume(run.folder, "auto")[0] == run.folder / "step-5"
    run.save(6, keep=1)
    assert names_in(run.folder) == {"step-6"}


def test_a_damaged_later_checkpoint_never_pushes_out_the_good_ones(run):
    """After `auto` passed over step 10, the run goes on from step 5 and must keep what it writes."""
    run.save(5, keep=1)
    truncate(run.save(10, keep=2))
    run.save(6, keep=1)
    assert find_checkpoint_to_resume(run.folder, "auto")[0] == run.folder / "step-6"
    run.save(10, keep=1)
    assert names_in(run.folder) == {"step-10"}
    assert find_checkpoint_to_resume(run.folder, "auto") == (run.folder / "step-10", [])


def test_saving_the_same_step_again_replaces_it(run):
    run.save(5)
    run.step()
    path = run.save(5)
    wanted = dict(run.model.named_parameters())["0.weight"]
    assert torch.equal(load_file(path / "parameters.safetensors")["0.weight"], wanted)
    assert names_in(run.folder) == {"step-5"}


def test_a_checkpoint_of_other_settings_is_refused_with_both_values(run):
    path = run.save()
    check_identity(path, IDENTITY)
    with pytest.raises(InputError, match=r"belongs to another run \(train\.window_size was 16, now 32\)"):
        check_identity(path, IDENTITY | {"train.window_size": 32})
    with pytest.raises(InputError, match=r"\(adapt\.freeze was None, now '2'\)"):
        check_identity(path, IDENTITY | {"adapt.freeze": "2"})


def test_a_checkpoint_can_be_moved(run, tmp_path):
    path = run.save()
    shutil.move(path, tmp_path / "elsewhere")
    assert find_checkpoint_to_resume(run.folder, str(tmp_path / "elsewhere"))[0] == tmp_path / "elsewhere"
