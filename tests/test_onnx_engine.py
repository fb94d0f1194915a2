"""The ONNX form of a classifier: the same logits in any shape, opened from every folder, and refused in words."""

import csv
import json
import logging
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from test_artefact import SPACES, STRATEGIES, open_case
from test_publishing import METADATA, make_run
from tiny import ARCHITECTURES, make_checkpoint
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import artefact, cli, onnx_engine
from hf_transfer.errors import InputError, RunError
from hf_transfer.layers import LayerProbe
from hf_transfer.loading import LoadedModel, load
from hf_transfer.onnx_engine import OnnxEngine, check_onnx, export_onnx
from hf_transfer.parcel import is_ours, pack

onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "hf-transfer-learning[onnx]"')
TEXTS = ["the book was good", "a dry soup and a broken blade edge , not good", "app", "never " * 30]


def save(folder: Path, architecture: str = "bert", strategy: str = "full", export: str = "onnx", **settings):
    """What a run leaves behind, without its training: random weights and a head that decides."""
    labels, base = SPACES["3"], make_checkpoint(folder / "base", architecture, **settings)
    pretrained, adapted = open_case(base, labels, STRATEGIES[strategy])
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name or parameter.shape[:1] == (labels.output_count,):
                parameter.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    proof = Dataset.from_dict({"text": TEXTS})
    saved = artefact.save_artefact(
        folder / "run", adapted, pretrained, labels, "classification", 60, False, tuple(export.split(",")), proof
    )
    (folder / "run" / "results.json").write_text("{}")
    return saved


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    saved = save(folder)
    assert (saved.also, saved.proved) == (("onnx",), True) and saved.largest_difference < 1e-4
    return folder / "run"


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Lets this process answer in the place of fresh ones, which take seconds."""

    def ask(folder, request):
        opened = load(folder, "cpu")
        return artefact._logits_in_batches(opened, request["texts"], request["text_pairs"], request["alone"])

    monkeypatch.setattr(artefact, "_ask_fresh_process", ask)


def same_in_any_shape(slow, quick, rows: int = 12) -> None:
    """Random token ids of random batches and lengths, padded and not, through both engines."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, padding = len(slow.tokenizer), slow.tokenizer.pad_token_id
    shapes = [(1, 1), (1, 2), (2, 1), (1, 60), (7, 60), (5, 5), (24, 24)]
    shapes += [tuple(torch.randint(1, 41, (2,), generator=generator).tolist()) for _ in range(rows)]
    for batch, length in shapes:
        ids = torch.randint(5, vocabulary, (batch, length), generator=generator)
        real = torch.randint(1, length + 1, (batch, 1), generator=generator)
        real[0] = length
        ids.scatter_(1, real - 1, 3)  # each text ends with the token that BART and T5 read
        mask = (torch.arange(length)[None] < real).long()
        inputs = {"input_ids": ids.where(mask.bool(), torch.tensor(padding)), "attention_mask": mask}
        if "token_type_ids" in slow.tokenizer.model_input_names:
            inputs["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator) * mask
        with torch.no_grad():
            expected = slow.model(**inputs).logits
        torch.testing.assert_close(quick.model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def predicted(folder: Path, model: Path, *words: str) -> list[dict[str, str]]:
    """The rows that `hf-transfer predict` writes for ``TEXTS``."""
    source, target = folder / "in.csv", folder / "out.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in TEXTS)])
    given = ["--model", str(model), "--input", str(source), "--output", str(target), "--overwrite"]
    cli.main(["predict", *given, *words])
    with target.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_rows(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """The same labels, and probabilities (of regression: values) to 1e-4."""
    words = {"text"} if found[0].keys() == {"text", "predicted"} else {"text", "predicted"}
    for ours, theirs in zip(found, expected, strict=True):
        assert {name: ours[name] for name in words} == {name: theirs[name] for name in words}
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - words:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-4)


def test_batch_and_length_are_open(run_folder):
    quick, slow = load(run_folder / "onnx"), load(run_folder, "cpu")
    assert isinstance(quick.model, OnnxEngine) and not isinstance(slow.model, OnnxEngine)
    assert (quick.labels, quick.max_length) == (slow.labels, slow.max_length)
    same_in_any_shape(slow, quick)


def test_every_folder_opens_with_the_engine_that_is_asked_for(run_folder, tmp_path):
    expected = predicted(tmp_path, run_folder, "--engine", "torch", "--device", "cpu")
    assert len({row["predicted"] for row in expected}) > 1
    for model, words in (
        (run_folder / "onnx", ()),
        (run_folder / "onnx", ("--device", "cpu", "--rows_at_once", "3")),
        (run_folder, ("--engine", "onnx")),
        (run_folder / "model", ("--engine", "onnx")),
    ):
        assert_same_rows(predicted(tmp_path, model, *words), expected)
    texts, pairs = TEXTS, TEXTS[::-1]
    quick, slow = load(run_folder, engine="onnx"), load(run_folder, "cpu")
    np.testing.assert_allclose(quick.logits(texts, pairs), slow.logits(texts, pairs), rtol=1e-4, atol=1e-4)
    assert quick.predict([]).labels == []


def test_the_folder_holds_one_graph_tokenizer_and_labels_and_its_notes_work(run_folder):
    folder = run_folder / "onnx"
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "hf_transfer.json", "README.md"} <= names
    assert not [path for path in run_folder.iterdir() if path.name.endswith(".partial")]
    assert "model.onnx.data" not in names, "which is for weights that one file cannot hold"
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == ["bad", "good", "mixed"]
    assert str(run_folder.parent) not in (folder / "config.json").read_text()
    own, stock = (folder / "README.md").read_text().split("```python\n")[1:]
    shown: list = []
    for block in (own, stock):
        exec(block.split("```")[0].replace('"PATH', f'"{folder}'), {"print": shown.append})
    slow = load(run_folder, "cpu")
    assert shown[0] == slow.predict(["some text"]).labels
    np.testing.assert_allclose(shown[1], slow.logits(["some text"]), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_opened_is_refused(run_folder, tmp_path):
    with pytest.raises(InputError, match="is an ONNX export, which torch cannot open: leave --engine torch out"):
        load(run_folder / "onnx", "cpu", "torch")
    with pytest.raises(InputError, match="does not translate, and CTranslate2 does nothing else"):
        load(run_folder / "onnx", "cpu", "ctranslate2")
    with pytest.raises(InputError, match="--device cuda:0: the ONNX export is run on the CPU here"):
        load(run_folder, "cuda:0", "onnx")
    alone = shutil.copytree(run_folder / "model", tmp_path / "alone")
    with pytest.raises(InputError, match=r"has no ONNX export: adapt with --publish\.export onnx"):
        load(alone, "cpu", "onnx")
    (alone / "model.onnx").write_bytes(b"of somebody else")
    (alone / "hf_transfer.json").unlink()
    assert not isinstance(load(alone, "cpu").model, OnnxEngine), "the checkpoint itself is there too"
    for content in (b"", b"not a graph", (run_folder / "onnx" / "model.onnx").read_bytes()[:5000]):
        damaged = shutil.copytree(run_folder / "onnx", tmp_path / "damaged", dirs_exist_ok=True)
        (damaged / "model.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"could not be opened by ONNX Runtime \(.*\): export the model again"):
            load(damaged)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_problem_before_training(name, monkeypatch, tmp_path):
    onnx_engine._exporter.cache_clear()
    onnx_engine._runtime.cache_clear()
    monkeypatch.setitem(sys.modules, name, None)
    config = config_of(write_reviews(tmp_path), make_checkpoint(tmp_path / "base"), tmp_path / "run")
    with pytest.raises(InputError, match=r'not installed.*pip install "hf-transfer-learning\[onnx\]"') as refused:
        ht.run(config)
    assert len(refused.value.problems) == 1 and not (tmp_path / "run").exists()


class Undecided(torch.nn.Module):
    """Does what no trace can follow: it goes by the values that it is given."""

    config = types.SimpleNamespace(model_type="undecided")

    def forward(self, input_ids, **others):
        if input_ids.sum() > 100:
            return types.SimpleNamespace(logits=input_ids[:, :1].float())
        return types.SimpleNamespace(logits=input_ids[:, :1].float() * 2)


def test_a_model_that_cannot_be_traced_is_refused_in_words_and_stays_in_train_mode(run_folder, tmp_path):
    model = Undecided().train()
    with pytest.raises(
        InputError, match=r"--publish.export onnx: undecided cannot be traced \(.+\): leave it out"
    ) as told:
        check_onnx(model, load(run_folder, "cpu").tokenizer)
    assert model.training and "data-dependent" in str(told.value).lower(), "the cause, and not the exporter's advice"
    assert "step 1" not in str(told.value) and logging.root.manager.disable == 0
    with pytest.raises(RunError, match=r"the ONNX export to .*onnx failed \(.+\)"):
        export_onnx(model.eval(), load(run_folder, "cpu").tokenizer, tmp_path / "onnx", {})
    assert not list(tmp_path.iterdir())


def test_an_export_with_other_logits_ends_the_run_and_says_where_the_model_is(tmp_path, monkeypatch, in_this_process):
    def export_another(model, *rest):
        with torch.no_grad():
            model.classifier.bias += 0.001
        export_onnx(model, *rest)
        with torch.no_grad():
            model.classifier.bias -= 0.001

    monkeypatch.setattr(artefact, "export_onnx", export_another)
    with pytest.raises(RunError, match=r"onnx was saved.*gives other logits.*allowed 0.0001.*proved in .*run/model; l"):
        save(tmp_path)
    assert load(tmp_path / "run" / "model", "cpu").predict(TEXTS).labels


def test_a_graph_that_fixed_a_shape_does_not_pass_the_proof(tmp_path, monkeypatch):
    plain = LoadedModel.logits

    def only_alone(self, texts, text_pairs=None):
        return plain(self, texts, text_pairs) + (0.001 if len(texts) == 1 else 0)

    expected = np.zeros((2, 3), np.float32)
    told = []
    monkeypatch.setattr(artefact, "_ask_fresh_process", lambda folder, request: told.append(request) or expected)
    monkeypatch.setattr(artefact, "export_onnx", lambda *_: None)
    monkeypatch.setattr(LoadedModel, "logits", only_alone)
    opened = load(save_plain(tmp_path), "cpu")
    with pytest.raises(RunError, match=r"shapes \(2, 3\) and \(6, 2\)"):
        artefact._save_onnx(tmp_path / "onnx", None, opened, ["good", "a book"], None, METADATA)
    assert told[0]["texts"] == ["good", "a book", "good a book"] and told[0]["alone"]
    found = artefact._logits_in_batches(opened, ["good", "a book"], ["bad", "a soup"], True)
    np.testing.assert_allclose(found[2:], found[:2] + 0.001, atol=1e-5)


def save_plain(folder: Path) -> Path:
    base = make_checkpoint(folder / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.save_pretrained(base)
    return base


def test_a_push_brings_the_onnx_form_and_its_lines(tmp_path):
    run = make_run(tmp_path / "run", also=("onnx",))
    (run / "onnx").mkdir()
    for name in ("model.onnx", "config.json", "tokenizer.json", "README.md"):
        (run / "onnx" / name).write_text("{}")
    local = METADATA | {"base_revision": "", "base_checkpoint": "/x/y"}
    (run / "onnx" / "hf_transfer.json").write_text(json.dumps(local))
    sent = {file.path: file.content for file in pack(run, "me/model").files}
    assert {path for path in sent if path.startswith("onnx/")} == {
        *("onnx/model.onnx", "onnx/config.json", "onnx/tokenizer.json", "onnx/hf_transfer.json")
    }
    assert json.loads(sent["onnx/hf_transfer.json"])["base_checkpoint"] == "y"
    card = sent["README.md"].decode()
    assert 'InferenceSession(f"{folder}/onnx/model.onnx")' in card and "and its ONNX form" in card
    assert is_ours("onnx/model.onnx") and is_ours("onnx/model.onnx.data") and is_ours("merged/config.json")
    assert not is_ours("model.onnx") and not is_ours("merged/model.onnx") and not is_ours("onnx/shift.csv")
    (run / "model" / "model.onnx").write_text("{}")
    with pytest.raises(InputError, match=r"model holds model\.onnx, which is no part of a saved model"):
        pack(run, "me/model")


# ---- every strategy, problem and architecture ------------------------------------------------------------------


def config_of(source: Path, checkpoint: Path, output: Path, columns=(), **sections) -> ht.RunConfig:
    settings = {
        "data": ht.DataConfig(source=str(source), **dict(columns)),
        "model": ht.ModelConfig(checkpoint=str(checkpoint)),
        "train": ht.TrainConfig(max_steps=2, validation_steps=2),
        "evaluate": ht.EvaluateConfig(resamples=100),
        "publish": ht.PublishConfig(export=("onnx",)),
        "output_dir": str(output),
    }
    return ht.RunConfig(**settings | sections)


@pytest.mark.slow
def test_a_run_exports_what_it_adapted_proves_it_and_reports_it(tmp_path):
    base = make_checkpoint(tmp_path / "base")
    adapt = ht.AdaptConfig(strategy="lora", lora_rank=2)
    result = ht.run(config_of(write_reviews(tmp_path), base, tmp_path / "run", adapt=adapt))
    told = result.results["artefact"]
    assert (told["kind"], told["proved"], told["also"]) == ("adapter", True, ["onnx"])
    assert 0 < told["largest_difference"] < 1e-4
    assert "| Also exported | onnx |" in (tmp_path / "run" / "report.md").read_text()
    assert isinstance(load(tmp_path / "run" / "model", "cpu").model, torch.nn.Module)
    expected = predicted(tmp_path, tmp_path / "run", "--device", "cpu")
    assert_same_rows(predicted(tmp_path, tmp_path / "run" / "onnx"), expected)
    again = config_of(tmp_path / "reviews.jsonl", base, tmp_path / "run", publish=ht.PublishConfig(), overwrite=True)
    ht.run(again)
    assert not (tmp_path / "run" / "onnx").exists()


RUNS = {
    "freeze": {"adapt": ht.AdaptConfig(strategy="freeze", freeze="1")},
    "probe": {"adapt": ht.AdaptConfig(strategy="probe")},
    "probe mean": {"adapt": ht.AdaptConfig(strategy="probe", probe_layers="mean")},
    "probe all": {"adapt": ht.AdaptConfig(strategy="probe", probe_layers="all")},
    "probe 0": {"adapt": ht.AdaptConfig(strategy="probe", probe_layers="0")},
    "probe 1": {"adapt": ht.AdaptConfig(strategy="probe", probe_layers="1")},
    "layers": {"model": {"layers": "1"}},
    "pairs": {"columns": {"text_pair_column": "other"}},
    "multi-label": {"columns": {"label_column": "several", "label_separator": "|"}},
    "regression": {"columns": {"label_column": "stars", "problem": "regression"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_strategy_and_problem_predicts_the_same_from_all_its_folders(tmp_path, name):
    rows = [json.loads(line) for line in write_reviews(tmp_path).read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"other": rows[-i]["text"], "stars": i % 7 + 0.5, "several": "a|b" if i % 2 else row["label"]}
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = dict(RUNS[name])
    if "model" in sections:
        sections["model"] = ht.ModelConfig(checkpoint=str(tmp_path / "base"), **sections["model"])
    make_checkpoint(tmp_path / "base")
    folder = tmp_path / "run"
    result = ht.run(config_of(tmp_path / "reviews.jsonl", tmp_path / "base", folder, **sections))
    assert result.results["artefact"]["also"] == ["onnx"]
    quick, slow = load(folder, engine="onnx"), load(folder, "cpu")
    assert quick.labels == slow.labels
    pairs = TEXTS[::-1] if name == "pairs" else None
    np.testing.assert_allclose(quick.logits(TEXTS, pairs), slow.logits(TEXTS, pairs), rtol=1e-4, atol=1e-4)
    if pairs is None:
        assert_same_rows(predicted(tmp_path, folder / "onnx"), predicted(tmp_path, folder, "--device", "cpu"))
    if name.startswith("probe ") or name == "layers":
        assert isinstance(slow.model, LayerProbe) == (name != "layers")
        same_in_any_shape(slow, quick)


@pytest.mark.slow
def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    save(tmp_path)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run" / "onnx").iterdir()}
    assert sizes["model.onnx.data"] > 10_000
    same_in_any_shape(load(tmp_path / "run", "cpu"), load(tmp_path / "run", engine="onnx"))


@pytest.mark.slow
def test_merged_adapter_and_onnx_predict_the_same(tmp_path, in_this_process):
    assert save(tmp_path, strategy="lora", export="merged,onnx").also == ("merged", "onnx")
    expected = predicted(tmp_path, tmp_path / "run" / "model", "--device", "cpu")
    assert_same_rows(predicted(tmp_path, tmp_path / "run" / "merged", "--device", "cpu"), expected)
    assert_same_rows(predicted(tmp_path, tmp_path / "run" / "onnx"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "deberta-v2, in buckets"])
def test_every_architecture_gives_the_same_logits_in_any_shape(tmp_path, in_this_process, architecture):
    settings = {}
    if "buckets" in architecture:  # as published ones are: distances above 8 share a bucket
        settings = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    save(tmp_path, architecture.partition(",")[0], **settings)
    same_in_any_shape(load(tmp_path / "run", "cpu"), load(tmp_path / "run", engine="onnx"))
