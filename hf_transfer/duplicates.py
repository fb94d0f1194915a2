"""Floor 1: examples that occur twice where they must not, exactly or nearly.

Two texts are *equal* when they agree after Unicode NFKC, case folding and squeezing of white space; *near* when the
Jaccard similarity of their word sets reaches a threshold. Both are found exactly, with no sampling and no hashing of
similarities, so that the counts can be checked by hand.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_transfer.records import Leaks

if TYPE_CHECKING:  # numpy costs 0.1 s of import time
    import numpy as np
    from datasets import Dataset

FEWEST_WORDS = 5
"""Texts with fewer distinct words count only when equal: of four words, one changed word is often another meaning."""
BATCH_ROWS = 10_000
ROUNDING = 1e-9
"""Loosens the filters, never the test itself: 0.55 * 100 is 55.00000000000001 in floats, and its ceiling is 56."""

PAIR_MARK = "\x1f"
"""Stands between the two texts of a pair; it is white space to ``str.split``, so no squeezed text holds it."""


@dataclass(frozen=True)
class WordSets:
    """The distinct words of many texts, as numbers that rise from the rarest word to the commonest."""

    words: np.ndarray
    """[sum of sizes] int64: the words of text 0 in rising order, then those of text 1, and so on."""
    starts: np.ndarray
    """[texts + 1] int64: text i owns ``words[starts[i]:starts[i + 1]]``."""
    vocabulary: int
    """How many words are numbered, over all sets that share the numbering."""

    @property
    def sizes(self) -> np.ndarray:
        """[texts] distinct words of each text."""
        return self.starts[1:] - self.starts[:-1]

    def of(self, text: int) -> np.ndarray:
        """Words of one text, rarest first."""
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
    test_domains = [domain for domain, rows in test.items() for _ in range(rows.num_rows)]
    train_domains = train.with_format("arrow")["domain"].to_pylist() if train.num_rows else []
    train_digests: list[bytes] = []
    test_digests: list[bytes] = []
    train_words, test_words = _word_sets(
        _noting_digests(normalised_texts(train), train_digests),
        _noting_digests((text for rows in test.values() for text in normalised_texts(rows)), test_digests),
    )
    equal: dict[bytes, list[int]] = {}
    for row, digest in enumerate(train_digests):
        equal.setdefault(digest, []).append(row)

    exact = near = across = 0
    involved: set[int] = set()
    for example, near_rows in enumerate(near_twins(train_words, test_words, threshold)):
        equal_rows = equal.get(test_digests[example], [])
        twins = {*equal_rows, *near_rows}
        involved |= twins
        exact += bool(equal_rows)
        near += bool(twins and not equal_rows)
        across += any(train_domains[row] != test_domains[example] for row in twins)
    inside_train = len(train_digests) - len(equal)
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
    filed, filed_starts = _file_by_prefix(train, threshold)
    in_test = np.zeros(len(filed_starts) - 1, dtype=bool)  # [vocabulary]: is this a word of the test text?
    for example, prefix_length in enumerate(_prefix_lengths(test.sizes, threshold)):
        words = test.of(example)
        prefix = words[:prefix_length]
        lists = [filed[filed_starts[word] : filed_starts[word + 1]] for word in prefix]
        candidates = np.unique(np.concatenate(lists)) if lists else np.empty(0, dtype=np.int64)
        smallest, largest = threshold * len(words) - ROUNDING, len(words) / threshold + ROUNDING
        candidates = candidates[(sizes[candidates] >= smallest) & (sizes[candidates] <= largest)]
        in_test[words] = True
        twins = []
        for row in candidates.tolist():
            shared = int(np.count_nonzero(in_test[train.of(row)]))
            if shared / (len(words) + int(sizes[row]) - shared) >= threshold:
                twins.append(row)
        in_test[words] = False
        yield twins


def _noting_digests(texts: Iterator[str], digests: list[bytes]) -> Iterator[str]:
    """Pass texts on, so that one reading serves both comparisons."""
    for text in texts:
        digests.append(content_digest(text))
        yield text


def _word_sets(train_texts: Iterator[str], test_texts: Iterator[str]) -> tuple[WordSets, WordSets]:
    """Word sets of both sides over one numbering: by number of texts that hold the word, ties by first appearance."""
    import numpy as np

    numbers: dict[str, int] = {}
    both = [_number_words(texts, numbers) for texts in (train_texts, test_texts)]
    text_counts = sum(np.bincount(words, minlength=len(numbers)) for words, _ in both)
    rank = np.empty(len(numbers), dtype=np.int64)
    rank[np.argsort(text_counts, kind="stable")] = np.arange(len(numbers))
    ranked = []
    for words, starts in both:
        owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        renumbered = rank[words]
        ranked.append(WordSets(renumbered[np.lexsort((renumbered, owner))], starts, len(numbers)))
    return ranked[0], ranked[1]


def _number_words(texts: Iterator[str], numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct words of each text as numbers, one text after the other, and where each text starts."""
    import numpy as np

    pieces = []
    starts = [0]
    for text in texts:
        words = {word: None for word in _words(text)}  # a dict keeps first appearance, a set would vary by process
        pieces.append(np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), dtype=np.int64))
        starts.append(starts[-1] + len(words))
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64), np.array(starts, dtype=np.int64)


def _words(normalised: str) -> list[str]:
    first, mark, second = normalised.partition(PAIR_MARK)
    words = re.findall(r"\w+", first)
    return words + [PAIR_MARK + word for word in re.findall(r"\w+", second)] if mark else words


def _prefix_lengths(sizes: np.ndarray, threshold: float) -> np.ndarray:
    """[texts] how many of a text's rarest words must be looked up; 0 for texts that count only when equal."""
    import numpy as np

    shared_at_least = np.ceil(threshold * sizes - ROUNDING).astype(np.int64)
    return np.where(sizes < FEWEST_WORDS, 0, sizes - shared_at_least + 1)


def _file_by_prefix(sets: WordSets, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Texts filed under the words of their prefix: those of word w are ``texts[starts[w]:starts[w + 1]]``."""
    import numpy as np

    owner = np.repeat(np.arange(len(sets.sizes)), sets.sizes)
    position = np.arange(len(sets.words)) - sets.starts[owner]
    chosen = position < _prefix_lengths(sets.sizes, threshold)[owner]
    words, owner = sets.words[chosen], owner[chosen]
    order = np.argsort(words, kind="stable")
    return owner[order], np.searchsorted(words[order], np.arange(sets.vocabulary + 1))
