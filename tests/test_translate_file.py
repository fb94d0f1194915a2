"""`hf-transfer translate` and the translator behind it: a line in, a line out; nothing half-written; clear refusals."""

import io
import json
import sys

import pytest
from tiny import make_checkpoint
from tiny_translation import PAIRS, make_translation_checkpoint
from transformers import AutoModelForSequenceClassification

from hf_transfer.errors import InputError
from hf_transfer.loading import load
from hf_transfer.translate_file import main
from hf_transfer.translating import Translator

LINES = [PAIRS[0][0], "", PAIRS[57][0], "  ", PAIRS[8][0], PAIRS[50][0]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_translation_checkpoint("marian", tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def translator(model):
    return load(model, "cpu")


@pytest.fixture(scope="module")
def expected(translator):
    written = translator.translate(LINES, beams=1)
    assert written[1] == written[3] == "" and len(set(written)) == 5
    return written


def translate(model, *words):
    main([str(word) for word in ("--model", model, "--device", "cpu", "--beams", 1, *words)])


def test_lines_keep_their_order_and_empty_ones_stay_however_lines_end(model, expected, tmp_path, capsys):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("\n".join(LINES), encoding="utf-8")  # without an end of the last line
    translate(model, "--input", source, "--output", target, "--lines_at_once", 2)
    assert target.read_bytes().decode() == "".join(line + "\n" for line in expected)
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith(f"6 lines translated: {target}\n")
    source.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode() + b"\r\n")
    translate(model, "--input", source, "--output", target, "--overwrite")
    assert target.read_bytes().decode() == "".join(line + "\n" for line in expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.txt", "target.txt"]


def test_standard_input_and_output_are_utf_8_whatever_the_locale(model, expected, monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(LINES).encode())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    monkeypatch.setattr(Translator, "translate", lambda self, texts, **how: [f"ü{text}" for text in texts])
    translate(model, "--input", "-", "--output", "-")
    assert out.getvalue().decode() == "".join(f"ü{line}\n" for line in LINES)
    assert not out.closed


def test_a_line_that_is_not_utf_8_is_named_and_leaves_no_output(model, tmp_path):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_bytes("eins\nzwei\nfünf\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"source\.txt, line 3: byte 1 is not UTF-8: convert the file"):
        translate(model, "--input", source, "--output", target, "--lines_at_once", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["source.txt"]


def test_a_failure_on_the_way_leaves_the_old_output_as_it_was(model, tmp_path, monkeypatch):
    def fail_late(self, texts, **how):
        if "last" in texts:
            raise MemoryError
        return texts

    monkeypatch.setattr(Translator, "translate", fail_late)
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("first\nlast\n")
    target.write_text("of yesterday\n")
    with pytest.raises(MemoryError):
        translate(model, "--input", source, "--output", target, "--lines_at_once", 1, "--overwrite")
    assert target.read_text() == "of yesterday\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.txt", "target.txt"]


def test_wrong_words_and_models_are_refused_and_nothing_is_written(model, tmp_path):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("x\n")
    given = ("--input", source, "--output", target)
    for words, what in (
        (("--lines_at_once", 0), r"--lines_at_once must be 1 or more, found 0"),
        (("--beams", -1), r"--beams must be 1 or more, found -1"),
        (("--input", tmp_path / "none.txt"), r"--input .*none\.txt: there is no such file"),
        (("--output", tmp_path / "none" / "x"), r"there is no folder .*none"),
        (("--output", source), r"--output .*source\.txt exists: choose another file, or pass --overwrite"),
        (
            ("--output", tmp_path, "--overwrite"),
            r"--output .* is a folder or a device, which no file can replace: name a",
        ),
        (("--device", "gpu"), r"--device gpu cannot be used here"),
        (("--domain", "emea"), r"domain 'emea' is no tag of this model"),
    ):
        with pytest.raises(InputError, match=what):
            translate(model, *given, *words)
    with pytest.raises(InputError, match="is not a folder"):
        translate(tmp_path / "none", *given)
    body = make_checkpoint(tmp_path / "bert")
    AutoModelForSequenceClassification.from_pretrained(body).save_pretrained(body)
    with pytest.raises(InputError, match="bert does not translate: use hf-transfer predict"):
        translate(body, *given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "source.txt"]


def test_lines_over_the_limit_are_split_at_sentence_ends_and_named(model, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 40}))
    small = load(folder, "cpu")
    sentences = ["The soup is hot. The bread is ready.", "Put the kettle on the table, please!"]
    long = " ".join(sentences)
    assert len(small.tokenizer(long)["input_ids"]) > small.max_length == 40
    apart = small.translate(sentences, beams=1)
    assert capsys.readouterr().err == ""
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("\n".join(["The saw is old.", "", long, "x", long]) + "\n")
    translate(folder, "--input", source, "--output", target, "--lines_at_once", 4)
    assert target.read_text().splitlines()[2] == " ".join(apart)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "1 text (3) has more than 40 tokens and is split at sentence ends.",
        "1 text (5) has more than 40 tokens and is split at sentence ends.",
    ]
    notices = []
    small.translate([long, "x", long], beams=1, on_notice=notices.append)
    assert notices == ["2 texts (1, 3) have more than 40 tokens and are split at sentence ends."]


def test_a_single_string_is_refused_and_nothing_gives_nothing(translator):
    with pytest.raises(InputError, match=r"takes a list of texts, not one string: write translate\(\[text\]\)\[0\]"):
        translator.translate("The soup is hot.")
    assert translator.translate([]) == []
    assert translator.translate(["", " \t "]) == ["", ""]
