"""The store of features: rows come back as they were put, from memory or from the file, or not at all."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_transfer import feature_store as module
from hf_transfer.feature_store import FeatureStore, feature_store

FLOAT_BYTES = 4


def row(seed: int, length: int = 5, width: int = 8, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(length, width, generator=generator).to(dtype)
    return {"last_hidden_state": states, "pooler_output": torch.randn(width, generator=generator).to(dtype)}


def key(number: int, name: str = "weights, layer 4") -> tuple[str, bytes]:
    return name, np.array([2, number, 3]).tobytes()


def same(found: dict[str, torch.Tensor] | None, wanted: dict[str, torch.Tensor]) -> bool:
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in wanted.items())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_beyond_memory_go_into_the_file_and_come_back_as_they_were(tmp_path, dtype):
    size = 6 * 8 * dtype.itemsize
    store = FeatureStore(2 * size, tmp_path / "features", 1 << 20)
    for number in range(6):
        store.put(key(number), row(number, dtype=dtype))
        assert store.file_bytes == max(0, number - 1) * size, "memory first"
    assert store.bytes == 2 * size
    assert all(same(store.get(key(number)), row(number, dtype=dtype)) for number in range(6))
    assert store.get(key(7)) is None
    assert store.get(key(0, "weights, layer 3")) is None


def test_nothing_is_written_before_the_first_row_of_the_file(tmp_path):
    store = FeatureStore(1 << 20, tmp_path / "features", 1 << 20)
    store.put(key(0), row(0))
    assert not (tmp_path / "features").exists()
    without = FeatureStore(0)
    without.put(key(0), row(0))
    assert without.get(key(0)) is None and without.file_bytes == 0


def test_the_file_stays_under_its_limit(tmp_path):
    size = 6 * 8 * FLOAT_BYTES
    store = FeatureStore(0, tmp_path / "features", 2 * size + 1)
    for number in range(4):
        store.put(key(number), row(number))
    assert store.file_bytes == 2 * size
    assert [store.get(key(number)) is not None for number in range(4)] == [True, True, False, False]


def test_the_file_leaves_the_disk_its_room(tmp_path, monkeypatch):
    size = 6 * 8 * FLOAT_BYTES
    usage = module.shutil.disk_usage(tmp_path)._replace(free=module.FREE_DISK_BYTES + size)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    store = FeatureStore(0, tmp_path / "features", 1 << 30)
    for number in range(3):
        store.put(key(number), row(number))
    assert store.file_bytes == size
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=5))
    none = FeatureStore(0, tmp_path / "other", 1 << 30)
    none.put(key(0), row(0))
    assert none.get(key(0)) is None


def test_a_disk_that_fills_up_while_rows_are_written_costs_rows_and_not_the_process(tmp_path, monkeypatch):
    size = 6 * 8 * FLOAT_BYTES
    asked = []

    def reserve(file, offset, ahead):
        asked.append((offset, ahead))
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "RESERVED_AT_ONCE", 3 * size)
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    store = FeatureStore(0, tmp_path / "features", 1 << 20)
    for number in range(6):
        store.put(key(number), row(number))
    assert asked == [(0, 3 * size), (3 * size, 3 * size)], "once per stretch, and not again when the disk is full"
    assert [same(store.get(key(number)), row(number)) for number in range(6)] == [True] * 3 + [False] * 3


def test_memory_is_a_quarter_of_what_is_free_at_most():
    import psutil

    assert 0 < FeatureStore()._limit_bytes <= min(module.MEMORY_BYTES, psutil.virtual_memory().total // 4)


def left_by_a_killed_run(folder: Path, rows: int = 4) -> None:
    store = FeatureStore(0, folder, 1 << 20)
    for number in range(rows):
        store.put(key(number), row(number))
    store.flush()


def test_rows_of_a_run_that_was_killed_are_found_again_and_added_to(tmp_path):
    left_by_a_killed_run(tmp_path / "features")
    for _ in range(2):
        store = FeatureStore(0, tmp_path / "features", 1 << 20)
        assert all(same(store.get(key(number)), row(number)) for number in range(4))
        store.put(key(9), row(9))
        store.flush()
    assert same(FeatureStore(0, tmp_path / "features", 1 << 20).get(key(9)), row(9))


def test_rows_in_memory_outlive_a_killed_run_where_that_was_asked_for(tmp_path):
    for name, outlives in (("kept", True), ("lost", False)):
        store = FeatureStore(1 << 20, tmp_path / name, 1 << 20, outlives=outlives)
        store.put(key(1), row(1))
        store.settle()
        assert store.bytes and same(store.get(key(1)), row(1))
        found = FeatureStore(0, tmp_path / name, 1 << 20).get(key(1))  # what another process sees after a kill
        assert same(found, row(1)) if outlives else found is None


def test_rows_of_a_batch_become_findable_together(tmp_path):
    """One of them alone would have the others computed among other neighbours, which may change their last bit."""
    store = FeatureStore(0, tmp_path / "features", 1 << 20)
    for number in range(200):  # more than any buffer of lines would hold back
        store.put(key(number), row(number))
    assert FeatureStore(0, tmp_path / "features", 1 << 20).get(key(0)) is None
    store.settle()
    found = FeatureStore(0, tmp_path / "features", 1 << 20)
    assert all(same(found.get(key(number)), row(number)) for number in range(200))


def test_a_damaged_row_is_not_handed_out_and_can_be_put_again(tmp_path):
    left_by_a_killed_run(tmp_path / "features")
    size = 6 * 8 * FLOAT_BYTES
    with (tmp_path / "features" / "rows.bin").open("r+b") as file:
        file.seek(2 * size + 17)
        file.write(b"\xff")
    store = FeatureStore(0, tmp_path / "features", 1 << 20)
    assert store.get(key(2)) is None
    assert all(same(store.get(key(number)), row(number)) for number in (0, 1, 3))
    store.put(key(2), row(2))
    assert same(store.get(key(2)), row(2))
    store.flush()
    for _ in range(2):  # the second time after an index that the first one may have shortened
        store = FeatureStore(0, tmp_path / "features", 1 << 20)
        assert all(same(store.get(key(number)), row(number)) for number in range(4))


@pytest.mark.parametrize("bytes_left", [0, 100, 6 * 8 * FLOAT_BYTES * 2 + 5])
def test_a_truncated_file_serves_the_rows_that_it_holds_whole(tmp_path, bytes_left):
    left_by_a_killed_run(tmp_path / "features")
    with (tmp_path / "features" / "rows.bin").open("r+b") as file:
        file.truncate(bytes_left)
    whole = bytes_left // (6 * 8 * FLOAT_BYTES)
    for _ in range(2):  # and once more, over what the first of them has added
        store = FeatureStore(0, tmp_path / "features", 1 << 20)
        assert [same(store.get(key(number)), row(number)) for number in range(4)] == [n < whole for n in range(4)]
    store.put(key(3), row(3))
    store.flush()
    assert same(FeatureStore(0, tmp_path / "features", 1 << 20).get(key(3)), row(3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [json.dumps("another format"), *lines[1:]],
        lambda lines: [],
        lambda lines: ["no json", *lines[1:]],
    ],
)
def test_a_store_of_another_format_is_begun_anew(tmp_path, damage):
    left_by_a_killed_run(tmp_path / "features")
    index = tmp_path / "features" / "rows.jsonl"
    index.write_text("\n".join(damage(index.read_text().splitlines())))
    store = FeatureStore(0, tmp_path / "features", 1 << 20)
    assert store.get(key(0)) is None
    store.put(key(0), row(5))
    assert same(store.get(key(0)), row(5))
    store.flush()
    assert same(FeatureStore(0, tmp_path / "features", 1 << 20).get(key(0)), row(5))


def test_a_line_that_was_being_written_ends_the_index(tmp_path):
    left_by_a_killed_run(tmp_path / "features")
    index = tmp_path / "features" / "rows.jsonl"
    index.write_text(index.read_text()[:-20])
    store = FeatureStore(0, tmp_path / "features", 1 << 20)
    assert [same(store.get(key(number)), row(number)) for number in range(4)] == [True, True, True, False]
    store.put(key(3), row(3))
    store.flush()
    again = FeatureStore(0, tmp_path / "features", 1 << 20)
    assert all(same(again.get(key(number)), row(number)) for number in range(4))


STRANGE = [
    [0, 0, 192, [["states", [6, 8], "float32"]], 0],
    ["00", "0", 192, [["states", [6, 8], "float32"]], 0],
    ["zz", 0, 192, [["states", [6, 8], "float32"]], 0],
    ["00", -192, 192, [["states", [6, 8], "float32"]], 0],
    ["00", 0, 192, [["states", [6, 8], "load"]], 0],
    ["00", 0, 192, [["states", [6, 8], "no such type"]], 0],
    ["00", 0, 192, [["states", [600, 800], "float32"]], 0],
    ["00", 0, 192, [["states", ["6", 8], "float32"]], 0],
    ["00", 0, 192, 7, 0],
    7,
    {"a": 1},
]


@pytest.mark.parametrize("line", STRANGE, ids=map(str, range(len(STRANGE))))
def test_a_line_that_nobody_here_wrote_ends_the_index(tmp_path, line):
    left_by_a_killed_run(tmp_path / "features")
    index = tmp_path / "features" / "rows.jsonl"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:3], json.dumps(line), *lines[3:]]) + "\n")
    store = FeatureStore(0, tmp_path / "features", 1 << 20)
    assert [same(store.get(key(number)), row(number)) for number in range(4)] == [True, True, False, False]
    assert len(index.read_text().splitlines()) == 3


def test_the_file_goes_when_the_work_is_done_and_stays_after_an_error(tmp_path):
    folder = tmp_path / "out" / "features" / "0"
    with pytest.raises(KeyboardInterrupt), feature_store(folder, 1 << 20) as store:
        store._limit_bytes = 0
        store.put(key(0), row(0))
        raise KeyboardInterrupt
    assert (folder / "rows.bin").exists()
    with feature_store(folder, 1 << 20) as store:
        store._limit_bytes = 0
        assert same(store.get(key(0)), row(0))
    assert not folder.parent.exists()
    with feature_store(folder, 0) as store:
        store._limit_bytes = 0
        store.put(key(0), row(0))
        assert not folder.exists()
