"""The yardsticks of the benchmarks: an interval that holds what it says, operations and passes by hand, what may be
claimed, and what is written of the machine."""

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def measuring(root: Path):
    """benchmarks/measuring.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("measuring", root / "benchmarks" / "measuring.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["measuring"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_interval_of_a_median_is_that_of_the_sign_test(measuring):
    six = measuring.spread([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    assert (six["median"], six["low"], six["high"], six["pairs"]) == (3.5, 1.0, 6.0, 6)
    assert six["level"] == pytest.approx(1 - 2 / 2**6)
    five = measuring.spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five["level"] == pytest.approx(0.9375), "five pairs cannot reach 95%"
    many = measuring.spread(list(range(1, 21)))
    # Conover 1999, table A3: of 20, the 6th smallest and largest hold the median in 95.86% of cases
    assert (many["low"], many["high"]) == (6, 15)
    assert many["level"] == pytest.approx(0.9586, abs=5e-5)


@pytest.mark.parametrize("pairs", [5, 6, 9])
def test_the_interval_covers_as_often_as_it_says(measuring, pairs):
    rng = np.random.default_rng(pairs)
    draws = rng.lognormal(0.7, 0.3, (2000, pairs))
    found = [measuring.spread(row) for row in draws]
    covered = np.mean([one["low"] <= math.exp(0.7) <= one["high"] for one in found])
    level = found[0]["level"]
    assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / 2000)


def test_operations_and_layer_passes_of_each_way(measuring):
    shape = {"layers": 6, "hidden": 4, "inner": 16, "layer_weights": 192, "context": 10}
    forward = 2 * 192 + 4 * 10 * 4
    assert measuring.flops_per_token("full", 0, shape) == 6 * 3 * forward
    assert measuring.flops_per_token("freeze", 4, shape) == 4 * forward + 2 * 3 * forward
    assert measuring.flops_per_token("probe", 0, shape) == 6 * forward
    assert measuring.layer_passes("full", 6, 0, 5, stored=False) == 18
    assert measuring.layer_passes("freeze", 6, 4, 5, stored=False) == 10
    assert measuring.layer_passes("freeze", 6, 4, 5, stored=True) == pytest.approx(6 + 4 / 5)
    assert measuring.layer_passes("probe", 6, 0, 5, stored=True) == pytest.approx(6 / 5)


def test_the_last_fifth_is_the_final_loss(measuring):
    assert measuring.final_loss([5.0, 4.0, 3.0, 2.0, 1.0]) == 1.0
    assert measuring.final_loss([9.0, *[2.0] * 8, 1.0, 3.0]) == pytest.approx(1.5), "the last full fifth"


def test_a_clock_counts_steps_of_any_optimizer(measuring):
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with measuring.Clock("cpu") as clock:
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert len(clock.stamps) == 4
    assert (np.diff(np.array(clock.stamps)[:, 0]) > 0).all()
    optimizer.step()
    assert len(clock.stamps) == 4, "the hooks are gone"


@pytest.mark.parametrize(
    ("low", "high", "not_worse", "no_evidence"),
    [
        (-0.0003, 0.055, True, True),
        (-0.02, 0.01, True, True),
        (-0.138, 0.028, False, True),  # so wide that it says nothing
        (-0.015, -0.001, True, False),  # surely worse, by less than the margin
        (-0.206, -0.057, False, False),
    ],
)
def test_a_ratio_is_claimed_where_the_interval_excludes_a_loss_over_the_margin(
    measuring, low, high, not_worse, no_evidence
):
    found = measuring.claim(5, 0.9, {"low": low, "high": high}, 0.02)
    assert (found["claimed"], found["not_worse"], found["no_evidence_of_worse"]) == (not_worse, not_worse, no_evidence)
    assert found["margin"] == 0.02, "the margin stands beside what it decided"
    assert measuring.claim(5, 0.9, {"low": low, "high": high}, 0.3)["claimed"], "a wider margin"


def test_nothing_is_claimed_where_nothing_was_learnt(measuring):
    clear = {"low": 0.01, "high": 0.05}
    assert [measuring.claim(5, 0.9, clear, 0.02, above)["claimed"] for above in (-0.1, 0.01, 0.03)] == [0, 0, 1]
    assert measuring.claim(5, 1.0, clear, 0.02, 0.0)["claimed"], "the same outputs are as good, whatever they are worth"


def test_nothing_is_claimed_from_fewer_than_five_pairs(measuring):
    found = measuring.claim(4, 1.0, {"low": 0.0, "high": 0.0}, 0.02)
    assert not found["claimed"] and found["not_worse"]


def test_equal_outputs_are_equal_quality_also_where_no_metric_was_taken(measuring):
    assert measuring.claim(5, 1.0, None, 0.02)["claimed"]
    assert measuring.claim(5, 1.0, {"low": -0.5, "high": -0.1}, 0.02)["claimed"], "the metric's noise does not count"
    nearly = measuring.claim(5, 0.99, None, 0.02)
    assert not (nearly["claimed"] or nearly["not_worse"] or nearly["no_evidence_of_worse"])


def test_a_record_names_command_commit_processor_and_versions_but_neither_host_nor_folder(
    measuring, root, tmp_path, monkeypatch
):
    script, output = root / "benchmarks" / "throughput.py", tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [str(script), "--shared", str(tmp_path), f"--output={output}", "--case", "full"])
    made = measuring.made_by(threads=2)
    assert made["command"] == f"python benchmarks/throughput.py --shared {tmp_path.name} --output=out.json --case full"
    assert made["threads"] == 2 and made["cores"] >= 1
    assert made["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"transformers", "accelerate", "peft", "sentence-transformers", "setfit"} <= set(made["versions"])
    written = json.dumps(made)
    assert not re.search(r"""[\s"'=:][/~]""", written), "an absolute path"
    assert not re.search(rf"\b{re.escape(platform.node() or 'no name')}\b", written)


def test_relative_paths_of_a_command_stay_as_they_were_given(measuring, root):
    words = [str(root / "benchmarks" / "start_up.py"), "--shared", "../shared", "--output", "runs/a b.json"]
    assert measuring.shown_command(words) == "python benchmarks/start_up.py --shared ../shared --output 'runs/a b.json'"
    assert measuring.shown_command(["/somewhere/else.py"]) == "python else.py"


def test_the_commit_is_that_of_the_checkout_and_results_do_not_count_as_changes(measuring, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook's, which would lead to another checkout
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def git(*words):
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", "-C", tmp_path, *author, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    assert measuring.checkout() == ("", None), "without git"
    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "--short", "HEAD")
    assert measuring.checkout() == (head, False)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "new.json").write_text("{}")
    assert measuring.checkout() == (head, False), "a result of just now changes nothing that is measured"
    (tmp_path / "code.py").write_text("2\n")
    assert measuring.checkout() == (head, True)


def test_a_record_is_printed_and_written_to_the_file_that_is_named(measuring, tmp_path, capsys):
    measuring.tell({"a": 1}, str(tmp_path / "new" / "record.json"))
    measuring.tell({"a": 1}, None)
    assert json.loads((tmp_path / "new" / "record.json").read_text(encoding="utf-8")) == {"a": 1}
    assert capsys.readouterr().out == '{\n "a": 1\n}\n' * 2
