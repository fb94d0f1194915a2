"""A comparison of translations with a tiny model of random weights: which runs are made, and what is said of them."""

import json

import pytest
from tiny_translation import PAIRS, make_translation_checkpoint

import hf_transfer as ht
from hf_transfer import compare_runs
from hf_transfer.report import read_results

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two domains of 40 pairs each; the second one is also a target of which 8 pairs may be learnt from."""
    folder = tmp_path_factory.mktemp("compare")
    rows = []
    for domain, pairs in (("even", PAIRS[0:80:2]), ("odd", PAIRS[1:80:2])):
        for place, (source, target) in enumerate(pairs):
            split = "test" if place < 12 else "validation" if place < 16 else "train"
            rows.append({"translation": {"en": source, "de": target}, "domain": domain, "split": split})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = ht.CompareConfig(
        task="translation",
        data=ht.DataConfig(
            source=str(folder / "pairs.jsonl"),
            source_lang="en",
            target_lang="de",
            train_domains=("even",),
            target_examples=(0, 8),
            max_length=60,
        ),
        model=ht.ModelConfig(checkpoint=str(make_translation_checkpoint("marian", folder / "marian"))),
        adapt=ht.AdaptConfig(lora_rank=2),
        train=ht.TrainConfig(max_steps=4, window_size=8),
        evaluate=ht.EvaluateConfig(beams=1, resamples=200, validation_examples=4, metrics=("bleu", "chrf")),
        strategies=("full", "lora", "interpolated"),
        controls=("before", "scratch"),
        seeds=(0, 1),
        keep_models="none",
        output_dir=str(folder / "out"),
    )
    return ht.compare(config)


def test_every_strategy_seed_and_number_of_target_pairs_is_run(finished):
    results = finished.results
    assert all(run["status"] == "finished" for run in results["runs"]), results["runs"]
    base = {(run["strategy"], run["seed"]) for run in results["runs"] if not run["target_examples"]}
    trained = {(name, seed) for name in ("full", "lora", "interpolated", "scratch") for seed in (0, 1)}
    assert base == trained | {("before", 0)}, "what has no chance in it runs once"
    with_target = {(run["strategy"], run["with_source"]) for run in results["runs"] if run["target_examples"] == 8}
    assert with_target == {(name, source) for name, _ in trained for source in (True, False)}
    assert read_results(finished.output_dir) == json.loads(json.dumps(results))


def test_what_is_gained_and_forgotten_is_the_difference_to_before(finished):
    results = finished.results
    scores = {
        (score["strategy"], score["domain"]): score["value"]
        for score in results["scores"]
        if score["metric"] == "bleu" and score["seed"] is None and not score["target_examples"]
    }
    assert [row["strategy"] for row in results["ledger"]] == ["full", "lora", "interpolated"]
    for row in results["ledger"]:
        for item, role in ((row["in_domain"], "even"), (row["shifted"], "odd")):
            expected = scores[row["strategy"], role] - scores["before", role]
            assert item["difference"] == pytest.approx(expected, abs=1e-9)
    questions = {(item["a"], item["b"], item["domain"]) for item in results["comparisons"]}
    assert {("full", "scratch", "even"), ("full", "before", "even"), ("full", "before", "odd")} <= questions


def test_curves_start_at_the_source_alone_or_at_the_checkpoint_as_it_comes(finished):
    results = finished.results
    values = {
        (score["strategy"], score["target_examples"]): score["value"]
        for score in results["scores"]
        if score["metric"] == "bleu" and score["seed"] is None and score["domain"] == "odd" and score["with_source"]
    }
    curves = {(curve["strategy"], curve["with_source"]): curve for curve in results["learning_curves"]}
    for name in ("full", "lora"):
        assert curves[name, True]["sizes"] == curves[name, False]["sizes"] == [0, 8]
        assert curves[name, True]["values"] == [values[name, 0], values[name, 8]]
        assert curves[name, False]["values"][0] == values["before", 0]


def test_reports_hold_the_ledger_and_no_sentence_of_the_data(finished):
    folder = finished.output_dir
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "Gained and forgotten" in page and "Gained and forgotten" in markdown
    assert {"ledger.svg", "trade_off.svg", "learning_curves.svg"} <= {
        path.name for path in (folder / "figures").iterdir()
    }
    for text in (page, markdown, (folder / "results.json").read_text(encoding="utf-8")):
        assert not any(sentence in text for pair in PAIRS for sentence in pair)


def test_a_share_of_general_text_is_learnt_from_by_mixed_and_interpolated_alone(tmp_path):
    rows = "".join(f"{source}\t{target}\n" for source, target in PAIRS[:24])
    (tmp_path / "general.tsv").write_text("source\ttarget\n" + rows, encoding="utf-8")
    config = ht.CompareConfig(
        task="translation",
        data=ht.DataConfig(
            source="bundled:phrases", source_lang="en", target_lang="de",
            general_source=str(tmp_path / "general.tsv"), general_share=0.3,
        ),
        model=ht.ModelConfig(checkpoint="org/model"),
        strategies=("full", "lora", "mixed", "interpolated"),
        controls=("before",),
        seeds=(0,),
    )  # fmt: skip
    planned = {
        run.strategy: run.config.data.general_share for run in compare_runs.plan_runs(config, compare_runs.Texts())
    }
    assert planned == {"before": None, "full": None, "lora": None, "mixed": 0.3, "interpolated": 0.3}
