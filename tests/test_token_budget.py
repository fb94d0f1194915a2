"""How many tokens go through the model at once: against a GPU whose memory is counted out by hand."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import open_tiny
from tiny import make_checkpoint
from toy import encoded_rows

from hf_transfer import train
from hf_transfer.command_line import load_config
from hf_transfer.errors import InputError
from hf_transfer.token_budget import MOST, ON_HOST, TRIED, measured_budget, trial_rows

FIXED, EACH, WORKSPACE = 7_000_000, 3_000, 500_000
LENGTHS = np.random.default_rng(5).integers(5, 300, 4000)


class Memory:
    """A GPU that holds ``FIXED`` bytes and, while a batch runs, ``EACH`` for a token; the first pass takes more."""

    def __init__(self, monkeypatch, free, most_tokens=10**9):
        self.peak, self.free, self.most_tokens, self.passes = 0, free, most_tokens, []
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", FIXED))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 10 * self.free))

    def run(self, rows):
        tokens = int(LENGTHS[rows].sum())
        if tokens > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken = FIXED + WORKSPACE + EACH * tokens + (9_000_000 if not self.passes else 0)
        self.peak = max(self.peak, taken)
        self.passes.append(tokens)


def test_the_budget_is_what_a_token_takes_out_of_most_of_the_memory_that_will_be_free(monkeypatch):
    memory = Memory(monkeypatch, free=200_000_000)
    found = measured_budget(LENGTHS, memory.run, 5_000_000, torch.device("cuda"))
    assert found == (0.8 * 200_000_000 - 4 * 5_000_000) // EACH
    assert 0.9 * TRIED[1] < memory.passes[-1] <= TRIED[1], "what was tried is worth measuring"


def test_a_small_gpu_still_gets_a_micro_batch_to_begin_with(monkeypatch):
    assert measured_budget(LENGTHS, Memory(monkeypatch, 1_000_000).run, 5_000_000, torch.device("cuda")) == TRIED[0]
    tight = Memory(monkeypatch, 10**9, most_tokens=3000)
    assert measured_budget(LENGTHS, tight.run, 0, torch.device("cuda")) == TRIED[0]
    assert tight.passes, "the smaller one had room"


def test_texts_that_are_a_small_micro_batch_together_are_never_cut(monkeypatch):
    memory = Memory(monkeypatch, 10**6)
    assert measured_budget(LENGTHS[:5], memory.run, 0, torch.device("cuda")) == MOST
    assert memory.passes == []


def test_the_longest_examples_are_tried():
    lengths = np.array([3, 50, 7, 40, 30])
    assert trial_rows(lengths, 100).tolist() == [1, 3]
    assert trial_rows(lengths, 20).tolist() == [1], "at least one"
    assert sorted(trial_rows(lengths, 1000).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shared", [False, True])
def test_on_a_cpu_and_where_parameters_are_shared_it_is_a_number(tmp_path, shared):
    device = torch.device("cuda" if shared else "cpu")
    accelerator = SimpleNamespace(device=device, is_fsdp2=shared)
    assert train._own_budget(None, None, LENGTHS, None, accelerator) == ON_HOST == 8192


def test_trying_leaves_no_gradient_and_all_processes_take_the_least(tmp_path, monkeypatch):
    pretrained, adapted, functions = open_tiny(make_checkpoint(tmp_path), "freeze")
    rows = encoded_rows(12, len(pretrained.tokenizer), 3)
    learning = sum(p.nbytes for p in adapted.model.parameters() if p.requires_grad)

    def measured(lengths, run, learning_bytes, device):
        assert learning_bytes == learning
        run(np.arange(12))
        return 5000

    accelerator = SimpleNamespace(
        device=SimpleNamespace(type="cuda"),
        unwrap_model=lambda model: model,
        autocast=nullcontext,
    )
    monkeypatch.setattr(train, "measured_budget", measured)
    monkeypatch.setattr(train, "send_batch", lambda batch, device: batch)
    monkeypatch.setattr(train, "gather_object", lambda own: [9000, *own, 7000])
    assert train._own_budget(adapted.model, rows, np.asarray(rows["length"]), functions, accelerator) == 5000
    assert all(p.grad is None for p in adapted.model.parameters())


def test_a_number_may_be_asked_for_and_nothing_else_but_auto(tmp_path):
    given = ["--data.source", "bundled:reviews", "--train.tokens_per_micro_batch"]
    assert load_config([*given, "300"], "hf-transfer").train.tokens_per_micro_batch == 300
    assert load_config([*given, "auto"], "hf-transfer").train.tokens_per_micro_batch == "auto"
    with pytest.raises(InputError, match="tokens_per_micro_batch"):
        load_config([*given, "many"], "hf-transfer")
