"""Whichever engine opens a saved translation model: the same translations from the same words, and clear refusals."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from tiny import make_checkpoint
from tiny_translation import PAIRS, make_translation_checkpoint

import hf_transfer as ht
from hf_transfer import artefact, cli
from hf_transfer.config import CompareConfig, RunConfig
from hf_transfer.errors import InputError, RunError
from hf_transfer.loading import load
from hf_transfer.translate_file import main as translate

pytest.importorskip("ctranslate2", reason='needs pip install "hf-transfer-learning[ctranslate2]"')
from hf_transfer.ctranslate2_engine import CTranslate2Engine, export_ctranslate2

LINES = [PAIRS[0][0], "", PAIRS[57][0], "  ", PAIRS[8][0], PAIRS[50][0], " ".join(en for en, _ in PAIRS[30:50])]
METADATA = {
    "schema": "hf-transfer/artefact/1",
    "task": "translation",
    "problem": "translation",
    "label_names": [],
    "max_length": 64,
    "base_checkpoint": "",
    "base_revision": "",
    "base_sha256": "",
    "keeps_head": True,
    "source_lang": "eng_Latn",
    "target_lang": "deu_Latn",
    "source_prefix": "",
    "tags": ["kitchen"],
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves behind, without the run."""
    folder = Path(tmp_path_factory.mktemp("run"))
    model = make_translation_checkpoint("nllb", folder / "model")
    (model / "hf_transfer.json").write_text(json.dumps(METADATA))
    export_ctranslate2(model, folder / "ctranslate2")
    (folder / "results.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def expected(run_folder: Path) -> list[str]:
    written: list[str] = load(run_folder, "cpu", "torch").translate(LINES, beams=1, on_notice=lambda text: None)
    assert len(set(written)) > 3 and [written[1], written[3]] == ["", ""]
    return written


def test_every_folder_opens_with_the_engine_that_is_asked_for(run_folder: Path, expected: list[str]) -> None:
    for path in (run_folder, run_folder / "model", run_folder / "ctranslate2"):
        quick = load(path, "cpu", "ctranslate2")
        assert isinstance(quick.model, CTranslate2Engine)
        notices: list[str] = []
        assert quick.translate(LINES, beams=1, on_notice=notices.append) == expected
        assert notices == ["1 text (7) has more than 64 tokens and is split at sentence ends."]
    assert isinstance(load(run_folder / "ctranslate2", "cpu").model, CTranslate2Engine)
    assert not isinstance(load(run_folder, "cpu").model, CTranslate2Engine)


def test_languages_and_tags_of_the_export_are_the_models(run_folder: Path) -> None:
    quick, slow = load(run_folder / "ctranslate2", "cpu"), load(run_folder, "cpu")
    assert (quick.labels, quick.max_length, quick.convention) == (slow.labels, slow.max_length, slow.convention)
    french = slow.translate(LINES[:3], target_lang="fr", beams=1, domain="kitchen")
    assert quick.translate(LINES[:3], target_lang="fr", beams=1, domain="kitchen") == french
    assert quick.translate(LINES[:3], beams=1) != french


def test_translate_writes_the_same_lines(run_folder: Path, expected: list[str], tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(LINES), encoding="utf-8")
    given = ["--input", str(source), "--output", str(target), "--beams", "1", "--device", "cpu", "--overwrite"]
    for words in (
        ["--model", str(run_folder), "--engine", "ctranslate2"],
        ["--model", str(run_folder / "ctranslate2")],
    ):
        translate([*given, *words, "--lines_at_once", "3"])
        assert target.read_text(encoding="utf-8") == "".join(line + "\n" for line in expected)
        target.unlink()


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_predict_writes_translations_beside_the_texts(run_folder: Path, tmp_path: Path, engine: str) -> None:
    rows = [{"id": i, "source": text} for i, text in enumerate(LINES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--model", str(run_folder), "--input", str(tmp_path / "in.jsonl"), "--text_column", "source"]
    given += ["--engine", engine, "--device", "cpu", "--rows_at_once", "3"]
    cli.main(["predict", *given, "--output", str(tmp_path / "out.jsonl")])
    cli.main(["predict", *given, "--output", str(tmp_path / "out.csv")])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    translator = load(run_folder, "cpu", engine)
    written = translator.translate(LINES, on_notice=lambda text: None)
    assert found == [row | {"predicted": text} for row, text in zip(rows, written, strict=True)]
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[0] == "id,source,predicted"
    if engine == "ctranslate2":  # the exported folder by itself says the same
        words = [*given[2:4], *given[4:6], *given[8:], "--model", str(run_folder / "ctranslate2")]
        cli.main(["predict", *words, "--output", str(tmp_path / "export.jsonl")])
        assert (tmp_path / "export.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()


def test_predict_refuses_a_pair_of_texts_to_translate(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("text,other\na,b\n")
    words = ["--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "--model", str(run_folder), *words, "--text_pair_column", "other"])
    assert stop.value.code == 2 and "translates one text: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_what_an_engine_cannot_open_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a CTranslate2 export, which torch cannot open: leave --engine torch out"):
        load(run_folder / "ctranslate2", "cpu", "torch")
    with pytest.raises(InputError, match="there is no engine 'tensorrt': use torch, ctranslate2 or onnx"):
        load(run_folder, "cpu", "tensorrt")
    for folder in (run_folder, run_folder / "ctranslate2"):
        with pytest.raises(InputError, match="translates, and ONNX exports only classify: leave --engine onnx out"):
            load(folder, "cpu", "onnx")
    alone = make_translation_checkpoint("marian", tmp_path / "alone")
    with pytest.raises(InputError, match=r"has no CTranslate2 export: adapt with --publish\.export ctranslate2"):
        load(alone, "cpu", "ctranslate2")
    with pytest.raises(InputError, match="could not be opened by CTranslate2 on cuda:x"):
        load(run_folder, "cuda:x", "ctranslate2")
    labels = tmp_path / "labels"
    make_checkpoint(labels)
    with pytest.raises(InputError, match="does not translate, and CTranslate2 does nothing else: leave --engine out"):
        load(labels, "cpu", "ctranslate2")


def config_of(checkpoint: Path, folder: Path, strategy: str) -> RunConfig:
    return RunConfig(
        task="translation",
        data=ht.DataConfig(source="bundled:phrases", source_lang="en", target_lang="de", max_length=60),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        adapt=ht.AdaptConfig(strategy=strategy, lora_rank=2),
        train=ht.TrainConfig(max_steps=2, window_size=16, validation_steps=2),
        evaluate=ht.EvaluateConfig(beams=1, resamples=100, validation_examples=2, metrics=("bleu",)),
        publish=ht.PublishConfig(export=("ctranslate2",)),
        output_dir=str(folder),
    )


@pytest.mark.recipe
def test_a_run_exports_what_it_adapted_and_proves_it(tmp_path: Path) -> None:
    checkpoint = make_translation_checkpoint("m2m100", tmp_path / "m2m100")
    artefact = ht.run(config_of(checkpoint, tmp_path / "run", "lora")).results["artefact"]
    assert (artefact["kind"], artefact["proved"], artefact["also"]) == ("adapter", True, ["ctranslate2"])
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".") or path.name == "merged"]
    quick, slow = load(tmp_path / "run", "cpu", "ctranslate2"), load(tmp_path / "run", "cpu")
    assert quick.labels == slow.labels
    texts = [english for english, _ in PAIRS[:20]]
    same = [a == b for a, b in zip(quick.translate(texts, beams=1), slow.translate(texts, beams=1), strict=True)]
    assert sum(same) >= 19  # of equal tokens rounding chooses one


@pytest.mark.slow
def test_an_export_that_translates_otherwise_is_no_finished_run(run_folder: Path, expected: list[str]) -> None:
    texts = [text for text in LINES[:6] if text.strip()] * 2
    written = [text for text in expected[:6] if text] * 2
    languages = ("en", "de")
    folder = run_folder / "ctranslate2"
    assert artefact._prove_translations(folder, texts, written, languages, ties=1) == 0
    one = ["anything else", *written[1:]]
    assert artefact._prove_translations(folder, texts, one, languages, ties=1) == 1 / 8
    with pytest.raises(RunError, match="a fresh process translates 2 of 8 texts in another way"):
        artefact._prove_translations(folder, texts, ["x", "y", *written[2:]], languages, ties=1)


def test_what_cannot_be_exported_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_transfer import ctranslate2_engine

    checkpoint = make_translation_checkpoint("marian", tmp_path / "marian")
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps(settings | {"min_length": 3}))
    config = config_of(checkpoint, tmp_path / "run", "full")
    with pytest.raises(InputError, match="it has no equal of min_length"):
        ht.run(config)
    ctranslate2_engine._ctranslate2.cache_clear()
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(InputError, match=r'not installed.*pip install "hf-transfer-learning\[ctranslate2\]"'):
        ht.run(config)
    assert not (tmp_path / "run").exists()


def test_settings_that_leave_nothing_to_export_are_refused(tmp_path: Path) -> None:
    def problems(**fields: object) -> list[str]:
        return dataclasses.replace(config_of(tmp_path, tmp_path, "full"), **fields).problems()

    assert problems() == []
    assert problems(adapt=ht.AdaptConfig(strategy="lora")) == []
    assert problems(adapt=ht.AdaptConfig(strategy="knn")) == [
        "--publish.export ctranslate2 cannot hold the datastore of --adapt.strategy knn: leave it out."
    ]
    assert problems(publish=ht.PublishConfig(export=("onnx",))) == [
        "--publish.export onnx is for classification, since one graph cannot search for a translation: use ctranslate2."
    ]
    assert (
        "--publish.export ctranslate2 is for translation: use onnx, or leave it out."
        in RunConfig(publish=ht.PublishConfig(export=("ctranslate2",))).problems()
    )


def test_of_a_comparison_every_strategy_but_knn_is_exported() -> None:
    from hf_transfer.compare_runs import _export

    config = CompareConfig(publish=ht.PublishConfig(export=("ctranslate2",)))
    named = {name: _export(config, name) for name in ("full", "lora", "freeze", "mixed", "knn", "before", "scratch")}
    assert [name for name, export in named.items() if export] == ["full", "lora", "freeze", "mixed"]
    onnx = CompareConfig(publish=ht.PublishConfig(export=("onnx",)))
    named = {name: _export(onnx, name) for name in ("probe", "full", "lora", "freeze", "before", "scratch", "tfidf")}
    assert [name for name, export in named.items() if export] == ["probe", "full", "lora", "freeze"]
    merged = CompareConfig(publish=ht.PublishConfig(export=("merged",)))
    assert [name for name in named if _export(merged, name)] == ["lora"]
