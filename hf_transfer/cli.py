"""Floor 6: the command line: `hf-transfer run`, `hf-transfer predict`, and what recipes call.

Nothing heavy is imported before a command line has been read and found right.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hf_transfer.errors import InputError, RunError
from hf_transfer.version import __version__

USAGE = """usage: hf-transfer COMMAND [...]

Adapt a pretrained transformer to your text, and learn what it is worth outside its training domain.

commands:
  run      adapt, score by domain, save, prove and report; `hf-transfer run --help` lists every setting
  predict  labels and probabilities for the texts of a file; `hf-transfer predict --help`

  --version, --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `hf-transfer`; exits with 0 done, 1 failed, 2 refused input."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "run": _run,
        "predict": _predict,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif words[0] == "--version":
        print(f"hf-transfer-learning {__version__}")
    else:
        with exit_codes():
            if words[0] not in commands:
                raise InputError(f"there is no command {words[0]!r}: use run or predict.")
            commands[words[0]](words[1:])


def _run(words: Sequence[str]) -> None:
    from hf_transfer.config import load_config

    config = load_config(words, "hf-transfer run")
    from hf_transfer.page import run

    run(config)


def _predict(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="hf-transfer predict",
        allow_abbrev=False,
        description="Label the texts of a file with a saved model, in constant memory.",
        epilog="The output has the input's columns, then `predicted` and one `probability_NAME` per class.",
    )
    parser.add_argument("--model", required=True, help="folder of a saved model, or of the run that saved it")
    parser.add_argument("--input", required=True, help=".csv, .tsv or .jsonl file")
    parser.add_argument("--output", required=True, help=".csv, .tsv or .jsonl file to write")
    parser.add_argument("--text_column", default="text", help="column with the text (default: text)")
    parser.add_argument("--text_pair_column", help="column with the second text of a pair")
    parser.add_argument("--rows_at_once", type=int, default=1024, help="rows in memory at a time (default: 1024)")
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    given = parser.parse_args(list(words))
    from hf_transfer.predict_file import predict_file

    count = predict_file(
        given.model,
        Path(given.input),
        Path(given.output),
        given.text_column,
        given.text_pair_column,
        given.rows_at_once,
        given.device,
        given.overwrite,
    )
    print(f"{count:,} rows labelled: {given.output}")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Say what went wrong inside in plain words, once, and leave with its exit code."""
    try:
        yield
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":  # every process finds the same problems
            print(f"hf-transfer: {len(error.problems)} problem{'s' * (len(error.problems) > 1)}", file=sys.stderr)
            for problem in error.problems:
                print(f"  - {problem}", file=sys.stderr)
        else:
            time.sleep(1)  # a launcher ends all processes with the first one: let that be the one that has spoken
        sys.exit(error.exit_code)
    except RunError as failure:
        print(f"hf-transfer: the run failed: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        print("hf-transfer: interrupted", file=sys.stderr)
        sys.exit(130)
