"""Every test runs offline, quietly, and with its own caches."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))  # tests share tiny.py and toy.py

import pytest

ROOT = Path(__file__).parent.parent


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
