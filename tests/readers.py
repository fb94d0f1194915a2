"""What reads files of others, a valid file for each, and what they trip over: shared by the fuzz tests.

``test_fuzz.py`` damages the valid files at random, ``fuzz_readers.py`` lets coverage guide it. ``fuzz_corpus/KIND``
holds inputs by hand and those that were trouble once.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from test_folder import save_step
from test_report import make_results
from tiny import make_checkpoint

from hf_transfer import command_line
from hf_transfer.checkpoint import check_identity, find_checkpoint_to_resume, load_state
from hf_transfer.config import DataConfig, ModelConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.fields import flatten
from hf_transfer.pretrained import align_labels, find_checkpoint
from hf_transfer.records import LabelSpace
from hf_transfer.report.results import plain, read_results
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

CORPUS = Path(__file__).parent / "fuzz_corpus"
TROUBLE = [
    *(b'"', b"'", b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\"),
    *(b"{", b"}", b"[", b"]", b":", b"null", b"NaN", b"1e999", b"-0", b"9" * 400, b"true", b'""', b"\\ud800", b"[" * 9),
    *(b"<", b">", b"</tu>", b"<tuv>", b"&#0;", b"&lol;", b"<![CDATA[", b"&" * 9, b'<!DOCTYPE x [<!ENTITY lol "lol">]>'),
    *(b"!!python/object/apply:os.system [true]", b"&a [*a]", b"*a", b"---\n", b"|\n", b"? ", b"- ", b"%YAML 9\n"),
    *(b"../../etc/passwd", b"text", b"label", b"domain", b"step-9", b"\xc3\x28", "\u202e".encode(), b" " * 300, b"\1"),
]

Read = Callable[[Path], object]


def read_rows(path: Path) -> object:
    task = TASKS["translation" if path.suffix in (".tmx", ".en") else "classification"]
    languages = {"source_lang": "en", "target_lang": "de"} if task.name == "translation" else {}
    return read_text(DataConfig(source=str(path), **languages), TrainConfig(), task, 0)


def read_config(path: Path) -> object:
    return command_line.load_config(["--config", str(path)], "hf-transfer run")


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


# ---- how they are tried


def read_or_refuse(kind: str, path: Path, content: bytes) -> str:
    """Let the reader of ``kind`` read ``content`` at ``path``: ``read``, or ``refused`` in words and nothing left."""
    path.write_bytes(content)
    before = contents(path.parent)
    try:
        READERS[kind](path)
    except InputError as error:
        assert error.problems and all(problem and "Traceback" not in problem for problem in error.problems)
        assert contents(path.parent) == before, "a refusal leaves nothing behind"
        return "refused"
    return "read"


def contents(folder: Path) -> set[str]:
    """Paths of all files in ``folder``."""
    return {os.fspath(path.relative_to(folder)) for path in folder.rglob("*")}


@functools.cache
def _parser(prog: str, record: type) -> object:
    return _build(prog, flatten(record()), record)


def parse_quickly(prog: str, values: object, record: type) -> object:
    """In the place of ``command_line._build_parser``: the parser is made once; ``values`` would be what help shows."""
    return _parser(prog, record)


_build = command_line._build_parser
