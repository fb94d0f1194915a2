"""Tables of a comparison: the numbers of results.json in the right cells, the same in Markdown and on the console."""

from __future__ import annotations

import io

import pytest
import yaml
from comparison_example import example_results
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from hf_transfer.report.comparison_console import print_comparison
from hf_transfer.report.comparison_markdown import comparison_to_markdown
from hf_transfer.report.tables import (
    config_yaml,
    format_bytes,
    format_effect,
    format_p,
    format_rate,
    format_seconds,
    make_sections,
    make_warnings,
)

HOSTILE = "a|b <script>alert(1)</script> `x` **y** [l](http://e.vil) &amp; \\ $z$ _q_ [bold red]w[/]"


def small(**changes):
    """A comparison of two strategies and a control on three domains, of which the first two are trained on."""
    arguments = {"domains": 3, "seeds": 2, "strategies": ("probe", "lora"), "controls": ("tfidf",), "matrix": False}
    return example_results(**{**arguments, **changes})


def tables_of(results):
    return {table.name: table for section in make_sections(results) for table in section.tables}


def sections_of(results):
    return {section.name: section for section in make_sections(results)}


def columns(table, *names):
    """Rows of the named columns."""
    return [[row[table.header.index(name)] for name in names] for row in table.rows]


def score(strategy, domain, value, low, high, **changes):
    """A score of all seeds on a test domain; books is trained on."""
    return {
        "stage": "adapted",
        "strategy": strategy,
        "seed": None,
        "direction": "books",
        "target_examples": 0,
        "target_domain": None,
        "with_source": True,
        "domain": domain,
        "role": "in_domain" if domain == "books" else "shifted",
        "split": "test",
        "count": 1234,
        "metric": "accuracy",
        "value": value,
        "low": low,
        "high": high,
        **changes,
    }


def comparison(question, domain, **changes):
    facts = {"direction": "books", "metric": "accuracy", "a": "lora", "b": "tfidf", "count": 400, "target_examples": 0}
    facts |= {"difference": 0.07, "low": 0.03, "high": 0.1, "p_value": 0.00123, "p_adjusted": 0.0123}
    return {"question": question, "domain": domain, **facts, "test": "exact McNemar", "verdict": "helps", **changes}


# ---- scores and cost -------------------------------------------------------------------------------------------


def test_scores_stand_by_domain_and_strategy_with_their_interval_in_domain_first():
    results = small()
    results["scores"] = [
        score("lora", "dvd", 0.8, 0.75, 0.851),
        score("lora", "books", 0.9, 0.88, 0.92),
        score("tfidf", "dvd", 0.7, None, None),
    ]
    table = tables_of(results)["scores-accuracy-0"]
    assert table.header == ("Domain", "Role", "Examples", "lora", "tfidf")
    assert table.rows == (
        ("books", "in-domain", "1,234", "90.0% (88.0 to 92.0)", ""),
        ("dvd", "shifted", "1,234", "80.0% (75.0 to 85.1)", "70.0%"),
    )
    assert table.alignment == ("left", "left", "right", "right", "right")
    assert "95% intervals (hierarchical bootstrap over 2 seeds x examples, 10,000 resamples)" in table.caption


def test_single_seeds_other_splits_and_learning_curves_are_not_in_the_table_of_scores():
    results = small()
    results["scores"] = [
        score("lora", "dvd", 0.8, 0.7, 0.9),
        score("lora", "dvd", 0.1, 0.1, 0.1, seed=0),
        score("lora", "dvd", 0.2, 0.2, 0.2, split="validation"),
        score("lora", "dvd", 0.3, 0.3, 0.3, target_examples=16, target_domain="dvd"),
    ]
    assert tables_of(results)["scores-accuracy-0"].rows == (("dvd", "shifted", "1,234", "80.0% (70.0 to 90.0)"),)


def test_without_a_score_over_all_seeds_a_lone_seed_speaks_and_several_are_told_apart():
    results = small()
    results["scores"] = [score("lora", "dvd", 0.8, 0.7, 0.9, seed=3)]
    assert tables_of(results)["scores-accuracy-0"].header[3:] == ("lora",)
    results["scores"].append(score("lora", "dvd", 0.7, 0.6, 0.8, seed=4))
    assert tables_of(results)["scores-accuracy-0"].header[3:] == ("lora, seed 3", "lora, seed 4")


def test_the_overview_puts_means_gap_and_cost_of_a_strategy_in_one_row():
    results = small()
    means = {"in_domain_mean": 0.9, "shifted_mean": 0.85, "gap": 0.05, "worst_domain": "kitchen", "direction": "books"}
    results["summary"] = [{"strategy": "tfidf", "stage": "tfidf", **means}, {"strategy": "lora", **means}]
    results["cost"] = [
        {
            "strategy": "lora",
            "trainable_parameters": 1000,
            "total_parameters": 4000,
            "train_seconds": 90.04,
            "peak_memory_bytes": None,
            "artefact_bytes": 600_000,
            "predict_examples_per_second": 1234.5,
            "tokens": 1,
            "runs": 3,
        }
    ]
    table = tables_of(results)["overview"]
    assert table.header[:5] == ("Strategy", "In-domain", "Shifted", "Gap", "Worst domain")
    assert table.rows[0] == (
        *("lora", "90.0%", "85.0%", "5.0 points", "kitchen"),
        *("1,000 (25%)", "90.0 s", "not measured", "600.0 kB", "1,234"),
    )
    assert table.rows[1] == ("tfidf", "90.0%", "85.0%", "5.0 points", "kitchen", "", "", "", "", "")


def test_with_one_domain_there_is_no_shifted_mean_rather_than_an_undefined_one():
    table = tables_of(small(domains=1))["overview"]
    assert {"Shifted", "Gap"}.isdisjoint(table.header)
    assert not any("undefined" in cell for row in table.rows for cell in row)


def test_several_directions_get_a_table_each_and_the_cost_one_of_its_own():
    tables = tables_of(small(directions=2))
    assert [name for name in tables if name.startswith("scores-accuracy")] == ["scores-accuracy-0", "scores-accuracy-1"]
    assert tables["scores-accuracy-1"].title == "Scores by domain, trained on dvd: accuracy"
    assert "Trained on" in tables["overview"].header
    assert [row[0] for row in tables["cost"].rows] == ["probe", "lora"]
    told = {row[0] for row in tables["data"].rows}
    assert {"Examples", "Source"} <= told and "Test examples also in train" not in told, "which is of the first alone"
    assert "Test examples also in train" in {row[0] for row in tables_of(small())["data"].rows}
    many = tables_of(small(directions=5, domains=5))
    assert not any(name.startswith("scores-f1_macro") for name in many)  # results.json has them


# ---- comparisons -----------------------------------------------------------------------------------------------


def test_a_comparison_tells_effect_interval_p_adjusted_p_test_and_verdict():
    results = small()
    results["comparisons"] = [comparison("control", "kitchen")]
    table = tables_of(results)["comparisons-control"]
    assert dict(zip(table.header, table.rows[0], strict=True)) == {
        "Strategy": "lora",
        "Against": "tfidf",
        "Domain": "kitchen",
        "Difference": "+7.0 points (3.0 to 10.0)",
        "p": "0.0012",
        "Adjusted p": "0.012",
        "Test": "exact McNemar",
        "Verdict": "helps",
        "Examples": "400",
    }
    for words in ("95% intervals", "hierarchical bootstrap", "10,000 resamples", "Holm"):
        assert words in table.caption


def test_each_question_is_asked_in_its_own_section():
    results = small()
    questions = ("control", "strategies", "shift", "negative_transfer", "forgetting", "something_new")
    results["comparisons"] = [comparison(question, "kitchen") for question in questions]
    found = {
        table.name.removeprefix("comparisons-"): section.name
        for section in make_sections(results)
        for table in section.tables
        if table.name.startswith("comparisons-")
    }
    assert found == {
        "control": "comparisons",
        "strategies": "comparisons",
        "shift": "comparisons",
        "something_new": "comparisons",
        "negative_transfer": "learning-curves",
        "forgetting": "forgetting",
    }


def test_many_comparisons_show_the_means_and_fold_the_single_domains():
    results = small()
    singles = [comparison("control", f"domain {number}") for number in range(20)]
    results["comparisons"] = [*singles, comparison("control", "in-domain"), comparison("control", "shifted domains")]
    tables = tables_of(results)
    means, single = tables["comparisons-control"], tables["comparisons-control-domains"]
    assert columns(means, "Domain") == [["shifted domains"], ["in-domain"]]
    assert (means.folded, single.folded, len(single.rows)) == (False, True, 20)


def test_an_undefined_comparison_says_so():
    undefined = dict.fromkeys(("difference", "low", "high", "p_value", "p_adjusted"))
    results = small()
    results["comparisons"] = [comparison("control", "dvd", **undefined, verdict="too few examples")]
    cells = columns(tables_of(results)["comparisons-control"], "Difference", "p", "Adjusted p", "Verdict")
    assert cells == [["undefined", "undefined", "undefined", "too few examples"]]


# ---- the other sections ----------------------------------------------------------------------------------------


def test_the_matrix_has_a_row_per_source_and_a_column_per_target():
    results = small()
    matrix = {"strategy": "lora", "sources": ["books", "dvd"], "targets": ["books", "dvd", "kitchen"]}
    matrix |= {"values": [[0.9, 0.8, None], [0.7, 0.85, 0.6]], "low": [[0.88, 0.7, None], [0.6, 0.8, 0.5]]}
    results["matrix"] = [matrix | {"high": [[0.92, 0.9, None], [0.8, 0.9, 0.7]]}]
    table = tables_of(results)["matrix-0"]
    assert table.header == ("Trained on", "books", "dvd", "kitchen")
    assert table.rows[0] == ("books", "90.0% (88.0 to 92.0)", "80.0% (70.0 to 90.0)", "")
    assert table.rows[1][3] == "60.0% (50.0 to 70.0)"


def test_learning_curves_of_different_sizes_share_one_table():
    results = small()
    curve = {"strategy": "full", "domain": "kitchen", "direction": "books"}
    results["learning_curves"] = [
        {**curve, "with_source": True, "sizes": [0, 16], "values": [0.7, 0.8], "low": [0.6, 0.7], "high": [0.8, 0.9]}
        | {"source_values": [0.9, 0.85]},
        {**curve, "with_source": False, "sizes": [16, 64], "values": [0.5, None], "low": None, "high": None}
        | {"source_values": None},
    ]
    tables = tables_of(results)
    assert tables["learning-curves"].header == ("Strategy", "Target", "Trained on", "0", "16")
    assert tables["learning-curves"].rows == (
        ("full", "kitchen", "source and target", "70.0% (60.0 to 80.0)", "80.0% (70.0 to 90.0)"),
        ("full", "kitchen", "target alone", "", "50.0%"),
    )
    assert tables["source-curves"].rows == (("full", "kitchen", "source and target", "90.0%", "85.0%"),)


def calibration(**changes):
    facts = {"strategy": "lora", "seed": 0, "direction": "books", "role": "shifted", "domains": ["dvd"], "count": 800}
    facts |= {"ece": 0.03, "ece_low": 0.02, "ece_high": 0.04, "brier": 0.2, "temperature": 1.4, "ece_scaled": 0.01}
    facts |= {"accuracy": 0.8, "accuracy_at_80": 0.9, "aurc": 0.05, "estimates": None}
    return {**facts, **changes}


def test_calibration_tells_error_with_interval_temperature_and_selective_accuracy():
    results = {**small(seeds=1), "calibration": [calibration()]}
    cells = columns(tables_of(results)["calibration"], "ECE", "Temperature", "ECE after scaling")
    assert cells == [["0.030 (0.020 to 0.040)", "1.400", "0.010"]]
    cells = columns(tables_of(results)["calibration"], "Accuracy", "Accuracy at 80% coverage", "Brier", "AURC")
    assert cells == [["80.0%", "90.0%", "0.200", "0.050"]]
    assert "Seed" not in tables_of(results)["calibration"].header


def test_calibration_of_many_seeds_is_averaged_and_folded_seed_by_seed():
    items = [calibration(seed=seed, ece=0.01 * (seed + 1), brier=None) for seed in range(16)]
    tables = tables_of({**small(), "calibration": items})
    assert columns(tables["calibration-means"], "ECE") == [["0.085"]]  # the mean of 0.01, 0.02, ... 0.16
    assert "Brier" not in tables["calibration-means"].header
    assert tables["calibration"].folded and len(tables["calibration"].rows) == 16


@pytest.mark.parametrize(("measured", "lies"), [(0.8, "inside"), (0.75, "below"), (0.9, "above")])
def test_label_free_estimates_are_a_range_with_a_warning(measured, lies):
    estimates = {"atc": 0.79, "average_confidence": 0.85, "difference_of_confidences": None}
    results = {**small(), "calibration": [calibration(estimates=estimates, accuracy=measured)]}
    table = tables_of(results)["estimates"]
    assert columns(table, "Estimated accuracy", "Measured lies") == [["79.0% to 85.0%", lies]]
    assert "Weak under large shift" in table.caption


def test_distances_show_p_and_drop_and_words_go_where_they_are_more_frequent():
    results = small()
    item = {"source": "books", "target": "dvd", "proxy_a": 1.9, "proxy_a_p": 0.001, "mmd": 0.05, "oov_rate": 0.05}
    words = [["knife", 0.0001, 0.005], ["plot", 0.01, 0.0]]
    results["distances"] = [{**item, "words": words, "drop": {"lora": 0.05, "full": None}}]
    table = tables_of(results)["distances"]
    cells = columns(table, "Proxy A-distance", "MMD", "Unseen words", "Drop, lora")
    assert cells == [["1.900 (p 0.001)", "0.050", "5.0%", "+5.0 points"]]
    assert "CORAL" not in table.header  # not measured
    assert tables_of(results)["words"].rows == (("books", "dvd", "knife (0.01% to 0.5%)", "plot (1% to 0%)"),)


def test_recall_and_precision_of_a_class_are_those_worked_out_by_hand():
    results = small()
    # reference a: 8 found, 2 taken for b; reference b: 1 taken for a, 4 found: precision of a is 8 of 9
    confusion = {"strategy": "lora", "direction": "books", "role": "in_domain", "names": ["a", "b"]}
    results["confusion"] = [{**confusion, "counts": [[8, 2], [1, 4]]}]
    tables = tables_of(results)
    assert tables["classes"].rows == (("lora", "a", "10", "80.0%", "88.9%"), ("lora", "b", "5", "80.0%", "66.7%"))
    assert tables["confusion-0-in_domain"].rows == (("a", "8", "2"), ("b", "1", "4"))


def test_with_many_classes_the_most_frequent_confusions_take_the_place_of_the_matrix():
    results = small()
    names = [f"c{number}" for number in range(20)]
    counts = [[0] * 20 for _ in names]
    counts[3][7], counts[7][3], counts[1][1] = 5, 9, 100
    item = {"strategy": "lora", "direction": "books", "names": names, "counts": counts}
    results["confusion"] = [{**item, "role": "in_domain"}, {**item, "role": "shifted"}]
    tables = tables_of(results)
    assert tables["confusions-0"].rows == (("c7", "c3", "9", "9"), ("c3", "c7", "5", "5"))
    assert not any(name.startswith("confusion-") for name in tables)
    assert columns(tables["classes"], "Class", "Recall, in-domain")[:2] == [["c0", "undefined"], ["c1", "100.0%"]]


def test_failed_and_missing_runs_are_listed_with_their_errors_and_finished_ones_counted():
    results = small()
    results["runs"][0].update(status="failed", error="the loss is not finite at step 12", step=12)
    section = sections_of(results)["runs"]
    assert section.paragraphs[0].startswith("3 of 4 runs finished.")
    assert columns(section.tables[0], "Run", "Status", "Error") == [
        ["probe-s0", "failed", "the loss is not finite at step 12"]
    ]
    assert "runs" not in sections_of(small())


def test_warnings_name_unfinished_runs_once_and_oracle_rules():
    results = {**small(), "warnings": []}
    assert make_warnings(results) == []
    results["runs"][0]["status"] = "missing"
    assert make_warnings(results) == ["Not every run finished (1 missing, of 4): the numbers are those of the others."]
    results["warnings"] = ["1 runs are missing: probe-s0."]
    assert make_warnings(results) == results["warnings"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("in_domain_validation", "validation split of the train domains"),
        ("last", "without looking at any score"),
        ("last, in_domain_validation", "score; the step with the best score"),
        ("target_validation", "by the rule target_validation"),
    ],
)
def test_the_selection_rule_is_told_in_words_and_an_oracle_is_called_one(rule, words):
    results = {**small(), "selection": {"rule": rule, "metric": "accuracy"}}
    facts = dict(tables_of(results)["selection"].rows)
    assert words in facts["Kept of each run"]
    oracle = rule == "target_validation"
    assert facts["Labels of the target"].startswith("Oracle") is oracle
    assert any("oracle rule" in warning for warning in make_warnings(results)) is oracle


def test_undefined_and_hostile_comparisons_make_tables_of_even_rows_with_unique_names():
    for results in (small(undefined=True), example_results(hostile=True, seeds=1), small(directions=3, classes=12)):
        tables = [table for section in make_sections(results) for table in section.tables]
        assert len({table.name for table in tables}) == len(tables) > 8
        for table in tables:
            assert {len(row) for row in table.rows} == {len(table.header)} == {len(table.alignment)}
            assert not any(cell in ("None", "nan") for row in table.rows for cell in row)


def test_numbers_have_units_that_suit_their_size():
    assert [format_seconds(seconds) for seconds in (3.14, 180, 7200, None)] == [
        "3.1 s",
        "3.0 min",
        "2.0 h",
        "not measured",
    ]
    assert [format_bytes(count) for count in (4096, 9.1e7, 1.21e9, None)] == [
        "4.1 kB",
        "91.0 MB",
        "1.21 GB",
        "not measured",
    ]
    assert [format_rate(rate) for rate in (0.618, 1240.4, None)] == ["0.62", "1,240", "not measured"]
    assert [format_p(p_value) for p_value in (0.0123, 1e-6, 1.0, None)] == ["0.012", "1e-06", "1", "undefined"]
    assert format_effect("accuracy", -0.07, -0.1, -0.03) == "-7.0 points (-10.0 to -3.0)"
    assert format_effect("log_loss", 0.07) == "+0.070"
    assert format_effect("accuracy", None) == "undefined"


# ---- Markdown --------------------------------------------------------------------------------------------------


def rendered_tables(markdown):
    """Tables of a rendered page, as rows of the text that a reader sees."""
    tables = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level >= 4:
            tables[-1][-1].append("".join(child.content for child in token.children))
    return tables


@pytest.mark.parametrize("hostile", [False, True])
def test_markdown_holds_the_same_tables_cell_by_cell(hostile):
    results = small(hostile=hostile, domains=7, undefined=True)
    expected = [
        [list(table.header), *(list(row) for row in table.rows)]
        for section in make_sections(results)
        for table in section.tables
    ]
    assert rendered_tables(comparison_to_markdown(results)) == expected


def test_markdown_opens_with_answer_and_warnings_and_ends_with_the_settings():
    results = {**small(), "warnings": ["Only 24 examples."]}
    text = comparison_to_markdown(results)
    places = [text.index(part) for part in (*results["answer"], "**Warnings**", "- Only 24 examples.", "## Scores")]
    assert places == sorted(places)
    fence = next(token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence")
    assert yaml.safe_load(fence.content) == results["config"] == yaml.safe_load(config_yaml(results))


def test_hostile_text_in_markdown_shows_as_itself_and_nothing_else():
    results = small()
    results["answer"], results["warnings"], results["notes"] = [HOSTILE], [HOSTILE], [f"{HOSTILE}\n\n# heading"]
    results["name"] = HOSTILE
    for item in results["scores"]:
        item["domain"] = HOSTILE
    tokens = MarkdownIt("commonmark").enable("table").parse(comparison_to_markdown(results))
    inline = {child.type for token in tokens for child in token.children or ()}
    assert inline <= {"text", "softbreak", "text_special", "strong_open", "strong_close"}  # strong: our own heading
    assert all("script" not in token.content for token in tokens if token.type == "html_block")
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1


# ---- the console -----------------------------------------------------------------------------------------------


def printed(results, width, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    print_comparison(results, console, output_dir="runs/compare")
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(
    "changes", [{}, {"hostile": True, "domains": 7}, {"undefined": True}, {"domains": 1, "seeds": 1}]
)
def test_the_console_tells_answer_verdicts_and_report_within_its_width(width, changes):
    results = small(**changes)
    text = printed(results, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert " ".join(results["answer"][0].split()) in " ".join(text.split())
    assert "runs/compare/report.html" in text
    if "domains" not in changes:
        assert "Verdict" in text and "shifted domains" in text


def test_a_narrow_console_names_the_columns_that_it_leaves_out():
    narrow, wide = (" ".join(printed(small(), width).split()) for width in (80, 160))
    assert "Peak memory, Artefact, Examples/s: see the report" in narrow
    assert "Not shown" not in wide and "Peak memory" in wide


def test_a_comparison_keeps_its_verdict_on_a_console_too_narrow_for_it():
    lines = printed(small(strategies=("freeze",)), 70).splitlines()
    assert max(cell_len(line) for line in lines) <= 70
    heading = next(line for line in lines if "Against  " in line)
    assert "Difference" in heading and "Verdict" in heading


def test_a_console_without_unicode_gets_plain_characters():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    results = {**small(), "answer": ["書籍 helps [bold]a lot[/]."]}
    print_comparison(results, Console(width=80, file=file), output_dir="runs/compare")
    file.flush()
    assert b"\\u66f8\\u7c4d helps [bold]a lot[/]." in file.buffer.getvalue()
