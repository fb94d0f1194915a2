"""Toy data: encoded rows for the loop, and short texts whose label a tiny model can learn."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tiny import WORDS

GOOD, BAD = ("good", "gripping", "fresh", "sturdy", "fast"), ("bad", "boring", "stale", "flimsy", "broken")


def encoded_rows(count: int, vocabulary: int, classes: int, seed: int = 0, longest: int = 20) -> Dataset:
    """Random token ids between [CLS] and [SEP], of uneven lengths, with random labels."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        ids = [2, *rng.integers(5, vocabulary, int(rng.integers(1, longest))).tolist(), 3]
        label = int(rng.integers(classes))
        rows.append({"input_ids": ids, "labels": label, "length": len(ids), "example_id": str(i), "domain": "d"})
    return Dataset.from_list(rows)


def sentence_pairs(loudness: int) -> list[str]:
    """English and German, joined by a tab: six sentences in each of so many degrees."""
    return [
        f"{who} {what} {'very ' * (i % 4)}well\t{wer} {was} {'sehr ' * (i % 4)}gut"
        for i in range(loudness)
        for who, wer in (("she", "sie"), ("he", "er"), ("who", "wer"))
        for what, was in (("sings", "singt"), ("reads", "liest"))
    ]


def write_reviews(
    folder: Path,
    domains: tuple[str, ...] = ("books", "apps"),
    count: int = 120,
    labels: tuple[str, ...] = ("bad", "good"),
) -> Path:
    """One JSON lines file with ``count`` texts per domain; three words that match the label stand in each."""
    rng = random.Random(0)
    rows = []
    for domain in domains:
        for i in range(count):
            label = labels[i % len(labels)]
            signal = {"bad": BAD, "good": GOOD}.get(label, (WORDS[20 + labels.index(label)],))
            words = [*rng.sample(WORDS[:17], rng.randint(2, 6)), *rng.choices(signal, k=3)]
            rng.shuffle(words)
            split = "test" if i % 3 == 0 else "train"
            rows.append({"text": f"{' '.join(words)} {i}", "label": label, "domain": domain, "split": split})
    path = folder / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check_alike(found: object, wanted: object) -> None:
    """The same, but for the rounding of numbers: what a frozen body computes among other neighbours, or with another
    number of threads, differs in the last bits on some processors."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            check_alike(found[key], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_alike(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-5, abs=2e-6, nan_ok=True)
    else:
        assert found == wanted


def launch_two(script: Path, *arguments: object, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run ``script`` in two processes on the CPU; returns what it printed, after success."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command = [sys.executable, *launcher, *rendezvous, str(script), *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran
