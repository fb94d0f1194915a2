"""Checks of pairs: each doubt is counted with its lines, nothing sound is doubted, and test is never thinned out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.config import DataConfig
from hf_transfer.records import DomainTable
from hf_transfer.sources import pairs
from hf_transfer.sources.base import arrow_table
from hf_transfer.sources.pairs import check_pairs, find_doubtful, is_mojibake
from hf_transfer.sources.parallel import read_pairs

SOUND = [(f"This is sentence {i} of many.", f"Das ist Satz {i} von vielen.") for i in range(20)]


def write(path: Path, rows: list[tuple[str, str]], **more: object) -> Path:
    """JSON lines; a list in ``more`` gives a value per row."""
    lines = []
    for i, (source, target) in enumerate(rows):
        extra = {name: value[i] if isinstance(value, list) else value for name, value in more.items()}
        lines.append(json.dumps({"source": source, "target": target, **extra}) + "\n")
    path.write_text("".join(lines))
    return path


def check(path: Path, **fields) -> tuple[DomainTable, list[str], dict[str, int]]:
    data = DataConfig(source=str(path), **fields)
    return check_pairs(read_pairs(data), data)


def doubts(tmp_path: Path, *rows: tuple[str, str]) -> dict[str, list[int]]:
    """Which of ``rows``, put after sound ones, are doubtful, by check."""
    table, _, counts = check(write(tmp_path / "a.jsonl", [*SOUND, *rows]))
    found = find_doubtful(arrow_table(table.rows))
    assert {name: int(where.sum()) for name, where in found.items()} == {name: counts[name] for name in found}
    return {name: [int(i) - len(SOUND) for i in np.flatnonzero(where)] for name, where in found.items() if where.any()}


def test_sound_pairs_are_returned_as_they_are(tmp_path):
    data = DataConfig(source=str(write(tmp_path / "a.jsonl", SOUND)), drop_suspicious=True)
    table = read_pairs(data)
    checked, problems, counts = check_pairs(table, data)
    assert checked is table and problems == [] and set(counts.values()) == {0}
    assert list(counts) == ["empty", *pairs.CHECKS, "dropped"]


def test_pairs_with_an_empty_side_are_dropped_with_their_lines(tmp_path):
    rows = [*SOUND[:2], ("a", ""), (" \t", "b"), SOUND[2], ("", "")]
    for side, language in enumerate(("en", "de")):
        (tmp_path / f"train.{language}").write_text("".join(row[side] + "\n" for row in rows))
    table, problems, counts = check(tmp_path, source_lang="en", target_lang="de")
    assert list(table.rows["place"]) == ["train.en:1", "train.en:2", "train.en:5"] and problems == []
    assert table.notes == ("dropped 3 pairs with an empty side (train.en:3, train.en:4, train.en:6).",)
    assert counts["empty"] == 3
    for side, language in enumerate(("en", "de")):
        (tmp_path / f"train.{language}").write_text("".join(row[side] + "\n" for row in SOUND[:3]))
    assert table.fingerprint == check(tmp_path, source_lang="en", target_lang="de")[0].fingerprint


def test_each_doubt_is_a_note_with_its_first_three_lines(tmp_path):
    control, misread = ("x\x00 is a sentence", "x ist ein Satz"), ("It is for him.", "Es ist fÃ¼r ihn.")
    rows = [*SOUND, *[("OK", "OK")] * 5, control, misread]
    table, problems, counts = check(write(tmp_path / "a.jsonl", rows))
    assert problems == [] and table.rows.num_rows == len(rows)
    assert table.notes == (
        "5 pairs whose sides are identical (a.jsonl:21, a.jsonl:22, a.jsonl:23).",
        "1 pair with control characters (a.jsonl:26).",
        "1 pair in a broken encoding (mojibake) (a.jsonl:27).",
        "4 pairs that stand earlier in the same split (a.jsonl:22, a.jsonl:23, a.jsonl:24).",
        "7 pairs of those would be dropped from train and validation with --data.drop_suspicious true.",
    )
    assert counts == dict(empty=0, identical=5, length_ratio=0, long=0, control=1, mojibake=1, duplicate=4, dropped=0)


def test_a_table_that_gets_a_note_keeps_the_id_of_its_data_set(tmp_path):
    data = DataConfig(source=str(write(tmp_path / "a.jsonl", [*SOUND, SOUND[0]])))
    table, _, counts = check_pairs(replace(read_pairs(data), hub_id="owner/pairs"), data)
    assert counts["duplicate"] == 1 and table.notes
    assert table.hub_id == "owner/pairs"


def test_identical_sides_without_a_letter_are_no_mistake(tmp_path):
    rows = [("Berlin", " Berlin "), ("3.14", "3.14"), ("– 5 %", "– 5 %"), ("Straße", "STRASSE")]
    assert doubts(tmp_path, *rows) == {"identical": [0]}


def test_a_length_ratio_is_odd_by_the_corpus_own_median(tmp_path):
    # a language that needs three times the room: what is long there is usual, what is as short as the source is not
    usual = [("ab" * (5 + i % 30), "abcdef" * (5 + i % 30)) for i in range(200)]
    path = write(tmp_path / "a.jsonl", [*usual, ("ab" * 20, "xyzzyy" * 20), ("ab" * 20 + "c", "xy" * 20)])
    table, _, counts = check(path)
    assert counts["length_ratio"] == 1
    assert "1 pair whose lengths are 2 times as uneven as usual, or more (a.jsonl:202)." in table.notes


def test_the_length_ratio_is_the_formula_of_the_docstring(tmp_path):
    # 21 equal pairs fix the median at log 1; a target of n characters is odd from (n + 20) / (40 + 20) >= 2 on
    same = [("x" * 39 + chr(97 + i), "y" * 39 + chr(97 + i)) for i in range(21)]
    path = write(tmp_path / "a.jsonl", [*same, *(("x" * 40, "z" * length) for length in (99, 100, 10, 11))])
    assert list(np.flatnonzero(find_doubtful(arrow_table(check(path)[0].rows))["length_ratio"])) == [22, 23]


def test_short_sentences_may_differ_in_length(tmp_path):
    assert doubts(tmp_path, ("Hi.", "Guten Tag!"), ("No.", "Nein, danke."), ("Go on.", "Mach weiter!")) == {}


def test_every_two_languages_have_their_own_usual_ratio(tmp_path):
    rows = [("ab" * (10 + i % 7), ("abcdefgh" if i % 4 == 0 else "ab") * (10 + i % 7)) for i in range(100)]
    codes = ["th" if i % 4 == 0 else "de" for i in range(100)]
    path = write(tmp_path / "a.jsonl", rows, to=codes)
    assert check(path, target_lang_column="to", source_lang="en")[2]["length_ratio"] == 0
    # (4 n + 20) / (n + 20) is 2.5 at n = 20 and grows with n: without the languages a quarter is odd
    assert check(path)[2]["length_ratio"] == 25


def test_more_than_a_thousand_characters_are_long(tmp_path):
    lengths = [(1000, 1000), (1000, 1001), (1001, 1000)]
    assert doubts(tmp_path, *(("x" * source, "y" * target) for source, target in lengths)) == {"long": [1, 2]}
    assert doubts(tmp_path, ("x" * 1000 + "  ", "\ty" * 500)) == {}


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x0b", "\x1b", "\x7f", "\x80", "\x85", "\x9f"])
def test_control_characters_are_doubtful_on_either_side(tmp_path, character):
    mixed = f"one{character}two"
    assert doubts(tmp_path, (mixed, "eins zwei"), ("three four", mixed))["control"] == [0, 1]


@pytest.mark.parametrize("character", ["\t", "\n", "\r", "\u200d", "\u200c", "\u200e", "\xad", "\xa0", "\u2028"])
def test_white_space_joiners_and_marks_of_direction_are_not(tmp_path, character):
    assert doubts(tmp_path, (f"one{character}two", f"eins{character}zwei")) == {}


MISREAD = [
    "für",
    "„so“",
    "Größe",
    "naïve café",
    "it’s",
    "5 €",
    "a — b",
    "…",
    "Łódź",
    "Plzeň",
    "привет",
    "日本語",
    "שלום",
]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", MISREAD)
def test_utf_8_that_was_read_as_another_encoding_is_found(text, encoding):
    # Windows-1252 leaves five bytes undefined; programs that meet them fall back to the control characters of Latin-1
    broken = "".join(
        bytes([byte]).decode(encoding) if encoding == "latin-1" or byte not in b"\x81\x8d\x8f\x90\x9d" else chr(byte)
        for byte in text.encode("utf-8")
    )
    assert is_mojibake(broken) and not is_mojibake(text)
    again = "".join(bytes([byte]).decode("latin-1") for byte in broken.encode("utf-8"))
    assert is_mojibake(again)


@pytest.mark.parametrize(
    "text",
    [
        "„Das macht Spaß“, sagte er – „große Mühe“…",
        "»5 Å« und »Å«",
        "ÂME, NÃO, Île, Français à l’été, « œuvre »",
        "À Paris… Ça coûte 5 €",
        "AÇÃO e CORAÇÃO. Não!",
        "ÐÞ þorn, Ísland, Það",
        "Ñandú ¿qué? ¡olé!",
        "ÄÖÜ äöü ß – ÅÄÖ åäö ÆØÅ",
        "Größe: 5 × 3 µm ± 2 °C",
        "Žluťoučký kůň, Łódź, Škoda, İstanbul",
        "«Ñ» “É” ‘Ü’",
    ],
)
def test_sound_accents_and_quotes_are_no_mojibake(text):
    assert not is_mojibake(text)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_ascii_is_never_mojibake_and_the_replacement_character_always(text):
    assert not is_mojibake(text) and is_mojibake(text + "\ufffd")


def test_mojibake_is_found_in_the_table_as_by_itself(tmp_path):
    rows = [("It is for him.", "Es ist fÃ¼r ihn."), ("Much fun", "„Viel Spaß“"), ("a \ufffd b", "a b c"), ("No", "NÃO")]
    assert doubts(tmp_path, *rows) == {"mojibake": [0, 2]}


def test_a_pair_that_stands_earlier_in_the_same_split_is_a_duplicate(tmp_path):
    a, b = SOUND[:2]
    rows = [a, b, a, (a[0], b[1]), (f" {a[0]}", a[1]), a, a]
    path = write(tmp_path / "a.jsonl", rows, split=["train", "train", "train", "train", "train", "test", "test"])
    table, problems, counts = check(path)
    assert problems == [] and counts["duplicate"] == 3
    assert "3 pairs that stand earlier in the same split (a.jsonl:3, a.jsonl:5, a.jsonl:7)." in table.notes


def test_doubtful_pairs_are_dropped_from_all_but_test_where_it_is_asked_for(tmp_path):
    odd = ("OK", "OK")
    splits = ["train", "validation", "test", ""]
    path = write(tmp_path / "a.jsonl", [*SOUND[:4], odd, odd, odd, odd], split=splits * 2)
    table, problems, counts = check(path, drop_suspicious=True)
    assert problems == [] and counts["dropped"] == 3 and counts["identical"] == 4
    assert [place.split(":")[1] for place in table.rows["place"]] == ["1", "2", "3", "4", "7"]
    assert table.notes[-1] == "dropped 3 pairs of those from train and validation, and kept 1 pair of test."


def test_without_a_doubt_outside_test_the_flag_is_not_named(tmp_path):
    table, _, counts = check(write(tmp_path / "a.jsonl", [*SOUND, ("OK", "OK")], split=["train"] * 20 + ["test"]))
    assert counts["identical"] == 1 and len(table.notes) == 1


def test_what_stops_a_run_is_listed_together(tmp_path):
    rows = [SOUND[0], SOUND[1], SOUND[2], ("", "x")]
    more = {"id": ["x", "x", "y", "x"], "genre": ["law", "law", "", ""], "to": ["de", "", "de", ""]}
    path = write(tmp_path / "a.jsonl", rows, **more)
    table, problems, _ = check(path, id_column="id", domain_column="genre", target_lang_column="to")
    assert len(problems) == 3
    assert "example id 'x' stands more than once (a.jsonl:1, a.jsonl:2)" in problems[0]
    assert "1 row with nothing in column 'genre' (a.jsonl:3)" in problems[1]
    assert "1 of 3 pairs without a target language in column 'to' (a.jsonl:2)" in problems[2]
    assert "--data.target_lang" in problems[2]
    assert list(table.rows["place"]) == ["a.jsonl:1", "a.jsonl:2"]


def test_no_pair_left_is_a_problem(tmp_path):
    _, problems, _ = check(write(tmp_path / "a.jsonl", [("a", ""), ("", "b")]))
    assert len(problems) == 1 and "a holds no pair to train on or to score" in problems[0]
    _, problems, _ = check(write(tmp_path / "b.jsonl", [("same", "same")]), drop_suspicious=True)
    assert "b holds no pair" in problems[0]


def test_a_language_may_be_missing_everywhere_but_not_here_and_there(tmp_path):
    assert check(write(tmp_path / "a.jsonl", SOUND))[1] == []
    folder = tmp_path / "mixed"
    folder.mkdir()
    write(folder / "ted.jsonl", SOUND[:2])
    (folder / "law.jsonl").write_text(json.dumps({"translation": {"en": "a law", "de": "ein Gesetz"}}))
    _, problems, _ = check(folder, source_lang="en")
    assert problems == [
        "2 of 3 pairs without a target language given (ted.jsonl:1, ted.jsonl:2): fill it in, or give "
        "--data.target_lang for those that lack it."
    ]
