"""The windows of a training: each by its number, shared among processes, every example of an epoch once."""

from types import SimpleNamespace

import numpy as np
import pytest
from toy import encoded_rows

from hf_transfer.batching import Mixture, window_indices
from hf_transfer.windows import Windows

COUNT, SIZE = 50, 8


def windows_of(process: int = 0, processes: int = 1, mixture: Mixture | None = None, copies: int = 1) -> Windows:
    """Windows whose batches are the ids of their examples."""
    rows = encoded_rows(COUNT, 30, 3)
    accelerator = SimpleNamespace(num_processes=processes, process_index=process)
    lengths = np.asarray(rows["length"][:])
    return Windows(rows, lengths, SIZE, 3, mixture, lambda columns: columns["example_id"], copies, accelerator)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_processes_have_every_example_of_an_epoch_once_between_them(processes, flat):
    for step in range(windows_of().per_epoch):
        of_all = [windows_of(process, processes).batches(flat, step, 40) for process in range(processes)]
        names = [int(name) for batches in of_all for batch, counts in batches if counts for name in batch]
        assert sorted(names) == sorted(window_indices(COUNT, SIZE, 3, step))


def test_micro_batches_hold_no_more_than_the_budget_however_often_each_example_is_in_them():
    for copies in (1, 2):
        windows = windows_of(copies=copies)
        for batch, _ in windows.batches(True, 0, 80):
            tokens = copies * windows.lengths[[int(name) for name in batch]].sum()
            assert tokens <= 80 or len(batch) == 1


def test_an_epoch_has_the_rows_that_the_mixture_draws():
    mixture = Mixture(own=20, general=30, drawn=12, seed=5)
    windows = windows_of(mixture=mixture)
    assert (windows.epoch_size, windows.per_epoch) == (32, 4)
    seen = []
    for epoch in range(5):
        drawn = np.concatenate([windows.indices(4 * epoch + place) for place in range(4)])
        assert sorted(drawn[drawn < 20]) == list(range(20)), "all own rows"
        seen.append(set(drawn[drawn >= 20].tolist()))
        assert len(seen[-1]) == 12
    assert set.union(*seen) == set(range(20, 50)), "60 draws come round to each of 30"


def test_the_least_batch_is_the_shortest_example_alone():
    windows = windows_of()
    (name,) = windows.least_batch()
    assert windows.lengths[int(name)] == windows.lengths.min()
