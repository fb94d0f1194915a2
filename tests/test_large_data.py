"""Data larger than memory: a 5 GB file trains with less than 2 GB of memory of its own.

What is measured is anonymous resident memory (RssAnon of /proc/PID/status): what a process has made and the system
could only swap. Pages of mapped files do not count, since the system drops them when memory is short.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_checkpoint

from hf_transfer.report import read_results

pytestmark = pytest.mark.slow

BYTES = 5 * 10**9
LETTERS = 20_000
"""Of a document on average: long ones, of which a model sees the first 64 tokens."""
FREE_BYTES_NEEDED = 15 * 10**9
"""The file, its columns as they are mapped, and what lies between them."""
LIMIT_BYTES = 2 * 10**9
TWINS = 7
"""Test documents that are also in train."""
STARTS = ("ba", "de", "fi", "go", "ku", "le", "mo", "na", "pri", "sta", "tru", "vel")
ENDS = ("bar", "den", "fin", "gon", "kul", "lem", "mas", "nis", "pro", "sel", "tur", "vox", "zet", "chi", "ram")


def write_documents(path: Path, size: int) -> tuple[int, int]:
    """JSON lines of documents: common words in varied order, and a hundred or so that few others have, as names and
    numbers are. Returns how many there are, and how many are test."""
    draw = random.Random(0)
    common = [f"{start}{end}" for start in STARTS for end in ENDS]
    pool = " ".join(draw.choices(common, k=800_000))
    rare = [f"{number:05x}q" for number in range(1_000_000)]
    written = rows = tests = 0
    twins: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            letters = int(LETTERS * draw.uniform(0.5, 1.5))
            start = pool.index(" ", draw.randrange(len(pool) - letters - 100)) + 1
            words = pool[start : start + letters - 840].rsplit(" ", 1)[0]
            text = f"{('bad', 'good')[rows % 2]} {' '.join(draw.choices(rare, k=120))} {words}"
            split = "test" if rows % 97 == 7 else "validation" if rows % 499 == 8 else "train"
            if split == "test":
                tests += 1
                twins += [text] * (tests <= TWINS)
            elif split == "train" and written > 0.9 * size and twins:  # far from the other one of the pair
                text = twins.pop()
            row = {"text": text, "label": ("no", "yes")[rows % 2], "domain": ("a", "b")[rows % 3 == 0], "split": split}
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows, tests


def anonymous_bytes(process: int) -> int:
    """What a process holds in memory that no file stands behind; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells anonymous memory apart")
def test_five_gigabytes_of_text_train_in_less_than_two_of_memory(tmp_path, root):
    free = shutil.disk_usage(tmp_path).free
    if free < FREE_BYTES_NEEDED:
        pytest.skip(f"{free / 1e9:.0f} GB are free at {tmp_path}, and this test needs {FREE_BYTES_NEEDED / 1e9:.0f}")
    checkpoint = make_checkpoint(tmp_path / "tiny")
    source = tmp_path / "documents.jsonl"
    try:
        rows, tests = write_documents(source, BYTES)
        assert source.stat().st_size >= BYTES
        command = [sys.executable, str(root / "recipes" / "text_cls.py"), "--data.source", str(source)]
        command += ["--data.max_length", "64", "--train.max_steps", "3", "--model.checkpoint", str(checkpoint)]
        environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
        peak = 0
        with (
            (tmp_path / "said").open("w") as said,
            subprocess.Popen(
                [*command, "--output_dir", str(tmp_path / "run")], env=environment, stdout=said, stderr=said
            ) as run,
        ):
            while run.poll() is None:
                peak = max(peak, anonymous_bytes(run.pid))
                time.sleep(0.05)  # often enough to see what a process of this size does with its memory
        assert run.returncode == 0, (tmp_path / "said").read_text()[-3000:]
        data = read_results(tmp_path / "run")["data"]
        assert sum(data["examples"].values()) == rows and data["examples"]["test"] == tests
        assert data["leaks"]["exact"] == TWINS and data["leaks"]["near"] == 0
        assert peak < LIMIT_BYTES, f"{peak / 1e9:.2f} GB of memory for a file of {BYTES / 1e9:.0f} GB"
        print(f"{peak / 1e9:.2f} GB of memory for {BYTES / 1e9:.0f} GB of text")
    finally:
        source.unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
