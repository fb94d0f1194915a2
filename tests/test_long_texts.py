"""Long texts are cut where a reader would pause, and nothing is lost."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_transfer.errors import InputError
from hf_transfer.long_texts import split_long


def words(text: str) -> int:
    return len(text.split())


def characters_and_one(text: str) -> int:
    return len(text) + 1


def test_a_text_that_fits_comes_back_whole() -> None:
    assert split_long(" One. Two. ", words, 2) == ["One. Two."]
    assert split_long(" \n ", words, 2) == []


def test_cuts_fall_on_sentence_ends_and_pieces_are_packed() -> None:
    text = "One two. Three four! Five six? Seven … Eight nine ten."
    assert split_long(text, words, 4) == ["One two. Three four!", "Five six? Seven …", "Eight nine ten."]


@pytest.mark.parametrize(
    "sentence",
    [
        "Das ist z. B. ein Haus",
        "We met Dr. Miller there",
        "It costs 3.5 euros today",
        "Am 3. Mai kam er",
        "See e.g. the first page",
        "J. S. Bach wrote it",
        "They left at 5 p.m. and slept",
    ],
)
def test_abbreviations_initials_and_numbers_end_no_sentence(sentence: str) -> None:
    text = f"{sentence}. {sentence}."
    assert split_long(text, words, words(sentence) + 1) == [f"{sentence}."] * 2


def test_a_year_and_a_quotation_end_a_sentence() -> None:
    assert split_long("It was 1984. He left.", words, 3) == ["It was 1984.", "He left."]
    assert split_long("He said: “Go now.” She went.", words, 4) == ["He said: “Go now.”", "She went."]


def test_chinese_and_japanese_sentences_need_no_space() -> None:
    assert split_long("我来了。你在哪里？他走了！", len, 7) == ["我来了。", "你在哪里？", "他走了！"]
    assert split_long("彼は言った。「行こう。」それから", len, 12) == ["彼は言った。「行こう。」", "それから"]


def test_a_long_sentence_is_cut_at_clauses_then_at_spaces_then_anywhere() -> None:
    assert split_long("one two, three four; five – six seven", words, 4) == ["one two, three four;", "five – six seven"]
    assert split_long("one two three four five", words, 2) == ["one two", "three four", "five"]
    assert split_long("abcdefghij kl", len, 4) == ["abcd", "efgh", "ij", "kl"]


def test_the_rest_of_a_long_sentence_shares_a_piece_with_the_next() -> None:
    assert split_long("One two three four. Five.", words, 3) == ["One two three", "four. Five."]


def test_a_limit_without_room_for_a_character_is_refused() -> None:
    with pytest.raises(InputError, match=r"limit of 1 tokens leaves no room for 'a', which takes 2"):
        split_long("abc", characters_and_one, 1)


def bytes_of_pairs(text: str) -> int:
    """Not monotonous, as with real tokenizers: a longer text may have fewer tokens."""
    return len(re.findall(r"ab|..?", text)) + 1


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.sampled_from('ab AB.!?。,;:–-\n\t1"”)Dr é日'), max_size=80) | st.text(max_size=40),
    st.integers(min_value=2, max_value=12),
    st.sampled_from([characters_and_one, bytes_of_pairs]),
)
def test_nothing_is_lost_and_no_piece_is_over_the_limit(text: str, limit: int, count) -> None:  # type: ignore[no-untyped-def]
    pieces = split_long(text, count, limit)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() and count(piece) <= limit for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=30), st.integers(1, 9))
def test_words_stay_whole_where_they_fit(tokens: list[str], limit: int) -> None:
    pieces = split_long(" ".join(tokens), words, limit)
    assert " ".join(pieces).split() == tokens
    assert len(pieces) == -(-len(tokens) // limit)
