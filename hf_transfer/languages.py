"""Floor 1: how each family of translation checkpoints is told which languages it works between.

One literal table, ``CONVENTIONS``, says how a family names languages and where their codes stand; everything below
reads it. Encoding never sets ``tokenizer.src_lang`` or ``tgt_lang``, so that it may be called for any languages in any
order, from several threads too; ``prepare_generation`` alone sets them, to the run's languages, because
``save_pretrained`` writes them into ``tokenizer_config.json`` for whoever opens the result.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_transfer.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FAMILIES = "Marian (OPUS-MT), T5, mT5, mBART-50, M2M100 and NLLB"


@dataclass(frozen=True)
class Convention:
    """How a family of checkpoints is told its languages."""

    family: str
    naming: str
    """How it names a language, for messages; "" where the checkpoint takes no language."""
    token: str
    """Vocabulary entry of a language, ``{}`` standing for its code; "" where languages are no tokens."""
    code: str
    """Regular expression that the codes match, "" likewise."""
    source: str
    """Input of the encoder, part by part."""
    target: str
    """Labels, part by part; the decoder's input is its start token and then these without the last."""
    start: Literal["pad", "eos"]
    """Special token that decoding starts from where the checkpoint's config does not say."""
    prefix: str = ""
    """Text before every source, unless another is given; languages as English names."""

    @property
    def needs_source(self) -> bool:
        """Whether the source language must be known."""
        return "source code" in self.source or bool(self.prefix)

    @property
    def needs_target(self) -> bool:
        """Whether the target language must be known."""
        return "target code" in self.source + self.target or bool(self.prefix)

    @property
    def forces_bos(self) -> bool:
        """Whether generation is made to begin with the code of the target language."""
        return self.target.startswith("target code")


# Special ids, tokens and positions as in transformers' tokenizers and configs of version 5 and the papers named.
CONVENTIONS = {
    row.family: row
    for row in (
        # OPUS-MT (Tiedemann and Thottingal 2020): two languages, known to nobody but the file's name
        Convention("marian", "", "", "", "text eos", "text eos", "pad"),
        # the same with several target languages: the text begins with the one wanted
        Convention(
            "marian-multi", ">>deu<<", "{}", r">>[a-z]{2,3}(?:[_-]\w+)*<<", "target code, text eos", "text eos", "pad"
        ),
        # T5 (Raffel et al. 2020): a sentence in English says what to do
        Convention("t5", "German", "", "", "prefix text eos", "text eos", "pad", "translate {source} to {target}: "),
        # mT5 (Xue et al. 2021) has seen no task: only a prefix that is given
        Convention("mt5", "", "", "", "text eos", "text eos", "pad"),
        # mBART-50 (Tang et al. 2020)
        Convention(
            "mbart-50", "de_DE", "{}", r"[a-z]{2,3}_[A-Z]{2}", "source code, text eos", "target code, text eos", "eos"
        ),
        # M2M-100 (Fan et al. 2021)
        Convention("m2m100", "de", "__{}__", r"[a-z]{2,3}", "source code, text eos", "target code, text eos", "eos"),
        # NLLB-200 (NLLB Team 2022), codes of FLORES-200
        Convention(
            "nllb",
            "deu_Latn",
            "{}",
            r"[a-z]{3}_[A-Z][a-z]{3}",
            "source code, text eos",
            "target code, text eos",
            "eos",
        ),
    )
}

# ISO 639-1 (and codes in use like them); ISO 639-3, the one of FLORES-200 first, then of macrolanguages and ISO 639-2;
# English names. Languages that FLORES-200 lacks stand under their ISO 639-3 code.
LANGUAGES = """
af afr Afrikaans; ak aka Akan; am amh Amharic; ar arb,ara Arabic; as asm Assamese; ast ast Asturian; ay ayr,aym Aymara;
az azj,aze Azerbaijani; ba bak Bashkir; be bel Belarusian; bg bul Bulgarian; bm bam Bambara; bn ben Bengali/Bangla;
bo bod,tib Tibetan; br bre Breton; bs bos Bosnian; ca cat Catalan/Valencian; ceb ceb Cebuano; cs ces,cze Czech;
cy cym,wel Welsh; da dan Danish; de deu,ger German; dz dzo Dzongkha; ee ewe Ewe; el ell,gre Greek/Modern Greek;
en eng English; eo epo Esperanto; es spa Spanish/Castilian; et est,ekk Estonian; eu eus,baq Basque;
fa pes,fas,per Persian/Farsi; ff fuv,ful Fulah/Fula/Nigerian Fulfulde; fi fin Finnish; fj fij Fijian; fo fao Faroese;
fr fra,fre French; fy fry Western Frisian/Frisian; ga gle Irish; gd gla Scottish Gaelic/Gaelic; gl glg Galician;
gn grn,gug Guarani; gu guj Gujarati; gv glv Manx; ha hau Hausa; haw haw Hawaiian; he,iw heb Hebrew; hi hin Hindi;
hr hrv Croatian; ht hat Haitian Creole/Haitian; hu hun Hungarian; hy hye,arm Armenian; ia ina Interlingua;
id,in ind Indonesian; ig ibo Igbo; ilo ilo Ilocano/Iloko; io ido Ido; is isl,ice Icelandic; it ita Italian;
ja jpn Japanese; jv,jw jav Javanese; ka kat,geo Georgian; kg kon Kongo/Kikongo; ki kik Kikuyu; kk kaz Kazakh;
km khm Khmer/Central Khmer; kn kan Kannada; ko kor Korean; kr knc,kau Kanuri/Central Kanuri; ks kas Kashmiri;
ku kmr,kur Kurdish/Northern Kurdish/Kurmanji; kw cor Cornish; ky kir Kyrgyz; la lat Latin; lb ltz Luxembourgish;
lg lug Ganda/Luganda; li lim Limburgish; ln lin Lingala; lo lao Lao; lt lit Lithuanian; lv lvs,lav Latvian;
mg plt,mlg Malagasy; mi mri,mao Maori; mk mkd,mac Macedonian; ml mal Malayalam; mn khk,mon Mongolian; mr mar Marathi;
ms zsm,msa,may Malay; mt mlt Maltese; my mya,bur Burmese/Myanmar; ne npi,nep Nepali; nl nld,dut Dutch/Flemish;
nn nno Norwegian Nynorsk/Nynorsk; no,nb nob,nor Norwegian/Norwegian Bokmal/Bokmal; ns,nso nso Northern Sotho/Sepedi;
nv nav Navajo; ny nya Nyanja/Chichewa/Chewa; oc oci Occitan; om gaz,orm Oromo; or ory,ori Odia/Oriya; os oss Ossetian;
pa pan Punjabi/Panjabi; pl pol Polish; ps pbt,pus Pashto; pt por Portuguese; qu quy,que Quechua; rm roh Romansh;
rn run Rundi/Kirundi; ro,mo ron,rum Romanian/Moldovan; ru rus Russian; rw kin Kinyarwanda; sa san Sanskrit;
sc srd Sardinian; sd snd Sindhi; se sme Northern Sami; sg sag Sango; sh hbs Serbo-Croatian; si sin Sinhala;
sk slk,slo Slovak; sl slv Slovenian; sm smo Samoan; sn sna Shona; so som Somali; sq als,sqi,alb Albanian;
sr srp Serbian; ss ssw Swati/Swazi; st sot Southern Sotho/Sotho; su sun Sundanese; sv swe Swedish; sw swh,swa Swahili;
ta tam Tamil; te tel Telugu; tg tgk Tajik; th tha Thai; ti tir Tigrinya; tk tuk Turkmen;
tl,fil tgl,fil Tagalog/Filipino; tn tsn Tswana/Setswana; to ton Tongan; tr tur Turkish; ts tso Tsonga; tt tat Tatar;
tw twi Twi; ty tah Tahitian; ug uig Uyghur; uk ukr Ukrainian; ur urd Urdu; uz uzn,uzb Uzbek; vi vie Vietnamese;
vo vol Volapuk; wa wln Walloon; wo wol Wolof; xh xho Xhosa; yi ydd,yid Yiddish; yo yor Yoruba; yue yue Cantonese;
zh zho,cmn,chi Chinese/Mandarin; zu zul Zulu; - ace Acehnese; - acm Mesopotamian Arabic; - acq Ta'izzi-Adeni Arabic;
- aeb Tunisian Arabic; - ajp South Levantine Arabic; - apc North Levantine Arabic; - ars Najdi Arabic;
- ary Moroccan Arabic; - arz Egyptian Arabic; - awa Awadhi; - azb South Azerbaijani; - ban Balinese; - bem Bemba;
- bho Bhojpuri; - bjn Banjar; - bug Buginese; - cjk Chokwe; - ckb Central Kurdish/Sorani; - crh Crimean Tatar;
- dik,din Dinka/Southwestern Dinka; - dyu Dyula; - fon Fon; - fur Friulian; - gsw Swiss German/Alemannic;
- hne Chhattisgarhi; - kab Kabyle; - kac Jingpho; - kam Kamba; - kbp Kabiye; - kea Kabuverdianu; - kmb Kimbundu;
- lij Ligurian; - lmo Lombard; - ltg Latgalian; - lua Luba-Kasai; - luo Luo; - lus Mizo; - mag Magahi; - mai Maithili;
- min Minangkabau; - mni Meitei/Manipuri; - mos Mossi; - nds Low German; - nus Nuer; - pag Pangasinan; - pap Papiamento;
- prs Dari; - sat Santali; - scn Sicilian; - shn Shan; - szl Silesian; - taq Tamasheq; - tpi Tok Pisin; - tum Tumbuka;
- tzm Central Atlas Tamazight; - umb Umbundu; - vec Venetian; - war Waray
"""

# Where a language alone leaves several codes of a checkpoint: script that is meant.
USUAL_SCRIPT = {
    "ace": "latn",
    "bjn": "latn",
    "bos": "latn",
    "kas": "arab",
    "knc": "latn",
    "srp": "cyrl",
    "taq": "latn",
    "uzn": "latn",
    "zho": "hans",
}
# Regions that decide the script of Chinese: mBART-50's zh_CN is zho_Hans.
SCRIPT_OF_REGION = {"cn": "hans", "sg": "hans", "hk": "hant", "mo": "hant", "tw": "hant"}

_NEAREST = 5
_LENGTH_WITHOUT_POSITIONS = 512  # T5 and mT5 know distances only, and were trained up to this
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate")
# fields that a model's config keeps although generation has them too
_CONFIG_KEEPS = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}


# --- which convention --------------------------------------------------------------------------------------------


def find_convention(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Convention:
    """Return the row of ``CONVENTIONS`` that a checkpoint follows, read from its architecture and its tokens.

    Raises:
        InputError: not an encoder-decoder, or one of another family.
    """
    kind, tokenizer_name = config.model_type, type(tokenizer).__name__
    if not config.is_encoder_decoder:
        raise InputError(
            f"--model.checkpoint: {kind} is {_what_it_is(kind)}: it cannot translate. "
            f"Give an encoder-decoder checkpoint: {FAMILIES} work."
        )
    if kind == "marian":
        return CONVENTIONS["marian-multi" if language_codes(CONVENTIONS["marian-multi"], tokenizer) else "marian"]
    if kind in ("t5", "mt5", "umt5"):
        tags = sorted(token for token in tokenizer.get_vocab() if re.fullmatch(r"<2[a-zA-Z_]+>", token))
        if tags:
            raise InputError(
                f"--model.checkpoint: this T5 names its target languages with tokens such as {tags[0]} (MADLAD-400), a "
                f"convention that is not built in. {FAMILIES} work."
            )
        has_tasks = kind == "t5" and not tokenizer_name.startswith("ByT5")
        return CONVENTIONS["t5" if has_tasks else "mt5"]
    # mBART-25, whose codes stand elsewhere, has no Afrikaans
    if kind == "mbart" and (
        "MBart50" in tokenizer_name or "af_ZA" in language_codes(CONVENTIONS["mbart-50"], tokenizer)
    ):
        return CONVENTIONS["mbart-50"]
    if kind == "m2m_100":
        for family in ("nllb", "m2m100"):
            if language_codes(CONVENTIONS[family], tokenizer):
                return CONVENTIONS[family]
    raise InputError(
        f"--model.checkpoint: how {kind} with a {tokenizer_name} names its languages is not known here. "
        f"{FAMILIES} work."
    )


def language_codes(convention: Convention, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the language codes in a checkpoint's vocabulary, sorted; none where languages are no tokens."""
    if not convention.token:
        return ()
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    tokens |= {*getattr(tokenizer, "lang_token_to_id", ()), *getattr(tokenizer, "supported_language_codes", ())}
    before, after = map(re.escape, convention.token.split("{}"))
    found = {token: re.fullmatch(f"{before}({convention.code}){after}", token) for token in tokens}
    ids = {match[1]: tokenizer.convert_tokens_to_ids(token) for token, match in found.items() if match}
    return tuple(sorted(code for code, i in ids.items() if i != tokenizer.unk_token_id))


def _what_it_is(model_type: str) -> str:
    from transformers.models.auto import modeling_auto

    if model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "an encoder without a decoder"
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "a decoder without an encoder"
    return "no encoder-decoder"


# --- names and codes of languages --------------------------------------------------------------------------------


def resolve_languages(
    convention: Convention,
    tokenizer: PreTrainedTokenizerBase,
    source_lang: str | None,
    target_lang: str | None,
    prefix: str | None = None,
) -> tuple[str, str]:
    """Return source and target language in the checkpoint's own form: ``deu_Latn``, ``de_DE``, ``>>deu<<``, ``German``.

    ``de``, ``de_DE``, ``deu``, ``deu_Latn``, ``German`` and ``>>deu<<`` all mean the same, in any case. Where a
    language is written in several scripts, ``USUAL_SCRIPT`` decides (``zh`` is ``zho_Hans``). A language that the
    checkpoint does not ask for (both of a bilingual Marian model, the source of a multilingual one) is a name only
    and comes back as it was given, "" for none; with a ``prefix`` of the user's own that holds for T5 as well.

    Raises:
        InputError: a language missing that the checkpoint needs, or one that it does not know; both at once.
    """
    found: list[str] = []
    problems: list[str] = []
    for side, given in (("source", source_lang), ("target", target_lang)):
        try:
            found.append(resolve_language(convention, tokenizer, side, given, prefix))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return found[0], found[1]


def resolve_language(
    convention: Convention, tokenizer: PreTrainedTokenizerBase, side: str, given: str | None, prefix: str | None = None
) -> str:
    """The language of one ``side`` ("source" or "target") as ``resolve_languages`` gives both.

    Raises:
        InputError: it is missing and the checkpoint needs it, or the checkpoint does not know it.
    """
    needed = convention.needs_source if side == "source" else convention.needs_target
    language = (given or "").strip()
    if not needed or (convention.prefix and prefix):
        return language
    return _resolve(convention, tokenizer, side, language)


def other_pair(convention: Convention, tokenizer: PreTrainedTokenizerBase, source_lang: str, target_lang: str) -> str:
    """A sentence where a bilingual tokenizer says that it was made for other languages; "" where it agrees or is
    silent. It may be meant (German to Dutch is a fair start), so that it is no error."""
    if convention.family != "marian":
        return ""
    own = [str(getattr(tokenizer, f"{side}_lang", None) or "") for side in ("source", "target")]
    pairs = zip(own, (source_lang, target_lang), strict=True)
    if all(not had or not given or _parse(had)[0] == _parse(given)[0] for had, given in pairs):
        return ""
    return (
        f"The tokenizer says that the checkpoint translates {own[0] or '?'} to {own[1] or '?'}; it is taught "
        f"{source_lang or '?'} to {target_lang or '?'} here."
    )


def _resolve(convention: Convention, tokenizer: PreTrainedTokenizerBase, side: str, given: str) -> str:
    codes = language_codes(convention, tokenizer)
    option = f"--data.{side}_lang"
    if not given:
        if convention.prefix:
            remedy = f"{option} German, say, or the whole prefix with --data.source_prefix"
        else:
            remedy = f"{option} with one of its {len(codes)} codes, such as {', '.join(codes[:_NEAREST])}"
        raise InputError(
            f"{option}: the checkpoint is multilingual ({convention.family}) and must be told its {side} language. "
            f"Give {remedy}."
        )
    names = _known_languages().names
    language, script = _parse(given)
    if convention.prefix:  # English names
        if language in names:
            return names[language][0]
        suggestion = _suggest(given, {name: known[0] for known in names.values() for name in known}, "names")
        remedy = "For another language give the whole prefix with --data.source_prefix."
        raise InputError(f"{option} {given!r}: no such language is known here. {suggestion} {remedy}")

    by_lower = {_bare(code): code for code in codes}
    exact = by_lower.get(_bare(given)) or by_lower.get(_bare(given).replace("-", "_"))
    if exact:
        return exact
    fitting = {code: _parse(code)[1] for code in codes if _parse(code)[0] == language}
    usual = [code for code, written in fitting.items() if written == (script or USUAL_SCRIPT.get(language))]
    unwritten = [code for code, written in fitting.items() if not written]
    candidates = usual or unwritten or ([] if script else list(fitting))
    if candidates:
        return min(candidates, key=lambda code: (len(code), code))
    aliases = {code: code for code in codes}
    if fitting:  # the language, but not in that script
        aliases = {code: code for code in fitting}
    else:
        for code in codes:
            aliases |= dict.fromkeys((_parse(code)[0], *names.get(_parse(code)[0], ())), code)
    suggestion = _suggest(given, aliases, "codes", len(codes))
    raise InputError(f"{option} {given!r}: the checkpoint ({convention.family}) has no such language. {suggestion}")


@dataclass(frozen=True)
class _Known:
    canonical: dict[str, str]
    """Any code or English name in lower case -> the language's first three-letter code."""
    names: dict[str, tuple[str, ...]]
    """First three-letter code -> English names."""
    short: dict[str, str]
    """First three-letter code -> two-letter code, where there is one."""


@functools.cache
def _known_languages() -> _Known:
    canonical: dict[str, str] = {}
    names: dict[str, tuple[str, ...]] = {}
    two_letters: dict[str, str] = {}
    for entry in LANGUAGES.replace("\n", " ").split(";"):
        short, long, english = entry.strip().split(" ", 2)
        codes = long.split(",")
        names[codes[0]] = tuple(english.split("/"))
        if not short.startswith("-"):
            two_letters[codes[0]] = short.split(",")[0]
        for alias in (*codes, *short.split(","), *names[codes[0]]):
            if alias != "-":
                canonical.setdefault(alias.lower(), codes[0])
    return _Known(canonical, names, two_letters)


def _parse(code: str) -> tuple[str, str]:
    """Three-letter code of the language (or the text itself, in lower case) and the script asked for, or ""."""
    known, text = _known_languages().canonical, _bare(code)
    if text in known:
        return known[text], ""
    base, *rest = re.split(r"[_-]", text)
    language = known.get(base, base if len(base) <= 3 else text)
    script = next((part for part in rest if len(part) == 4), "")
    if not script and language == "zho":
        script = next((SCRIPT_OF_REGION[part] for part in rest if part in SCRIPT_OF_REGION), "")
    return language, script


def two_letter_code(language: str) -> str:
    """``zh`` for Chinese, zh_CN, zho_Hans or cmn; "" where there is none for ``language``."""
    return _known_languages().short.get(_parse(language)[0], "")


def _bare(code: str) -> str:
    """In lower case and without the marks that M2M100 and Marian put around a code."""
    text = code.strip().lower().removeprefix(">>").removesuffix("<<")
    return text.removeprefix("__").removesuffix("__")


def _suggest(given: str, aliases: dict[str, str], what: str, count: int | None = None) -> str:
    """A sentence with what ``aliases`` lead to, the most like ``given`` first; some of it where nothing is like it."""
    values = {_bare(alias): value for alias, value in aliases.items()}
    close = difflib.get_close_matches(_bare(given), list(values), _NEAREST, cutoff=0.5)
    every = sorted(set(aliases.values()))
    count = count or len(every)
    shown = list(dict.fromkeys(values[alias] for alias in close)) or every[:_NEAREST]
    return f"{'Nearest of' if close else 'Some of'} {count} {what}: {', '.join(shown)}."


# --- text to tokens ----------------------------------------------------------------------------------------------


def source_heads(convention: Convention, sources: Sequence[str], targets: Sequence[str], prefix: str = "") -> list[str]:
    """[examples] what stands in front of a text so that the model knows what to do with it: T5's task, Marian's code.

    Args:
        sources, targets: [examples] languages in the checkpoint's form.
        prefix: put before every text as it is; in place of T5's own.
    """
    if convention.prefix and not prefix:
        pairs = zip(sources, targets, strict=True)
        # of a model of several languages, half a sentence would be a head that it has never seen
        return [convention.prefix.format(source=s, target=t) if s and t else "" for s, t in pairs]
    if convention.family == "marian-multi":  # the code counts at the very beginning only
        return [f"{target} {prefix}" if target else prefix for target in targets]
    return [prefix] * len(targets)


def encode_source(
    convention: Convention,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    source_lang: str | Sequence[str],
    target_lang: str | Sequence[str],
    prefix: str = "",
) -> list[list[int]]:
    """Tokens of source texts with special tokens, as the tokenizer makes them with these languages set; never cut.

    Args:
        texts: [examples].
        source_lang: one language in the checkpoint's form (see ``resolve_languages``), or [examples] of them.
        target_lang: likewise.
        prefix: as in ``source_heads``.
    """
    sources, targets = _per_example(source_lang, len(texts)), _per_example(target_lang, len(texts))
    heads = source_heads(convention, sources, targets, prefix)
    whole = [head + text for head, text in zip(heads, texts, strict=True)]
    if not convention.forces_bos:
        return _tokenize(tokenizer, whole, special=True)
    bodies = _tokenize(tokenizer, whole, special=False)
    end = [tokenizer.eos_token_id]
    codes = {code: [_code_id(convention, tokenizer, code)] for code in set(sources)}
    if getattr(tokenizer, "legacy_behaviour", False):  # NLLB as transformers fed it before 4.30: the code comes last
        return [body + end + codes[code] for code, body in zip(sources, bodies, strict=True)]
    return [codes[code] + body + end for code, body in zip(sources, bodies, strict=True)]


def encode_target(
    convention: Convention,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    target_lang: str | Sequence[str],
) -> list[list[int]]:
    """Labels of target texts: [code of the language,] tokens, end of sentence; never cut.

    Equal to ``tokenizer(text_target=texts)`` with ``tgt_lang`` set. ``target_lang`` is one language in the
    checkpoint's form or [examples] of them. The decoder's input is ``[decoder_start(model), *labels[:-1]]``.
    """
    if not convention.forces_bos:
        return _tokenize(tokenizer, texts, special=True, target=True)
    codes = _per_example(target_lang, len(texts))
    ids = {code: [_code_id(convention, tokenizer, code)] for code in set(codes)}
    bodies = _tokenize(tokenizer, texts, special=False)
    return [ids[code] + body + [tokenizer.eos_token_id] for code, body in zip(codes, bodies, strict=True)]


def forced_bos(convention: Convention, tokenizer: PreTrainedTokenizerBase, target_lang: str) -> int | None:
    """Token that generation must produce first, the target language's code; None for families without one."""
    return _code_id(convention, tokenizer, target_lang) if convention.forces_bos else None


def decoder_start(model: PreTrainedModel) -> int:
    """Token that the decoder's input begins with, in training and in generation.

    It is the config's, as ``model(labels=...)`` shifts labels behind that one; the generation config only stands in.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = model.generation_config.decoder_start_token_id
    assert start is not None, "prepare_generation comes first: it sets what the checkpoint left open"
    return int(start)


def _per_example(languages: str | Sequence[str], count: int) -> Sequence[str]:
    return [languages] * count if isinstance(languages, str) else languages


def _code_id(convention: Convention, tokenizer: PreTrainedTokenizerBase, code: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(convention.token.format(code)))


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool, target: bool = False
) -> list[list[int]]:
    """Tokens of each text; with ``target`` from Marian's target model (other families have one for both sides)."""
    if not len(texts):
        return []  # several tokenizers fail on no texts
    side = "text_target" if target and hasattr(tokenizer, "spm_target") else "text"
    call: Any = tokenizer
    # verbose: a text over the checkpoint's limit is the caller's to count and report
    return call(**{side: list(texts)}, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]


# --- unknown text ------------------------------------------------------------------------------------------------

_WORDS_AT_ONCE = 64


def unknown_share(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], side: Literal["source", "target"] = "source"
) -> tuple[float, str]:
    """Share of the characters of ``texts`` that ``tokenizer`` cannot represent, and the commonest of them.

    Only distinct words are tokenized, most of them many at a time. A character counts as unknown where it is
    unknown by itself; of a word that is unknown although its characters are not, all characters count.

    Returns:
        The share, 0 to 1, of characters other than white space (0 for no text or with a token for each byte), and
        up to ten characters, commonest first, separated by spaces.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(text.split())
    unknown = tokenizer.unk_token_id
    total = sum(count * len(word) for word, count in words.items())
    if unknown is None or not total:
        return 0.0, ""

    def with_unknown(pieces: list[str]) -> list[str]:
        tokens = _tokenize(tokenizer, pieces, special=False, target=side == "target")
        return [piece for piece, ids in zip(pieces, tokens, strict=True) if unknown in ids]

    distinct = list(words)
    groups = [distinct[i : i + _WORDS_AT_ONCE] for i in range(0, len(distinct), _WORDS_AT_ONCE)]
    joined = {" ".join(group): group for group in groups}
    suspects = with_unknown([word for text in with_unknown(list(joined)) for word in joined[text]])
    characters = set(with_unknown(sorted({character for word in suspects for character in word})))
    lost: Counter[str] = Counter()
    for word in suspects:
        for character in [c for c in word if c in characters] or word:
            lost[character] += words[word]
    return lost.total() / total, " ".join(character for character, _ in lost.most_common(10))


# --- generation settings -----------------------------------------------------------------------------------------


def prepare_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    convention: Convention,
    target_lang: str | None,
    beams: int = 4,
    length_penalty: float = 1.0,
    max_length: int | None = None,
    source_lang: str | None = None,
) -> None:
    """Make the model's generation settings right, complete and fit to be saved, before anything is trained.

    Settings of generation move from ``model.config`` to ``model.generation_config``, where transformers 5 wants them.
    Beam search replaces sampling. Start, end, padding and forced first token are set in both, so that training and
    ``generate`` of stock transformers agree. ``tokenizer.src_lang`` and ``tgt_lang``, where the family has them, are
    set to the run's languages and stay so. What else the checkpoint says (``bad_words_ids``, ``no_repeat_ngram_size``,
    ``forced_eos_token_id``, ...) is kept.

    Args:
        target_lang: in the checkpoint's form; None or "" where examples have several (then the caller forces each).
        beams: of beam search, 1 for greedy.
        length_penalty: exponent of the length that scores of beams are divided by; means nothing at one beam.
        max_length: most tokens of a translation under stock ``generate``, at most the checkpoint's positions; by
            default its own limit, and where it has none, its positions (T5: 512).
        source_lang: in the checkpoint's form, for the saved tokenizer.

    Raises:
        InputError: what ``save_pretrained`` would refuse, by the name of the field.
    """
    config, generation = model.config, model.generation_config
    _move_generation_fields(config, generation)

    generation.num_beams = beams
    generation.num_return_sequences = 1
    generation.do_sample = False
    idle = [*_SAMPLING, *_OUTPUTS, *(_BEAMS if beams == 1 else ())]
    for name in idle:
        if hasattr(generation, name):
            setattr(generation, name, None)
    if beams > 1:
        generation.length_penalty = length_penalty

    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = generation.decoder_start_token_id
    if start is None:
        start = tokenizer.pad_token_id if convention.start == "pad" else tokenizer.eos_token_id
    for settings in (config, generation):
        settings.decoder_start_token_id = start
        settings.pad_token_id = tokenizer.pad_token_id
        settings.eos_token_id = tokenizer.eos_token_id
    if convention.forces_bos:
        generation.forced_bos_token_id = forced_bos(convention, tokenizer, target_lang) if target_lang else None
        if source_lang:
            tokenizer.src_lang = source_lang
        if target_lang:
            tokenizer.tgt_lang = target_lang

    positions = getattr(config, "max_position_embeddings", None)
    if max_length is not None:
        generation.max_length, generation.max_new_tokens = max_length, None
    elif generation.max_length in (None, 20) and generation.max_new_tokens is None:
        generation.max_length = positions or _LENGTH_WITHOUT_POSITIONS  # transformers' 20 would cut most sentences
    if generation.max_new_tokens is not None:
        generation.max_length = None  # transformers would warn of both at each call, and heed the other
    if positions and generation.max_length:
        generation.max_length = min(generation.max_length, positions)
    _check_that_it_saves(model)


def _move_generation_fields(config: PretrainedConfig, generation: Any) -> None:
    """What ``config`` sets beside its own declared fields goes to ``generation``, unless it is set there."""
    declared = {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    names = {name for name in vars(generation) if not name.startswith("_")} - _CONFIG_KEEPS - declared
    for name in sorted(names & set(vars(config))):
        value = getattr(config, name)
        if value is not None and getattr(generation, name) is None:
            setattr(generation, name, value)
        delattr(config, name)


def _check_that_it_saves(model: PreTrainedModel) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in (("config.json", model.config), ("generation_config.json", model.generation_config)):
            try:
                if settings is model.generation_config:
                    settings.validate(strict=True)
                settings.save_pretrained(folder)
            except (ValueError, TypeError, AttributeError) as error:
                text = " ".join(str(error).split())
                field = re.search(r"`(\w+)`|'(\w+)':", text)
                what = f"{field[1] or field[2]} in " if field else ""
                raise InputError(
                    f"--model.checkpoint: {what}{name} keeps the model from being saved: correct it there before "
                    f"training. transformers said: {text[:300]}"
                ) from None
