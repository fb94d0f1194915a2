"""The plan of a comparison: what stands side by side has the same budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_runs import run_results
from toy import sentence_pairs, write_reviews

import hf_transfer as ht
from hf_transfer.adapt.base import Stage
from hf_transfer.compare_runs import OUTPUTS, Texts, _as_comparison, _finished, plan_runs
from hf_transfer.config import (
    AdaptConfig,
    CompareConfig,
    DataConfig,
    ModelConfig,
    PublishConfig,
    RunConfig,
    TrainConfig,
    to_yaml,
)
from hf_transfer.errors import InputError
from hf_transfer.folder import check_place
from hf_transfer.schedule import plan_stages


@pytest.fixture
def pairs(tmp_path):
    """24 pairs to learn from and as many of another domain, and 40 of general text."""
    rows = [pair.split("\t") for pair in sentence_pairs(16)]
    half = len(rows) // 2
    lines = []
    for domain, part in (("source", rows[:half]), ("target", rows[half:])):
        for place, (source, target) in enumerate(part):
            split = "test" if place < 4 else "validation" if place < 8 else "train"
            lines.append({"source": source, "target": target, "domain": domain, "split": split})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    general = [f"the street number {i} is wet\tdie Straße Nummer {i} ist nass" for i in range(40)]
    (tmp_path / "streets.tsv").write_text("source\ttarget\n" + "\n".join(general) + "\n", encoding="utf-8")
    data = DataConfig(
        source=str(tmp_path / "pairs.jsonl"),
        general_source=str(tmp_path / "streets.tsv"),
        source_lang="en",
        target_lang="de",
        train_domains=("source",),
        target_domains=("target",),
        target_examples=(0, 4),
    )
    return CompareConfig(
        task="translation",
        data=data,
        model=ModelConfig(checkpoint="Helsinki-NLP/opus-mt-en-de"),
        strategies=("full", "mixed", "interpolated"),
        controls=("scratch",),
        seeds=(0,),
        train=TrainConfig(window_size=4),
        output_dir=str(tmp_path / "out"),
    )


def steps_of(config):
    """Steps that are asked for beside target examples, by strategy, with the source and without."""
    planned = plan_runs(config, Texts())
    assert all(run.config.train.max_steps is None for run in planned if not run.setting.target_examples)
    steps = {}
    for run in planned:
        if run.setting.target_examples:
            steps.setdefault(run.strategy, {})[run.setting.with_source] = run.config.train.max_steps
    assert all(with_source[True] == with_source[False] for with_source in steps.values())
    return {name: with_source[True] for name, with_source in steps.items()}


def windows(config, general=0.0):
    """Windows of a pass over the source, four target examples and as many general ones beside each."""
    base = replace(config.data, target_examples=(), target_domains=())
    splits = Texts().of(replace(config, data=base)).splits
    own = len(splits.train) + 4
    return -(-(own + min(round(own * general), len(splits.general))) // config.train.window_size)


def test_beside_target_examples_there_are_as_many_steps_with_the_source_as_without(pairs):
    one = 3 * windows(pairs)
    assert steps_of(pairs) == {"full": one, "interpolated": one, "mixed": 3 * windows(pairs, 1.0), "scratch": one}


def test_general_text_that_is_mixed_in_is_part_of_the_budget(pairs):
    pairs = replace(pairs, data=replace(pairs.data, general_share=0.25))
    mixed = 3 * windows(pairs, 1 / 3)
    one = 3 * windows(pairs)
    assert steps_of(pairs) == {"full": one, "interpolated": mixed, "mixed": mixed, "scratch": one}


def test_random_weights_have_their_own_number_of_passes(pairs):
    random = replace(pairs, model=ModelConfig(checkpoint="scratch:marian-tiny"), controls=(), strategies=("full",))
    assert steps_of(random) == {"full": 40 * windows(random)}
    random = replace(random, train=replace(random.train, epochs=1.5))
    assert steps_of(random) == {"full": -(-3 * windows(random) // 2)}


def test_general_text_is_no_target_to_learn_from(pairs):
    planned = plan_runs(replace(pairs, data=replace(pairs.data, target_domains=())), Texts())
    assert {run.setting.target_domain for run in planned} == {None, "target"}
    with pytest.raises(InputError, match="names streets, which is no shifted test domain; there are target"):
        plan_runs(replace(pairs, data=replace(pairs.data, target_domains=("streets",))), Texts())


def test_the_stage_of_the_head_is_part_of_the_budget(tmp_path):
    config = CompareConfig(
        data=DataConfig(source=str(write_reviews(tmp_path)), train_domains=("books",), target_examples=(0, 4)),
        adapt=AdaptConfig(head_first=True),
        strategies=("probe", "full"),
        controls=(),
        seeds=(0,),
        output_dir=str(tmp_path / "out"),
    )
    assert len(set(steps_of(config).values())) == 1
    stages = (Stage("head", (), 1.0, own_schedule=True), Stage("rest", ()))
    taken = {
        run.name: sum(plan.steps for plan in plan_stages(stages[run.strategy == "probe" :], 20, run.config.train))
        for run in plan_runs(config, Texts())
        if run.setting.target_examples
    }
    assert set(taken.values()) == set(steps_of(config).values())


# ---- its folder ------------------------------------------------------------------------------------------------


def one_probe(tmp_path, **fields):
    """A comparison of a single strategy."""
    plain = {"strategies": ("probe",), "controls": (), "seeds": (0,), "output_dir": str(tmp_path / "out")}
    if "data" not in fields:
        plain["data"] = DataConfig(source=str(write_reviews(tmp_path, count=12)), train_domains=("books",))
    return CompareConfig(**(plain | fields))


@pytest.mark.parametrize(
    "left",
    [
        {"results.json": "theirs", "config.yaml": to_yaml(RunConfig())},
        {"report.md": "mine"},
        {"figures/garden.svg": "mine", "config.yaml": "plants: 3\n"},
    ],
    ids=["a single run", "a report", "other figures"],
)
def test_what_no_comparison_has_left_there_is_not_replaced_unasked(tmp_path, left):
    config = one_probe(tmp_path)
    out = Path(config.output_dir)
    for name, text in left.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"which no comparison has left there .* or pass --overwrite"):
        ht.compare(config)
    found = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == left
    check_place(replace(config, overwrite=True), OUTPUTS, "comparison")
    (out / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    check_place(config, OUTPUTS, "comparison")


def test_a_comparison_that_is_made_of_a_run_has_the_place_of_comparisons_unless_one_is_given():
    def place(**fields):
        return _as_comparison(RunConfig(**fields), None, None, None).output_dir

    assert place() == place(task="translation") == "runs/compare"
    assert place(task="translation", output_dir="runs/translation") == "runs/compare"
    assert place(output_dir="mine") == place(task="translation", output_dir="mine") == "mine"


def test_runs_on_all_of_many_domains_but_one_have_folders_of_their_own(tmp_path):
    source = write_reviews(tmp_path, tuple(f"domain{number:02}" for number in range(16)), count=3)
    config = one_probe(tmp_path, data=DataConfig(source=str(source)), leave_one_out=True)
    names = [run.name for run in plan_runs(config, Texts())]
    assert len(set(names)) == len(names) == 16
    assert max(map(len, names)) < 100, "of 255 that a file system takes"


# ---- runs that are finished ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "also", "export", "keep_models", "says"),
    [
        ("full", [], (), "first_seed", ""),
        ("none", [], (), "none", ""),
        ("none", [], (), "first_seed", "its model was not kept"),
        ("none", [], ("onnx",), "first_seed", "its model was not kept"),
        ("full", [], ("onnx",), "first_seed", "no onnx form of it"),
        ("full", ["onnx"], ("onnx",), "first_seed", ""),
    ],
)
def test_a_finished_run_is_taken_over_where_it_left_what_is_planned(tmp_path, kind, also, export, keep_models, says):
    config = one_probe(tmp_path, publish=PublishConfig(export=export), keep_models=keep_models)
    texts = Texts()
    (run,) = plan = plan_runs(config, texts)
    folder = Path(run.config.output_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(run.config), encoding="utf-8")
    results = run_results("probe", 0, {"books": 0.9}, count=10, artefact={"kind": kind, "also": also})
    results["data"]["fingerprint"] = texts.of(run.config).table.fingerprint
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if not says:
        assert _finished(plan, Path(config.output_dir), texts, False) == {run.name}
    else:
        with pytest.raises(InputError, match=rf"probe-s0 holds a run with other settings \({says}\): choose another"):
            _finished(plan, Path(config.output_dir), texts, False)


def test_target_examples_alone_are_numbers_where_the_source_has_fractions(tmp_path):
    values = {"books": (1.5, 2.25, 3.0), "apps": (1.0, 2.0, 3.0)}
    rows = [
        {
            "text": f"{domain} {i}",
            "label": values[domain][i % 3],
            "domain": domain,
            "split": "test" if i < 6 else "train",
        }
        for domain in values
        for i in range(24)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataConfig(source=str(source), train_domains=("books",), target_examples=(4,))
    plan = plan_runs(one_probe(tmp_path, data=data), Texts())
    targeted = [run for run in plan if run.setting.target_examples]
    alone, beside = sorted(targeted, key=lambda run: run.setting.with_source)
    assert alone.config.data.problem == "regression"
    problems = [Texts().of(run.config).labels.problem for run in (alone, beside)]
    assert problems == ["regression", "regression"]
