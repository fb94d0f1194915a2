"""The command line: how flags and YAML are read, what help and --print_config show, and what is refused."""

import contextlib
import dataclasses
import io
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import NAMES, sentences

from hf_transfer import command_line
from hf_transfer import config as config_module
from hf_transfer.command_line import RENAMED, load_config, read_command_line
from hf_transfer.config import (
    AdaptConfig,
    BudgetConfig,
    CompareConfig,
    DataConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
    to_yaml,
)
from hf_transfer.errors import InputError
from hf_transfer.fields import flatten


def read(*words: object, defaults: dict | None = None) -> RunConfig:
    return load_config([str(word) for word in words], "test", defaults)


def refused(*words: object) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read(*words)
    return caught.value.problems


def write(folder, text: str):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def one_parser():
    """A parser is built once in place of once per command line, which takes a quarter of a second."""
    build = command_line._build_parser
    parsers = {record: build("test", flatten(record()), record) for record in (RunConfig, CompareConfig)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "_build_parser", lambda prog, values, record: parsers[record])
        yield


# --- help ---


def test_help_lists_every_field_with_its_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    written = sentences()
    shown = "".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert [name for name in NAMES if f"--{name}" not in shown] == []
    owners = {"": "RunConfig"} | {
        item.name: type(getattr(RunConfig(), item.name)).__name__ for item in dataclasses.fields(RunConfig)
    }
    for name in NAMES:
        section, _, last = name.rpartition(".")
        assert "".join(written[f"{owners[section]}.{last}"].split()) in shown, name


def compare_with(*words: object) -> CompareConfig:
    return read_command_line([str(word) for word in words], "test", CompareConfig)


def refused_to_compare(*words: object) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        compare_with(*words)
    return caught.value.problems


def test_help_of_a_comparison_lists_its_own_fields_as_well(capsys):
    with pytest.raises(SystemExit):
        compare_with("--help")
    written = sentences()
    shown = "".join(capsys.readouterr().out.split())
    for name in ("strategies", "controls", "seeds", "matrix", "leave_one_out", "learning_rates", "keep_models"):
        assert f"--{name}" in shown and "".join(written[f"CompareConfig.{name}"].split()) in shown
    for name in ("examples", "seconds"):
        assert f"--budget.{name}" in shown and "".join(written[f"BudgetConfig.{name}"].split()) in shown
    assert [name for name in NAMES if f"--{name}" not in shown] == []


# --- where a value comes from ---


@pytest.mark.parametrize("file_first", [True, False])
def test_flags_win_over_the_file_and_the_file_over_the_recipe_wherever_they_stand(tmp_path, file_first):
    file = ["--config", write(tmp_path, "seed: 7\ntrain:\n  epochs: 5\n  window_size: 8\n")]
    flags = ["--seed", "9", "--train.window_size=4"]
    config = read(
        *(file + flags if file_first else flags + file),
        defaults={"seed": 3, "train.epochs": 2.0, "output_dir": "recipe"},
    )
    assert (config.seed, config.train.window_size) == (9, 4)  # flags
    assert config.train.epochs == 5  # file
    assert config.output_dir == "recipe"
    assert config.adapt == AdaptConfig()


def test_of_a_flag_that_stands_twice_the_last_counts():
    assert read("--seed", "1", "--seed", "2").seed == 2


def test_a_field_of_the_file_may_be_written_with_a_dot(tmp_path):
    assert read("--config", write(tmp_path, "train.epochs: 2\nadapt:\n")).train.epochs == 2


def test_a_second_file_is_refused():
    assert "--config stands twice (a.yaml, b.yaml)" in refused("--config", "a.yaml", "--config=b.yaml")[0]


# --- how a value is written ---


def test_lists_are_comma_separated_or_in_brackets():
    config = read(
        *("--data.train_domains", "books, dvd,"),
        *("--data.test_domains", "[books, 'music']"),
        *("--data.label_names", '["Home, Garden", no, 1, ~]'),
        "--evaluate.metrics=f1_macro",
    )
    assert config.data.train_domains == ("books", "dvd")
    assert config.data.test_domains == ("books", "music")
    assert config.data.label_names == ("Home, Garden", "no", "1", "~")
    assert config.evaluate.metrics == ("f1_macro",)


@pytest.mark.parametrize("written", ["0,1,2", "[0, 1, 2]", " 0, 1,2,", "['0', 1, 2]"])
def test_whole_numbers_are_listed_as_names_are(written):
    assert compare_with("--seeds", written).seeds == (0, 1, 2)
    assert read("--data.target_examples", "16").data.target_examples == (16,)


def test_whole_numbers_of_a_file_are_listed_in_every_form(tmp_path):
    for written in ("[0, 16]", "0, 16", "\n    - 0\n    - 16"):
        file = write(tmp_path, f"seeds: 7\ndata:\n  target_examples: {written}\n")
        config = compare_with("--config", file)
        assert (config.seeds, config.data.target_examples) == ((7,), (0, 16))


@pytest.mark.parametrize("written", ["a,b", "0,b", "0 1", "1.0", "1e3", "[0", "[[0]]", "[null]", "{0: 1}"])
def test_a_list_of_whole_numbers_that_holds_anything_else_is_unreadable(written):
    (problem,) = refused_to_compare("--seeds", written)
    assert problem == (
        f"--seeds is unreadable: expected a list of whole numbers, found {written!r}. See --help for its meaning."
    )


def test_an_empty_list_of_whole_numbers_is_read_and_then_refused_for_what_it_means():
    assert refused_to_compare("--seeds", "") == ("--seeds is empty: name at least one, as in 0,1,2.",)
    assert compare_with("--data.target_examples", "").data.target_examples == ()


def test_a_list_in_a_file_that_is_no_list_of_whole_numbers_is_unreadable(tmp_path):
    (problem,) = refused_to_compare("--config", write(tmp_path, "seeds: [0, one]\n"))
    assert problem == (
        '--seeds is unreadable: expected a list of whole numbers, found \'["0", "one"]\'. See --help for its meaning.'
    )


def test_quotes_around_a_name_go_and_an_apostrophe_stays():
    assert read("--data.train_domains", "'books',\"dvd\",'90s").data.train_domains == ("books", "dvd", "'90s")


def test_lists_of_a_file_keep_names_as_they_are_written(tmp_path):
    file = write(
        tmp_path,
        "data:\n  label_names: [no, yes, 1, 01, 2020-01-01]\n  train_domains: books, dvd\n"
        "  test_domains:\n    - books\n    - Home, Garden\n",
    )
    data = read("--config", file).data
    assert data.label_names == ("no", "yes", "1", "01", "2020-01-01")
    assert data.train_domains == ("books", "dvd")
    assert data.test_domains == ("books", "Home, Garden")


def test_a_switch_is_on_by_its_name_and_false_means_false(tmp_path):
    file = write(tmp_path, "adapt:\n  lora_use_dora: yes\n  lora_use_rslora: true\n  head_first: off\n")
    config = read(
        *("--config", file),
        *("--overwrite", "--data.drop_leaks", "False", "--adapt.lora_use_rslora=false"),
        "--model.trust_remote_code",
    )
    assert config.overwrite is True
    assert config.model.trust_remote_code is True  # the last word of the line
    assert config.data.drop_leaks is False
    assert config.adapt.lora_use_rslora is False
    assert config.adapt.lora_use_dora is True
    assert config.adapt.head_first is False


AS_WRITTEN = {
    "data.label_separator": "#",
    "data.subset": "~",
    "data.revision": "0012",
    "data.text_column": "1e3",
    "data.label_column": "true",
    "data.domain_column": "&a",
    "data.split_column": "2020-13-45",
    "data.id_column": "- x: [",
    "output_dir": "null",
}


def test_text_on_the_command_line_is_taken_as_it_is_written():
    flat = flatten(read(*(f"--{name}={value}" for name, value in AS_WRITTEN.items())))
    assert {name: flat[name] for name in AS_WRITTEN} == AS_WRITTEN


def test_text_in_a_file_is_taken_as_it_is_written(tmp_path):
    file = write(
        tmp_path,
        "data:\n  label_separator: '#'\n  subset: '~'\n  revision: 0012\n  text_column: 1e3\n  label_column: true\n"
        "  domain_column: '&a'\n  split_column: 2020-13-45\n  id_column: 'null'\n",
    )
    data = read("--config", file).data
    assert (data.label_separator, data.subset, data.revision) == ("#", "~", "0012")
    assert (data.text_column, data.label_column, data.domain_column) == ("1e3", "true", "&a")
    assert (data.split_column, data.id_column) == ("2020-13-45", "null")


def test_null_unsets_what_may_be_unset(tmp_path):
    file = write(tmp_path, "data: {subset: null, revision: ~}\nmodel: {dropout: }\nevaluate: {metrics: }\n")
    defaults = {"data.subset": "a", "data.revision": "b", "data.id_column": "c", "train.max_steps": 3}
    config = read("--config", file, "--data.id_column", "null", "--train.max_steps", "null", defaults=defaults)
    assert (config.data.subset, config.data.revision, config.data.id_column) == (None, None, None)
    assert (config.train.max_steps, config.model.dropout, config.evaluate.metrics) == (None, None, ())


# --- names that are not known ---


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--train.epoch", "--train.epoch is not a setting: did you mean --train.epochs?"),
        ("--adapt.lora_rnk=4", "--adapt.lora_rnk is not a setting: did you mean --adapt.lora_rank"),
        ("--epochs", "--epochs is not a setting: did you mean --train.epochs?"),
        ("--text_column", "--text_column is not a setting: did you mean --data.text_column"),
        ("--quux", "--quux is not a setting: see --help for all."),
        ("--data", "--data is not a setting"),
        ("--", "-- is not a setting"),
        ("--train.lr", "--train.lr is called --train.learning_rate here"),
        ("word", "'word' stands alone: settings are written --section.field value."),
        ("-x", "'-x' stands alone"),
    ],
)
def test_an_unknown_flag_is_named_with_the_nearest_known_one(word, says):
    (problem,) = refused(word)
    assert problem.startswith(says)


def test_unknown_flags_are_reported_together_and_take_their_values_with_them():
    problems = refused("--train.epoch", "3", "--sed", "1", "--overwrite", "--quux=1", "--seed", "--config")
    assert [problem.split()[0] for problem in problems] == ["--train.epoch", "--sed", "--quux", "--seed", "--config"]
    assert problems[3] == "--seed needs a value: a whole number."
    assert problems[4] == "--config needs a value: the path of a YAML file."


def test_unknown_keys_of_a_file_are_reported_together_with_the_nearest_known_ones(tmp_path):
    file = write(
        tmp_path, "sed: 1\ntrain:\n  epoch: 3\n  learning_rate: 1e-5\nadapter:\n  strategy: full\nlearning_rate: 1\n"
    )
    problems = refused("--config", file)
    assert len(problems) == 4
    assert f"{file}: `sed` is not a setting: did you mean --seed?" in problems
    assert f"{file}: `train.epoch` is not a setting: did you mean --train.epochs?" in problems
    assert any("`adapter` is not a setting" in problem for problem in problems)
    assert any("`learning_rate` is called --train.learning_rate here" in problem for problem in problems)


@pytest.mark.parametrize("theirs", sorted(RENAMED))
def test_a_name_of_hugging_face_is_refused_with_ours(theirs):
    assert RENAMED[theirs] in NAMES
    (problem,) = refused(f"--{theirs}", "1")
    assert problem == f"--{theirs} is called --{RENAMED[theirs]} here: run with --help for its meaning."


# --- values that cannot be read ---


def test_unreadable_values_are_reported_together_with_what_was_expected(tmp_path):
    file = write(
        tmp_path,
        "output_dir:\nevaluate: {resamples: [1, 2], metrics: {a: b}}\nmodel: {checkpoint: [a]}\n"
        "data: {max_length: 1.5}\n",
    )
    problems = refused(
        *("--config", file, "--train.max_steps", "3.5", "--train.epochs", "many", "--overwrite", "maybe"),
        *("--adapt.strategy", "ful", "--train.learning_rate=nan", "--seed", "null"),
        *("--data.train_domains", "[books, dvd", "--train.window_size", "8"),
    )
    ending = " See --help for its meaning."
    assert set(problems) == {
        "--output_dir is unreadable: expected text, found 'null'." + ending,
        '--evaluate.resamples is unreadable: expected a whole number, found \'["1", "2"]\'.' + ending,
        '--evaluate.metrics is unreadable: expected a list of names, found \'{"a": "b"}\'.' + ending,
        "--model.checkpoint is unreadable: expected text, found '[\"a\"]'." + ending,
        "--data.max_length is unreadable: expected a whole number, found '1.5'." + ending,
        "--train.max_steps is unreadable: expected a whole number or null, found '3.5'." + ending,
        "--train.epochs is unreadable: expected a number or null, found 'many'." + ending,
        "--overwrite is unreadable: expected true or false, found 'maybe'." + ending,
        "--adapt.strategy is unreadable: expected one of probe, freeze, lora, full, mixed, interpolated, knn, "
        "found 'ful'. Did you mean full?" + ending,
        "--train.learning_rate is unreadable: expected a number or null, found 'nan'." + ending,
        "--seed is unreadable: expected a whole number, found 'null'." + ending,
        "--data.train_domains is unreadable: expected a list of names, found '[books, dvd'." + ending,
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"train:\n  epochs: [1\n", r", line 3 is not readable YAML: "),
        (b"a: b: c\n", r", line 1 is not readable YAML: mapping values are not allowed here"),
        (b"train: {}\nseed: 1\ntrain: {}\n", r", line 1 is not readable YAML: `train` stands twice"),
        (b"train:\n  epochs: 1\n  epochs: 2\n", r", line 2 is not readable YAML: `epochs` stands twice"),
        (b"- seed\n", r" holds a list: write `section:` and fields below it"),
        (b"seed\n", r" holds a str: write"),
        (b"train: 3\n", r": `train` must hold fields, found '3'"),
        (b"output_dir: caf\xe9\n", r" cannot be read \(.*0xe9.*\): give the path of a YAML file"),
        (b"seed: !!timestamp 2020-13-45\n", r" is not readable YAML: "),
        (b"seed: !!python/name:os.system\n", r", line 1 is not readable YAML: could not determine a constructor"),
        (b"seed: \x07\n", r" is not readable YAML: "),
        (b"seed: " + b"[" * 500, r" is not readable YAML: "),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_refused_with_its_line(tmp_path, content, says):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    (problem,) = refused("--config", path)
    assert re.search(re.escape(str(path)) + says, problem), problem


def test_a_file_that_is_not_there_is_named(tmp_path):
    (problem,) = refused("--config", tmp_path / "absent.yaml")
    assert problem.startswith(f"--config {tmp_path / 'absent.yaml'} cannot be read (")
    assert problem.endswith("give the path of a YAML file.")
    assert "cannot be read" in refused("--config", tmp_path)[0]


def test_an_empty_file_changes_nothing(tmp_path):
    assert read("--config", write(tmp_path, "# nothing yet\n")) == RunConfig()


def test_problems_of_flags_file_and_values_are_reported_together(tmp_path):
    file = write(tmp_path, "sed: 1\ntrain:\n  epochs: many\n  rate: 1\nseeds: [0, b]\n")
    problems = refused_to_compare(
        *("--config", file, "--quux", "1", "word", "--strategies"),
        *("--keep_models", "some", "--budget.examples", "few", "--seed"),
    )
    starts = [
        "--quux is not a setting",
        "'word' stands alone",
        "--strategies needs a value: a list of names.",
        "--seed needs a value: a whole number.",
        f"{file}: `sed` is not a setting",
        f"{file}: `train.rate` is not a setting",
        "--train.epochs is unreadable: expected a number or null, found 'many'.",
        "--seeds is unreadable: expected a list of whole numbers",
        "--keep_models is unreadable: expected one of first_seed, all, none, found 'some'.",
        "--budget.examples is unreadable: expected a whole number or null, found 'few'.",
    ]
    assert len(problems) == len(starts)
    assert [problem[: len(start)] for problem, start in zip(problems, starts, strict=True)] == starts


def test_an_unreadable_flag_replaces_the_readable_value_of_the_file(tmp_path):
    (problem,) = refused_to_compare("--config", write(tmp_path, "seeds: [0, 1]\n"), "--seeds", "a")
    assert "found 'a'" in problem


def test_settings_of_a_comparison_are_unknown_to_a_run():
    assert refused("--seeds", "0,1") == ("--seeds is not a setting: did you mean --seed?",)
    assert refused("--budget.examples", "5")[0].startswith("--budget.examples is not a setting")


def test_the_problems_of_all_sections_are_reported_together():
    (*problems,) = refused(
        *("--data.max_length", "1", "--model.dropout", "2", "--adapt.lora_rank", "0", "--train.epochs", "1e400"),
        *("--evaluate.confidence", "0", "--publish.export", "merged", "--seed", "-1"),
    )
    flags = ["data.max_length", "model.dropout", "adapt.lora_rank", "train.epochs", "evaluate.confidence"]
    flags += ["publish.export", "seed"]
    assert [problem.split()[0] for problem in problems] == [f"--{flag}" for flag in flags]


# --- there and back ---


def test_the_printed_config_reads_back_to_the_same_config(tmp_path, capsys):
    words = ["--data.train_domains=books,dvd", "--adapt.strategy=lora", "--train.learning_rate=2e-5", "--overwrite"]
    with pytest.raises(SystemExit) as stop:
        read("--print_config", *words)
    assert stop.value.code == 0
    printed = write(tmp_path, capsys.readouterr().out)
    assert read("--config", printed) == read(*words)


def test_a_printed_comparison_reads_back_to_the_same_config(tmp_path, capsys):
    words = ["--strategies=lora,full", "--seeds=3,4", "--controls=", "--learning_rates=full=1e-4,lora=1e-3"]
    words += ["--budget.examples=640", "--budget.seconds=1.5", "--matrix", "--keep_models=none"]
    words += ["--data.with_source", "--train.max_seconds=2", "--report.show_examples"]
    with pytest.raises(SystemExit):
        compare_with("--print_config", *words)
    wanted = CompareConfig(
        strategies=("lora", "full"),
        seeds=(3, 4),
        controls=(),
        learning_rates=("full=1e-4", "lora=1e-3"),
        budget=BudgetConfig(examples=640, seconds=1.5),
        matrix=True,
        keep_models="none",
        train=TrainConfig(max_seconds=2.0),
        report=ReportConfig(show_examples=True),
    )
    assert compare_with("--config", write(tmp_path, capsys.readouterr().out)) == wanted
    assert compare_with(*words) == wanted


def printed(capsys, command, *words: str) -> tuple[dict, str]:
    """What --print_config says: the settings, flat, and the comment below them."""
    with pytest.raises(SystemExit) as stop:
        command("--print_config", *words)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    nested = yaml.safe_load(text)
    flat = {
        f"{section}.{name}" if isinstance(value, dict) else section: item
        for section, value in nested.items()
        for name, item in (value.items() if isinstance(value, dict) else [("", value)])
    }
    return flat, text.splitlines()[-1]


def test_a_printed_run_of_translation_shows_the_defaults_of_the_task_and_those_of_the_strategy(capsys, tmp_path):
    flat, comment = printed(capsys, read, "--task=translation")
    differing = {name for name, value in flat.items() if value != printed(capsys, read)[0][name]}
    assert {name: flat[name] for name in differing} == {
        "task": "translation",
        "data.source": "bundled:phrases",
        "data.source_lang": "en",
        "data.target_lang": "de",
        "data.max_length": 128,
        "model.checkpoint": "scratch:marian-tiny",
        "train.window_size": 32,
        "output_dir": "runs/translation",
    }
    chosen = "# null is chosen by task and strategy: "
    assert comment == f"{chosen}train.epochs 40; train.learning_rate 0.002 (full); train.label_smoothing 0.1"
    words = ["--task=translation", "--model.checkpoint=some/model", "--adapt.strategy=lora"]
    rates = "train.epochs 3; train.learning_rate 0.001 (lora)"
    assert printed(capsys, read, *words)[1] == f"{chosen}{rates}; train.label_smoothing 0.1"
    words += ["--train.epochs=2", "--train.learning_rate=1e-5", "--train.label_smoothing=0"]
    flat, comment = printed(capsys, read, *words)
    assert (flat["train.learning_rate"], flat["train.label_smoothing"]) == (1e-5, 0.0)
    assert not comment.startswith("#")


@pytest.mark.parametrize("place", ["flag", "file", "recipe"])
def test_the_languages_of_the_bundled_phrases_are_assumed_of_no_other_text(place, tmp_path):
    (tmp_path / "run.yaml").write_text("data: {source: mine.csv}\n")
    words = {"flag": ["--data.source=mine.csv"], "file": [f"--config={tmp_path / 'run.yaml'}"], "recipe": []}[place]
    defaults = {"task": "translation"} | ({"data.source": "mine.csv"} if place == "recipe" else {})
    data = load_config(words, "run", defaults).data
    assert (data.source, data.source_lang, data.target_lang, data.max_length) == ("mine.csv", None, None, 128)
    data = load_config([*words, "--data.source_lang=en"], "run", defaults).data
    assert (data.source_lang, data.target_lang) == ("en", None)
    data = load_config([*words, "--data.source=bundled:phrases"], "run", defaults).data
    assert (data.source_lang, data.target_lang) == ("en", "de")


def test_a_printed_run_of_classification_shows_the_rates_of_its_strategy(capsys):
    chosen = "# null is chosen by task and strategy: "
    rest = "train.label_smoothing 0"
    for strategy, rate, head in (
        ("full", "5e-05", "0.0005"),
        ("freeze", "0.0001", "0.001"),
        ("probe", "0.002", "0.002"),
    ):
        comment = printed(capsys, read, f"--adapt.strategy={strategy}")[1]
        rates = f"train.epochs 3; train.learning_rate {rate} ({strategy}); train.head_learning_rate {head} ({strategy})"
        assert comment == f"{chosen}{rates}; {rest}"
    comment = printed(capsys, read, "--train.learning_rate=1e-4")[1]
    assert comment == f"{chosen}train.epochs 3; train.head_learning_rate 0.001 (full); {rest}"


def test_a_printed_comparison_shows_the_rate_of_each_strategy(capsys, tmp_path):
    words = ["--task=translation", "--model.checkpoint=some/model", "--learning_rates=lora=5e-4"]
    flat, comment = printed(capsys, compare_with, *words)
    assert flat["strategies"] == ["freeze", "lora", "full", "interpolated"]
    assert (flat["controls"], flat["output_dir"]) == (["before", "scratch"], "runs/compare")
    rates = "0.0003 (freeze), 0.0002 (full), 0.0002 (interpolated), 0.002 (scratch)"
    rates = f"train.epochs 3; train.learning_rate {rates}"
    assert comment == f"# null is chosen by task and strategy: {rates}; train.label_smoothing 0.1"
    comment = printed(capsys, compare_with, "--strategies=full", "--controls=scratch")[1]
    assert "train.learning_rate 5e-05 (full), 0.0003 (scratch); " in comment
    assert "train.head_learning_rate 0.0005 (full), 0.0003 (scratch); " in comment
    assert compare_with("--config", write(tmp_path, "# a comment\n")) == compare_with()


@pytest.mark.parametrize(
    ("task", "word", "says"),
    [
        ("translation", "--data.text_column=body", "--data.text_column does nothing in translation: leave it out."),
        ("translation", "--data.label_names=a,b", "--data.label_names does nothing in translation"),
        ("translation", "--adapt.head_first", "--adapt.head_first does nothing in translation"),
        ("translation", "--train.head_learning_rate=1e-3", "--train.head_learning_rate does nothing in translation"),
        ("translation", "--adapt.strategy=probe", "--adapt.strategy names 'probe', which is not known in translation"),
        ("translation", "--evaluate.controls=tfidf", "--evaluate.controls names 'tfidf', which is not known in tran"),
        ("translation", "--adapt.lora_init=eva", "--adapt.lora_init eva reads every layer's activations by the mask"),
        ("translation", "--adapt.knn_interpolation=1", "--adapt.knn_interpolation 1 leaves nothing to the model"),
        ("classification", "--data.source_lang=en", "--data.source_lang does nothing in classification: leave it out."),
        ("classification", "--data.target_column=de", "--data.target_column does nothing in classification"),
        ("classification", "--data.general_source=x", "--data.general_source does nothing in classification"),
        ("classification", "--evaluate.beams=5", "--evaluate.beams does nothing in classification"),
        ("classification", "--model.vocabulary_size=99", "--model.vocabulary_size does nothing in classification"),
        ("classification", "--adapt.knn_neighbours=8", "--adapt.knn_neighbours does nothing in classification"),
        (
            "classification",
            "--adapt.strategy=knn",
            "--adapt.strategy names 'knn', which is not known in classification",
        ),
    ],
)
def test_settings_of_the_other_task_are_refused_by_run_and_comparison(task, word, says):
    checkpoint = "--model.checkpoint=some/model"
    (problem,) = refused(f"--task={task}", checkpoint, word)
    assert problem.startswith(says)
    if not word.startswith(("--adapt.strategy", "--evaluate.controls")):
        (problem,) = refused_to_compare(f"--task={task}", checkpoint, word)
        assert problem.startswith(says)


def test_every_setting_is_of_one_task_or_of_both():
    of_translation, of_classification = set(config_module._OF_TRANSLATION), set(config_module._OF_CLASSIFICATION)
    assert not of_translation & of_classification
    assert of_translation | of_classification <= set(NAMES)
    assert {name for name, text in sentences().items() if text.startswith("Translation: ")} <= {
        f"{record}.{name.split('.')[1]}"
        for record, section in (("DataConfig", "data"), ("EvaluateConfig", "evaluate"))
        for name in of_translation
        if name.startswith(f"{section}.")
    }


def test_a_config_with_awkward_values_reads_back_to_the_same_config(tmp_path):
    config = RunConfig(
        data=DataConfig(
            source="C:\\data: [x]",
            subset="null",
            revision="1e10",
            label_separator="#",
            text_column="Überschrift",
            label_names=("no", "yes", "~", "1", "a, b", "[c]", "'d'", "日本"),
            train_domains=("Home, Garden", "'90s"),
        ),
        adapt=AdaptConfig(strategy="freeze", freeze=r"regex:layer\.[0-3]\.", gradual_unfreezing=True),
        train=TrainConfig(learning_rate=1e-7, adam_epsilon=1e-12, max_steps=5),
        output_dir="runs/true",
        seed=2**32 - 1,
    )
    assert read("--config", write(tmp_path, to_yaml(config))) == config


# --- whatever is typed ---

WORDS = st.one_of(
    st.sampled_from(
        [f"--{name}" for name in NAMES] + ["--config", "--print_config", "--help", "-h", "--seed=1", "--="]
    ),
    st.sampled_from(["1", "-1", "0.5", "null", "true", "[a, b]", "a,b", "[", "{a: 1}", "#", "", "auto", "lora", "/"]),
    st.text(max_size=8),
)
PAIRS = st.tuples(st.sampled_from(NAMES), st.text(max_size=6)).map(lambda pair: f"--{pair[0]}={pair[1]}")


@given(st.one_of(st.lists(WORDS, max_size=5), st.lists(PAIRS, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_no_command_line_ends_in_anything_but_a_config_a_refusal_or_an_exit(words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(InputError, SystemExit):
        assert isinstance(load_config(words, "test"), RunConfig)


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.binary(max_size=3)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=3,
)
SECTIONS = st.sampled_from(["data", "train", "adapt", "seed", "output_dir", "x"])
FIELDS = st.sampled_from(["text_column", "train_domains", "epochs", "strategy", "head_first", "max_steps"])


@given(
    st.one_of(
        st.text(max_size=30),
        st.dictionaries(SECTIONS, st.one_of(VALUES, st.dictionaries(FIELDS, VALUES, max_size=3)), max_size=2),
    )
)
@settings(max_examples=100, deadline=None)
def test_no_file_ends_in_anything_but_a_config_or_a_refusal(tmp_path_factory, content):
    import yaml

    path = tmp_path_factory.getbasetemp() / "random.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(InputError):
        assert isinstance(load_config(["--config", str(path)], "test"), RunConfig)
