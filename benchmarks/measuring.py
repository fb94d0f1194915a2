"""What both sides of throughput.py are measured with: clocks, memory, floating-point operations, spread of ratios; and
what every benchmark writes of how it was made.

Nothing here knows which side it measures. The clocks are read by torch's own hooks, at the first forward pass of the
process (or where a side says that it starts) and after every optimizer step: neither side's loop is asked how fast it
is.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

MATMUL_SECONDS, FEWEST_MATMULS = 0.5, 5
MATMULS_AT_ONCE = {"cpu": 1, "cuda": 50}  # a GPU takes orders faster than it answers
SIGN_LEVEL = 0.95
FEWEST_PAIRS = 5
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers"),
    *("sentence-transformers", "setfit", "scikit-learn"),
)


@dataclass(frozen=True)
class Order:
    """What one side of a pair is to do; equal for both but for ``side`` and ``way``."""

    side: str
    way: str
    """ours: a strategy; stock: ``full``, ``freeze``, ``probe``, ``lora``, and what of Trainer's is switched on; of both
    ``translation``."""
    case: str
    checkpoint: str
    size: str
    """Random weights of this size (our_side.SIZES) are prepared in place of the checkpoint's; "" for none."""
    rows: str
    """File of JSON lines: id, text, split, and label or, of sentences, reference."""
    output: str
    limit: int
    window: int
    epochs: int
    learning_rate: float
    frozen_layers: int
    seed: int
    device: str
    precision: str
    warm_up_steps: int
    """Steps before the clock counts; 0 counts everything from the first forward pass."""
    validation_steps: int
    """0 for none."""
    beams: int
    dropout: float | None
    """Of body and head while they learn; None leaves the checkpoint's."""
    shape: dict[str, float]
    """Of the model and the train texts: layers, hidden, inner, layer_weights, mean_length, context."""


class Clock:
    """Wall and processor seconds at the start and after every optimizer step of this process.

    The start is ``start()``, or else the first forward pass of any module.

    ``stamps``: [steps + 1] of (wall, processor) seconds. ``peak_bytes`` is the most memory held from the start to the
    last step, ``start_bytes`` what was held before it. After the steps in ``exact``, the last among them,
    the clock waits for the device and looks at the memory.
    """

    def __init__(self, device: str, exact: Collection[int] = ()) -> None:
        self.stamps: list[tuple[float, float]] = []
        self.start_bytes = self.peak_bytes = 0
        self._device, self._exact = device, set(exact)
        self._handles: list[Any] = []

    def __enter__(self) -> Clock:
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook

        def first_forward(*_: Any) -> None:
            self.start()

        def step_done(*_: Any) -> None:
            if len(self.stamps) in self._exact:
                self.stop()
            else:
                self.stamp()

        self._handles = [
            register_module_forward_pre_hook(first_forward),
            register_optimizer_step_post_hook(step_done),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def start(self) -> None:
        """The first stamp."""
        if self._handles:
            self._handles[0].remove()
        synchronise(self._device)
        reset_peak(self._device)
        self.start_bytes = peak_bytes(self._device)
        self.stamps.append((time.perf_counter(), time.process_time()))

    def stamp(self) -> None:
        """One more stamp."""
        self.stamps.append((time.perf_counter(), time.process_time()))

    def stop(self) -> None:
        """One more stamp that waits for the device and looks at the memory."""
        synchronise(self._device)
        self.stamp()
        self.peak_bytes = peak_bytes(self._device)

    def between(self, first: int, last: int) -> np.ndarray:
        """[2] wall and processor seconds from stamp ``first`` to stamp ``last``."""
        return np.array(self.stamps[last]) - np.array(self.stamps[first])


def training_record(clock: Clock, order: Order, steps: Sequence[dict[str, float]], peaks: Sequence[dict]) -> dict:
    """Rates of a training that ``clock`` has seen.

    Args:
        steps: of each optimizer step ``examples``, ``tokens`` (real), ``padding_tokens``, ``loss``.
        peaks: ``matmul_rate`` before and after.
    """
    assert len(steps) == len(clock.stamps) - 1, f"{len(steps)} steps in the log, {len(clock.stamps) - 1} by the clock"
    first = min(order.warm_up_steps, len(steps) - 1)
    wall, cpu = clock.between(first, len(steps))
    timed = {name: sum(step[name] for step in steps[first:]) for name in ("examples", "tokens")}
    tokens, padding = (sum(step[name] for step in steps) for name in ("tokens", "padding_tokens"))
    operations = timed["tokens"] * flops_per_token(order.way.split()[0], order.frozen_layers, order.shape)
    all_wall, all_cpu = clock.between(0, len(steps))
    peak_wall, peak_cpu = (max(peak[name] for peak in peaks) for name in ("per_second", "per_processor_second"))
    return {
        "steps": len(steps),
        "timed_from_step": first,
        "examples": int(sum(step["examples"] for step in steps)),
        "tokens": int(tokens),
        "tokens_by_step": [int(step["tokens"]) for step in steps],
        "padding_tokens": int(padding),
        "padding_fraction": padding / (tokens + padding),
        "wall_seconds_per_example": wall / timed["examples"],
        "cpu_seconds_per_example": cpu / timed["examples"],
        "examples_per_second": timed["examples"] / wall,
        "tokens_per_second": timed["tokens"] / wall,
        "training_wall_seconds": all_wall,
        "training_cpu_seconds": all_cpu,
        "peak_memory_bytes": clock.peak_bytes,
        "start_memory_bytes": clock.start_bytes,
        "matmul_flops_per_second": peak_wall,
        "matmul_flops_per_processor_second": peak_cpu,
        "mfu": operations / wall / peak_wall,
        "mfu_cpu": operations / cpu / peak_cpu if order.device == "cpu" else None,
        "final_loss": final_loss([step["loss"] for step in steps]),
    }


def plain_record(clock: Clock, examples: int, tokens: int | None = None, padding: int | None = None) -> dict:
    """Rates of what ran between the first and the last stamp, without steps."""
    wall, cpu = clock.between(0, -1)
    return {
        "examples": examples,
        "tokens": tokens,
        "padding_tokens": padding,
        "wall_seconds_per_example": wall / examples,
        "cpu_seconds_per_example": cpu / examples,
        "examples_per_second": examples / wall,
        "peak_memory_bytes": clock.peak_bytes,
        "start_memory_bytes": clock.start_bytes,
    }


def seconds_at(clock: Clock, steps: Sequence[dict[str, float]], validated: Collection[int]) -> np.ndarray:
    """[steps + 1, 2] wall and processor seconds of training after each step, validation left out.

    The stretch after a validation holds it. Such a stretch counts as much as its tokens (padding too) would have taken
    in the others, on either side alike; not in the first one, which holds what precedes the first step.
    """
    stretches = np.diff(np.array(clock.stamps), axis=0)
    tokens = np.array([step["tokens"] + step["padding_tokens"] for step in steps], dtype=float)
    disturbed = np.array([number in validated for number in range(len(steps))])  # stretch i follows step i
    sample = ~disturbed & (np.arange(len(steps)) > 0)
    assert sample.any(), f"validation at {sorted(validated)} of {len(steps)} steps leaves none to take the time of"
    per_token = stretches[sample].sum(0) / tokens[sample].sum()
    stretches[disturbed] = tokens[disturbed, None] * per_token
    return np.vstack([np.zeros(2), stretches.cumsum(0)])


def final_loss(losses: Sequence[float]) -> float:
    """Mean over the steps of the last full fifth, as ``loss_stretch`` cuts them."""
    stretch = loss_stretch(len(losses))
    end = len(losses) // stretch * stretch
    return float(np.mean(losses[end - stretch : end]))


def loss_stretch(steps: int) -> int:
    """Steps over which a loss is averaged: a fifth of them, which Trainer's ``logging_steps`` does as well."""
    return max(1, steps // 5)


def flops_per_token(way: str, frozen: int, shape: dict[str, float]) -> float:
    """Floating-point operations that one real token costs in training, embeddings, norms and heads not counted.

    A layer's matrices of W weights take 2 W forward; attention over ``context`` tokens takes 4 x context x hidden
    (scores and their sums). A gradient for the inputs costs as much again, one for the weights too; attention has two
    inputs and no weights, hence twice its forward (Kaplan et al. 2020, section 2.1: 6 per weight and token). Frozen
    layers below the trained ones go forward only; LoRA's base layers need no gradient for weights, its own do.
    A store of frozen outputs is not counted: what it saves shows as a share over what computing could reach.
    """
    layers, hidden, inner = shape["layers"], shape["hidden"], shape["inner"]
    linear = 2 * shape["layer_weights"]
    attention = 4 * shape["context"] * hidden
    if way == "probe":
        return layers * (linear + attention)
    if way == "freeze":
        return frozen * (linear + attention) + 3 * (layers - frozen) * (linear + attention)
    if way == "lora":
        updates = LORA_RANK * (4 * 2 * hidden + 2 * (hidden + inner))  # query, key, value, output; up and down
        return layers * (2 * linear + 3 * attention + 6 * updates)
    return 3 * layers * (linear + attention)


LORA_RANK = 16


def layer_passes(way: str, layers: int, frozen: int, epochs: int, stored: bool) -> float:
    """Passes through one layer per token and epoch, forward or for one kind of gradient: what speed is predicted from.

    full 3 L; freeze k: L + 2 (L - k), with what the k frozen ones give stored 3 (L - k) and one pass through them,
    spread over the epochs; probe: L, stored L / epochs; LoRA 2 L.
    """
    if way == "probe":
        return layers / epochs if stored else layers
    if way == "freeze":
        trained = 3 * (layers - frozen)
        return trained + (frozen / epochs if stored else frozen)
    if way in ("evaluation", "decoding"):
        return layers
    return (2 if way == "lora" else 3) * layers


def matmul_rate(order: Order) -> dict[str, float]:
    """Fastest of several multiplications [window tokens, hidden] x [hidden, inner], in operations per second.

    ``per_processor_second`` counts the processor's seconds over all threads, which a busy machine does not lengthen.
    """
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[order.precision]
    tokens = max(1, round(order.window * order.shape["mean_length"]))
    hidden, inner = int(order.shape["hidden"]), int(order.shape["inner"])
    left = torch.randn(tokens, hidden, device=order.device, dtype=kind)
    right = torch.randn(hidden, inner, device=order.device, dtype=kind)
    out = left @ right
    operations = 2 * tokens * hidden * inner * MATMULS_AT_ONCE[order.device]
    rates: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(rates) < FEWEST_MATMULS or time.perf_counter() - began < MATMUL_SECONDS:
        synchronise(order.device)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(MATMULS_AT_ONCE[order.device]):
            torch.mm(left, right, out=out)
        synchronise(order.device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rates.append((operations / wall, operations / max(cpu, 1e-9)))
    best = np.max(rates, axis=0)
    return {"per_second": float(best[0]), "per_processor_second": float(best[1])}


def synchronise(device: str) -> None:
    """Wait for what the GPU was told to do."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Let ``peak_bytes`` start anew."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone has the file
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: str) -> int:
    """Most memory held since ``reset_peak``: of the GPU, else resident.

    VmHWM comes before ru_maxrss, which a process inherits from whoever started it.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def spread(ratios: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and the interval of the median that the signs of deviations imply.

    The k-th smallest and the k-th largest of n hold the true median unless fewer than k pairs fall on one side of it,
    which has the chance of a binomial: no shape of the noise is assumed (Conover, Practical Nonparametric Statistics,
    1999, section 3.2). Of five pairs even the smallest and the largest hold it in 93.75% of cases only: ``level`` says.
    """
    ordered = sorted(ratios)
    n = len(ordered)

    def level(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max([k for k in range(1, n // 2 + 1) if level(k) >= SIGN_LEVEL], default=1)
    return {
        "median": float(np.median(ordered)),
        "quartiles": [float(q) for q in np.percentile(ordered, [25, 75])],
        "low": ordered[k - 1],
        "high": ordered[n - k],
        "level": max(0.0, level(k)),
        "pairs": n,
    }


def claim(
    pairs: int, equal_outputs: float, difference: dict[str, Any] | None, margin: float, above_majority: float = math.inf
) -> dict[str, Any]:
    """Whether a ratio of seconds may be claimed at equal quality.

    An interval that reaches zero is no equality: it does so wherever it is wide. What is asked for is that it excludes
    a loss of more than ``margin``, or that both sides say the same of each example. Two sides that have learnt nothing
    are equally good at it: the stock side must be ``margin`` above what the most frequent class would score.

    Args:
        equal_outputs: share of examples of which both sides say the same.
        difference: ``low`` and ``high`` of how much better ours is, in the metric's own unit; None if it was not taken.
        above_majority: the stock side's score over that of the most frequent class.
    """
    same = equal_outputs == 1
    not_worse = same or (difference is not None and difference["low"] >= -margin)
    return {
        "claimed": pairs >= FEWEST_PAIRS and not_worse and (same or above_majority >= margin),
        "not_worse": not_worse,
        "margin": margin,
        "no_evidence_of_worse": same or (difference is not None and difference["high"] >= 0),
    }


def made_by(threads: int | None = None) -> dict[str, Any]:
    """How a record was made: command, commit, processor, threads and versions; never a host name or a folder.

    Args:
        threads: what torch uses where it is measured; None if that is told elsewhere.
    """
    commit, changed = checkout()
    return {
        "command": shown_command(sys.argv),
        "commit": commit,
        "changed": changed,
        "processor": processor(),
        "architecture": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
    }


def shown_command(words: Sequence[str]) -> str:
    """The command with its script as seen from the repository's root, and of absolute paths the last component."""
    script = Path(words[0]).resolve()
    shown = [script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name]
    for word in words[1:]:
        flag, equals, value = word.partition("=")
        if not equals:
            flag, value = "", word
        shown.append(flag + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(["python", *shown])


def checkout() -> tuple[str, bool | None]:
    """Short hash of the commit, and whether files differ from it, results aside; "" and None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if (ROOT / ".git").exists():  # not that of a checkout around a copy
        with suppress(OSError, subprocess.CalledProcessError):
            changed = bool(git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"))
            return git("rev-parse", "--short", "HEAD"), changed
    return "", None


def processor() -> str:
    """The model of the processor, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def installed(package: str) -> str | None:
    """Version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tell(record: dict[str, Any], output: str | None) -> None:
    """Print ``record`` as JSON, and write it to the file ``output`` where one is named."""
    text = json.dumps(record, indent=1)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(text + "\n", encoding="utf-8")
    print(text)


def surroundings(threads: int | None, device: str = "cpu") -> dict[str, str]:
    """Environment of a process that is measured: offline, with ``threads`` where they are given."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    return environment


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
