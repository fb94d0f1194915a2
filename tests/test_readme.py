"""What the README and the files beside it say is what the package does: commands, names, trees, settings and pins."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hf_transfer as ht
from hf_transfer.command_line import RENAMED, load_config
from hf_transfer.fields import flatten

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = (
    'pip install -c constraints.txt -e ".[demo]" && accelerate launch recipes/text_cls.py',
    'pip install -c constraints.txt -e ".[test]" && pytest',
)
GLOSSARY = (
    *("example", "domain", "in-domain", "shifted", "source", "target", "body", "head", "strategy", "control"),
    *("window", "micro-batch", "score", "gap", "artefact"),
)
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
LAUNCHERS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/LOG.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {title!r}"
    return found[1]


def rows_of_table(text: str) -> list[list[str]]:
    """Cells of the rows of the table in ``text``, without header and rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def commands() -> Iterator[list[str]]:
    """Words of every command in a bash block, joined over lines, cut at ``&&``, without comments and environment."""
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    command.pop(0)
                yield command


# ---- commands --------------------------------------------------------------------------------------------------


def test_the_two_set_up_commands_are_there_word_for_word_and_ci_reads_them():
    marked = re.findall(r"^<!-- set-up -->\n```bash\n(.*)\n```$", README, re.MULTILINE)
    assert tuple(marked) == SET_UP
    listed = subprocess.run([ROOT / ".ci" / "run", "--list"], capture_output=True, text=True, check=True)
    assert tuple(listed.stdout.splitlines()) == SET_UP


def test_the_first_run_shows_its_output():
    found = re.search(r"^<!-- first run -->\n```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found
    assert "Scores with 95% intervals" in found[1]


def accepts(flags: list[str], defaults: dict[str, str]) -> None:
    """Read the flags of a run as the command would; ``--help`` and the like end there."""
    try:
        load_config(flags, "x", defaults)
    except SystemExit as left:
        assert left.code == 0


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_flags_that_are_accepted(command, monkeypatch, capsys):
    recipe = {"task": "classification", "output_dir": "runs/text_cls"}
    if command[:2] in (["hf-transfer", "run"], ["hf-transfer", "plan"]):
        accepts(command[2:], {})
    elif command[:2] == ["hf-transfer", "predict"]:
        from hf_transfer import predict_file
        from hf_transfer.cli import main

        monkeypatch.setattr(predict_file, "predict_file", lambda *_: 0)
        main(command[1:])
    elif command[:2] == ["hf-transfer", "push"]:
        from hf_transfer import publishing
        from hf_transfer.cli import main

        pushed = []
        monkeypatch.setattr(publishing, "push", lambda *given: pushed.append(given))
        main(command[1:])
        assert pushed
    elif command[:2] == ["hf-transfer", "compare"]:
        from hf_transfer.command_line import read_command_line

        assert read_command_line(command[2:], "x", ht.CompareConfig).strategies
    elif command[:2] == ["hf-transfer", "report"]:
        from hf_transfer import rebuild
        from hf_transfer.cli import main

        monkeypatch.setattr(rebuild, "rebuild_report", lambda *_: ({}, ""))
        monkeypatch.setattr("hf_transfer.report.print_comparison", lambda *_, **__: None)
        main(command[1:])
    elif command[:2] == ["hf-transfer", "translate"]:
        from hf_transfer.translate_file import main as translate

        with pytest.raises(ht.InputError) as caught:
            translate(command[2:])
        assert len(caught.value.problems) == 1 and "no such file" in caught.value.problems[0]
    elif command[0] == "python":
        assert (ROOT / command[1]).is_file()
        accepts(command[2:], recipe)
    elif command[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        given = launch_command_parser().parse_args(command[2:])
        assert (ROOT / given.training_script).is_file()
        assert given.config_file is None or (ROOT / given.config_file).is_file()
        accepts(given.training_script_args, recipe)
    elif command[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(command[1:])
        assert (ROOT / given.training_script).is_file()
        accepts(given.training_script_args, recipe)
    else:
        assert command[0] in ("pip", "pytest") or command == ["hf", "auth", "login"], (
            f"this test does not know how to check {command[0]}"
        )


def test_commands_of_every_kind_are_checked():
    starts = {command[0] for command in commands()}
    assert starts >= {"hf-transfer", "accelerate", "torchrun", "pip", "pytest"}


# ---- Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.strip().splitlines()[-1][:60])
def test_python_blocks_use_names_and_arguments_that_exist(block):
    tree = ast.parse(block)
    names = {"ht": ht}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ht":
            assert node.attr in ht.__all__
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in names:
            function = eval(ast.unparse(node.func), names)
            keywords = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(function).bind(*node.args, **keywords)


def test_python_blocks_are_there():
    assert len(blocks("python")) >= 4


# ---- words and trees -------------------------------------------------------------------------------------------


def named_in_tree() -> set[str]:
    """Paths that the tree of the README names, folders with a slash at the end."""
    block = re.search(r"^```\n(.*?)^```$", section("The tree"), re.MULTILINE | re.DOTALL)
    assert block
    found, above = set(), []
    for line in block[1].splitlines():
        indent, name, phrase = re.fullmatch(r"( *)(\S+)(?: +(\S.*))?", line).groups()
        assert phrase or name.endswith("/"), f"{name} needs its phrase"
        above = [*above[: len(indent) // 2], name]
        found.add("".join(above))
    return found


def test_the_tree_names_every_file_and_nothing_else():
    named = named_in_tree()
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("hf_transfer", "recipes")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed", ".j2")
    }
    assert {name for name in named if not name.endswith("/")} == there
    assert all((ROOT / name).is_dir() for name in named if name.endswith("/"))


def test_the_glossary_explains_every_word():
    explained = set(re.findall(r"\*\*([\w-]+)\*\*", section("Glossary")))
    assert explained == set(GLOSSARY)


def test_every_output_of_a_run_is_explained():
    from hf_transfer.folder import OUTPUTS

    text = section("What a run leaves behind")
    assert [name for name in OUTPUTS if not re.search(rf"^  {re.escape(name)}/? ", text, re.MULTILINE)] == []


def test_strategies_are_listed_with_the_rates_that_they_have():
    from hf_transfer.config import STRATEGIES_OF

    found = {}
    for name, _, body, head, _ in rows_of_table(section("Strategies")):
        found[name.strip("`")] = (None if body == "none" else float(body), float(head))
    train = ht.TrainConfig()
    expected = {
        name: (train.body_learning_rate(name), train.head_rate(name)) for name in STRATEGIES_OF["classification"]
    }
    assert found == expected | {"probe": (None, expected["probe"][1])}


def test_metrics_are_listed_by_problem():
    from hf_transfer.metrics import METRICS

    paragraph = re.search(r"\*\*Metrics\*\*.*?\n\n", README, re.DOTALL)
    assert paragraph
    parts = re.split(r"For one label of many:|for several at once:|for numbers:", paragraph[0])[1:]
    for problem, part in zip(("single_label", "multi_label", "regression"), parts, strict=True):
        expected = {name for name, metric in METRICS.items() if problem in metric.problems}
        assert set(re.findall(r"`(\w+)`", part)) == expected


def test_the_table_of_flags_gives_the_names_that_messages_give():
    table = rows_of_table(section("Flags, exit codes, security"))
    assert len(table) >= 10
    for there, here in table:
        for name in re.findall(r"--(\w+)", there):
            assert re.findall(r"--([\w.]+)", here)[0] == RENAMED[name]


def test_every_setting_that_is_named_exists():
    known = flatten(ht.RunConfig())
    for name in re.findall(r"--((?:data|model|adapt|train|evaluate|publish)\.\w+)", README):
        assert name in known


def test_the_readme_never_advises_the_other_package():
    assert not re.search(r"pip install\s+[\"']?hf[_-]transfer\b(?!-learning)", README)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (path.parent / target.split("#")[0]).exists(), f"{document} links to {target}"


# ---- settings, launchers, pins ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_accepted(path):
    config = load_config(["--config", str(path)], "x")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.output_dir == given["output_dir"]
    assert path.read_text(encoding="utf-8").startswith("# "), "its first line says what it is for"


def test_the_shipped_configs_are_those_that_are_promised():
    expected = {"reviews", "intents", "multi_label", "regression", "pairs", "lora", "freeze_gradual"}
    assert {path.stem for path in CONFIGS} >= expected


def test_the_reviews_config_is_the_demo_spelled_out():
    from hf_transfer.sources.bundled import BUNDLED

    spelled_out = flatten(load_config(["--config", str(ROOT / "recipes/configs/reviews.yaml")], "x"))
    assert spelled_out.pop("data.train_domains") == BUNDLED["reviews"].default_train_domains
    domains = spelled_out.pop("data.test_domains")
    assert set(domains) == {path.stem for path in BUNDLED["reviews"].folder.glob("*.jsonl")}
    defaults = flatten(ht.RunConfig())
    assert spelled_out == {name: defaults[name] for name in spelled_out}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_accelerate_reads_every_launcher_config(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    loaded = load_config_from_file(str(path))
    flags = {action.dest for action in launch_command_parser()._actions}
    assert set(loaded.fsdp_config) <= flags, "accelerate would pass over a key that it does not know"
    expected = {"cpu": "NO", "one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "machines": "MULTI_GPU"}
    expected |= {"cpu_machines": "MULTI_GPU"}  # of which accelerate starts several processes; the environment says CPU
    assert loaded.distributed_type.value == expected[path.stem]
    assert loaded.use_cpu == path.stem.startswith("cpu")
    assert (loaded.num_machines > 1) == path.stem.endswith("machines")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\d[\w.]*", line) for line in pinned), "NAME==VERSION, no file, no local version"
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pinned}


def test_the_pins_cover_what_the_project_asks_for_and_lie_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = pins()
    assert next(iter(pinned.items())) == ("torch", "2.13.0")
    for line in (*project["dependencies"], *extras["demo"], *extras["test"]):
        wanted = Requirement(line)
        if wanted.name != project["name"]:
            assert Version(pinned[canonicalize_name(wanted.name)]) in wanted.specifier


def test_the_sections_of_a_run_are_public():
    """What the README builds a ``RunConfig`` from is exported under the name that it has there."""
    for item in fields(ht.RunConfig):
        kind = type(getattr(ht.RunConfig(), item.name))
        assert kind.__module__ == "builtins" or kind.__name__ in ht.__all__
