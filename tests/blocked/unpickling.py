"""Writes down what a process unpickles, and which files of pickled tensors it opens: one line for each, in the file
that ``HF_TRANSFER_UNPICKLED`` names. ``sitecustomize`` puts it into every process of a test that sets it."""

import os
import sys
import traceback

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz")
"""torch unpickles weights by code of its own, which raises no event; opening the file does."""


def watch(place: str) -> None:
    """From now on; an audit hook cannot be taken back."""
    descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def hook(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class":
            what = f"{arguments[0]}.{arguments[1]}"
        elif event == "open" and str(arguments[0]).endswith(PICKLE_ENDINGS):
            what = f"file {arguments[0]}"
        else:
            return
        os.write(descriptor, f"{what} by {callers()}\n".encode())

    sys.addaudithook(hook)


def callers() -> str:
    """The functions that led to the one which asks, the nearest first."""
    found = [f"{frame.filename.rsplit('site-packages/')[-1]}:{frame.name}" for frame in traceback.extract_stack()]
    return " < ".join(found[-3:-11:-1])
