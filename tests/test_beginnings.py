"""The beginning of a text in place of the whole: the same ids and the same verdict on what was cut, or not used."""

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from hf_transfer import beginnings
from hf_transfer.beginnings import beginning_suffices, encode_beginnings


def wrapped(tokenizer, **named):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", **named
    )


def wordpiece(**named):
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abce", *(f"##{c}" for c in "abce"), "ab", "##ab", "!", "1", "##1"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrapped(tokenizer, **named)


def byte_level(**named):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *alphabet, "ab", "Ġa", "Ġab", "ĠĠ"]
    merges = [("a", "b"), ("Ġ", "a"), ("Ġ", "ab"), ("Ġ", "Ġ")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrapped(tokenizer, **named)


TOKENIZERS = {"wordpiece": wordpiece(), "byte-level": byte_level(), "word-level": make_tokenizer()}
texts = st.text(st.sampled_from("abc1!é ́\u00a0\t\n 'sΣK"), max_size=60) | st.text(max_size=60)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(texts, max_size=4), st.integers(3, 12))
@example(["a  b", "ab  ́ a a a a a", " a b c ab", "ab" * 40], 4)
def test_beginnings_give_the_ids_of_whole_texts(name, some, max_length):
    tokenizer = TOKENIZERS[name]
    assert beginning_suffices(tokenizer)
    # so that stops fall inside short texts, the first try has fewer letters than a user's would
    before, beginnings.LETTERS_PER_TOKEN = beginnings.LETTERS_PER_TOKEN, 1
    try:
        found, was_cut = encode_beginnings(tokenizer, some, max_length)
    finally:
        beginnings.LETTERS_PER_TOKEN = before
    wanted = tokenizer(some, truncation=True, max_length=max_length) if some else {}
    assert found == dict(wanted)
    assert was_cut == [len(tokenizer(text)["input_ids"]) > max_length for text in some]


def test_only_the_beginning_of_a_long_text_is_tokenised():
    tokenizer = wordpiece()
    seen = []

    class Watched:
        def __call__(self, some, **named):
            seen.extend(map(len, some))
            return tokenizer(some, **named)

    found, was_cut = encode_beginnings(Watched(), ["ab " * 10_000, "a"], 16)
    assert was_cut == [True, False] and [len(ids) for ids in found["input_ids"]] == [16, 3]
    assert max(seen) < 200


def test_a_tokenizer_that_looks_across_spaces_gets_whole_texts():
    across = byte_level()
    across.add_tokens(["a b"])
    assert not beginning_suffices(across)
    assert not beginning_suffices(wordpiece(truncation_side="left"))
    for name, part in (
        ("normalizer", normalizers.Replace("a", "b")),
        ("pre_tokenizer", pre_tokenizers.Metaspace()),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)),
    ):
        other = wordpiece()
        setattr(other.backend_tokenizer, name, part)
        assert not beginning_suffices(other), part
    drawn = byte_level()
    drawn.backend_tokenizer.model.dropout = 0.1
    assert not beginning_suffices(drawn)
    assert not beginning_suffices(object())
