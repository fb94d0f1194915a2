"""Nothing leaves the machine: the whole suite runs with connections refused, and whole runs do not even try one."""

import json
import os
import socket
import subprocess
import sys

import pytest
from hub_server import running_hub
from tiny import make_checkpoint
from toy import write_reviews

SWALLOWING = """
import os, socket, subprocess, sys

def swallow(attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError:
        pass

swallow(socket.create_connection, ("192.0.2.1", 80))
swallow(socket.create_connection, ("one.example.org", 443))
swallow(socket.gethostbyname, "two.example.org")
swallow(socket.gethostbyaddr, "192.0.2.2")
with socket.socket() as link:
    assert link.connect_ex(("192.0.2.3", 81))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    swallow(link.sendto, b"", ("192.0.2.4", 53))
    swallow(link.sendmsg, [b""], [], 0, ("192.0.2.4", 54))
child = "import socket\\ntry: socket.create_connection(('192.0.2.5', 82))\\nexcept OSError: pass"
subprocess.run([sys.executable, "-c", child], check=True)
if not os.fork():
    swallow(socket.create_connection, ("192.0.2.6", 83))
    os._exit(0)  # nothing is flushed
os.wait()
with socket.create_server(("localhost", 0)) as server:
    socket.create_connection(("127.0.0.1", server.getsockname()[1])).close()
"""


def test_the_suite_refuses_outgoing_connections():
    with pytest.raises(ConnectionRefusedError, match="tests make no connections"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="tests look up no names"):
        socket.create_connection(("example.org", 80), timeout=1)
    child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    ran = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert "tests make no connections" in ran.stderr


def test_attempts_are_written_down_where_the_error_is_swallowed(tmp_path):
    """Each way to connect, to send and to look a name up, in a process, its child and its fork; loopback is none."""
    attempts = tmp_path / "attempts.txt"
    environment = os.environ | {"HF_TRANSFER_ATTEMPTS": str(attempts)}
    ran = subprocess.run([sys.executable, "-c", SWALLOWING], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line.partition(" by ")[0] for line in attempts.read_text().splitlines()] == [
        "socket.connect ('192.0.2.1', 80)",
        "socket.getaddrinfo ('one.example.org', 443)",
        "socket.gethostbyname ('two.example.org',)",
        "socket.gethostbyaddr ('192.0.2.2',)",
        "socket.connect ('192.0.2.3', 81)",
        "socket.sendto ('192.0.2.4', 53)",
        "socket.sendmsg ('192.0.2.4', 54)",
        "socket.connect ('192.0.2.5', 82)",
        "socket.connect ('192.0.2.6', 83)",
    ]


def run_watched(root, tmp_path, *command: object, **variables: str) -> dict:
    """results.json of a run, without HF_HUB_OFFLINE; fails where any of its processes tried to leave the machine."""
    attempts = tmp_path / "attempts.txt"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    # one thread: several of them wait for each other where other tests have the cores, and take minutes
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_TRANSFER_ATTEMPTS": str(attempts)}
    ran = subprocess.run(
        [sys.executable, *map(str, command), "--output_dir", str(tmp_path / "run")],
        cwd=root,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert not attempts.exists(), attempts.read_text()
    return json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.recipe
def test_the_default_run_needs_no_network(root, tmp_path):
    """The README's command, as a stranger types it, without HF_HUB_OFFLINE: it must not even try to connect."""
    results = run_watched(root, tmp_path, "-m", "accelerate.commands.launch", "recipes/text_cls.py")
    assert results["artefact"]["proved"] is True
    assert results["checkpoint"]["sha256"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    scores = {s["domain"]: s for s in results["scores"] if s["metric"] == "accuracy"}
    assert set(scores) == {"books", "kitchen", "restaurants", "apps"}
    assert {name for name, s in scores.items() if s["role"] == "in_domain"} == {"books", "kitchen"}
    for score in scores.values():
        assert score["value"] > 0.55, "better than the coin that a balanced set gives, in every domain"
        assert score["low"] < score["value"] < score["high"]


@pytest.mark.recipe
def test_saving_and_merging_an_adapter_asks_the_hub_for_nothing(root, tmp_path):
    """Its base is known by a Hub id, which PEFT looks up where it is left to; the Hub stands on this machine.

    What is read before training may be asked for, and nothing afterwards; nobody else is asked at any time.
    """
    body = make_checkpoint(tmp_path / "body")
    command = ["recipes/text_cls.py", "--data.source", write_reviews(tmp_path, count=40)]
    command += ["--data.train_domains", "books", "--model.checkpoint", "me/body", "--adapt.strategy", "lora"]
    command += ["--publish.export", "merged", "--train.max_steps", 2, "--evaluate.resamples", 100]
    late = []

    def after_training(_: int, method: str, path: str) -> None:
        if (tmp_path / "run" / "log.jsonl").exists():
            late.append((method, path))

    with running_hub() as hub:
        commit = hub.add("me/body", {file.name: file.read_bytes() for file in body.iterdir()}).heads["main"]
        hub.fault = after_training
        results = run_watched(root, tmp_path, *command, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1")
    assert results["checkpoint"]["id"] == "me/body" and results["artefact"]["proved"] is True
    assert (tmp_path / "run" / "merged" / "model.safetensors").is_file()
    assert ("GET", f"/me/body/resolve/{commit}/model.safetensors") in hub.seen
    assert late == [], "nothing is asked after the first step"
