"""How many tokens go through the model at once: against a GPU whose memory is counted out by hand."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import Silent, open_tiny
from tiny import make_checkpoint
from toy import encoded_rows

from hf_transfer import token_budget
from hf_transfer.before_training import activation_checkpointing
from hf_transfer.command_line import load_config
from hf_transfer.errors import InputError
from hf_transfer.on_device import forget_peak, peak_bytes
from hf_transfer.token_budget import LEAST, MOST, ON_HOST, TRIED, agreed_budget, measured_budget, trial_rows

FIXED, EACH, GRADIENTS = 7_000_000, 3_000, 20_000_000
LENGTHS = np.random.default_rng(5).integers(5, 300, 4000)
GPU = torch.device("cuda")


class Memory:
    """A GPU that holds ``FIXED`` bytes and, while a batch runs, ``EACH`` for a token or all gradients, if those are
    more; the first pass takes more."""

    def __init__(self, monkeypatch, free, gradients=0, most_tokens=10**9):
        self.peak, self.free, self.gradients, self.most_tokens, self.passes = 0, free, gradients, most_tokens, []
        self.error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", FIXED))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: FIXED)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 10 * self.free))

    def run(self, rows, lengths=LENGTHS):
        tokens = int(lengths[rows].sum())
        if tokens > self.most_tokens:
            raise self.error
        taken = FIXED + max(EACH * tokens, self.gradients) + (9_000_000 if not self.passes else 0)
        self.peak = max(self.peak, taken)
        self.passes.append(tokens)


def test_the_budget_is_what_a_token_takes_out_of_most_of_the_memory_that_will_be_free(monkeypatch):
    memory = Memory(monkeypatch, free=200_000_000)
    found = measured_budget(LENGTHS, memory.run, 5_000_000, GPU)
    assert found == (0.6 * 200_000_000 - 4 * 5_000_000) // EACH
    assert 0.9 * TRIED < memory.passes[-1] <= TRIED, "what was tried is worth measuring"


def test_where_gradients_are_the_most_a_token_is_not_taken_for_less_than_it_is(monkeypatch):
    memory = Memory(monkeypatch, free=200_000_000, gradients=GRADIENTS)
    found = measured_budget(LENGTHS, memory.run, 5_000_000, GPU)
    assert LEAST < found <= (0.6 * 200_000_000 - 4 * 5_000_000) / EACH


def test_a_small_gpu_still_gets_a_micro_batch_to_begin_with(monkeypatch):
    assert measured_budget(LENGTHS, Memory(monkeypatch, 1_000_000).run, 5_000_000, GPU) == LEAST
    assert measured_budget(LENGTHS, Memory(monkeypatch, 10**9, most_tokens=3000).run, 0, GPU) == LEAST


def test_memory_that_torch_does_not_deal_out_may_run_out_too_and_other_errors_are_told(monkeypatch):
    memory = Memory(monkeypatch, 10**9, most_tokens=3000)
    memory.error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert measured_budget(LENGTHS, memory.run, 0, GPU) == LEAST
    memory.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measured_budget(LENGTHS, memory.run, 0, GPU)


def test_texts_that_are_a_small_micro_batch_together_are_never_cut(monkeypatch):
    memory = Memory(monkeypatch, 10**6)
    assert measured_budget(LENGTHS[:5], memory.run, 0, GPU) == MOST
    assert memory.passes == []


def test_texts_so_long_that_one_is_tried_are_measured_all_the_same(monkeypatch):
    long = np.full(500, 2100)
    memory = Memory(monkeypatch, free=200_000_000)
    assert measured_budget(long, lambda rows: memory.run(rows, long), 0, GPU) == 0.6 * 200_000_000 // EACH
    assert memory.passes == [2100, 2100]


def test_the_longest_examples_are_tried():
    lengths = np.array([30, 500, 70, 400, 300]) * 10
    assert trial_rows(lengths).tolist() == [1], "at least one"
    assert trial_rows(lengths // 2).tolist() == [1]
    assert trial_rows(lengths // 4).tolist() == [1, 3, 4, 2, 0]


def test_the_most_memory_of_a_run_is_not_forgotten_when_a_trial_is_measured(monkeypatch):
    memory = Memory(monkeypatch, 10**9)
    forget_peak(GPU)
    memory.peak = 90_000_000
    measured_budget(LENGTHS, memory.run, 0, GPU)
    assert memory.peak < 90_000_000 == peak_bytes(GPU)
    forget_peak(GPU)
    assert peak_bytes(GPU) == FIXED


def test_on_a_cpu_and_where_parameters_are_shared_it_is_a_number(tmp_path, shared):
    device = torch.device("cuda" if shared else "cpu")
    accelerator = SimpleNamespace(device=device, is_fsdp2=shared)
    assert agreed_budget(None, None, LENGTHS, None, accelerator, None) == ON_HOST == 8192


@pytest.mark.parametrize("computed_again", [False, True])
def test_trying_leaves_no_gradient_and_all_processes_take_the_least(tmp_path, monkeypatch, computed_again):
    pretrained, adapted, functions = open_tiny(make_checkpoint(tmp_path), "freeze")
    adapted.model.train()
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
    monkeypatch.setattr(token_budget, "measured_budget", measured)
    monkeypatch.setattr(token_budget, "send_batch", lambda batch, device: batch)
    monkeypatch.setattr(token_budget, "gather_object", lambda own: [9000, *own, 7000])
    notes = Silent()
    lengths = np.asarray(rows["length"])
    with activation_checkpointing(adapted.model, computed_again):
        assert agreed_budget(adapted.model, rows, lengths, functions, accelerator, notes) == 5000
    assert notes.notes == ["micro-batches of at most 5,000 tokens, from the free memory of the GPU"]
    assert all(p.grad is None for p in adapted.model.parameters())


def test_a_number_may_be_asked_for_and_nothing_else_but_auto(tmp_path):
    given = ["--data.source", "bundled:reviews", "--train.tokens_per_micro_batch"]
    assert load_config([*given, "300"], "hf-transfer").train.tokens_per_micro_batch == 300
    assert load_config([*given, "auto"], "hf-transfer").train.tokens_per_micro_batch == "auto"
    with pytest.raises(InputError, match="tokens_per_micro_batch"):
        load_config([*given, "many"], "hf-transfer")
