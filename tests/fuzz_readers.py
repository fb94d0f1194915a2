"""Run by test_fuzz.py, or by hand to look for longer: one reader under libFuzzer, guided by coverage of this package.

    python tests/fuzz_readers.py KIND FOLDER RUNS [more options of libFuzzer]

Begins with the valid file and with the corpus of the kind, and ends with an error at the first input that is neither
read nor refused in words; FOLDER then holds it as ``crash-...``. The same RUNS try the same inputs.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris
import datasets

sys.path.insert(0, str(Path(__file__).parent))
SECONDS = 20
"""That a single input may take on a busy machine; a hang takes longer."""


def main() -> None:
    """Fuzz; libFuzzer ends the process."""
    kind, folder, runs, *more = sys.argv[1:]
    logging.disable(logging.WARNING)
    with atheris.instrument_imports(include=["hf_transfer"], enable_loader_override=False):
        from readers import CORPUS, READERS, TROUBLE, command_line, parse_quickly, read_or_refuse, write_valid

        command_line._build_parser = parse_quickly
        datasets.disable_caching()
        path = write_valid(kind, Path(tempfile.mkdtemp(dir=folder)))
        READERS[kind](path)  # imports what is imported when it is needed
    found = Path(folder, "found")
    found.mkdir(exist_ok=True)
    (found / "valid").write_bytes(path.read_bytes())
    words = Path(folder, "words.txt")
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in TROUBLE if len(word) < 64)
    words.write_text("".join(f'"{word}"\n' for word in quoted), encoding="ascii")

    def attempt(data: bytes) -> None:
        read_or_refuse(kind, path, data)

    options = [f"-runs={runs}", "-seed=1", f"-timeout={SECONDS}", "-rss_limit_mb=6000", "-print_final_stats=1"]
    options += [f"-dict={words}", f"-artifact_prefix={folder}/", "-reload=0", *more]
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / kind)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
