"""What a run of translation writes: a file for each domain and side, inside the folder whatever domains are called."""

import numpy as np
import pytest
from datasets import Dataset
from tiny_translation import make_translation_checkpoint

from hf_transfer.config import ModelConfig, RunConfig
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import DomainSplits, LabelSpace, Leaks, Predictions
from hf_transfer.tasks import TASKS
from hf_transfer.translating import make_translator
from hf_transfer.translation_run import proof_of_artefact, write_translations

LABELS = LabelSpace("translation", source_lang="en", target_lang="de")


def written(folder, *domains: str) -> list[str]:
    texts = np.array([f"ein Satz aus\n{number}" for number in range(len(domains))], dtype=object)
    ids = np.array([str(number) for number in range(len(domains))])
    predictions = Predictions(ids, np.array(domains, dtype=object), texts, texts, np.zeros((len(domains), 1)))
    write_translations(folder / "out" / "translations", predictions, LABELS)
    return sorted(path.name for path in (folder / "out" / "translations").iterdir())


def test_a_domain_gives_the_names_of_its_files(tmp_path):
    names = written(tmp_path, "kitchen", "küche-2.b")
    assert names == [f"{name}.{side}.txt" for name in ("kitchen", "küche-2.b") for side in ("hypothesis", "reference")]
    text = (tmp_path / "out" / "translations" / "kitchen.hypothesis.txt").read_text(encoding="utf-8")
    assert text == "ein Satz aus 0\n", "a line per example"


@pytest.mark.parametrize(
    "domain", ["../../x", "..", "/etc/x", "a" * 5000, "書" * 200, "a\0b", ".hidden", "\ud800", "a\\b"]
)
def test_no_domain_writes_anywhere_else(tmp_path, domain):
    names = written(tmp_path, domain)
    assert len(names) == 2 and max(len(name.encode()) for name in names) < 255
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["translations"]


def test_domains_that_look_alike_keep_files_of_their_own(tmp_path):
    assert len(written(tmp_path, "a/b", "a-b", "a b", "a:b", "x" * 300, "x" * 301)) == 12


LONG = (
    "The soup is hot. The saw is broken. The bread is ready.",
    "The drill is cold. The vice is heavy. The file is hot.",
)
SHORT = ("The soup is hot.", "The bread is ready.")
LIMIT = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_translation_checkpoint("marian", tmp_path_factory.mktemp("marian"))


def proof_for(checkpoint, tags=(), **test):
    """Proof and what the model writes for it, of test domains with these sources; and what opens the model."""
    task, wanted = TASKS["translation"], ModelConfig(checkpoint=str(checkpoint))
    opened = load_pretrained(wanted, find_checkpoint(wanted), task.auto_class, {}, True, 0)

    def rows(domain, sources):
        texts = {"source": list(sources), "target": ["Die Suppe ist heiß."] * len(sources)}
        names = {"domain": domain, "source_lang": "en", "target_lang": "de", "place": "t:1", "example_id": "t:1"}
        return Dataset.from_dict(texts | {name: [value] * len(sources) for name, value in names.items()})

    train, tested = rows("kitchen", SHORT), {domain: rows(domain, sources) for domain, sources in test.items()}
    splits = DomainSplits(train, train, tested, ("kitchen",), Leaks(), "by hand")
    labels = LabelSpace("translation", source_lang="en", target_lang="de", tags=tags)
    encoded = task.encode(splits, labels, opened, LIMIT)
    split = {domain: [len(parts) > 1 for parts in part["pieces"]] for domain, part in encoded.test.items()}
    assert split == {domain: [text in LONG for text in sources] for domain, sources in test.items()}
    functions = task.bind(labels, opened, RunConfig(task="translation"), ("bleu",))
    proof, translate = proof_of_artefact(encoded, splits, labels, functions, most=8)
    again = load_pretrained(wanted, find_checkpoint(wanted), task.auto_class, {}, True, 0)
    saved = make_translator(again.model, again.tokenizer, labels, LIMIT, checkpoint, again.sha256)
    return proof, translate(opened.model.eval()), saved


def test_a_saved_model_is_proved_by_the_first_domain_with_a_text_that_is_not_split(checkpoint):
    proof, written, saved = proof_for(checkpoint, kitchen=LONG, workshop=(LONG[0], *SHORT))
    assert (proof["source"][:], set(proof["tag"])) == (list(SHORT), {""})
    assert written == saved.translate(SHORT, "en", "de", beams=1) and all(written)


@pytest.mark.parametrize("tags", [(), ("kitchen", "general")], ids=["no tags", "tags"])
def test_where_all_texts_are_split_a_saved_model_is_proved_by_one_of_them(checkpoint, tags):
    proof, written, saved = proof_for(checkpoint, tags, kitchen=LONG, workshop=LONG)
    assert len(proof) == len(written) == 1
    of_domain = {"domain": proof[0]["tag"] or None, "on_notice": lambda text: None}
    assert written == saved.translate(proof["source"][:], "en", "de", beams=1, **of_domain) and all(written)
    assert proof[0]["tag"] == ("kitchen" if tags else ""), "each part of a text has it, and not the first alone"
