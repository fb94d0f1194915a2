"""Whatever a file holds, its reader returns or refuses it in words: no traceback, no hang, nothing half-written.

Files are made from small valid ones by cutting, repeating and inserting what readers trip over, or are bytes alone. The
unit tier tries a few of each kind and the corpus; the slow tier 10,000 of each at random and 10,000 guided by coverage,
which takes some 20 minutes of one core.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from comparison_example import example_results
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from readers import CORPUS, READERS, TROUBLE, parse_quickly, read_or_refuse, write_valid

from hf_transfer import command_line
from hf_transfer.errors import InputError
from hf_transfer.rebuild import rebuild_report

FEW, AT_RANDOM, GUIDED = 15, 10_000, 10_000
SECONDS = 20
"""Of a processor that a single input may take, so that a busy machine makes no difference; a hang takes more."""
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ATHERIS = Requirement(EXTRAS["fuzz"][0])


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


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The parser of the settings takes a fifth of a second to build, and is the same each time; and what is kept of a
    text would be one more file for each input."""
    monkeypatch.setattr(command_line, "_build_parser", parse_quickly)
    monkeypatch.setattr("datasets.is_caching_enabled", lambda: False)


@contextmanager
def time_limit(what: object) -> Iterator[None]:
    """Fails the test, naming ``what``, when the block takes more than ``SECONDS``; where there are no such
    alarms (Windows) it does not."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def fail(*_: object) -> None:
        # passes `except Exception`, as a reader may have one
        pytest.fail(f"more than {SECONDS} s of a processor with {what!r}")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def read_in_time(kind: str, path: Path, content: bytes) -> str:
    """``read_or_refuse`` for so long as an input may take."""
    with time_limit(content):
        return read_or_refuse(kind, path, content)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no alarms on this platform")
def test_a_reader_that_hangs_fails_with_the_input(tmp_path, monkeypatch):
    """Also one that swallows exceptions; hypothesis looks at the clock only when a call is over."""
    ends = time.process_time() + 10

    def hang(path: Path) -> None:
        while path.read_bytes() == b"slow" and time.process_time() < ends:
            with suppress(Exception):
                sum(range(1_000_000))

    monkeypatch.setitem(READERS, "csv", hang)
    monkeypatch.setitem(globals(), "SECONDS", 0.3)

    @settings(database=None, max_examples=20, phases=[Phase.generate])
    @given(st.sampled_from([b"quick", b"slow"]))
    def attempt(content):
        read_in_time("csv", tmp_path / "data.csv", content)

    with pytest.raises(pytest.fail.Exception, match=r"more than 0\.3 s of a processor with b'slow'"):
        attempt()


@pytest.mark.parametrize("kind", READERS)
def test_the_valid_file_of_each_kind_is_read(kind, tmp_path):
    assert READERS[kind](write_valid(kind, tmp_path)) is not None


@pytest.mark.parametrize("kind", READERS)
def test_inputs_of_the_corpus_are_read_or_refused(kind, tmp_path):
    """By hand, or found by one of the tests below and kept."""
    path = write_valid(kind, tmp_path)
    found = sorted((CORPUS / kind).iterdir())
    assert found
    for item in found:
        assert read_in_time(kind, path, item.read_bytes()) == item.name.partition("-")[0], item.name


def test_the_extra_of_the_tests_brings_atheris_in_the_pinned_version():
    """So that a set-up by the README has trials led by coverage."""
    own = Requirement(EXTRAS["test"][0])
    assert own.name == PROJECT["name"] and "fuzz" in own.extras
    assert ATHERIS.name == "atheris"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^atheris==(.+)$", pins, re.MULTILINE)[1] in ATHERIS.specifier


@pytest.mark.slow
@pytest.mark.skipif(not ATHERIS.marker.evaluate(), reason=f"there is no atheris here, only where {ATHERIS.marker}")
@pytest.mark.parametrize("kind", READERS)
def test_inputs_that_reach_new_code_are_read_or_refused(kind, tmp_path):
    """libFuzzer, through atheris, keeps what reached a new branch and damages that further."""
    script = Path(__file__).with_name("fuzz_readers.py")
    ran = subprocess.run([sys.executable, script, kind, tmp_path, str(GUIDED)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(re.search(r"stat::number_of_executed_units:\s+(\d+)", ran.stderr)[1]) >= GUIDED


@pytest.mark.parametrize("count", [FEW, pytest.param(AT_RANDOM, marks=pytest.mark.slow)])
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
        seen[read_in_time(kind, path, content)] += 1

    attempt()
    assert min(seen.values()), f"an experiment in which all is one or the other shows little: {seen}"


@pytest.mark.parametrize("count", [FEW // 5, pytest.param(AT_RANDOM // 100, marks=pytest.mark.slow)])
def test_a_comparison_that_was_edited_inside_is_reported_or_refused_and_nothing_half_written(count, tmp_path):
    """Most of a second each, which drawing its figures takes."""
    whole = example_results(domains=3, seeds=2, strategies=("probe", "lora"), controls=("tfidf",)) | {"seed": 0}
    places = list(leaves(whole))
    path = tmp_path / "results.json"
    seen = {"reported": 0, "refused": 0}
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert rebuild_report([path], tmp_path / "whole")[0]["name"] == "example"

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
                try:
                    target = target[step]
                except (IndexError, KeyError, TypeError):
                    target = None  # an edit before this one took the place away
            if isinstance(target, dict) or (isinstance(target, list) and isinstance(last, int) and last < len(target)):
                target[last] = value
        path.write_text(json.dumps(changed), encoding="utf-8")
        again = tmp_path / "again"
        try:
            with time_limit(edits):
                rebuild_report([path], again)
            assert (again / "results.json").exists()
            seen["reported"] += 1
        except InputError:
            seen["refused"] += 1
            assert not again.exists(), "a refusal leaves nothing behind"
        finally:
            shutil.rmtree(again, ignore_errors=True)

    attempt()
    assert count < FEW or min(seen.values()), seen


VALUES = [None, "", "x" * 200, "<script>", -1, 0, 1e308, [], {}, [[]], {"value": None}, True]


def leaves(value: object, way: tuple = ()) -> Iterator[tuple]:
    """Ways to all that a JSON value holds, inner nodes too."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*way, name)
        yield from leaves(part, (*way, name))
