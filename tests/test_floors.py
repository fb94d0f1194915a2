"""The shape of the package: imports go down the floors, each dependency has its doors, and there is one backward."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_transfer"

# File or folder -> floor. An import leads to a lower floor, or stays inside its own folder. The whole number is the one
# that a file's first line states; the half says which of two files of a floor stands on the other.
FLOORS = {
    "errors": 0,
    "version": 0,
    "records": 0,
    "mapped": 0,
    "fields": 0,
    "config": 0.3,
    "command_line": 0.6,
    "statistics": 1,
    "cross_entropy": 1,
    "long_texts": 1,
    "languages": 1,
    "translation_scores": 1,
    "output_layer": 1.5,
    "decoding": 1.7,
    "flattened": 1.6,
    "compiled": 2,
    "layers": 1.7,
    "batching": 1,
    "content_cache": 1,
    "checkpoint_files": 1,
    "beginnings": 1,
    "dropout": 1,
    "on_device": 1,
    "step_log": 1,
    "preemption": 1,
    "watch": 1,
    "eval_mode": 1,
    "duplicates": 1,
    "labels": 0.9,
    "launch": 1.5,
    "robustness": 1,
    "sources/": 1,
    "metrics": 1.5,
    "splits": 1.5,
    "calibration": 1.6,
    "significance": 1.6,
    "pretrained": 2,
    "vocabulary": 2,
    "tasks/": 2,
    "adapt/": 2,
    "optim": 2.5,
    "schedule": 2.5,
    "windows": 2.5,
    "token_budget": 2.5,
    "feature_store": 2,
    "features": 2.5,
    "cost": 2.5,
    "encoding": 2.5,
    "controls": 2.6,
    "layer_probe": 2.65,
    "distances": 2.6,
    "text": 2.7,
    "checkpoint": 3,
    "predict": 3,
    "interpolation": 3,
    "knn": 3,
    "ctranslate2_engine": 3,
    "onnx_engine": 3,
    "before_training": 3.2,
    "model_selection": 3.2,
    "train": 3.5,
    "translating": 3.8,
    "loading": 4,
    "shift": 4,
    "folder": 4,
    "snippets": 4.1,
    "report/": 4.2,
    "layer_runs": 4.25,
    "translation_run": 4.3,
    "control_runs": 4.5,
    "domain_distances": 4.5,
    "artefact": 4.5,
    "trackers": 4.3,
    "parcel": 4.6,
    "publishing": 4.7,
    "comparison": 4.5,
    "preparing": 4.5,
    "page": 5,
    "rehearsal": 5.2,
    "speed": 5.3,
    "store_cost": 5.3,
    "planning": 5.4,
    "predict_file": 5,
    "translate_file": 5,
    "make_vocabulary": 5,
    "rebuild": 5,
    "compare_runs": 5.5,
    "cli": 6,
    "__init__": 7,
    "recipes/": 8,
}

# Top-level import name -> the files that may import it, at the top or inside a function. A breaking release of one of
# them then touches these files and no other.
DOORS = {
    "accelerate": {
        "checkpoint",
        "compiled",
        "control_runs",
        "folder",
        "launch",
        "layer_runs",
        "predict",
        "token_budget",
        "trackers",
        "train",
        "translation_run",
    },
    "datasets": {
        "compare_runs",
        "content_cache",
        "control_runs",
        "domain_distances",
        "encoding",
        "metrics",
        "page",
        "planning",
        "mapped",
        "predict",
        "preparing",
        "sources/base",
        "sources/files",
        "sources/hub",
        "tasks/translation",
        "train",
        "translation_run",
    },
    "ctranslate2": {"ctranslate2_engine"},
    "evaluate": {"metrics"},
    "huggingface_hub": {"config", "parcel", "pretrained", "publishing", "report/card_metadata"},
    "jinja2": {"report/html"},
    "jsonargparse": {"command_line"},
    "matplotlib": {"report/plots"},
    "mlflow": {"trackers"},
    "onnx": {"onnx_engine"},
    "onnxruntime": {"onnx_engine"},
    "onnxscript": {"onnx_engine"},
    "peft": {"adapt/lora", "loading"},
    "pyarrow": {
        "content_cache",
        "duplicates",
        "mapped",
        "sources/base",
        "sources/files",
        "sources/pairs",
        "sources/parallel",
        "sources/tmx",
        "text",
    },
    "rich": {"report/comparison_console", "report/console", "report/plan_console", "report/progress"},
    "sacrebleu": {"translation_scores"},
    "faiss": {"knn"},
    "sentencepiece": {"vocabulary"},
    "safetensors": {"artefact", "adapt/lora", "checkpoint", "layers", "loading", "pretrained"},
    "scipy": {"calibration", "controls", "distances", "layer_probe", "metrics", "robustness", "significance"},
    "sklearn": {"controls", "distances", "metrics"},
    "transformers": {
        "ctranslate2_engine",
        "decoding",
        "features",
        "flattened",
        "languages",
        "layers",
        "loading",
        "onnx_engine",
        "pretrained",
    },
    "yaml": {"command_line", "compare_runs", "config", "pretrained", "rebuild", "report/markdown", "report/tables"},
}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc"}
# where the name that is imported is not the name that is installed
IMPORT_NAMES = {"scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub"}


def modules() -> list[str]:
    """Every file of the package, as ``train`` or ``adapt/lora``."""
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


@functools.cache
def tree_of(module: str) -> ast.Module:
    path = ROOT / f"{module}.py" if module.startswith("recipes/") else PACKAGE / f"{module}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def place_of(module: str) -> str:
    """The line of ``FLOORS`` that a file belongs to: its folder's, or its own."""
    folder, slash, _ = module.partition("/")
    return folder + slash


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of each import, inside functions too; what only type checkers see is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for alternative in node.orelse:
                yield from imports_of(alternative)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the whole path, so that they can be searched for"
            yield from ((node.lineno, str(node.module), alias.name) for alias in node.names)
        else:
            yield from imports_of(node)


def inner_imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and file of each import of the package's own."""
    known = set(modules())
    for line, name, imported in imports_of(tree_of(module)):
        if name.split(".")[0] != "hf_transfer":
            continue
        path = name.replace(".", "/").removeprefix("hf_transfer").removeprefix("/")
        # `from hf_transfer import checkpoint` names a file, `from hf_transfer.train import train` a thing inside one
        candidates = [f"{path}/{imported}".strip("/"), path, f"{path}/__init__".strip("/")]
        found = next((candidate for candidate in candidates if candidate in known), None)
        assert found is not None, f"{module}:{line}: {name} {imported} is no file of the package"
        yield line, found


ALL = [*modules(), *sorted(f"recipes/{path.stem}" for path in (ROOT / "recipes").glob("*.py"))]


def test_every_file_has_a_floor_and_every_floor_a_file():
    assert {place_of(module) for module in ALL} == set(FLOORS), "add the new file to FLOORS, or take the old one out"


@pytest.mark.parametrize("module", ALL)
def test_imports_go_down_the_floors(module):
    mine = place_of(module)
    for line, found in inner_imports(module):
        theirs = place_of(found)
        if theirs == mine and mine.endswith("/"):
            assert not found.endswith("/__init__"), f"{module}:{line} imports its own folder: name the file inside"
            continue
        assert FLOORS[theirs] < FLOORS[mine], (
            f"{module}:{line} imports {found} of floor {FLOORS[theirs]} from floor {FLOORS[mine]}: imports go down"
        )


@pytest.mark.parametrize("module", modules())
def test_a_file_that_states_its_floor_states_the_right_one(module):
    stated = re.match(r"Floor (\d)\b", ast.get_docstring(tree_of(module)) or "")
    if stated:
        assert int(stated[1]) == int(FLOORS[place_of(module)])


@pytest.mark.parametrize("dependency", DOORS)
def test_a_dependency_is_imported_through_its_doors_only(dependency):
    found = {module for module in ALL for _, name, _ in imports_of(tree_of(module)) if name.split(".")[0] == dependency}
    assert found <= DOORS[dependency], "open no new door for it; if it must be, change DOORS and say why"
    assert found >= DOORS[dependency], "a door that nobody uses any more: take it out of DOORS"


def test_there_is_one_backward_and_it_is_in_the_loop():
    calls = [
        module
        for module in ALL
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    ]
    assert calls == ["train"]


@pytest.mark.parametrize("module", ALL)
def test_nothing_is_unpickled(module):
    tree = tree_of(module)
    assert not PICKLES & {name.split(".")[0] for _, name, _ in imports_of(tree)}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"torch.load", "torch.save"}
    assert "allow_pickle=True" not in ast.unparse(tree)


def calls_in(nodes: list[ast.stmt]) -> set[str]:
    """Names of all functions and methods that are called in ``nodes``."""
    calls = [node.func for root in nodes for node in ast.walk(root) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)}


def of_one_process(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a function that the main process alone comes to, or all the others alone."""
    for place, node in enumerate(body):
        if isinstance(node, ast.If) and re.search(r"\bis_main(_process)?\b", ast.unparse(node.test)):
            yield from (*node.body, *node.orelse)
            if isinstance(node.body[-1], ast.Return):
                yield from body[place + 1 :]
        for name in ("body", "orelse", "finalbody"):
            yield from of_one_process(getattr(node, name, []))


EXCHANGING = {"gather", "gather_object", "wait_for_everyone", "broadcast_object_list", "all_reduce", "prepare"}
TOGETHER = {
    *("learn_window", "predict", "pooled_states", "sum_over_processes", "failing_together", "open_run_folder"),
    *("save_checkpoint", "save_best", "save_for_average", "load_average", "read_parameters", "whole_tensor"),
    *("whole_model", "start_processes", "leave_processes", "join_processes", "solve_probe", "one_for_all"),
    *("prepare_stage", "agreed_budget"),
}
"""Functions of the package that all processes call together."""


def test_what_all_processes_take_part_in_is_never_left_to_one():
    """Else the others would wait for those that do not come."""
    functions = [
        node for module in modules() for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef)
    ]
    assert {function.name for function in functions} >= TOGETHER
    seen = 0
    for function in functions:
        alone = list(of_one_process(function.body))
        seen += bool(alone)
        found = calls_in(alone) & (EXCHANGING | TOGETHER)
        assert not found, f"{function.name}, line {function.lineno}: {found}"
    assert seen > 8


def test_file_names_say_what_is_inside_and_hide_no_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]]
    taken = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in wanted} | set(DOORS)
    names = {part for module in modules() for part in module.split("/")}
    assert not names & taken, "a file with the name of a dependency is imported in its place from inside the folder"
    assert not names & SAY_NOTHING, "name the file after what is in it"


def test_public_names_are_where_the_package_looks_for_them():
    import hf_transfer

    for name, home in hf_transfer._HOMES.items():
        module = home if home in modules() else f"{home}/__init__"
        defined = {node.name for node in tree_of(module).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        imported = {name for _, _, name in imports_of(tree_of(module))}
        assert name in defined | imported, f"hf_transfer.{name} is not in hf_transfer/{module}.py"
    assert set(hf_transfer.__all__) == {"__version__", *hf_transfer._HOMES}


def test_no_public_name_is_also_a_file():
    """Importing ``hf_transfer.run`` would put the module in the place of the function ``hf_transfer.run``."""
    import hf_transfer

    assert not set(hf_transfer.__all__) & {module.split("/")[0] for module in modules()}
