"""The loop: a window's gradient is the mean over its targets however it is cut, and every other promise of train.py."""

import copy
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from tiny import make_checkpoint
from torch.nn import functional
from toy import encoded_rows, launch_two
from transformers import AutoModelForSequenceClassification

from hf_transfer.adapt import apply_strategy
from hf_transfer.batching import cut_window, share_window, window_indices
from hf_transfer.checkpoint import RunFolder
from hf_transfer.config import AdaptConfig, ModelConfig, RunConfig, TrainConfig
from hf_transfer.errors import InputError, RunError
from hf_transfer.feature_store import FeatureStore
from hf_transfer.features import StoredFeatures
from hf_transfer.flattened import find_stacks
from hf_transfer.model_selection import Chooser
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import LabelSpace, RunState, WindowSums
from hf_transfer.tasks import TASKS
from hf_transfer.train import _count, learn_window, train

LABELS = {
    "single_label": LabelSpace("single_label", ("a", "b", "c")),
    "multi_label": LabelSpace("multi_label", ("a", "b", "c")),
    "regression": LabelSpace("regression"),
}


class Recorder(torch.optim.SGD):
    """Keeps the gradients that it was asked to step with."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


class Silent:
    """A progress bar that nobody watches."""

    def __init__(self):
        self.notes = []

    def advance(self, loss, learning_rate, examples):
        pass

    def note(self, text):
        self.notes.append(text)


def open_tiny(folder: Path, strategy: str = "full", labels: LabelSpace = LABELS["single_label"], **adapt):
    config = ModelConfig(checkpoint=str(folder), dropout=0.0)
    task = TASKS["classification"]
    found = find_checkpoint(config)
    pretrained = load_pretrained(config, found, task.auto_class, task.head(labels), False, seed=1)
    return (
        pretrained,
        apply_strategy(pretrained, AdaptConfig(strategy=strategy, **adapt)),
        task.bind(labels, pretrained, RunConfig(), ()),
    )


def rows_for(problem: str, count: int, vocabulary: int):
    rows = encoded_rows(count, vocabulary, 3)
    if problem == "multi_label":
        return rows.map(lambda row: {"labels": [float(row["labels"] != i) for i in range(3)]})
    return rows.map(lambda row: {"labels": row["labels"] * 0.7}) if problem == "regression" else rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


def reference_gradient(model, rows, problem):
    """The mean loss over all targets from the plain forward, one example at a time, in double precision."""
    model = copy.deepcopy(model).double().eval()
    losses = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        target = torch.tensor([row["labels"]])
        if problem == "single_label":
            losses.append(functional.cross_entropy(logits, target))
        elif problem == "multi_label":
            losses.append(functional.binary_cross_entropy_with_logits(logits, target.double()))
        else:
            losses.append(functional.mse_loss(logits[:, 0], target.double()))
    torch.stack(losses).mean().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("problem", LABELS)
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_gradient_of_a_window_does_not_depend_on_the_micro_batches(checkpoint, problem, budget):
    pretrained, adapted, functions = open_tiny(checkpoint, labels=LABELS[problem])
    rows = rows_for(problem, 13, len(pretrained.tokenizer))
    expected = reference_gradient(adapted.model, rows, problem)
    recorder = Recorder(adapted.model.parameters(), lr=1.0)
    batches = [(functions.make_batch(rows[piece]), True) for piece in cut_window(np.asarray(rows["length"]), budget)]
    sums = learn_window(adapted.model, batches, functions.loss_function, recorder, 0.0, Accelerator())
    assert (len(batches) == 13) == (budget == 1)
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected))
    difference = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(recorder.seen, expected, strict=True)))
    assert difference / norm < 1e-6
    assert sums.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert sums.examples == 13
    assert sums.tokens == sum(rows["length"])


@pytest.mark.parametrize("architecture", ["deberta-v2", "mpnet", "bert", "t5"])
def test_a_window_cut_by_length_has_the_gradient_of_the_whole(tmp_path, architecture):
    """In double precision, so that nothing but a wrong sum could tell them apart; two of these run padded."""
    pretrained, adapted, functions = open_tiny(make_checkpoint(tmp_path, architecture))
    adapted.model.double()
    rows = encoded_rows(13, len(pretrained.tokenizer), 3)
    found = []
    for budget in (10_000, 60):
        recorder = Recorder(adapted.model.parameters(), lr=0.0)
        flat = find_stacks(adapted.model).flat
        pieces = cut_window(np.asarray(rows["length"]), budget, flat)
        batches = [(functions.make_batch(rows[piece]), True) for piece in pieces]
        learn_window(adapted.model, batches, functions.loss_function, recorder, 0.0, Accelerator())
        found.append((len(pieces), torch.cat([gradient.flatten() for gradient in recorder.seen])))
    (few, whole), (many, cut) = found
    assert few < many
    assert float((whole - cut).norm() / whole.norm()) < 1e-9


@pytest.mark.recipe
def test_two_processes_take_the_same_gradient_as_one(checkpoint, tmp_path):
    windows = [12, 13, 1]  # even, uneven, and one that leaves the second process with nothing but a filler
    assert [len(share) for share in share_window(np.array([5]), 2)] == [1, 0]
    launch_two(Path(__file__).parent / "two_processes.py", checkpoint, tmp_path / "g.pt", *windows)
    found = torch.load(tmp_path / "g.pt", weights_only=True)
    for window in windows:
        pretrained, adapted, _ = open_tiny(checkpoint)
        rows = encoded_rows(window, len(pretrained.tokenizer), 3)
        expected = reference_gradient(adapted.model, rows, "single_label")
        norm = math.sqrt(sum(float((g**2).sum()) for g in expected))
        pairs = zip(found[window]["gradients"], expected, strict=True)
        difference = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs))
        assert difference / norm < 1e-6
        assert found[window]["examples"] == window


def test_the_stock_model_loss_would_be_wrong_under_accumulation(checkpoint):
    """Guards the reason for taking logits: mean losses of uneven micro-batches do not add up to the window's mean."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3).eval()
    rows = encoded_rows(3, 40, 3)
    whole = [model(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss for r in rows]
    uneven = (torch.stack(whole[:2]).mean() + whole[2]) / 2
    assert not math.isclose(float(uneven.detach()), float(torch.stack(whole).mean().detach()), rel_tol=1e-4)


def run_training(
    checkpoint, folder, config, strategy="full", scores=None, examples=40, resume_from=None, accelerator=None, **adapt
):
    pretrained, adapted, functions = open_tiny(checkpoint, strategy, **adapt)
    rows = encoded_rows(examples, len(pretrained.tokenizer), 3)
    values = iter(scores) if scores else None
    calls = []

    def validate(model):
        calls.append(1)
        return next(values) if values else -float(model(input_ids=torch.tensor([[2, 9, 3]])).logits.sum())

    progress = Silent()
    chooser = Chooser("in_domain_validation", "accuracy", True, validate)
    run_folder = RunFolder(folder / "log.jsonl", folder / "checkpoints", {"seed": 0}, resume_from)
    accelerator = accelerator or Accelerator()
    result = train(adapted, rows, functions, chooser, accelerator, config, run_folder, 0, progress)
    return result, adapted, progress


def parameters_of(adapted):
    return {name: p.detach().clone() for name, p in adapted.model.named_parameters()}


def test_the_best_step_is_put_back_and_its_score_is_checked(checkpoint, tmp_path):
    config = TrainConfig(epochs=3, window_size=10, learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)
    result, whole, _ = run_training(checkpoint, tmp_path / "a", config, scores=[0.5, 0.9, 0.7, 0.9])
    assert (result.selection.step, result.selection.value) == (8, 0.9)
    _, until_best, _ = run_training(checkpoint, tmp_path / "b", replace(config, epochs=2.0), scores=[0.5, 0.9])
    wanted = parameters_of(until_best)
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(whole).items())


def test_a_restored_step_that_scores_otherwise_ends_the_run(checkpoint, tmp_path):
    config = TrainConfig(epochs=2, window_size=10)
    with pytest.raises(RunError, match=r"put back, but score accuracy 0\.4 where 0\.9 was recorded"):
        run_training(checkpoint, tmp_path, config, scores=[0.9, 0.5, 0.4])


@pytest.mark.parametrize("scores", [[math.nan, math.nan], [0.5, math.nan], [math.nan, 0.5, 0.5]])
def test_a_step_whose_score_is_undefined_is_kept_only_where_all_are_and_ends_nothing(checkpoint, tmp_path, scores):
    result, _, _ = run_training(checkpoint, tmp_path, TrainConfig(epochs=2, window_size=10), scores=scores * 2)
    defined = [step for step, value in zip((4, 8), scores, strict=False) if not math.isnan(value)]
    assert result.selection.step == (defined or [8])[0]


def test_training_stops_early_after_patience_validations(checkpoint, tmp_path):
    config = TrainConfig(epochs=9, window_size=10, patience=2)
    result, _, progress = run_training(checkpoint, tmp_path, config, scores=[0.5, 0.6, 0.6, 0.6, 0.6])
    assert result.stopped_early
    assert result.steps == 16
    assert "stopping early: no better accuracy in 2 validations" in progress.notes


def test_patience_does_not_run_out_before_the_strategy_has_begun(checkpoint, tmp_path):
    """Three epochs of the head alone, which gets no better; then the strategy has its own two validations."""
    config = TrainConfig(epochs=4, window_size=10, patience=2)
    scores = [0.5, 0.5, 0.5, 0.4, 0.4, 0.5]
    result, _, _ = run_training(checkpoint, tmp_path, config, scores=scores, head_first=True, head_first_epochs=3)
    assert (result.steps, result.stopped_early) == (20, True)


def test_the_log_has_one_record_per_step(checkpoint, tmp_path):
    result, _, _ = run_training(checkpoint, tmp_path, TrainConfig(epochs=1.5, window_size=10))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sum(line["tokens"] for line in lines) == result.tokens
    expected = {"step", "loss", "learning_rate", "gradient_norm", "examples", "tokens", "padding_tokens", "seconds"}
    assert set(lines[0]) == expected


def test_a_window_without_finite_gradient_is_skipped_counted_and_in_the_end_stops(checkpoint, tmp_path):
    pretrained, adapted, functions = open_tiny(checkpoint)
    with torch.no_grad():
        dict(adapted.model.named_parameters())["classifier.bias"].fill_(math.inf)
    before = parameters_of(adapted)
    chooser = Chooser("last", "accuracy", True, lambda model: 0.0)
    folder = RunFolder(tmp_path / "log.jsonl", tmp_path / "checkpoints")
    rows = encoded_rows(40, len(pretrained.tokenizer), 3)
    with pytest.raises(
        RunError, match=r"no finite loss and gradient in 3 windows in a row, up to step 3 \(its examples begin with"
    ):
        train(adapted, rows, functions, chooser, Accelerator(), TrainConfig(window_size=10), folder, 0, Silent())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [True, True, True]
    windows = [window_indices(40, 10, 0, step) for step in range(3)]
    assert [line["example_ids"] for line in lines] == [sorted(rows[window]["example_id"]) for window in windows]
    assert all(torch.equal(p, before[name]) for name, p in parameters_of(adapted).items())


class Poisoned:
    """A loss that is ``value`` in the windows of ``steps``, counted from 1; its gradient stays as it is."""

    def __init__(self, loss_function, value, steps):
        self.loss_function, self.value, self.steps, self.asked = loss_function, value, steps, -1  # once by drop_unused

    def __call__(self, output, batch):
        self.asked += 1
        found = self.loss_function(output, batch)
        return replace(found, loss_sum=self.spoilt(found.loss_sum)) if self.asked in self.steps else found

    def spoilt(self, loss):
        return loss + self.value


class WithoutGradient(Poisoned):
    """The same with a gradient that is not finite either."""

    def spoilt(self, loss):
        return loss * self.value


def run_poisoned(checkpoint, folder, kind, value, steps, config):
    pretrained, adapted, functions = open_tiny(checkpoint)
    poisoned = replace(functions, loss_function=kind(functions.loss_function, value, steps))
    chooser = Chooser("last", "accuracy", True, lambda model: 0.0)
    rows = encoded_rows(40, len(pretrained.tokenizer), 3)
    run_folder = RunFolder(folder / "log.jsonl", folder / "checkpoints")
    done = train(adapted, rows, poisoned, chooser, Accelerator(), config, run_folder, 0, Silent())
    return done, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [Poisoned, WithoutGradient])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_windows_that_are_not_finite_are_left_out_and_the_others_learnt_from(checkpoint, tmp_path, kind, value):
    """Two bad ones, a good one and two bad ones: five windows, of which no three in a row are bad."""
    config = TrainConfig(epochs=2, window_size=10)
    done, log = run_poisoned(checkpoint, tmp_path, kind, value, (2, 3, 5, 6), config)
    assert (done.steps, done.skipped_steps) == (8, 4)
    assert [line["step"] for line in log if line.get("skipped")] == [2, 3, 5, 6]
    for line in log:
        assert math.isfinite(line["loss"]) == (not line.get("skipped")), "the log tells what was found"
        assert sorted(line.get("example_ids", [])) == line.get("example_ids", [])
        assert len(line.get("example_ids", [])) == (10 if line.get("skipped") else 0)


def test_the_last_good_checkpoint_is_named_where_nothing_is_finite_any_more(checkpoint, tmp_path):
    config = TrainConfig(epochs=3, window_size=10, checkpoint_steps=5)
    last = re.escape(str(tmp_path / "checkpoints" / "step-5"))
    with pytest.raises(RunError, match=rf"3 windows in a row, up to step 8 .*The last good checkpoint is {last}\."):
        run_poisoned(checkpoint, tmp_path, WithoutGradient, math.nan, (6, 7, 8), config)


def test_overflow_while_fp16_looks_for_its_scale_is_counted_and_ends_nothing():
    state = RunState()
    for step in range(1, 6):
        state = _count(state, step, WindowSums(stepped=False, in_search=True), 0.0)
    assert (state.skipped_steps, state.skipped_in_a_row) == (5, 0)
    state = _count(state, 6, WindowSums(stepped=False), 0.0)
    assert (state.skipped_steps, state.skipped_in_a_row) == (6, 1)
    assert _count(state, 7, WindowSums(), 0.0).skipped_in_a_row == 0


@pytest.mark.parametrize(("factor", "steps"), [(math.inf, False), (math.nan, False), (1.0, True)])
def test_a_fused_step_that_the_scaler_leaves_out_is_told_as_left_out(checkpoint, factor, steps):
    """The optimizer is called all the same, and its kernel steps over infinite gradients by itself."""
    _, adapted, functions = open_tiny(checkpoint)
    accelerator = Accelerator()
    scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(adapted.model.parameters(), fused=True), scaler=scaler)

    def backward(loss):
        scaler.scale(loss * factor).backward()

    def unscale(which):
        scaler.unscale_(which.optimizer)

    accelerator.backward, accelerator.unscale_gradients = backward, unscale
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    batch = functions.make_batch(encoded_rows(4, 40, 3)[:4])
    sums = learn_window(adapted.model, [(batch, True)], functions.loss_function, optimizer, 1.0, accelerator)
    changed = [name for name, p in adapted.model.named_parameters() if not torch.equal(p, before[name])]
    assert (sums.stepped, bool(changed)) == (steps, steps)
    assert len(sums.not_finite) == (0 if steps else 4)
    assert scaler.get_scale() == (4.0 if steps else 2.0)
    assert sums.in_search == (not steps)


def test_a_loss_that_is_infinite_under_fp16_is_no_search_for_a_scale(checkpoint):
    """Its gradient may be finite all the same (of a logit that came out as minus infinity), whatever the scale."""
    _, adapted, functions = open_tiny(checkpoint)
    accelerator = Accelerator()
    scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(adapted.model.parameters(), fused=True), scaler=scaler)
    accelerator.backward = lambda loss: scaler.scale(loss).backward()
    accelerator.unscale_gradients = lambda which: scaler.unscale_(which.optimizer)

    def infinite(outputs, batch):
        found = functions.loss_function(outputs, batch)
        return replace(found, loss_sum=found.loss_sum + torch.inf)

    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    batch = functions.make_batch(encoded_rows(4, 40, 3)[:4])
    sums = learn_window(adapted.model, [(batch, True)], infinite, optimizer, 1.0, accelerator)
    assert (sums.stepped, sums.in_search) == (False, False)
    assert all(torch.equal(p, before[name]) for name, p in adapted.model.named_parameters())


@pytest.mark.parametrize("strategy", ["full", "freeze", "lora", "probe"])
def test_a_resumed_run_equals_the_uninterrupted_one(checkpoint, tmp_path, strategy):
    config = TrainConfig(epochs=3, window_size=10, checkpoint_steps=5, learning_rate=1e-3, keep_checkpoints=3)
    adapt = {"freeze": "1"} if strategy == "freeze" else {}
    whole, expected, _ = run_training(checkpoint, tmp_path / "whole", config, strategy, **adapt)
    run_training(checkpoint, tmp_path / "cut", config, strategy, **adapt)
    resume_from = tmp_path / "cut" / "checkpoints" / "step-5"
    again, found, progress = run_training(
        checkpoint, tmp_path / "cut", config, strategy, resume_from=resume_from, **adapt
    )
    assert progress.notes[0] == "continuing after step 5 of 12"
    wanted = parameters_of(expected)
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(found).items())
    without_time = [{k: v for k, v in record.items() if k != "seconds"} for record in whole.history]
    assert [{k: v for k, v in record.items() if k != "seconds"} for record in again.history] == without_time

    def log(name):
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    assert log("cut") == log("whole")


class Interrupted(Silent):
    """A progress bar under which the process dies in the tenth window."""

    windows = 0

    def advance(self, loss, learning_rate, examples):
        self.windows += 1
        if self.windows == 10:
            raise KeyboardInterrupt


def test_the_best_step_of_a_checkpoint_outlives_a_better_one_that_came_after_it(checkpoint, tmp_path, monkeypatch):
    config = TrainConfig(epochs=3, window_size=10, learning_rate=1e-2, checkpoint_steps=5)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"{__name__}.Silent", Interrupted)
        run_training(checkpoint, tmp_path / "cut", config, scores=[0.5, 0.9])
    assert {path.name for path in (tmp_path / "cut" / "checkpoints" / "best").iterdir()} == {"at-4", "at-8"}
    left = tmp_path / "cut" / "checkpoints" / "step-5"
    config = replace(config, max_seconds=1e-9)  # no window more
    result, found, _ = run_training(checkpoint, tmp_path / "cut", config, scores=[0.5], resume_from=left)
    assert (result.selection.step, result.selection.value) == (4, 0.5)
    config = replace(config, max_seconds=None)
    _, until_best, _ = run_training(checkpoint, tmp_path / "b", config, scores=[0.9, 0.1, 0.2, 0.9])
    wanted = parameters_of(until_best)
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(found).items())


def test_a_run_with_several_stages_resumes_inside_the_second(checkpoint, tmp_path):
    config = TrainConfig(epochs=2, window_size=10, checkpoint_steps=7, learning_rate=1e-3)
    _, expected, _ = run_training(checkpoint, tmp_path / "whole", config, head_first=True)
    run_training(checkpoint, tmp_path / "cut", config, head_first=True)
    resume_from = tmp_path / "cut" / "checkpoints" / "step-7"
    _, found, _ = run_training(checkpoint, tmp_path / "cut", config, resume_from=resume_from, head_first=True)
    wanted = parameters_of(expected)
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(found).items())


def test_a_checkpoint_of_another_run_is_refused(checkpoint, tmp_path):
    config = TrainConfig(epochs=1, window_size=10, checkpoint_steps=2)
    run_training(checkpoint, tmp_path, config)
    state = tmp_path / "checkpoints" / "step-4" / "state.json"
    state.write_text(state.read_text().replace('"identity": {"seed": 0}', '"identity": {"seed": 7}'))
    with pytest.raises(InputError, match="belongs to another run \\(seed was 7, now 0\\)"):
        run_training(checkpoint, tmp_path, config, resume_from=state.parent)


def test_parameters_that_the_output_does_not_use_are_frozen_and_named(checkpoint, tmp_path):
    pretrained, adapted, functions = open_tiny(checkpoint)
    adapted.model.register_parameter("idle", torch.nn.Parameter(torch.zeros(3)))
    progress = Silent()
    chooser = Chooser("last", "accuracy", True, lambda model: 0.0)
    folder = RunFolder(tmp_path / "log.jsonl", tmp_path / "checkpoints")
    rows = encoded_rows(20, len(pretrained.tokenizer), 3)
    train(adapted, rows, functions, chooser, Accelerator(), TrainConfig(max_steps=1), folder, 0, progress)
    assert progress.notes[0] == "1 parameters take no part in the output and stay as they are: idle"


# a limit of seconds


@pytest.fixture
def half_second_steps(monkeypatch):
    """A clock on which every stretch that is measured takes half a second."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 2)
    monkeypatch.setattr("hf_transfer.train.time", clock)
    monkeypatch.setattr("hf_transfer.model_selection.time", clock)


def logged(folder: Path, *names: str) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [tuple(line[name] for name in names) for line in lines]


TIMED = TrainConfig(epochs=8, window_size=10, learning_rate=1e-3, warmup_fraction=0.0, max_seconds=3.0)


def test_training_stops_when_the_time_is_up_and_validates_there(checkpoint, tmp_path, half_second_steps):
    result, _, _ = run_training(checkpoint, tmp_path, TIMED)
    assert (result.steps, result.train_seconds) == (6, 3.0)
    assert [record["step"] for record in result.history] == [4, 6], "an epoch is 4 steps; its validation costs no time"
    assert not result.stopped_early
    assert len(logged(tmp_path, "step")) == 6


def test_a_step_that_begins_in_time_is_finished(checkpoint, tmp_path, half_second_steps):
    result, _, _ = run_training(checkpoint, tmp_path, replace(TIMED, max_seconds=2.75))
    assert result.steps == 6
    result, _, _ = run_training(checkpoint, tmp_path, replace(TIMED, max_seconds=0.01))
    assert (result.steps, [record["step"] for record in result.history]) == (1, [1])


def test_a_limit_of_steps_that_comes_first_ends_training(checkpoint, tmp_path, half_second_steps):
    result, _, _ = run_training(checkpoint, tmp_path, replace(TIMED, epochs=1, max_seconds=2.0))
    assert [record["step"] for record in result.history] == [4], "both limits at once validate once"
    result, _, _ = run_training(checkpoint, tmp_path, replace(TIMED, epochs=1, max_seconds=1000.0))
    assert (result.steps, [record["step"] for record in result.history]) == (4, [4])


def test_the_best_step_before_the_time_was_up_is_put_back(checkpoint, tmp_path, half_second_steps):
    result, _, _ = run_training(checkpoint, tmp_path, TIMED, scores=[0.9, 0.5, 0.9])
    assert (result.selection.step, result.selection.value, result.steps) == (4, 0.9, 6)


def rates(folder: Path, head_rate: float) -> list[float]:
    return [rate / head_rate for (rate,) in logged(folder, "learning_rate")]


def test_the_rate_falls_with_the_clock_where_time_ends_first(checkpoint, tmp_path, half_second_steps):
    # 8 epochs are 32 steps, of which 4 s allow 8: each takes an eighth of the time
    run_training(checkpoint, tmp_path, replace(TIMED, max_seconds=4.0))
    assert rates(tmp_path, 1e-2) == pytest.approx([1 - step / 8 for step in range(8)])


def test_the_rate_falls_with_the_steps_where_they_end_first(checkpoint, tmp_path, half_second_steps):
    run_training(checkpoint, tmp_path, replace(TIMED, epochs=2, max_seconds=64.0))
    assert rates(tmp_path, 1e-2) == pytest.approx([1 - step / 8 for step in range(8)])


def test_the_rate_rises_with_the_clock_as_well(checkpoint, tmp_path, half_second_steps):
    # warm-up takes 8 of 32 steps, that is 1 s of 4 s: the rates are those of steps 0, 4, 8, 12 ...
    run_training(checkpoint, tmp_path, replace(TIMED, max_seconds=4.0, warmup_fraction=0.25))
    wanted = [1 / 8, 5 / 8, *[1 - (step - 8) / 24 for step in (8, 12, 16, 20, 24, 28)]]
    assert rates(tmp_path, 1e-2) == pytest.approx(wanted)


def test_the_rate_of_a_step_is_never_0_however_late_it_begins(checkpoint, tmp_path, half_second_steps):
    run_training(checkpoint, tmp_path, replace(TIMED, epochs=0.5, max_seconds=0.75))
    assert all(rate > 0 for rate in rates(tmp_path, 1e-2))


def test_time_that_is_up_in_the_first_stage_leaves_the_second_out(checkpoint, tmp_path, half_second_steps):
    # the head's stage is one epoch of 4 steps
    config = replace(TIMED, max_seconds=1.5)
    before = parameters_of(open_tiny(checkpoint, head_first=True)[1])
    result, adapted, _ = run_training(checkpoint, tmp_path, config, head_first=True)
    assert (result.steps, [record["step"] for record in result.history]) == (3, [3])
    changed = {name for name, p in parameters_of(adapted).items() if not torch.equal(p, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_time_runs_on_over_two_stages(checkpoint, tmp_path, half_second_steps):
    before = parameters_of(open_tiny(checkpoint, head_first=True)[1])
    result, adapted, _ = run_training(checkpoint, tmp_path, replace(TIMED, max_seconds=4.0), head_first=True)
    assert result.steps == 8
    assert [record["step"] for record in result.history] == [4, 8]
    changed = {name for name, p in parameters_of(adapted).items() if not torch.equal(p, before[name])}
    assert "bert.embeddings.word_embeddings.weight" in changed


def test_a_run_whose_time_was_up_takes_no_further_step_when_it_is_resumed(checkpoint, tmp_path, half_second_steps):
    config = replace(TIMED, checkpoint_steps=6)
    result, adapted, _ = run_training(checkpoint, tmp_path, config)
    wanted = parameters_of(adapted)
    again, resumed, _ = run_training(checkpoint, tmp_path, config, resume_from=tmp_path / "checkpoints" / "step-6")
    assert (again.steps, again.train_seconds, again.selection) == (6, 3.0, result.selection)
    assert again.history == result.history
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(resumed).items())
    assert len(logged(tmp_path, "step")) == 6


def test_a_resumed_run_has_the_time_that_was_left(checkpoint, tmp_path, half_second_steps):
    config = replace(TIMED, checkpoint_steps=4)
    _, adapted, _ = run_training(checkpoint, tmp_path, config)
    wanted, log = parameters_of(adapted), logged(tmp_path, "step", "loss", "learning_rate")
    again, resumed, _ = run_training(checkpoint, tmp_path, config, resume_from=tmp_path / "checkpoints" / "step-4")
    assert (again.steps, again.train_seconds) == (6, 3.0)
    assert logged(tmp_path, "step", "loss", "learning_rate") == log
    assert all(torch.equal(p, wanted[name]) for name, p in parameters_of(resumed).items())


def test_a_stage_with_its_own_schedule_warms_up_though_time_has_passed(checkpoint, tmp_path, half_second_steps):
    config = replace(TIMED, max_seconds=8.0, warmup_fraction=0.25)
    run_training(checkpoint, tmp_path, config, head_first=True)
    (first_of_stage,) = rates(tmp_path, 1e-2)[4:5]
    assert first_of_stage < 0.5


def test_a_run_that_is_continued_in_its_third_stage_knows_when_its_schedule_began(
    checkpoint, tmp_path, half_second_steps
):
    config = replace(TIMED, max_seconds=8.0, checkpoint_steps=10)
    about = {"strategy": "freeze", "freeze": "0", "head_first": True, "gradual_unfreezing": True}
    run_training(checkpoint, tmp_path, config, **about)
    log = logged(tmp_path, "step", "learning_rate")
    run_training(checkpoint, tmp_path, config, resume_from=tmp_path / "checkpoints" / "step-10", **about)
    assert logged(tmp_path, "step", "learning_rate") == log


# what surrounds the loop


def in_half_precision():
    AcceleratorState._reset_state(True)
    return Accelerator(mixed_precision="bf16", cpu=True)


@pytest.fixture
def afterwards_in_full_precision():
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("afterwards_in_full_precision")
def test_a_run_continued_after_its_last_step_is_scored_in_the_precision_that_it_learnt_in(checkpoint, tmp_path):
    config = TrainConfig(epochs=2, window_size=10, checkpoint_steps=4, learning_rate=1e-3)
    scores = []
    for resume_from in (None, tmp_path / "checkpoints" / "step-8"):
        _, adapted, _ = run_training(
            checkpoint, tmp_path, config, resume_from=resume_from, accelerator=in_half_precision()
        )
        scores.append(adapted.model(input_ids=torch.tensor([[2, 9, 3, 4]])).logits)
    assert torch.equal(*scores)
    plain = Accelerator().unwrap_model(adapted.model, keep_fp32_wrapper=False)
    assert not torch.equal(plain(input_ids=torch.tensor([[2, 9, 3, 4]])).logits, scores[0]), "or this says nothing"


@pytest.mark.usefixtures("afterwards_in_full_precision")
def test_what_learns_nothing_is_scored_in_the_precision_of_the_others(checkpoint, tmp_path):
    _, adapted, functions = open_tiny(checkpoint)
    adapted, kinds = replace(adapted, stages=()), []

    def validate(model):
        model.classifier.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
        model(input_ids=torch.tensor([[2, 9, 3]]))
        return 0.0

    folder = RunFolder(tmp_path / "log.jsonl", tmp_path / "checkpoints")
    chooser = Chooser("last", "accuracy", True, validate)
    train(adapted, None, functions, chooser, in_half_precision(), TrainConfig(), folder, 0, Silent())
    assert kinds == [torch.bfloat16]


@pytest.mark.usefixtures("afterwards_in_full_precision")
def test_frozen_layers_are_tried_in_single_precision_and_looked_up_in_the_second_stage_as_in_the_first(
    checkpoint, tmp_path
):
    """On larger models half precision differs by more between two ways to cut a batch than a trial allows."""
    kinds = []

    class Watched(StoredFeatures):
        def begin(self, stage):
            kinds.append(set())
            lowest = adapted.model.bert.encoder.layer[0].output.dense
            hook = lowest.register_forward_hook(lambda module, inputs, output: kinds[-1].add(output.dtype))
            super().begin(stage)
            hook.remove()

    pretrained, adapted, functions = open_tiny(checkpoint, "freeze", freeze="1", head_first=True)
    rows = encoded_rows(20, len(pretrained.tokenizer), 3)
    config = TrainConfig(epochs=3, window_size=5, learning_rate=1e-3)
    folder = RunFolder(tmp_path / "log.jsonl", tmp_path / "checkpoints")
    chooser = Chooser("last", "accuracy", True, lambda model: 0.0)
    features = Watched(adapted, "weights", FeatureStore(), functions.make_batch(rows[:2]).inputs)
    train(adapted, rows, functions, chooser, in_half_precision(), config, folder, 0, Silent(), features)
    assert kinds == [{torch.float32}] * 2
    assert features.depth == "1 of 2 layers"
    # three epochs, in each of which every text is asked for once; and no word of frozen layers that are computed again
    assert features.notes() == (
        "computed once and then looked up: 1 of 2 layers (20 examples computed, 40 looked up).",
    )
