"""A vocabulary is learnt from text alone, comes out the same twice, and makes a folder stock transformers opens."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_transfer import make_vocabulary, vocabulary
from hf_transfer.config import DataConfig
from hf_transfer.errors import InputError
from hf_transfer.vocabulary import (
    SIZES,
    check_replaceable,
    coverage,
    find_size,
    read_notices,
    scratch_folder,
    train_vocabulary,
)

WHO = {"cook": "Koch", "painter": "Maler", "gardener": "Gärtner", "teacher": "Lehrer", "farmer": "Bauer"}
DOES = {"paints": "streicht", "cleans": "putzt", "carries": "trägt", "sells": "verkauft", "mends": "flickt"}
WHAT = {"fence": "Zaun", "table": "Tisch", "basket": "Korb", "jacket": "Mantel", "wall": "Wall", "boat": "Kahn"}
WHEN = {"today": "heute", "again": "wieder"}
SENTENCES = [
    (f"The {a} {b} the {c} {d}.", f"Der {WHO[a]} {DOES[b]} den {WHAT[c]} {WHEN[d]}.")
    for a, b, c, d in itertools.product(WHO, DOES, WHAT, WHEN)
]
ENGLISH = [source for source, _ in SENTENCES]
GERMAN = [target for _, target in SENTENCES]


@pytest.fixture(scope="module")
def learnt() -> vocabulary.Vocabulary:
    return train_vocabulary(ENGLISH, GERMAN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scratch") / "marian"
    return scratch_folder("scratch:marian-tiny", ENGLISH, GERMAN, place, source_lang="en", target_lang="de")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the vocabulary


def test_three_hundred_sentences_give_as_many_pieces_as_they_support_and_a_notice(learnt):
    assert len(SENTENCES) == 300
    count = len(learnt.tokens) - 1
    assert 50 < count < 8000
    assert learnt.notices == (f"The text is too small for 8,000 pieces: the vocabulary has {count:,}.",)
    assert learnt.processor().get_piece_size() == count


def test_a_piece_count_that_the_text_supports_is_met_exactly_and_without_notice():
    small = train_vocabulary(ENGLISH, GERMAN, pieces=60)
    assert len(small.tokens) == 61  # and the padding
    assert small.notices == ()


def test_tokens_stand_in_the_order_of_marian(learnt):
    processor = learnt.processor()
    assert learnt.tokens[:2] == ("</s>", "<unk>")
    assert learnt.tokens[-1] == "<pad>"
    assert learnt.tokens[:-1] == tuple(processor.id_to_piece(i) for i in range(processor.get_piece_size()))
    assert len(set(learnt.tokens)) == len(learnt.tokens)


def test_the_same_text_gives_the_same_bytes_twice_and_other_text_does_not(learnt):
    assert train_vocabulary(ENGLISH, GERMAN, seed=1) == learnt  # so few sentences are not drawn from
    assert train_vocabulary(ENGLISH[:200], GERMAN[:200]).model != learnt.model


def test_the_seed_draws_the_sentences_where_there_are_too_many(monkeypatch, learnt):
    monkeypatch.setattr(vocabulary, "MOST_SENTENCES", 100)
    first, again, other = (train_vocabulary(ENGLISH, GERMAN, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.model not in (other.model, learnt.model)
    assert "learnt from 100 of 600 sentences" in first.notices[0]


def test_no_sentence_of_the_text_is_kept_in_the_model(learnt):
    # the processor shows what it reads: pieces, none of which spans two words
    assert all(token.count("\u2581") <= 1 for token in learnt.tokens)
    assert b"paints the" not in learnt.model
    assert b"Maler" not in learnt.model.replace("\u2581Maler".encode(), b"")


def test_long_lines_are_learnt_from_like_any_other():
    line = " ".join(ENGLISH)  # 10,000 characters
    assert len(line) > 4192
    joined = train_vocabulary([line], [])
    assert set(line.replace(" ", "\u2581")) <= set(joined.tokens)


def test_all_characters_are_kept_up_to_a_thousand_and_the_rarest_dropped_beyond(monkeypatch):
    rare = [*ENGLISH, "The cook sells a \u00f1."]  # 1 character of 12,000
    assert "\u00f1" in train_vocabulary(rare, GERMAN).tokens
    monkeypatch.setattr(vocabulary, "RICH_CHARACTER_SET", 20)
    assert "\u00f1" not in train_vocabulary(rare, GERMAN).tokens
    assert "\u00f1" in train_vocabulary(rare, GERMAN, character_coverage=1.0).tokens


def test_tags_in_front_of_sources_become_single_tokens_and_are_no_text():
    tagged = [f">>deu<< {text}" for text in ENGLISH[:150]] + [f">>nds<<{text}" for text in ENGLISH[150:]]
    vocabulary_with_tags = train_vocabulary(tagged, GERMAN, tags=(">>fry<<",))
    assert vocabulary_with_tags.tokens[-4:] == (">>deu<<", ">>fry<<", ">>nds<<", "<pad>")
    assert vocabulary_with_tags.model == train_vocabulary(ENGLISH, GERMAN).model


def test_coverage_counts_characters_pieces_and_unknown_characters(learnt):
    # by hand: SentencePiece puts a space in front, so there are 4 + 3 characters; the last 2 were never seen
    seen = coverage(learnt, ["the"])
    assert (seen.characters, seen.unknown_characters) == (4, 0)
    assert seen.pieces == len(learnt.processor().encode("the"))
    mixed = coverage(learnt, [">>deu<< the", "\u65e5\u672c"])
    assert (mixed.characters, mixed.unknown_characters) == (7, 2)
    assert mixed.unknown_share == pytest.approx(2 / 7)
    assert mixed.characters_per_piece == pytest.approx(7 / (seen.pieces + 2))  # the space, then the unknown run


@pytest.mark.parametrize("texts", [[], ["", "  "], ["\x00\x01"]])
def test_text_with_nothing_in_it_is_refused_in_plain_words(texts):
    with pytest.raises(InputError, match=r"the training text is empty.*--data\.source"):
        train_vocabulary(texts, texts)


def test_fewer_pieces_than_characters_is_refused_with_the_number_that_is_needed():
    with pytest.raises(InputError) as caught:
        train_vocabulary(ENGLISH, GERMAN, pieces=20)
    message = str(caught.value)
    distinct = len(set("".join(ENGLISH + GERMAN)))
    assert f"20 pieces is too small: the text has {distinct} different characters" in message
    assert "--model.vocabulary_size" in message and "required_chars" not in message
    needed = int(message.split("Allow at least ")[1].split()[0])
    assert len(train_vocabulary(ENGLISH, GERMAN, pieces=needed).tokens) == needed + 1
    with pytest.raises(InputError):
        train_vocabulary(ENGLISH, GERMAN, pieces=needed - 1)


# ---- the folder

OPEN = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
config = AutoConfig.from_pretrained(folder)
torch.manual_seed(0)
model = AutoModelForSeq2SeqLM.from_config(config).eval()
generation = GenerationConfig.from_pretrained(folder)
generation.validate(strict=True)
generation.max_length = 6
out = model.generate(**tokenizer(texts["source"][:2], return_tensors="pt", padding=True), generation_config=generation)
tied = {parameter.data_ptr() for parameter in (
    model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight, model.lm_head.weight)}
source, target = tokenizer(texts["source"])["input_ids"], tokenizer(text_target=texts["target"])["input_ids"]
print(json.dumps({
    "kinds": [type(tokenizer).__name__, type(model).__name__],
    "special": [tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id, len(tokenizer)],
    "config": [config.eos_token_id, config.pad_token_id, config.decoder_start_token_id, config.vocab_size],
    "languages": [tokenizer.source_lang, tokenizer.target_lang, tokenizer.supported_language_codes],
    "lengths": [tokenizer.model_max_length, config.max_position_embeddings],
    "source": source, "target": target,
    "source_back": tokenizer.batch_decode(source, skip_special_tokens=True),
    "target_back": tokenizer.batch_decode(target, skip_special_tokens=True),
    "out": out.tolist(), "tied": len(tied), "std": model.model.shared.weight[:-1].std().item(),
}))
"""


def opened(folder: Path, source: list[str], target: list[str]) -> dict:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        OPEN,
        str(folder),
        json.dumps({"source": source, "target": target}),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_stock_transformers_opens_the_folder_in_a_fresh_process(folder, learnt):
    source = ["The cook sells the boat again.", "The teacher paints the wall today."]
    target = ["Der Gärtner trägt den Korb heute.", "Der Bauer flickt den Mantel wieder."]
    seen = opened(folder, source, target)
    pad = len(learnt.tokens) - 1
    assert seen["kinds"] == ["MarianTokenizer", "MarianMTModel"]
    assert seen["special"] == [0, 1, pad, pad + 1]
    assert seen["config"] == [0, pad, pad, pad + 1]
    assert seen["languages"] == ["en", "de", []]
    assert seen["lengths"] == [512, 512]
    assert (seen["source_back"], seen["target_back"]) == (source, target)
    # ids are SentencePiece's own, then the end
    assert seen["source"] == [[*learnt.processor().encode(text), 0] for text in source]
    assert seen["target"] == [[*learnt.processor().encode(text), 0] for text in target]
    assert all(row[0] == pad and pad not in row[1 : row.index(0) if 0 in row else None] for row in seen["out"])
    assert seen["tied"] == 1
    assert seen["std"] == pytest.approx(0.0791, rel=0.05)  # sqrt(2 / (64 + 4 * 64))


@pytest.mark.slow
def test_unseen_characters_and_tags_become_the_unknown_token(folder):
    seen = opened(folder, [">>xx<< The cook", "The \u65e5\u672c cook"], ["x"])
    assert seen["source"][0][0] == 1 and seen["source"][0].count(1) == 1
    assert seen["source"][1].count(1) == 1  # one run
    assert seen["source_back"] == ["The cook", "The  cook"]  # with nothing where the run was


@pytest.mark.slow
def test_tags_of_the_training_text_are_language_codes_of_the_tokenizer(tmp_path):
    tagged = [f">>deu<< {text}" for text in ENGLISH]
    seen = opened(scratch_folder("marian-tiny", tagged, GERMAN, tmp_path / "tagged"), tagged[:1], GERMAN[:1])
    assert seen["languages"] == [None, None, [">>deu<<"]]
    assert seen["source"][0][0] == seen["special"][3] - 2
    assert seen["special"][2] == seen["special"][3] - 1


def test_the_folder_says_nothing_else_than_one_that_transformers_saves(folder, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path)
    for name in ("vocab.json", "tokenizer_config.json", "config.json"):
        ours, theirs = (json.loads((place / name).read_text(encoding="utf-8")) for place in (folder, tmp_path))
        assert ours == {key: theirs.get(key, "absent") for key in ours}
    for name in ("source.spm", "target.spm"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_same_text_size_and_seed_is_used_again_and_a_change_of_any_makes_it_anew(tmp_path, monkeypatch):
    place = tmp_path / "cached"
    trained = []

    def counted(*arguments: object, **named: object) -> vocabulary.Vocabulary:
        trained.append(1)
        return train_vocabulary(*arguments, **named)

    monkeypatch.setattr(vocabulary, "train_vocabulary", counted)
    settings = {"pieces": 60, "source_lang": "en", "target_lang": "de", "seed": 0}
    scratch_folder("marian-tiny", ENGLISH, GERMAN, place, **settings)
    first = contents(place)
    scratch_folder("scratch:marian-tiny", ENGLISH, GERMAN, place, **settings)
    assert len(trained) == 1
    changes = [
        ("marian-small", ENGLISH, GERMAN, settings),
        ("marian-tiny", ENGLISH[:-1], GERMAN, settings),
        ("marian-tiny", [*ENGLISH, GERMAN[0]], GERMAN[1:], settings),  # the same texts, cut elsewhere
        *(
            ("marian-tiny", ENGLISH, GERMAN, settings | {name: other})
            for name, other in (("pieces", 61), ("seed", 1), ("target_lang", "nl"), ("tags", (">>deu<<",)))
        ),
    ]
    for count, (name, sources, targets, changed) in enumerate(changes, start=2):
        scratch_folder(name, sources, targets, place, **changed)
        assert len(trained) == count
    scratch_folder("marian-tiny", ENGLISH, GERMAN, place, **settings)
    assert contents(place) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cached"]  # nothing is left beside it


def test_a_folder_with_a_file_missing_is_made_again(tmp_path):
    place = scratch_folder("marian-tiny", ENGLISH, GERMAN, tmp_path / "made")
    before = contents(place)
    (place / "vocab.json").unlink()
    assert contents(scratch_folder("marian-tiny", ENGLISH, GERMAN, place)) == before


def test_a_failure_half_way_leaves_the_earlier_folder_and_nothing_beside_it(tmp_path, monkeypatch):
    place = scratch_folder("marian-tiny", ENGLISH, GERMAN, tmp_path / "made")
    before = contents(place)

    def full(path: Path, value: object) -> None:
        if path.name == "generation_config.json":
            raise OSError(28, "No space left on device")
        path.write_text("{}")

    monkeypatch.setattr(vocabulary, "_write_json", full)
    with pytest.raises(InputError, match=r"made cannot be written \(No space left on device\): choose another"):
        scratch_folder("marian-tiny", ENGLISH, GERMAN, place, seed=1)
    assert contents(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_files_of_another_kind_are_never_replaced(tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    check_replaceable(place)  # empty
    (place / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"mine holds files that are not a vocabulary's"):
        scratch_folder("marian-tiny", ENGLISH, GERMAN, place)
    assert [path.name for path in place.iterdir()] == ["config.json"]
    with pytest.raises(InputError, match="is a file, not a folder"):
        scratch_folder("marian-tiny", ENGLISH, GERMAN, place / "config.json")


def test_a_process_that_was_overtaken_leaves_the_same_folder_of_the_other_in_place(tmp_path, monkeypatch):
    place = tmp_path / "both"
    write = vocabulary.write_marian
    of_the_other = []

    def overtaken(*arguments: object) -> None:
        write(*arguments)
        monkeypatch.setattr(vocabulary, "write_marian", write)
        of_the_other.append(scratch_folder("marian-tiny", ENGLISH, GERMAN, place).stat().st_ino)

    monkeypatch.setattr(vocabulary, "write_marian", overtaken)
    scratch_folder("marian-tiny", ENGLISH, GERMAN, place)
    assert [place.stat().st_ino] == of_the_other
    assert set(contents(place)) == set(vocabulary.FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["both"]


def test_notices_can_be_read_from_the_folder(folder, learnt, tmp_path):
    assert read_notices(folder) == learnt.notices
    assert read_notices(tmp_path) == ()


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no model size 'marian-smal'; did you mean marian-small.*marian-base"):
        find_size("scratch:marian-smal")
    with pytest.raises(InputError, match=r"no model size 'huge'\. Sizes: marian-tiny"):
        find_size("huge")


def test_every_size_divides_into_its_heads():
    assert all(size.d_model % size.heads == 0 and size.d_model % 2 == 0 for size in SIZES.values())


# ---- the command


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[[list[str]], str]:
    """Writes the 300 sentences with the splits that a test wants, and gives the file's name."""

    def write(splits: list[str]) -> str:
        columns = zip(ENGLISH, GERMAN, splits, strict=True)
        rows = [json.dumps({"source": a, "target": b, "split": split}) for a, b, split in columns]
        (tmp_path / "toy.jsonl").write_text("\n".join(rows), encoding="utf-8")
        return str(tmp_path / "toy.jsonl")

    return write


@pytest.fixture
def pairs(write_pairs) -> str:
    """A file with all 300 for training."""
    return write_pairs(["train"] * 300)


def test_the_command_says_pieces_characters_per_piece_and_the_unknown_share(pairs, tmp_path, capsys, learnt):
    make_vocabulary.main(
        ["--source", pairs, "--output", str(tmp_path / "v"), "--size", "marian-tiny", "--source_lang", "en"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{len(learnt.tokens)} tokens from 300 pairs: {tmp_path / 'v'}"
    assert (
        lines[1]
        == f"  source: {coverage(learnt, ENGLISH).characters_per_piece:.2f} characters per piece, 0.00% of them unknown"
    )
    assert lines[2].startswith("  target: ")
    assert lines[3] == learnt.notices[0]
    assert f"scratch:{tmp_path / 'v'}" in lines[4]
    assert opened(tmp_path / "v", ENGLISH[:2], GERMAN[:2])["source_back"] == ENGLISH[:2]


def test_the_command_learns_from_the_train_part_alone(write_pairs, tmp_path):
    toy = write_pairs(["train"] * 200 + ["test"] * 50 + ["validation"] * 50)
    made = make_vocabulary.make_vocabulary(DataConfig(source=toy), tmp_path / "v", "marian-tiny")
    assert made.pairs == 200
    assert (tmp_path / "v" / "source.spm").read_bytes() == train_vocabulary(ENGLISH[:200], GERMAN[:200]).model
    toy = write_pairs(["test"] * 300)
    with pytest.raises(InputError, match=r"--source .*toy\.jsonl has no train part"):
        make_vocabulary.make_vocabulary(DataConfig(source=toy), tmp_path / "w", "marian-tiny")


def test_the_command_refuses_an_existing_output_unless_told_to_replace_it(pairs, tmp_path):
    words = ["--source", pairs, "--output", str(tmp_path / "v"), "--size", "marian-tiny"]
    make_vocabulary.main(words)
    before = contents(tmp_path / "v")
    with pytest.raises(InputError, match=r"--output .* already exists.*--overwrite"):
        make_vocabulary.main([*words, "--pieces", "60"])
    assert contents(tmp_path / "v") == before
    make_vocabulary.main([*words, "--pieces", "60", "--overwrite"])
    assert len(json.loads((tmp_path / "v" / "vocab.json").read_text(encoding="utf-8"))) == 61


def test_the_command_never_replaces_what_is_no_vocabulary(pairs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that are not a vocabulary's"):
        make_vocabulary.main(["--source", pairs, "--output", str(tmp_path), "--overwrite"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("words", [["--size", "marian-smal"], ["--pieces", "0"]])
def test_the_command_refuses_wrong_values_before_it_reads(words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hf_transfer.sources.parallel", None)  # importing it would fail
    with pytest.raises(InputError):
        make_vocabulary.main(["--source", "toy", "--output", str(tmp_path / "v"), *words])
    assert not (tmp_path / "v").exists()
