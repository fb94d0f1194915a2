"""Disks that fail under a run: it says so in a sentence, and nothing that was whole is lost."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_checkpoint
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import page, train

pytestmark = pytest.mark.recipe
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

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise FULL
        return self.file.write(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_log_that_finds_no_place_ends_the_run_in_words_and_the_run_can_be_continued(config, monkeypatch):
    folder, real = Path(config.output_dir), train._open_log
    with monkeypatch.context() as patched:
        patched.setattr(train, "_open_log", lambda *given: FullAt(real(*given), 10))
        with pytest.raises(ht.RunError, match=r"No space left.*step-8 is complete: mend the disk and go on with"):
            ht.run(config)
    assert not (folder / "results.json").exists()
    ht.run(replace(config, train=replace(config.train, resume="auto")))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))


def test_a_report_that_finds_no_place_says_so(config, monkeypatch):
    def full(*_):
        raise FULL

    monkeypatch.setattr(page, "write_report", full)
    with pytest.raises(ht.RunError, match=r"No space left on device.*step-20 is complete"):
        ht.run(config)


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
