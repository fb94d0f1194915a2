"""The whole way over HTTP: a run publishes itself, and a fresh process opens it from there with the card's lines."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import TOKEN, running_hub
from tiny import make_checkpoint
from toy import write_reviews

import hf_transfer as ht

pytestmark = pytest.mark.recipe

COMMAND = [sys.executable, "-c", "from hf_transfer.cli import main; main()"]
QUICK = "--train.epochs 1 --evaluate.resamples 100 --data.train_domains books --evaluate.controls majority"
TEXTS = ["the soup was good", "a boring and broken app", "not gripping"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_reviews(tmp_path_factory.mktemp("data"), count=40)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bert"), scale=0.1)


def online(hub, home: Path) -> dict[str, str]:
    """Environment of a process that has a token and knows this Hub, with an empty cache."""
    wanted = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return os.environ | wanted | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def published(hub, home, *words) -> subprocess.CompletedProcess:
    """A command of hf-transfer in a process of its own; the token must be in nothing that it says."""
    ran = subprocess.run([*COMMAND, *map(str, words)], env=online(hub, home), capture_output=True, text=True)
    assert TOKEN not in ran.stdout + ran.stderr
    return ran


def run_and_push(hub, home, folder, *words):
    ran = published(hub, home, "run", *words, "--output_dir", folder, "--publish.repo_id", "me/model")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []
    return ran


def blocks_of_card(hub, folder: Path) -> list[str]:
    """Python of the card that the Hub holds."""
    card = hub.repositories["me/model"].files()["README.md"].content.decode()
    assert str(folder) not in card and "secret" not in card
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def in_fresh_process(hub, home, code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], env=online(hub, home), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def logits_of(hub, home, opening: str) -> np.ndarray:
    code = (
        f"import json, torch\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n{opening}\n"
        f"inputs = tokenizer({TEXTS!r}, return_tensors='pt', padding=True)\n"
        "with torch.no_grad():\n    print('LOGITS', json.dumps(model.eval()(**inputs).logits.tolist()))"
    )
    return np.array(json.loads(in_fresh_process(hub, home, code).split("LOGITS")[1]))


def assert_same(found: np.ndarray, folder: Path) -> None:
    np.testing.assert_allclose(found, ht.load(folder, device="cpu").logits(TEXTS), rtol=1e-5, atol=1e-5)


def test_a_full_model_survives_a_refusal_and_is_opened_from_the_hub(tmp_path, source, base):
    """The Hub refuses the commit after training; the command that the message gives brings everything there."""
    folder = tmp_path / "run"
    words = ["--data.source", source, "--model.checkpoint", base, *QUICK.split()]
    with running_hub() as hub:
        hub.said = f"no, {TOKEN}"
        hub.fault = lambda _, method, path: 403 if "/commit/" in path else None
        ran = published(hub, tmp_path / "a", "run", *words, "--output_dir", folder, "--publish.repo_id", "me/model")
        assert ran.returncode == 1 and (folder / "results.json").exists()
        assert set(hub.repositories["me/model"].files()) == {".gitattributes"}
        command = shlex.split(ran.stderr.split("Try again with: ")[1])
        assert command[:3] == ["hf-transfer", "push", str(folder)]
        hub.fault = lambda *_: None
        again = published(hub, tmp_path / "a", *command[1:])
        assert again.returncode == 0, again.stderr
        opened = (
            'tokenizer = AutoTokenizer.from_pretrained("me/model")\n'
            'model = AutoModelForSequenceClassification.from_pretrained("me/model")'
        )
        assert_same(logits_of(hub, tmp_path / "b", opened), folder)
        for block in blocks_of_card(hub, tmp_path):
            assert re.search("good|bad", in_fresh_process(hub, tmp_path / "b", block))
        requests = len(hub.repositories["me/model"].states)
        assert published(hub, tmp_path / "a", *command[1:]).returncode == 0
        assert len(hub.repositories["me/model"].states) == requests, "nothing had changed"
    for path in folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.slow
def test_an_adapter_of_a_hub_model_and_its_merged_form_are_opened_from_the_hub(tmp_path, source, base):
    folder = tmp_path / "run"
    words = ["--data.source", source, "--model.checkpoint", "org/tiny-bert", *QUICK.split()]
    with running_hub() as hub:
        hub.add("org/tiny-bert", {path.name: path.read_bytes() for path in base.iterdir()})
        commit = hub.repositories["org/tiny-bert"].heads["main"]
        words += ["--adapt.strategy", "lora", "--adapt.lora_rank", "2", "--publish.export", "merged"]
        run_and_push(hub, tmp_path / "a", folder, *words)
        stock, merged, own = blocks_of_card(hub, tmp_path)
        assert commit in stock
        assert_same(logits_of(hub, tmp_path / "b", stock), folder / "merged")
        assert_same(logits_of(hub, tmp_path / "b", merged), folder / "merged")
        assert re.search("good|bad", in_fresh_process(hub, tmp_path / "b", own))
        head = hub.repositories["me/model"].files()["README.md"].content.decode().split("---\n")[1]
        assert "base_model: org/tiny-bert" in head and "base_model_relation: adapter" in head


@pytest.mark.slow
def test_a_probe_on_chosen_layers_is_opened_from_the_hub(tmp_path, source, base):
    folder = tmp_path / "run"
    words = ["--data.source", source, "--model.checkpoint", base, *QUICK.split()]
    with running_hub() as hub:
        run_and_push(hub, tmp_path / "a", folder, *words, "--adapt.strategy", "probe", "--adapt.probe_layers", "mean")
        stock, own = blocks_of_card(hub, tmp_path)
        printed = in_fresh_process(hub, tmp_path / "b", stock)
        found = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", printed)]
        np.testing.assert_allclose(found, ht.load(folder, device="cpu").logits(["some text"])[0], atol=1e-3)
        assert re.search("good|bad", in_fresh_process(hub, tmp_path / "b", own))


@pytest.mark.slow
def test_a_translation_model_is_opened_from_the_hub(tmp_path):
    folder = tmp_path / "run"
    with running_hub() as hub:
        run_and_push(hub, tmp_path / "a", folder, "--task", "translation", "--train.max_steps", "2")
        stock, own = blocks_of_card(hub, tmp_path)
        files = hub.repositories["me/model"].files()
        assert {"generation_config.json", "source.spm", "target.spm"} <= set(files)
        in_fresh_process(hub, tmp_path / "b", stock)
        expected = ht.load(folder, device="cpu").translate(["some text"])
        assert in_fresh_process(hub, tmp_path / "b", own).strip() == str(expected)
        assert not [path for path in files if "hypothesis" in path or "reference" in path]
