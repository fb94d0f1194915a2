"""The data that comes with the package: reviews, which are written, varied, shifted between domains, and no
bag-of-words task; and phrases in two languages, which are clean, unrepeated, and tied to the words of their domain.
"""

import itertools
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.sources import load_source
from hf_transfer.sources.bundled import find_bundled

DOMAINS = ("apps", "books", "kitchen", "restaurants")
PHRASE_DOMAINS = ("kitchen", "workshop")
SHIFTED_WORDS = ("light", "heavy", "dry", "sharp", "dark", "quick", "cold", "simple", "predictable", "unpredictable")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return load_source(DataConfig()).rows.to_list()


def chosen(rows: list[dict], **wanted: str) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_reviews_are_the_default_source_and_name_their_train_domains():
    table = load_source(DataConfig())
    assert (table.name, table.default_train_domains) == ("bundled:reviews", ("books", "kitchen"))
    assert re.fullmatch(r"[0-9a-f]{64}", table.fingerprint)
    assert table.fingerprint == load_source(DataConfig()).fingerprint
    with pytest.raises(InputError, match=r"bundled:review is not known.*bundled:reviews"):
        load_source(DataConfig(source="bundled:review"))


def test_every_domain_has_at_least_a_hundred_reviews_of_each_class(rows):
    counts = Counter((row["domain"], row["label"]) for row in rows)
    assert set(counts) == set(itertools.product(DOMAINS, ("negative", "positive")))
    assert min(counts.values()) >= 100
    for domain in DOMAINS:
        assert counts[domain, "negative"] == counts[domain, "positive"]
        test = Counter(row["label"] for row in chosen(rows, domain=domain, split="test"))
        assert test["negative"] == test["positive"] >= 50
    assert {row["split"] for row in rows} == {"train", "test"}


def test_a_review_has_one_to_three_sentences(rows):
    ends = re.compile(r"[.!?…]+[\"')\]]*(?=\s|$)")
    assert {len(ends.findall(row["text"])) for row in rows} == {1, 2, 3}
    for row in rows:
        assert 5 <= len(row["text"].split()) <= 60
        assert row["text"] == row["text"].strip() and row["text"].isprintable()


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_two_reviews_of_a_domain_share_more_than_half_their_words(rows, domain):
    texts = [row["text"] for row in chosen(rows, domain=domain)]
    vectorizer = CountVectorizer(token_pattern=r"\w+", binary=True, dtype=np.int32)
    held = vectorizer.fit_transform(texts)
    shared = (held @ held.T).toarray()
    sizes = np.diag(shared).copy()
    assert sizes.tolist() == [len(words(text)) for text in texts]
    share = shared / np.minimum.outer(sizes, sizes)
    np.fill_diagonal(share, 0)
    first, second = np.unravel_index(share.argmax(), share.shape)
    assert share.max() <= 0.5, (texts[first], texts[second])


def test_no_review_occurs_twice_over_all_domains(rows):
    assert len({" ".join(sorted(words(row["text"]))) for row in rows}) == len(rows)


def bag_of_words(rows: list[dict], target: str):
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
    return model.fit([row["text"] for row in rows], [row[target] for row in rows])


def accuracy(model, rows: list[dict], target: str) -> float:
    return float(np.mean(model.predict([row["text"] for row in rows]) == [row[target] for row in rows]))


def test_a_bag_of_words_is_clearly_below_perfect_and_clearly_worse_out_of_domain(rows):
    in_domain, shifted = [], []
    for domain in DOMAINS:
        model = bag_of_words(chosen(rows, domain=domain, split="train"), "label")
        for other in DOMAINS:
            value = accuracy(model, chosen(rows, domain=other, split="test"), "label")
            (in_domain if other == domain else shifted).append(value)
    assert 0.65 <= np.mean(in_domain) <= 0.9, in_domain
    assert np.mean(shifted) <= np.mean(in_domain) - 0.08, (in_domain, shifted)
    assert np.mean(shifted) > 0.5, "some of what is learnt does transfer"


def test_a_domain_is_known_by_its_words(rows):
    model = bag_of_words(chosen(rows, split="train"), "domain")
    assert accuracy(model, chosen(rows, split="test"), "domain") > 0.65, "chance is 0.25"


@pytest.mark.parametrize("word", SHIFTED_WORDS)
def test_polar_words_of_one_domain_mean_the_opposite_in_another(rows, word):
    log_odds = {}
    for domain in DOMAINS:
        counts = Counter(row["label"] for row in chosen(rows, domain=domain) if word in words(row["text"]))
        if counts.total() >= 10:
            log_odds[domain] = math.log((counts["positive"] + 0.5) / (counts["negative"] + 0.5))
    assert max(log_odds.values()) > 1, log_odds
    assert min(log_odds.values()) < -1, log_odds


@pytest.fixture(scope="module")
def phrases() -> list[dict]:
    # The files as they lie there, so that these tests say nothing about any reader.
    files = sorted(find_bundled("phrases", "translation").folder.iterdir())
    assert [file.name for file in files] == [f"{domain}.jsonl" for domain in PHRASE_DOMAINS]
    lines = [(file.stem, line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [{**json.loads(line), "domain": domain} for domain, line in lines]


def jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)


def test_phrases_recommend_the_kitchen_for_training_and_leave_the_workshop_to_show_the_shift():
    assert find_bundled("phrases", "translation").default_train_domains == ("kitchen",)
    with pytest.raises(InputError, match=r"bundled:phrase is not known.*bundled:reviews, bundled:phrases"):
        find_bundled("phrase", "translation")


def test_each_domain_of_the_phrases_has_two_hundred_pairs_in_three_splits(phrases):
    counts = Counter((row["domain"], row["split"]) for row in phrases)
    expected = {"train": 140, "validation": 20, "test": 40}
    assert counts == {(domain, split): count for domain in PHRASE_DOMAINS for split, count in expected.items()}
    assert all(set(row) == {"source", "target", "split", "domain"} for row in phrases)


@pytest.mark.parametrize("domain", PHRASE_DOMAINS)
def test_the_splits_of_the_phrases_are_mixed_over_the_file(phrases, domain):
    splits = [row["split"] for row in chosen(phrases, domain=domain)]
    for start in range(0, len(splits), 50):
        assert 5 <= splits[start : start + 50].count("test") <= 15, "a quarter of the file has about ten of forty"


def test_both_sides_of_a_phrase_are_clean_sentences_of_3_to_25_words(phrases):
    for row in phrases:
        for text in (row["source"], row["target"]):
            assert text.isprintable() and " ".join(text.split()) == text, "no control characters, no stray blanks"
            assert 3 <= len(text.split()) <= 25
            assert re.search(r"[.!?][\"“]?$", text) and text[0] == text[0].upper()
        assert row["source"] != row["target"]
        assert 0.5 <= len(row["source"]) / len(row["target"]) <= 2


@pytest.mark.parametrize("domain", PHRASE_DOMAINS)
def test_sources_are_english_and_targets_german(phrases, domain):
    german_letters = re.compile("[äöüÄÖÜß„]")
    german_words = re.compile(r"\b(der|die|das|den|und|nicht|ist|mit)\b", re.I)
    english_words = re.compile(r"\b(the|and|of|is|with|to)\b", re.I)
    rows = chosen(phrases, domain=domain)
    assert not [row["source"] for row in rows if german_letters.search(row["source"])]
    assert np.mean([bool(german_letters.search(row["target"])) for row in rows]) > 0.4
    assert np.mean([bool(german_words.search(row["target"])) for row in rows]) > 0.7
    assert not [row["target"] for row in rows if english_words.search(row["target"])]
    assert np.mean([bool(english_words.search(row["source"])) for row in rows]) > 0.7


def test_numbers_are_the_same_on_both_sides_of_a_phrase(phrases):
    # Only the marks between digits differ: 1,000 is 1.000 in German, and 1.5 is 1,5.
    numbers = [(re.findall(r"\d+", row["source"]), re.findall(r"\d+", row["target"]), row["source"]) for row in phrases]
    assert [item for item in numbers if item[0] != item[1]] == []
    assert sum(bool(found) for found, _, _ in numbers) >= 15


@pytest.mark.parametrize("side", ["source", "target"])
def test_no_two_phrases_are_equal_or_nearly_equal(phrases, side):
    texts = [row[side] for row in phrases]
    assert len(set(texts)) == len(texts) == 400
    closest = max(
        (jaccard(words(first), words(second)), first, second) for first, second in itertools.combinations(texts, 2)
    )
    assert closest[0] < 0.6, closest


def test_no_test_phrase_nearly_occurs_in_train(phrases):
    train = [words(row["source"]) for row in chosen(phrases, split="train")]
    for row in chosen(phrases, split="test"):
        assert max(jaccard(words(row["source"]), held) for held in train) < 0.8, row


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("domain", PHRASE_DOMAINS)
def test_train_phrases_know_far_more_of_their_own_domains_words_than_of_the_others(phrases, domain, side):
    def long_words(rows: list[dict]) -> list[str]:
        return [word for row in rows for word in sorted(words(row[side])) if len(word) > 4]

    known = set(long_words(chosen(phrases, domain=domain, split="train")))
    shares = {
        other: np.mean([word in known for word in long_words(chosen(phrases, domain=other, split="test"))])
        for other in PHRASE_DOMAINS
    }
    own = shares.pop(domain)
    assert own > 0.55 and own > 2.5 * max(shares.values()), (own, shares)
