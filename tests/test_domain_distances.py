"""Distances of a comparison: which pairs are measured, on which features, and what is kept for the next time."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from test_pretrained import open_it
from tiny import make_checkpoint
from toy import write_reviews

from hf_transfer import domain_distances
from hf_transfer.comparison import Setting
from hf_transfer.config import DataConfig, EvaluateConfig, ModelConfig, RunConfig, TrainConfig
from hf_transfer.distances import (
    coral_distance,
    frechet_distance,
    jensen_shannon,
    label_shift,
    most_shifted_words,
    word_counts,
)
from hf_transfer.domain_distances import _mean_pooled, _sample, measure_distances
from hf_transfer.records import Text
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text

DOMAINS = ("books", "apps", "knives")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data"), DOMAINS, count=60)


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch):
    monkeypatch.setattr(domain_distances, "PERMUTATIONS", 19)


def config_of(checkpoint: Path, source: Path, train_domains=("books",), seed: int = 0, **data) -> RunConfig:
    return RunConfig(
        data=DataConfig(source=str(source), train_domains=train_domains, **data),
        model=ModelConfig(checkpoint=str(checkpoint)),
        evaluate=EvaluateConfig(tokens_per_batch=100),
        seed=seed,
    )


def planned(config: RunConfig, target_examples: int = 0) -> SimpleNamespace:
    return SimpleNamespace(setting=Setting(config.data.train_domains, None, target_examples), config=config)


def text_of(config: RunConfig) -> Text:
    return Text(*read_text(config.data, TrainConfig(), TASKS["classification"], config.seed))


def opened(monkeypatch) -> list[int]:
    """Fills up with one entry for each time that the checkpoint is opened."""
    times: list[int] = []
    plain: Callable = domain_distances._open_body
    monkeypatch.setattr(domain_distances, "_open_body", lambda *given: (times.append(1), plain(*given))[1])
    return times


def one_by_one(checkpoint: Path, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """[texts, d] mean of the last hidden states of each text alone, by plain transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    body = transformers.AutoModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        means = [
            body(**tokenizer(text, pair, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
            for text, pair in zip(texts, pairs or [None] * len(texts), strict=True)
        ]
    return np.stack(means)


def test_every_shifted_domain_is_measured_against_the_train_rows_on_features_of_whole_texts(
    checkpoint, source, tmp_path
):
    config = config_of(checkpoint, source)
    text = text_of(config)
    found = measure_distances([planned(config)], text_of, tmp_path / "distances.json")
    assert [(pair["source"], pair["target"]) for pair in found] == [("books", "apps"), ("books", "knives")]
    own = text.splits.train
    for pair in found:
        other = text.splits.test[pair["target"]]
        features = [one_by_one(checkpoint, list(rows["text"])) for rows in (own, other)]
        assert pair["coral"] == pytest.approx(coral_distance(*features), rel=1e-3)
        assert pair["frechet"] == pytest.approx(frechet_distance(*features), rel=1e-3)
        counts = [word_counts(rows["text"]) for rows in (own, other)]
        assert pair["jensen_shannon"] == pytest.approx(jensen_shannon(*counts))
        assert pair["words"] == json.loads(json.dumps(most_shifted_words(*counts)))
        assert pair["label_shift"] == pytest.approx(label_shift(list(own["label"]), list(other["label"])))
        assert all(pair[name] is not None for name in ("proxy_a", "proxy_a_p", "mmd", "mmd_p", "oov_rate"))


def test_several_train_domains_are_one_source(checkpoint, source, tmp_path):
    config = config_of(checkpoint, source, ("books", "apps"))
    (pair,) = measure_distances([planned(config)], text_of, tmp_path / "distances.json")
    assert (pair["source"], pair["target"]) == ("books, apps", "knives")


def test_what_was_measured_is_kept_and_only_new_pairs_are_measured(checkpoint, source, tmp_path, monkeypatch):
    times, path = opened(monkeypatch), tmp_path / "distances.json"
    one = config_of(checkpoint, source, test_domains=("books", "apps"))
    first = measure_distances([planned(one)], text_of, path)
    assert (len(first), len(times)) == (1, 1)
    assert measure_distances([planned(one)], text_of, path) == first
    assert len(times) == 1, "nothing new, so that the checkpoint stays closed"
    both = measure_distances([planned(config_of(checkpoint, source))], text_of, path)
    assert both[0] == first[0] and both[1]["target"] == "knives"
    assert len(times) == 2
    fresh = measure_distances([planned(config_of(checkpoint, source))], text_of, tmp_path / "other.json")
    assert fresh == both, "the draws do not depend on what was measured before"


def test_other_data_checkpoint_or_length_do_not_take_what_is_kept(checkpoint, source, tmp_path, monkeypatch):
    times, path = opened(monkeypatch), tmp_path / "distances.json"
    other = make_checkpoint(tmp_path / "bert", seed=1)
    rows = source.read_text().splitlines()
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join([rows[0].replace('"text": "', '"text": "soup '), *rows[1:]]) + "\n")
    measured = {}
    for name, config in {
        "as it was": config_of(checkpoint, source, test_domains=("apps",)),
        "checkpoint": config_of(other, source, test_domains=("apps",)),
        "length": config_of(checkpoint, source, test_domains=("apps",), max_length=8),
        "data": config_of(checkpoint, changed, test_domains=("apps",)),
    }.items():
        (measured[name],) = measure_distances([planned(config)], text_of, path)
    assert len(times) == 4
    assert len({pair["coral"] for pair in measured.values()}) >= 3


def test_seeds_and_runs_with_target_examples_add_nothing(checkpoint, source, tmp_path, monkeypatch):
    times = opened(monkeypatch)
    runs = [planned(config_of(checkpoint, source, seed=seed)) for seed in range(2)]
    runs.append(planned(config_of(checkpoint, source, ("apps",)), target_examples=16))
    found = measure_distances(runs, text_of, tmp_path / "distances.json")
    assert [(pair["source"], pair["target"]) for pair in found] == [("books", "apps"), ("books", "knives")]
    assert len(times) == 1


def test_too_few_texts_are_not_measured_and_not_asked_about_again(checkpoint, source, tmp_path, monkeypatch):
    times, path = opened(monkeypatch), tmp_path / "distances.json"
    monkeypatch.setattr(domain_distances, "FEWEST_TEXTS", 21)  # test holds 20 of each domain
    config = config_of(checkpoint, source)
    assert measure_distances([planned(config)], text_of, path) == []
    assert list(json.loads(path.read_text()).values()) == [None, None]
    monkeypatch.setattr(domain_distances, "FEWEST_TEXTS", 20)
    assert measure_distances([planned(config)], text_of, path) == []
    assert times == []
    assert len(measure_distances([planned(config)], text_of, tmp_path / "other.json")) == 2


def test_long_domains_are_sampled_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(domain_distances, "MOST_TEXTS", 5)
    rows = Dataset.from_dict({"text": [str(i) for i in range(50)]})
    chosen = _sample(rows, 3)["text"][:]
    assert len(set(chosen)) == 5
    assert chosen == sorted(chosen, key=int) == _sample(rows, 3)["text"][:]
    assert chosen != _sample(rows, 4)["text"][:]
    assert _sample(rows.select(range(5)), 3)["text"][:] == list("01234")


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_features_do_not_depend_on_the_batch_nor_on_where_the_tokenizer_pads(architecture, side, source, tmp_path):
    folder = make_checkpoint(tmp_path / "model", architecture)
    pretrained = open_it(folder)
    pretrained.model.eval()
    pretrained.tokenizer.padding_side = side
    rows = Dataset.from_dict({"text": ["the book", "the film was very good and not dry", "soup", "a knife is sharp"]})
    config = config_of(folder, source)
    wanted = one_by_one(folder, rows["text"][:])
    np.testing.assert_allclose(_mean_pooled(config, pretrained, rows), wanted, atol=1e-5)


def test_of_an_encoder_decoder_the_encoder_gives_the_features(source, tmp_path):
    folder = make_checkpoint(tmp_path / "t5", "t5")
    pretrained = open_it(folder)
    pretrained.model.eval()
    rows = Dataset.from_dict({"text": ["the book", "the film was very good"]})
    tokenizer, encoder = pretrained.tokenizer, transformers.T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = [
            encoder(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for t in rows["text"]
        ]
    np.testing.assert_allclose(_mean_pooled(config_of(folder, source), pretrained, rows), np.stack(wanted), atol=1e-5)


def test_of_a_pair_both_texts_are_read_the_second_as_the_second(checkpoint, source):
    pretrained = open_it(checkpoint)
    pretrained.model.eval()
    columns = {"text": ["the book", "a film"], "text_pair": ["good plot", "very dry and slow"]}
    found = _mean_pooled(config_of(checkpoint, source), pretrained, Dataset.from_dict(columns))
    np.testing.assert_allclose(found, one_by_one(checkpoint, columns["text"], columns["text_pair"]), atol=1e-5)


def test_words_of_both_texts_of_a_pair_are_counted(checkpoint, tmp_path):
    rows = [
        {"text": f"the book {i}", "pair": word, "label": i % 2, "domain": domain, "split": split}
        for domain, word in (("books", "gripping"), ("apps", "crash"))
        for split in ("train", "test")
        for i in range(30)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(checkpoint, source, text_pair_column="pair")
    (found,) = measure_distances([planned(config)], text_of, tmp_path / "distances.json")
    assert {word for word, *_ in found["words"]} >= {"gripping", "crash"}


@pytest.mark.parametrize("labels", [[0.5, 1.5, 2.5], [["a"], ["a", "b"], ["b"]]], ids=["numbers", "several"])
def test_only_single_labels_can_shift(checkpoint, tmp_path, labels):
    rows = [
        {"text": f"the {domain} {split} {i}", "label": labels[i % 3], "domain": domain, "split": split}
        for domain in ("books", "apps")
        for split in ("train", "test")
        for i in range(24)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = measure_distances([planned(config_of(checkpoint, source))], text_of, tmp_path / "distances.json")
    assert found["label_shift"] is None
    assert found["coral"] is not None
