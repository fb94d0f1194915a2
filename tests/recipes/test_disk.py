"""Disks that fail under a run: it says so in a sentence, and nothing that was whole is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_checkpoint
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import page, train
from hf_transfer.checkpoint import find_checkpoint_to_resume

STEPS = 200
CHECKPOINT_STEPS = 20
SECONDS_TO_END = 120
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def config(tmp_path, monkeypatch) -> ht.RunConfig:
    """A run of 20 steps with a checkpoint after every fourth."""
    monkeypatch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)
    return ht.RunConfig(
        data=ht.DataConfig(source=str(write_reviews(tmp_path, count=60))),
        model=ht.ModelConfig(checkpoint=str(make_checkpoint(tmp_path / "bert"))),
        train=ht.TrainConfig(max_steps=20, window_size=8, learning_rate=1e-3, checkpoint_steps=4),
        evaluate=ht.EvaluateConfig(resamples=100),
        output_dir=str(tmp_path / "run"),
    )


class FullAt:
    """A file that takes ``lines`` lines and then finds the disk full."""

    def __init__(self, file, lines):
        self.file, self.lines = file, lines

    def fileno(self):
        return self.file.fileno()

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise FULL
        return self.file.write(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.mark.recipe
def test_a_log_that_finds_no_place_ends_the_run_in_words_and_the_run_can_be_continued(config, monkeypatch):
    folder, real = Path(config.output_dir), train.open_log
    with monkeypatch.context() as patched:
        patched.setattr(train, "open_log", lambda *given: FullAt(real(*given), 10))
        with pytest.raises(ht.RunError, match=r"No space left.*step-8 is complete: mend the disk and go on with"):
            ht.run(config)
    assert not (folder / "results.json").exists()
    ht.run(replace(config, train=replace(config.train, resume="auto")))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))


@pytest.mark.recipe
def test_a_report_that_finds_no_place_says_so(config, monkeypatch):
    def full(*_):
        raise FULL

    monkeypatch.setattr(page, "write_report", full)
    with pytest.raises(ht.RunError, match=r"No space left on device.*step-20 is complete"):
        ht.run(config)


@pytest.mark.recipe
def test_a_folder_that_was_deleted_under_a_run_still_gets_its_model_and_report(config, monkeypatch):
    folder, real = Path(config.output_dir), page.score_test

    def delete(*given):
        shutil.rmtree(folder)
        return real(*given)

    monkeypatch.setattr(page, "score_test", delete)
    result = ht.run(config)
    assert result.results["training"]["loss"] == []
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["scores"]
    assert (folder / "report.html").exists()
    assert ht.load(folder).predict(["good"]).labels


# ---- real disks, under a run in a process of its own ---------------------------------------------------------------


def system(*words: object) -> None:
    """Run a command of the system, or skip the test where it is refused or missing."""
    try:
        subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"this system has no command {words[0]}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this system refuses {words[0]} here: {error.stderr.strip()}")


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """An empty folder; what is mounted there goes when the test ends."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    while subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False).returncode == 0:
        pass  # there may be several, one on the other


@pytest.fixture
def words(tmp_path, root) -> list[str]:
    """The command of a run of ``STEPS`` steps, without its output folder."""
    flags = {
        "--data.source": write_reviews(tmp_path, count=60),
        "--model.checkpoint": make_checkpoint(tmp_path / "bert", hidden_size=64, intermediate_size=128),
        "--train.max_steps": STEPS,
        "--train.window_size": 8,
        "--train.checkpoint_steps": CHECKPOINT_STEPS,
        "--train.validation_steps": STEPS // 4,
        "--evaluate.resamples": 100,
    }
    recipe = [sys.executable, root / "recipes" / "text_cls.py"]
    return [str(word) for word in (*recipe, *(word for flag in flags.items() for word in flag))]


def run_until(command: list[str], folder: Path, steps: int = 0, act: Callable[[], object] | None = None) -> list[str]:
    """Run ``command``, and ``act`` once its log has ``steps`` steps; the lines that it said if it failed, else none."""
    said = folder.parent.parent / "said"
    with said.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([*command, "--output_dir", str(folder)], stdout=file, stderr=file)
    try:
        if act is not None:
            log = folder / "log.jsonl"
            while not log.is_file() or log.read_bytes().count(b"\n") < steps:
                assert process.poll() is None, said.read_text(encoding="utf-8")
                time.sleep(0.005)
            act()
        code = process.wait(timeout=SECONDS_TO_END)
    finally:
        process.kill()
    text = said.read_text(encoding="utf-8")
    assert code in (0, 1), text
    return text.splitlines() if code else []


def check_words(lines: list[str], folder: Path) -> None:
    """What a run with a checkpoint said of its folder before it ended: one sentence, with what to do."""
    told = [line for line in lines if line.startswith("hf-transfer: ")]
    assert lines, "it ended well"
    assert len(told) == 1, lines
    assert "Traceback" not in "\n".join(lines), lines
    assert lines[-1] == told[0], lines
    assert str(folder) in told[0], told
    assert "--train.resume auto" in told[0], told


def check_continued(command: list[str], folder: Path) -> None:
    """A complete checkpoint is there; the same command with ``train.resume auto`` goes on from it to the end."""
    checkpoint, damaged = find_checkpoint_to_resume(folder / "checkpoints", "auto")
    assert checkpoint is not None
    assert damaged == []
    assert run_until([*command, "--train.resume", "auto"], folder) == []
    said = (folder.parent.parent / "said").read_text(encoding="utf-8")
    assert f"continuing after step {checkpoint.name.removeprefix('step-')} of {STEPS}" in said
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["timing"]["steps"] == STEPS
    assert ht.load(folder).predict(["good"]).labels


@pytest.mark.slow
def test_a_disk_that_its_own_checkpoints_fill_ends_the_run_in_words_and_it_goes_on_where_there_is_room(words, disk):
    weights = Path(words[words.index("--model.checkpoint") + 1]) / "model.safetensors"
    bytes_of_it = int(4.5 * weights.stat().st_size)  # a checkpoint takes 3 times the weights
    system("mount", "-t", "tmpfs", "-o", f"size={bytes_of_it}", "none", disk)
    check_words(run_until(words, disk / "run"), disk / "run")
    assert (disk / "run" / "checkpoints" / f"step-{CHECKPOINT_STEPS}").is_dir()
    system("mount", "-o", "remount,size=64m", disk)
    check_continued(words, disk / "run")


@pytest.mark.slow
def test_a_disk_that_others_fill_ends_the_run_in_words_and_it_goes_on_where_there_is_room(words, disk):
    system("mount", "-t", "tmpfs", "-o", "size=64m", "none", disk)

    def fill() -> None:
        with suppress(OSError), (disk / "of others").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    check_words(run_until(words, disk / "run", CHECKPOINT_STEPS + 2, fill), disk / "run")
    (disk / "of others").unlink()
    check_continued(words, disk / "run")


@pytest.mark.slow
def test_a_folder_that_turns_read_only_ends_the_run_in_words_and_it_goes_on_once_it_can_be_written(words, disk):
    folder = disk / "run"

    def turn() -> None:  # for all that is opened from now on; what is open stays so
        system("mount", "--bind", disk, disk)
        system("mount", "-o", "remount,bind,ro", disk)

    check_words(run_until(words, folder, CHECKPOINT_STEPS + 2, turn), folder)
    with pytest.raises(OSError, match="Read-only file system"):
        (disk / "file").touch()
    system("umount", disk)
    check_continued(words, folder)


@pytest.mark.slow
def test_a_disk_that_breaks_and_turns_read_only_ends_the_run_in_words_and_it_goes_on_once_it_is_mended(
    words, disk, tmp_path
):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    system("mkfs.ext4", "-q", image)
    system("mount", "-o", "loop", image, disk)

    def turn() -> None:  # as the system itself does on an error of the disk: what was not flushed is lost
        system("mount", "-o", "remount,abort", disk)

    check_words(run_until(words, disk / "run", CHECKPOINT_STEPS + 2, turn), disk / "run")
    with pytest.raises(OSError, match="Read-only file system"):
        (disk / "file").touch()
    system("umount", disk)
    system("mount", "-o", "loop", image, disk)
    check_continued(words, disk / "run")


@pytest.mark.slow
def test_a_folder_that_is_moved_away_under_a_run_ends_it_in_words_and_it_goes_on_once_it_is_back(words, disk):
    away = disk / "away"
    check_words(run_until(words, disk / "run", CHECKPOINT_STEPS + 2, lambda: (disk / "run").rename(away)), disk / "run")
    away.rename(disk / "run")
    check_continued(words, disk / "run")
