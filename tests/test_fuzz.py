"""Whatever a file holds, its reader returns or refuses it in words: no traceback, no hang, nothing half-written.

Files are made from small valid ones by cutting, repeating and inserting what readers trip over, or are bytes alone. The
unit tier tries a few of each kind, the slow tier 10,000.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_folder import save_step
from test_report import make_results
from tiny import make_checkpoint

from hf_transfer.checkpoint import check_identity, find_checkpoint_to_resume, load_state
from hf_transfer.command_line import load_config
from hf_transfer.config import DataConfig, ModelConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.pretrained import align_labels, find_checkpoint
from hf_transfer.rebuild import rebuild_report
from hf_transfer.records import LabelSpace
from hf_transfer.report.results import plain, read_results
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

FEW, MANY = 15, 10_000
SECONDS = 20
"""That a single input may take on a busy machine; a hang takes longer."""

TROUBLE = [
    *(b'"', b"'", b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\"),
    *(b"{", b"}", b"[", b"]", b":", b"null", b"NaN", b"1e999", b"-0", b"9" * 400, b"true", b'""', b"\\ud800", b"[" * 9),
    *(b"<", b">", b"</tu>", b"<tuv>", b"&#0;", b"&lol;", b"<![CDATA[", b"&" * 9, b'<!DOCTYPE x [<!ENTITY lol "lol">]>'),
    *(b"!!python/object/apply:os.system [true]", b"&a [*a]", b"*a", b"---\n", b"|\n", b"? ", b"- ", b"%YAML 9\n"),
    *(b"../../etc/passwd", b"text", b"label", b"domain", b"step-9", b"\xc3\x28", "\u202e".encode(), b" " * 300, b"\1"),
]

Read = Callable[[Path], object]


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """``whole`` after a few edits, or bytes of no kind."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted(draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
        edit = draw(st.sampled_from(["cut", "repeat", "insert", "insert", "swap"]))
        if edit == "cut":
            whole = whole[:first] + whole[last:]
        elif edit == "repeat":
            whole = whole[:last] + whole[first : min(last, first + 2000)] + whole[last:]
        elif edit == "swap":
            whole = whole[:first] + draw(st.binary(min_size=1, max_size=3)) + whole[first + 1 :]
        else:
            whole = whole[:first] + draw(st.sampled_from(TROUBLE)) + whole[first:]
    return whole


# ---- what reads, and a valid file for each


def read_rows(path: Path) -> object:
    task = TASKS["translation" if path.suffix in (".tmx", ".en") else "classification"]
    languages = {"source_lang": "en", "target_lang": "de"} if task.name == "translation" else {}
    return read_text(DataConfig(source=str(path), **languages), TrainConfig(), task, 0)


def read_config(path: Path) -> object:
    return load_config(["--config", str(path)], "hf-transfer run")


def read_finished_run(path: Path) -> object:
    return read_results(path)


def read_manifest(path: Path) -> object:
    _, notes = find_checkpoint_to_resume(path.parent.parent, "auto")  # passes it over, and says why
    assert len(notes) <= 1
    return load_state(find_checkpoint_to_resume(path.parent.parent, str(path.parent))[0])


def read_state(path: Path) -> object:
    """A state whose manifest fits: that of a damaged one says so before it is read."""
    manifest = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))
    manifest["state.json"] = [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    (path.parent / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found, _ = find_checkpoint_to_resume(path.parent.parent, str(path.parent))
    check_identity(found, {"seed": 0})
    return load_state(found)


def read_label_map(path: Path) -> object:
    found = find_checkpoint(ModelConfig(checkpoint=str(path.parent)))
    return align_labels(LabelSpace("single_label", ("bad", "good")), found)


LABELS = (("good", "yes"), ("bad", 'no, "never"'))
REVIEWS = [(f"a {word} book {i}", label) for i in range(12) for word, label in LABELS]


def write_valid(kind: str, folder: Path) -> Path:
    """A file that its reader takes; returns its path."""
    if kind in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[kind]
        quoted = [f'"{text}"{mark}"{label.replace(chr(34), chr(34) * 2)}"{mark}shop' for text, label in REVIEWS]
        text = "\n".join([f"text{mark}label{mark}domain", *quoted])
    elif kind == "jsonl":
        text = "\n".join(json.dumps({"text": text, "label": label, "domain": "shop"}) for text, label in REVIEWS)
    elif kind == "json":
        text = json.dumps([{"text": text, "label": label} for text, label in REVIEWS])
    elif kind == "tmx":
        unit = '<tu><tuv xml:lang="en"><seg>{}</seg></tuv><tuv xml:lang="de"><seg>ja {}</seg></tuv></tu>'
        units = "".join(unit.format(text, text) for text, _ in REVIEWS)
        text = f'<?xml version="1.0"?><tmx version="1.4"><header srclang="en"/><body>{units}</body></tmx>'
    elif kind == "yaml":
        text = "data:\n  source: bundled:reviews\n  train_domains: [books]\ntrain:\n  epochs: 2.5\nseed: 3\n"
    elif kind == "results.json":
        text = json.dumps(plain(make_results()))
    elif kind == "manifest.json":
        save_step(folder, {"seed": 0})
        return folder / "checkpoints" / "step-3" / "manifest.json"
    elif kind == "state.json":
        save_step(folder, {"seed": 0})
        return folder / "checkpoints" / "step-3" / "state.json"
    else:
        return make_checkpoint(folder / "model") / "config.json"
    path = folder / (f"data.{kind}" if "." not in kind else kind)
    path.write_text(text, encoding="utf-8")
    return path


READERS: dict[str, Read] = {
    "csv": read_rows,
    "tsv": read_rows,
    "jsonl": read_rows,
    "json": read_rows,
    "tmx": read_rows,
    "yaml": read_config,
    "results.json": read_finished_run,
    "manifest.json": read_manifest,
    "state.json": read_state,
    "config.json": read_label_map,
}


@pytest.mark.parametrize("kind", READERS)
def test_the_valid_file_of_each_kind_is_read(kind, tmp_path):
    assert READERS[kind](write_valid(kind, tmp_path)) is not None


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused(kind, count, tmp_path):
    path = write_valid(kind, tmp_path)
    whole = path.read_bytes()
    seen = {"read": 0, "refused": 0}

    @settings(
        max_examples=count,
        deadline=SECONDS * 1000,
        database=None,
        derandomize=count == FEW,  # the same few each time
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(whole))
    def attempt(content):
        path.write_bytes(content)
        before = contents(tmp_path)
        try:
            READERS[kind](path)
            seen["read"] += 1
        except InputError as error:
            seen["refused"] += 1
            assert all(problem and "Traceback" not in problem for problem in error.problems)
            assert contents(tmp_path) == before, "a refusal leaves nothing behind"

    attempt()
    assert min(seen.values()), f"an experiment in which all is one or the other shows little: {seen}"


@pytest.mark.parametrize("count", [FEW // 5, pytest.param(MANY // 20, marks=pytest.mark.slow)])
def test_a_comparison_that_was_edited_inside_is_reported_or_refused_and_nothing_half_written(count, root, tmp_path):
    whole = json.loads((root / "benchmarks" / "results" / "compare_books_dvd" / "results.json").read_text("utf-8"))
    places = list(leaves(whole))
    path = tmp_path / "results.json"

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < FEW,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.tuples(st.integers(0, len(places) - 1), st.sampled_from(VALUES)), min_size=1, max_size=3))
    def attempt(edits):
        changed = json.loads(json.dumps(whole))
        for number, value in edits:
            *way, last = places[number]
            target = changed
            for step in way:
                target = target[step] if isinstance(target, dict | list) else {}
            if isinstance(target, dict) or (isinstance(target, list) and isinstance(last, int) and last < len(target)):
                target[last] = value
        path.write_text(json.dumps(changed), encoding="utf-8")
        again = tmp_path / "again"
        try:
            rebuild_report([path], again)
            assert (again / "results.json").exists()
        except InputError:
            assert not again.exists(), "a refusal leaves nothing behind"
        finally:
            shutil.rmtree(again, ignore_errors=True)

    attempt()


VALUES = [None, "", "x" * 200, "<script>", -1, 0, 1e308, [], {}, [[]], {"value": None}, True]


def leaves(value: object, way: tuple = ()) -> Iterator[tuple]:
    """Ways to all that a JSON value holds, inner nodes too."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*way, name)
        yield from leaves(part, (*way, name))


def contents(folder: Path) -> set[str]:
    return {os.fspath(path.relative_to(folder)) for path in folder.rglob("*")}
