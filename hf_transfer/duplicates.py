"""Floor 1: examples that occur twice where they must not, exactly or nearly.

Two texts are *equal* when they agree after Unicode NFKC, case folding and squeezing of white space; *near* when the
Jaccard similarity of their word sets reaches a threshold. Scripts that put no spaces between words count by characters
(``_words``). Both are found exactly, with no sampling and no hashing of
similarities, so that the counts can be checked by hand.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_transfer.mapped import Numbers
from hf_transfer.records import Leaks

if TYPE_CHECKING:  # numpy costs 0.1 s of import time
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

FEWEST_WORDS = 5
"""Texts with fewer distinct words count only when equal: of four words, one changed word is often another meaning."""
BATCH_ROWS = 500
WORDS_PER_BLOCK = 1 << 22
DIGEST_BYTES = 32
ROUNDING = 1e-9
"""Loosens the filters, never the test itself: 0.55 * 100 is 55.00000000000001 in floats, and its ceiling is 56."""

IDEOGRAPHS = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED_LETTERS = (
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u1780-\u17d3\u1000-\u103f\u1050-\u108f\u109a-\u109f\ua9e0-\ua9ef\uaa60-\uaa7f"  # Khmer, Myanmar
)
"""With their marks, which ``\\w`` leaves out, and without their digits and punctuation."""
LETTERS_PER_PIECE = 3
"""Two long texts of an alphabet have most of its letters in common, and few of their triples."""
_UNSPACED = re.compile(f"[{IDEOGRAPHS}{UNSPACED_LETTERS}]")
_ASCII_WORDS = "".join(chr(code) if chr(code).isalnum() or chr(code) == "_" else " " for code in range(128))
_PIECES = re.compile(f"[{IDEOGRAPHS}]|([{UNSPACED_LETTERS}]+)|[^\\W{IDEOGRAPHS}{UNSPACED_LETTERS}]+")

PAIR_MARK = "\x1f"
"""Stands between the two texts of a pair; it is white space to ``str.split``, so no squeezed text holds it."""


@dataclass(frozen=True)
class WordSets:
    """The distinct words of many texts, as numbers that rise from the rarest word to the commonest.

    Words that one side alone has are counted and not held: no text of the other side shares them. They come before all
    others in the order of words.
    """

    words: np.ndarray
    """[sum of shared] int32: the shared words of text 0 in rising order, then those of text 1, and so on."""
    starts: np.ndarray
    """[texts + 1] int64: text i owns ``words[starts[i]:starts[i + 1]]``."""
    sizes: np.ndarray
    """[texts] int64: distinct words of each text, those that are not held included."""
    vocabulary: int
    """How many words are numbered, over both sides, which share the numbering."""

    def of(self, text: int) -> np.ndarray:
        """Shared words of one text, rarest first."""
        return self.words[self.starts[text] : self.starts[text + 1]]


def normalise(text: str, text_pair: str | None = None) -> str:
    """The form in which two texts (or pairs of texts) are compared for equality."""
    squeezed = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return squeezed if text_pair is None else squeezed + PAIR_MARK + normalise(text_pair)


def content_digest(normalised: str) -> bytes:
    """sha256 of a normalised text; stands in for the text where many are held at once."""
    return hashlib.sha256(normalised.encode("utf-8")).digest()


def normalised_texts(rows: Dataset) -> Iterator[str]:
    """Every row's text (with its pair) in normalised form, read in batches: never all texts at once.

    Of parallel text it is the source: a sentence with several translations is still one that must not be in train and
    test.
    """
    columns = [name for name in ("text", "text_pair", "source") if name in rows.column_names]
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_ROWS):
        for texts in zip(*(batch[name].to_pylist() for name in columns), strict=True):
            yield normalise(*texts)


def find_leaks(train: Dataset, test: Mapping[str, Dataset], threshold: float) -> tuple[Leaks, set[int]]:
    """Count the test examples with a twin in train, and name the train rows that are such a twin.

    ``train`` has columns ``text[, text_pair], domain`` or ``source, domain``; ``test`` is rows by domain. A twin is an
    equal text, or, where
    both have at least ``FEWEST_WORDS`` distinct words, one with a Jaccard similarity of ``threshold`` or more. A test
    example counts once, as exact if any twin is equal; it counts as across domains if any twin is of another domain.
    The words of a pair are marked with their side. ``Leaks.dropped`` is left at 0.
    """
    import numpy as np

    test_domains = [domain for domain, rows in test.items() for _ in range(rows.num_rows)]
    names, train_domain = numbered(train.with_format("arrow")["domain"]) if train.num_rows else ([], np.empty(0))
    train_digests, test_digests = bytearray(), bytearray()
    train_words, test_words = _word_sets(
        _noting_digests(normalised_texts(train), train_digests),
        _noting_digests((text for rows in test.values() for text in normalised_texts(rows)), test_digests),
        threshold,
    )
    equal: dict[bytes, list[int]] = {digest: [] for digest in _each(test_digests)}
    for row, digest in enumerate(_each(train_digests)):
        if digest in equal:
            equal[digest].append(row)

    exact = near = across = 0
    involved: set[int] = set()
    for digest, test_domain, near_rows in zip(
        _each(test_digests), test_domains, near_twins(train_words, test_words, threshold), strict=True
    ):
        equal_rows = equal[digest]
        twins = {*equal_rows, *near_rows}
        involved |= twins
        exact += bool(equal_rows)
        near += bool(twins and not equal_rows)
        across += any(names[train_domain[row]] != test_domain for row in twins)
    different = len(np.unique(np.frombuffer(train_digests, dtype=f"S{DIGEST_BYTES}")))
    inside_train = len(train_digests) // DIGEST_BYTES - different
    return Leaks(exact=exact, near=near, across_domains=across, inside_train=inside_train), involved


def near_twins(train: WordSets, test: WordSets, threshold: float) -> Iterator[list[int]]:
    """For each test text in turn, the train texts whose word sets have a Jaccard similarity of ``threshold`` or more.

    Set-similarity join by prefix and length filters (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007).
    """
    # 1. Two sets x, y with J(x, y) >= t share at least t|x| words, and as many as t|y|.
    # 2. So if the words of both are put in one order, the first |x| - ceil(t|x|) + 1 words of x (its prefix) and the
    #    prefix of y share a word. With rare words first, few train texts are filed under the words of a prefix.
    # 3. Their sizes must differ by less than the factor t.
    # 4. Whoever passes both filters is compared in full.
    import numpy as np

    sizes = train.sizes
    looked_up = np.zeros(train.vocabulary, dtype=bool)
    prefix_lengths = _prefix_lengths(test, threshold)
    for example, length in enumerate(prefix_lengths):
        looked_up[test.of(example)[:length]] = True
    filed, filed_starts = _file_by_prefix(train, threshold, looked_up)
    in_test = np.zeros(train.vocabulary, dtype=bool)  # is this a word of the test text?
    for example, prefix_length in enumerate(prefix_lengths):
        words = test.of(example)
        size = int(test.sizes[example])
        prefix = words[:prefix_length]
        lists = [filed[filed_starts[word] : filed_starts[word + 1]] for word in prefix]
        candidates = np.unique(np.concatenate(lists)) if lists else np.empty(0, dtype=np.int64)
        smallest, largest = threshold * size - ROUNDING, size / threshold + ROUNDING
        candidates = candidates[(sizes[candidates] >= smallest) & (sizes[candidates] <= largest)]
        in_test[words] = True
        twins = []
        for row in candidates.tolist():
            shared = int(np.count_nonzero(in_test[train.of(row)]))
            if shared / (size + int(sizes[row]) - shared) >= threshold:
                twins.append(row)
        in_test[words] = False
        yield twins


def _noting_digests(texts: Iterator[str], digests: bytearray) -> Iterator[str]:
    """Pass texts on, so that one reading serves both comparisons."""
    for text in texts:
        digests += content_digest(text)
        yield text


def _each(digests: bytearray) -> Iterator[bytes]:
    return (bytes(digests[start : start + DIGEST_BYTES]) for start in range(0, len(digests), DIGEST_BYTES))


def _word_sets(train_texts: Iterator[str], test_texts: Iterator[str], threshold: float) -> tuple[WordSets, WordSets]:
    """Word sets of both sides over one numbering: by number of texts that hold the word.

    Only words of test are numbered, so that a vocabulary of train, which grows with every name and number in it, is not
    held. Of a train text with too few of them for any twin no word is held.
    """
    import numpy as np

    numbers: dict[str, int] = {}
    test, train = Numbers(), Numbers()
    test_starts, test_sizes, train_starts, train_sizes = (array("q", start) for start in ([0], [], [0], []))
    for text in test_texts:
        # a dict keeps first appearance, a set would vary by process
        in_order = dict.fromkeys(_words(text))
        test_starts.append(test.extend(numbers.setdefault(word, len(numbers)) for word in in_order))
        test_sizes.append(len(in_order))
    for text in train_texts:
        distinct = set(_words(text))
        shared = [number for word in distinct if (number := numbers.get(word)) is not None]
        can_be_twin = len(shared) >= threshold * len(distinct) - ROUNDING
        train_starts.append(train.extend(shared if can_be_twin else ()))
        train_sizes.append(len(distinct))
    both = [
        (held.array(), np.array(starts, dtype=np.int64), np.array(sizes, dtype=np.int64))
        for held, starts, sizes in ((train, train_starts, train_sizes), (test, test_starts, test_sizes))
    ]
    text_counts = np.zeros(len(numbers), dtype=np.int64)
    for words, starts, _ in both:
        for first, last in _blocks(starts):
            text_counts += np.bincount(words[starts[first] : starts[last]], minlength=len(numbers))
    rank = np.empty(len(numbers), dtype=np.int32)
    rank[np.argsort(text_counts, kind="stable")] = np.arange(len(numbers), dtype=np.int32)
    ranked = []
    for words, starts, sizes in both:
        for first, last in _blocks(starts):
            block = rank[words[starts[first] : starts[last]]]
            owner = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1]))
            words[starts[first] : starts[last]] = block[np.lexsort((block, owner))]
        ranked.append(WordSets(words, starts, sizes, len(numbers)))
    return ranked[0], ranked[1]


def _blocks(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last + 1 of runs of texts that hold about ``WORDS_PER_BLOCK`` words together."""
    import numpy as np

    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + WORDS_PER_BLOCK, side="right")) - 1
        last = min(max(last, first + 1), len(starts) - 1)
        yield first, last
        first = last


def _words(normalised: str) -> list[str]:
    """Words in order, repeats included; those of a second text are marked.

    Where a script has no spaces, each ideograph is a word, and so is each overlapping piece of a run of letters: as
    one word, a whole clause would differ where a character does.
    """
    first, mark, second = normalised.partition(PAIR_MARK)
    words = _words_of(first)
    return words + [PAIR_MARK + word for word in _words_of(second)] if mark else words


def _words_of(text: str) -> list[str]:
    if text.isascii():  # the same words as of the next line, five times as fast
        return text.translate(_ASCII_WORDS).split()
    if not _UNSPACED.search(text):
        return re.findall(r"\w+", text)
    words = []
    for match in _PIECES.finditer(text):
        run = match[1]
        if run is None:
            words.append(match[0])
        else:
            count = max(1, len(run) - LETTERS_PER_PIECE + 1)
            words += [run[i : i + LETTERS_PER_PIECE] for i in range(count)]
    return words


def _prefix_lengths(sets: WordSets, threshold: float) -> np.ndarray:
    """[texts] how many of a text's rarest shared words must be looked up; 0 for texts that count only when equal.

    The words that only one side has are the rarest, and need no looking up.
    """
    import numpy as np

    shared_at_least = np.ceil(threshold * sets.sizes - ROUNDING).astype(np.int64)
    of_one_side = sets.sizes - np.diff(sets.starts)
    lengths = np.maximum(sets.sizes - shared_at_least + 1 - of_one_side, 0)
    return np.where(sets.sizes < FEWEST_WORDS, 0, lengths)


def _file_by_prefix(sets: WordSets, threshold: float, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts filed under those words of their prefix that are ``wanted`` [vocabulary]: those of word w are
    ``texts[starts[w]:starts[w + 1]]``."""
    import numpy as np

    lengths = _prefix_lengths(sets, threshold)
    found_words, found_owners = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int32)]
    for first, last in _blocks(sets.starts):
        begin = sets.starts[first]
        words = sets.words[begin : sets.starts[last]]
        owner = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(sets.starts[first : last + 1]))
        position = np.arange(len(words)) + begin - sets.starts[owner]
        chosen = (position < lengths[owner]) & wanted[words]
        found_words.append(words[chosen])
        found_owners.append(owner[chosen])
    words, owner = np.concatenate(found_words), np.concatenate(found_owners)
    order = np.argsort(words, kind="stable")
    return owner[order], np.searchsorted(words[order], np.arange(sets.vocabulary + 1))


def numbered(column: pa.ChunkedArray) -> tuple[list[Any], np.ndarray]:
    """The different values of a column in order of appearance, and [rows] which of them each row has."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_large_list(column.type) or pa.types.is_list(column.type):
        places: dict[Any, int] = {}
        found = [places.setdefault(tuple(v) if v is not None else None, len(places)) for v in column.to_pylist()]
        return [list(v) if v is not None else None for v in places], np.array(found, dtype=np.int64)
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
