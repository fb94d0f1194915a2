"""What a run of translation writes: a file for each domain and side, inside the folder whatever domains are called."""

import numpy as np
import pytest

from hf_transfer.records import LabelSpace, Predictions
from hf_transfer.translation_run import write_translations

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
