"""Floor 5: `hf-transfer translate`: one line in, one line out, in order and in constant memory."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from hf_transfer.errors import InputError

SECONDS_PER_NOTE = 10.0


def main(words: Sequence[str]) -> None:
    """What the command does with its arguments.

    Raises:
        InputError: no such input or device, an output that exists, or bytes that are not UTF-8 (with their line).
    """
    parser = argparse.ArgumentParser(
        prog="hf-transfer translate",
        allow_abbrev=False,
        description="Translate a file line by line with a saved model; empty lines stay empty.",
    )
    parser.add_argument("--model", required=True, help="folder of a saved model, or of the run that saved it")
    parser.add_argument("--input", required=True, help="text file, a sentence per line; - is standard input")
    parser.add_argument("--output", required=True, help="file to write; - is standard output")
    parser.add_argument("--source_lang", help="by default the language that the model was adapted with")
    parser.add_argument("--target_lang", help="likewise")
    parser.add_argument("--domain", help="domain tag, for a model that was adapted with --data.domain_tags")
    scored = "default: as the model was scored"
    parser.add_argument("--beams", type=int, help=f"width of the beam search, 1 is greedy ({scored}, else 4)")
    parser.add_argument("--length_penalty", type=float, help=f"over 1 for longer translations ({scored}, else 1)")
    parser.add_argument("--engine", choices=("torch", "ctranslate2"), help="default: torch, for an export ctranslate2")
    parser.add_argument("--lines_at_once", type=int, default=1024, help="lines in memory at a time (default: 1024)")
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    given = parser.parse_args(list(words))
    problems = []
    if given.input != "-" and not Path(given.input).is_file():
        problems.append(f"--input {given.input}: there is no such file.")
    if given.output != "-" and Path(given.output).exists():
        if not Path(given.output).is_file():
            problems.append(f"--output {given.output} is a folder or a device, which no file can replace: name a file.")
        elif not given.overwrite:
            problems.append(f"--output {given.output} exists: choose another file, or pass --overwrite.")
    if given.output != "-" and not Path(given.output).absolute().parent.is_dir():
        problems.append(f"--output {given.output}: there is no folder {Path(given.output).absolute().parent}.")
    for name in ("beams", "lines_at_once"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            problems.append(f"--{name} must be 1 or more, found {getattr(given, name)}.")
    if problems:
        raise InputError(problems)
    from hf_transfer.loading import load
    from hf_transfer.translating import Translator

    translator = load(given.model, given.device, given.engine)
    if not isinstance(translator, Translator):
        raise InputError(f"--model {given.model} does not translate: use hf-transfer predict.")
    with _opened(given.input) as stream, _written(given.output) as out:
        count = translate_lines(
            translator,
            stream,
            out,
            given.lines_at_once,
            given.input,
            source_lang=given.source_lang,
            target_lang=given.target_lang,
            beams=given.beams,
            length_penalty=given.length_penalty,
            domain=given.domain,
        )
    print(f"{count:,} lines translated: {given.output}", file=sys.stderr)


def translate_lines(
    translator: Any, stream: BinaryIO, out: TextIO, lines_at_once: int, name: str = "input", **how: Any
) -> int:
    """Translate every line of ``stream`` to a line of ``out``; returns how many. ``how`` goes to ``translate``."""
    started = noted = time.monotonic()
    count = 0
    for lines in _chunks(stream, lines_at_once, name):
        for text in translator.translate(lines, first_number=count + 1, **how):
            out.write(" ".join(text.split("\n")) + "\n")
        out.flush()
        count += len(lines)
        now = time.monotonic()
        if now - noted >= SECONDS_PER_NOTE:
            noted = now
            print(f"{count:,} lines, {count / (now - started):,.1f} sentences/s", file=sys.stderr, flush=True)
    return count


def _chunks(stream: BinaryIO, size: int, name: str) -> Iterator[list[str]]:
    number = 0
    while raw := list(islice(stream, size)):
        lines = []
        for line in raw:
            number += 1
            try:
                lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{name}, line {number}: byte {error.start} is not UTF-8: convert the file, with iconv say."
                ) from None
        yield lines


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    with Path(path).open("rb") as stream:
        yield stream


@contextmanager
def _written(path: str) -> Iterator[TextIO]:
    """The output, which appears whole or not at all; standard output is written as it comes."""
    if path == "-":
        out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="\n")  # whatever the locale says
        try:
            yield out
        finally:
            out.detach()
        return
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as out:
            yield out
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
