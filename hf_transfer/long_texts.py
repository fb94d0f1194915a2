"""Floor 1: a text that is too long for a model, cut where a reader would pause."""

from __future__ import annotations

import re
from collections.abc import Callable

from hf_transfer.errors import InputError

CountTokens = Callable[[str], int]

# A full stop behind one of these ends no sentence: English, German, French and Spanish ones that stand before a word
# with a capital. Those that end a sentence as often as not (etc., usw., no.) are left out.
_ABBREVIATIONS = """
dr prof mr mrs ms st sr jr rev hon gen col capt lt sgt gov sen rep pres vs cf nos vol fig figs eq eqs pp ed eds approx
dept inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov dec hr fr frl dipl ing nr abs bd bzw ca evtl ggf inkl
exkl mind sog str tel vgl zzgl abb kap aufl hrsg jh geb okt dez mme mlle sra dra uds núm pág
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_ENDS = ".!?…"
_ENDS_WITHOUT_SPACE = "。！？｡"
_CLOSING = r"[\"'”’»«“)\]）」』】]*"
# sentence ends: a mark with whatever closes behind it, then white space; after CJK marks none is needed
_SENTENCE = re.compile(rf"[{_ENDS}]+{_CLOSING}(?=\s)|[{_ENDS_WITHOUT_SPACE}]+{_CLOSING}")
_CLAUSE = re.compile(rf"[;:,]{_CLOSING}(?=\s)|\s[–—-](?=\s)|[，；：、]")
_SPACE = re.compile(r"(?=\s)")


def split_long(text: str, count_tokens: CountTokens, limit: int) -> list[str]:
    """``text`` in pieces of at most ``limit`` tokens each, as few as packing them one after the other gives.

    Cut at sentence ends; a sentence that is too long by itself at clauses; such a clause at spaces; and a word that is
    too long between characters. Pieces are stripped, none is empty, and together they hold every character of ``text``
    in order, white space apart. A text that fits comes back as it is; one of white space only gives [].

    Args:
        count_tokens: Tokens of a piece as the model will get it, special tokens included.

    Raises:
        InputError: not even one character fits into ``limit``.
    """
    if not text.strip():
        return []
    if count_tokens(text) <= limit:
        return [text.strip()]
    return _pack(text.strip(), (_sentence_cuts, _clause_cuts, _space_cuts), count_tokens, limit)


def _pack(text: str, levels: tuple[Callable[[str], list[int]], ...], count: CountTokens, limit: int) -> list[str]:
    """Pieces of ``text``, cut at the first of ``levels``; a part that is too long goes on to the next ones."""
    if not levels:
        return _cut_hard(text, count, limit)
    cuts = [0, *levels[0](text), len(text)]
    pieces: list[str] = []
    start = end = 0  # text[start:end] is known to fit and waits for more
    for here in cuts[1:]:
        if not text[end:here].strip() or count(text[start:here].strip()) <= limit:
            end = here
            continue
        if text[start:end].strip():
            pieces.append(text[start:end].strip())
        start, end = end, here
        part = text[start:end].strip()
        if count(part) > limit:
            *done, last = _pack(part, levels[1:], count, limit)
            pieces += done
            start += len(text[start:end].rstrip()) - len(last)  # the rest may share a piece with what follows
    if text[start:end].strip():
        pieces.append(text[start:end].strip())
    return pieces


def _sentence_cuts(text: str) -> list[int]:
    return [match.end() for match in _SENTENCE.finditer(text) if not _is_inside_sentence(text, match)]


def _is_inside_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a full stop belongs to an abbreviation (``Dr.``, ``z. B.``), an initial or an ordinal number."""
    if match[0] != ".":
        return False
    before = re.search(r"[^\W_]+$", text[max(0, match.start() - 20) : match.start()])
    after = text[match.end() :].lstrip()[:1]
    if before is None:
        return False
    word = before[0]
    is_initial = len(word) == 1 and word.isalpha() and (word.isupper() or after.isalpha())
    # 3. Mai, the 21. century: longer numbers are years and amounts, which end sentences
    is_ordinal = word.isdecimal() and len(word) < 3
    return after.islower() or is_initial or is_ordinal or word.lower() in ABBREVIATIONS


def _clause_cuts(text: str) -> list[int]:
    return [match.end() for match in _CLAUSE.finditer(text)]


def _space_cuts(text: str) -> list[int]:
    return [match.start() for match in _SPACE.finditer(text)]


def _cut_hard(text: str, count: CountTokens, limit: int) -> list[str]:
    """Pieces of text without a better place to cut, each about as long as it may be."""
    pieces = []
    while text and count(text) > limit:
        fits, too_long = 0, min(len(text), 2 * limit)
        while too_long < len(text) and count(text[:too_long]) <= limit:
            fits, too_long = too_long, min(len(text), 2 * too_long)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if count(text[:middle].strip()) <= limit:
                fits = middle
            else:
                too_long = middle
        if not fits:
            raise InputError(
                f"The limit of {limit} tokens leaves no room for {text[:1]!r}, which takes {count(text[:1])} with the "
                "special tokens: raise the limit (max_length)."
            )
        pieces.append(text[:fits].strip())
        text = text[fits:].lstrip()
    return [piece for piece in [*pieces, text] if piece]
