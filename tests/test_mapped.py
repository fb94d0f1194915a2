"""Columns and numbers beyond memory: the same as in memory, in files without a name."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from hf_transfer import duplicates, mapped
from hf_transfer.mapped import Chunks, Numbers, filtered, on_disk
from hf_transfer.sources import base


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_transfer"


@pytest.fixture
def little(monkeypatch):
    """Ten bytes count as much."""
    monkeypatch.setattr(mapped, "MEMORY_BYTES", 10)


TABLE = pa.table({"text": ["a", "ü" * 30, None, ""] * 50, "row": list(range(200))})


def is_mapped() -> bool:
    """Whether this process has a file mapped that was put away."""
    return any("mapped-" in line and "(deleted)" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_small_table_stays_where_it_is(folder):
    assert on_disk(TABLE) is TABLE
    assert not folder.exists()


def test_a_large_table_is_mapped_from_a_file_that_has_no_name(folder, little):
    put_away = on_disk(TABLE)
    assert put_away.equals(TABLE)
    assert is_mapped() and list(folder.iterdir()) == []


def test_where_the_disk_takes_nothing_tables_stay_in_memory(folder, little):
    folder.parent.write_text("a file where the folder should be")
    assert on_disk(TABLE) is TABLE


def test_rows_are_chosen_piece_by_piece(little):
    chosen = pa.chunked_array([[row % 3 == 0 for row in range(50)], [row % 7 == 0 for row in range(50, 200)]])
    assert filtered(TABLE, chosen).equals(TABLE.filter(chosen))
    assert filtered(TABLE.slice(0, 0), chosen.slice(0, 0)).num_rows == 0


def test_chunks_come_back_in_order_whatever_their_types(little):
    arrays = [pa.array(["a" * 20]), pa.nulls(3), pa.array(["b"]), pa.array(["c" * 30, None]), pa.array([1, 2])]
    chunks = Chunks()
    for array in arrays:
        chunks.append(array)
    found = chunks.arrays()
    assert [value for array in found for value in array.to_pylist()] == [
        value for array in arrays for value in array.to_pylist()
    ]


@pytest.mark.parametrize("most", [10, 1 << 20])
def test_numbers_come_back_and_can_be_changed(monkeypatch, folder, most):
    monkeypatch.setattr(mapped, "MEMORY_BYTES", most)
    numbers = Numbers()
    assert [numbers.extend(part) for part in ([3], [], range(7), [2**31 - 1])] == [1, 1, 8, 9]
    found = numbers.array()
    assert found.tolist() == [3, *range(7), 2**31 - 1] and found.dtype == np.int32
    assert isinstance(found, np.memmap) == (most == 10)
    found[2] = 9
    assert found[2] == 9
    assert not folder.exists() or list(folder.iterdir()) == []
    assert Numbers().array().tolist() == []


@pytest.mark.parametrize("files", [0, 1])
def test_numbers_stay_in_memory_once_the_disk_is_full(monkeypatch, folder, little, files):
    numbers = Numbers()
    for number in range(20):
        numbers.extend([number])
        if number == 10 * files:  # the disk fills up before the first file, and after some of it is written
            monkeypatch.setattr(mapped, "_new_file", refuse)
            monkeypatch.setattr(Path, "open", refuse)
    assert numbers.array().tolist() == list(range(20))


def refuse(*arguments, **named):
    raise OSError(28, "No space left on device")


def test_the_hash_of_rows_does_not_know_how_they_are_cut(little):
    values = {"domain": ["a", "b"] * 30, "split": [""] * 60, "text": [f"é{i}" * (i % 5) for i in range(60)]}
    labels = [None, 1.5, 3.0] * 20
    whole = pa.table({name: pa.array(column, base.TEXT) for name, column in values.items()} | {"label": labels})
    parts = [whole.slice(start, size) for start, size in ((0, 1), (1, 0), (1, 30), (31, 29))]
    assert base.hash_rows(pa.concat_tables(parts)) == base.hash_rows(whole) == base.hash_rows(on_disk(whole))
    # as sha256 of the names, and of nulls, lengths and letters of each column in turn
    import hashlib

    digest = hashlib.sha256(b"domain split text label")
    for name in ("domain", "split", "text", "label"):
        texts = [None if v is None else "3" if v == 3.0 else str(v) for v in whole[name].to_pylist()]
        digest.update(np.array([text is None for text in texts]).tobytes())
        digest.update(np.array([len((text or "").encode()) for text in texts], dtype=np.int64).tobytes())
        digest.update("".join(text or "" for text in texts).encode())
    assert base.hash_rows(whole) == digest.hexdigest()


def test_leaks_are_the_same_where_words_lie_on_disk_and_come_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 12, rng.integers(1, 12))) for _ in range(200)]
    rows = datasets.Dataset.from_dict({"text": texts, "domain": ["a", "b"] * 100})
    train, test = rows.select(range(150)), {"b": rows.select(range(150, 200))}
    wanted = duplicates.find_leaks(train, test, 0.6)
    assert wanted[0].near > 5 and wanted[0].exact > 0
    monkeypatch.setattr(mapped, "MEMORY_BYTES", 10)
    monkeypatch.setattr(duplicates, "WORDS_PER_BLOCK", 7)
    assert duplicates.find_leaks(train, test, 0.6) == wanted
    sets = [set(text.split()) for text in texts]

    def are_twins(row, other):
        shared, either = sets[row] & sets[other], sets[row] | sets[other]
        is_near = min(len(sets[row]), len(sets[other])) >= 5 and len(shared) / len(either) >= 0.6
        return texts[row] == texts[other] or is_near

    assert wanted[1] == {row for row in range(150) if any(are_twins(row, other) for other in range(150, 200))}
