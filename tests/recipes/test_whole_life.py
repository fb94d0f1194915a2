"""From the first run to a push, on marked text, with planted tokens, every unpickling written down: what stays in."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, running_hub
from whole_life import BEGINS, DOMAINS, ENDS, MARKERS

from hf_transfer.report.results import one_line

HERE = Path(__file__).parents[1]
STORED = "hf_StoredTokenOfATest456"
"""What `hf auth login` left; HF_TOKEN goes before it."""
HOSTILE = "<script>alert(1)</script>"
WITH_TEXT = ("reviews.jsonl", "pairs.jsonl", "labelled.jsonl", "translated.jsonl", "cache/", "home/datasets/")
WITH_TEXT += ("translation/translations/", "scratch/translations/")
"""Where rows stand by design: the data, predictions for them, what the Hub's and datasets' own caches hold, and test
rows of translation beside what was written for them."""
VOCABULARY = ("scratch/vocabulary/", *(f"scratch/model/{name}" for name in ("source.spm", "target.spm", "vocab.json")))
"""Where frequent words of train stand by design, those of the other splits not."""
OWN_STATE = ()
"""Beginnings of what may be unpickled, each with its reason: nothing is."""


class Life:
    """What a process of ``whole_life.py`` said, wrote and sent."""

    def __init__(self, folder: Path, *words: str):
        self.folder = folder
        (folder / "home").mkdir()
        (folder / "home" / "token").write_text(STORED)
        self.unpickled = folder / "unpickled.txt"
        environment = os.environ | {
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DEBUG": "1",
            "COLUMNS": "200",  # no cell of a table is wrapped
            "HF_TRANSFER_UNPICKLED": str(self.unpickled),
            "PYTHONPATH": os.pathsep.join([str(HERE / "blocked"), str(HERE), os.environ["PYTHONPATH"]]),
        }
        with running_hub() as hub:
            hub.said = f"no, Bearer {TOKEN}"
            hub.fault = lambda _, method, path: 403 if "/me/refused/commit/" in path else None
            environment["HF_ENDPOINT"] = hub.url
            ran = subprocess.run(
                [sys.executable, str(HERE / "whole_life.py"), str(folder), *words],
                env=environment,
                capture_output=True,
                text=True,
            )
            pushed = {name: repository.files() for name, repository in hub.repositories.items()}
            self.asked = [path for _, path in hub.seen]
        self.sent = {f"{name}/{path}": file for name, files in pushed.items() for path, file in files.items()}
        self.out, self.err = ran.stdout, ran.stderr
        assert ran.returncode == 0, ran.stderr[-3000:]
        self.ended = json.loads(ran.stdout.split("ENDED ")[1])

    def files(self) -> dict[str, bytes]:
        """Content of all files that were written, by their path."""
        found = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module", params=["quick", pytest.param("", marks=pytest.mark.slow)])
def lived(request, tmp_path_factory):
    return Life(tmp_path_factory.mktemp("life"), *filter(None, [request.param]))


pytestmark = pytest.mark.recipe


def test_every_command_ends_as_it_should(lived):
    wrong = {"push again": 1, "diverged": 1, "refused": 2}
    assert lived.ended == {name: wrong.get(name, 0) for name in lived.ended}, lived.err[-3000:]
    assert {"full", "resumed", "lora", "translation", "push", "push translation", "predict"} <= set(lived.ended)


def test_nothing_is_unpickled_in_any_process(lived):
    """Training, resuming, the caches, the proof in its own process, loading, predicting, pushing."""
    assert lived.unpickled.exists(), "the watch was there"
    unpickled = lived.unpickled.read_text().splitlines()
    assert [line for line in unpickled if not line.startswith(OWN_STATE or ("nothing",))] == []


def test_the_watch_sees_what_is_unpickled(tmp_path):
    code = (
        "import collections, pickle, torch\n"
        "pickle.loads(pickle.dumps(collections.OrderedDict()))\n"
        f"torch.save({{}}, {str(tmp_path / 'x.pt')!r})\n"
        f"torch.load({str(tmp_path / 'x.pt')!r}, weights_only=True)"
    )
    environment = os.environ | {"HF_TRANSFER_UNPICKLED": str(tmp_path / "log")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    said = (tmp_path / "log").read_text()
    assert "collections.OrderedDict by" in said and f"file {tmp_path / 'x.pt'} by" in said


def test_the_hub_is_asked_by_pushes_alone(lived):
    """It may be reached at any time, and a run without a push, or a prediction, asks it for nothing."""
    begins, ends = lived.asked.index(BEGINS), lived.asked.index(ENDS)
    assert lived.asked[:begins] == [] and lived.asked[ends + 1 :] == []
    assert {"/api/models/me/model/commit/main", "/api/models/me/translator/commit/main"} <= set(lived.asked)


@pytest.mark.parametrize("token", [TOKEN, STORED])
def test_tokens_are_in_nothing_that_was_said_written_or_sent(lived, token):
    assert token not in lived.out + lived.err
    files = lived.files()
    assert {"full/config.yaml", "full/results.json", "full/log.jsonl", "debug.log"} <= set(files)
    assert [name for name, content in files.items() if token.encode() in content] == ["home/token"] * (token == STORED)
    assert lived.sent and not [name for name, file in lived.sent.items() if token.encode() in file.content]


@pytest.mark.parametrize("split", MARKERS)
def test_no_row_is_in_what_a_run_says_writes_or_sends(lived, split):
    """Neither labelled texts nor sentences and their translations."""
    marker = MARKERS[split].encode()
    holding = [name for name, content in lived.files().items() if marker in content]
    assert {"reviews.jsonl", "pairs.jsonl"} <= set(holding)
    assert ("translation/translations/books.reference.txt" in holding) == (split == "test")
    allowed = WITH_TEXT + VOCABULARY * (split == "train")
    assert [name for name in holding if not name.startswith(allowed)] == []
    assert marker.decode() not in lived.out + lived.err
    assert not [name for name, file in lived.sent.items() if marker in file.content]


def test_a_hostile_domain_is_text_wherever_it_is_shown(lived):
    files = {name: content.decode("utf-8", "replace") for name, content in lived.files().items()}
    pages = [text for name, text in files.items() if name.endswith(("report.html", ".svg"))]
    assert pages and not [text for text in pages if HOSTILE in text]
    assert any("&lt;script&gt;alert(1)&lt;/script&gt;" in text for text in pages)
    for name in (name for name in files if name.endswith(("report.md", "model/README.md"))):
        assert HOSTILE not in files[name] and "\n# heading" not in files[name], name
    for name in ("me/model/README.md", "me/translator/README.md"):
        card = lived.sent[name].content.decode()
        assert HOSTILE not in card.split("---\n", 2)[2] and "\n# heading" not in card, name
    # HF_DEBUG has huggingface_hub say what it sends, as it is
    said = [line for line in (lived.out + lived.err).splitlines() if not line.startswith("Send: curl ")]
    assert not [line for line in said if "\x1b[31m" in line or "\u202e" in line]
    shown = one_line(DOMAINS[1])
    assert shown.endswith("\ufffd[31m\ufffd # heading")
    assert f"; shifted domains: {shown}\n" in lived.err
    rows = re.findall(rf"^ {re.escape(shown)} +shifted ", lived.out, re.MULTILINE)
    assert len(rows) >= 4, "of full, resumed, lora and translation"


def test_what_a_push_lists_is_what_arrives(lived):
    """Of each push, and of one that is refused nothing arrives."""
    lists = re.findall(r"^To (\S+) \(branch main\) go .*:\n((?:  \S+ +[\d.]+ k?M?B\n)+)", lived.out, re.MULTILINE)
    listed = {f"{name}/{line.split()[0]}" for name, lines in lists for line in lines.splitlines()}
    assert {name for name, _ in lists} == {"me/model", "me/translator", "me/refused"}
    arrived = {name for name in lived.sent if not name.endswith("/.gitattributes")}
    assert arrived == {name for name in listed if not name.startswith("me/refused/")}
    assert not [name for name in arrived if re.search(r"optimizer|checkpoint|step-|jsonl|train", name)]
