"""Predictions kept in results.json and read back, and the test texts that a report quotes."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from datasets import Dataset
from sentences import translated
from simulated_runs import classes, numbers, run_results, together

from hf_transfer.metrics import score
from hf_transfer.records import LabelSpace, Predictions, Text
from hf_transfer.report import examples, shown
from hf_transfer.report.examples import (
    describe_calibration,
    describe_examples,
    read_confidence,
    read_examples,
    relabelled,
)
from hf_transfer.report.results import plain, write_json
from hf_transfer.report.shown import surest_mistakes
from hf_transfer.significance import paired_difference
from hf_transfer.translation_scores import TRANSLATION_COLUMNS

NOTHING = together({})


def through_json(test: Predictions, names=("negative", "positive"), validation=NOTHING):
    described = describe_examples(test, validation)
    return {"labels": {"names": list(names)}, "examples": json.loads(json.dumps(plain(described), allow_nan=False))}


def several_labels(count=50):
    rng = np.random.default_rng(0)
    reference, predicted = rng.integers(0, 2, (2, count, 3)).astype(np.float32)
    domains = np.repeat(["books", "apps"], count // 2)
    return Predictions(np.arange(count).astype(str), domains, predicted, reference, rng.random((count, 3)))


def test_classes_come_back_by_domain_with_all_that_was_said():
    parts = {"dvd": classes("dvd", 30, 0.8, ("a",), 3), "books": classes("books", 20, 0.7, ("a",), 3)}
    read = read_examples(through_json(together(parts), "abc"))
    assert list(read) == ["dvd", "books"]
    for domain, part in parts.items():
        assert read[domain].example_ids.tolist() == part.example_ids.tolist()
        assert read[domain].predicted.tolist() == part.predicted.tolist()
        assert read[domain].reference.tolist() == part.reference.tolist()
        assert set(read[domain].domain_ids) == {domain}
        np.testing.assert_allclose(read[domain].probabilities, part.probabilities, rtol=1e-5)
        assert read[domain].predicted.dtype.kind == "i", "a class is no fraction"


def test_rounded_probabilities_move_a_score_by_less_than_a_millionth():
    part = classes("books", 500, 0.8, ("a",))
    rng = np.random.default_rng(0)
    sure = 1 - 10.0 ** rng.uniform(-9, -1, 500)  # very sure ones too, where digits are lost first
    columns = np.stack(
        [np.where(part.predicted == 0, sure, 1 - sure), np.where(part.predicted == 1, sure, 1 - sure)], 1
    )
    part = dataclasses.replace(part, probabilities=columns)
    read = read_examples(through_json(part))["books"]
    assert score("log_loss", read) == pytest.approx(score("log_loss", part), abs=1e-6)
    assert score("accuracy", read) == score("accuracy", part)


def test_where_probabilities_are_many_the_highest_is_kept_and_log_loss_is_undefined(monkeypatch):
    part = classes("books", 40, 0.8, ("a",))
    monkeypatch.setattr(examples, "MOST_PROBABILITIES", 79)
    results = through_json(part)
    assert set(results["examples"]["test"]["books"]) == {"ids", "reference", "predicted", "confidence"}
    read = read_examples(results)["books"]
    assert np.isnan(read.probabilities).all() and read.probabilities.shape == (40, 2)
    assert np.isnan(score("log_loss", read)) and score("accuracy", read) == pytest.approx(0.8)
    np.testing.assert_allclose(read_confidence(results, "test", "books"), part.probabilities.max(1), rtol=1e-5)
    monkeypatch.setattr(examples, "MOST_PROBABILITIES", 80)
    results = through_json(part)
    assert "probabilities" in results["examples"]["test"]["books"]
    np.testing.assert_allclose(read_confidence(results, "test", "books"), part.probabilities.max(1), rtol=1e-5)


def test_the_limit_is_on_a_split_and_not_on_a_domain(monkeypatch):
    monkeypatch.setattr(examples, "MOST_PROBABILITIES", 50)
    test = together({d: classes(d, 20, 0.8, ("a",)) for d in ("books", "apps")})
    described = describe_examples(test, classes("books", 20, 0.8, ("a",)))
    assert "confidence" in described["test"]["books"] and "probabilities" in described["validation"]["books"]


def test_several_labels_come_back_as_rows_of_0_and_1():
    whole = several_labels()
    read = read_examples(through_json(whole, "xyz"))
    both = together(read)
    assert both.predicted.tolist() == whole.predicted.astype(int).tolist()
    assert both.reference.tolist() == whole.reference.astype(int).tolist()
    assert score("f1_macro", both) == score("f1_macro", whole)


def test_numbers_come_back_in_full_and_a_value_that_is_none_makes_the_score_undefined():
    part = numbers("books", 30, 0.25, ("a",))
    results = through_json(part, ())
    assert "probabilities" not in results["examples"]["test"]["books"], "the value itself is what was predicted"
    assert read_examples(results)["books"].predicted.tolist() == part.predicted.tolist()
    part.predicted[4] = np.nan
    read = read_examples(through_json(part, ()))["books"]
    assert read.predicted.dtype == np.float64 and np.isnan(read.predicted).tolist() == [i == 4 for i in range(30)]
    assert np.isnan(score("mae", read))


def test_whole_numbers_of_a_regression_score_as_they_did():
    part = numbers("books", 30, 0.25, ("a",))
    part = dataclasses.replace(part, reference=np.round(part.reference), predicted=np.round(part.predicted))
    assert score("mae", read_examples(through_json(part, ()))["books"]) == score("mae", part)


def test_validation_is_kept_apart_and_an_empty_one_left_out():
    test, validation = classes("books", 20, 0.8, ("a",)), classes("books", 10, 0.5, ("b",))
    results = through_json(test, validation=validation)
    assert score("accuracy", read_examples(results, "validation")["books"]) == 0.5
    assert set(describe_examples(test, NOTHING)) == {"test"}
    assert read_examples(through_json(test), "validation") == {}


@pytest.mark.parametrize("column", ["ids", "reference", "predicted", "probabilities"])
def test_columns_of_different_length_are_refused(column):
    results = through_json(classes("books", 20, 0.8, ("a",)))
    results["examples"]["test"]["books"][column].pop()
    with pytest.raises(ValueError, match="columns of books differ in length"):
        read_examples(results)


def test_relabelled_predictions_mean_the_same():
    names, wanted = ["a", "b", "c"], ["c", "a", "b"]
    part = classes("books", 60, 0.7, ("a",), 3)
    turned = relabelled(part, names, wanted)
    assert [wanted[i] for i in turned.predicted] == [names[i] for i in part.predicted]
    assert [wanted[i] for i in turned.reference] == [names[i] for i in part.reference]
    for place, name in enumerate(wanted):
        assert turned.probabilities[:, place].tolist() == part.probabilities[:, names.index(name)].tolist()
    whole = several_labels()
    rows = relabelled(whole, names, wanted)
    assert rows.predicted[:, 0].tolist() == whole.predicted[:, 2].tolist()
    assert rows.reference[:, 1].tolist() == whole.reference[:, 0].tolist()


def test_calibration_needs_one_class_with_a_probability():
    part = classes("books", 120, 0.8, ("a",))
    found = describe_calibration(LabelSpace("single_label", ("n", "p")), {"in_domain": part}, part, 0.95, 0)
    assert [item["role"] for item in found] == ["in_domain"]
    for problem in ("multi_label", "regression"):
        assert describe_calibration(LabelSpace(problem), {"in_domain": part}, part, 0.95, 0) == []


# ---- translations ----------------------------------------------------------------------------------------------


def two_domains(count=40, **changes):
    """Translations of two domains, in turns."""
    part = translated(count, **changes)
    return dataclasses.replace(part, domain_ids=np.array(["emea", "koran"] * (count // 2)))


def test_statistics_of_translations_come_back_bit_for_bit_and_so_do_scores_and_paired_tests():
    mine, theirs = translated(60), translated(60, 0.1, 2)
    (mine_read,), (theirs_read,) = (read_examples(through_json(part, ())).values() for part in (mine, theirs))
    assert mine_read.probabilities.tobytes() == mine.probabilities.tobytes()
    for metric in TRANSLATION_COLUMNS:
        assert score(metric, mine_read) == score(metric, mine)
    arguments = (0.95, 200, 0)
    found = paired_difference("bleu", [mine_read], [theirs_read], *arguments)
    assert found == paired_difference("bleu", [mine], [theirs], *arguments)


def test_results_hold_no_text_of_a_translation_but_twelve_digits_of_its_reference():
    whole = two_domains()
    results = through_json(dataclasses.replace(whole, predicted=whole.reference), ())
    text = json.dumps(results, ensure_ascii=False)
    assert not any(reference in text for reference in whole.reference)
    first = results["examples"]["test"]["emea"]
    assert set(first) == {"ids", "reference", "statistics"}
    assert first["reference"][0] == hashlib.sha256(whole.reference[0].encode()).hexdigest()[:12]
    read = read_examples(results)
    assert list(read) == ["emea", "koran"] and set(read["koran"].domain_ids) == {"koran"}
    assert read["koran"].example_ids.tolist() == whole.example_ids[1::2].tolist()
    assert read["emea"].predicted.tolist() == [""] * 20
    assert read["emea"].reference.tolist() == first["reference"]


def test_a_metric_that_was_not_computed_takes_no_room_and_one_undefined_sentence_stays_undefined():
    part = translated(20)
    part = dataclasses.replace(part, probabilities=part.probabilities.copy())
    part.probabilities[:, TRANSLATION_COLUMNS["comet"]] = np.nan
    part.probabilities[3, TRANSLATION_COLUMNS["ter"]] = np.nan
    results = through_json(part, ())
    kept = results["examples"]["test"]["kitchen"]["statistics"]
    assert set(kept) == {"bleu", "chrf", "ter"}
    assert isinstance(kept["bleu"][0][0], int), "counts are whole numbers"
    (read,) = read_examples(results).values()
    assert read.probabilities.tobytes() == part.probabilities.tobytes()
    assert np.isnan(score("ter", read)) and np.isnan(score("comet", read)) and score("bleu", read) > 0


def test_seven_domains_of_five_hundred_sentences_stay_under_a_megabyte(tmp_path):
    part = translated(500)
    described = describe_examples(part, NOTHING)["test"]["kitchen"]
    write_json(tmp_path / "results.json", {"examples": {"test": {f"domain {n}": described for n in range(7)}}})
    assert (tmp_path / "results.json").stat().st_size < 1e6


@pytest.mark.parametrize("column", ["ids", "reference", "bleu"])
def test_columns_of_translations_of_different_length_are_refused(column):
    results = through_json(translated(20), ())
    columns = results["examples"]["test"]["kitchen"]
    (columns["statistics"] if column == "bleu" else columns)[column].pop()
    with pytest.raises(ValueError, match="columns of kitchen differ in length"):
        read_examples(results)


def test_translations_have_no_classes_to_reorder_and_no_calibration_and_show_no_texts():
    part = translated(20)
    assert relabelled(part, [], []) is part
    assert describe_calibration(LabelSpace("translation"), {"in_domain": part}, part, 0.95, 0) == []
    results = through_json(part, ()) | {"strategy": {"name": "full"}}
    assert surest_mistakes([results], text_for(results, problem="translation")) == []


# ---- texts that are shown --------------------------------------------------------------------------------------


def text_for(results, words="text of {}", problem="single_label", second=None):
    sides = [("text", words), *([("text_pair", second)] if second else [])]
    test = {
        domain: Dataset.from_dict(
            {
                "example_id": columns["ids"],
                **{side: [form.format(name) for name in columns["ids"]] for side, form in sides},
            }
        )
        for domain, columns in results["examples"]["test"].items()
    }

    class Splits:
        pass

    Splits.test = test
    return Text(None, Splits, LabelSpace(problem, ("negative", "positive")))


def test_the_surest_mistakes_are_shown_first_and_few_of_each_domain():
    results = run_results("lora", 0, {"books": 0.8, "apps": 0.97}, count=100)
    found = surest_mistakes([results], text_for(results))
    assert [item["domain"] for item in found] == ["books"] * shown.SHOWN_PER_DOMAIN + ["apps"] * 3
    columns = results["examples"]["test"]["books"]
    rows = range(100)
    wrong = [i for i in rows if columns["predicted"][i] != columns["reference"][i]]
    sure = {i: max(columns["probabilities"][i]) for i in wrong}
    for item, row in zip(found, sorted(sure, key=lambda i: -sure[i])[:3], strict=False):
        assert item["text"] == f"text of {columns['ids'][row]}"
        assert item["confidence"] == pytest.approx(sure[row])
        assert item["predicted"] == ("negative", "positive")[columns["predicted"][row]] != item["reference"]


def test_of_pairs_both_texts_are_shown():
    results = run_results("lora", 0, {"books": 0.8})
    (first, *_) = surest_mistakes([results], text_for(results, second="pair of {}"))
    text, pair = first["text"].split(" | ")
    assert text.removeprefix("text of ") == pair.removeprefix("pair of ") in results["examples"]["test"]["books"]["ids"]


def test_one_run_of_each_strategy_is_shown_and_no_control():
    runs = [run_results(name, seed, {"books": 0.5}) for name in ("tfidf", "lora", "full") for seed in (0, 1)]
    found = surest_mistakes(runs, text_for(runs[0]))
    assert [item["strategy"] for item in found] == ["lora"] * 3 + ["full"] * 3
    assert found[:3] == surest_mistakes(runs[2:3], text_for(runs[0])), "the first run of the strategy"


def test_long_texts_are_cut_and_a_run_without_mistakes_shows_none():
    results = run_results("lora", 0, {"books": 0.5}, count=10)
    found = surest_mistakes([results], text_for(results, "{}" + "x" * 1000))
    assert all(len(item["text"]) == shown.LONGEST_TEXT + 1 and item["text"].endswith("…") for item in found)
    perfect = run_results("lora", 0, {"books": 1.0}, count=10)
    assert surest_mistakes([perfect], text_for(perfect)) == []


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_nothing_is_shown_where_a_mistake_has_no_degree(problem):
    results = run_results("lora", 0, {"books": 0.5}, count=10)
    assert surest_mistakes([results], text_for(results, problem=problem)) == []
