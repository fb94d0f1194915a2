"""The task of translation: what is encoded and learnt from, what is written, and whole runs of each strategy."""

import dataclasses
import json
import math
import subprocess
import sys
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_translation import PAIRS, make_translation_checkpoint
from torch.nn import functional

import hf_transfer as ht
from hf_transfer import translation_run
from hf_transfer.config import RunConfig
from hf_transfer.encoding import mix_general
from hf_transfer.interpolation import choose_interpolation
from hf_transfer.page import adapt
from hf_transfer.preparing import prepare
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import EncodedSplits, LabelSpace, Text
from hf_transfer.tasks import TASKS
from hf_transfer.tasks.translation import tagged
from hf_transfer.text import read_text

TASK = TASKS["translation"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_translation_checkpoint("marian", tmp_path_factory.mktemp("marian"))


def config_of(checkpoint, folder, strategy="full", **data):
    return RunConfig(
        task="translation",
        data=ht.DataConfig(source="bundled:phrases", source_lang="en", target_lang="de", max_length=60, **data),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        adapt=ht.AdaptConfig(strategy=strategy, lora_rank=2),
        train=ht.TrainConfig(max_steps=4, window_size=16, validation_steps=2),
        evaluate=ht.EvaluateConfig(beams=2, resamples=100, validation_examples=4, metrics=("bleu", "chrf")),
        output_dir=str(folder),
    )


def read(config, test_count=4):
    text = Text(*read_text(config.data, config.train, TASK, config.seed))
    test = {domain: rows.select(range(test_count)) for domain, rows in text.splits.test.items()}
    return dataclasses.replace(text, splits=dataclasses.replace(text.splits, test=test))


def opened(config):
    found = find_checkpoint(config.model)
    return load_pretrained(config.model, found, TASK.auto_class, {}, True, 0)


def test_loss_of_a_batch_is_the_smoothed_cross_entropy_of_the_plain_logits(checkpoint, tmp_path):
    config = config_of(checkpoint, tmp_path)
    text = read(config)
    pretrained = opened(config)
    labels = TASK.settle(text.labels, pretrained, config)
    encoded = TASK.encode(text.splits, labels, pretrained, 60)
    rows = encoded.train[:5]
    plain = opened(config).model.eval()
    functions = TASK.bind(labels, pretrained, config, ("bleu",))
    batch = functions.make_batch(rows)
    assert batch.target_count == sum(map(len, rows["labels"]))
    assert batch.padding_tokens + batch.tokens == batch.inputs["input_ids"].numel() + batch.labels.numel()
    found = functions.loss_function(pretrained.model.eval()(**batch.inputs), batch)
    with torch.no_grad():
        logits = plain(**batch.inputs).logits
    wanted = functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum", label_smoothing=0.1
    )
    assert found.target_count == batch.target_count
    torch.testing.assert_close(found.loss_sum, wanted, rtol=1e-5, atol=1e-4)
    start = plain.config.decoder_start_token_id
    assert [row[0] for row in rows["decoder_input_ids"]] == [start] * 5
    assert rows["decoder_input_ids"][0][1:] == rows["labels"][0][:-1]


def test_pairs_over_the_limit_are_left_out_of_train_and_split_up_elsewhere(checkpoint, tmp_path):
    config = config_of(checkpoint, tmp_path)
    text = read(config, 40)
    pretrained = opened(config)
    labels = TASK.settle(text.labels, pretrained, config)
    whole = TASK.encode(text.splits, labels, pretrained, 500).train
    limit = int(np.median([max(len(row["input_ids"]), len(row["labels"])) for row in whole]))
    encoded = TASK.encode(text.splits, labels, pretrained, limit)
    kept = encoded.train
    assert 0 < len(kept) < len(text.splits.train)
    assert max(map(len, kept["input_ids"])) <= limit and max(map(len, kept["labels"])) <= limit
    assert any("left out" in note for note in encoded.notes)
    for domain, rows in encoded.test.items():
        assert len(rows) == len(text.splits.test[domain])
        assert all(len(ids) <= limit for pieces in rows["pieces"] for ids in pieces)
    assert any(len(pieces) > 1 for rows in encoded.test.values() for pieces in rows["pieces"])


def test_a_tag_names_a_train_domain_and_is_general_elsewhere():
    labels = LabelSpace("translation", tags=("kitchen", "general"))
    assert tagged(["a", "b"], ["kitchen", "workshop"], labels) == ["kitchen: a", "general: b"]
    assert tagged(["a"], ["kitchen"], LabelSpace("translation")) == ["a"]


def test_text_that_the_tokenizer_does_not_know_is_refused_before_training(checkpoint, tmp_path):
    lines = "\n".join(f"ウサギが草を{i}食べています" for i in range(40))
    (tmp_path / "train.ja").write_text(lines, encoding="utf-8")
    (tmp_path / "train.de").write_text("\n".join(f"Der Hase {i} frisst Gras." for i in range(40)), encoding="utf-8")
    config = config_of(checkpoint, tmp_path / "run")
    data = dataclasses.replace(config.data, source=str(tmp_path), source_lang="ja")
    config = dataclasses.replace(config, data=data)
    with pytest.raises(ht.InputError, match="its tokenizer knows nothing of"):
        adapt(config, Text(*read_text(config.data, config.train, TASK, 0)), keep_model=False)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def in_several_languages(family, folder, sources, targets, **data):
    """Labels as settled, encoded train rows and the checkpoint, of a table that names languages by row."""
    rows = dict(zip(("source", "target"), zip(*PAIRS, strict=True), strict=True))
    rows |= {"from": list(islice(cycle(sources), len(PAIRS))), "to": list(islice(cycle(targets), len(PAIRS)))}
    folder.mkdir()
    Dataset.from_dict(rows).to_csv(folder / "pairs.csv", index=False)
    config = config_of(make_translation_checkpoint(family, folder / family), folder / "run")
    wanted = ht.DataConfig(source=str(folder / "pairs.csv"), max_length=60, **data)
    config = dataclasses.replace(config, data=wanted)
    pretrained = opened(config)
    text = Text(*read_text(config.data, config.train, TASK, 0))
    labels = TASK.settle(text.labels, pretrained, config)
    return labels, TASK.encode(text.splits, labels, pretrained, 60).train, pretrained


COLUMNS = {"source_lang_column": "from", "target_lang_column": "to"}


@pytest.mark.parametrize("given", [{}, {"source_lang": "en", "target_lang": "de"}])
def test_the_one_language_of_a_column_is_that_of_the_run_whatever_stands_in_for_rows_without(given, tmp_path):
    labels, train, pretrained = in_several_languages("mbart-50", tmp_path / "a", ["en"], ["fr"], **COLUMNS, **given)
    assert (labels.source_lang, labels.target_lang) == ("en_XX", "fr_XX")
    french = pretrained.tokenizer.convert_tokens_to_ids("fr_XX")
    assert pretrained.model.generation_config.forced_bos_token_id == french
    assert pretrained.tokenizer.tgt_lang == "fr_XX"
    assert {ids[0] for ids in train["labels"]} == {french}


@pytest.mark.parametrize(
    ("sources", "targets", "data", "wanted"),
    [
        (["en"], ["fr", "de"], {"source_lang": "en", "target_lang_column": "to"}, ("en_XX", "")),
        (["en", "fr"], ["de"], {"source_lang_column": "from", "target_lang": "de"}, ("", "de_DE")),
        (["en"], ["fr", "de"], COLUMNS, ("en_XX", "")),
        (["en", "fr"], ["de", "es"], COLUMNS, ("", "")),
    ],
)
def test_a_side_of_one_language_is_in_the_form_of_the_checkpoint_though_the_other_has_several(
    sources, targets, data, wanted, tmp_path
):
    labels, train, pretrained = in_several_languages("mbart-50", tmp_path / "a", sources, targets, **data)
    assert (labels.source_lang, labels.target_lang) == wanted
    tokens = pretrained.tokenizer.convert_ids_to_tokens
    assert sorted({tokens(ids[0])[:2] for ids in train["input_ids"]}) == sorted(sources)
    assert sorted({tokens(ids[0])[:2] for ids in train["labels"]}) == sorted(targets)


def test_a_prefix_of_the_users_own_stands_for_languages_in_a_column_that_are_unknown(tmp_path):
    data = {**COLUMNS, "source_prefix": "to Quenya: "}
    labels, train, pretrained = in_several_languages("t5", tmp_path / "a", ["en"], ["Quenya"], **data)
    assert (labels.source_lang, labels.target_lang) == ("en", "Quenya")
    texts = pretrained.tokenizer.batch_decode(train["input_ids"][:])
    assert all(text.startswith("to ") for text in texts) and not any("translate" in text for text in texts)


def test_general_text_makes_up_its_share_of_the_tokens():
    def rows(prefix, lengths):
        names = [f"{prefix}{i}" for i in range(len(lengths))]
        return Dataset.from_dict({"example_id": names, "length": lengths})

    encoded = EncodedSplits(rows("own", [10] * 20), rows("v", [1]), {}, 0, general=rows("general", [5] * 100))
    mixed, sentence = mix_general(encoded, 0.5, seed=3)
    assert (len(mixed.train), mixed.epoch_size, mixed.mixture.drawn) == (120, 60, 40)
    assert sentence == "40 of 100 general examples are mixed into each pass over train (50% of its tokens)."
    few, sentence = mix_general(dataclasses.replace(encoded, general=rows("general", [5] * 3)), 0.5, seed=3)
    assert few.epoch_size == 23, "all there is"
    assert "3 of 3" in sentence and "(7% of its tokens)" in sentence


def test_general_text_without_train_rows_cannot_be_mixed_in(checkpoint, tmp_path):
    path = general(tmp_path)
    lines = [line + "\ttest" for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    path.write_text("source\ttarget\tsplit\n" + "\n".join(lines) + "\n", encoding="utf-8")
    config = config_of(checkpoint, tmp_path / "run", "mixed", general_source=str(path))
    with pytest.raises(ht.InputError, match=r"--data.general_source has nothing to mix in, and 50% of the training"):
        adapt(config, read(config), keep_model=False)
    config = config_of(checkpoint, tmp_path / "run", general_source=str(path))
    assert len(prepare(config, read(config), keep_model=False).encoded.general) == 0, "scored alone it may be"


class Line(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor([value]))


def test_interpolation_walks_from_start_to_end_and_stays_at_the_best_point():
    model, start = Line(1.0), {"value": torch.tensor([0.0])}
    seen = []

    def validate(model):
        seen.append(round(float(model.value), 6))
        return float(model.value)

    found = choose_interpolation(
        model, start, ht.AdaptConfig(strategy="interpolated"), True, validate, lambda m: -4 * float(m.value) ** 2
    )
    assert seen == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    # alpha - 4 alpha^2 is greatest at 1/8; of the points tried, 0 gives 0 and 0.2 gives 0.04
    assert found.alpha == 0.2 and float(model.value) == pytest.approx(0.2)
    assert [point["general"] for point in found.curve][-1] == -4.0


def test_interpolation_takes_what_is_given_and_the_middle_without_general_text():
    adapt_config = ht.AdaptConfig(strategy="interpolated", interpolation=0.3)
    model = Line(1.0)
    found = choose_interpolation(model, {"value": torch.tensor([0.0])}, adapt_config, True, lambda m: 1.0, None)
    assert found.alpha == 0.3 and float(model.value) == pytest.approx(0.3)
    assert math.isnan(found.curve[0]["general"])
    model = Line(1.0)
    plain = ht.AdaptConfig(strategy="interpolated")
    assert choose_interpolation(model, {"value": torch.tensor([0.0])}, plain, True, lambda m: 1.0, None).alpha == 0.5


LONGER = [pytest.param(strategy, marks=pytest.mark.slow) for strategy in ("full", "freeze")]
"""Strategies that other tests of each change train as well."""


@pytest.mark.parametrize("strategy", [*LONGER, "lora", "interpolated", "knn", "mixed"])
def test_every_strategy_runs_and_scores_each_domain(strategy, checkpoint, tmp_path, monkeypatch):
    if strategy == "knn":
        pytest.importorskip("faiss")
    with_neighbours = []
    whole = translation_run.knn_logits
    monkeypatch.setattr(translation_run, "knn_logits", lambda *of: with_neighbours.append(of) or whole(*of))
    data = {"general_source": str(general(tmp_path))} if strategy in ("mixed", "interpolated") else {}
    config = config_of(checkpoint, tmp_path / "run", strategy, **data)
    assert config.problems() == []
    result = adapt(config, read(config), keep_model=False)
    domains = ["kitchen", "workshop", *(["streets"] if data else [])]
    scored = {(score["domain"], score["metric"]) for score in result.results["scores"]}
    assert scored == {(domain, metric) for domain in domains for metric in ("bleu", "chrf")}
    assert result.results["strategy"]["name"] == strategy
    translation = result.results["translation"]
    assert set(translation["domains"]) == set(domains)
    assert ("trade_off" in translation, "knn" in translation) == (strategy == "interpolated", strategy == "knn")
    lines = (tmp_path / "run" / "translations" / "kitchen.reference.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    if strategy == "interpolated":
        curve = {point["alpha"]: point["in_domain"] for point in translation["trade_off"]["curve"]}
        assert result.results["selection"]["value"] == curve[translation["trade_off"]["alpha"]]
    # validation and test
    assert len(with_neighbours) == (2 if strategy == "knn" else 0)
    if strategy == "mixed":
        assert any("general examples are mixed into each pass" in note for note in result.results["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("long", ["source", "target"])
def test_validation_pairs_longer_than_the_positions_of_a_model_choose_no_neighbours(long, checkpoint, tmp_path):
    config = config_of(checkpoint, tmp_path / "run", "knn")
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, validation_examples=0))
    text = read(config)
    rows = text.splits.validation.to_list()

    def with_long(count):
        longer = [{**row, long: " ".join([row[long]] * 60)} for row in rows[:count]] + rows[count:]
        splits = dataclasses.replace(text.splits, validation=Dataset.from_list(longer))
        return dataclasses.replace(text, splits=splits, shared={})

    positions = opened(config).model.config.max_position_embeddings
    assert positions == 128 and 60 * min(len(row[long].split()) for row in rows) > positions
    plain = adapt(config, with_long(0), keep_model=False).results["translation"]["knn"]
    config = dataclasses.replace(config, overwrite=True)
    told = adapt(config, with_long(2), keep_model=False).results["translation"]["knn"]
    assert 0 < told["tokens"] < plain["tokens"]
    with pytest.raises(ht.InputError, match="every pair has more than 60 tokens on one side"):
        adapt(config, with_long(len(rows)), keep_model=False)


def general(folder):
    path = folder / "streets.tsv"
    pairs = [f"The street number {i} is wet.\tDie Straße Nummer {i} ist nass." for i in range(40)]
    path.write_text("source\ttarget\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    return path


def test_a_vocabulary_that_has_fewer_pieces_than_asked_for_is_said_while_running_and_in_the_results(tmp_path, capsys):
    config = config_of("scratch:marian-tiny", tmp_path / "run")
    result = adapt(config, read(config), keep_model=False)
    (note,) = (note for note in result.results["notes"] if "pieces" in note)
    size = len(json.loads((tmp_path / "run" / "vocabulary" / "vocab.json").read_text(encoding="utf-8")))
    assert note == f"The text is too small for 8,000 pieces: the vocabulary has {size - 1:,}."  # padding is none
    said = capsys.readouterr()
    assert "too small for 8,000 pieces" in said.out + said.err


STOCK = """
import sys, warnings
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
print("READY", file=sys.stderr)
inputs = tokenizer(["The oven is hot.", "A sharp knife."], return_tensors="pt", padding=True)
for text in tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True):
    print(text)
"""


@pytest.mark.recipe
@pytest.mark.parametrize("family", ["mbart-50", "scratch"])
def test_stock_transformers_writes_with_a_saved_model_and_says_nothing(family, tmp_path):
    folder = "scratch:marian-tiny"
    if family != "scratch":
        folder = make_translation_checkpoint(family, tmp_path / family)
        path = folder / "generation_config.json"
        own = json.loads(path.read_text())
        path.write_text(json.dumps(own | {"max_length": 100, "max_new_tokens": 30}))
    config = config_of(folder, tmp_path / "run")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=1))
    adapt(config, read(config))
    model = tmp_path / "run" / "model"
    ran = subprocess.run([sys.executable, "-c", STOCK, str(model)], capture_output=True, text=True, check=True)
    assert ran.stderr.split("READY\n")[1] == ""
    assert len(ran.stdout.splitlines()) == 2
    assert not any(mark in ran.stdout for mark in ("de_DE", "deu_Latn", ">>deu<<", "<pad>", "</s>", "<s>"))
    settings = json.loads((model / "generation_config.json").read_text())
    assert (settings.get("max_length"), settings.get("max_new_tokens")) == (
        (512, None) if family == "scratch" else (None, 30)
    )
    if family in ("marian", "scratch"):
        assert settings["bad_words_ids"] == [[settings["pad_token_id"]]]


@pytest.mark.recipe
def test_the_stock_example_beside_a_model_says_what_it_was_adapted_to(tmp_path):
    config = config_of(make_translation_checkpoint("t5", tmp_path / "t5"), tmp_path / "run")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=1))
    adapt(config, read(config))
    model = tmp_path / "run" / "model"
    stock = (model / "README.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    assert 'tokenizer(["translate English to German: some text"]' in stock
    code = stock.replace("PATH", str(model)).replace("some text", "The oven is hot.")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (ours,) = ht.load(model).translate(["The oven is hot."], beams=2)
    # a model of random weights never ends, and stock goes on for longer: the beginning tells
    assert len(ours) > 20 and ran.stdout.startswith(f"['{ours[:20]}")


@pytest.mark.recipe
def test_a_run_ends_in_a_model_that_translates_the_same_in_a_fresh_process(tmp_path):
    folder = make_translation_checkpoint("m2m100", tmp_path / "m2m100")
    config = config_of(folder, tmp_path / "run", "lora")
    evaluate = dataclasses.replace(config.evaluate, beams=3, length_penalty=0.2)
    config = dataclasses.replace(config, publish=ht.PublishConfig(export=("merged",)), evaluate=evaluate)
    result = ht.run(config)
    artefact = result.results["artefact"]
    assert (artefact["kind"], artefact["proved"], artefact["also"]) == ("adapter", True, ["merged"])
    texts = ["The oven is hot.", "", "A knife."]
    opened = ht.load(tmp_path / "run")
    written = opened.translate(texts)
    assert written[1] == "" and len(written) == 3
    assert (opened.beams, opened.length_penalty) == (3, 0.2), "as it was scored"
    assert written == opened.translate(texts, beams=3, length_penalty=0.2)
    assert ht.load(tmp_path / "run" / "merged").translate(texts) == written
    with pytest.raises(ht.InputError, match="is no tag of this model"):
        ht.load(tmp_path / "run").translate(texts, domain="kitchen")
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    code = "from hf_transfer.cli import main; main()"
    words = ["translate", "--model", str(tmp_path / "run"), "--input", "-", "--output", str(tmp_path / "out.txt")]
    with (tmp_path / "in.txt").open("rb") as stream:
        subprocess.run([sys.executable, "-c", code, *words], stdin=stream, check=True, capture_output=True)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "\n".join(written) + "\n"


def test_statistics_of_each_translation_give_the_score(checkpoint, tmp_path):
    config = config_of(checkpoint, tmp_path)
    text = read(config)
    pretrained = opened(config)
    labels = TASK.settle(text.labels, pretrained, config)
    encoded = TASK.encode(text.splits, labels, pretrained, 60)
    rows = encoded.test["kitchen"]
    said = np.array([*rows["reference"][:3], "ganz anders"], dtype=object)
    predictions = TASK.to_predictions(rows, said, ("bleu",), "13a")
    import sacrebleu

    from hf_transfer.metrics import score

    wanted = sacrebleu.corpus_bleu(list(said), [list(rows["reference"])]).score
    assert score("bleu", predictions) == pytest.approx(wanted, abs=1e-9)
    assert math.isnan(score("chrf", predictions))  # not asked for, so not computed
