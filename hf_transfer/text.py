"""Floor 2: from ``data.source`` to splits and labels; everything wrong with one data set is reported together."""

from __future__ import annotations

from dataclasses import replace

from hf_transfer.config import DataConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.records import DomainSplits, DomainTable, LabelSpace
from hf_transfer.sources import check_rows, labelled, read_source
from hf_transfer.splits import split_and_check
from hf_transfer.tasks.base import Task


def read_text(
    data: DataConfig, train: TrainConfig, task: Task, seed: int
) -> tuple[DomainTable, DomainSplits, LabelSpace]:
    """Read, check and split ``data.source``, and read its labels.

    Raises:
        InputError: a file or a column that cannot be read; else all problems of the rows, then of the domains, then
            of the labels. A problem that an earlier one may have caused is left out.
    """
    # 1. Rows: repeated ids, missing domains, missing labels.
    # 2. Domains, of all rows: one without a label still shows that its domain exists.
    # 3. Labels, of the rows that have one.
    table, problems = check_rows(read_source(data), data)
    if problems:
        if not table.rows.num_rows:
            raise InputError(problems)
        # rows that are about to change should decide neither a cap nor what leaks
        data = replace(data, max_train_examples=None, drop_leaks=False)
    splits, domain_problems = split_and_check(table, data, seed)
    problems += domain_problems
    if not problems:
        return table, splits, task.read_labels(splits, data, train)
    try:
        with_labels = _labelled(splits, data)
        if _can_be_checked(with_labels, splits):
            task.read_labels(with_labels, data, train)
    except InputError as error:
        problems += error.problems
    raise InputError(problems)


def _labelled(splits: DomainSplits, data: DataConfig) -> DomainSplits:
    return replace(
        splits,
        train=labelled(splits.train, data),
        validation=labelled(splits.validation, data),
        test={domain: labelled(rows, data) for domain, rows in splits.test.items()},
    )


def _can_be_checked(with_labels: DomainSplits, splits: DomainSplits) -> bool:
    """Whether the labels of train say which classes there are: all are there, or those that are hold at least two."""
    if not with_labels.train.num_rows:
        return False
    is_whole = with_labels.train.num_rows == splits.train.num_rows
    return is_whole or len({str(label) for label in with_labels.train["label"]}) > 1
