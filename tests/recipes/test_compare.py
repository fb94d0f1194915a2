"""Comparisons on toy data with a tiny model: what is run, reused, refused and concluded."""

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from tiny import WORDS, make_checkpoint
from toy import BAD, GOOD, check_alike, launch_two, write_reviews

import hf_transfer as ht
from hf_transfer import compare_runs
from hf_transfer.errors import RunError
from hf_transfer.report import read_results

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bert"), scale=0.1)


@pytest.fixture(autouse=True)
def unproved(monkeypatch):
    """Leaves out the fresh process, which tests of the artefact cover and which takes seconds."""
    monkeypatch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)


def config_for(source, checkpoint, folder, **fields) -> ht.CompareConfig:
    data = {"train_domains": ("books",), **fields.pop("data", {})}
    train = {
        "epochs": 3,
        "learning_rate": 1e-2,
        "head_learning_rate": 1e-2,
        "window_size": 8,
        **fields.pop("train", {}),
    }
    plain = {"strategies": ("probe", "full"), "controls": ("tfidf", "majority"), "seeds": (0, 1)}
    return ht.CompareConfig(
        data=ht.DataConfig(source=str(source), **data),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        train=ht.TrainConfig(**train),
        evaluate=ht.EvaluateConfig(resamples=200),
        output_dir=str(folder),
        **(plain | fields),
    )


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(domain: str, count: int, split: str, rng: random.Random, flip: bool = False) -> list[dict]:
    """Reviews whose label is the kind of word that stands in them; ``flip`` turns it round."""
    rows = []
    for i in range(count):
        good = i % 2 == 0
        words = [*rng.sample(WORDS[:17], 4), *rng.choices(GOOD if good else BAD, k=3)]
        rng.shuffle(words)
        label = "good" if good != flip else "bad"
        rows.append(
            {"text": " ".join([*words, f"{domain}{split}{i}"]), "label": label, "domain": domain, "split": split}
        )
    return rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint):
    """One comparison that several tests look at; nothing is changed in it."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)
        return ht.compare(config_for(write_reviews(folder), checkpoint, folder / "out", controls=CONTROLS_USED))


CONTROLS_USED = ("before", "scratch", "tfidf", "majority")


def test_every_strategy_control_and_seed_is_run_and_reported(finished):
    results, folder = finished.results, finished.output_dir
    runs = {(run["strategy"], run["seed"]) for run in results["runs"]}
    trained = {(name, seed) for name in ("probe", "full", "scratch") for seed in (0, 1)}
    assert runs == trained | {("tfidf", 0), ("majority", 0)}, "what has no chance in it runs once"
    assert all(run["status"] == "finished" for run in results["runs"])
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "plan.json", "distances.json", "results.json", "report.md", "report.html", "figures", "runs",
    }  # fmt: skip
    assert read_results(folder) == json.loads(json.dumps(results))
    assert any("before" in note and "does not apply" in note for note in results["notes"]), "a tiny model has no head"
    scored = {(score["strategy"], score["seed"]) for score in results["scores"]}
    assert {(name, None) for name in ("probe", "full", "scratch", "tfidf", "majority")} < scored
    pairs = {(item["a"], item["b"]) for item in results["comparisons"] if item["question"] == "control"}
    assert pairs == {(a, b) for a in ("probe", "full") for b in ("scratch", "tfidf", "majority")}
    assert 2 <= len(results["answer"]) <= 5


def test_no_path_of_this_machine_is_in_what_is_shared(finished):
    parent = str(finished.output_dir.parent)
    for name in ("results.json", "report.md", "report.html"):
        assert parent not in (finished.output_dir / name).read_text(), name


def test_the_first_seed_keeps_its_model_and_it_predicts(finished):
    runs = finished.output_dir / "runs"
    assert (runs / "full-s0" / "model").is_dir() and not (runs / "full-s1" / "model").exists()
    assert not (runs / "scratch-s0" / "model").exists(), "a control is no result to take home"
    assert not list(runs.glob("*/checkpoints"))
    assert ht.load(runs / "full-s0", device="cpu").predict(["good fresh book"]).labels


def test_a_run_of_a_comparison_equals_the_same_run_alone(finished, checkpoint, tmp_path):
    compared = config_for(finished.output_dir.parent / "reviews.jsonl", checkpoint, tmp_path / "alone")
    config = ht.RunConfig(
        data=compared.data,
        model=compared.model,
        adapt=ht.AdaptConfig(strategy="probe"),
        train=compared.train,
        evaluate=compared.evaluate,
        output_dir=compared.output_dir,
        seed=1,
    )
    result = ht.run(config)
    inside = read_results(finished.output_dir / "runs" / "probe-s1")
    check_alike(result.results["examples"]["test"], inside["examples"]["test"])  # shared features change nothing
    check_alike(result.results["scores"], inside["scores"])


def test_a_killed_comparison_goes_on_and_repeats_nothing(tmp_path, checkpoint, monkeypatch):
    config = config_for(write_reviews(tmp_path), checkpoint, tmp_path / "out")
    made = []
    whole = compare_runs._make

    def stop_at_the_third(run, *given):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(run.name)
        return whole(run, *given)

    monkeypatch.setattr(compare_runs, "_make", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ht.compare(config)
    assert not (tmp_path / "out" / "results.json").exists(), "no result before the last run"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/results.json")}
    assert len(before) == 3

    monkeypatch.setattr(compare_runs, "_make", whole)
    again = ht.compare(config).results
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(compare_runs, "_make", whole)
    at_once = ht.compare(config).results
    for key in ("scores", "comparisons", "answer", "summary"):
        check_alike(again[key], at_once[key])


def test_an_extended_comparison_makes_only_what_is_new(tmp_path, checkpoint):
    source = write_reviews(tmp_path)
    first = config_for(source, checkpoint, tmp_path / "out", strategies=("probe",), seeds=(0,), controls=())
    ht.compare(first)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/results.json")}
    results = ht.compare(dataclasses.replace(first, strategies=("probe", "full"), controls=("majority",))).results
    assert {run["strategy"] for run in results["runs"]} == {"probe", "full", "majority"}
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_runs_with_other_settings_in_the_folder_are_refused_by_name(tmp_path, checkpoint):
    source = write_reviews(tmp_path)
    config = config_for(source, checkpoint, tmp_path / "out", strategies=("probe",), seeds=(0,), controls=())
    ht.compare(config)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=9))
    with pytest.raises(ht.InputError, match=r"probe-s0 holds a run with other settings \(data.max_length 256, now 9\)"):
        ht.compare(other)
    assert ht.compare(dataclasses.replace(other, overwrite=True)).results["runs"][0]["status"] == "finished"


def test_a_run_that_fails_does_not_sink_the_others(tmp_path, checkpoint, monkeypatch):
    whole = compare_runs.adapt

    def fail_once(config, *args, **kwargs):
        if config.adapt.strategy == "full":
            raise RunError("no finite gradient")
        return whole(config, *args, **kwargs)

    config = config_for(write_reviews(tmp_path), checkpoint, tmp_path / "out", seeds=(0,))
    monkeypatch.setattr(compare_runs, "adapt", fail_once)
    results = ht.compare(config).results
    failed = [run for run in results["runs"] if run["status"] == "failed"]
    assert [(run["strategy"], run["error"]) for run in failed] == [("full", "no finite gradient")]
    assert any("1 of 4 runs failed" in warning for warning in results["warnings"])
    assert "no finite gradient" in (tmp_path / "out" / "report.md").read_text()

    monkeypatch.setattr(compare_runs, "adapt", whole)
    results = ht.compare(config).results
    assert all(run["status"] == "finished" for run in results["runs"]), "a failed run is tried again"


def test_when_no_run_finishes_the_comparison_fails(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(compare_runs, "adapt", lambda *_, **__: (_ for _ in ()).throw(RunError("broken")))
    config = config_for(write_reviews(tmp_path), checkpoint, tmp_path / "out", controls=(), seeds=(0,))
    with pytest.raises(RunError, match="none of 2 runs finished: broken"):
        ht.compare(config)


def test_the_budget_is_the_same_for_every_strategy(tmp_path, checkpoint):
    config = config_for(
        write_reviews(tmp_path), checkpoint, tmp_path / "out", seeds=(0,), controls=("scratch",),
        budget=ht.BudgetConfig(examples=41),
    )  # fmt: skip
    ht.compare(config)
    steps = {
        path.parent.name: read_results(path)["timing"]["steps"] for path in tmp_path.glob("out/runs/*/results.json")
    }
    assert steps == {"probe-s0": 6, "full-s0": 6, "scratch-s0": 6}, "41 examples are six windows of eight"


def test_the_matrix_trains_on_each_domain_in_turn(tmp_path, checkpoint):
    source = write_reviews(tmp_path, domains=("books", "apps", "food"))
    config = config_for(
        source, checkpoint, tmp_path / "out", data={"train_domains": ()}, strategies=("probe",), controls=("tfidf",),
        seeds=(0,), matrix=True, keep_models="none",
    )  # fmt: skip
    results = ht.compare(config).results
    assert [item["train_domains"] for item in results["directions"]] == [["books"], ["apps"], ["food"]]
    matrix = {item["strategy"]: item for item in results["matrix"]}
    assert set(matrix) == {"probe", "tfidf"}
    assert matrix["tfidf"]["sources"] == matrix["tfidf"]["targets"] == ["books", "apps", "food"]
    alone = {(s["direction"], s["domain"]): s["value"] for s in results["scores"]
             if s["strategy"] == "tfidf" and s["metric"] == "accuracy" and s["seed"] == 0}  # fmt: skip
    for source_name, row in zip(matrix["tfidf"]["sources"], matrix["tfidf"]["values"], strict=True):
        assert row == [alone[source_name, target] for target in matrix["tfidf"]["targets"]]


def test_leave_one_out_trains_on_all_domains_but_one(tmp_path, checkpoint):
    source = write_reviews(tmp_path, domains=("books", "apps", "food"))
    config = config_for(
        source, checkpoint, tmp_path / "out", data={"train_domains": ()}, strategies=(), controls=("majority",),
        seeds=(0,), leave_one_out=True,
    )  # fmt: skip
    results = ht.compare(config).results
    trained_on = [item["train_domains"] for item in results["directions"]]
    assert trained_on == [["apps", "food"], ["books", "food"], ["books", "apps"]]


def test_one_domain_cannot_fill_a_matrix(tmp_path, checkpoint):
    config = config_for(write_reviews(tmp_path), checkpoint, tmp_path / "out", matrix=True)
    with pytest.raises(ht.InputError, match="--matrix needs two domains or more, found 1"):
        ht.compare(config)


def test_one_domain_split_in_two_shows_no_gap(tmp_path, checkpoint):
    """A -> A: the second domain is the first one under another name."""
    rng = random.Random(3)
    rows = [*texts("first", 200, "train", rng), *texts("first", 200, "test", rng), *texts("second", 200, "test", rng)]
    config = config_for(
        write_rows(tmp_path / "rows.jsonl", rows), checkpoint, tmp_path / "out", data={"train_domains": ("first",)},
        strategies=("full",), controls=("tfidf",), train={"epochs": 2},
    )  # fmt: skip
    results = ht.compare(config).results
    (found,) = [item for item in results["comparisons"] if item["question"] == "shift"]
    assert found["verdict"] == "no evidence" and abs(found["difference"]) < 0.05
    assert abs(next(row["gap"] for row in results["summary"] if row["strategy"] == "full")) < 0.05


def test_a_source_with_flipped_labels_hurts(tmp_path, checkpoint):
    """Planted negative transfer: what is good in the source is bad in the target."""
    rng = random.Random(4)
    rows = [
        *texts("source", 240, "train", rng, flip=True),
        *texts("source", 40, "test", rng, flip=True),
        *texts("target", 120, "train", rng),
        *texts("target", 240, "test", rng),
    ]
    config = config_for(
        write_rows(tmp_path / "rows.jsonl", rows), checkpoint, tmp_path / "out",
        data={"train_domains": ("source",), "target_examples": (0, 32)},
        strategies=("full",), controls=(), seeds=(0,), train={"epochs": 4},
    )  # fmt: skip
    results = ht.compare(config).results
    (found,) = [item for item in results["comparisons"] if item["question"] == "negative_transfer"]
    assert (found["domain"], found["target_examples"]) == ("target", 32)
    assert found["verdict"] == "hurts" and found["high"] < 0, "the source costs more than it brings"
    curves = {curve["with_source"]: curve for curve in results["learning_curves"]}
    assert curves[True]["sizes"] == [0, 32] and curves[False]["sizes"] == [32]
    assert results["selection"]["rule"] == "last", "few target labels leave nothing to select on"
    steps = {run["with_source"]: run["step"] for run in results["runs"] if run["target_examples"]}
    assert steps[True] == steps[False], "the same budget with and without the source"
    assert "hurts with 32" in " ".join(results["answer"])


def test_what_a_trained_model_forgets_of_its_source_is_reported(tmp_path, checkpoint):
    """The model of a first run goes on to a target whose labels are turned round: the source cannot survive that."""
    rng = random.Random(5)
    rows = [
        *texts("source", 240, "train", rng),
        *texts("source", 200, "test", rng),
        *texts("target", 240, "train", rng, flip=True),
        *texts("target", 200, "test", rng, flip=True),
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    first = config_for(
        source, checkpoint, tmp_path / "first", data={"train_domains": ("source",)}, strategies=("full",), controls=(),
        seeds=(0,),
    )  # fmt: skip
    ht.compare(first)
    trained = tmp_path / "first" / "runs" / "full-s0" / "model"
    second = config_for(
        source, trained, tmp_path / "second", data={"train_domains": ("target",)}, strategies=("full",),
        controls=("before",), seeds=(0,),
    )  # fmt: skip
    results = ht.compare(second).results
    (found,) = [item for item in results["comparisons"] if item["question"] == "forgetting"]
    assert (found["domain"], found["a"], found["b"]) == ("source", "full", "before")
    assert found["verdict"] == "hurts" and found["difference"] < -0.3
    before = {
        s["domain"]: s["value"] for s in results["scores"] if s["stage"] == "before" and s["metric"] == "accuracy"
    }
    assert before["source"] > 0.8 and before["target"] < 0.2, "its own head, as it was saved"


def test_too_few_test_examples_give_no_verdict(tmp_path, checkpoint):
    source = write_reviews(tmp_path, count=60)
    config = config_for(source, checkpoint, tmp_path / "out", strategies=("probe",), controls=("majority",), seeds=(0,))
    results = ht.compare(config).results
    assert {item["verdict"] for item in results["comparisons"] if item["domain"] in ("books", "apps")} == {
        "too few examples"
    }
    assert any("No conclusion is possible on books (20), apps (20)" in warning for warning in results["warnings"])


def test_a_report_is_made_again_from_the_runs_alone(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.output_dir, folder)
    for name in ("results.json", "report.html", "report.md"):
        (folder / name).unlink()
    results, where = ht.rebuild_report([folder])
    assert where == folder
    same = ("scores", "comparisons", "summary", "answer", "calibration", "matrix")
    assert {key: results[key] for key in same} == {key: finished.results[key] for key in same}
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_examples_are_quoted_only_when_asked_and_escaped(tmp_path, checkpoint):
    source = write_reviews(tmp_path)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        row["text"] += " <script>alert(1)</script>"
    write_rows(source, rows)
    config = config_for(source, checkpoint, tmp_path / "out", strategies=("probe",), controls=(), seeds=(0,))
    ht.compare(config)
    assert "alert(1)" not in (tmp_path / "out" / "report.html").read_text()
    ht.compare(dataclasses.replace(config, report=ht.ReportConfig(show_examples=True)))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page


def test_a_single_run_is_compared_with_its_controls(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("hf_transfer.train.LONG_SECONDS", 0.0)  # each training is in a checkpoint before it is scored
    source = write_reviews(tmp_path)
    config = ht.RunConfig(
        data=ht.DataConfig(source=str(source), train_domains=("books",)),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        train=ht.TrainConfig(epochs=3, learning_rate=1e-2, head_learning_rate=1e-2, window_size=8),
        evaluate=ht.EvaluateConfig(resamples=200, controls=("before", "scratch", "tfidf")),
        output_dir=str(tmp_path / "run"),
    )
    results = ht.run(config).results
    assert {score["stage"] for score in results["scores"]} == {"adapted", "scratch", "tfidf"}
    assert {(item["a"], item["b"]) for item in results["comparisons"]} == {("adapted", "scratch"), ("adapted", "tfidf")}
    assert {item["verdict"] for item in results["comparisons"]} <= {"helps", "hurts", "no evidence"}
    assert all({"difference", "low", "high", "p_value", "p_adjusted", "test"} <= set(c) for c in results["comparisons"])
    assert any("before does not apply" in note for note in results["notes"])
    assert "scratch" in (tmp_path / "run" / "report.md").read_text()
    assert not list((tmp_path / "run").rglob("step-*")), "nobody asked for checkpoints, and all is finished"


def test_two_processes_compare_as_one_does(tmp_path, checkpoint):
    source = write_reviews(tmp_path)
    words = [
        "--data.source", source, "--data.train_domains", "books", "--model.checkpoint", checkpoint,
        "--model.dropout", "0", "--train.epochs", "2", "--train.learning_rate", "0.01", "--evaluate.resamples", "200",
        "--strategies", "probe,full", "--controls", "tfidf", "--seeds", "0", "--keep_models", "none",
    ]  # fmt: skip
    script = Path(__file__).parent.parent / "two_processes_compare.py"
    launch_two(script, *words, "--output_dir", tmp_path / "two")
    two = read_results(tmp_path / "two")
    from hf_transfer.command_line import read_command_line

    config = read_command_line(
        [str(word) for word in [*words, "--output_dir", tmp_path / "one"]], "test", ht.CompareConfig
    )
    one = ht.compare(config).results
    assert two["environment"]["world_size"] == 2
    values = [[s["value"] for s in results["scores"] if s["metric"] == "accuracy"] for results in (one, two)]
    assert values[0] == pytest.approx(values[1], abs=0.03)
    counts = [[(s["domain"], s["count"]) for s in results["scores"]] for results in (one, two)]
    assert counts[0] == counts[1], "each example once"


@pytest.mark.parametrize("domain", ["../../x", "a" * 300, "書" * 90, "a\0b", "<b>", ".." * 50])
def test_a_run_on_any_domain_has_a_folder_of_its_own_with_a_short_name(domain):
    from hf_transfer.compare_runs import _slug

    assert re.fullmatch(r"[\w.-]{1,47}", _slug(domain), re.ASCII)
    assert len({_slug(domain), _slug(domain + "x"), _slug("books")}) == 3 and _slug("books") == "books"
