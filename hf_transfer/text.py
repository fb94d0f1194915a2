"""Floor 2: from ``data.source`` to splits and labels; everything wrong with one data set is reported together."""

from __future__ import annotations

from collections.abc import Sequence
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
    if task.name == "translation":
        return _read_parallel_text(data, train, task, seed)
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


def read_rows(data: DataConfig, task: Task) -> tuple[DomainTable, list[str]]:
    """The checked rows of ``data.source``, and what stops a run about them."""
    if task.name != "translation":
        return check_rows(read_source(data), data)
    from hf_transfer.sources.pairs import check_pairs
    from hf_transfer.sources.parallel import read_pairs

    table, problems, _ = check_pairs(read_pairs(data), data)
    return table, problems


def _read_parallel_text(
    data: DataConfig, train: TrainConfig, task: Task, seed: int
) -> tuple[DomainTable, DomainSplits, LabelSpace]:
    """As ``read_text`` for pairs; general text joins the table, and its domains are scored but not trained on."""
    table, problems = read_rows(data, task)
    general: Sequence[str] = ()
    if data.general_source is not None:
        # a subset and a revision are of the other data set
        only = replace(data, source=data.general_source, subset=None, revision=None, train_domains=(), test_domains=())
        try:
            other, other_problems = read_rows(replace(only, general_source=None, general_share=None), task)
        except InputError as error:
            raise InputError([*problems, *map(_of_general_source, error.problems)]) from None
        problems += map(_of_general_source, other_problems)
        own = tuple(dict.fromkeys(table.rows["domain"]))
        general = tuple(dict.fromkeys(other.rows["domain"]))
        shared = sorted(set(own) & set(general))
        if shared:
            problems.append(
                f"--data.general_source {data.general_source} and --data.source {data.source} both hold the domain "
                f"{', '.join(shared)}: general text must have names of its own (a file or a column names them)."
            )
        table = _joined(table, other)
    if problems:
        raise InputError(problems)
    splits, problems = split_and_check(table, data, seed, general)
    if problems:
        raise InputError(problems)
    return table, splits, task.read_labels(splits, data, train)


def _of_general_source(problem: str) -> str:
    """What is wrong with general text, under the name of its own flag."""
    flag = "--data.source "
    if problem.startswith(flag):
        return f"--data.general_source {problem.removeprefix(flag)}"
    return f"--data.general_source: {problem}"


def _joined(table: DomainTable, other: DomainTable) -> DomainTable:
    """Rows of both; ids and places of the other are marked with its name, as two files may have the same one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from hf_transfer.sources.base import TEXT, arrow_table, with_rows

    rows = arrow_table(other.rows)
    for name in ("example_id", "place"):
        marked = pc.binary_join_element_wise(pa.scalar(other.name, TEXT), rows[name].cast(TEXT), pa.scalar(" ", TEXT))
        rows = rows.set_column(rows.column_names.index(name), name, marked)
    mine = arrow_table(table.rows)
    joined = pa.concat_tables([mine, rows.select(mine.column_names)])
    return with_rows(table, joined, (*table.notes, *other.notes))


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
