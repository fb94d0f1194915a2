"""Nothing leaves the machine: the whole suite runs with connections refused, and so does the README's first command."""

import json
import os
import socket
import subprocess
import sys

import pytest


def test_the_suite_refuses_outgoing_connections():
    with pytest.raises(ConnectionRefusedError, match="tests make no connections"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="tests look up no names"):
        socket.create_connection(("example.org", 80), timeout=1)
    child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    ran = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert "tests make no connections" in ran.stderr


@pytest.mark.recipe
def test_the_default_run_needs_no_network(root, tmp_path):
    """The README's command, as a stranger types it, without HF_HUB_OFFLINE: it must not even try to connect."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    # one thread: several of them wait for each other where other tests have the cores, and take minutes
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "accelerate.commands.launch", "recipes/text_cls.py"]
    ran = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], cwd=root, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "tests make no connections" not in ran.stderr
    assert "tests look up no names" not in ran.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["artefact"]["proved"] is True
    assert results["checkpoint"]["sha256"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    scores = {s["domain"]: s for s in results["scores"] if s["metric"] == "accuracy"}
    assert set(scores) == {"books", "kitchen", "restaurants", "apps"}
    assert {name for name, s in scores.items() if s["role"] == "in_domain"} == {"books", "kitchen"}
    for score in scores.values():
        assert score["value"] > 0.55, "better than the coin that a balanced set gives, in every domain"
        assert score["low"] < score["value"] < score["high"]
