"""Floor 1: checks of parallel text: what cannot be used, and which pairs are doubtful.

A pair is doubtful if any of these holds (``CHECKS`` has the words for the notes):

- identical: both sides are the same and hold a letter. Most are text that nobody translated; a number is no mistake.
- length_ratio: with r = log((target characters + 20) / (source characters + 20)), r is at least log 2 away from the
  median r of all pairs of the same two languages. The median makes the check fit any two languages and scripts; the 20
  keeps short sentences out, whose lengths differ for good reasons ("Hi." - "Guten Tag!").
- long: more than 1,000 characters on a side. Tokens are counted later, when there is a tokenizer.
- control: a control character (Unicode category Cc) other than tab, line feed and carriage return. Joiners, direction
  marks and soft hyphens are of category Cf and belong to the writing of many languages.
- mojibake: U+FFFD, or UTF-8 that was read as Latin-1 or Windows-1252 ("fÃ¼r", "â€œ"): characters that, encoded again in
  those, give UTF-8 for something plausible.
- duplicate: the same pair stands earlier in the same split.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_transfer.config import DataConfig
from hf_transfer.records import DomainTable
from hf_transfer.sources.base import TEXT, arrow_table, blank, counted, name_problems, shown_places, with_rows

SMALLEST_ODD_FACTOR = 2.0
CHARACTERS_ADDED = 20
LONGEST_SIDE = 1_000

CHECKS = {
    "identical": "whose sides are identical",
    "length_ratio": f"whose lengths are {SMALLEST_ODD_FACTOR:g} times as uneven as usual, or more",
    "long": f"of more than {LONGEST_SIDE:,} characters on a side",
    "control": "with control characters",
    "mojibake": "in a broken encoding (mojibake)",
    "duplicate": "that stand earlier in the same split",
}

CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}]"
_WINDOWS_1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_TRAIL = f"[\u0080-\u00bf{_WINDOWS_1252}]"
# What a byte sequence of UTF-8 looks like where each byte was read as a character of its own
_MISREAD = re.compile(f"[Â-ß]{_TRAIL}|[à-ï]{_TRAIL}{{2}}|[ð-ô]{_TRAIL}{{3}}")
_MAY_BE_MISREAD = f"\ufffd|[Â-ô]{_TRAIL}"
# A word may end in a capital before one of these (»5 Å«): of itself that is no sign
_CLOSING = frozenset("“”‘’«»›–—…\u00a0\u00ad")


def check_pairs(table: DomainTable, data: DataConfig) -> tuple[DomainTable, list[str], dict[str, int]]:
    """Drop pairs with an empty side, note the doubtful ones, and list what stops a run.

    Returns the table, its problems ([] if it can be used) and counts by check: ``empty``, those of ``CHECKS``, and
    ``dropped``, the doubtful pairs that were removed. Notes give each count with the first three places. With
    ``data.drop_suspicious`` doubtful pairs go, except those of a published test split: test stays what others score on
    too. A domain without a published test split draws one from the rows that remain.

    Problems: repeated ids, missing domains, a language given for some pairs only, no pair left.
    """
    rows = arrow_table(table.rows)
    notes = list(table.notes)
    empty = pc.or_(blank(rows["source"]), blank(rows["target"]))
    counts = {"empty": _count(empty)}
    if counts["empty"]:
        pairs = counted(counts["empty"], "pair")
        notes.append(f"dropped {pairs} with an empty side ({shown_places(rows['place'], empty)}).")
        rows = rows.filter(pc.invert(empty))
    problems, no_domain = name_problems(rows, data)
    problems += _language_problems(rows, data)
    rows = rows.filter(pc.invert(no_domain))

    doubtful = np.zeros(rows.num_rows, dtype=bool)
    found = find_doubtful(rows)
    for name, words in CHECKS.items():
        counts[name] = int(found[name].sum())
        doubtful |= found[name]
        if counts[name]:
            places = shown_places(rows["place"], pa.array(found[name]))
            notes.append(f"{counted(counts[name], 'pair')} {words} ({places}).")
    removable = doubtful & ~np.asarray(pc.equal(rows["split"], "test"), dtype=bool)
    counts["dropped"] = int(removable.sum()) if data.drop_suspicious else 0
    if data.drop_suspicious and doubtful.any():
        kept = int(doubtful.sum()) - counts["dropped"]
        still = f", and kept {counted(kept, 'pair')} of test" if kept else ""
        notes.append(f"dropped {counted(counts['dropped'], 'pair')} of those from train and validation{still}.")
        rows = rows.filter(pa.array(~removable))
    elif removable.any():
        pairs = counted(int(removable.sum()), "pair")
        notes.append(f"{pairs} of those would be dropped from train and validation with --data.drop_suspicious true.")
    if not rows.num_rows:
        problems.append(f"{table.name} holds no pair to train on or to score: look at the notes.")
    if rows.num_rows == table.rows.num_rows and len(notes) == len(table.notes):
        return table, problems, counts
    return with_rows(table, rows, notes), problems, counts


def find_doubtful(rows: pa.Table) -> dict[str, np.ndarray]:
    """[rows] booleans for each of ``CHECKS``, of rows under the standard names."""
    source, target = (pc.utf8_trim_whitespace(rows[side]) for side in ("source", "target"))
    lengths = [np.asarray(pc.utf8_length(side)) for side in (source, target)]
    same = pc.and_(pc.equal(source, target), pc.match_substring_regex(source, r"\pL"))
    control = pc.or_(*(pc.match_substring_regex(side, CONTROL) for side in (source, target)))
    languages = _codes(rows["source_lang"], rows["target_lang"])
    return {
        "identical": _as_array(same),
        "length_ratio": _odd_ratios(lengths[0], lengths[1], languages),
        "long": np.maximum(lengths[0], lengths[1]) > LONGEST_SIDE,
        "control": _as_array(control),
        "mojibake": _broken(source) | _broken(target),
        "duplicate": _seen_before(_codes(rows["split"], source, target)),
    }


def is_mojibake(text: str) -> bool:
    """Whether ``text`` holds U+FFFD or characters that are misread UTF-8.

    One sequence is enough where its first character is rare before punctuation (Â, Ã) or the sequence stands for
    punctuation (â€œ), or for another letter of Latin-1 or Latin Extended-A, unless a closing mark ends it; for any
    other script it takes two in a row (``Ð¿Ñ€``).
    """
    if "\ufffd" in text:
        return True
    end = -1
    for match in _MISREAD.finditer(text):
        meant = _read_again(match[0])
        if meant is None:
            continue
        if match.start() == end:
            return True
        end = match.end()
        if match[0][0] in "ÂÃ" or meant in "–—‘’‚“”„†‡•…‰‹›€™ \u200b\u200c\u200d\u2011\ufeff":
            return True
        if match[0][0] in "ÄÅ" and match[0][-1] not in _CLOSING:
            return True
    return False


def _read_again(text: str) -> str | None:
    """What the bytes are in UTF-8 that stand behind ``text``, read as Windows-1252 or Latin-1; None if nothing."""
    try:
        return b"".join(char.encode("cp1252" if char in _WINDOWS_1252 else "latin-1") for char in text).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _broken(texts: pa.ChunkedArray) -> np.ndarray:
    """[rows] which texts are mojibake; only those with a suspicious pair of characters are looked at one by one."""
    broken = _as_array(pc.match_substring_regex(texts, _MAY_BE_MISREAD)).copy()
    rows = np.flatnonzero(broken)
    broken[rows] = [is_mojibake(text) for text in texts.take(pa.array(rows)).to_pylist()]
    return broken


def _odd_ratios(source: np.ndarray, target: np.ndarray, languages: np.ndarray) -> np.ndarray:
    """[rows] whose length ratio is far from the median of their two languages."""
    ratio = np.log((target + CHARACTERS_ADDED) / (source + CHARACTERS_ADDED))
    usual = np.zeros_like(ratio)
    for code in np.unique(languages):
        inside = languages == code
        usual[inside] = np.median(ratio[inside])
    return np.abs(ratio - usual) >= np.log(SMALLEST_ODD_FACTOR)


def _codes(*columns: pa.ChunkedArray) -> np.ndarray:
    """[rows] equal numbers for rows that are equal in all columns, in order of appearance."""
    joined = pc.binary_join_element_wise(*columns, pa.scalar("\0", TEXT))
    return np.asarray(joined.combine_chunks().dictionary_encode().indices)


def _seen_before(codes: np.ndarray) -> np.ndarray:
    """[rows] whose number stands earlier; numbers must be in order of appearance."""
    largest = np.maximum.accumulate(np.concatenate([[-1], codes]))[:-1]
    return codes <= largest


def _as_array(chosen: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(chosen, dtype=bool)


def _count(chosen: pa.ChunkedArray) -> int:
    return pc.sum(chosen).as_py() or 0


def _language_problems(rows: pa.Table, data: DataConfig) -> list[str]:
    """A language that stands for some pairs only."""
    problems = []
    for side in ("source_lang", "target_lang"):
        unknown = blank(rows[side])
        count = _count(unknown)
        if count and (count < rows.num_rows or getattr(data, f"{side}_column")):
            places = shown_places(rows["place"], unknown)
            where = f"in column {getattr(data, f'{side}_column')!r}" if getattr(data, f"{side}_column") else "given"
            problems.append(
                f"{count:,} of {counted(rows.num_rows, 'pair')} without a {side.removesuffix('_lang')} language "
                f"{where} ({places}): fill it in, or give --data.{side} for those that lack it."
            )
    return problems
