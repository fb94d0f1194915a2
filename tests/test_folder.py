"""The output folder: whether a run may use it, and what a run clears away."""

import errno
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hf_transfer import folder
from hf_transfer.checkpoint import Handover, save_checkpoint
from hf_transfer.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from hf_transfer.errors import InputError, RunError
from hf_transfer.folder import check_output_dir, disk_failures, drop_stale_features, open_run_folder
from hf_transfer.records import RunState

ALONE = SimpleNamespace(
    wait_for_everyone=lambda: None,
    is_main_process=True,
    num_processes=1,
    unwrap_model=lambda model: model,
    scaler=None,
    mixed_precision="no",
)
SECOND = SimpleNamespace(wait_for_everyone=lambda: None, is_main_process=False, num_processes=1, mixed_precision="no")


def leave_a_run(folder, finished: bool = True, config: RunConfig | None = None):
    """What an earlier run leaves, and a file of the user's beside it."""
    for name in ("model", "merged", "checkpoints"):
        (folder / name).mkdir(parents=True)
        (folder / name / "inside").write_text("old", encoding="utf-8")
    for name in ("report.md", "log.jsonl", *(["results.json"] if finished else [])):
        (folder / name).write_text("old", encoding="utf-8")
    (folder / "config.yaml").write_text(to_yaml(config or RunConfig()), encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "photos").mkdir()
    return folder


def save_step(folder, identity, step=3, **state):
    model = torch.nn.Linear(2, 2)
    optimizer = SimpleNamespace(param_groups=[], state={})  # a real one imports torch's compiler, which takes 5 s
    names = [name for name, _ in model.named_parameters()]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "checkpoints", model, names, optimizer, RunState(step=step, **state), identity, 2, ALONE)


def config_for(folder, **settings) -> RunConfig:
    return RunConfig(output_dir=str(folder), **settings)


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as caught:
        check_output_dir(config)
    return str(caught.value)


# --- whether it may be used ---


def test_a_folder_that_is_not_there_may_be_used_and_is_not_made(tmp_path):
    wanted = tmp_path / "a" / "b"
    assert check_output_dir(config_for(wanted)) == wanted
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert check_output_dir(config_for(tmp_path)) == tmp_path


def test_a_finished_run_is_kept_unless_overwrite_is_given(tmp_path):
    leave_a_run(tmp_path)
    assert "already holds a finished run (results.json)" in refusal(config_for(tmp_path))
    assert "pass --overwrite" in refusal(config_for(tmp_path))
    assert check_output_dir(config_for(tmp_path, overwrite=True)) == tmp_path


def test_a_run_that_did_not_finish_may_be_run_again(tmp_path):
    leave_a_run(tmp_path, finished=False)
    assert check_output_dir(config_for(tmp_path)) == tmp_path


@pytest.mark.parametrize("theirs", ["model", "config.yaml", "report.md"])
def test_what_no_run_has_left_there_is_not_replaced_unasked(tmp_path, theirs):
    if theirs == "model":
        (tmp_path / theirs).mkdir()
    else:
        (tmp_path / theirs).write_text("model: mine\n", encoding="utf-8")
    said = refusal(config_for(tmp_path))
    assert f"holds {theirs}, which no run has left there" in said
    assert "choose another folder, or pass --overwrite" in said
    assert check_output_dir(config_for(tmp_path, overwrite=True)) == tmp_path


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    assert f"{tmp_path / 'taken'} is a file, not a folder" in refusal(config_for(tmp_path / "taken"))
    assert f"{tmp_path / 'taken'} is a file, not a folder" in refusal(config_for(tmp_path / "taken" / "a" / "b"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert f"{tmp_path} cannot be written" in refusal(config_for(tmp_path / "new"))


@pytest.mark.parametrize(
    ("flag", "given", "place"),
    [
        ("model.checkpoint", "{}", "model"),
        ("model.checkpoint", "scratch:{}", "model"),
        ("data.source", "{}", "figures/reviews.csv"),
        ("data.source", "en.txt,{}", "controls/de.txt"),
        ("data.source", "{}", "figures/books, dvd.csv"),
        ("data.general_source", "{}", "translations/general.tsv"),
    ],
)
def test_what_a_run_reads_is_not_what_it_would_replace(tmp_path, flag, given, place):
    out = leave_a_run(tmp_path / "out")
    read = out / place
    if not read.exists():
        read.parent.mkdir()
        read.write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def reading(path):
        section, name = flag.split(".")
        record = {"model": ModelConfig, "data": DataConfig}[section](**{name: given.format(path)})
        return config_for(out, overwrite=True, **{section: record})

    said = refusal(reading(read))
    assert said.startswith(f"--{flag} {read} lies in --output_dir {out}, where this run would replace it: choose")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    elsewhere = read.rename(tmp_path / read.name)
    assert check_output_dir(reading(elsewhere)) == out


# --- what is cleared away ---


def test_overwriting_removes_what_a_run_writes_and_nothing_else(tmp_path):
    leave_a_run(tmp_path)
    config = config_for(tmp_path, overwrite=True)
    opened, notes = open_run_folder(config, "f", ALONE)
    assert {item.name for item in tmp_path.iterdir()} == {"config.yaml", "notes.txt", "photos"}
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == to_yaml(config)
    assert (opened.log, opened.checkpoints) == (tmp_path / "log.jsonl", tmp_path / "checkpoints")
    assert (opened.resume_from, notes) == (None, ())


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("mine", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model").symlink_to(tmp_path / "elsewhere")
    (out / "checkpoints").symlink_to(tmp_path / "nowhere")
    open_run_folder(config_for(out, overwrite=True), "f", ALONE)
    assert [item.name for item in out.iterdir()] == ["config.yaml"]
    assert (tmp_path / "elsewhere" / "weights").read_text(encoding="utf-8") == "mine"


def test_only_the_main_process_writes(tmp_path):
    open_run_folder(config_for(tmp_path / "out"), "f", SECOND)
    assert list(tmp_path.iterdir()) == []


# --- continuing ---


def test_a_run_that_continues_keeps_its_checkpoints_and_its_log(tmp_path):
    leave_a_run(tmp_path, finished=False)
    config = config_for(tmp_path, train=TrainConfig(resume="auto", checkpoint_steps=3))
    identity = open_run_folder(config_for(tmp_path / "other", train=TrainConfig()), "f", ALONE)[0].identity
    save_step(tmp_path, identity)
    opened, _ = open_run_folder(config, "f", ALONE)
    assert opened.resume_from == tmp_path / "checkpoints" / "step-3"
    assert opened.done_steps == 3
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == "old"
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("resume", ["auto", None])
def test_a_run_that_continues_keeps_the_checkpoints_of_its_controls(tmp_path, resume):
    leave_a_run(tmp_path, finished=False)
    save_step(tmp_path, open_run_folder(config_for(tmp_path / "other"), "f", ALONE)[0].identity)
    save_step(tmp_path / "controls" / "scratch", {})
    open_run_folder(config_for(tmp_path, train=TrainConfig(resume=resume)), "f", ALONE)
    assert (tmp_path / "controls" / "scratch" / "checkpoints" / "step-3").exists() == (resume is not None)


def test_controls_of_another_run_go_where_a_checkpoint_of_another_folder_is_continued(tmp_path):
    leave_a_run(tmp_path / "old", finished=False)
    save_step(tmp_path / "old" / "controls" / "scratch", {})
    save_step(tmp_path / "from", open_run_folder(config_for(tmp_path / "other"), "f", ALONE)[0].identity)
    step = str(tmp_path / "from" / "checkpoints" / "step-3")
    open_run_folder(config_for(tmp_path / "old", train=TrainConfig(resume=step)), "f", ALONE)
    assert not (tmp_path / "old" / "controls").exists()


def from_elsewhere(tmp_path):
    """Settings that go on from a checkpoint outside of the output folder."""
    save_step(tmp_path / "from", open_run_folder(config_for(tmp_path / "other"), "f", ALONE)[0].identity)
    return TrainConfig(resume=str(tmp_path / "from" / "checkpoints" / "step-3"))


def test_checkpoints_of_another_run_are_never_among_those_of_one_that_goes_on_from_elsewhere(tmp_path):
    old = tmp_path / "old"
    save_step(old, open_run_folder(config_for(old, seed=1), "f", ALONE)[0].identity, step=9)
    (old / "log.jsonl").write_text("theirs", encoding="utf-8")
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    config = config_for(old, train=from_elsewhere(tmp_path))
    with pytest.raises(InputError, match="holds an unfinished run of other settings \\(seed was 1, now 0\\): choose"):
        open_run_folder(config, "f", ALONE)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    opened, _ = open_run_folder(replace(config, overwrite=True), "f", ALONE)
    assert opened.done_steps == 3
    assert not list(old.glob("checkpoints/step-*")) and not (old / "log.jsonl").exists()


def test_a_run_that_went_on_from_elsewhere_keeps_what_it_has_done_since(tmp_path):
    config = config_for(tmp_path / "on", train=from_elsewhere(tmp_path))
    save_step(tmp_path / "on", open_run_folder(config, "f", ALONE)[0].identity, step=9)
    open_run_folder(config, "f", ALONE)
    assert (tmp_path / "on" / "checkpoints" / "step-9").is_dir()


def test_a_checkpoint_that_does_not_say_what_auto_had_become_is_continued(tmp_path):
    config = config_for(tmp_path, train=TrainConfig(resume="auto"))
    save_step(tmp_path, open_run_folder(config, "f", ALONE)[0].identity | {"train.precision": "auto"})
    assert open_run_folder(config, "f", ALONE)[0].done_steps == 3


def test_a_checkpoint_of_another_precision_is_not_continued_whatever_auto_has_become(tmp_path):
    config = config_for(tmp_path, train=TrainConfig(resume="auto"))
    half = SimpleNamespace(**vars(ALONE) | {"mixed_precision": "bf16"})
    save_step(tmp_path, open_run_folder(config, "f", half)[0].identity)
    with pytest.raises(InputError, match=r"train\.precision was 'bf16', now 'fp32'"):
        open_run_folder(config, "f", ALONE)
    assert open_run_folder(config, "f", half)[0].done_steps == 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"adapt": AdaptConfig(strategy="probe")}, "adapt.strategy was 'full', now 'probe'"),
        ({"data": DataConfig(max_length=64)}, "data.max_length was 256, now 64"),
        ({"data": DataConfig(train_domains=("books",))}, r"data.train_domains was \[\], now \['books'\]"),
        ({"train": TrainConfig(resume="auto", window_size=8)}, "train.window_size was 16, now 8"),
    ],
)
def test_a_run_of_other_settings_is_not_continued_and_its_folder_stays_as_it_was(tmp_path, changed, says):
    leave_a_run(tmp_path, finished=False)
    config = config_for(tmp_path, train=TrainConfig(resume="auto"))
    save_step(tmp_path, open_run_folder(config_for(tmp_path / "other"), "f", ALONE)[0].identity)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=says):
        open_run_folder(replace(config, **changed), "f", ALONE)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


GENERAL = {"general_source": "general.tsv"}


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (("full", None), ("interpolated", None), ""),
        (("interpolated", None), ("full", None), ""),
        (("mixed", None), ("interpolated", 0.5), ""),
        (("full", 0.3), ("mixed", 0.3), ""),
        (("full", None), ("mixed", None), "data.general_share was None, now 0.5"),
        (("mixed", 0.3), ("interpolated", 0.4), "data.general_share was 0.3, now 0.4"),
        (("lora", None), ("interpolated", None), "adapt.strategy was 'lora', now 'interpolated'"),
        (("full", None), ("lora", None), "adapt.strategy was 'full', now 'lora'"),
        (("interpolated", None), ("lora", None), "adapt.strategy was 'interpolated', now 'lora'"),
    ],
)
def test_strategies_that_train_alike_continue_from_each_other(tmp_path, before, now, says):
    def configured(strategy, share, **adapt):
        data = DataConfig(**GENERAL, general_share=share)
        adapt = AdaptConfig(strategy=strategy, **adapt)
        return config_for(tmp_path, data=data, adapt=adapt, train=TrainConfig(resume="auto"))

    save_step(tmp_path, open_run_folder(configured(*before), "f", ALONE)[0].identity)
    point = {"interpolation": 0.4} if now[0] == "interpolated" else {}
    if not says:
        assert open_run_folder(configured(*now, **point), "f", ALONE)[0].done_steps == 3
    else:
        with pytest.raises(InputError, match=f"belongs to another run \\({says}\\)"):
            open_run_folder(configured(*now, **point), "f", ALONE)


def test_training_is_taken_over_with_its_log_where_there_is_none_of_its_own_and_it_is_alike(tmp_path):
    settled = {"train": TrainConfig(resume="auto"), "adapt": AdaptConfig(strategy="interpolated")}
    config = config_for(tmp_path / "second", **settled)
    identity = open_run_folder(config_for(tmp_path / "first"), "f", ALONE)[0].identity
    save_step(tmp_path / "first", identity)
    (tmp_path / "first" / "log.jsonl").write_text("steps", encoding="utf-8")
    handover = Handover(tmp_path / "first" / "checkpoints" / "step-3", passed_on=True)
    opened, notes = open_run_folder(config, "f", ALONE, handover)
    assert (opened.resume_from, opened.keeps_end) == (handover.taken_from, True)
    assert (tmp_path / "second" / "log.jsonl").read_text(encoding="utf-8") == "steps"
    assert notes == (
        "interpolated trains as full does and took its training over: the seconds, tokens and memory of training told "
        "here are those of that one",
    )
    (tmp_path / "first" / "log.jsonl").unlink()
    open_run_folder(config, "f", ALONE, handover)
    assert not (tmp_path / "second" / "log.jsonl").exists(), "none is better than that of another training"
    other = replace(config, seed=1)
    assert open_run_folder(replace(other, output_dir=str(tmp_path / "third")), "f", ALONE, handover)[0].done_steps == 0
    save_step(tmp_path / "second", identity)
    opened, notes = open_run_folder(config, "f", ALONE, handover)
    assert (opened.continues_here, notes) == (True, ())


TWO = SimpleNamespace(**(vars(ALONE) | {"num_processes": 2}))


@pytest.mark.parametrize(
    ("others_see", "says"),
    [
        (["none"], r"which continue from checkpoint \(process 0: step-3, process 1: none\): choose one on st"),
        (["step-3", "missing"], r"which find a config\.yaml \(process 0: of this run, process 1: missing\)"),
    ],
)
def test_processes_that_do_not_see_the_same_folder_are_refused(tmp_path, monkeypatch, others_see, says):
    save_step(tmp_path, open_run_folder(config_for(tmp_path), "f", ALONE)[0].identity)
    views = iter(others_see)
    monkeypatch.setattr(folder, "gather_object", lambda mine: [*mine, next(views)])
    with pytest.raises(InputError, match=says):
        open_run_folder(config_for(tmp_path, train=TrainConfig(resume="auto")), "f", TWO)


def test_a_folder_is_given_time_to_appear(tmp_path, monkeypatch):
    expected, slept = to_yaml(config_for(tmp_path)), []

    def appear(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / "config.yaml").write_text(expected, encoding="utf-8")

    monkeypatch.setattr(folder.time, "sleep", appear)
    assert folder._config_in(tmp_path, expected) == "of this run"
    assert len(slept) == 3
    monkeypatch.setattr(folder, "SECONDS_TO_APPEAR", 0)
    assert folder._config_in(tmp_path, "other") == "of another run"
    assert folder._config_in(tmp_path / "elsewhere", expected) == "missing"


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        ((1,), TWO, "1 then 2"),
        ((2, 1), TWO, "2 then 1 then 2"),
        ((4, 2), TWO, "4 then 2"),
        ((2,), TWO, ""),
        ((), TWO, ""),
    ],
)
def test_another_number_of_processes_is_stated(tmp_path, monkeypatch, before, now, names):
    save_step(tmp_path, open_run_folder(config_for(tmp_path), "f", ALONE)[0].identity, processes=before)
    monkeypatch.setattr(folder, "gather_object", lambda mine: mine * 2)
    _, notes = open_run_folder(config_for(tmp_path, train=TrainConfig(resume="auto")), "f", now)
    says = f"continued on another number of processes ({names}): the gradient of each window is the same to rounding"
    assert [note[: len(says)] for note in notes] == [says] * bool(names)


def test_a_run_on_other_data_is_not_continued(tmp_path):
    config = config_for(tmp_path, train=TrainConfig(resume="auto"))
    save_step(tmp_path, open_run_folder(config, "before", ALONE)[0].identity)
    with pytest.raises(InputError, match="fingerprint was 'before', now 'after'"):
        open_run_folder(config, "after", ALONE)


def test_what_decides_no_number_may_change_before_a_run_is_continued(tmp_path):
    save_step(tmp_path, open_run_folder(config_for(tmp_path), "f", ALONE)[0].identity)
    moved = config_for(
        tmp_path,
        data=DataConfig(source="/elsewhere/reviews"),
        train=TrainConfig(resume="auto", checkpoint_steps=5, keep_checkpoints=1, tokens_per_micro_batch=64),
    )
    assert open_run_folder(moved, "f", ALONE)[0].done_steps == 3


def test_a_damaged_checkpoint_is_passed_over_with_a_note(tmp_path):
    identity = open_run_folder(config_for(tmp_path), "f", ALONE)[0].identity
    save_step(tmp_path, identity, step=3)
    save_step(tmp_path, identity, step=6)
    (tmp_path / "checkpoints" / "step-6" / "state.json").write_text(json.dumps({}), encoding="utf-8")
    opened, notes = open_run_folder(config_for(tmp_path, train=TrainConfig(resume="auto")), "f", ALONE)
    assert opened.done_steps == 3
    assert len(notes) == 1
    assert "step-6 passed over" in notes[0]


# --- when the disk fails under a run


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_is_told_with_the_folder_and_the_checkpoint_to_go_on_from(tmp_path, number):
    save_step(tmp_path, {"seed": 0})
    save_step(tmp_path, {"seed": 0}, step=10)
    (tmp_path / "checkpoints" / "step-10" / "state.json").write_text("{", encoding="utf-8")  # not whole
    with pytest.raises(RunError) as caught, disk_failures(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "log.jsonl"))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path} cannot be written any more ([Errno {number}] {os.strerror(number)}")
    assert (
        f"{tmp_path / 'checkpoints' / 'step-3'} is complete: mend the disk and go on with --train.resume auto." in said
    )


def store(folder, rank=0):
    rows = folder / "features" / str(rank) / "rows.bin"
    rows.parent.mkdir(parents=True)
    rows.write_bytes(b"rows")
    return rows


def test_rows_that_a_process_has_open_stay_and_those_of_a_larger_launch_go(tmp_path):
    mine, of_another = store(tmp_path, 0), store(tmp_path, 3)
    open_run_folder(config_for(tmp_path, overwrite=True), "abc", ALONE)
    assert (mine.exists(), of_another.exists()) == (True, False)


@pytest.mark.parametrize(("resume", "has_checkpoint", "kept"), [(None, 1, 0), ("auto", 0, 0), ("auto", 1, 1)])
def test_rows_of_an_earlier_run_go_before_they_are_opened_unless_it_is_continued(
    tmp_path, resume, has_checkpoint, kept
):
    rows = store(tmp_path)
    if has_checkpoint:
        save_step(tmp_path, {"seed": 0})
    drop_stale_features(config_for(tmp_path, train=TrainConfig(resume=resume)))
    assert rows.exists() == kept


def test_a_folder_that_vanished_is_told(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        pytest.raises(RunError, match=r"It is gone: bring it back and go on with --train\.resume"),
        disk_failures(folder),
    ):
        shutil.rmtree(folder)
        (folder / "report.md").write_text("text", encoding="utf-8")


def test_other_errors_keep_their_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), disk_failures(tmp_path):
        (tmp_path / "absent").read_text(encoding="utf-8")


# --- the weights that training starts from


def test_training_that_began_from_other_weights_is_not_continued(tmp_path):
    config = config_for(tmp_path, train=TrainConfig(resume="auto"))
    save_step(tmp_path, open_run_folder(config, "f", ALONE, weights="abc")[0].identity)
    with pytest.raises(InputError, match="weights was 'abc', now 'def'"):
        open_run_folder(config, "f", ALONE, weights="def")
    assert open_run_folder(config, "f", ALONE, weights="abc")[0].done_steps == 3


def test_a_checkpoint_that_does_not_say_whose_weights_it_began_from_is_continued(tmp_path):
    config = config_for(tmp_path, train=TrainConfig(resume="auto"))
    identity = open_run_folder(config, "f", ALONE, weights="abc")[0].identity
    save_step(tmp_path, {name: value for name, value in identity.items() if name != "weights"})
    assert open_run_folder(config, "f", ALONE, weights="def")[0].done_steps == 3
