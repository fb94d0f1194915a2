"""Every test, and every process that a test starts, runs offline with outgoing connections refused, on one thread."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests share tiny.py and toy.py
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE / "blocked"), os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models lose time to threads, more so on a busy machine

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="hf-transfer-tests-")  # no run of before is found again

import blocked.sitecustomize  # noqa: E402,F401
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
ROOT = HERE.parent


def pytest_unconfigure() -> None:
    """Delete what was cached."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


RECIPES_OF_EACH_CHANGE = ("test_text_cls", "test_train", "test_predict", "test_artefact")
"""Files whose recipe tests run with every change; the others belong to the slow tier, as two slow cores would take over
twenty minutes for all of them."""


LONG_FILES = ("test_onnx_engine", "test_ctranslate2_engine", "test_compare_translation")
"""Files that belong to the slow tier as a whole, for the same reason."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move recipe tests of other files to the slow tier, but for those that look at one finished comparison."""
    for item in items:
        is_recipe = item.get_closest_marker("recipe") is not None
        is_late = is_recipe and item.path.stem not in RECIPES_OF_EACH_CHANGE and "finished" not in item.fixturenames
        if is_late or item.path.stem in LONG_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data sets and checkpoints; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("HF_TRANSFER_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set HF_TRANSFER_SHARED to a folder that holds data/")
    return folder
