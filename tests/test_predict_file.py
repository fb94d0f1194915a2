"""Labelling the texts of a file: formats, order, what is refused, and that a failure leaves nothing behind."""

import csv
import io
import json
from pathlib import Path

import pandas
import pytest
import torch
from tiny import make_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer import cli, predict_file
from hf_transfer.errors import InputError, RunError
from hf_transfer.loading import LoadedModel

TEXTS = ["the plot was gripping", "a boring book", "dry, stale and cold", "it is a sharp light knife", "never"]
NAMES = ("bad", "fine", "good")
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "number": "regression"}


def save_model(folder: Path, problem: str) -> Path:
    """A plain transformers folder with a random head, large enough for decided probabilities."""
    make_checkpoint(folder, max_position_embeddings=600)
    names = NAMES if problem != "number" else ("value",)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(names), id2label=dict(enumerate(names)), problem_type=PROBLEMS[problem]
    )
    with torch.no_grad():
        model.classifier.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {problem: save_model(tmp_path_factory.mktemp(problem), problem) for problem in PROBLEMS}


def logits(folder: Path, texts: list[str], pairs: list[str] | None = None) -> torch.Tensor:
    """[texts, outputs] of plain transformers, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        one = [
            model(**tokenizer(text, pairs[i] if pairs else None, return_tensors="pt")).logits[0]
            for i, text in enumerate(texts)
        ]
    return torch.stack(one)


def label(model: Path, source: Path, target: Path, *words: object) -> Path:
    """Run `hf-transfer predict`; returns the output."""
    given = ["--model", model, "--input", source, "--output", target, "--device", "cpu", *words]
    cli.main(["predict", *map(str, given)])
    return target


def refused(model: Path, source: Path, target: Path, capsys, *words: object) -> str:
    """What `hf-transfer predict` says when it refuses; the output folder has nothing new in it."""
    before = sorted(target.parent.iterdir()) if target.parent.is_dir() else None
    with pytest.raises(SystemExit) as stop:
        label(model, source, target, *words)
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert "Traceback" not in said
    assert (sorted(target.parent.iterdir()) if target.parent.is_dir() else None) == before
    return said


def write_table(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read_table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), delimiter=delimiter))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def reviews(tmp_path) -> Path:
    return write_table(tmp_path / "in.csv", [["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))])


# --- what comes out ---


def test_a_csv_keeps_its_columns_and_gains_label_and_probabilities(models, reviews, tmp_path, capsys):
    rows = read_table(label(models["single"], reviews, tmp_path / "out.csv"))
    assert capsys.readouterr().out == f"5 rows labelled: {tmp_path / 'out.csv'}\n"
    expected = logits(models["single"], TEXTS).softmax(-1)
    assert list(rows[0]) == ["id", "text", "predicted", "probability_bad", "probability_fine", "probability_good"]
    assert [(row["id"], row["text"]) for row in rows] == [(str(i), text) for i, text in enumerate(TEXTS)]
    assert [row["predicted"] for row in rows] == [NAMES[i] for i in expected.argmax(-1).tolist()]
    assert len({row["predicted"] for row in rows}) > 1  # the test tells the classes apart
    for row, probabilities in zip(rows, expected.tolist(), strict=True):
        assert [float(row[f"probability_{name}"]) for name in NAMES] == pytest.approx(probabilities, abs=2e-6)


@pytest.mark.parametrize("rows_at_once", [1, 2, 5])
def test_pieces_of_any_size_give_the_same_rows_in_the_same_order(models, reviews, tmp_path, rows_at_once):
    whole = read_lines(label(models["single"], reviews, tmp_path / "whole.jsonl"))
    pieces = read_lines(label(models["single"], reviews, tmp_path / "pieces.jsonl", "--rows_at_once", rows_at_once))
    assert [row["id"] for row in pieces] == ["0", "1", "2", "3", "4"]
    for row, piece in zip(whole, pieces, strict=True):  # other batches round otherwise, in the seventh digit
        numbers = {name: pytest.approx(value, abs=2e-6) for name, value in row.items() if isinstance(value, float)}
        assert piece == row | numbers


def test_no_more_rows_are_held_than_asked_for(models, reviews, tmp_path, monkeypatch):
    seen = []
    plain = LoadedModel.predict

    def watch(self, texts, pairs=None):
        seen.append(list(texts))
        return plain(self, texts, pairs)

    monkeypatch.setattr(LoadedModel, "predict", watch)
    label(models["single"], reviews, tmp_path / "out.csv", "--rows_at_once", 2)
    assert seen == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]


@pytest.mark.parametrize("source_suffix", [".csv", ".tsv", ".jsonl", ".CSV"])
@pytest.mark.parametrize("target_suffix", [".csv", ".tsv", ".jsonl"])
def test_every_format_goes_into_every_other(models, tmp_path, source_suffix, target_suffix):
    texts = ["good, or\tnot", 'a "light" book', "größe"]
    source, target = tmp_path / f"in{source_suffix}", tmp_path / f"out{target_suffix}"
    if source_suffix == ".jsonl":
        source.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in texts), encoding="utf-8")
    else:
        write_table(source, [["text"], *([text] for text in texts)], "\t" if source_suffix == ".tsv" else ",")
    label(models["single"], source, target)
    if target_suffix == ".jsonl":
        rows = read_lines(target)
        assert isinstance(rows[0]["probability_bad"], float)
    else:
        rows = read_table(target, "\t" if target_suffix == ".tsv" else ",")
    assert [row["text"] for row in rows] == texts
    assert {row["predicted"] for row in rows} <= set(NAMES)


def test_several_labels_are_a_list_in_json_lines_and_joined_in_csv(models, reviews, tmp_path):
    probabilities = logits(models["multi"], TEXTS).sigmoid()
    expected = [[name for name, p in zip(NAMES, row, strict=True) if p >= 0.5] for row in probabilities.tolist()]
    lines = read_lines(label(models["multi"], reviews, tmp_path / "out.jsonl"))
    assert [row["predicted"] for row in lines] == expected
    assert max(len(names) for names in expected) > 1
    table = read_table(label(models["multi"], reviews, tmp_path / "out.csv"))
    assert [row["predicted"] for row in table] == ["|".join(names) for names in expected]
    assert float(table[0]["probability_bad"]) == pytest.approx(float(probabilities[0, 0]), abs=2e-6)


def test_a_number_comes_without_probabilities(models, reviews, tmp_path):
    rows = read_lines(label(models["number"], reviews, tmp_path / "out.jsonl"))
    assert list(rows[0]) == ["id", "text", "predicted"]
    expected = logits(models["number"], TEXTS)[:, 0].tolist()
    assert [row["predicted"] for row in rows] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_pairs_are_read_from_two_columns(models, tmp_path):
    pairs = list(reversed(TEXTS))
    source = write_table(tmp_path / "in.tsv", [["a", "b"], *zip(TEXTS, pairs, strict=True)], "\t")
    columns = ["--text_column", "a", "--text_pair_column", "b"]
    rows = read_lines(label(models["single"], source, tmp_path / "out.jsonl", *columns))
    expected = logits(models["single"], TEXTS, pairs).softmax(-1)
    assert [row["probability_good"] for row in rows] == pytest.approx(expected[:, 2].tolist(), abs=2e-6)
    alone = logits(models["single"], TEXTS).softmax(-1)
    assert not torch.allclose(expected, alone, atol=1e-3)  # the second text matters


def test_the_model_that_trained_is_found_in_the_folder_of_its_run(models, reviews, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(models["single"])
    (tmp_path / "run" / "results.json").write_text("{}", encoding="utf-8")
    direct = label(models["single"], reviews, tmp_path / "a.csv").read_text(encoding="utf-8")
    assert label(tmp_path / "run", reviews, tmp_path / "b.csv").read_text(encoding="utf-8") == direct


def test_a_file_with_a_header_and_no_rows_gives_a_header(models, tmp_path):
    source = write_table(tmp_path / "in.csv", [["id", "text"]])
    target = label(models["single"], source, tmp_path / "out.csv")
    assert target.read_text(encoding="utf-8") == "id,text,predicted,probability_bad,probability_fine,probability_good\n"


def test_a_byte_order_mark_and_a_long_document_are_read(models, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "good book " * 20_000 + "\n", encoding="utf-8-sig")  # csv's own limit is 131,072
    (row,) = read_lines(label(models["single"], source, tmp_path / "out.jsonl"))
    assert next(iter(row)) == "text"
    assert len(row["text"]) == 200_000
    assert csv.field_size_limit() == 131_072  # as it was


def test_quotes_that_do_not_pair_up_in_a_tsv_are_plain_characters(models, tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text('id\ttext\n1\t"Great" film\n2\t"never\n3\tbad\n', encoding="utf-8")
    rows = read_table(label(models["single"], source, tmp_path / "out.tsv"), "\t")
    assert [row["text"] for row in rows] == ['"Great" film', '"never', "bad"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_carriage_return_inside_a_cell_ends_no_row(models, tmp_path, suffix):
    source = tmp_path / "in.jsonl"
    rows = [{"text": "good\rand bad", "a\rb": "1"}, {"text": "\r", "a\rb": "2"}, {"text": "dry", "a\rb": "3\r\n"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    target, delimiter = label(models["single"], source, tmp_path / f"out{suffix}"), "\t" if suffix == ".tsv" else ","
    with target.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, delimiter=delimiter))
    assert [{name: row[name] for name in ("text", "a\rb")} for row in found] == rows
    assert {row["predicted"] for row in found} <= set(NAMES)
    frame = pandas.read_csv(target, sep=delimiter, dtype=str)
    assert frame[["text", "a\rb"]].to_dict("records") == rows
    assert frame["predicted"].tolist() == [row["predicted"] for row in found]


def test_values_that_are_no_text_are_kept(models, tmp_path):
    source = tmp_path / "in.jsonl"
    rows = [{"text": "good", "tags": ["a", "ü"], "n": 1}, {"text": "bad", "n": None}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept = read_lines(label(models["single"], source, tmp_path / "out.jsonl"))
    assert [{name: row[name] for name in old} for row, old in zip(kept, rows, strict=True)] == rows
    table = read_table(label(models["single"], source, tmp_path / "out.csv"))
    assert [(row["tags"], row["n"]) for row in table] == [('["a", "ü"]', "1"), ("", "")]


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("in.csv", b"id,text\n1,good\n2,good,bad\n", "in.csv:2 has 3 fields, the header 2"),
        ("in.csv", b"id,text\n1\n", "in.csv:1 has 1 fields, the header 2"),
        ("in.csv", b'id,text\n1,a\n2,"open\n3,b\n', "in.csv:2 cannot be read (a quote is opened and not closed)"),
        ("in.csv", b"id,text\n1,a\n2,b\n3,caf\xe9\n", "in.csv: byte 0xe9 of line 4 is not UTF-8"),
        ("in.csv", b"id,body\n1,a\n", "in.csv has no column text; its columns: id, body. Name the right one with"),
        ("in.csv", b"id,body\n", "in.csv has no column text"),
        ("in.csv", b"text,text\na,b\n", "in.csv: column text stands twice in the header"),
        ("in.csv", b"text,predicted\na,b\n", "in.csv has a column `predicted`, which the predictions would replace"),
        ("in.csv", b"", "in.csv is empty: expected a header line with column names"),
        ("in.jsonl", b'{"text": "a"}\n{"text": \n', "in.jsonl:2 is not JSON ("),
        ("in.jsonl", b'{"text": "a"}\n["b"]\n', "in.jsonl:2 holds a list, not an object"),
        ("in.jsonl", b'{"text": "a"}\n{"text": 3}\n', "in.jsonl:2: column text holds 3, not text"),
        ("in.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "in.jsonl:2: column text holds None, not text"),
        ("in.jsonl", b'{"text": "a"}\n\n{"text": "b\\ud800"}\n', "in.jsonl:3: column text holds half a surrogate pair"),
        ("in.jsonl", b'{"text": "a"}\n{"text": "b", "n": 1}\n', "in.jsonl:2 has n, which the first row has not"),
        ("in.txt", b"a\n", "in.txt: files end in .csv, .tsv or .jsonl; found .txt"),
    ],
)
def test_a_bad_row_is_named_with_its_place_before_the_model_is_opened(tmp_path, capsys, name, content, says):
    (tmp_path / name).write_bytes(content)
    absent = tmp_path / "there is no model here"
    assert says in refused(absent, tmp_path / name, tmp_path / "out.csv", capsys)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"probability_good": "0.5"}], "has a column `probability_good`, which the predictions would replace: rename"),
        ([{}, {"probability_good": 1, "predicted": 1}], "a column `predicted`, `probability_good`, which the predic"),
    ],
)
def test_a_column_that_probabilities_would_replace_is_refused(models, tmp_path, capsys, rows, says):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": "good"} | row) + "\n" for row in rows), encoding="utf-8")
    assert says in refused(models["single"], source, tmp_path / "out.jsonl", capsys)
    kept = source.read_text(encoding="utf-8").replace("probability_good", "probability_of").replace("predicted", "was")
    source.write_text(kept, encoding="utf-8")
    label(models["single"], source, tmp_path / "out.jsonl")
    if not any("predicted" in row for row in rows):
        number = write_table(tmp_path / "number.csv", [["text", "probability_good"], ["good", "0.5"]])
        (row,) = read_table(label(models["number"], number, tmp_path / "out.csv"))
        assert row["probability_good"] == "0.5", "a number has no probabilities"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--input", "nowhere.csv"], "--input nowhere.csv: there is no such file"),
        (["--output", "nowhere/out.csv"], "--output nowhere/out.csv: the folder nowhere does not exist"),
        (["--output", "out"], "out: files end in .csv, .tsv or .jsonl; found no suffix"),
        (["--rows_at_once", "0"], "--rows_at_once must be 1 or more, found 0"),
        (["--rows_at_once", "many"], "invalid int value: 'many'"),
        (["--text_column", "a", "--text_pair_column", "b"], "has no column a, b; its columns: id, text"),
        (["--device", "gpu"], "--device gpu cannot be used here"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--device", "cuda:99", "--engine", "onnx"], "has no ONNX export"),  # torch's devices are not its own
        (["--device", "cuda:99", "--engine", "ctranslate2"], "does not translate"),
        (["--model", "nowhere"], "nowhere is not a folder: give the model folder of a run"),
    ],
)
def test_bad_words_are_refused_and_leave_nothing(models, reviews, tmp_path, capsys, words, says):
    assert says in refused(models["single"], reviews, tmp_path / "out.csv", capsys, *words)


def test_an_existing_output_is_kept_unless_overwrite_is_given(models, reviews, tmp_path, capsys):
    target = tmp_path / "out.csv"
    target.write_text("mine", encoding="utf-8")
    assert f"--output {target} exists: choose another file, or pass --overwrite" in (
        refused(models["single"], reviews, target, capsys)
    )
    assert target.read_text(encoding="utf-8") == "mine"
    assert len(read_table(label(models["single"], reviews, target, "--overwrite"))) == 5


def test_the_input_may_be_replaced_by_its_output(models, reviews):
    rows = read_table(label(models["single"], reviews, reviews, "--overwrite"))
    assert [row["text"] for row in rows] == TEXTS
    assert rows[0]["predicted"] in NAMES


def test_a_failure_half_way_leaves_the_old_output_and_no_new_one(models, reviews, tmp_path, monkeypatch):
    calls = []
    plain = LoadedModel.predict

    def break_down(self, texts, pairs=None):
        calls.append(texts)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return plain(self, texts, pairs)

    monkeypatch.setattr(LoadedModel, "predict", break_down)
    (tmp_path / "old.csv").write_text("old", encoding="utf-8")
    for target, words in (("new.csv", []), ("old.csv", ["--overwrite"])):
        calls.clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            label(models["single"], reviews, tmp_path / target, "--rows_at_once", 2, *words)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in.csv", "old.csv"]
    assert (tmp_path / "old.csv").read_text(encoding="utf-8") == "old"


def test_a_disk_that_fills_up_fails_the_run_in_plain_words(models, reviews, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict_file, "_write", full)
    with pytest.raises(SystemExit) as stop:
        label(models["single"], reviews, tmp_path / "out.csv")
    assert stop.value.code == RunError.exit_code
    assert "could not be written ([Errno 28] No space left on device)" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["in.csv"]


def test_rows_can_be_read_more_than_once_and_are_numbered_from_1(reviews):
    rows = predict_file.RowReader(reviews)
    assert [number for number, _ in rows] == [1, 2, 3, 4, 5]
    assert list(rows) == list(rows)
    assert rows.header() == ("id", "text")


def test_a_row_that_goes_bad_between_the_two_readings_leaves_nothing(models, reviews, tmp_path, monkeypatch):
    plain = predict_file.load

    def load_and_spoil(model, device, engine):
        with reviews.open("a", encoding="utf-8") as file:
            file.write("6,good,bad\n")
        return plain(model, device, engine)

    monkeypatch.setattr(predict_file, "load", load_and_spoil)
    with pytest.raises(InputError, match=r"in.csv:6 has 3 fields"):
        predict_file.predict_file(
            str(models["single"]), reviews, tmp_path / "out.csv", "text", None, 2, "cpu", overwrite=False
        )
    assert [item.name for item in tmp_path.iterdir()] == ["in.csv"]
