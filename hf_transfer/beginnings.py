"""Floor 1: of a long text, only the beginning is tokenised where the rest is cut off anyway, with the same ids.

A fast tokenizer makes the tokens of a whole text before it drops those over the limit: of 20,000 characters and a limit
of 64 tokens, almost all of that work is for nothing, and so is the memory. But the tokens of a text's beginning are not
the first tokens of the text for every tokenizer and every place to stop. They are where

- the text stops before a space that stands between a visible character and an ASCII letter or digit: no normalisation
  joins those, and no word runs across;
- the tokenizer takes each word by itself: it splits at white space (BERT's, or byte-level BPE's rule, of which a match
  holds a space only at its front), and normalises character by character or in one of Unicode's four forms;
- no added token holds white space, and no piece is drawn at random.

Any other tokenizer gets whole texts.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS_PER_TOKEN = 8
"""Of the first try; where a beginning proves too short, the next one is four times as long."""
_STOP = re.compile(r"(?<=\S) (?=[A-Za-z0-9])")
_NORMALIZERS = {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD"}
_SPLITTERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel"}
_MODELS = {"WordPiece", "WordLevel", "BPE"}


def beginning_suffices(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether ``encode_beginnings`` gives what ``tokenizer`` gives for whole texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.truncation_side != "right":
        return False
    state = json.loads(backend.to_str())
    normalizers = _parts(state["normalizer"], "normalizers")
    splitters = _parts(state["pre_tokenizer"], "pretokenizers")
    return (
        {part["type"] for part in normalizers} <= _NORMALIZERS
        and len(splitters) == 1
        and splitters[0]["type"] in _SPLITTERS
        and splitters[0].get("use_regex", True)
        and state["model"]["type"] in _MODELS
        and not state["model"].get("dropout")
        and not any(re.search(r"\s", token["content"]) for token in state["added_tokens"])
    )


def encode_beginnings(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> tuple[dict[str, list[Any]], list[bool]]:
    """What ``tokenizer(texts, truncation=True, max_length=max_length)`` gives, and whether each text was cut."""
    columns: dict[str, list[Any]] = {}
    was_cut = [False] * len(texts)
    waiting = list(range(len(texts)))
    letters = LETTERS_PER_TOKEN * max_length
    while waiting:
        stops = [_stop(texts[i], letters) for i in waiting]
        tokens = tokenizer(
            [texts[i][:stop] for i, stop in zip(waiting, stops, strict=True)], truncation=True, max_length=max_length
        )
        for name, values in tokens.items():
            column = columns.setdefault(name, [None] * len(texts))
            for i, value in zip(waiting, values, strict=True):
                column[i] = value
        # a beginning that was itself too long says all; one that was not, and is not the whole text, says too little
        for i, encoding in zip(waiting, tokens.encodings, strict=True):
            was_cut[i] = bool(encoding.overflowing)
        waiting = [i for i, stop in zip(waiting, stops, strict=True) if not was_cut[i] and stop < len(texts[i])]
        letters *= 4
    return columns, was_cut


def _stop(text: str, letters: int) -> int:
    """The first place to stop at or after ``letters``; the length of a text without one."""
    found = _STOP.search(text, letters) if letters < len(text) else None
    return found.start() if found else len(text)


def _parts(state: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence of them."""
    if state is None:
        return []
    return [part for item in state[inner] for part in _parts(item, inner)] if state["type"] == "Sequence" else [state]
