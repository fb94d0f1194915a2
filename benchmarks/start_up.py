"""How long a start takes: imports, and a run up to its first optimizer step, the first time on some data and again.

    python benchmarks/start_up.py --shared ../shared [--repeats 5] [--threads 2] [--output FILE.json]

Each figure is of a fresh process, by turns: ``import hf_transfer``; that and ``hf_transfer.run``, which brings in what
a run needs; the first start of a run, which finds nothing that earlier ones have kept (hf_transfer/content_cache.py);
and the second start on the same rows, which does. One more process before them, not counted, has the system read the
files of the packages, which stay in its memory.

A start ends with the first optimizer step, full fine-tuning of the default checkpoint at default settings, and is cut
into ``imports``, ``reading`` (from the file to splits, leaks counted), ``loading`` (checkpoint and tokenizer),
``encoding`` (text to token ids), ``first_step`` (from the first forward pass on) and ``other``, what lies between them.
The child wraps functions of the package for that, and takes torch's hooks for the rest. What is imported when it is
first used counts where it is used.
Prints one JSON: of each figure and stage wall and processor seconds, with median and spread; the interval is that of
throughput.py's ratios.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTS = {"import_package": "import hf_transfer", "import_run": "import hf_transfer; hf_transfer.run"}
IMPORT_CHILD = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print([time.perf_counter() - wall, time.process_time() - cpu])
"""
STARTS = ("first_start", "second_start")
VALIDATION_SHARE = 10  # one validation row for so many train rows


# ---- the parent: rows, turns and what they say. The child must not import what it is to measure -----------------


def main() -> None:
    """Measure and print, or, in a child, start a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared", help="folder with data/")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of each process; default: torch's own choice")
    parser.add_argument("--examples", type=int, default=4096, help="train rows")
    parser.add_argument("--test_examples", type=int, default=400)
    parser.add_argument("--limit", type=int, default=256, help="tokens per example")
    parser.add_argument("--work", default="runs/start_up", help="folder for rows, cache and runs; what is in it goes")
    parser.add_argument("--output", help="also write the JSON to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        start(Path(given.work), given.limit)
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """All repeats by turns, and the record of them."""
    from measuring import made_by, spread, tell
    from throughput import reviews

    made = made_by()
    work = Path(given.work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    validation = max(1, given.examples // VALIDATION_SHARE)
    counts = {"train": given.examples, "validation": validation, "test": given.test_examples}
    rows = reviews(Path(given.shared) / "data" / "fdu_mtl", ["all"], counts)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    import_seconds("import_run", given.threads)
    repeats = []
    for number in range(given.repeats):
        seconds = {name: {"imports": import_seconds(name, given.threads)} for name in IMPORTS}
        shutil.rmtree(work / "cache", ignore_errors=True)
        found = []
        for name in STARTS:
            record = start_seconds(given, work)
            seconds[name] = record["seconds"]
            found.append(kept_entries(work))
        assert found[0] and found[0] == found[1], f"the second start should find what the first has kept: {found}"
        repeats.append(seconds)
        told = ", ".join(f"{name} {list(stages.values())[-1][0]:.2f} s" for name, stages in seconds.items())
        print(f"repeat {number + 1} of {given.repeats}: {told}", file=sys.stderr, flush=True)
    left_out = ("shared", "work", "output", "child")
    figures = {
        name: {
            stage: {
                unit: spread([seconds[name][stage][place] for seconds in repeats])
                for place, unit in enumerate(("wall_seconds", "cpu_seconds"))
            }
            for stage in stages
        }
        for name, stages in repeats[0].items()
    }
    record = {
        "benchmark": "start_up",
        **figures,
        "repeats": repeats,
        "settings": {name: value for name, value in vars(given).items() if name not in left_out},
        "made_by": made | {"threads": record["threads"]},
    }
    tell(record, given.output)


def import_seconds(name: str, threads: int | None) -> list[float]:
    """Wall and processor seconds of the statement ``IMPORTS[name]`` in a fresh process."""
    code = IMPORT_CHILD.format(statement=IMPORTS[name])
    return json.loads(fresh_process(["-c", code], threads).splitlines()[-1])


def start_seconds(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Wall and processor seconds of each stage of a start in a fresh process, and its threads."""
    words = [__file__, "--child", "--work", str(work), "--limit", str(given.limit)]
    fresh_process(words, given.threads, HF_DATASETS_CACHE=str((work / "cache").resolve()))
    return json.loads((work / "child.json").read_text(encoding="utf-8"))


def fresh_process(words: list[str], threads: int | None, **environment: str) -> str:
    """What Python prints with ``words``."""
    from measuring import surroundings

    done = subprocess.run(
        [sys.executable, *words], env=surroundings(threads) | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"a process failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def kept_entries(work: Path) -> list[str]:
    """Names of what lies in the package's cache."""
    return sorted(path.name for path in (work / "cache" / "hf_transfer").glob("*"))


# ---- the child: one start ----------------------------------------------------------------------------------------


class Stages:
    """Wall and processor seconds of functions that are wrapped, and of the whole from the start to ``end``."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._first_forward: list[float] | None = None
        self._began = now()

    def since_start(self) -> list[float]:
        """Wall and processor seconds since this object was made."""
        return [later - earlier for later, earlier in zip(now(), self._began, strict=True)]

    def wrap(self, module: Any, function: str, stage: str) -> None:
        """Let ``module.function`` count as ``stage``."""
        inner: Callable[..., Any] = getattr(module, function)

        def timed(*words: Any, **named: Any) -> Any:
            before = self.since_start()
            try:
                return inner(*words, **named)
            finally:
                self.seconds[stage] = [b - a for a, b in zip(before, self.since_start(), strict=True)]

        setattr(module, function, timed)

    def forward(self, *_: Any) -> None:
        """A forward pass of a module begins; the first one counts."""
        if self._first_forward is None:
            self._first_forward = self.since_start()

    def end(self) -> dict[str, list[float]]:
        """All stages, and their sum as ``all``; called at the first optimizer step."""
        assert self._first_forward is not None, "a step without a forward pass"
        whole = self.since_start()
        spent = [sum(parts) for parts in zip(*self.seconds.values(), strict=True)]
        other = [a - b for a, b in zip(self._first_forward, spent, strict=True)]
        step = [a - b for a, b in zip(whole, self._first_forward, strict=True)]
        return self.seconds | {"other": other, "first_step": step, "all": whole}


def now() -> tuple[float, float]:
    """Wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def start(work: Path, limit: int) -> None:
    """Start a run, and leave the process after its first optimizer step."""
    stages = Stages()
    import hf_transfer as ht
    import hf_transfer.page  # where ``run`` lives
    import hf_transfer.preparing

    stages.seconds["imports"] = stages.since_start()
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    stages.wrap(hf_transfer.page, "read_text", "reading")
    stages.wrap(hf_transfer.preparing, "load_pretrained", "loading")
    stages.wrap(hf_transfer.preparing, "encode", "encoding")

    def first_step(*_: Any) -> None:
        record = {"seconds": stages.end(), "threads": torch.get_num_threads()}
        (work / "child.json").write_text(json.dumps(record), encoding="utf-8")
        os._exit(0)  # what a run does after its start is not measured here

    register_module_forward_pre_hook(stages.forward)
    register_optimizer_step_post_hook(first_step)
    ht.run(
        ht.RunConfig(
            data=ht.DataConfig(source=str(work / "rows.jsonl"), id_column="id", max_length=limit),
            output_dir=str(work / "run"),
            overwrite=True,
        )
    )


if __name__ == "__main__":
    main()
