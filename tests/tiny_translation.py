"""Tiny translation checkpoints with random weights and real tokenizers, one for each family that the package knows.

Special ids, decoder start and generation settings are those of the published checkpoints of each family
(opus-mt-en-de, opus-mt-en-ROMANCE, t5-small, mt5-small, mbart-large-50-many-to-many-mmt, m2m100_418M,
nllb-200-distilled-600M); only sizes differ. A checkpoint takes a second or two, so fixtures should have session scope.
"""

import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

FAMILIES = ("marian", "marian-multi", "t5", "mt5", "mbart-50", "m2m100", "nllb")
MARIAN_TARGETS = (">>deu<<", ">>fra<<")
# family -> languages as its own codes, English to German
CODES = {
    "marian": ("en", "de"),
    "marian-multi": ("en", ">>deu<<"),
    "t5": ("English", "German"),
    "mt5": ("en", "de"),
    "mbart-50": ("en_XX", "de_DE"),
    "m2m100": ("en", "de"),
    "nllb": ("eng_Latn", "deu_Latn"),
}

_TOOLS = (("hammer", "Hammer"), ("saw", "Säge"), ("drill", "Bohrer"), ("file", "Feile"), ("vice", "Schraubstock"))
_FOOD = (("soup", "Suppe"), ("bread", "Brot"), ("onion", "Zwiebel"), ("butter", "Butter"), ("kettle", "Kessel"))
_STATES = (("hot", "heiß"), ("cold", "kalt"), ("heavy", "schwer"), ("ready", "fertig"), ("broken", "kaputt"))
_ARTICLES = {"Hammer": "Der", "Bohrer": "Der", "Schraubstock": "Der", "Kessel": "Der", "Brot": "Das"}

# English, German; 50 of the form "The soup is hot." and some longer ones
PAIRS = (
    *(
        (f"The {thing} is {state}.", f"{_ARTICLES.get(ding, 'Die')} {ding} ist {zustand}.")
        for (thing, ding), (state, zustand) in itertools.product(_TOOLS + _FOOD, _STATES)
    ),
    ("Put the kettle on the table, please!", "Stell bitte den Kessel auf den Tisch!"),
    ("Where did you leave the old saw?", "Wo hast du die alte Säge gelassen?"),
    ("We need 12 screws and 3 boards.", "Wir brauchen 12 Schrauben und 3 Bretter."),
    ("Do not touch the blade while it turns.", "Berühre das Blatt nicht, während es sich dreht."),
    ("Cut the onion into small pieces and fry it in butter.", "Schneide die Zwiebel klein und brate sie in Butter an."),
    ("My grandmother always baked two loaves at once.", "Meine Großmutter hat immer zwei Brote zugleich gebacken."),
    ('He said: "The drill is too quick for this job".', "Er sagte: „Der Bohrer ist zu schnell für diese Arbeit“."),
    ("Let the dough rest for 45 minutes at 20 degrees.", "Lass den Teig 45 Minuten bei 20 Grad ruhen."),
)
_FRENCH = (
    "La soupe est chaude et le pain est prêt.",
    "Où est la vieille scie ? Elle est cassée.",
    "Nous avons besoin de 12 vis et de 3 planches, s'il te plaît.",
    "Ma grand-mère a toujours cuit deux pains à la fois.",
)

_BODY = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 128,
    "dropout": 0.1,
}
_T5_BODY = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
_FAIRSEQ_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def make_translation_checkpoint(family: str, folder: Path, seed: int = 0, scale: float = 0.3) -> Path:
    """Save a random model of ``family`` (one of ``FAMILIES``) with its tokenizer; returns ``folder``.

    ``scale`` is the standard deviation of the weights, larger than usual so that outputs depend visibly on inputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _make_tokenizer(family)
    config, generation = _settings(family, tokenizer)
    torch.manual_seed(seed)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    pad = config.pad_token_id
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.normal_(0, scale)
        if family not in ("t5", "mt5"):  # their embeddings of padding are trained like any other
            model.get_input_embeddings().weight[pad].zero_()
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=pad,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        **generation,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _make_tokenizer(family: str) -> Any:
    english, german = zip(*PAIRS, strict=True)
    both = (*english, *german, *_FRENCH)
    if family == "marian":
        return _make_marian_tokenizer(english, german, ())
    if family == "marian-multi":
        return _make_marian_tokenizer(english, (*german, *_FRENCH), MARIAN_TARGETS)
    if family in ("t5", "mt5"):  # <pad> 0, </s> 1, <unk> 2
        pieces = _train_pieces(both, "unigram", 400, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        extra = [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)] if family == "t5" else []
        return transformers.T5Tokenizer(vocab=pieces + extra, extra_ids=len(extra), model_max_length=512)
    if family == "mbart-50":
        return transformers.MBart50Tokenizer(vocab=_train_pieces(both, "unigram", 400), model_max_length=1024)
    if family == "nllb":
        pieces = _fairseq_order(_train_pieces(both, "bpe", 400))
        return transformers.NllbTokenizer(vocab=pieces, merges=_merges(pieces), model_max_length=1024)
    if family == "m2m100":
        with tempfile.TemporaryDirectory() as name:
            pieces = _fairseq_order(_train_pieces(both, "bpe", 400, Path(name, "sentencepiece.bpe.model")))
            Path(name, "vocab.json").write_text(json.dumps(pieces))
            codes = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
            return transformers.M2M100Tokenizer.from_pretrained(
                name, model_max_length=1024, additional_special_tokens=codes
            )
    raise KeyError(family)


def _make_marian_tokenizer(source: tuple[str, ...], target: tuple[str, ...], targets: tuple[str, ...]) -> Any:
    """Two SentencePiece models and one vocabulary: </s> 0, <unk> 1, targets, the pieces of both, <pad> last."""
    with tempfile.TemporaryDirectory() as name:
        trained = _train_pieces(source, "unigram", 200, Path(name, "source.spm"))
        trained += _train_pieces(target, "unigram", 250, Path(name, "target.spm"))
        pieces = [piece for piece, _ in trained if piece not in ("<unk>", "<s>", "</s>")]
        vocabulary = ["</s>", "<unk>", *targets, *dict.fromkeys(pieces), "<pad>"]
        Path(name, "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
        return transformers.MarianTokenizer.from_pretrained(
            name, source_lang="en", target_lang="mul" if targets else "de", model_max_length=512
        )


def _train_pieces(
    sentences: tuple[str, ...], kind: str, size: int, path: Path | None = None, **ids: int
) -> list[tuple[str, float]]:
    """Pieces and scores of a SentencePiece model, which is also written to ``path`` if given."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **ids,
    )
    if path:
        path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def _fairseq_order(pieces: list[tuple[str, float]]) -> dict[str, int]:
    """<s>, <pad>, </s>, <unk>, then the pieces after SentencePiece's own <unk>, <s>, </s>."""
    return {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *(name for name, _ in pieces[3:])])}


def _merges(pieces: dict[str, int]) -> list[tuple[str, str]]:
    """Merge rules of a BPE vocabulary whose order is the order of merging."""
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        if piece not in ("<s>", "<pad>", "</s>", "<unk>")
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _settings(family: str, tokenizer: Any) -> tuple[transformers.PretrainedConfig, dict[str, Any]]:
    """Config and generation settings as the published checkpoint has them, sizes apart."""
    size = len(tokenizer)
    if family.startswith("marian"):
        pad = tokenizer.pad_token_id
        config = transformers.MarianConfig(
            vocab_size=size,
            pad_token_id=pad,
            bos_token_id=0,
            eos_token_id=0,
            forced_eos_token_id=0,
            decoder_start_token_id=pad,
            activation_function="swish",
            scale_embedding=True,
            **_BODY,
        )
        return config, {"bad_words_ids": [[pad]], "num_beams": 6, "max_length": 128, "forced_eos_token_id": 0}
    if family == "t5":
        config = transformers.T5Config(
            vocab_size=size, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, n_positions=512, **_T5_BODY
        )
        return config, {}
    if family == "mt5":
        config = transformers.MT5Config(
            vocab_size=size,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
            feed_forward_proj="gated-gelu",
            **_T5_BODY,
        )
        return config, {}
    if family == "mbart-50":
        config = transformers.MBartConfig(
            vocab_size=size,
            forced_eos_token_id=2,
            scale_embedding=True,
            tokenizer_class="MBart50Tokenizer",
            **_FAIRSEQ_IDS,
            **_BODY,
        )
        return config, {"num_beams": 5, "max_length": 100, "early_stopping": True, "forced_eos_token_id": 2}
    # after the languages m2m100 has 8 made-up words, nllb two rows that no token uses
    extra = {"tokenizer_class": "NllbTokenizer"} if family == "nllb" else {}
    config = transformers.M2M100Config(
        vocab_size=size + (2 if family == "nllb" else 8), scale_embedding=True, **_FAIRSEQ_IDS, **_BODY, **extra
    )
    return config, {"max_length": 100} if family == "nllb" else {
        "num_beams": 5,
        "max_length": 100,
        "early_stopping": True,
    }
