"""A comparison of translations with a tiny model of random weights: which runs are made, and what is said of them."""

import dataclasses
import gc
import itertools
import json
import shutil
import weakref
from pathlib import Path

import pytest
from tiny_translation import PAIRS, make_translation_checkpoint

import hf_transfer as ht
from hf_transfer import compare_runs, domain_distances, launch, page, train, vocabulary
from hf_transfer.config import RATES, TRAINED_ALIKE
from hf_transfer.preparing import prepare
from hf_transfer.report import read_results

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two domains of 40 pairs each; the second one is also a target of which 8 pairs may be learnt from."""
    folder = tmp_path_factory.mktemp("compare")
    rows = []
    for domain, pairs in (("even", PAIRS[0:80:2]), ("odd", PAIRS[1:80:2])):
        for place, (source, target) in enumerate(pairs):
            split = "test" if place < 12 else "validation" if place < 16 else "train"
            rows.append({"translation": {"en": source, "de": target}, "domain": domain, "split": split})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ht.CompareConfig(
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


@pytest.fixture(scope="module")
def finished(config):
    return ht.compare(config)


@pytest.fixture
def small(config, tmp_path):
    """One seed, nothing learnt from the target."""
    data = dataclasses.replace(config.data, target_examples=())
    return dataclasses.replace(config, data=data, controls=(), seeds=(0,), output_dir=str(tmp_path / "out"))


@pytest.fixture
def steps(monkeypatch):
    """The steps of optimizers that are taken while a test runs."""
    taken = []
    plain = train.learn_window
    monkeypatch.setattr(train, "learn_window", lambda *given, **named: (taken.append(1), plain(*given, **named))[1])
    return taken


def runs_of(config):
    return Path(config.output_dir) / "runs"


def results_of(folder, name):
    return read_results(folder / "runs" / name)


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
    plan = compare_runs.plan_runs(config, compare_runs.Texts())
    planned = {run.strategy: run.config.data.general_share for run in plan}
    assert planned == {"before": None, "full": None, "lora": None, "mixed": 0.3, "interpolated": 0.3}
    alike = compare_runs._trained_alike(plan)
    assert alike.pop("mixed-s0") == alike.pop("interpolated-s0") == ["mixed-s0", "interpolated-s0"]
    assert all(names == [name] for name, names in alike.items()), "the others learn from other text, or otherwise"
    slower = dataclasses.replace(config, learning_rates=("mixed=1e-4",))
    apart = compare_runs._trained_alike(compare_runs.plan_runs(slower, compare_runs.Texts()))
    assert all(names == [name] for name, names in apart.items()), "and at another rate nothing is alike"


def test_runs_that_train_alike_are_made_one_after_the_other(config):
    plan = compare_runs.plan_runs(config, compare_runs.Texts())
    made = compare_runs._in_turn(plan, compare_runs._trained_alike(plan))
    assert sorted(run.name for run in made) == sorted(run.name for run in plan)
    for first, second in itertools.pairwise(made):
        if second.strategy == "interpolated":
            assert first.name == second.name.replace("interpolated", "full"), "whose checkpoint would stay until then"


def test_models_of_random_weights_whose_vocabulary_is_learnt_too_are_compared(small, monkeypatch):
    monkeypatch.setattr(domain_distances, "FEWEST_TEXTS", 5)  # so that how far domains lie apart is measured too
    model = ht.ModelConfig(checkpoint="scratch:marian-tiny", vocabulary_size=60)
    settings = dataclasses.replace(small, model=model, strategies=("freeze", "full"), controls=("before",))
    results = ht.compare(settings).results
    assert [(run["strategy"], run["status"]) for run in results["runs"]] == [
        ("freeze", "finished"),
        ("full", "finished"),
    ]
    assert "control before does not apply" in " ".join(results["notes"])
    assert [(item["source"], item["target"]) for item in results["distances"]] == [("even", "odd")]


def test_each_seed_reads_text_with_the_vocabulary_that_it_has_learnt(small, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "MOST_SENTENCES", 24)  # of which each seed draws others
    model = ht.ModelConfig(checkpoint="scratch:marian-tiny", vocabulary_size=60)
    text, pieces = compare_runs.Texts().of(small), []
    for seed in (0, 1):
        output_dir = str(tmp_path / str(seed))
        prepared = prepare(dataclasses.replace(small, model=model, seed=seed, output_dir=output_dir), text)
        tokenizer = prepared.pretrained.tokenizer
        pieces.append(tokenizer.get_vocab())
        assert prepared.encoded.train["input_ids"][:] == tokenizer(text.splits.train["source"][:])["input_ids"]
    assert len(pieces[0]) == len(pieces[1]) and pieces[0] != pieces[1]


def test_a_run_begins_with_the_models_of_earlier_ones_gone(small, monkeypatch):
    train_settings = dataclasses.replace(small.train, precision="bf16")
    settings = dataclasses.replace(small, controls=("scratch",), strategies=("full", "lora"), train=train_settings)
    plain, models, living = page.prepare, [], []

    def prepared(*given):
        living.append(sum(model() is not None for model in models))
        found = plain(*given)
        models.append(weakref.ref(found.pretrained.model))
        return found

    monkeypatch.setattr(page, "prepare", prepared)
    monkeypatch.setattr(launch, "cpu_has_bf16", lambda: True)  # any CPU computes in it, if slowly
    gc.disable()  # else they may go by chance
    try:
        ht.compare(settings)
    finally:
        gc.enable()
    assert living == [0, 0, 0]


# strategies that train alike


def test_strategies_that_train_alike_have_one_rate_where_none_is_given():
    assert len({RATES["translation"][name] for name in TRAINED_ALIKE}) == 1


def test_what_trains_alike_trains_once_for_each_seed_and_number_of_target_pairs(finished):
    runs = {path.name: read_results(path) for path in (finished.output_dir / "runs").iterdir()}
    takes = "interpolated trains as full does and took its training over"
    takers = [name for name, results in runs.items() if takes in " ".join(results["notes"])]
    assert " ".join(finished.results["notes"]).count(takes) == 1
    assert sorted(takers) == sorted(name for name in runs if name.startswith("interpolated"))
    for name in takers:
        donor = name.replace("interpolated", "full")
        logs = [(finished.output_dir / "runs" / each / "log.jsonl").read_text("utf-8") for each in (name, donor)]
        assert logs[0] == logs[1] != ""
        for about in ("steps", "train_seconds", "tokens", "tokens_per_micro_batch"):
            assert runs[name]["timing"][about] == runs[donor]["timing"][about] > 0, about
        assert runs[name]["training"] == runs[donor]["training"]
    assert not list(finished.output_dir.glob("runs/*/checkpoints"))


@pytest.mark.parametrize("order", [("full", "interpolated"), ("interpolated", "full")])
def test_a_run_whose_training_was_taken_over_is_the_run_by_itself(small, tmp_path, steps, order):
    together = ht.compare(dataclasses.replace(small, strategies=order)).output_dir
    assert len(steps) == 4
    for name in order:
        alone = ht.compare(dataclasses.replace(small, strategies=(name,), output_dir=str(tmp_path / name))).output_dir
        found, expected = (results_of(folder, f"{name}-s0") for folder in (together, alone))
        for about in ("scores", "examples", "translation", "selection", "strategy", "artefact"):
            assert found[about] == expected[about], (name, about)
        for said in sorted((alone / "runs" / f"{name}-s0" / "translations").iterdir()):
            twin = together / "runs" / f"{name}-s0" / "translations" / said.name
            assert said.read_bytes() == twin.read_bytes()
    assert len(steps) == 12


@pytest.mark.parametrize(("lost", "needed"), [(False, 4), (True, 8)])
def test_a_comparison_that_was_killed_between_two_that_train_alike_goes_on(small, steps, monkeypatch, lost, needed):
    pair, plain = dataclasses.replace(small, strategies=("full", "interpolated")), compare_runs.adapt

    def killed_at_the_second(config, *given, **named):
        if config.adapt.strategy == "interpolated":
            raise KeyboardInterrupt
        return plain(config, *given, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compare_runs, "adapt", killed_at_the_second)
        patch.setattr(train, "peak_memory_bytes", lambda accelerator: 10**15)
        ht.compare(pair)
    if lost:
        shutil.rmtree(runs_of(pair) / "full-s0" / "checkpoints")
    finished = ht.compare(pair)
    assert [run["status"] for run in finished.results["runs"]] == ["finished", "finished"]
    assert len(steps) == needed
    peak = results_of(finished.output_dir, "interpolated-s0")["timing"]["peak_memory_bytes"]
    assert (peak == 10**15) == (not lost), "the memory of the training belongs to it, whoever did it"
    assert not list(runs_of(pair).glob("*/checkpoints"))


def test_checkpoints_that_a_kill_left_behind_the_last_results_go_with_the_next_call(small, steps, monkeypatch):
    pair, plain = dataclasses.replace(small, strategies=("full", "interpolated")), compare_runs._drop_checkpoints

    def killed_behind_the_second(run, course, done):
        if run.strategy == "interpolated":
            raise KeyboardInterrupt
        plain(run, course, done)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compare_runs, "_drop_checkpoints", killed_behind_the_second)
        ht.compare(pair)
    assert [path.parent.parent.name for path in runs_of(pair).glob("*/checkpoints/step-*")] == ["full-s0"]
    assert [run["status"] for run in ht.compare(pair).results["runs"]] == ["finished", "finished"]
    assert len(steps) == 4 and not list(runs_of(pair).glob("*/checkpoints"))


@pytest.mark.parametrize("fails", [0, 1])
def test_where_one_of_two_fails_after_the_training_no_step_is_taken_twice(small, steps, monkeypatch, fails):
    pair, plain = dataclasses.replace(small, strategies=("full", "interpolated")), page.write_translations
    calls = []

    def fails_once(*given):
        calls.append(1)
        if len(calls) == fails + 1:
            raise ht.RunError("the disk is odd")
        plain(*given)

    monkeypatch.setattr(page, "write_translations", fails_once)
    assert [run["status"] for run in ht.compare(pair).results["runs"]] == ["finished", "failed"]
    assert [path.parent.parent.name for path in runs_of(pair).glob("*/checkpoints/step-*")] == ["full-s0"]
    assert [run["status"] for run in ht.compare(pair).results["runs"]] == ["finished", "finished"]
    assert len(steps) == 4
    assert not list(runs_of(pair).glob("*/checkpoints"))
