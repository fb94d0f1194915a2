"""Nothing in a window asks the device for an answer: on the meta device, which has none to give, it runs to its end."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_flattened import SERVED
from test_train import LABELS, open_tiny, rows_for
from tiny import make_checkpoint
from tiny_translation import FAMILIES, make_translation_checkpoint
from toy import encoded_rows

from hf_transfer.batching import cut_window
from hf_transfer.config import ModelConfig, RunConfig, TrainConfig
from hf_transfer.errors import RunError
from hf_transfer.on_device import Room
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import LabelSpace
from hf_transfer.tasks import TASKS
from hf_transfer.train import _add_gradient, learn_window

META = torch.device("meta")
HEADS_THAT_LOOK = ("bart", "t5")
"""Whose heads in transformers make sure that all texts have as many </s>, which takes an answer."""


@pytest.fixture(autouse=True)
def no_autocast_on_meta(monkeypatch):
    """The meta device knows no autocast, and is asked for it by the loss of translation and by T5."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@pytest.mark.parametrize(("rows", "tokens", "room"), [(1, 7, 7), (8, 10, 80), (8, 10, 79), (13, 10, 25), (9, 3, 3)])
def test_rows_go_in_pieces_that_have_room_each_once_and_in_their_order(rows, tokens, room):
    tried = []

    def call(piece):
        tried.append(len(piece))
        if len(piece) * tokens > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return piece.tolist()

    device, numbers = Room(), np.arange(rows) + 5
    found = device.run(call, numbers, tokens)
    assert [n for piece, _ in found for n in piece] == numbers.tolist()
    assert all(made == piece.tolist() for piece, made in found)
    assert (len(found) == 1) == (rows * tokens <= room)
    tried.clear()
    device.run(call, numbers, tokens)
    assert all(count * tokens <= room for count in tried), "what had no room once is not tried again"


def test_one_row_without_room_and_other_errors_are_told():
    def call(piece):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def other(piece):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RunError, match=r"one text of 40 tokens alone: .*--data\.max_length.*Tried to allocate"):
        Room().run(call, np.arange(4), 40)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Room().run(other, np.arange(4), 40)


def on(device):
    return SimpleNamespace(
        device=device,
        num_processes=1,
        no_sync=lambda model: nullcontext(),
        autocast=nullcontext,
        backward=lambda loss: loss.backward(),
    )


def goes_through(model, batches, functions):
    model.to(META).train()
    loss, _ = _add_gradient(model, [(batch, True) for batch in batches], functions.loss_function, 0.1, on(META))
    assert loss.device == META
    assert any(p.grad is not None for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="meta"):  # the answer that is asked for at the end of the window
        learn_window(model, [(batches[0], True)], functions.loss_function, optimizer, 1.0, on(META))


def cut(rows, make_batch):
    pieces = cut_window(np.asarray(rows["length"]), 60, flat=True)
    assert len(pieces) > 1
    return [make_batch(rows[piece]) for piece in pieces]


@pytest.mark.parametrize("architecture", [name for name in SERVED if name not in HEADS_THAT_LOOK])
def test_a_window_of_a_classifier_waits_for_nothing(tmp_path, architecture):
    _, adapted, functions = open_tiny(make_checkpoint(tmp_path, architecture))
    goes_through(adapted.model, cut(rows_for("single_label", 13, 30), functions.make_batch), functions)


@pytest.mark.parametrize("problem", LABELS)
@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_a_window_waits_for_no_loss(tmp_path, problem, r_drop):
    labels = LABELS[problem]
    if problem == "single_label":
        labels = replace(labels, class_weights=(0.5, 1.0, 2.0))
    pretrained, adapted, _ = open_tiny(make_checkpoint(tmp_path), labels=labels)
    functions = TASKS["classification"].bind(labels, pretrained, RunConfig(train=TrainConfig(r_drop=r_drop)), ())
    assert (functions.train_batch is functions.make_batch) == (not r_drop)
    goes_through(adapted.model, cut(rows_for(problem, 13, 30), functions.train_batch), functions)


R_DROPPED = [pytest.param(family, 1.0, marks=() if family == "marian" else pytest.mark.slow) for family in FAMILIES]


@pytest.mark.parametrize(("family", "r_drop"), [*((family, 0.0) for family in FAMILIES), *R_DROPPED])
def test_a_window_of_a_translation_waits_for_nothing(tmp_path, family, r_drop):
    config = RunConfig(
        task="translation",
        model=ModelConfig(checkpoint=str(make_translation_checkpoint(family, tmp_path))),
        train=TrainConfig(r_drop=r_drop),
    )
    task = TASKS["translation"]
    pretrained = load_pretrained(config.model, find_checkpoint(config.model), task.auto_class, {}, True, 0)
    functions = task.bind(LabelSpace("translation"), pretrained, config, ())
    rows = encoded_rows(13, 30, 3).map(
        lambda row: {"labels": row["input_ids"][1:], "decoder_input_ids": [2] * (row["length"] - 1)}
    )
    goes_through(pretrained.model, cut(rows, functions.train_batch), functions)
