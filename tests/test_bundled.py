"""The reviews that come with the package: written, varied, shifted between domains, and no bag-of-words task."""

import itertools
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

DOMAINS = ("apps", "books", "kitchen", "restaurants")
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
