"""Data that comes with the package, so that a first run needs no network and no download.

Written for this project: see the README for how, and for what may and may not be concluded from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_transfer.errors import InputError
from hf_transfer.sources.base import closest


@dataclass(frozen=True)
class Bundled:
    """One data set of the package."""

    folder: Path
    """One JSON Lines file per domain: ``text, label, split`` for classification, ``source, target, split`` (a sentence
    and its translation) for translation."""
    default_train_domains: tuple[str, ...]
    """What to train on where the user names nothing; the other domains show the shift."""
    task: str = "classification"


FOLDER = Path(__file__).parent / "bundled"
BUNDLED = {
    "reviews": Bundled(FOLDER / "reviews", default_train_domains=("books", "kitchen")),
    "phrases": Bundled(FOLDER / "phrases", default_train_domains=("kitchen",), task="translation"),
}
"""``reviews`` are for classification; ``phrases`` are English sentences with their German translation."""


def find_bundled(name: str, task: str) -> Bundled:
    """The data set ``bundled:NAME``.

    Raises:
        InputError: there is no such name, or it is for another task than ``task``.
    """
    if name not in BUNDLED:
        known = ", ".join(f"bundled:{item}" for item in BUNDLED)
        raise InputError(f"--data.source bundled:{name} is not known.{closest(name, BUNDLED)} There is {known}.")
    found = BUNDLED[name]
    if found.task != task:
        fitting = " or ".join(f"bundled:{item}" for item, other in BUNDLED.items() if other.task == task)
        raise InputError(
            f"--data.source bundled:{name} is for {found.task}, and this is {task}: use {fitting}, or --task "
            f"{found.task}."
        )
    return found
