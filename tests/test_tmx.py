"""Translation memories: units, languages and inline codes; no entity is ever expanded, and no file is held whole."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.sources import tmx
from hf_transfer.sources.base import Part
from hf_transfer.sources.parallel import read_pairs
from hf_transfer.sources.tmx import matching_languages, read_languages, read_tmx, read_units


def memory(*units: str, before: str = '<?xml version="1.0"?>\n') -> str:
    return f'{before}<tmx version="1.4"><header srclang="en"/><body>{"".join(units)}</body></tmx>'


def unit(*variants: tuple[str, str], attributes: str = "", inside: str = "") -> str:
    inner = "".join(f'<tuv xml:lang="{language}"><seg>{text}</seg></tuv>' for language, text in variants)
    return f"<tu{attributes}>{inside}{inner}</tu>"


def save(folder: Path, content: str | bytes, name: str = "a.tmx") -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def read(
    folder: Path, content: str | bytes, source: str = "en", target: str = "de", columns: Sequence[str] = ()
) -> Part:
    return read_tmx(save(folder, content), "a.tmx", source, target, columns)


def refused(folder: Path, content: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, content)
    return str(caught.value)


def pairs_of(part: Part) -> list[tuple[str, str]]:
    return list(zip(part.table["source"].to_pylist(), part.table["target"].to_pylist(), strict=True))


HELLO = unit(("en", "Hello"), ("de", "Hallo"))


# --- contents


def test_units_keep_their_order_and_their_number_in_the_file(tmp_path):
    part = read(tmp_path, memory(HELLO, unit(("en", "alone")), unit(("de", "zwei"), ("en", "two"))))
    assert pairs_of(part) == [("Hello", "Hallo"), ("two", "zwei")]
    assert part.row_names.to_pylist() == ["tu 1", "tu 3"]
    assert part.notes == ("a.tmx: left out 1 unit without en or de (a.tmx:tu 2).",)


@pytest.mark.parametrize("name", ["bpt", "ept", "ph", "it", "ut"])
def test_codes_of_the_original_format_go_with_all_that_is_inside_them(tmp_path, name):
    text = f'Click <{name} i="1">&lt;b title="<sub>a <hi>hint</hi></sub>"&gt;</{name}>here <{name}/>now'
    assert pairs_of(read(tmp_path, memory(unit(("en", text), ("de", "x"))))) == [("Click here now", "x")]


def test_marked_text_stays_and_may_hold_codes(tmp_path):
    text = "A <hi>very <bpt>[</bpt>big<ept>]</ept> <hi>old</hi></hi> house"
    assert pairs_of(read(tmp_path, memory(unit(("en", text), ("de", "x"))))) == [("A very big old house", "x")]


def test_characters_of_xml_are_resolved_and_line_breaks_become_spaces(tmp_path):
    text = "\n   a &lt; b &amp; &#xe9;\r\n   &#8364; <![CDATA[<c>]]>  "
    assert pairs_of(read(tmp_path, memory(unit(("en", text), ("de", "x"))))) == [("a < b & é € <c>", "x")]


def test_notes_and_properties_are_no_text_but_can_be_columns(tmp_path):
    inside = '<note>unsure</note><prop type="domain">law</prop><prop type="x">y</prop>'
    content = memory(unit(("en", "a"), ("de", "b"), attributes=' tuid="7"', inside=inside))
    part = read(tmp_path, content, columns=("tuid", "domain", "no"))
    assert part.table.to_pylist() == [{"source": "a", "target": "b", "tuid": "7", "domain": "law"}]
    assert part.columns == ("tuid", "domain", "x")
    table = read_pairs(DataConfig(source=str(tmp_path / "a.tmx"), source_lang="en", target_lang="de", id_column="tuid"))
    assert table.rows[0]["example_id"] == "7" and table.rows[0]["domain"] == "law"
    assert table.rows[0]["place"] == "a.tmx:tu 1"


def test_empty_segments_are_kept_for_the_checks_to_count(tmp_path):
    assert pairs_of(read(tmp_path, memory(unit(("en", ""), ("de", "x")), HELLO)))[0] == ("", "x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "cp1252"])
def test_encodings_that_the_file_names_are_read(tmp_path, encoding):
    named = encoding.removesuffix("-sig")
    content = memory(unit(("en", "café"), ("de", "Köln")), before=f'<?xml version="1.0" encoding="{named}"?>')
    assert pairs_of(read(tmp_path, content.encode(encoding))) == [("café", "Köln")]


def test_units_are_whole_wherever_the_blocks_are_cut(tmp_path, monkeypatch):
    content = memory(*(unit(("en", f"é{i} &amp; ü"), ("de", f"ß{i}")) for i in range(20)))
    monkeypatch.setattr(tmx, "BYTES_PER_READ", 7)
    monkeypatch.setattr(tmx, "ROWS_PER_CHUNK", 3)
    assert pairs_of(read(tmp_path, content)) == [(f"é{i} & ü", f"ß{i}") for i in range(20)]


def test_a_packed_memory_is_known_by_its_first_bytes(tmp_path):
    assert pairs_of(read(tmp_path, gzip.compress(memory(HELLO).encode()))) == [("Hello", "Hallo")]


# --- languages


@pytest.mark.parametrize(
    ("wanted", "codes", "found"),
    [
        ("en", ["de", "en-US", "EN", "en_GB"], ["EN", "en-US", "en_GB"]),
        ("en-US", ["en-GB", "en", "en_us"], ["en_us", "en"]),
        ("zh-Hant", ["zh-Hant-TW", "zh-Hans"], ["zh-Hant-TW"]),
        ("en", ["eng", "enm", ""], []),
        ("de_DE", ["de"], ["de"]),
    ],
)
def test_languages_match_with_or_without_a_region(wanted, codes, found):
    assert matching_languages(wanted, codes) == found


def test_both_attributes_for_the_language_are_read(tmp_path):
    content = memory('<tu><tuv lang="EN-US"><seg>a</seg></tuv><tuv xml:lang="de-AT"><seg>b</seg></tuv></tu>')
    assert pairs_of(read(tmp_path, content)) == [("a", "b")]
    assert read_languages(tmp_path / "a.tmx", "a.tmx") == {"EN-US": 1, "de-AT": 1}


def test_of_several_variants_the_very_code_is_used_else_the_first_and_they_are_counted(tmp_path):
    content = memory(
        HELLO,
        unit(("en-GB", "lorry"), ("en-US", "truck"), ("de", "LKW")),
        unit(("en-GB", "flat"), ("en", "apartment"), ("de", "Wohnung")),
        unit(("en", "one"), ("en", "two"), ("de", "eins")),
    )
    part = read(tmp_path, content)
    assert [source for source, _ in pairs_of(part)] == ["Hello", "lorry", "apartment", "one"]
    note = "a.tmx: 3 units with several variants of a language (a.tmx:tu 2, a.tmx:tu 3, a.tmx:tu 4); the first is used."
    assert part.notes == (note,)


def test_one_variant_is_never_both_sides(tmp_path):
    part = read(tmp_path, memory(unit(("pt-BR", "a")), unit(("pt", "b"), ("pt-BR", "c"))), "pt", "pt-BR")
    assert pairs_of(part) == [("b", "c")]


# --- refusals


LAUGHS = '<!DOCTYPE tmx [<!ENTITY lol0 "lol">{}]>'.format(
    "".join(f'<!ENTITY lol{i} "{f"&lol{i - 1};" * 10}">' for i in range(1, 10))
)


@pytest.mark.parametrize(
    ("declared", "inside", "name"),
    [
        (LAUGHS, "&lol9;", "lol0"),
        ('<!DOCTYPE tmx [<!ENTITY secret SYSTEM "secret.txt">]>', "&secret;", "secret"),
        ('<!DOCTYPE tmx [<!ENTITY % outer SYSTEM "secret.txt"> %outer;]>', "x", "outer"),
        ('<!DOCTYPE tmx SYSTEM "tmx14.dtd" [<!ENTITY harmless "x">]>', "x", "harmless"),
    ],
)
def test_a_declared_entity_is_refused_and_never_expanded(tmp_path, declared, inside, name):
    (tmp_path / "secret.txt").write_text("top secret")
    declared = declared.replace("secret.txt", str(tmp_path / "secret.txt"))
    content = memory(unit(("en", inside), ("de", "x")), before=f"<?xml version='1.0'?>\n{declared}")
    message = refused(tmp_path, content)
    assert f"a.tmx declares the entity {name!r} (line 2)" in message and "never expanded" in message
    assert "top secret" not in message


def test_a_dtd_that_is_only_named_is_not_opened(tmp_path):
    named = '<!DOCTYPE tmx SYSTEM "{}">'
    (tmp_path / "evil.dtd").write_text('<!ENTITY e "expanded">')
    content = memory(HELLO, before=named.format("http://127.0.0.1:9/tmx14.dtd"))
    assert pairs_of(read(tmp_path, content)) == [("Hello", "Hallo")]
    content = memory(unit(("en", "a &e; b"), ("de", "x")), before="\n" + named.format(tmp_path / "evil.dtd"))
    assert "refers to the entity 'e' (line 2), which only another file could explain" in refused(tmp_path, content)


def test_an_internal_subset_without_entities_is_read(tmp_path):
    before = "<!DOCTYPE tmx [<!ELEMENT tmx ANY><!ATTLIST tu tuid CDATA #IMPLIED>]>"
    assert pairs_of(read(tmp_path, memory(HELLO, before=before))) == [("Hello", "Hallo")]


def test_an_unknown_reference_and_broken_xml_are_refused_with_line_and_column(tmp_path):
    content = memory(unit(("en", "a &nbsp; b"), ("de", "x")), before="\n")
    column = content.index("&nbsp;")  # counted from 1 in line 2: the line feed before it makes up for the 1
    assert f"not well-formed XML (line 2, column {column}: undefined entity)" in refused(tmp_path, content)
    message = refused(tmp_path, memory(HELLO)[:-10])
    assert "a.tmx is not well-formed XML (line 2" in message and "mend it there" in message
    assert "no element found" in refused(tmp_path, "")
    latin = memory(unit(("en", "café"), ("de", "x"))).encode("latin-1")
    assert "invalid token" in refused(tmp_path, latin) and "UTF-8" in refused(tmp_path, latin)


def test_what_is_no_memory_is_refused(tmp_path):
    assert "is no TMX: its first element is <html>" in refused(tmp_path, "<html><body/></html>")
    assert "holds no translation unit" in refused(tmp_path, memory())
    assert "cannot be unpacked" in refused(tmp_path, gzip.compress(memory(HELLO).encode())[:-12])
    unknown = memory(HELLO, before='<?xml version="1.0" encoding="klingon"?>')
    assert "cannot be decoded (unknown encoding: klingon): save it as UTF-8" in refused(tmp_path, unknown)


def test_a_memory_without_the_languages_is_refused_with_those_it_has(tmp_path):
    message = refused(tmp_path, memory(unit(("fr", "a"), ("de-AT", "b")), unit(("fr", "c"), ("it", "d"))))
    assert "a.tmx: no unit has both en and de; languages are de-AT (1), fr (2), it (1)." in message
    assert "--data.source_lang and --data.target_lang" in message


def test_a_segment_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tmx, "LONGEST_SEGMENT", 1000)
    message = refused(tmp_path, memory(HELLO, unit(("en", "x" * 1001), ("de", "x"))))
    assert "a.tmx:tu 2 holds a segment of more than 1,000 characters (line 2)" in message


def test_reading_a_large_memory_takes_no_more_room_than_a_small_one(tmp_path):
    def most_bytes(unit_count: int) -> int:
        units = (unit(("en", f"word {i} " * 20), ("de", "Wort " * 20)) for i in range(unit_count))
        path = save(tmp_path, memory(*units))
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_units(path, "a.tmx")) == unit_count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most_bytes(10)  # what is kept from the first call on
    # 20,000 units are 7 MB of XML; blocks of 64 KiB hold 200 units
    assert most_bytes(20_000) < 1.5 * most_bytes(1_000)
