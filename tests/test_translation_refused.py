"""Bad input to translation: one clear message before training, exit code 2, and nothing written."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from tiny import make_checkpoint
from tiny_translation import PAIRS, make_translation_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_transfer import cli, launch, page

MADE = {
    "marian": lambda folder: make_translation_checkpoint("marian", folder),
    "nllb": lambda folder: make_translation_checkpoint("nllb", folder),
    "mbart-50": lambda folder: make_translation_checkpoint("mbart-50", folder),
    "m2m100": lambda folder: make_translation_checkpoint("m2m100", folder),
    "marian-multi": lambda folder: make_translation_checkpoint("marian-multi", folder),
    "t5": lambda folder: make_translation_checkpoint("t5", folder),
    "bert": lambda folder: with_output_layer(make_checkpoint(folder, "bert"), AutoModelForMaskedLM),
    "gpt2": lambda folder: with_output_layer(make_checkpoint(folder, "gpt2"), AutoModelForCausalLM),
    "bart": lambda folder: make_checkpoint(folder, "bart"),
}


def with_output_layer(folder: Path, kind: type) -> Path:
    kind.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    class Checkpoints(dict):
        def __missing__(self, name):
            self[name] = str(MADE[name](tmp_path_factory.mktemp(name)))
            return self[name]

    return Checkpoints()


def text(name: str, content: str):
    """Makes a file of that name and content, and gives its path."""

    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def aligned(source: list[str], target: list[str]):
    def make(folder: Path) -> Path:
        for name, lines in (("train.en", source), ("train.de", target)):
            (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return folder

    return make


ENGLISH, GERMAN = (list(side) for side in zip(*PAIRS, strict=True))
STREETS = [f"The street {37 * i} {'has a shop' * (i % 5)}." for i in range(80)]
PAIR_LINES = "".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in PAIRS)
FLAT_LINES = "".join(json.dumps({"src": a, "tgt": b}) + "\n" for a, b in PAIRS)
EN_DE = ["--data.source_lang", "en", "--data.target_lang", "de"]
FRENCH_LINES = "".join(json.dumps({"translation": {"fr": a, "es": b}}) + "\n" for a, b in PAIRS)
RABBITS = [f"ウサギが草を{i}食べています" for i in range(40)]

# name: (checkpoint, how the source is made, further words, what each problem holds)
REFUSED = {
    "a target language that NLLB does not know": (
        "nllb",
        None,
        ["--data.target_lang", "deu_Latm"],
        [["--data.target_lang 'deu_Latm': the checkpoint (nllb) has no such language. Nearest", "deu_Latn"]],
    ),
    "a language by a misspelt name": (
        "m2m100",
        None,
        ["--data.target_lang", "Germann"],
        [["--data.target_lang 'Germann'", "Nearest of 100 codes: de"]],
    ),
    "both languages unknown, said together": (
        "mbart-50",
        None,
        ["--data.source_lang", "en_XY_", "--data.target_lang", "klingon"],
        [["--data.target_lang 'klingon': the checkpoint (mbart-50) has no such language."]],
    ),
    "a target that a Marian model of several does not write": (
        "marian-multi",
        None,
        ["--data.target_lang", "pl"],
        [["--data.target_lang 'pl': the checkpoint (marian-multi)", ">>deu<<"]],
    ),
    "no target language for a multilingual checkpoint": (
        "nllb",
        text("pairs.jsonl", PAIR_LINES),
        ["--data.source_lang", "en"],
        [["--data.target_lang: the checkpoint is multilingual (nllb) and must be told its target language.", "202"]],
    ),
    "no languages at all for T5": (
        "t5",
        text("pairs.jsonl", PAIR_LINES),
        [],
        [["--data.source_lang: the checkpoint is multilingual (t5)", "German, say"], ["--data.target_lang: "]],
    ),
    "a language column on one side and nothing on the other": (
        "m2m100",
        text("pairs.jsonl", PAIR_LINES.replace("}\n", ', "to": "fr"}\n')),
        ["--data.target_lang_column", "to"],
        [["--data.source_lang: the checkpoint is multilingual (m2m100) and must be told its source language."]],
    ),
    "aligned files of which nothing says what is translated into what": (
        "marian",
        aligned(ENGLISH, GERMAN),
        [],
        [["data holds de and en, and nothing says which is translated into which: give --data.source_lang de"]],
    ),
    "an encoder without a decoder": (
        "bert",
        None,
        [],
        [["bert is an encoder without a decoder: it cannot translate. Give an encoder-decoder checkpoint: Marian"]],
    ),
    "a decoder without an encoder": (
        "gpt2",
        None,
        [],
        [["gpt2 is a decoder without an encoder: it cannot translate."]],
    ),
    "an encoder-decoder of no known family": (
        "bart",
        None,
        [],
        [["how bart with a", "names its languages is not known"]],
    ),
    "files of unequal length": (
        "marian",
        aligned(STREETS, [line.replace("The street", "Die Straße") for line in STREETS[:30] + STREETS[31:]]),
        EN_DE,
        [["train.en has 80 lines and train.de has 79 lines", "They seem to drift from line 3"]],
    ),
    "short files of unequal length": (
        "marian",
        aligned(ENGLISH[:5], GERMAN[:4]),
        EN_DE,
        [["train.en has 5 lines and train.de has 4 lines", "Where they drift cannot be told"]],
    ),
    "text of another script": (
        "marian",
        aligned(RABBITS, GERMAN[:40]),
        EN_DE,
        [["its tokenizer knows nothing of", "% of the source characters of train"]],
    ),
    "both sides of another script": (
        "marian",
        aligned(RABBITS, RABBITS[::-1]),
        EN_DE,
        [["% of the source characters"], ["% of the target characters"]],
    ),
    "labelled text": (
        "marian",
        lambda folder: "bundled:reviews",
        [],
        [["bundled:reviews is for classification, and this is translation: use bundled:phrases, or --task class"]],
    ),
    "a missing column": (
        "marian",
        text("pairs.jsonl", FLAT_LINES),
        ["--data.source_column", "scr", "--data.target_column", "tgt"],
        [["pairs.jsonl: no column 'scr'", "Did you mean src?"]],
    ),
    "columns under other names": (
        "marian",
        text("pairs.jsonl", FLAT_LINES),
        [],
        [["pairs.jsonl: no column 'source'", "--data.source_column"], ["pairs.jsonl: no column 'target'"]],
    ),
    "other languages in the file": (
        "marian",
        text("pairs.jsonl", FRENCH_LINES),
        [],
        [["pairs.jsonl", "fr", "es"]],
    ),
    "an empty table": (
        "marian",
        text("pairs.jsonl", ""),
        [],
        [["pairs.jsonl is empty: expected rows with 'source'"]],
    ),
    "an empty table with a header": (
        "marian",
        text("pairs.tsv", "source\ttarget\n"),
        [],
        [["pairs holds no rows to train on or to score"]],
    ),
    "empty files": ("marian", aligned([], []), EN_DE, [["data holds no rows to train on or to score"]]),
    "nothing but empty lines": ("marian", aligned([""] * 20, GERMAN[:20]), EN_DE, [["holds no pair to train on"]]),
    "general text that is not there": (
        "marian",
        None,
        ["--data.general_source", "absent.tsv"],
        [["--data.general_source", "absent.tsv does not exist"]],
    ),
    "general text in other languages": (
        "marian",
        None,
        ["--data.general_source", text("general.jsonl", FRENCH_LINES)],
        [["--data.general_source", "general.jsonl", "fr", "es"]],
    ),
    "general text without a language that its own column should give": (
        "nllb",
        text("pairs.jsonl", "".join(line[:-2] + ', "lang": "en"}\n' for line in PAIR_LINES.splitlines(keepends=True))),
        ["--data.source_lang_column", "lang", "--data.general_source", text("general.jsonl", PAIR_LINES)],
        [["--data.general_source", "general.jsonl", "lang"]],
    ),
    "general text of a domain that is trained on": (
        "marian",
        None,
        ["--data.general_source", "bundled:phrases"],
        [["both hold the domain kitchen, workshop: general text must have names of its own"]],
    ),
    "every pair over the limit": (
        "marian",
        None,
        ["--data.max_length", "8", "--data.max_train_examples", "5"],
        [["--data.max_length 8: every train pair is longer on one side"]],
    ),
    "a vocabulary too small, which is learnt": (
        "scratch:marian-tiny",
        None,
        ["--model.vocabulary_size", "40"],
        [["A vocabulary of 40 pieces is too small", "--model.vocabulary_size"]],
    ),
    "a size that there is not": ("scratch:marian-huge", None, [], [["There is no model size 'marian-huge'"]]),
    "every pair over the limit of a vocabulary that was learnt": (
        "scratch:marian-tiny",
        None,
        ["--data.max_length", "8", "--data.max_train_examples", "5"],
        [["--data.max_length 8: every train pair is longer on one side"]],
    ),
    "half precision that is not there, with a vocabulary that was learnt": (
        "scratch:marian-tiny",
        None,
        ["--train.precision", "bf16"],
        [["--train.precision bf16: this CPU has no bf16 units"]],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_training_and_leaves_nothing(case, tmp_path, checkpoints, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(launch, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(page, "train", None)
    name, make_source, words, expected = REFUSED[case]
    (tmp_path / "data").mkdir()
    source = make_source(tmp_path / "data") if make_source else "bundled:phrases"
    given = [word(tmp_path) if callable(word) else word for word in words]
    out = tmp_path / "runs" / "out"
    checkpoint = name if name.startswith("scratch:") else checkpoints[name]
    capsys.readouterr()  # what saving it said
    code, said = leave(capsys, "--data.source", source, "--model.checkpoint", checkpoint, "--output_dir", out, *given)
    assert code == 2, said
    first, *problems = said.splitlines()
    assert first == f"hf-transfer: {len(expected)} problem{'s' * (len(expected) > 1)}", said
    for problem, parts in zip(problems, expected, strict=True):
        assert [part for part in parts if part not in problem] == [], problem
    assert not out.exists() and not out.parent.exists()


def leave(capsys, *words: object, task: str = "translation") -> tuple[int, str]:
    """Exit code of a run, and what it said."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--task", task, *map(str, words)])
    return stop.value.code, capsys.readouterr().err


def test_a_refusal_leaves_what_lay_in_the_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    words = ["--model.checkpoint", "scratch:marian-tiny", "--data.max_length", "8", "--data.max_train_examples", "5"]
    code, _ = leave(capsys, *words, "--output_dir", tmp_path)
    assert code == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "mine")]


def test_pairs_are_no_labelled_text(tmp_path, capsys, checkpoints):
    words = ["--data.source", "bundled:phrases", "--model.checkpoint", checkpoints["bert"]]
    capsys.readouterr()
    code, said = leave(capsys, *words, "--output_dir", tmp_path / "out", task="classification")
    assert code == 2
    _, problem = said.splitlines()
    assert "bundled:phrases is for translation, and this is classification: use bundled:reviews, or --task" in problem
    assert not (tmp_path / "out").exists()


def test_the_recipe_refuses_likewise(root, tmp_path, monkeypatch, capsys, checkpoints):
    words = ["--model.checkpoint", checkpoints["bert"], "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["translation.py", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(root / "recipes" / "translation.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "it cannot translate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
