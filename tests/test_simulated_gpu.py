"""Whole runs on a GPU that is simulated: they end with the losses and scores of the CPU, no operation mixes devices,
and within a window the host waits for two numbers. What a GPU's kernels, seconds and memory are is not told by this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
COMMON = ("--model.dropout", "0", "--evaluate.resamples", "200")
CLASSES = ("--model.checkpoint", "{bert}", "--train.epochs", "2", "--train.layer_decay", "0.9", *COMMON)
PAIRS = ("--task", "translation", "--model.checkpoint", "{marian}", "--train.max_steps", "10", *COMMON)
PAIRS = (*PAIRS, "--evaluate.beams", "2", "--evaluate.validation_examples", "20")
FROZEN_ENCODER = ("--adapt.strategy", "freeze", "--adapt.freeze", "cross_attention:trainable")
CASES = {
    "full": CLASSES,
    "in pieces, run again in the backward": (
        *(*CLASSES, "--train.tokens_per_micro_batch", "100"),
        *("--train.activation_checkpointing", "true"),
    ),
    "R-Drop": (*CLASSES, "--train.r_drop", "1.0"),
    "freeze": (*CLASSES, "--adapt.strategy", "freeze", "--adapt.freeze", "1"),
    "probe": (*CLASSES[:-2], *COMMON[2:], "--adapt.strategy", "probe"),
    "probe on layers": (*CLASSES, "--adapt.strategy", "probe", "--adapt.probe_layers", "auto"),
    "LoRA": (*CLASSES, "--adapt.strategy", "lora"),
    "translation": PAIRS,
    "translation, frozen encoder": (*PAIRS, *FROZEN_ENCODER),
    "translation, LoRA": (*PAIRS, "--adapt.strategy", "lora"),
}

STORED = ("freeze", "probe", "translation, frozen encoder")
"""Cases whose rows are looked up by token ids, which are read as each micro-batch begins."""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the simulated GPU with")
    built, torch_home = tmp_path_factory.mktemp("library") / "simulated_gpu.so", Path(torch.__file__).parent
    command = [compiler, "-std=c++20", "-shared", "-fPIC", HERE / "simulated_gpu.cpp", "-o", built]
    command += [f"-I{torch_home / 'include'}", f"-L{torch_home / 'lib'}", f"-Wl,-rpath,{torch_home / 'lib'}"]
    ran = subprocess.run([*map(str, command), "-lc10", "-ltorch_cpu"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return built


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "bert": make_checkpoint(folder / "bert"),
        "marian": make_translation_checkpoint("marian", folder / "marian"),
    }


def started(command: list[object]) -> None:
    environment = os.environ | {"ACCELERATE_USE_CPU": str("simulated_gpu.py" not in str(command[1])).lower()}
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]


def run_on_both(words: tuple[str, ...], library: Path, checkpoints: dict[str, Path], folder: Path) -> dict[str, object]:
    """Run on the CPU into ``folder / "cpu"`` and on the GPU into ``folder / "gpu"``; what the GPU was asked for."""
    words = ("run", *(word.format(**checkpoints) for word in words), "--output_dir")
    started([sys.executable, "-c", "from hf_transfer.cli import main; main()", *words, folder / "cpu"])
    counts = folder / "counts.json"
    started([sys.executable, HERE / "simulated_gpu.py", library, counts, *words, folder / "gpu"])
    return json.loads(counts.read_text())


def losses_of(folder: Path) -> list[float]:
    path = folder / "log.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.is_file() else []


def scores_of(folder: Path) -> list[float]:
    return [score["value"] for score in json.loads((folder / "results.json").read_text())["scores"]]


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_a_gpu_ends_as_one_on_the_cpu_and_waits_for_two_numbers_a_window(library, checkpoints, tmp_path, case):
    counts = run_on_both((*CASES[case], "--train.precision", "fp32"), library, checkpoints, tmp_path)
    losses = losses_of(tmp_path / "cpu")
    assert losses_of(tmp_path / "gpu") == pytest.approx(losses, rel=1e-5)
    assert scores_of(tmp_path / "gpu") == pytest.approx(scores_of(tmp_path / "cpu"), abs=1e-6)
    assert bool(losses) == (case != "probe on layers")
    assert counts["attention"]["sdpa"] > 0
    inside = {place.partition(": ")[2]: n for place, n in counts["waits"].items() if place.startswith("in a window: ")}
    assert inside.pop("read, train.py", 0) == 2 * len(losses)  # loss and norm of the gradient
    # once for the ids of a micro-batch, and once for what is computed of those that are new
    assert inside.pop("to the host, features.py", 0) <= (2 * len(losses) if case in STORED else 0)
    assert not inside


def test_half_precision_goes_through_flash_attention_over_the_long_row(library, checkpoints, tmp_path):
    counts = run_on_both((*CLASSES, "--train.precision", "auto"), library, checkpoints, tmp_path)
    results = json.loads((tmp_path / "gpu" / "results.json").read_text())
    assert results["environment"]["precision"] == "bf16"
    assert counts["attention"]["varlen"] > 100
    assert losses_of(tmp_path / "gpu") == pytest.approx(losses_of(tmp_path / "cpu"), rel=0.02)
