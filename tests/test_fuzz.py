"""Whatever a file holds, its reader returns or refuses it in words: no traceback, no hang, nothing half-written.

Files are made from small valid ones by cutting, repeating and inserting what readers trip over, or are bytes alone. The
unit tier tries a few of each kind and the corpus; the slow tier 5,000 of each at random and 10,000 guided by coverage,
which takes 11 minutes of one core.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparison_example import example_results
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from readers import CORPUS, READERS, TROUBLE, parse_quickly, read_or_refuse, write_valid

from hf_transfer import command_line
from hf_transfer.errors import InputError
from hf_transfer.rebuild import rebuild_report

FEW, AT_RANDOM, GUIDED = 15, 5_000, 10_000
SECONDS = 20
"""That a single input may take on a busy machine; a hang takes longer."""


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
        assert read_or_refuse(kind, path, item.read_bytes()) == item.name.partition("-")[0], item.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_inputs_that_reach_new_code_are_read_or_refused(kind, tmp_path):
    """libFuzzer, through atheris, keeps what reached a new branch and damages that further."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip('atheris is not installed: pip install "hf-transfer-learning[fuzz]"')
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
        seen[read_or_refuse(kind, path, content)] += 1

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
                target = target[step] if isinstance(target, dict | list) else {}
            if isinstance(target, dict) or (isinstance(target, list) and isinstance(last, int) and last < len(target)):
                target[last] = value
        path.write_text(json.dumps(changed), encoding="utf-8")
        again = tmp_path / "again"
        try:
            rebuild_report([path], again)
            assert (again / "results.json").exists()
            seen["reported"] += 1
        except InputError:
            seen["refused"] += 1
            assert not again.exists(), "a refusal leaves nothing behind"
        finally:
            shutil.rmtree(again, ignore_errors=True)

    attempt()
    assert seen["reported"] and (count < FEW or seen["refused"]), seen


VALUES = [None, "", "x" * 200, "<script>", -1, 0, 1e308, [], {}, [[]], {"value": None}, True]


def leaves(value: object, way: tuple = ()) -> Iterator[tuple]:
    """Ways to all that a JSON value holds, inner nodes too."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*way, name)
        yield from leaves(part, (*way, name))
