"""Floor 5: `hf-transfer vocabulary`: the vocabulary of `scratch:marian-SIZE`, made alone and kept for several runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.vocabulary import (
    PIECES,
    SIZES,
    Coverage,
    check_replaceable,
    coverage,
    find_size,
    train_vocabulary,
    write_folder,
)


@dataclass(frozen=True)
class MadeVocabulary:
    """What `make_vocabulary` has written, for its last lines."""

    folder: Path
    pairs: int
    tokens: int
    """Rows of the embedding: pieces, tags and ``<pad>``."""
    source: Coverage
    target: Coverage
    notices: tuple[str, ...]


def main(words: Sequence[str]) -> None:
    """Read the command line of `hf-transfer vocabulary`, make the folder and say how well it fits the text.

    Raises:
        InputError: a source that cannot be read, text that no vocabulary can be learnt from, an existing output.
    """
    given = _parser().parse_args(list(words))
    data = DataConfig(
        source=given.source,
        subset=given.subset,
        source_column=given.source_column,
        target_column=given.target_column,
        source_lang=given.source_lang,
        target_lang=given.target_lang,
    )
    made = make_vocabulary(data, Path(given.output), given.size, given.pieces, given.seed, given.overwrite)
    for line in describe(made):
        print(line)


def make_vocabulary(
    data: DataConfig, folder: Path, size: str, pieces: int = PIECES, seed: int = 0, overwrite: bool = False
) -> MadeVocabulary:
    """Learn a vocabulary from the train part of ``data`` (all of it where no split was published) and write ``folder``.

    Raises:
        InputError: as `main`; nothing has been written then.
    """
    find_size(size)
    if pieces < 1:
        raise InputError(f"--pieces must be at least 1, found {pieces}: try {PIECES}.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise InputError(
            f"--output {folder} already exists: choose another folder, or pass --overwrite to replace a vocabulary."
        )
    check_replaceable(folder)
    from hf_transfer.sources.parallel import read_pairs

    rows = read_pairs(data).rows
    train = [i for i, split in enumerate(rows["split"]) if split in ("train", "")]
    if not train:
        raise InputError(f"--source {data.source} has no train part: a vocabulary is learnt from that alone.")
    sources, targets = rows.select(train)["source"][:], rows.select(train)["target"][:]
    vocabulary = train_vocabulary(sources, targets, pieces, seed=seed)
    write_folder(folder, size, vocabulary, data.source_lang, data.target_lang)
    return MadeVocabulary(
        folder,
        len(train),
        len(vocabulary.tokens),
        coverage(vocabulary, sources),
        coverage(vocabulary, targets),
        vocabulary.notices,
    )


def describe(made: MadeVocabulary) -> list[str]:
    """Lines for the console."""
    sides = [
        f"  {name}: {side.characters_per_piece:.2f} characters per piece, {side.unknown_share:.2%} of them unknown"
        for name, side in (("source", made.source), ("target", made.target))
    ]
    return [
        f"{made.tokens:,} tokens from {made.pairs:,} pairs: {made.folder}",
        *sides,
        *made.notices,
        f"Train with it: hf-transfer run --model.checkpoint scratch:{made.folder} ...",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-transfer vocabulary",
        allow_abbrev=False,
        description="Learn a joint SentencePiece vocabulary from both sides of parallel text, and write a tokenizer "
        "and a config that stock transformers opens; it has no weights.",
    )
    parser.add_argument("--source", required=True, help="parallel text, in every form that --data.source takes")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--pieces", type=int, default=PIECES, help=f"most pieces to learn (default: {PIECES:,})")
    parser.add_argument(
        "--size", default="marian-small", help=f"shape of the model: {', '.join(SIZES)} (default: marian-small)"
    )
    parser.add_argument("--source_lang", help="language of the source (en); tells aligned files apart")
    parser.add_argument("--target_lang", help="language of the target (de)")
    parser.add_argument("--source_column", default="source", help="column with the text to translate (default: source)")
    parser.add_argument("--target_column", default="target", help="column with its translation (default: target)")
    parser.add_argument("--subset", help="configuration name of a Hub dataset")
    parser.add_argument("--seed", type=int, default=0, help="draws the sentences where there are over a million")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier vocabulary in that folder")
    return parser
