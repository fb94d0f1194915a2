"""Two machines: one training over both equals one of two processes, and survives that a machine is cut off.

The machines are two network namespaces of this one, joined by a cable (a veth pair) that can be pulled. What is run
there needs no wall against connections: there is nothing else to reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from killed_runs import outcome
from tiny import make_checkpoint
from toy import launch_two, write_reviews

pytestmark = pytest.mark.slow
ADDRESSES = ("10.213.77.10", "10.213.77.11")
SECONDS_TO_END = 60
"""In which both machines must have noticed that the other is out of reach."""
STEPS = 400


class Cable:
    """Two machines and the cable between them."""

    def __init__(self) -> None:
        self.names = [f"hft{os.getpid()}{end}" for end in "ab"]

    def lay(self) -> None:
        """Raises OSError or CalledProcessError where the system does not allow it."""
        first, second = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")

    def pull(self) -> None:
        ip("-n", self.names[0], "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        ip("-n", self.names[0], "link", "set", "eth0", "up")

    def take_away(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def launch(self, launcher: list[str], words: list[str], folder: Path, run: str) -> list[subprocess.Popen]:
        """Start ``launcher`` on both machines; MACHINE in its words is the number of each."""
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0"}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        started = []
        for machine, name in enumerate(self.names):
            inside = [word.replace("MACHINE", str(machine)) for word in (*launcher, *words)]
            with (folder / f"{run}-{machine}.said").open("w") as said:
                command = ["ip", "netns", "exec", name, sys.executable, "-m", *inside]
                started.append(subprocess.Popen(command, stdout=said, stderr=said, env=environment))
        return started


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    try:
        if shutil.which("ip") is None:
            pytest.skip("network namespaces need the command ip (iproute2)")
        try:
            made.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system lets nobody make network namespaces here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.take_away()


def settings(tmp_path: Path) -> list[str]:
    flags = {
        "--data.source": write_reviews(tmp_path, count=60),
        "--model.checkpoint": make_checkpoint(tmp_path / "checkpoint"),
        "--train.max_steps": STEPS,
        "--train.window_size": 8,
        "--train.validation_steps": 50,
        "--train.checkpoint_steps": 20,
        "--evaluate.resamples": 100,
    }
    return [str(word) for pair in flags.items() for word in pair]


def accelerate_launch(root: Path) -> list[str]:
    config = str(root / "recipes" / "accelerate" / "cpu_machines.yaml")
    place = ["--machine_rank", "MACHINE", "--main_process_ip", ADDRESSES[0], "--main_process_port", "29613"]
    return ["accelerate.commands.launch", "--config_file", config, *place]


def torchrun(root: Path) -> list[str]:
    # which machine keeps the meeting place must be said, since both have one name; it is the second
    place = ["--rdzv_endpoint", f"{ADDRESSES[1]}:29614", "--rdzv_conf", "is_host=MACHINE"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_id", "two", *place]
    # without a name of its own for each, torchrun announces the machine's, which leads to neither
    return ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--local_addr", "ADDRESS", *rendezvous]


def end_of(started: list[subprocess.Popen], seconds: float | None = None) -> list[int]:
    """Exit codes; fails if one is still there after ``seconds``."""
    try:
        return [process.wait(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()


def wait_for_steps(log: Path, count: int, started: list[subprocess.Popen]) -> None:
    while not (log.is_file() and log.read_text(encoding="utf-8").count("\n") >= count):
        assert all(process.poll() is None for process in started), "it ended before it was cut off"
        threading.Event().wait(0.02)


def said(folder: Path, run: str) -> list[str]:
    return [(folder / f"{run}-{machine}.said").read_text(encoding="utf-8") for machine in (0, 1)]


def test_two_machines_compute_what_two_processes_do_and_go_on_after_one_was_cut_off(tmp_path, root, cable):
    words = settings(tmp_path)
    recipe = str(root / "recipes" / "text_cls.py")
    launch_two(Path(recipe), *words, "--output_dir", tmp_path / "local")
    expected = outcome(tmp_path / "local")
    assert len(expected["log"]) == STEPS

    out = tmp_path / "cut"
    command = [recipe, *words, "--output_dir", str(out)]
    started = cable.launch(accelerate_launch(root), command, tmp_path, "cut")
    try:
        wait_for_steps(out / "log.jsonl", 50, started)
        cable.pull()
        codes = end_of(started, SECONDS_TO_END)  # they took 40
    finally:
        for process in started:
            process.kill()
    assert all(codes), codes
    for other, words_said in zip((1, 0), said(tmp_path, "cut"), strict=True):
        (line,) = [line for line in words_said.splitlines() if line.startswith("hf-transfer")]
        assert f"the run failed: process {other} of 2 (" in line
        assert "cannot be reached any more" in line and "its machine is off, or the network between is" in line
        assert "was at: training, step " in line and "Start all processes again with --train.resume auto" in line
    assert not (out / "results.json").exists()

    cable.plug_in()
    codes = end_of(cable.launch(accelerate_launch(root), [*command, "--train.resume", "auto"], tmp_path, "resumed"))
    assert codes == [0, 0], said(tmp_path, "resumed")
    assert "continuing after step" in said(tmp_path, "resumed")[0]
    assert outcome(out) == expected, "not the same to the bit"


def test_torchrun_joins_two_machines_whose_run_equals_that_of_two_processes(tmp_path, root, cable):
    words = [*settings(tmp_path), "--train.max_steps", "30"]
    recipe = str(root / "recipes" / "text_cls.py")
    launch_two(Path(recipe), *words, "--output_dir", tmp_path / "local")
    launcher = torchrun(root)
    place = launcher.index("ADDRESS")
    launcher[place] = "10.213.77.1MACHINE"
    started = cable.launch(launcher, [recipe, *words, "--output_dir", str(tmp_path / "out")], tmp_path, "torchrun")
    assert end_of(started) == [0, 0], said(tmp_path, "torchrun")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "local")
    assert ["Scores with 95% intervals" in words for words in said(tmp_path, "torchrun")].count(True) == 1


def test_a_folder_that_each_machine_has_for_itself_is_refused(tmp_path, root, cable):
    """Each machine has its own folder of the same name, as without shared storage."""
    words = [*settings(tmp_path), "--output_dir", str(tmp_path / "MACHINE")]
    started = cable.launch(accelerate_launch(root), [str(root / "recipes" / "text_cls.py"), *words], tmp_path, "apart")
    assert all(end_of(started))
    assert (
        "is not one folder for all processes, which find a config.yaml (process 0: of this run, process 1: missing)"
        in (" ".join(said(tmp_path, "apart")[0].split()))
    )
