"""Encoding once: runs that read the same text in the same way share their token ids, and no others do."""

import dataclasses
from pathlib import Path

import pytest
from test_pretrained import open_it
from tiny import make_checkpoint
from toy import write_reviews

from hf_transfer.config import DataConfig, TrainConfig
from hf_transfer.encoding import encode
from hf_transfer.records import LabelSpace, Text
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

TASK = TASKS["classification"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def text(tmp_path) -> Text:
    source = write_reviews(tmp_path, count=12)
    data = DataConfig(source=str(source), train_domains=("books",))
    return Text(*read_text(data, TrainConfig(), TASK, 0))


class Counting:
    """The task, which counts how often it encodes."""

    def __init__(self):
        self.times = 0

    def encode(self, *arguments):
        self.times += 1
        return TASK.encode(*arguments)


def test_the_splits_are_those_that_the_task_encodes_at_the_limit_of_the_checkpoint(checkpoint, text):
    pretrained = open_it(checkpoint, text.labels)
    encoded, limit = encode(text, text.labels, pretrained, TASK, 5)
    wanted = TASK.encode(text.splits, text.labels, pretrained, 5)
    assert limit == 5
    assert encoded.truncated == wanted.truncated > 0
    assert encoded.train.to_dict() == wanted.train.to_dict()
    assert encoded.validation.to_dict() == wanted.validation.to_dict()
    assert {name: rows.to_dict() for name, rows in encoded.test.items()} == {
        name: rows.to_dict() for name, rows in wanted.test.items()
    }
    assert max(encoded.train["length"]) == 5
    # the tiny tokenizer says 64, its positions 80
    assert encode(text, text.labels, pretrained, TASK, 1000)[1] == 64


def test_a_run_that_reads_alike_takes_what_another_has_encoded_though_its_weights_differ(checkpoint, text):
    task = Counting()
    first, _ = encode(text, text.labels, open_it(checkpoint, text.labels), task, 32)
    again, _ = encode(text, text.labels, open_it(checkpoint, text.labels, seed=7), task, 32)
    scratch, _ = encode(text, text.labels, open_it(f"scratch:{checkpoint}", text.labels), task, 32)
    assert first is again is scratch
    assert task.times == 1


def test_another_limit_tokenizer_revision_or_order_of_classes_is_encoded_anew(checkpoint, text, tmp_path):
    task, pretrained = Counting(), open_it(checkpoint, text.labels)
    turned = LabelSpace("single_label", text.labels.names[::-1])
    other = open_it(make_checkpoint(tmp_path / "other"), text.labels)
    found = [
        encode(text, labels, opened, task, limit)[0]
        for labels, opened, limit in (
            (text.labels, pretrained, 32),
            (text.labels, pretrained, 6),
            (turned, pretrained, 32),
            (text.labels, other, 32),
            (text.labels, dataclasses.replace(pretrained, revision="0" * 40), 32),
        )
    ]
    assert task.times == 5
    assert [1 - label for label in found[2].train["labels"]] == found[0].train["labels"][:]
    assert found[1].truncated > found[0].truncated


def test_another_text_shares_nothing(checkpoint, text):
    task, pretrained = Counting(), open_it(checkpoint, text.labels)
    other = Text(text.table, text.splits, text.labels)
    assert encode(text, text.labels, pretrained, task, 32)[0] is not encode(other, text.labels, pretrained, task, 32)[0]
    assert task.times == 2
