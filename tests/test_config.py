"""Configuration: what each field says, which values cannot work and in which words, and what follows from what."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from hf_transfer import config as config_module
from hf_transfer.config import (
    AdaptConfig,
    BudgetConfig,
    CompareConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PublishConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
    check_config,
    defaults_of,
    freeze_problems,
    from_flat,
)
from hf_transfer.errors import InputError
from hf_transfer.fields import flatten

NAMES = tuple(flatten(RunConfig()))


def sentences() -> dict[str, str]:
    """Class.field -> the string under it, read from the source."""
    tree = ast.parse(Path(config_module.__file__).read_text(encoding="utf-8"))
    found = {}
    for record in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for line, following in zip(record.body, [*record.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign):
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                found[f"{record.name}.{line.target.id}"] = following.value.value if is_text else ""
    return found


# --- what a field says ---


def test_every_field_has_a_sentence_below_it():
    found = sentences()
    assert len(found) >= len(NAMES)
    assert [name for name, text in found.items() if not (text[:1].strip() and text.endswith("."))] == []


# --- values that cannot work ---

INF, NAN = float("inf"), float("nan")
IMPOSSIBLE = [
    ("data", {"validation_fraction": 0.0}, "--data.validation_fraction must lie between 0 and 1, found 0.0"),
    ("data", {"test_fraction": NAN}, "--data.test_fraction must lie between 0 and 1, found nan"),
    ("data", {"test_fraction": 0.5, "validation_fraction": 0.5}, "leave nothing to train on"),
    ("data", {"near_duplicate_threshold": 0.0}, "--data.near_duplicate_threshold must lie in (0, 1], found 0.0"),
    ("data", {"max_length": 7}, "--data.max_length must be 8 or more, found 7"),
    ("data", {"max_train_examples": 0}, "--data.max_train_examples must be 1 or more, found 0"),
    ("data", {"train_domains": ("a", "b", "a")}, "--data.train_domains names a more than once"),
    ("data", {"label_names": ("x", "x")}, "--data.label_names names x more than once"),
    ("data", {"label_separator": ""}, "--data.label_separator is empty"),
    ("data", {"target_examples": (-1,)}, "--data.target_examples must be 0 or more, found -1"),
    (
        "data",
        {"target_domains": ("a",)},
        "--data.target_domains does nothing without --data.target_examples: give both",
    ),
    (
        "data",
        {"with_source": False},
        "--data.with_source false leaves nothing to train on: give --data.target_examples",
    ),
    ("data", {"with_source": False, "target_examples": (0,)}, "--data.with_source false leaves nothing to train on"),
    (
        "data",
        {"target_examples": (16,), "target_domains": ("a", "b", "b")},
        "--data.target_domains names b more than once: name each once.",
    ),
    ("data", {"target_examples": (0, 16)}, "--data.target_examples 0,16: a run takes one number; hf-transfer compare"),
    ("data", {"source": ""}, "--data.source is empty"),
    ("model", {"checkpoint": ""}, "--model.checkpoint is empty"),
    ("model", {"dropout": 1.0}, "--model.dropout must lie in [0, 1), found 1.0"),
    ("adapt", {"lora_rank": 0}, "--adapt.lora_rank must be 1 or more, found 0"),
    ("adapt", {"lora_alpha": 0.0}, "--adapt.lora_alpha must be over 0, found 0.0"),
    ("adapt", {"lora_alpha": INF}, "--adapt.lora_alpha must be over 0, found inf"),
    ("adapt", {"lora_dropout": -0.1}, "--adapt.lora_dropout must lie in [0, 1), found -0.1"),
    ("adapt", {"lora_init": "loftq"}, "--adapt.lora_init loftq is not known"),
    ("adapt", {"strategy": "probe", "head_first": True}, "--adapt.head_first does nothing with --adapt.strategy probe"),
    ("adapt", {"head_first": True, "head_first_epochs": 0.0}, "--adapt.head_first_epochs must be over 0, found 0.0"),
    ("adapt", {"gradual_unfreezing": True}, "--adapt.gradual_unfreezing goes with --adapt.strategy freeze, found full"),
    ("adapt", {"freeze": "half"}, "--adapt.freeze half is not understood"),
    ("train", {"epochs": 0.0}, "--train.epochs must be over 0 and finite, found 0.0"),
    ("train", {"epochs": INF}, "--train.epochs must be over 0 and finite, found inf"),
    ("train", {"epochs": NAN}, "--train.epochs must be over 0 and finite, found nan"),
    ("train", {"max_steps": 0}, "--train.max_steps must be 1 or more, found 0"),
    ("train", {"max_seconds": 0.0}, "--train.max_seconds must be over 0 and finite, found 0.0: try 60."),
    ("train", {"max_seconds": INF}, "--train.max_seconds must be over 0 and finite, found inf: try 60."),
    ("train", {"max_seconds": NAN}, "--train.max_seconds must be over 0 and finite, found nan: try 60."),
    ("train", {"window_size": 0}, "--train.window_size must be 1 or more, found 0"),
    ("train", {"tokens_per_micro_batch": 0}, "--train.tokens_per_micro_batch must be 1 or more, found 0"),
    ("train", {"learning_rate": 2.0}, "--train.learning_rate must lie between 0 and 1, found 2.0"),
    ("train", {"head_learning_rate": 0.0}, "--train.head_learning_rate must lie between 0 and 1, found 0.0"),
    ("train", {"layer_decay": 1.1}, "--train.layer_decay must lie in (0, 1], found 1.1"),
    ("train", {"warmup_fraction": 1.0}, "--train.warmup_fraction must lie in [0, 1), found 1.0"),
    ("train", {"weight_decay": -0.1}, "--train.weight_decay must be 0 or more, found -0.1"),
    ("train", {"weight_decay": NAN}, "--train.weight_decay must be 0 or more, found nan"),
    ("train", {"adam_beta1": 1.0}, "--train.adam_beta1 must lie in [0, 1), found 1.0"),
    ("train", {"adam_beta2": -0.1}, "--train.adam_beta2 must lie in [0, 1), found -0.1"),
    ("train", {"adam_epsilon": 0.0}, "--train.adam_epsilon must lie between 0 and 1, found 0.0"),
    ("train", {"max_gradient_norm": -1.0}, "--train.max_gradient_norm must be 0 or more, found -1.0"),
    ("train", {"label_smoothing": 1.0}, "--train.label_smoothing must lie in [0, 1), found 1.0"),
    ("train", {"validation_steps": -1}, "--train.validation_steps must be 0 or more, found -1"),
    ("train", {"patience": -1}, "--train.patience must be 0 or more, found -1"),
    ("train", {"checkpoint_steps": -1}, "--train.checkpoint_steps must be 0 or more, found -1"),
    ("train", {"keep_checkpoints": 0}, "--train.keep_checkpoints must be 1 or more, found 0"),
    ("evaluate", {"confidence": 95.0}, "--evaluate.confidence must lie between 0 and 1, found 95.0"),
    ("evaluate", {"resamples": 99}, "--evaluate.resamples must be 100 or more, found 99"),
    ("evaluate", {"tokens_per_batch": 0}, "--evaluate.tokens_per_batch must be 1 or more, found 0"),
    (
        "evaluate",
        {"controls": ("tfidff", "majority")},
        "--evaluate.controls names 'tfidff', which is not known in classification. "
        "Did you mean tfidf? There are before, scratch, tfidf, "
        "majority.",
    ),
    ("evaluate", {"controls": ("tfidf", "tfidf")}, "--evaluate.controls names tfidf more than once: name each once."),
    (
        "publish",
        {"export": ("onx",)},
        "--publish.export names 'onx', which is no known export. Did you mean onnx? There",
    ),
    ("publish", {"export": ("onnx", "onnx")}, "--publish.export names onnx more than once"),
    ("publish", {"export": ("merged",)}, "--publish.export merged needs --adapt.strategy lora, found full"),
    ("", {"output_dir": ""}, "--output_dir is empty"),
    ("", {"seed": -1}, "--seed must lie between 0 and 2**32 - 1, found -1"),
    ("", {"seed": 2**32}, "--seed must lie between 0 and 2**32 - 1, found 4294967296"),
]


# the same for a comparison
IMPOSSIBLE_TO_COMPARE = [
    (
        "",
        {"strategies": ("lora", "ful")},
        "--strategies names 'ful', which is not known in classification. Did you mean full? There are",
    ),
    ("", {"strategies": ("lora", "lora")}, "--strategies names lora more than once: name each once."),
    (
        "",
        {"controls": ("quux",)},
        "--controls names 'quux', which is not known in classification. There are before, scratch, tfidf,",
    ),
    ("", {"controls": ("tfidf", "tfidf")}, "--controls names tfidf more than once: name each once."),
    (
        "",
        {"strategies": (), "controls": ()},
        "--strategies and --controls are both empty: name at least one of them.",
    ),
    ("", {"seeds": ()}, "--seeds is empty: name at least one, as in 0,1,2."),
    ("", {"seeds": (0, 3, 3)}, "--seeds names 3 more than once: name each once."),
    ("", {"seeds": (0, -1)}, "--seeds must lie between 0 and 2**32 - 1, found -1: try 0,1,2."),
    ("", {"seeds": (2**32,)}, "--seeds must lie between 0 and 2**32 - 1, found 4294967296: try 0,1,2."),
    ("", {"matrix": True, "leave_one_out": True}, "--matrix and --leave_one_out choose the train domains in two ways"),
    ("", {"learning_rates": ("full",)}, "--learning_rates 'full' must be STRATEGY=RATE with one of probe, freeze,"),
    (
        "",
        {"learning_rates": ("tfidf=1",)},
        "--learning_rates 'tfidf=1' must be STRATEGY=RATE with one of probe, freeze",
    ),
    ("", {"learning_rates": ("full=1e-4", "lora=high")}, "--learning_rates 'lora=high': the rate must lie between 0"),
    (
        "",
        {"learning_rates": ("full=2",)},
        "--learning_rates 'full=2': the rate must lie between 0 and 1, as in full=1e",
    ),
    ("", {"learning_rates": ("full=nan",)}, "--learning_rates 'full=nan': the rate must lie between 0 and 1"),
    ("budget", {"examples": 0}, "--budget.examples must be 1 or more, found 0"),
    ("budget", {"seconds": 0.0}, "--budget.seconds must be over 0 and finite, found 0.0: try 60."),
    ("budget", {"seconds": NAN}, "--budget.seconds must be over 0 and finite, found nan: try 60."),
    ("evaluate", {"controls": ("tfidf",)}, "--evaluate.controls is for a single run: a comparison takes --controls."),
    ("train", {"resume": "auto"}, "--train.resume is for a single run: a comparison continues where it stopped by"),
    ("data", {"target_examples": (0, -2)}, "--data.target_examples must be 0 or more, found -2"),
    ("data", {"target_examples": (16, 16)}, "--data.target_examples names 16 more than once: name each once."),
]


def with_section(config: RunConfig, section: str, values: dict) -> RunConfig:
    return replace(config, **({section: replace(getattr(config, section), **values)} if section else values))


@pytest.mark.parametrize(("section", "values", "says"), IMPOSSIBLE, ids=[says[:50] for _, _, says in IMPOSSIBLE])
def test_a_value_that_cannot_work_is_named_with_its_flag(section, values, says):
    (problem,) = with_section(RunConfig(), section, values).problems()
    assert says in problem


@pytest.mark.parametrize(
    ("section", "values", "says"), IMPOSSIBLE_TO_COMPARE, ids=[says[:50] for _, _, says in IMPOSSIBLE_TO_COMPARE]
)
def test_a_value_that_cannot_work_in_a_comparison_is_named_with_its_flag(section, values, says):
    (problem,) = with_section(CompareConfig(), section, values).problems()
    assert says in problem


@pytest.mark.parametrize("flag", ["matrix", "leave_one_out"])
def test_directions_and_target_examples_are_compared_one_by_one(flag):
    config = replace(CompareConfig(data=DataConfig(target_examples=(16,))), **{flag: True})
    assert config.problems() == [f"--{flag} and --data.target_examples make runs in two ways: compare them one by one."]


def test_random_weights_are_not_compared_with_random_weights():
    (problem,) = RunConfig(
        model=ModelConfig(checkpoint="scratch:a/b"), evaluate=EvaluateConfig(controls=("tfidf", "scratch"))
    ).problems()
    assert problem == (
        "--evaluate.controls scratch compares with random weights, and scratch:a/b starts from them already: leave "
        "one of the two out."
    )


def test_a_comparison_that_starts_from_random_weights_has_no_control_scratch():
    found = CompareConfig(model=ModelConfig(checkpoint="scratch:a/b"), strategies=("full",)).problems()
    assert any("scratch" in problem for problem in found)


def test_a_comparison_that_starts_from_random_weights_has_no_lora():
    config = CompareConfig(model=ModelConfig(checkpoint="scratch:a/b"), strategies=("full", "lora"), controls=())
    assert any("lora" in problem for problem in config.problems())


def test_what_only_a_comparison_can_do_is_no_problem_there():
    data = DataConfig(target_examples=(0, 16, 64), target_domains=("apps",))
    assert CompareConfig(data=data).problems() == []
    assert len(RunConfig(data=data).problems()) == 1


def test_one_number_of_target_examples_is_a_run_with_or_without_the_source():
    for data in (
        DataConfig(target_examples=(0,)),
        DataConfig(target_examples=(1,), target_domains=("apps",)),
        DataConfig(target_examples=(64,), with_source=False),
    ):
        assert RunConfig(data=data).problems() == []


def test_the_limits_of_a_comparison_are_allowed():
    config = CompareConfig(
        strategies=(),
        controls=("majority",),
        seeds=(0, 2**32 - 1),
        matrix=True,
        learning_rates=("full=1e-4", "scratch=0.5"),
        budget=BudgetConfig(examples=1, seconds=0.1),
        train=TrainConfig(max_seconds=0.1),
        report=ReportConfig(show_examples=True),
    )
    assert config.problems() == []
    assert CompareConfig(controls=()).problems() == []
    assert CompareConfig().problems() == []


def test_problems_of_a_comparison_and_of_its_sections_are_reported_together():
    config = CompareConfig(
        data=DataConfig(max_length=1),
        train=TrainConfig(max_seconds=-1.0),
        budget=BudgetConfig(examples=0, seconds=-2.0),
        strategies=("ful",),
        seeds=(),
    )
    assert [problem.split()[0] for problem in config.problems()] == [
        "--data.max_length",
        "--train.max_seconds",
        "--budget.examples",
        "--budget.seconds",
        "--strategies",
        "--seeds",
    ]


def test_values_of_the_wrong_kind_in_a_comparison_are_refused_before_they_are_compared():
    config = CompareConfig(
        seeds=(0, "1"),
        matrix=1,
        keep_models="some",
        budget=BudgetConfig(examples=1.5),
        report=ReportConfig(show_examples="no"),
        data=DataConfig(target_examples=16, with_source="no"),
    )
    assert config.problems() == [
        "--data.target_examples must be a list of whole numbers, found 16.",
        "--data.with_source must be true or false, found 'no'.",
        "--report.show_examples must be true or false, found 'no'.",
        "--seeds must be a list of whole numbers, found (0, '1').",
        "--matrix must be true or false, found 1.",
        "--keep_models must be one of first_seed, all, none, found 'some'.",
        "--budget.examples must be a whole number or null, found 1.5.",
    ]


@pytest.mark.parametrize(
    ("section", "fixed", "free"),
    [
        ("evaluate", {"selection": "last"}, {"selection": "in_domain_validation"}),
        ("data", {"target_examples": (16,)}, {"target_examples": (0,)}),
    ],
)
@pytest.mark.parametrize("record", [RunConfig, CompareConfig])
def test_patience_is_refused_where_nothing_is_selected_by_validation(record, section, fixed, free):
    patient = record(train=TrainConfig(patience=1))
    (problem,) = with_section(patient, section, fixed).problems()
    assert problem.startswith("--train.patience 1 waits for a better validation, and with --evaluate.selection last")
    assert problem.endswith("leave one of them out.")
    assert patient.problems() == with_section(patient, section, free).problems() == []
    assert with_section(record(), section, fixed).problems() == []


def test_the_limits_themselves_are_allowed():
    config = RunConfig(
        data=DataConfig(max_length=8, max_train_examples=1, near_duplicate_threshold=1.0),
        model=ModelConfig(dropout=0.0),
        adapt=AdaptConfig(strategy="lora", lora_rank=1, lora_init="pissa_niter_4", head_first=True),
        train=TrainConfig(max_steps=1, window_size=1, layer_decay=1.0, max_gradient_norm=0.0, keep_checkpoints=1),
        evaluate=EvaluateConfig(resamples=100),
        publish=PublishConfig(export=("merged",)),
        seed=2**32 - 1,
    )
    assert config.problems() == []
    assert check_config(config) is config


def test_a_value_of_the_wrong_kind_given_from_python_is_refused_before_it_is_compared():
    config = RunConfig(
        data=DataConfig(train_domains="books", test_domains=["a", "b"]),  # a list serves as a tuple
        adapt=AdaptConfig(strategy="ful", head_first=1),
        train=TrainConfig(max_steps="3", epochs=3, window_size=16.0),
    )
    with pytest.raises(InputError) as caught:
        check_config(config)
    assert caught.value.problems == (
        "--data.train_domains must be a list of names, found 'books'.",
        "--adapt.strategy must be one of probe, freeze, lora, full, mixed, interpolated, knn, found 'ful'.",
        "--adapt.head_first must be true or false, found 1.",
        "--train.max_steps must be a whole number or null, found '3'.",
        "--train.window_size must be a whole number, found 16.0.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "12",
        "embeddings",
        "encoder",
        "fraction:0",
        "fraction:0.66",
        "fraction:1",
        "3,5",
        "0-3,5",
        "2-2",
        r"regex:^a\.b",
    ],
)
def test_a_form_of_freeze_is_understood(text):
    assert freeze_problems(text) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not understood"),
        ("half", "is not understood: give a count of bottom layers (4), fraction:0.66, layers (0-3,5), regex:PATTERN"),
        ("-1", "is not understood"),
        ("0-", "is not understood"),
        ("1,,2", "is not understood"),
        ("3-0", "layers 3-0 run backwards and name none: write 0-3."),
        ("5-3,0", "--adapt.freeze 5-3,0: layers 5-3 run backwards and name none: write 3-5."),
        ("fraction:1.5", "the fraction must be a number from 0 to 1"),
        ("fraction:nan", "the fraction must be a number from 0 to 1"),
        ("fraction:two thirds", "the fraction must be a number from 0 to 1"),
        ("regex:(", "is not a regular expression"),
    ],
)
def test_what_is_no_form_of_freeze_is_refused_with_the_forms(text, says):
    (problem,) = freeze_problems(text)
    assert problem.startswith("--adapt.freeze")
    assert says in problem


# --- numbers that follow from others ---


@pytest.mark.parametrize(
    ("strategy", "body", "head"),
    [("full", 5e-5, 5e-4), ("freeze", 1e-4, 1e-3), ("lora", 5e-4, 5e-4), ("probe", 2e-3, 2e-3)],
)
def test_default_learning_rates_follow_the_strategy(strategy, body, head):
    assert TrainConfig().body_learning_rate(strategy) == body
    assert TrainConfig().head_rate(strategy) == pytest.approx(head, rel=1e-12)


def test_a_comparison_gives_each_strategy_its_own_learning_rate_or_that_of_all():
    config = CompareConfig(learning_rates=("full=1e-4", "scratch=5e-4"), train=TrainConfig(learning_rate=2e-5))
    assert [config.learning_rate_of(name) for name in ("full", "scratch", "lora")] == [1e-4, 5e-4, 2e-5]
    assert CompareConfig(learning_rates=("full=1e-4",)).learning_rate_of("lora") is None


def test_a_given_learning_rate_holds_and_the_head_follows_it_unless_given_as_well():
    assert TrainConfig(learning_rate=1e-5).body_learning_rate("lora") == 1e-5
    assert TrainConfig(learning_rate=1e-5).head_rate("full") == pytest.approx(1e-4)
    assert TrainConfig(learning_rate=1e-5).head_rate("lora") == 1e-5
    assert TrainConfig(learning_rate=1e-5, head_learning_rate=3e-3).head_rate("full") == 3e-3


@pytest.mark.parametrize(
    ("strategy", "rate"),
    [("full", 2e-4), ("freeze", 3e-4), ("lora", 1e-3), ("mixed", 2e-4), ("interpolated", 2e-4), ("knn", 2e-4)],
)
def test_a_settled_run_of_translation_has_its_rate_and_smoothing(strategy, rate):
    settled = TrainConfig(epochs=2).settled("translation", strategy, from_scratch=False)
    assert settled == TrainConfig(epochs=2, learning_rate=rate, label_smoothing=0.1)
    assert settled.body_learning_rate(strategy) == rate
    given = TrainConfig(epochs=5, learning_rate=1e-5, label_smoothing=0.0)
    assert given.settled("translation", strategy, from_scratch=False) == given
    assert given.settled("translation", strategy, from_scratch=True) == given
    scratch = TrainConfig().settled("translation", strategy, from_scratch=True)
    assert (scratch.epochs, scratch.learning_rate, scratch.label_smoothing) == (40, 2e-3, 0.1)


def test_a_settled_run_of_classification_leaves_the_rates_to_body_and_head():
    settled = TrainConfig().settled("classification", "lora", from_scratch=False)
    assert TrainConfig().settled("classification", "lora", from_scratch=True) == settled, "its bodies learn as fast"
    assert settled == TrainConfig(epochs=3.0, label_smoothing=0.0)
    assert (settled.body_learning_rate("lora"), settled.head_rate("lora")) == (5e-4, 5e-4)


def test_every_task_has_defaults_rates_and_controls_for_all_that_it_knows():
    assert set(config_module.STRATEGIES_OF) == set(config_module.TASKS) == set(config_module.TASK_DEFAULTS)
    for task, strategies in config_module.STRATEGIES_OF.items():
        assert set(config_module.RATES[task]) == set(strategies)
        for record in (RunConfig, CompareConfig):
            names = {**flatten(record()), "task": task}
            defaults = defaults_of(task, record)
            assert set(defaults) <= set(names)
            problems = from_flat({**names, **defaults}, record).problems()
            assert (problems == []) == (task == "classification" or record is RunConfig)
    assert [problem.split(" is random")[0].split(" starts from")[0] for problem in problems] == [
        "--controls scratch compares with random weights, and scratch:marian-tiny",
        "--strategies lora adapts a pretrained body, and scratch:marian-tiny",
    ], "a comparison of translation asks for a checkpoint"


def test_the_defaults_of_a_comparison_keep_its_own_folder():
    assert defaults_of("translation", RunConfig)["output_dir"] == "runs/translation"
    compare = defaults_of("translation", CompareConfig)
    assert "output_dir" not in compare and compare["strategies"] == ("freeze", "lora", "full", "interpolated")
    assert compare["data.source"] == "bundled:phrases"
    assert defaults_of("classification", RunConfig) == defaults_of("classification", CompareConfig) == {}
