"""Floor 6: the command line: `hf-transfer run`, `plan`, `compare`, `report`, `predict`, `translate`, `push` and
`vocabulary`.

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
from typing import NoReturn

from hf_transfer.errors import EndedElsewhere, InputError, Preempted, RunError, printable
from hf_transfer.version import __version__

SECONDS_FOR_THE_FIRST_PROCESS = 30
"""How long the other processes of a launch leave it to the first one to say what is wrong.

It ends with the first process, so it costs nothing where all find the same; on a busy machine, reading a large data set
takes one process seconds longer than another."""

USAGE = """usage: hf-transfer COMMAND [...]

Adapt a pretrained transformer to your text, and learn what it is worth outside its training domain.

commands:
  run         adapt, score by domain, save, prove and report; `hf-transfer run --help` lists every setting,
              `--task translation` makes it translation
  plan        what `run` with the same flags would train, compute, hold and take; nothing is trained or written
  compare     several strategies, controls and seeds on the same data: which is best, and is it real?
  report      the report again, from the results.json of one comparison or of several runs
  predict     labels and probabilities for the texts of a file; `hf-transfer predict --help`
  translate   a file or standard input, line by line, with a saved model; `hf-transfer translate --help`
  push        the model of a finished run, its card and its numbers to the Hugging Face Hub; `hf-transfer push --help`
  vocabulary  a SentencePiece vocabulary and a Marian architecture for training from scratch

  --version, --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `hf-transfer`; exits with 0 done, 1 failed, 2 refused input, 75 told to leave."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "run": _run,
        "plan": _plan,
        "compare": _compare,
        "report": _report,
        "predict": _predict,
        "translate": _translate,
        "push": _push,
        "vocabulary": _vocabulary,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif words[0] == "--version":
        print(f"hf-transfer-learning {__version__}")
    else:
        with exit_codes():
            if words[0] not in commands:
                raise InputError(f"there is no command {words[0]!r}: use {', '.join(commands)}.")
            commands[words[0]](words[1:])


def _run(words: Sequence[str]) -> None:
    from hf_transfer.command_line import load_config

    config = load_config(words, "hf-transfer run")
    from hf_transfer.page import run

    run(config)


def _plan(words: Sequence[str]) -> None:
    from hf_transfer.command_line import load_config

    config = load_config(words, "hf-transfer plan")
    from hf_transfer.planning import plan
    from hf_transfer.report.plan_console import print_plan

    print_plan(plan(config))


def _compare(words: Sequence[str]) -> None:
    from hf_transfer.command_line import read_command_line
    from hf_transfer.config import CompareConfig

    config = read_command_line(words, "hf-transfer compare", CompareConfig)
    from hf_transfer.compare_runs import compare

    compare(config)


def _report(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="hf-transfer report",
        allow_abbrev=False,
        description="Write the report of a comparison again, or join runs that were made at different times.",
    )
    parser.add_argument("folder", nargs="+", help="folder of a comparison or of a run, or a results.json")
    parser.add_argument("--output_dir", help="where to write (default: the comparison's own folder)")
    given = parser.parse_args(list(words))
    from hf_transfer.rebuild import rebuild_report
    from hf_transfer.report import print_comparison

    results, folder = rebuild_report(given.folder, given.output_dir)
    print_comparison(results, output_dir=folder)


def _predict(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="hf-transfer predict",
        allow_abbrev=False,
        description="Label the texts of a file with a saved model, in constant memory.",
        epilog="The output has the input's columns, then `predicted` and one `probability_NAME` per class; where the "
        "model translates, `predicted` is the translation.",
    )
    parser.add_argument("--model", required=True, help="folder of a saved model, or of the run that saved it")
    parser.add_argument("--input", required=True, help=".csv, .tsv or .jsonl file")
    parser.add_argument("--output", required=True, help=".csv, .tsv or .jsonl file to write")
    parser.add_argument("--text_column", default="text", help="column with the text (default: text)")
    parser.add_argument("--text_pair_column", help="column with the second text of a pair")
    parser.add_argument(
        "--engine", choices=("torch", "ctranslate2", "onnx"), help="default: torch; for an export its own"
    )
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
        given.engine,
    )
    print(f"{count:,} rows labelled: {given.output}")


def _translate(words: Sequence[str]) -> None:
    from hf_transfer import translate_file

    translate_file.main(words)


def _push(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="hf-transfer push",
        allow_abbrev=False,
        description="Send a finished run to the Hugging Face Hub in one commit: model or adapter, tokenizer, model "
        "card, results.json, config.yaml, the table of scores and its picture. They are listed first; no data, no "
        "checkpoints and no log go along.",
        epilog="The token is that of `hf auth login` or HF_TOKEN. Repeated, it sends what differs; where nothing does, "
        "it makes no commit.",
    )
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("--repo_id", required=True, help="me/model; made where it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private; refuse a public one")
    parser.add_argument("--revision", help="branch, made where it is missing (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of changing main")
    given = parser.parse_args(list(words))
    from hf_transfer.publishing import push

    push(given.folder, given.repo_id, given.private, given.revision, given.create_pr)


def _vocabulary(words: Sequence[str]) -> None:
    from hf_transfer import make_vocabulary

    make_vocabulary.main(words)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Say what went wrong inside in plain words, once, and leave with its exit code.

    Of several processes the first one speaks (``RANK`` is 0 or not set). `torchrun` and `accelerate launch` then end
    the others, add a summary of their own, and leave with 1 whatever the exit code was.
    """
    try:
        yield
    except InputError as error:
        problems = [f"  - {problem}" for problem in error.problems]
        _leave(error, f"{len(problems)} problem{'s' * (len(problems) > 1)}", *problems)
    except EndedElsewhere as end:
        if end.speak:
            print(printable(f"hf-transfer: the run failed: {end}"), file=sys.stderr, flush=True)
        sys.exit(end.exit_code)
    except RunError as failure:
        _leave(failure, f"the run failed: {failure}")
    except Preempted as notice:
        if not notice.together or os.environ.get("RANK", "0") == "0":
            print(f"hf-transfer: {notice}", file=sys.stderr, flush=True)
        sys.exit(notice.exit_code)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("hf-transfer: interrupted", file=sys.stderr)
        sys.exit(130)


def _leave(error: InputError | RunError, *lines: str) -> NoReturn:
    """Print ``lines`` and exit; every process but the first leaves it the word for a while.

    A launcher ends all processes when one has left: were another quicker than the first, nobody would have spoken. Who
    is still there after the wait has found what the first has not, such as a file that is missing on its machine.
    Processes that have met tell each other, so that the wait is short.
    """
    from hf_transfer import watch

    exit_code = error.exit_code
    rank = os.environ.get("RANK", "0")
    try:
        met = watch.current()
        if rank != "0" and met is not None and met.first_says(error):
            sys.exit(exit_code)
        if rank != "0" and met is None:
            time.sleep(SECONDS_FOR_THE_FIRST_PROCESS)
        speaker = "hf-transfer" if rank == "0" else f"hf-transfer, process {rank}"
        print(printable(f"{speaker}: " + "\n".join(lines)), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        exit_code = 130
    sys.exit(exit_code)
