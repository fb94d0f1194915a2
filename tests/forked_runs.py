"""Runs in several processes, each a fork of a process that has imported everything: a run then costs what it computes.

What a script starts with ``run`` behaves like the command line: exit codes, messages, the environment of a launcher.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_transfer import page
from hf_transfer.cli import exit_codes
from hf_transfer.config import RunConfig

SECONDS_TO_END = 60
"""In which all processes must be gone once one of them is."""


@dataclass(frozen=True)
class Ended:
    """How one process of a run ended."""

    code: int | None
    """Exit code, minus the signal, or None where it outlived the first to end by ``SECONDS_TO_END``."""
    said: str
    """On standard output and standard error."""


def run(
    config: RunConfig,
    processes: int,
    work: Callable[[RunConfig], Any] = page.run,
    kill_after: float | None = None,
    victim: int = 0,
    kill_when: Callable[[], bool] | None = None,
) -> list[Ended]:
    """Do ``work`` in ``processes`` forks on the CPU; how each of them ended.

    ``kill_after``: seconds after which the ``victim``, a rank, is killed, if it is still there; with ``kill_when`` once
    that says so, which is asked often from then on.
    """
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [Path(config.output_dir).with_suffix(f".said{rank}") for rank in range(processes)]
    pids = [_start(config, rank, processes, port, words[rank], work) for rank in range(processes)]
    codes = _wait(pids, kill_after, victim, kill_when)
    return [Ended(code, said.read_text(encoding="utf-8")) for code, said in zip(codes, words, strict=True)]


def _start(
    config: RunConfig, rank: int, processes: int, port: int, said: Path, work: Callable[[RunConfig], Any]
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        with exit_codes():
            work(config)
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(
    pids: Sequence[int], kill_after: float | None, victim: int, kill_when: Callable[[], bool] | None
) -> list[int | None]:
    """Exit codes; what is still there ``SECONDS_TO_END`` after the first one ended is killed."""
    codes: dict[int, int] = {}
    deadline = None
    to_kill = time.monotonic() + kill_after if kill_after is not None else None
    while len(codes) < len(pids) and (deadline is None or time.monotonic() < deadline):
        for pid in pids:
            if pid in codes:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                deadline = deadline or time.monotonic() + SECONDS_TO_END
        is_time = to_kill is not None and time.monotonic() > to_kill
        if is_time and (kill_when is None or kill_when()):
            to_kill = None
            if pids[victim] not in codes:
                os.kill(pids[victim], signal.SIGKILL)
        time.sleep(0.0002 if is_time else 0.002)  # what is waited for may be over in a millisecond
    for pid in pids:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return [codes.get(pid) for pid in pids]
