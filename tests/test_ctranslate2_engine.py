"""CTranslate2: what it writes is what torch writes, for every family, from an export that needs nothing else."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_translation import FAMILIES, PAIRS, make_translation_checkpoint
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

from hf_transfer import ctranslate2_engine
from hf_transfer.ctranslate2_engine import CTranslate2Engine, check_export, export_ctranslate2, is_export
from hf_transfer.decoding import decode
from hf_transfer.errors import InputError

pytest.importorskip("ctranslate2", reason='needs pip install "hf-transfer-learning[ctranslate2]"')
SOURCES = [PAIRS[which][0] for which in (0, 57, 8, 50, 31, 53)]


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose answers have several lengths; Marian's padding row has learnt something."""
    folder = make_translation_checkpoint(request.param, Path(tmp_path_factory.mktemp(request.param)) / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[model.config.pad_token_id] += torch.linspace(-0.5, 0.5, rows.shape[1])
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias[0, model.config.eos_token_id] = 1.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def marian(tmp_path: Path) -> Path:
    return make_translation_checkpoint("marian", tmp_path / "model")


def test_every_family_writes_what_torch_writes(saved: Path, tmp_path: Path) -> None:
    source = shutil.copytree(saved, tmp_path / "moved")
    export_ctranslate2(source, tmp_path / "export")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(saved).eval(), AutoTokenizer.from_pretrained(saved)
    shutil.rmtree(source)
    engine = CTranslate2Engine(tmp_path / "export", "cpu")
    ids = tokenizer(SOURCES)["input_ids"]
    forced: list[int | None] = [None] * len(ids)
    if saved.parent.name.startswith(("nllb", "m2m100", "mbart")):
        forced = [None, 7, 8, 7, None, 9]
    pad = tokenizer.pad_token_id
    expected = decode(model, ids, forced, pad)
    assert len({tuple(answer) for answer in expected}) > 3, "answers that do not depend on the source prove nothing"
    counts: list[int] = []
    assert engine.decode(ids, forced, pad, 60, on_batch=counts.append) == expected
    assert sum(counts) == len(ids) and len(counts) > 1
    assert AutoTokenizer.from_pretrained(tmp_path / "export" / "transformers")(SOURCES)["input_ids"] == ids


def test_beam_search_writes_what_torchs_writes(saved: Path, tmp_path: Path) -> None:
    """Nearly: with ``early_stopping`` both end at as many finished hypotheses as beams, but differ in the last step."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(saved).eval(), AutoTokenizer.from_pretrained(saved)
    folder = shutil.copytree(saved, tmp_path / "model")
    model.generation_config.early_stopping, model.generation_config.num_beams = True, 4
    model.generation_config.save_pretrained(folder)
    export_ctranslate2(folder, tmp_path / "export")
    engine = CTranslate2Engine(tmp_path / "export", "cpu")
    ids = tokenizer([source for source, _ in PAIRS[::2]])["input_ids"]
    forced: list[int | None] = [None] * len(ids)
    pad = tokenizer.pad_token_id

    def equal(found: list[list[int]], wanted: list[list[int]]) -> float:
        return sum(ours == theirs for ours, theirs in zip(found, wanted, strict=True)) / len(wanted)

    expected = decode(model, ids, forced, pad, beams=4)
    alike = equal(engine.decode(ids, forced, pad, beams=4), expected)
    assert alike >= 0.85
    assert equal(engine.decode(ids, forced, pad), expected) < alike - 0.2, "beams that do nothing prove nothing"


def test_outputs_of_t5_are_scaled_only_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    scores = {}
    for family, scaled in (("t5", True), ("t5", False), ("mt5", False)):
        folder = make_translation_checkpoint(family, tmp_path / f"{family}{scaled}")
        config = AutoConfig.from_pretrained(folder)
        if family == "t5":
            config.scale_decoder_outputs = scaled
            config.save_pretrained(folder)
        export_ctranslate2(folder, tmp_path / "export")
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        (ids,) = tokenizer(SOURCES[:1])["input_ids"]
        answer = decode(model, [ids], [None], 0)[0][:6]
        start = [model.config.decoder_start_token_id]
        logits = model(torch.tensor([ids]), decoder_input_ids=torch.tensor([start + answer[:-1]])).logits[0]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()
        engine = CTranslate2Engine(tmp_path / "export", "cpu")
        (scored,) = engine._translator.score_batch(
            [[engine._tokens[i] for i in ids]], [[engine._tokens[i] for i in answer]]
        )
        assert scored.log_probs[: len(answer)] == pytest.approx(expected, abs=1e-4)
        scores[family, scaled] = sum(expected)
    assert scores["t5", True] != pytest.approx(scores["t5", False], abs=0.1)


def test_generation_settings_hold_in_the_export(marian: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(marian).eval(), AutoTokenizer.from_pretrained(marian)
    ids = tokenizer(SOURCES)["input_ids"]
    forced = [None] * len(ids)
    plain = decode(model, ids, forced, tokenizer.pad_token_id)
    model.generation_config.no_repeat_ngram_size = 3
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.bad_words_ids = [[tokenizer.pad_token_id], [plain[0][0]]]
    model.generation_config.save_pretrained(marian)
    export_ctranslate2(marian, tmp_path / "export")
    found = CTranslate2Engine(tmp_path / "export", "cpu").decode(ids, forced, tokenizer.pad_token_id)
    assert found == decode(model, ids, forced, tokenizer.pad_token_id) != plain


def test_metadata_travels_along_and_weights_do_not(marian: Path, tmp_path: Path) -> None:
    (marian / "hf_transfer.json").write_text(json.dumps({"task": "translation"}))
    (marian / "README.md").write_text("how to open the full model")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "of an earlier run").touch()
    export_ctranslate2(marian, tmp_path / "export")
    names = sorted(path.name for path in (tmp_path / "export").iterdir())
    assert names == ["config.json", "hf_transfer.json", "model.bin", "shared_vocabulary.json", "transformers"]
    inside = {path.name for path in (tmp_path / "export" / "transformers").iterdir()}
    assert {"config.json", "generation_config.json", "source.spm", "tokenizer_config.json", "vocab.json"} <= inside
    assert not inside & {"model.safetensors", "README.md", "hf_transfer.json"}
    assert is_export(tmp_path / "export") and not is_export(marian)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "model"], "nothing half-written stays"


def test_what_cannot_be_exported_is_refused_before_training(
    marian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(marian), AutoTokenizer.from_pretrained(marian)
    check_export(model, tokenizer)
    model.generation_config.min_length, model.generation_config.suppress_tokens = 3, [4]
    with pytest.raises(InputError, match=r"no equal of min_length, suppress_tokens in generation_config\.json: remove"):
        check_export(model, tokenizer)
    model.generation_config.min_length = model.generation_config.suppress_tokens = None
    model.config.share_encoder_decoder_embeddings = False
    with pytest.raises(
        InputError, match=r"a vocabulary for each side, which is not converted: leave --publish\.export"
    ):
        check_export(model, tokenizer)
    model.config.share_encoder_decoder_embeddings = True
    bart = BartForConditionalGeneration(
        BartConfig(vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, max_position_embeddings=8)
    )
    with pytest.raises(InputError, match="bart is none of the architectures that are converted"):
        check_export(bart, tokenizer)
    with pytest.raises(InputError, match="is an adapter: merge it first"):
        (marian / "adapter_config.json").touch()
        export_ctranslate2(marian, tmp_path / "export")
    ctranslate2_engine._ctranslate2.cache_clear()
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(InputError, match=r'pip install "hf-transfer-learning\[ctranslate2\]"'):
        check_export(model, tokenizer)


def test_a_tokenizer_that_is_not_the_models_is_refused(marian: Path, tmp_path: Path) -> None:
    vocabulary: dict[str, Any] = json.loads((marian / "vocab.json").read_text())
    del vocabulary[list(vocabulary)[5]]  # so that all that follow have an id too many
    (marian / "vocab.json").write_text(json.dumps(vocabulary | {"<new>": len(vocabulary) + 1}))
    with pytest.raises(InputError, match="tokens that do not name one row of the model each"):
        export_ctranslate2(marian, tmp_path / "export")
    assert not (tmp_path / "export").exists() and not (tmp_path / "export.partial").exists()


def test_a_damaged_export_is_refused(marian: Path, tmp_path: Path) -> None:
    export_ctranslate2(marian, tmp_path / "export")
    (tmp_path / "export" / "model.bin").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"could not be opened by CTranslate2 on cpu .*: export the model again"):
        CTranslate2Engine(tmp_path / "export", "cpu")
    with pytest.raises(InputError, match="is no CTranslate2 export"):
        CTranslate2Engine(marian)
