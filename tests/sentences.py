"""German sentences and translations with mistakes in them, and what a run keeps of each."""

import functools

import numpy as np

from hf_transfer.records import Predictions
from hf_transfer.translation_scores import sentence_statistics

TEMPLATES = (
    "Der {} stellt {} {} auf den Tisch.",
    "Schneiden Sie die {} in Würfel, und geben Sie {} ml Wasser dazu!",
    "„Wo ist mein {}?“, fragte die {} ({}).",
    "Am 3.4.2021 kostete der {} noch 12,50 € – heute mehr.",
    "Warum hat die {} den {} nicht gesehen?",
    "Ein {} und eine {} laufen durch den {}-Park; es regnet.",
    "{}!",
    "Die Temperatur muss bei {}°C liegen, sonst reißt der {} & die {}.",
)
NOUNS = (
    "Hund",
    "Koch",
    "Lehrerin",
    "Straßenbahn",
    "Kartoffel",
    "Säge",
    "Schraube",
    "Größe",
    "Topf",
    "180",
    "Übung",
    "Rad",
)


def references_of(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    templates = (TEMPLATES[rng.integers(len(TEMPLATES))] for _ in range(count))
    return [template.format(*rng.choice(NOUNS, template.count("{}"))) for template in templates]


def with_mistakes(references: list[str], share: float, seed: int) -> list[str]:
    """Words left out, repeated, moved, exchanged or cut, each word with a chance of ``share``."""
    rng, found = np.random.default_rng(seed), []
    for reference in references:
        words = []
        for word in reference.split():
            mistake = rng.integers(5) if rng.random() < share else -1
            kept = {0: [], 1: [word, word], 3: [str(rng.choice(NOUNS))], 4: [word[:-1]]}.get(mistake, [word])
            place = max(0, len(words) - 2) if mistake == 2 else len(words)
            words[place:place] = kept
        found.append(" ".join(words))
    return found


@functools.cache
def statistics_of(count: int, share: float, seed: int, reference_seed: int = 0) -> np.ndarray:
    """[count, 37], the last column being made up: COMET is not installed."""
    references = references_of(count, reference_seed)
    found = sentence_statistics(with_mistakes(references, share, seed), references, ["bleu", "chrf", "ter"])
    found[:, 36] = 85 - 60 * share + np.random.default_rng(seed).normal(0, 10, count)
    return found


def translated(count: int, share: float = 0.3, seed: int = 1, reference_seed: int = 0) -> Predictions:
    """What a run keeps of ``with_mistakes``: equal reference seeds are the same sentences."""
    references = np.array(references_of(count, reference_seed), dtype=object)
    ids = np.arange(count).astype(str)
    statistics = statistics_of(count, share, seed, reference_seed)
    return Predictions(ids, np.full(count, "kitchen"), np.full(count, "", dtype=object), references, statistics)
