"""The command line: what it imports, its exit codes, and bad input through the whole page."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import make_checkpoint
from toy import write_reviews

import hf_transfer
from hf_transfer import cli, launch, page
from hf_transfer.errors import InputError, RunError

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "sklearn", "scipy", "pyarrow", "numpy")


def leave(*words: object) -> int:
    """The exit code of a command line."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = """
import contextlib, io, json, sys
heavy = set(sys.argv[1].split(","))
found = {}
def look(stage):
    found[stage] = sorted(heavy & set(sys.modules))
import hf_transfer
look("import")
from hf_transfer.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for words in (["--help"], ["predict", "--help"], ["run", "--learning_rate", "1"], ["run", "--help"]):
        with contextlib.suppress(SystemExit):
            main(words)
        look(" ".join(words))
print(json.dumps(found))
"""
    ran = subprocess.run([sys.executable, "-c", script, ",".join(HEAVY)], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert len(found) == 5
    assert {stage: names for stage, names in found.items() if names} == {}


def test_every_public_name_resolves():
    assert {name for name in hf_transfer.__all__ if getattr(hf_transfer, name, None) is None} == set()
    assert set(dir(hf_transfer)) == set(hf_transfer.__all__)
    assert set(hf_transfer._HOMES) | {"__version__"} == set(hf_transfer.__all__)


def test_a_name_that_is_not_public_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'runn'; public names: __version__, run, RunResult"):
        hf_transfer.runn  # noqa: B018


def test_the_console_script_is_the_entry_point(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"hf-transfer": "hf_transfer.cli:main"}
    assert callable(cli.main)


# --- exit codes ---


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_shows_both_commands(words, capsys):
    assert leave(*words) == 0
    shown = capsys.readouterr().out
    assert "run  " in shown
    assert "predict  " in shown


def test_the_version_is_that_of_the_distribution(capsys):
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"hf-transfer-learning {hf_transfer.__version__}\n"


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    assert leave("train", "--help") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (
        shown.err == "hf-transfer: 1 problem\n  - there is no command 'train': use run, plan, "
        "compare, report, predict, translate, push, vocabulary.\n"
    )


def test_all_problems_are_printed_one_to_a_line_without_a_traceback(capsys):
    assert leave("run", "--learning_rate", "1", "--train.epoch", "2") == 2
    assert capsys.readouterr().err == (
        "hf-transfer: 2 problems\n"
        "  - --learning_rate is called --train.learning_rate here: run with --help for its meaning.\n"
        "  - --train.epoch is not a setting: did you mean --train.epochs?\n"
    )


def test_other_processes_leave_it_to_the_first_to_speak_and_speak_if_nobody_ended_them(capsys, monkeypatch):
    said_before_waiting = []
    monkeypatch.setattr(
        cli.time, "sleep", lambda seconds: said_before_waiting.append((seconds, capsys.readouterr().err))
    )
    monkeypatch.setenv("RANK", "3")
    assert leave("run", "--learning_rate", "1") == 2
    assert said_before_waiting == [(cli.SECONDS_FOR_THE_FIRST_PROCESS, "")]
    shown = capsys.readouterr().err
    assert shown.startswith("hf-transfer, process 3: 1 problem\n  - ") and "--train.learning_rate" in shown
    monkeypatch.setenv("RANK", "0")
    assert leave("run", "--learning_rate", "1") == 2
    assert capsys.readouterr().err.startswith("hf-transfer: 1 problem\n")
    assert len(said_before_waiting) == 1, "the first process does not wait"


def test_an_interrupted_wait_ends_without_a_word(capsys, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", interrupt)
    monkeypatch.setenv("RANK", "1")
    assert leave("run", "--learning_rate", "1") == 130
    assert capsys.readouterr().err == ""


def launched(script: Path, *words: str) -> subprocess.CompletedProcess:
    """What two processes under torchrun leave behind."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, *rendezvous, str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def our_lines(ran: subprocess.CompletedProcess) -> list[str]:
    """What we said on stderr; what torchrun adds after a failure is its own."""
    assert f'File "{Path(hf_transfer.__file__).parent}' not in ran.stderr, "no traceback of ours"
    return [line for line in ran.stderr.splitlines() if line.startswith(("hf-transfer", "  - "))]


@pytest.mark.slow
def test_two_processes_under_torchrun_say_once_what_is_wrong(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ["PYTHONPATH"]]))
    words = ["--data.train_domains", "nowhere", "--output_dir", str(tmp_path / "out")]
    ran = launched(root / "recipes" / "text_cls.py", *words)
    first, problem = our_lines(ran)
    assert first == "hf-transfer: 1 problem"
    assert problem.startswith("  - --data.train_domains names 'nowhere', which the data do not hold.")
    assert ran.returncode == 1, "torchrun's own, whatever its processes leave with"
    assert "exitcode  : 2" in ran.stderr, "it names ours in its summary"
    assert ran.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_slow_first_process_is_not_silenced_by_a_quicker_one(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ["PYTHONPATH"]]))
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from hf_transfer.cli import exit_codes\n"
        "from hf_transfer.errors import RunError\n"
        "with exit_codes():\n"
        "    if os.environ['RANK'] == '0':\n"
        "        time.sleep(3)\n"
        "    raise RunError('the loss went wrong')\n",
        encoding="utf-8",
    )
    assert our_lines(launched(script)) == ["hf-transfer: the run failed: the loss went wrong"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunError("the loss went wrong"), 1, "hf-transfer: the run failed: the loss went wrong\n"),
        (InputError(["a", "b"]), 2, "hf-transfer: 2 problems\n  - a\n  - b\n"),
        (KeyboardInterrupt(), 130, "hf-transfer: interrupted\n"),
    ],
)
def test_each_way_to_end_badly_has_its_exit_code(error, code, says, monkeypatch, capsys):
    def fail(config):
        raise error

    monkeypatch.setattr(page, "run", fail)
    assert leave("run", "--seed", "1") == code
    assert capsys.readouterr().err == says


def test_a_defect_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def fail(config):
        raise ZeroDivisionError

    monkeypatch.setattr(page, "run", fail)
    with pytest.raises(ZeroDivisionError):
        leave("run")


def test_predict_asks_for_what_it_needs(capsys):
    assert leave("predict", "--input", "a.csv") == 2
    assert "--model, --output" in capsys.readouterr().err


def recipe(root: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "recipes" / "text_cls.py"), *words]
    path = os.pathsep.join([str(root), os.environ["PYTHONPATH"]])
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def test_a_recipe_lists_every_setting_with_its_own_name(root):
    ran = recipe(root, "--help")
    assert ran.returncode == 0
    assert ran.stdout.startswith("usage: text_cls.py [--config FILE]")
    assert "--train.learning_rate" in ran.stdout
    assert ran.stderr == ""


def test_a_recipe_refuses_bad_input_with_code_2_and_no_traceback(root, tmp_path):
    ran = recipe(root, "--train.epochs", "0", "--output_dir", str(tmp_path / "out"))
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == "hf-transfer: 1 problem\n  - --train.epochs must be over 0 and finite, found 0.0: try 3.\n"
    assert not (tmp_path / "out").exists()


# --- bad input, found on the way through the page ---


def rows(folder: Path, *labels: object, split: str = "train") -> list[dict]:
    return [{"text": f"the plot was {i}", "label": label, "split": split} for i, label in enumerate(labels)]


def write_rows(path: Path, content: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def not_text(folder: Path) -> Path:
    (folder / "latin.csv").write_bytes("text,label\na,good\nun café,bad\n".encode("latin-1"))
    return folder / "latin.csv"


def labels_of(*labels: object):
    return lambda folder: write_rows(folder / "rows.jsonl", rows(folder, *labels))


def new_label_in_test(folder: Path) -> Path:
    return write_rows(folder / "new.jsonl", rows(folder, *["a", "b"] * 9) + rows(folder, "a", "c", "c", split="test"))


def only_pickled(folder: Path, checkpoint: Path) -> Path:
    shutil.copytree(checkpoint, folder / "pickled")
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    return folder / "pickled"


def with_own_code(folder: Path, checkpoint: Path) -> Path:
    shutil.copytree(checkpoint, folder / "own_code")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (folder / "own_code" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own_code" / "mine.py").write_text("raise SystemExit('this code ran')", encoding="utf-8")
    return folder / "own_code"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data"), count=30)


# name: (how the source is made, how the checkpoint is made, further words, what the message holds)
BAD_INPUT = {
    "a file that is not there": (
        lambda folder: folder / "absent.csv",
        None,
        [],
        ["--data.source", "absent.csv does not exist in folder"],
    ),
    "a file that is not UTF-8": (not_text, None, [], ["latin.csv: byte 0xe9 at offset", "(line 3) is not UTF-8: save"]),
    "an absent column": (
        None,
        None,
        ["--data.text_column", "txt"],
        ["reviews.jsonl: no column 'txt'", "Did you mean text?", "--data.text_column"],
    ),
    "an unknown domain": (
        None,
        None,
        ["--data.train_domains", "bookz,apps", "--data.test_domains", "films"],
        ["--data.train_domains names 'bookz'", "Did you mean books?", "--data.test_domains names 'films'"],
    ),
    "a label that only test holds": (
        new_label_in_test,
        None,
        [],
        ["label 'c' occurs 2 times in test:new (first at new.jsonl:20) but not in train", "--data.label_names"],
    ),
    "one class only": (labels_of(*["good"] * 12), None, [], ["train holds one class only ('good')"]),
    "regression with label names": (
        labels_of(*[0.5, 1.5, 2.25] * 6),
        None,
        ["--data.label_names", "a,b"],
        ["--data.label_names does not go with regression: leave it out."],
    ),
    "an unknown metric": (
        None,
        None,
        ["--evaluate.metrics", "acuracy"],
        ["--evaluate.metrics", "acuracy", "accuracy"],
    ),
    "a checkpoint that is not in the cache while offline": (
        None,
        lambda folder, checkpoint: "google-bert/bert-that-is-not-there",
        [],
        ["--model.checkpoint google-bert/bert-that-is-not-there", "not in the cache, and HF_HUB_OFFLINE is set"],
    ),
    "a checkpoint folder that is not there": (
        None,
        lambda folder, checkpoint: folder / "absent",
        [],
        ["--model.checkpoint", "absent: there is no such folder"],
    ),
    "pickled weights": (None, only_pickled, [], ["holds only pickled weights (pytorch_model.bin)", "safetensors"]),
    "remote code": (
        None,
        with_own_code,
        [],
        ["own_code brings its own Python code, which is off", "--model.trust_remote_code true"],
    ),
    "bf16 on a CPU without its units": (
        None,
        None,
        ["--train.precision", "bf16"],
        ["--train.precision bf16: this CPU has no bf16 units", "Use --train.precision fp32."],
    ),
    "fp16 on a CPU": (
        None,
        None,
        ["--train.precision", "fp16"],
        ["--train.precision fp16 needs a GPU: use fp32 here."],
    ),
    "a merged export without lora": (
        None,
        None,
        ["--publish.export", "merged"],
        ["--publish.export merged needs --adapt.strategy lora, found full"],
    ),
    "a checkpoint to resume that is not there": (
        None,
        None,
        ["--train.resume", "step-9"],
        ["--train.resume step-9: it is not there, or has no manifest"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_plain_words_and_leaves_nothing(
    case, tmp_path, reviews, checkpoint, monkeypatch, capsys
):
    make_source, make_model, words, expected = BAD_INPUT[case]
    source = make_source(tmp_path) if make_source else reviews
    model = make_model(tmp_path, checkpoint) if make_model else checkpoint
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # on machines with a GPU as well
    monkeypatch.setattr(launch, "cpu_has_bf16", lambda: False)
    code = leave("run", "--data.source", source, "--model.checkpoint", model, "--output_dir", tmp_path / "out", *words)
    shown = capsys.readouterr()
    assert code == 2, shown.err
    assert shown.err.startswith("hf-transfer: ")
    assert [part for part in expected if part not in shown.err] == []
    assert "Traceback" not in shown.err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_a_finished_run_is_refused_and_left_as_it_was(tmp_path, reviews, checkpoint, capsys):
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    code = leave("run", "--data.source", reviews, "--model.checkpoint", checkpoint, "--output_dir", tmp_path)
    assert code == 2
    assert "already holds a finished run (results.json): choose another folder, or pass --overwrite" in (
        capsys.readouterr().err
    )
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("results.json", "{}")]


def test_what_others_named_cannot_steer_the_terminal(monkeypatch, capsys):
    """Labels, domains and file names are quoted in messages, and may hold anything."""
    with pytest.raises(SystemExit), cli.exit_codes():
        raise InputError(["the label \x1b[2J\x1b]0;x\x07 and \u202eegnahc", "a second\nline\r"])
    said = capsys.readouterr().err
    assert "the label \ufffd[2J\ufffd]0;x\ufffd and \ufffdegnahc\n  - a second\nline\ufffd\n" in said
    with pytest.raises(SystemExit), cli.exit_codes():
        raise RunError("lost \x9b1m")
    assert capsys.readouterr().err == "hf-transfer: the run failed: lost \ufffd1m\n"
