"""Floor 2: a SentencePiece vocabulary learnt from the training text, and the Marian folder that it makes.

``scratch:marian-small`` becomes a folder with a tokenizer and a config but no weights, laid out as OPUS-MT models are
(Tiedemann and Thottingal 2020), so that stock transformers opens it and ``scratch:FOLDER`` draws the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import random
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import InputError
from hf_transfer.fields import nearest

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PIECES = 8000
"""OPUS-MT has tens of thousands, for corpora that are as much larger; here the output layer, pieces x d_model
multiplications per target token, is already nearly half of marian-small's work."""
RICH_CHARACTER_SET = 1000
"""Distinct characters over which the rarest are left unknown, as OPUS-MT does: in Chinese, each would take a piece."""
COVERAGE_OF_RICH_SETS = 0.9995
"""Share of all characters that is then kept: what SentencePiece advises for Japanese and Chinese."""
MOST_SENTENCES = 1_000_000
"""Sentences learnt from, both sides together, drawn by seed: 58,000 take 6 seconds, time grows in proportion."""
LONGEST_SENTENCE_BYTES = 1 << 20
"""SentencePiece leaves out longer lines without a word, from 4,192 bytes by default: a paragraph."""
LONGEST_INPUT = 512
"""Positions of the model and the tokenizer's ``model_max_length``, as in OPUS-MT."""

TAG = re.compile(r"\s*(>>\w[\w-]*<<)")
EMPTY = (
    "A vocabulary cannot be learnt: the training text is empty, or holds nothing but spaces and control characters. "
    "Check --data.source and its source and target columns."
)
STAMP = "scratch.json"
"""Names what a folder was made from, and so marks it as one that may be replaced."""
FILES = (
    "source.spm",
    "target.spm",
    "vocab.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    STAMP,
)


@dataclass(frozen=True)
class MarianSize:
    """Shape of a Marian model that starts from random weights."""

    encoder_layers: int
    decoder_layers: int
    d_model: int
    ffn_dim: int
    heads: int
    dropout: float

    @property
    def init_std(self) -> float:
        """Standard deviation of every random matrix and embedding: sqrt(2 / (5 d_model)).

        Glorot's for matrices from d to 4d, used for all (Nguyen and Salazar 2019, SmallInit). Times the factor
        sqrt(d_model) on inputs, words then weigh as much as positions: 0.63 against 0.71. At d = 256 it is 0.04: after
        180 updates on Multi30k (one seed) 0.035 came to 4.12 nats per token on validation, transformers' own 0.02 to
        4.39, and fairseq's d_model ** -0.5 for embeddings, 0.0625 for all, to 4.48.
        """
        return math.sqrt(2 / (5 * self.d_model))


# Dropout 0.1 is Vaswani's base and OPUS-MT's. Small corpora trained to convergence want more: fairseq's recipe for
# IWSLT'14 (160,000 pairs) has 0.3, which `--model.dropout` sets; a few epochs learn faster with less.
SIZES = {
    # two layers of each kind, so that sharing and caching between layers happen: for tests and demonstrations
    "marian-tiny": MarianSize(2, 2, d_model=64, ffn_dim=256, heads=4, dropout=0.1),
    # For tens of thousands of pairs: Transformer-Tiny, with which Wu et al. (2021) report 41.0 BLEU on Multi30k (29,000
    # pairs), and 39.7 and 38.3 for the wider Small and Base. After 400 s of one CPU core on it: 2.35 nats per token on
    # validation, against 2.67 for marian-medium, which learns as much per update and takes twice as long for one.
    "marian-small": MarianSize(4, 4, d_model=128, ffn_dim=256, heads=4, dropout=0.1),
    # for hundreds of thousands of pairs
    "marian-medium": MarianSize(3, 3, d_model=256, ffn_dim=1024, heads=4, dropout=0.1),
    # OPUS-MT's transformer-align, which is Vaswani's base (table 3): for millions of pairs and a GPU
    "marian-base": MarianSize(6, 6, d_model=512, ffn_dim=2048, heads=8, dropout=0.1),
}


@dataclass(frozen=True)
class Vocabulary:
    """One SentencePiece model for both languages, and the order of its tokens."""

    model: bytes = field(repr=False)
    """The serialised model: what ``source.spm`` and ``target.spm`` both hold."""
    tokens: tuple[str, ...]
    """Tokens by id: ``</s>``, ``<unk>``, the pieces, tags such as ``>>de<<``, and ``<pad>`` last."""
    notices: tuple[str, ...] = ()
    """What the user should know, such as fewer pieces than asked for."""

    def processor(self) -> SentencePieceProcessor:
        """The model, opened."""
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)


@dataclass(frozen=True)
class Coverage:
    """How well a vocabulary fits a text."""

    characters: int
    pieces: int
    unknown_characters: int

    @property
    def characters_per_piece(self) -> float:
        """Higher means shorter inputs; nan without text."""
        return self.characters / self.pieces if self.pieces else float("nan")

    @property
    def unknown_share(self) -> float:
        """Share of characters inside unknown pieces, 0..1; nan without text."""
        return self.unknown_characters / self.characters if self.characters else float("nan")


def train_vocabulary(
    sources: Iterable[str],
    targets: Iterable[str],
    pieces: int = PIECES,
    character_coverage: float | None = None,
    seed: int = 0,
    tags: Sequence[str] = (),
) -> Vocabulary:
    """Learn one unigram model (Kudo 2018) from both sides; the same text and seed give the same bytes.

    Joint, so that names and numbers are the same pieces on both sides and one embedding serves three uses. Text is
    normalised by NFKC, as SentencePiece does by default. There is no byte fallback, as in OPUS-MT: its 256 pieces would
    stay at random values, since every character of the training text has a piece already.

    Args:
        pieces: at most so many, ``</s>`` and ``<unk>`` included; small text has fewer.
        character_coverage: share of all characters that must have pieces; by default 1, and 0.9995 for more than 1,000
            distinct characters, as OPUS-MT-train has it.
        seed: draws the sentences where there are more than a million.
        tags: language tokens such as ``>>de<<``; those in front of sources are found, and are no text to learn from.

    Raises:
        InputError: no text, or more characters than pieces.
    """
    import sentencepiece

    texts, found = _without_tags([*sources])
    texts += [" ".join(text.split()) for text in targets]
    texts = [text for text in texts if text]
    if not texts:
        raise InputError(EMPTY)
    notices = []
    if len(texts) > MOST_SENTENCES:
        notices.append(
            f"The vocabulary was learnt from {MOST_SENTENCES:,} of {len(texts):,} sentences, drawn at random."
        )
        chosen = random.Random(seed).sample(range(len(texts)), MOST_SENTENCES)
        texts = [texts[row] for row in sorted(chosen)]
    alphabet = set().union(*texts)
    if character_coverage is None:
        character_coverage = COVERAGE_OF_RICH_SETS if len(alphabet) > RICH_CHARACTER_SET else 1.0

    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=writer,
            model_type="unigram",
            vocab_size=pieces,
            hard_vocab_limit=False,  # as many pieces as the text supports, not an error
            character_coverage=character_coverage,
            max_sentence_length=LONGEST_SENTENCE_BYTES,
            shuffle_input_sentence=False,
            num_threads=1,  # sums over threads come in any order
            eos_id=0,  # Marian's order, see `Vocabulary.tokens`
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(_not_trained(error, pieces, len(alphabet))) from None
    model = writer.getvalue()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    learnt = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    if not "".join(learnt[2:]).strip("\u2581"):  # control characters are normalised away
        raise InputError(EMPTY)
    if len(learnt) < pieces:
        notices.append(f"The text is too small for {pieces:,} pieces: the vocabulary has {len(learnt):,}.")
    tokens = dict.fromkeys([*learnt, *sorted({*tags, *found}), "<pad>"])
    return Vocabulary(model, tuple(tokens), tuple(notices))


def coverage(vocabulary: Vocabulary, texts: Iterable[str]) -> Coverage:
    """Characters (after normalisation, spaces included), pieces and unknown characters of ``texts`` without tags."""
    processor = vocabulary.processor()
    unknown_id = processor.unk_id()
    characters = pieces = unknown = 0
    for text in _without_tags(texts)[0]:
        surfaces, ids = processor.encode(text, out_type=str), processor.encode(text, out_type=int)
        pieces += len(ids)
        characters += sum(len(surface) for surface in surfaces)
        unknown += sum(len(surface) for surface, i in zip(surfaces, ids, strict=True) if i == unknown_id)
    return Coverage(characters, pieces, unknown)


def find_size(name: str) -> MarianSize:
    """The shape called ``name``, ``marian-small`` or ``scratch:marian-small``.

    Raises:
        InputError: no such size.
    """
    plain = name.removeprefix("scratch:")
    if plain not in SIZES:
        close = nearest(plain, list(SIZES))
        raise InputError(
            f"There is no model size {plain!r}"
            + (f"; did you mean {close}? " if close else ". ")
            + f"Sizes: {', '.join(SIZES)}. A folder or Hub id whose architecture is to be used goes behind scratch: "
            "as well."
        )
    return SIZES[plain]


def write_marian(
    folder: Path, size: MarianSize, vocabulary: Vocabulary, source_lang: str | None, target_lang: str | None
) -> None:
    """Write the tokenizer and the config of a Marian model into an existing folder; no weights.

    Ids, start token and generation settings are those of OPUS-MT: decoding starts at ``<pad>``, which is never an
    output, and ends at ``</s>``.
    """
    pad = len(vocabulary.tokens) - 1
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(vocabulary.model)
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary.tokens)})
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer: dict[str, Any] = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": source_lang,
        "target_lang": target_lang,
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": LONGEST_INPUT,
        "separate_vocabs": False,
        "sp_model_kwargs": {},
        "added_tokens_decoder": {str(i): {"content": vocabulary.tokens[i], **special} for i in (0, 1, pad)},
    }
    _write_json(folder / "tokenizer_config.json", tokenizer)
    shared = {
        "decoder_start_token_id": pad,
        "pad_token_id": pad,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }
    _write_json(folder / "config.json", {**_architecture(size, len(vocabulary.tokens)), **shared})
    generation = {
        **shared,
        "bad_words_ids": [[pad]],
        "max_length": LONGEST_INPUT,
        "num_beams": 4,
        "renormalize_logits": True,
    }
    _write_json(folder / "generation_config.json", generation)


def scratch_folder(
    name: str,
    sources: Sequence[str],
    targets: Sequence[str],
    folder: Path,
    pieces: int = PIECES,
    source_lang: str | None = None,
    target_lang: str | None = None,
    seed: int = 0,
    tags: Sequence[str] = (),
) -> Path:
    """Make ``folder`` hold the tokenizer and config that ``scratch:FOLDER`` opens, and return it.

    A folder made from the same text, size, languages and seed stays as it is; one made from others is replaced. It
    appears whole or not at all: files are written beside it and moved into place together.

    Args:
        name: a key of ``SIZES``, with or without ``scratch:``.

    Raises:
        InputError: no such size, text that no vocabulary can be learnt from, or a folder that holds other files or
            cannot be written.
    """
    size = find_size(name)
    made_from = _made_from(size, sources, targets, pieces, source_lang, target_lang, seed, tags)
    if _is_made_from(folder, made_from):
        return folder
    check_replaceable(folder)
    vocabulary = train_vocabulary(sources, targets, pieces, seed=seed, tags=tags)
    write_folder(folder, name, vocabulary, source_lang, target_lang, made_from)
    return folder


def write_folder(
    folder: Path,
    name: str,
    vocabulary: Vocabulary,
    source_lang: str | None,
    target_lang: str | None,
    made_from: str = "",
) -> None:
    """Write ``folder`` whole, in place of one that ``check_replaceable`` allows.

    Raises:
        InputError: it cannot be written.
    """
    size = find_size(name)
    stamp = {
        "schema": "hf-transfer/scratch/1",
        "size": name.removeprefix("scratch:"),
        "pieces": len(vocabulary.tokens),
        "made_from": made_from,
        "notices": list(vocabulary.notices),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            write_marian(new, size, vocabulary, source_lang, target_lang)
            _write_json(new / STAMP, stamp)
            if _is_made_from(folder, made_from):
                return  # another process was quicker; its folder is the same and may be in use
            with suppress(FileNotFoundError):
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if not _is_made_from(folder, made_from):
                    raise
    except OSError as error:
        raise InputError(
            f"The vocabulary folder {folder} cannot be written ({error.strerror or error}): choose another place."
        ) from None


def check_replaceable(folder: Path) -> None:
    """Make sure that ``folder`` is absent, empty, or an earlier vocabulary folder.

    Raises:
        InputError: it is a file, or holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder: choose another place for the vocabulary.")
    if folder.is_dir() and any(folder.iterdir()) and not _stamp(folder):
        raise InputError(
            f"{folder} holds files that are not a vocabulary's ({STAMP} is missing): choose another place."
        )


def read_notices(folder: Path) -> tuple[str, ...]:
    """What there was to tell when the vocabulary in ``folder`` was learnt."""
    return tuple(_stamp(folder).get("notices", ()))


def _without_tags(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Texts on one line and without the language tag in front, and the tags."""
    plain, tags = [], set()
    for text in texts:
        tag = TAG.match(text)
        if tag:
            tags.add(tag[1])
            text = text[tag.end() :]
        plain.append(" ".join(text.split()))
    return plain, tags


def _not_trained(error: RuntimeError, pieces: int, characters: int) -> str:
    """SentencePiece's message, which names its source files, in the words of the user's settings."""
    text = " ".join(str(error).split())
    needed = re.search(r"required_chars\. \d+ vs (\d+)", text)
    if needed:
        return (
            f"A vocabulary of {pieces:,} pieces is too small: the text has {characters:,} different characters, and "
            f"each takes a piece. Allow at least {int(needed[1]):,} (--model.vocabulary_size, or --pieces of "
            "`hf-transfer vocabulary`); words need some thousands more."
        )
    return f"A vocabulary of {pieces:,} pieces cannot be learnt from this text. SentencePiece said: {text[:300]}"


def _architecture(size: MarianSize, tokens: int) -> dict[str, Any]:
    """Fields of MarianConfig; swish and shared embeddings as in OPUS-MT."""
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "vocab_size": tokens,
        "decoder_vocab_size": tokens,
        "d_model": size.d_model,
        "encoder_layers": size.encoder_layers,
        "decoder_layers": size.decoder_layers,
        "encoder_ffn_dim": size.ffn_dim,
        "decoder_ffn_dim": size.ffn_dim,
        "encoder_attention_heads": size.heads,
        "decoder_attention_heads": size.heads,
        "dropout": size.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "activation_function": "swish",
        "init_std": size.init_std,
        "scale_embedding": True,
        "static_position_embeddings": True,
        "max_position_embeddings": LONGEST_INPUT,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "use_cache": True,
        "bos_token_id": None,
        "dtype": "float32",
    }


def _made_from(size: MarianSize, sources: Sequence[str], targets: Sequence[str], *settings: object) -> str:
    """sha256 over everything that decides the folder's bytes."""
    import sentencepiece

    digest = hashlib.sha256()
    for part in _parts(size, sources, targets, sentencepiece.__version__, settings):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)  # so that "ab", "c" differs from "a", "bc"
    return digest.hexdigest()


def _parts(
    size: MarianSize, sources: Sequence[str], targets: Sequence[str], version: str, settings: Sequence[object]
) -> Iterator[str]:
    yield json.dumps([dataclasses.asdict(size), _architecture(size, 0), version, len(sources), *map(repr, settings)])
    yield from sources
    yield from targets


def _is_made_from(folder: Path, made_from: str) -> bool:
    """Whether ``folder`` is whole and was made from that; never where it is not known from what."""
    whole = all((folder / file).is_file() for file in FILES)
    return bool(made_from) and whole and _stamp(folder).get("made_from") == made_from


def _stamp(folder: Path) -> dict[str, Any]:
    """What ``folder`` was made from; {} where it is not one of ours."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(stamp, dict) and str(stamp.get("schema", "")).startswith("hf-transfer/scratch/")
    return stamp if ours else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
