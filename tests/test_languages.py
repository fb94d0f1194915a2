"""Every family of translation checkpoints is told its languages as transformers itself tells it."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import make_checkpoint, make_tokenizer
from tiny_translation import CODES, FAMILIES, PAIRS, make_translation_checkpoint

from hf_transfer.errors import InputError
from hf_transfer.languages import (
    CONVENTIONS,
    decoder_start,
    encode_source,
    encode_target,
    find_convention,
    forced_bos,
    language_codes,
    other_pair,
    prepare_generation,
    resolve_languages,
    source_heads,
    two_letter_code,
    unknown_share,
)

TEXTS = [PAIRS[-1][0], "", PAIRS[-3][0], "soup", "  two  spaces, quoted „Säge“ and an unknown ж  "]
TARGETS = [PAIRS[-1][1], "", PAIRS[-3][1], "Suppe", "  zwei  Leerzeichen und ж  "]
WITH_CODES = ("mbart-50", "m2m100", "nllb")
# what the user of stock transformers writes before each text
HEADS = {"t5": "translate English to German: ", "marian-multi": ">>deu<< "}
FRENCH = {"marian-multi": ">>fra<<", "t5": "French", "mbart-50": "fr_XX", "m2m100": "fr", "nllb": "fra_Latn"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("translation")
    return {family: make_translation_checkpoint(family, root / family) for family in FAMILIES}


@pytest.fixture
def opened(folders: dict[str, Path]) -> Callable[[str], tuple[Any, Any]]:
    """Opens a family's checkpoint anew: (model, tokenizer)."""

    def open_one(family: str) -> tuple[Any, Any]:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folders[family]).eval()
        return model, transformers.AutoTokenizer.from_pretrained(folders[family])

    return open_one


def stock(tokenizer: Any, family: str, languages: tuple[str, str]) -> tuple[list[list[int]], list[list[int]]]:
    """Sources and labels of TEXTS and TARGETS as transformers makes them."""
    if family in WITH_CODES:
        tokenizer.src_lang, tokenizer.tgt_lang = languages
    head = HEADS.get(family, "").replace("German", languages[1]).replace(">>deu<<", languages[1])
    encoded = tokenizer([head + text for text in TEXTS], text_target=TARGETS)
    return encoded["input_ids"], encoded["labels"]


def generate(model: Any, ids: list[list[int]], **settings: Any) -> list[list[int]]:
    """Output of stock ``generate`` one text at a time, so that no padding is involved."""
    with torch.no_grad():
        return [model.generate(torch.tensor([row]), **settings)[0].tolist() for row in ids]


# --- families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_known_by_its_config_and_tokenizer(family, opened):
    model, tokenizer = opened(family)
    assert find_convention(model.config, tokenizer) is CONVENTIONS[family]


@pytest.mark.parametrize(
    ("architecture", "what"), [("bert", "an encoder without a decoder"), ("gpt2", "a decoder without an encoder")]
)
def test_half_a_model_is_refused_with_the_families_that_work(architecture, what, tmp_path):
    config = transformers.AutoConfig.from_pretrained(make_checkpoint(tmp_path, architecture))
    with pytest.raises(InputError, match=f"{architecture} is {what}.*Marian .*NLLB work"):
        find_convention(config, make_tokenizer())


def test_other_encoder_decoders_are_refused_by_name(opened):
    _, tokenizer = opened("t5")
    with pytest.raises(InputError, match="how bart with a T5Tokenizer names its languages is not known"):
        find_convention(transformers.BartConfig(), tokenizer)
    # mBART-25 puts its codes elsewhere than mBART-50
    with pytest.raises(InputError, match="how mbart with a T5Tokenizer"):
        find_convention(transformers.MBartConfig(), tokenizer)


def test_a_t5_with_tokens_for_target_languages_is_refused(opened):
    model, tokenizer = opened("t5")
    tokenizer.add_tokens(["<2de>"])
    with pytest.raises(InputError, match="<2de>"):
        find_convention(model.config, tokenizer)


def test_byt5_has_seen_no_task_and_gets_no_prefix(opened):
    model, _ = opened("t5")
    assert find_convention(model.config, transformers.ByT5Tokenizer()) is CONVENTIONS["mt5"]


# --- names of languages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*WITH_CODES, "marian-multi", "t5"])
@pytest.mark.parametrize(
    "written", ["de", "DE", "de_DE", "de-AT", "deu", "ger", "deu_Latn", "German", "german", ">>deu<<", "__de__"]
)
def test_a_language_may_be_written_in_any_form(family, written, opened):
    _, tokenizer = opened(family)
    source = "en" if family == "marian-multi" else CODES[family][0]
    found = resolve_languages(CONVENTIONS[family], tokenizer, "en", written)
    assert found == (source, CODES[family][1])


@pytest.mark.parametrize(
    ("family", "written", "expected"),
    [
        ("nllb", "zh", "zho_Hans"),
        ("nllb", "zh-TW", "zho_Hant"),
        ("nllb", "cmn_Hant", "zho_Hant"),
        ("nllb", "Chinese", "zho_Hans"),
        ("nllb", "ar", "arb_Arab"),
        ("nllb", "no", "nob_Latn"),
        ("nllb", "Nynorsk", "nno_Latn"),
        ("nllb", "kas", "kas_Arab"),
        ("nllb", "kas_Deva", "kas_Deva"),
        ("nllb", "pt_BR", "por_Latn"),
        ("mbart-50", "zho_Hans", "zh_CN"),
        ("mbart-50", "pt_BR", "pt_XX"),
        ("m2m100", "ns", "ns"),
        ("m2m100", "Sepedi", "ns"),
        ("m2m100", "nob_Latn", "no"),
    ],
)
def test_a_language_in_several_scripts_or_under_several_codes_is_settled_by_table(family, written, expected, opened):
    _, tokenizer = opened(family)
    assert resolve_languages(CONVENTIONS[family], tokenizer, "en", written)[1] == expected


@pytest.mark.parametrize(("family", "count"), [("mbart-50", 52), ("m2m100", 100), ("nllb", 202), ("marian-multi", 2)])
def test_every_code_of_a_checkpoint_means_itself(family, count, opened):
    _, tokenizer = opened(family)
    codes = language_codes(CONVENTIONS[family], tokenizer)
    assert len(codes) == count  # of mBART-50, M2M-100 and FLORES-200, as their papers say
    for code in codes:
        assert resolve_languages(CONVENTIONS[family], tokenizer, "en", code)[1] == code


def test_the_usual_script_is_preferred_to_a_code_that_names_none(opened):
    _, tokenizer = opened("marian-multi")  # with the targets of opus-mt-en-zh
    codes = [">>cmn<<", ">>cmn_Hans<<", ">>cmn_Hant<<"]
    for code in codes:
        tokenizer.encoder[code] = len(tokenizer.encoder)
    tokenizer.supported_language_codes = codes
    written = {"zh": codes[1], "zho_Hant": codes[2], "zh_TW": codes[2], "cmn": codes[0]}
    for given, code in written.items():
        assert resolve_languages(CONVENTIONS["marian-multi"], tokenizer, None, given) == ("", code)


def test_a_code_that_the_vocabulary_has_lost_is_not_offered(opened):
    _, tokenizer = opened("m2m100")
    tokenizer.lang_token_to_id["__xx__"] = tokenizer.unk_token_id
    assert "xx" not in language_codes(CONVENTIONS["m2m100"], tokenizer)


def test_bilingual_checkpoints_take_languages_as_names(opened):
    _, tokenizer = opened("marian")
    assert resolve_languages(CONVENTIONS["marian"], tokenizer, "Klingon", None) == ("Klingon", "")


def test_a_bilingual_checkpoint_of_another_pair_is_said(opened):
    _, tokenizer = opened("marian")
    tokenizer.source_lang, tokenizer.target_lang = "eng", "de"
    marian = CONVENTIONS["marian"]
    for agreed in (("en", "German"), ("", ""), ("English", "")):
        assert other_pair(marian, tokenizer, *agreed) == ""
    said = other_pair(marian, tokenizer, "en", "klingon")
    assert said == "The tokenizer says that the checkpoint translates eng to de; it is taught en to klingon here."
    tokenizer.source_lang = tokenizer.target_lang = None
    assert other_pair(marian, tokenizer, "en", "klingon") == ""
    assert other_pair(CONVENTIONS["nllb"], tokenizer, "en", "klingon") == ""


def test_a_prefix_of_the_users_own_makes_languages_of_t5_names(opened):
    _, tokenizer = opened("t5")
    assert resolve_languages(CONVENTIONS["t5"], tokenizer, None, "Klingon", prefix="to Klingon: ") == ("", "Klingon")


def test_an_unknown_language_is_refused_with_the_nearest_codes_and_their_number(opened):
    _, tokenizer = opened("nllb")
    with pytest.raises(InputError) as caught:
        resolve_languages(CONVENTIONS["nllb"], tokenizer, "Englsh", "Gernan")
    source, target = caught.value.problems  # both at once
    assert source.startswith("--data.source_lang 'Englsh': the checkpoint (nllb) has no such language. Nearest of 202 ")
    assert "codes: eng_Latn" in source
    assert "'Gernan'" in target
    assert "Nearest of 202 codes: deu_Latn" in target


def test_a_known_language_in_a_script_that_the_checkpoint_lacks_is_refused(opened):
    _, tokenizer = opened("nllb")
    with pytest.raises(InputError, match=r"'deu_Cyrl'.*deu_Latn"):
        resolve_languages(CONVENTIONS["nllb"], tokenizer, "en", "deu_Cyrl")
    _, tokenizer = opened("mbart-50")
    with pytest.raises(InputError, match=r"'zh_TW'.*zh_CN"):
        resolve_languages(CONVENTIONS["mbart-50"], tokenizer, "en", "zh_TW")


def test_t5_refuses_a_name_that_the_table_lacks(opened):
    _, tokenizer = opened("t5")
    with pytest.raises(InputError, match=r"'Gernan': no such language.*names: German.*--data.source_prefix"):
        resolve_languages(CONVENTIONS["t5"], tokenizer, "en", "Gernan")


@pytest.mark.parametrize("family", [*WITH_CODES, "marian-multi", "t5"])
def test_a_multilingual_checkpoint_must_be_told_its_target_language(family, opened):
    _, tokenizer = opened(family)
    with pytest.raises(InputError, match=r"--data.target_lang: .* must be told its target language"):
        resolve_languages(CONVENTIONS[family], tokenizer, "en", None)


# --- tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("back", [False, True])
def test_tokens_equal_those_of_the_stock_tokenizer(family, back, opened):
    _, tokenizer = opened(family)
    languages = CODES[family][::-1] if back and family in WITH_CODES else CODES[family]
    sources = encode_source(CONVENTIONS[family], tokenizer, TEXTS, *languages)
    labels = encode_target(CONVENTIONS[family], tokenizer, TARGETS, languages[1])
    expected = stock(tokenizer, family, languages)
    assert sources == expected[0]
    assert labels == expected[1]
    assert encode_source(CONVENTIONS[family], tokenizer, [], *languages) == []
    assert encode_target(CONVENTIONS[family], tokenizer, [], languages[1]) == []


@pytest.mark.parametrize(
    ("family", "source_starts", "target_starts", "ends"),
    [
        ("marian", [], [], ["</s>"]),
        ("marian-multi", [">>deu<<"], [], ["</s>"]),
        ("t5", [], [], ["</s>"]),
        ("mt5", [], [], ["</s>"]),
        ("mbart-50", ["en_XX"], ["de_DE"], ["</s>"]),
        ("m2m100", ["__en__"], ["__de__"], ["</s>"]),
        ("nllb", ["eng_Latn"], ["deu_Latn"], ["</s>"]),
    ],
)
def test_codes_stand_where_the_papers_put_them(family, source_starts, target_starts, ends, opened):
    _, tokenizer = opened(family)
    [source] = encode_source(CONVENTIONS[family], tokenizer, ["soup"], *CODES[family])
    [target] = encode_target(CONVENTIONS[family], tokenizer, ["Suppe"], CODES[family][1])
    source, target = tokenizer.convert_ids_to_tokens(source), tokenizer.convert_ids_to_tokens(target)
    assert source[: len(source_starts)] == source_starts
    assert target[: len(target_starts)] == target_starts
    assert source[-1:] == target[-1:] == ends
    special = {*tokenizer.all_special_tokens, *source_starts}
    assert not special & {*source[len(source_starts) : -1], *target[len(target_starts) : -1]}


@pytest.mark.parametrize("family", ["m2m100", "marian-multi", "mbart-50", "nllb", "t5"])
def test_every_example_may_have_its_own_languages(family, opened):
    _, tokenizer = opened(family)
    sources = [CODES[family][0], CODES[family][0], CODES[family][1]]
    targets = [CODES[family][1], FRENCH[family], CODES[family][0]]
    if family == "marian-multi":
        targets[2] = FRENCH[family]
    texts = TEXTS[:3]
    together = encode_source(CONVENTIONS[family], tokenizer, texts, sources, targets)
    labels = encode_target(CONVENTIONS[family], tokenizer, texts, targets)
    for i, text in enumerate(texts):
        assert [together[i]] == encode_source(CONVENTIONS[family], tokenizer, [text], sources[i], targets[i])
        assert [labels[i]] == encode_target(CONVENTIONS[family], tokenizer, [text], targets[i])
    assert (
        together[0] != encode_source(CONVENTIONS[family], tokenizer, texts[:1], sources[0], targets[1])[0]
        or (
            family in WITH_CODES  # there the source does not name the target ...
            and labels[0][0]
            != encode_target(CONVENTIONS[family], tokenizer, texts[:1], targets[1])[0][0]  # ... labels do
        )
    )


def test_a_head_that_lacks_a_language_is_none():
    assert source_heads(CONVENTIONS["t5"], ["English", ""], ["", "German"]) == ["", ""]
    assert source_heads(CONVENTIONS["t5"], ["English"], ["German"]) == ["translate English to German: "]


def test_a_given_prefix_replaces_that_of_t5_and_follows_the_code_of_marian(opened):
    _, tokenizer = opened("t5")
    given = encode_source(CONVENTIONS["t5"], tokenizer, ["soup"], "", "", prefix="to German: ")
    assert given == tokenizer(["to German: soup"])["input_ids"]
    _, tokenizer = opened("mt5")
    assert (
        encode_source(CONVENTIONS["mt5"], tokenizer, ["soup"], "", "", "to: ") == tokenizer(["to: soup"])["input_ids"]
    )
    _, tokenizer = opened("marian-multi")
    given = encode_source(CONVENTIONS["marian-multi"], tokenizer, ["soup"], "en", ">>deu<<", prefix="hot ")
    assert given == tokenizer([">>deu<< hot soup"])["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_long_text_is_neither_cut_nor_warned_about(family, opened, caplog):
    _, tokenizer = opened(family)
    transformers.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            [source] = encode_source(CONVENTIONS[family], tokenizer, ["the soup " * 700], *CODES[family])
            [target] = encode_target(CONVENTIONS[family], tokenizer, ["die Suppe " * 700], CODES[family][1])
    finally:
        transformers.logging.disable_propagation()
    assert min(len(source), len(target)) > max(1400, tokenizer.model_max_length)
    assert not caplog.records


@pytest.mark.parametrize("family", WITH_CODES)
def test_encoding_leaves_the_tokenizer_as_it_was(family, opened):
    _, tokenizer = opened(family)
    before = tokenizer.src_lang, tokenizer.tgt_lang, tokenizer("soup")["input_ids"]
    encode_source(CONVENTIONS[family], tokenizer, TEXTS, *CODES[family][::-1])
    encode_target(CONVENTIONS[family], tokenizer, TEXTS, CODES[family][0])
    unknown_share(tokenizer, TEXTS, side="target")
    assert (tokenizer.src_lang, tokenizer.tgt_lang, tokenizer("soup")["input_ids"]) == before


def test_an_nllb_saved_with_the_old_position_of_its_source_code_keeps_it(folders):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["nllb"], legacy_behaviour=True, src_lang="eng_Latn")
    [source] = encode_source(CONVENTIONS["nllb"], tokenizer, ["soup"], "eng_Latn", "deu_Latn")
    assert source == tokenizer("soup")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(source)[-2:] == ["</s>", "eng_Latn"]


# --- start of decoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_generation_start_from_the_same_token(family, opened):
    model, tokenizer = opened(family)
    convention = CONVENTIONS[family]
    prepare_generation(model, tokenizer, convention, CODES[family][1], beams=1)
    start, forced = decoder_start(model), forced_bos(convention, tokenizer, CODES[family][1])
    assert tokenizer.convert_ids_to_tokens(start) == ("</s>" if family in WITH_CODES else "<pad>")
    expected = {"mbart-50": "de_DE", "m2m100": "__de__", "nllb": "deu_Latn"}.get(family)
    assert (None if forced is None else tokenizer.convert_ids_to_tokens(forced)) == expected

    [source] = encode_source(convention, tokenizer, TEXTS[:1], *CODES[family])
    [labels] = encode_target(convention, tokenizer, TARGETS[:1], CODES[family][1])
    with torch.no_grad():
        theirs = model(torch.tensor([source]), labels=torch.tensor([labels])).logits
        ours = model(torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *labels[:-1]]])).logits
    assert torch.equal(theirs, ours)
    [output] = generate(model, [source], max_new_tokens=5)
    assert output[0] == start
    if forced is not None:
        assert output[1] == forced == labels[0]


@pytest.mark.parametrize("family", ["t5", "mt5", *WITH_CODES])  # Marian's config has one always
def test_a_start_that_the_checkpoint_leaves_open_is_set_for_both(family, opened):
    model, tokenizer = opened(family)
    start = decoder_start(model)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    prepare_generation(model, tokenizer, CONVENTIONS[family], CODES[family][1])
    assert start == decoder_start(model) == model.generation_config.decoder_start_token_id


def test_the_start_that_training_uses_wins_over_a_generation_config_that_differs(opened):
    model, tokenizer = opened("marian")
    start = model.config.decoder_start_token_id
    model.generation_config.decoder_start_token_id = 5
    prepare_generation(model, tokenizer, CONVENTIONS["marian"], "")
    assert decoder_start(model) == model.generation_config.decoder_start_token_id == start


IN_A_FRESH_PROCESS = """
import json, sys, torch, transformers
outputs = {}
for family, (folder, texts) in json.load(sys.stdin).items():
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = tokenizer(texts)["input_ids"]
    outputs[family] = [
        [model.generate(torch.tensor([row]), max_new_tokens=12, **beams)[0].tolist() for row in ids]
        for beams in ({}, {"num_beams": 1})
    ]
print(json.dumps(outputs))
"""


@pytest.mark.slow
def test_saved_checkpoints_give_the_same_tokens_in_a_fresh_process_without_this_package(opened, tmp_path):
    texts = [text for text in TEXTS if text]
    here, work = {}, {}
    for family in FAMILIES:
        model, tokenizer = opened(family)
        convention = find_convention(model.config, tokenizer)
        languages = resolve_languages(convention, tokenizer, "de", "fr" if family in WITH_CODES else "de")
        prepare_generation(model, tokenizer, convention, languages[1], beams=4, source_lang=languages[0])
        ids = encode_source(convention, tokenizer, texts, *languages)
        here[family] = [generate(model, ids, max_new_tokens=12, num_beams=beams) for beams in (4, 1)]
        model.save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        # T5: German to German, as the prefix is all that names the languages
        head = HEADS.get(family, "").replace("English", "German")
        work[family] = str(tmp_path / family), [head + text for text in texts]
    process = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS], input=json.dumps(work), capture_output=True, text=True, check=True
    )
    there = json.loads(process.stdout)
    assert there == here
    for family in WITH_CODES:  # French was forced, not the German of the fixture nor the source
        assert {row[1] for row in there[family][0]} == {
            forced_bos(CONVENTIONS[family], opened(family)[1], FRENCH[family])
        }
    for family in FAMILIES:
        assert len({tuple(row) for row in there[family][0] + there[family][1]}) > 1, f"{family} ignores its input"


# --- generation settings -----------------------------------------------------------------------------------------


def test_generation_settings_in_the_config_move_where_they_can_be_saved(opened, tmp_path):
    model, tokenizer = opened("nllb")
    model.config.num_beams, model.config.no_repeat_ngram_size, model.config.max_length = 7, 3, 64
    model.config.forced_bos_token_id = 5  # some other run's language
    model.generation_config.max_length = None
    with pytest.raises(ValueError, match="num_beams"):
        model.save_pretrained(tmp_path)
    prepare_generation(model, tokenizer, CONVENTIONS["nllb"], "deu_Latn", beams=4, length_penalty=0.6)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["num_beams"] == 4  # the run's own
    assert saved["length_penalty"] == 0.6
    assert saved["no_repeat_ngram_size"] == 3
    assert saved["max_length"] == 64
    assert saved["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("deu_Latn")
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"num_beams", "no_repeat_ngram_size", "max_length", "forced_bos_token_id"} & set(config)


def test_a_setting_that_the_generation_config_has_already_is_not_overwritten(opened):
    model, tokenizer = opened("nllb")
    model.config.repetition_penalty, model.generation_config.repetition_penalty = 1.5, 1.2
    prepare_generation(model, tokenizer, CONVENTIONS["nllb"], "deu_Latn")
    assert model.generation_config.repetition_penalty == 1.2


@pytest.mark.parametrize("beams", [1, 4])
def test_settings_that_contradict_the_search_are_put_in_order(beams, opened, tmp_path):
    model, tokenizer = opened("mbart-50")
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 10, "top_p": 0.9, "length_penalty": 0.5}
    for name, value in {**settings, "num_return_sequences": 6, "output_scores": True}.items():
        setattr(model.generation_config, name, value)
    prepare_generation(model, tokenizer, CONVENTIONS["mbart-50"], "de_DE", beams=beams, length_penalty=1.3)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert not {"temperature", "top_k", "top_p", "output_scores"} & set(saved)
    assert not saved.get("do_sample")
    assert (saved.get("length_penalty"), saved.get("early_stopping")) == ((None, None) if beams == 1 else (1.3, True))
    assert len(generate(model, [[5, 6, 2]], max_new_tokens=3)) == 1


@pytest.mark.parametrize("family", ["marian", "mbart-50"])
def test_what_else_a_checkpoint_says_about_generation_is_kept(family, opened):
    model, tokenizer = opened(family)
    before = model.generation_config.to_dict()
    prepare_generation(model, tokenizer, CONVENTIONS[family], CODES[family][1])
    after = model.generation_config.to_dict()
    for name in (
        "bad_words_ids",
        "forced_eos_token_id",
        "max_length",
        "early_stopping",
        "pad_token_id",
        "eos_token_id",
    ):
        assert after[name] == before[name], name
    assert before["bad_words_ids"] == ([[tokenizer.pad_token_id]] if family == "marian" else None)


def test_a_length_that_would_cut_most_sentences_is_raised_and_one_over_the_positions_lowered(opened):
    model, tokenizer = opened("t5")
    prepare_generation(model, tokenizer, CONVENTIONS["t5"], "German")
    assert model.generation_config.max_length == 512
    model, tokenizer = opened("marian")
    prepare_generation(model, tokenizer, CONVENTIONS["marian"], "", max_length=1000)
    assert model.generation_config.max_length == model.config.max_position_embeddings == 128
    prepare_generation(model, tokenizer, CONVENTIONS["marian"], "", max_length=40)
    assert model.generation_config.max_length == 40


@pytest.mark.parametrize("family", WITH_CODES)
def test_a_saved_tokenizer_carries_the_languages_of_the_run(family, opened, tmp_path):
    model, tokenizer = opened(family)
    german, english = CODES[family][1], CODES[family][0]
    prepare_generation(model, tokenizer, CONVENTIONS[family], english, source_lang=german)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (again.src_lang, again.tgt_lang) == (german, english)
    [expected] = encode_source(CONVENTIONS[family], tokenizer, ["Suppe"], german, english)
    assert again("Suppe")["input_ids"] == expected


def test_no_language_is_forced_where_examples_have_several(opened):
    model, tokenizer = opened("m2m100")
    prepare_generation(model, tokenizer, CONVENTIONS["m2m100"], "de")
    prepare_generation(model, tokenizer, CONVENTIONS["m2m100"], None)
    assert model.generation_config.forced_bos_token_id is None


def test_what_could_not_be_saved_is_refused_by_name_before_training(opened):
    model, tokenizer = opened("nllb")
    model.generation_config.early_stopping = "sometimes"
    with pytest.raises(InputError, match=r"early_stopping in generation_config.json keeps the model from being saved"):
        prepare_generation(model, tokenizer, CONVENTIONS["nllb"], "deu_Latn")
    model, tokenizer = opened("nllb")
    model.generation_config.cache_implementation = "none such"
    with pytest.raises(InputError, match=r"cache_implementation in generation_config.json"):
        prepare_generation(model, tokenizer, CONVENTIONS["nllb"], "deu_Latn")
    model, tokenizer = opened("nllb")
    model.config.note = object()
    with pytest.raises(InputError, match=r"config.json keeps the model from being saved"):
        prepare_generation(model, tokenizer, CONVENTIONS["nllb"], "deu_Latn")


# --- unknown text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_share_of_unknown_characters_is_counted(family, opened):
    _, tokenizer = opened(family)
    assert unknown_share(tokenizer, [pair[0] for pair in PAIRS]) == (0.0, "")
    assert unknown_share(tokenizer, [pair[1] for pair in PAIRS], side="target") == (0.0, "")
    # 12 + 3 + 4 times "soup" are 76 known characters; "жы" three times and "ы" four times are 10 unknown ones
    share, examples = unknown_share(tokenizer, ["soup " * 12, *["soup жы"] * 3, *["soupы soupы"] * 2])
    assert share == pytest.approx(10 / 86)
    assert examples == "ы ж"
    assert unknown_share(tokenizer, []) == unknown_share(tokenizer, ["  "]) == (0.0, "")


def test_unknown_characters_are_found_among_many_words(opened):
    _, tokenizer = opened("marian")
    words = [f"soup{i}soup" for i in range(300)]  # digits 6 to 9 occur in no training sentence
    share, examples = unknown_share(tokenizer, [" ".join(words)])
    lost = sum(character in set(examples.split()) for word in words for character in word)
    assert lost > 0
    assert share == pytest.approx(lost / sum(map(len, words)))
    # by brute force: characters whose token alone is unknown
    unknown = {d for d in "0123456789" if tokenizer.unk_token_id in tokenizer(d)["input_ids"]}
    assert set(examples.split()) == unknown


def test_a_tokenizer_with_a_token_for_every_byte_knows_everything():
    assert unknown_share(transformers.ByT5Tokenizer(), ["жы 汉字 soup"]) == (0.0, "")


def test_characters_that_normalisation_makes_known_are_known(opened):
    _, tokenizer = opened("marian")
    assert unknown_share(tokenizer, ["hei\u00df Sa\u0308ge ｓｏｕｐ"], side="target") == (0.0, "")


def test_a_word_that_the_vocabulary_file_lacks_counts_whole(opened):
    _, tokenizer = opened("m2m100")  # the published one has pieces like that, see fairseq issue 3463
    assert tokenizer.tokenize("the") == ["▁the"]
    del tokenizer.encoder["▁the"]
    assert unknown_share(tokenizer, ["the the soup"]) == (pytest.approx(6 / 10), "t h e")


def test_each_side_of_marian_is_judged_by_its_own_vocabulary(folders, tmp_path):
    vocabulary = json.loads((folders["marian"] / "vocab.json").read_text())
    names = [name for name in vocabulary if "ä" not in name]
    for path in folders["marian"].glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (tmp_path / "target_vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.MarianTokenizer(
        str(tmp_path / "source.spm"),
        str(tmp_path / "target.spm"),
        str(tmp_path / "vocab.json"),
        str(tmp_path / "target_vocab.json"),
        separate_vocabs=True,
    )
    assert unknown_share(tokenizer, ["Säge"], side="source") == (0.25, "ä")
    assert unknown_share(tokenizer, ["Säge"], side="target") == (0.0, "")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("Chinese", "zh"),
        ("zho_Hans", "zh"),
        ("zh_CN", "zh"),
        ("__ja__", "ja"),
        ("kor_Hang", "ko"),
        ("de", "de"),
        ("", ""),
    ],
)
def test_a_language_has_its_two_letter_code_however_it_is_written(given, code):
    assert two_letter_code(given) == code
