"""Options of the loop, of both tasks: the pull to the start, the mean of checkpoints, R-Drop; each against arithmetic
that is written out here."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file
from test_train import Recorder, Silent
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from torch.nn import functional
from toy import encoded_rows, launch_two

from hf_transfer.adapt import apply_strategy
from hf_transfer.batching import cut_window, window_indices
from hf_transfer.checkpoint import RunFolder, save_checkpoint
from hf_transfer.config import AdaptConfig, ModelConfig, RunConfig, TrainConfig
from hf_transfer.dropout import QuickDropout
from hf_transfer.errors import RunError
from hf_transfer.flattened import flattened, real_tokens
from hf_transfer.folder import open_run_folder, run_identity
from hf_transfer.model_selection import Chooser
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import LabelSpace, RunState
from hf_transfer.tasks import TASKS
from hf_transfer.train import _seed_of, learn_window, train
from hf_transfer.windows import own_batches

SMOOTHING = {"classification": 0.0, "translation": 0.1}
LABELS = {
    "classification": LabelSpace("single_label", ("a", "b", "c")),
    "translation": LabelSpace("translation", source_lang="en", target_lang="de"),
}
SEED = 3
PLAIN = TrainConfig(  # a large epsilon: where a gradient is all rounding, Adam's first step would be so as well
    max_steps=3, window_size=6, schedule="constant", warmup_fraction=0.0, max_gradient_norm=0.0, adam_epsilon=1e-3
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "classification": make_checkpoint(tmp_path_factory.mktemp("bert")),
        "translation": make_translation_checkpoint("marian", tmp_path_factory.mktemp("marian")),
    }


def rows_of(task, count, vocabulary):
    rows = encoded_rows(count, vocabulary, 3)
    if task == "classification":
        return rows
    rng = np.random.default_rng(1)
    labels = [[*rng.integers(5, vocabulary - 1, int(rng.integers(1, 15))).tolist(), 0] for _ in range(count)]
    columns = {
        "example_id": rows["example_id"][:],
        "domain": rows["domain"][:],
        "input_ids": rows["input_ids"][:],
        "decoder_input_ids": [[vocabulary - 1, *ids[:-1]] for ids in labels],
        "labels": labels,
        "length": [source + len(ids) for source, ids in zip(rows["length"], labels, strict=True)],
    }
    return Dataset.from_dict(columns)


class Course:
    """A tiny model that is about to be trained, an untouched copy of it, and rows."""

    def __init__(self, task, folder, config, strategy="full", dropout=0.0, count=15, **adapt):
        model, kind = ModelConfig(checkpoint=str(folder), dropout=dropout), TASKS[task]
        head, keep = kind.head(LABELS[task]), task == "translation"
        pretrained = load_pretrained(model, find_checkpoint(model), kind.auto_class, head, keep, seed=1)
        if task == "classification":  # a new head is so small that predictions hardly differ
            torch.nn.init.normal_(pretrained.model.classifier.weight, std=0.5)
        self.task, self.config, self.strategy = task, config, strategy
        self.plain = copy.deepcopy(pretrained.model)
        self.rows = rows_of(task, count, len(pretrained.tokenizer))
        run = RunConfig(task=task, train=config)
        self.functions = kind.bind(LABELS[task], pretrained, run, ())
        self.adapted = apply_strategy(pretrained, AdaptConfig(strategy=strategy, **({"freeze": "1"} | adapt)))

    def run(self, folder, validate=lambda model: 0.0, rule="last", resume_from=None):
        settings = self.config.settled(self.task, self.strategy, False)
        chooser = Chooser(rule, "score", True, validate)
        run_folder = RunFolder(folder / "log.jsonl", folder / "checkpoints", {}, resume_from)
        accelerator = Accelerator()
        return train(
            self.adapted, self.rows, self.functions, chooser, accelerator, settings, run_folder, SEED, Silent()
        )

    def parameters(self):
        return {name: p.detach().clone() for name, p in self.adapted.model.named_parameters()}


def losses_of(task, model, batch):
    """[targets] smoothed cross-entropies and [targets, classes] log-probabilities, from the model's own logits."""
    logits = model(**batch.inputs).logits.flatten(0, -2)
    labels = batch.labels.flatten()
    logits, labels = logits[labels != -100], labels[labels != -100]
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=SMOOTHING[task])
    return losses, logits.log_softmax(-1)


# --- L2-SP


def by_hand(course, rate, strength):
    """Parameters after AdamW's steps with torch's plain loop, each followed by the pull; in double precision."""
    model = course.plain.double().eval()
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    body = [p for p in model.parameters() if p.requires_grad and not any(p is other for other in head)]
    groups = [{"params": body, "lr": rate}, *([{"params": head, "lr": 10 * rate}] if head else [])]
    optimizer = torch.optim.AdamW(groups, eps=1e-3, weight_decay=0.0, fused=False)
    start = [p.detach().clone() for p in body]
    for step in range(3):
        rows = course.rows[window_indices(len(course.rows), 6, SEED, step)]
        losses, _ = losses_of(course.task, model, course.functions.make_batch(rows))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        with torch.no_grad():
            for p, before in zip(body, start, strict=True):
                p -= rate * strength * (p - before)
    return dict(model.named_parameters())


@pytest.mark.parametrize("task", TASKS)
def test_training_with_l2_sp_is_adam_and_a_pull_after_each_step(task, folders, tmp_path):
    rate, strength = 1e-2, 20.0
    config = replace(PLAIN, learning_rate=rate, weight_decay=0.0, l2_sp=strength)
    course = Course(task, folders[task], config)
    before = course.parameters()
    wanted = by_hand(course, rate, strength)
    course.run(tmp_path)
    moved = 0.0
    for name, parameter in course.parameters().items():
        # a step moves by at most rate / epsilon, ten here, times the rounding of a gradient; a head by ten times that
        rounding = 1e-5 * (10 if name.startswith("classifier") else 1)
        difference = float((parameter - wanted[name]).abs().max())
        assert difference < rounding, f"{name} is off by {difference:.1e}"
        moved = max(moved, float((parameter - before[name]).abs().max()))
    assert moved > 5e-3

    free = Course(task, folders[task], replace(config, l2_sp=0.0))
    free.run(tmp_path / "free")
    pulled, loose = course.parameters(), free.parameters()
    body = [name for name in before if not name.startswith("classifier") and not torch.equal(pulled[name], loose[name])]
    distance = {
        where: math.sqrt(sum(float(((now[name] - before[name]) ** 2).sum()) for name in body))
        for where, now in (("pulled", pulled), ("free", loose))
    }
    assert distance["pulled"] < 0.8 * distance["free"]


def test_a_pull_of_all_the_way_leaves_the_body_where_it_was_and_lets_the_head_learn(folders, tmp_path):
    config = replace(PLAIN, learning_rate=0.25, weight_decay=0.0, l2_sp=4.0)  # rate x strength = 1
    course = Course("classification", folders["classification"], config)
    before = course.parameters()
    course.run(tmp_path)
    for name, parameter in course.parameters().items():
        if name.startswith("classifier"):
            assert not torch.equal(parameter, before[name])
        else:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


def test_the_start_of_a_resumed_run_is_that_of_the_uninterrupted_one(folders, tmp_path):
    config = replace(PLAIN, learning_rate=1e-2, l2_sp=10.0, checkpoint_steps=2, max_steps=4)
    whole = Course("translation", folders["translation"], config)
    whole.run(tmp_path)
    again = Course("translation", folders["translation"], config)
    again.run(tmp_path, resume_from=tmp_path / "checkpoints" / "step-2")
    wanted = whole.parameters()
    assert all(torch.equal(p, wanted[name]) for name, p in again.parameters().items())


# --- the mean of checkpoints


@pytest.mark.parametrize("strategy", ["full", "freeze", "lora"])
@pytest.mark.parametrize("task", TASKS)
def test_the_weights_that_stay_are_the_mean_over_the_last_validations(task, strategy, folders, tmp_path):
    config = replace(PLAIN, learning_rate=1e-2, max_steps=5, validation_steps=1, average_checkpoints=3)
    course = Course(task, folders[task], config, strategy)
    seen = []
    # the first validation scores best: the rule that keeps the best step has no say
    result = course.run(
        tmp_path, lambda model: seen.append(course.parameters()) or 1.0 / len(seen), "in_domain_validation"
    )
    assert len(seen) == 6, "five validations and one of the mean"
    assert (result.selection.rule, result.selection.step) == ("mean of the weights at the last 3 validations", 5)
    assert result.selection.value == pytest.approx(1 / 6)
    final = course.parameters()
    for name, parameter in final.items():
        mean = sum(weights[name].double() for weights in seen[2:5]) / 3
        torch.testing.assert_close(parameter.double(), mean, rtol=0, atol=1e-6)
    assert any(float((seen[4][name] - seen[2][name]).abs().max()) > 1e-3 for name in final)
    assert all(torch.equal(seen[5][name], parameter) for name, parameter in final.items()), (
        "what is scored is what stays"
    )

    saved = sorted((tmp_path / "checkpoints" / "average").iterdir())
    assert [path.name for path in saved] == ["at-3", "at-4", "at-5"]
    for path, weights in zip(saved, seen[2:5], strict=True):
        assert all(torch.equal(p, weights[name]) for name, p in load_file(path / "parameters.safetensors").items())


def test_a_run_with_fewer_validations_than_are_averaged_takes_those_there_are(folders, tmp_path):
    config = replace(PLAIN, learning_rate=1e-2, max_steps=2, validation_steps=1, average_checkpoints=5)
    course = Course("translation", folders["translation"], config)
    seen = []
    result = course.run(tmp_path, lambda model: seen.append(course.parameters()) or 0.0)
    assert result.selection.rule == "mean of the weights at the last 2 validations"
    for name, parameter in course.parameters().items():
        mean = (seen[0][name].double() + seen[1][name].double()) / 2
        torch.testing.assert_close(parameter.double(), mean, rtol=0, atol=1e-6)


def test_a_resumed_run_averages_what_the_uninterrupted_one_does(folders, tmp_path):
    config = replace(
        PLAIN, learning_rate=1e-2, max_steps=6, validation_steps=1, average_checkpoints=3, checkpoint_steps=2
    )
    whole = Course("translation", folders["translation"], config)
    whole.run(tmp_path)
    again = Course("translation", folders["translation"], config)
    again.run(tmp_path, resume_from=tmp_path / "checkpoints" / "step-4")
    wanted = whole.parameters()
    assert all(torch.equal(p, wanted[name]) for name, p in again.parameters().items())


@pytest.mark.parametrize("kept", ["best", "average/at-3"])
def test_a_run_continued_in_another_folder_brings_the_weights_that_it_may_end_with(kept, tmp_path):
    config = RunConfig(output_dir=str(tmp_path / "new"))
    old = tmp_path / "old" / "checkpoints"
    old.mkdir(parents=True)
    state = RunState(step=4)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    identity = run_identity(config, "x", Accelerator())
    save_checkpoint(old, model, ["weight"], optimizer, state, identity, 2, Accelerator())
    (old / kept).mkdir(parents=True)
    (old / kept / "parameters.safetensors").write_text("weights")
    config = replace(config, train=TrainConfig(resume=str(old / "step-4")))
    folder, _ = open_run_folder(config, "x", Accelerator())
    assert (folder.checkpoints / kept / "parameters.safetensors").read_text() == "weights"


# --- R-Drop


def r_drop_by_hand(course, model, batches, alpha):
    """Mean of both passes' cross-entropies plus alpha times the mean of both divergences, over the window's targets."""
    total, targets = 0.0, 0
    for batch in batches:
        with flattened(model, *real_tokens(batch)), QuickDropout():  # as the loop, whose draws these are
            losses, logs = losses_of(course.task, model, batch)
        first, second = logs.chunk(2)
        there = (first.exp() * (first - second)).sum(-1)
        back = (second.exp() * (second - first)).sum(-1)
        one, two = losses.chunk(2)
        total = total + ((one + two) / 2 + alpha * (there + back) / 2).sum()
        targets += len(one)
    return total / targets


@pytest.mark.parametrize("budget", [10_000, 60])
@pytest.mark.parametrize("task", TASKS)
def test_the_loss_of_r_drop_is_that_of_two_passes_with_their_own_dropout(task, budget, folders, tmp_path):
    alpha = 2.5
    config = replace(PLAIN, learning_rate=1e-3, max_steps=1, r_drop=alpha, tokens_per_micro_batch=budget)
    course = Course(task, folders[task], config, dropout=0.3)
    window = window_indices(len(course.rows), 6, SEED, 0)
    lengths = np.asarray(course.rows["length"])[window]
    made = own_batches(course.rows, window, lengths, course.functions.train_batch, budget, Accelerator(), True, 2)
    batches = [batch for batch, _ in made]
    assert (len(batches) > 1) == (budget == 60)
    assert sum(batch.target_count for batch in batches) * 2 == sum(int((b.labels != -100).sum()) for b in batches)
    torch.manual_seed(_seed_of(SEED, 0, 0))
    wanted = r_drop_by_hand(course, course.plain.train(), batches, alpha)
    wanted.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in course.plain.parameters() if p.grad is not None))
    course.run(tmp_path)
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["loss"] == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert line["examples"] == 6, "each example counts once"


@pytest.mark.parametrize("task", TASKS)
def test_a_window_of_r_drop_has_the_same_gradient_however_it_is_cut(task, folders):
    """Dropout's draws depend on the cut; a second pass that sees louder embeddings does not."""
    config = replace(PLAIN, r_drop=1.5)
    course = Course(task, folders[task], config)

    def second_half_louder(module, args, output):
        half = len(output) // 2
        return torch.cat([output[:half], output[half:] * 1.3])

    def gradients(budget):
        cut = cut_window(np.asarray(course.rows["length"]), budget, flat=True)
        batches = [(course.functions.train_batch(course.rows[piece]), True) for piece in cut]
        model = course.adapted.model.eval()
        recorder = Recorder([p for p in model.parameters() if p.requires_grad], lr=1.0)
        sums = learn_window(model, batches, course.functions.loss_function, recorder, 0.0, Accelerator())
        return sums, recorder.seen, len(cut)

    for model in (course.plain, course.adapted.model):
        embeddings = model.bert.embeddings if task == "classification" else model.model.encoder.embed_tokens
        embeddings.register_forward_hook(second_half_louder)
    whole, expected, one = gradients(100_000)
    parts, found, several = gradients(60)
    assert one == 1 and several > 3
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected))
    difference = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True)))
    assert difference / norm < 2e-6
    batch = course.functions.train_batch(course.rows[:])
    with torch.no_grad():
        by_hand = float(r_drop_by_hand(course, course.plain.eval(), [batch], 1.5))
        no_divergence = float(r_drop_by_hand(course, course.plain, [batch], 0.0))
    assert whole.loss == pytest.approx(by_hand, rel=1e-5)
    assert by_hand > 1.01 * no_divergence


def test_a_micro_batch_of_r_drop_holds_both_copies_within_the_budget(folders):
    course = Course("classification", folders["classification"], replace(PLAIN, r_drop=1.0))
    window = np.arange(len(course.rows))
    lengths = np.asarray(course.rows["length"])
    for flat in (False, True):
        batches = own_batches(course.rows, window, lengths, course.functions.train_batch, 120, Accelerator(), flat, 2)
        sizes = [batch.tokens if flat else batch.inputs["input_ids"].numel() for batch, _ in batches]
        assert 30 < max(sizes) <= 120


# --- memory


def losses_in(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def run_with_memory_for(course, folder, tokens, error):
    """Train where a batch of more than ``tokens`` fails, in its backward: half of the gradient is there by then."""
    notes = Notes()
    plain = course.functions.loss_function

    def loss_function(outputs, batch):
        loss = plain(outputs, batch)
        if batch.tokens > tokens and torch.is_grad_enabled():
            loss.loss_sum.backward(retain_graph=True)
            raise error
        return loss

    functions = replace(course.functions, loss_function=loss_function)
    chooser, places = Chooser("last", "score", True, lambda model: 0.0), RunFolder(folder / "log.jsonl", folder / "c")
    settings = course.config.settled(course.task, course.strategy, False)
    train(course.adapted, course.rows, functions, chooser, Accelerator(), settings, places, SEED, notes)
    return notes.said


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_a_window_that_does_not_fit_is_cut_in_half_and_learnt_from_with_the_same_gradient(
    task, error, folders, tmp_path
):
    config = replace(PLAIN, learning_rate=1e-2)
    whole = Course(task, folders[task], config)
    whole.run(tmp_path / "whole")
    course = Course(task, folders[task], config)
    longest = max(course.rows["length"])
    said = run_with_memory_for(course, tmp_path / "cut", longest + 5, error)
    assert losses_in(tmp_path / "cut") == pytest.approx(losses_in(tmp_path / "whole"), rel=1e-5)
    for name, parameter in course.parameters().items():
        torch.testing.assert_close(parameter, whole.parameters()[name], rtol=1e-4, atol=1e-6, msg=name)
    halved = [line for line in said if line.startswith("out of memory: the window is cut into micro-batches of ")]
    assert 1 <= len(halved) <= 4


def test_what_had_no_room_in_one_stage_is_not_tried_again_in_the_next(folders, tmp_path):
    config = replace(PLAIN, learning_rate=1e-2, epochs=2)
    course = Course("classification", folders["classification"], config, head_first=True)
    assert len(course.adapted.stages) == 2
    longest = max(course.rows["length"])
    said = run_with_memory_for(course, tmp_path, longest + 5, torch.OutOfMemoryError("CUDA out of memory"))
    cuts = [
        int(re.search(r"of (\d+) tokens", line)[1])
        for line in said
        if line.startswith("out of memory: the window is cut")
    ]
    assert cuts and cuts == sorted(set(cuts), reverse=True), said


def test_a_host_without_room_for_the_next_window_is_not_taken_for_a_device_without(folders):
    """The window at hand has its gradient; to answer other processes for it would be one exchange too many."""
    course = Course("classification", folders["classification"], PLAIN)
    optimizer = torch.optim.SGD(course.adapted.model.parameters(), lr=0.1)
    batch = course.functions.make_batch(course.rows[:4])

    def meanwhile():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        learn_window(
            course.adapted.model, [(batch, True)], course.functions.loss_function, optimizer, 1.0, Accelerator(),
            meanwhile=meanwhile,
        )  # fmt: skip


@pytest.mark.recipe
@pytest.mark.parametrize("moment", ["unsynchronised", "synchronised"])
def test_where_one_process_has_no_room_all_cut_the_window_and_learn_the_same(moment, folders, tmp_path):
    whole = Course("classification", folders["classification"], replace(PLAIN, learning_rate=1e-2))
    whole.run(tmp_path / "whole")
    script = Path(__file__).parent / "two_processes_memory.py"
    ran = launch_two(script, folders["classification"], tmp_path, moment, max(whole.rows["length"]))
    said = {line["rank"]: line for line in map(json.loads, re.findall(r"^{.*}$", ran.stdout, re.M))}
    assert said[1]["failed"] >= 1 and said[0]["failed"] == 0
    assert said[0]["said"] == said[1]["said"] and "out of memory: the window is cut" in said[0]["said"][0]
    assert losses_in(tmp_path) == pytest.approx(losses_in(tmp_path / "whole"), rel=1e-5)
    for name, parameter in torch.load(tmp_path / "parameters.pt", weights_only=True).items():
        torch.testing.assert_close(parameter, whole.parameters()[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.recipe
def test_a_process_without_room_in_the_middle_of_an_exchange_ends_the_run_in_words(folders, tmp_path):
    script = Path(__file__).parent / "two_processes_memory.py"
    longest = max(Course("classification", folders["classification"], PLAIN).rows["length"])
    with pytest.raises(AssertionError):
        launch_two(script, folders["classification"], tmp_path, "exchange", longest)
    words = (tmp_path / "words.txt").read_text(encoding="utf-8")
    assert words.startswith("out of memory on process 1 in the middle of an exchange with the others")
    assert not (tmp_path / "parameters.pt").exists()


def test_an_example_that_does_not_fit_alone_ends_the_run_with_its_length_and_a_remedy(folders, tmp_path):
    course = Course("classification", folders["classification"], PLAIN)
    with pytest.raises(RunError, match=r"one example of \d+ tokens: lower --data.max_length"):
        longest = max(course.rows["length"])
        run_with_memory_for(course, tmp_path, longest - 1, torch.OutOfMemoryError("CUDA out of memory"))


def test_another_error_is_not_taken_for_a_lack_of_memory(folders, tmp_path):
    course = Course("classification", folders["classification"], PLAIN)
    with pytest.raises(RuntimeError, match="shapes"):
        run_with_memory_for(course, tmp_path, 1, RuntimeError("shapes do not fit"))


@pytest.mark.parametrize("task", TASKS)
def test_activation_checkpointing_learns_the_same_and_runs_layers_twice(task, folders, tmp_path):
    found = []
    for checkpointing in (False, True):
        course = Course(task, folders[task], replace(PLAIN, learning_rate=1e-2, activation_checkpointing=checkpointing))
        for module in course.adapted.model.modules():  # what is drawn again must be what was drawn
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.2
        passes = []
        layer = course.adapted.parts.layer_modules[0]
        first = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda module, args, output, passes=passes: passes.append(output.requires_grad))
        course.run(tmp_path / str(checkpointing))
        assert not any(getattr(m, "gradient_checkpointing", False) for m in course.adapted.model.modules())
        found.append((losses_in(tmp_path / str(checkpointing)), course.parameters(), len(passes)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for name, parameter in found[1][1].items():
        torch.testing.assert_close(parameter, found[0][1][name], rtol=1e-5, atol=1e-7, msg=name)
    assert found[1][2] == found[0][2] + 3, "once more in each window's backward"
