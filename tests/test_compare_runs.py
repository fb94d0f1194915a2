"""The plan of a comparison: what stands side by side has the same budget."""

import json
from dataclasses import replace

import pytest
from toy import sentence_pairs, write_reviews

from hf_transfer.adapt.base import Stage
from hf_transfer.compare_runs import Texts, plan_runs
from hf_transfer.config import AdaptConfig, CompareConfig, DataConfig, ModelConfig, TrainConfig
from hf_transfer.errors import InputError
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
