"""docs/reliability.md names tests that exist, and says of each failure of the field what keeps it out."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_the_page_names_exists(file, name):
    assert name in names_in(file)


def test_every_promise_has_a_test_and_its_trials():
    promises = [line for line in PAGE.split("## What users")[0].splitlines() if re.match(r"\| [A-Z]", line)]
    promises = [line for line in promises if not line.startswith("| Promise")]
    assert len(promises) > 15
    for line in promises:
        _, _, test, trials, _ = line.split("|")
        assert "::" in test or "the same test" in test, line
        assert re.match(r"\d|each|a whole", trials.strip()), line


def test_all_25_failures_of_the_field_are_answered():
    rows = re.findall(r"^\| (\d+)\. .* \| (.*) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 26))
    assert all("::" in tests for _, tests in rows)
