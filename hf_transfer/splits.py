"""Floor 1: train, validation and test by domain, and what leaks between them.

Published splits are kept. What is missing is drawn by content: the sha256 of an example's normalised text (and pair),
read as a number in [0, 1), falls under the fraction or not. So a row's split depends on nothing but its own text: it
stays when rows are added, moved or relabelled, it is the same for every seed, and equal texts never part. Every domain
and label is cut at the same rate, in expectation; an exact quota would tie each row to all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_transfer.config import DataConfig, nearest
from hf_transfer.duplicates import content_digest, find_leaks, normalised_texts
from hf_transfer.errors import InputError
from hf_transfer.records import DomainSplits, DomainTable, Leaks

if TYPE_CHECKING:  # numpy costs 0.1 s of import time
    import numpy as np
    from datasets import Dataset

FEWEST_ROWS_FOR_A_SPLIT = 20
"""A domain with fewer rows may end without validation rows by chance; with as many, that is worth a note."""
DOMAINS_SHOWN = 3


@dataclass(frozen=True)
class RowFacts:
    """What the splits depend on, one entry per row of the table."""

    domains: tuple[str, ...]
    """Names in order of appearance."""
    domain: np.ndarray
    """[rows] index into ``domains``."""
    published: np.ndarray
    """[rows] train, validation, test or "", as objects."""
    label: np.ndarray
    """[rows] equal numbers for equal labels; they only stratify the cap."""
    digests: tuple[bytes, ...]
    """[rows] sha256 of the normalised text."""

    def positions(self, salt: str) -> np.ndarray:
        """[rows] floats in [0, 1): equal for equal texts, and independent draws for different salts."""
        import numpy as np

        prefix = salt.encode("utf-8") + b"\0"
        first_bytes = b"".join(hashlib.sha256(prefix + digest).digest()[:8] for digest in self.digests)
        return (np.frombuffer(first_bytes, dtype=">u8") >> np.uint64(11)) / 2.0**53  # the 53 bits of a float


def split_by_domain(table: DomainTable, data: DataConfig, seed: int) -> DomainSplits:
    """Train and validation rows of the train domains, test rows of each test domain, leaks counted.

    A domain's test rows are the same whether or not it is trained on. ``seed`` draws the cap and nothing else. The
    notes returned are the splitting's own; those of the table stay with the table.

    Raises:
        InputError: unknown domains, a named domain without train or test rows, or nothing left to train on.
    """
    # 1. Test rows of every domain: as published, else by content. Then which domains train and which test.
    # 2. Train rows of the train domains, and validation from them where none was published.
    # 3. With drop_leaks, train and validation lose what occurs in test; then the cap, so that it is met.
    # 4. Leaks are counted between what is trained on and what is scored.
    facts = _row_facts(table)
    test, test_drawn = _test_rows(facts, data.test_fraction)
    train_domains, test_domains, notes = _choose_domains(facts, test, table.default_train_domains, data)
    train, validation, validation_drawn = _train_rows(facts, test, train_domains, data.validation_fraction)
    test_rows = {domain: table.rows.select(_rows_of(facts, test, domain)) for domain in test_domains}
    if data.drop_leaks:
        leaks, twins = _leaks(table, train | validation, test_rows, data.near_duplicate_threshold)
        leaks = replace(leaks, dropped=int(twins.sum()))
        train, validation = train & ~twins, validation & ~twins
    train, validation, validation_notes = _mend_validation(facts, train, validation, train_domains)
    if not train.any():
        raise InputError(_nothing_to_train_on(facts, train_domains, data))
    train = _capped(facts, train, data.max_train_examples, seed)
    if not data.drop_leaks:
        leaks, _ = _leaks(table, train | validation, test_rows, data.near_duplicate_threshold)
    return DomainSplits(
        train=table.rows.select(_indices(train)),
        validation=table.rows.select(_indices(validation)),
        test=test_rows,
        train_domains=train_domains,
        leaks=leaks,
        rule=_rule(test_domains, test_drawn, train_domains, validation_drawn, data),
        notes=(*notes, *validation_notes, *_leak_notes(leaks, test_rows)),
    )


def _row_facts(table: DomainTable) -> RowFacts:
    import numpy as np

    columns = table.rows.select_columns(["domain", "split", "label"]).with_format("arrow")[:]
    domains: dict[str, int] = {}
    labels: dict[str, int] = {}
    domain = [domains.setdefault(name, len(domains)) for name in columns["domain"].to_pylist()]
    label = [labels.setdefault(str(raw), len(labels)) for raw in columns["label"].to_pylist()]
    return RowFacts(
        domains=tuple(domains),
        domain=np.array(domain, dtype=np.int64),
        published=np.array(columns["split"].to_pylist(), dtype=object),
        label=np.array(label, dtype=np.int64),
        digests=tuple(content_digest(text) for text in normalised_texts(table.rows)),
    )


def _test_rows(facts: RowFacts, fraction: float) -> tuple[np.ndarray, set[str]]:
    """[rows] which are test, of all domains; and the domains whose test rows were drawn by content."""
    test = facts.published == "test"
    drawable = _trainable(facts, test) & (facts.positions("test") < fraction)
    drawn = set()
    for number, domain in enumerate(facts.domains):
        inside = facts.domain == number
        if not (test & inside).any():
            test |= drawable & inside
            drawn.add(domain)
    return test, drawn


def _trainable(facts: RowFacts, test: np.ndarray) -> np.ndarray:
    """[rows] which may be trained on: neither test nor published as validation."""
    return ~test & ((facts.published == "train") | (facts.published == ""))


def _train_rows(
    facts: RowFacts, test: np.ndarray, train_domains: Sequence[str], fraction: float
) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """[rows] which are train, which are validation; and the train domains whose validation was drawn by content."""
    import numpy as np

    trainable = _trainable(facts, test)
    held_out = trainable & (facts.positions("validation") < fraction)
    train = np.zeros_like(test)
    validation = np.zeros_like(test)
    drawn = set()
    for domain in train_domains:
        inside = facts.domain == facts.domains.index(domain)
        published = inside & (facts.published == "validation")
        if published.any():
            validation |= published
            train |= inside & trainable
        else:
            validation |= inside & held_out
            train |= inside & trainable & ~held_out
            drawn.add(domain)
    return train, validation, drawn


def _choose_domains(
    facts: RowFacts, test: np.ndarray, recommended: Sequence[str], data: DataConfig
) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Train domains and test domains, train first, each in order of appearance; and notes on those left out.

    A domain that nobody named is left out where it has no rows for the purpose; a named one is refused.
    """
    trainable = {facts.domains[number] for number in facts.domain[_trainable(facts, test)]}
    scorable = {facts.domains[number] for number in facts.domain[test]}
    problems = [
        *_domain_problems("train", data.train_domains, facts.domains, trainable),
        *_domain_problems("test", data.test_domains, facts.domains, scorable),
    ]
    if problems:
        raise InputError(problems)
    wanted = data.train_domains or recommended or facts.domains
    train_domains = tuple(domain for domain in facts.domains if domain in wanted and domain in trainable)
    wanted_for_test = data.test_domains or facts.domains
    first = [domain for domain in train_domains if domain in wanted_for_test]
    others = [domain for domain in facts.domains if domain in wanted_for_test and domain not in train_domains]
    test_domains = tuple(domain for domain in first + others if domain in scorable)
    notes = []
    shifted = [domain for domain in wanted if domain not in trainable]
    if shifted:
        notes.append(f"not trained on, for want of train rows: {_listed(shifted)}.")
    unscored = [domain for domain in first + others if domain not in scorable]
    if unscored:
        notes.append(f"not scored, for want of test rows: {_listed(unscored)}; raise --data.test_fraction.")
    if not test_domains:
        raise InputError("no domain has test rows: give more rows, or raise --data.test_fraction.")
    return train_domains, test_domains, notes


def _domain_problems(purpose: str, named: Sequence[str], known: Sequence[str], usable: set[str]) -> list[str]:
    """What is wrong with the domains that the user named for ``purpose`` (train or test)."""
    problems = []
    for domain in named:
        if domain not in known:
            close = nearest(domain, known)
            hint = f" Did you mean {close}?" if close else ""
            problems.append(
                f"--data.{purpose}_domains names {domain!r}, which the data do not hold.{hint} "
                f"There are {', '.join(known)}."
            )
        elif domain not in usable:
            problems.append(
                f"--data.{purpose}_domains names {domain!r}, which has no {purpose} rows: give it some, "
                f"or leave it out; {_listed([item for item in known if item in usable]) or 'no domain'} has them."
            )
    return problems


def _rows_of(facts: RowFacts, chosen: np.ndarray, domain: str) -> np.ndarray:
    return _indices(chosen & (facts.domain == facts.domains.index(domain)))


def _indices(chosen: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.flatnonzero(chosen)


def _leaks(
    table: DomainTable, learnt_from: np.ndarray, test_rows: dict[str, Dataset], threshold: float
) -> tuple[Leaks, np.ndarray]:
    """The leaks, and [rows] which train and validation rows are twins of test rows."""
    import numpy as np

    indices = _indices(learnt_from)
    leaks, twins = find_leaks(table.rows.select(indices), test_rows, threshold)
    is_twin = np.zeros_like(learnt_from)
    is_twin[indices[sorted(twins)]] = True
    return leaks, is_twin


def _mend_validation(
    facts: RowFacts, train: np.ndarray, validation: np.ndarray, train_domains: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Train, validation and notes, with at least one example in validation if train can spare it.

    A checkpoint cannot be selected on nothing, and of 12 rows a tenth by content is none in 28 of 100 cases. Only
    then does the split of a row depend on the others.
    """
    notes = []
    if not validation.any() and train.any():
        positions = facts.positions("validation")
        lowest = train & (positions <= positions[train].min())
        if (train & ~lowest).any():
            train, validation = train & ~lowest, lowest
            notes.append(
                "no row fell to validation by content, so the nearest one was taken: give more rows, or raise "
                "--data.validation_fraction."
            )
    for domain in train_domains:
        inside = facts.domain == facts.domains.index(domain)
        row_count = int((inside & (train | validation)).sum())
        if row_count >= FEWEST_ROWS_FOR_A_SPLIT and not (inside & validation).any():
            notes.append(
                f"{domain} has {row_count:,} train rows and none in validation, so selection does not see it: raise "
                "--data.validation_fraction."
            )
    return train, validation, notes


def _capped(facts: RowFacts, train: np.ndarray, cap: int | None, seed: int) -> np.ndarray:
    """[rows] at most ``cap`` of the train rows; a smaller cap takes a subset of what a larger one takes.

    Rows get a random order within their stratum (domain and label). A row's share is its place in that order over the
    size of the stratum; taking rows by rising share takes the same part of every stratum.
    """
    import numpy as np

    rows = _indices(train)
    if cap is None or len(rows) <= cap:
        return train
    draw = facts.positions(f"cap {seed}")[rows]
    _, stratum, sizes = np.unique(
        facts.domain[rows] * (facts.label.max() + 1) + facts.label[rows], return_inverse=True, return_counts=True
    )
    in_order = np.lexsort((draw, stratum))  # stable, so equal texts keep the order of their rows
    first_of_stratum = np.cumsum(sizes) - sizes
    place = np.empty(len(rows), dtype=np.int64)
    place[in_order] = np.arange(len(rows)) - first_of_stratum[stratum[in_order]]
    share = (place + 0.5) / sizes[stratum]
    chosen = np.zeros_like(train)
    chosen[rows[np.lexsort((draw, share))[:cap]]] = True
    return chosen


def _nothing_to_train_on(facts: RowFacts, train_domains: Sequence[str], data: DataConfig) -> str:
    counts = ", ".join(
        f"{int((facts.published == name).sum()):,} {name or 'of no split'}"
        for name in ("train", "validation", "test", "")
    )
    cause = " once leaks are dropped" if data.drop_leaks else ""
    return (
        f"nothing is left to train on{cause} (train domains: {_listed(train_domains) or 'none has train rows'}; rows "
        f"published as {counts}): give train rows, other --data.train_domains, or smaller --data.test_fraction and "
        "--data.validation_fraction."
    )


def _rule(
    test_domains: Sequence[str],
    test_drawn: set[str],
    train_domains: Sequence[str],
    validation_drawn: set[str],
    data: DataConfig,
) -> str:
    """How test and validation came about, in one line for the report."""

    def origin(split: str, domains: Sequence[str], drawn: set[str], how: str) -> str:
        by_content = [domain for domain in domains if domain in drawn]
        if not by_content:
            return f"{split} published"
        if len(by_content) == len(domains):
            return f"{split} {how}"
        return f"{split} published, for {_listed(by_content)} {how}"

    test = origin("test", test_domains, test_drawn, f"drawn by content hash ({data.test_fraction:.0%})")
    from_train = f"drawn from train by content hash ({data.validation_fraction:.0%})"
    return f"{test}; {origin('validation', train_domains, validation_drawn, from_train)}"


def _leak_notes(leaks: Leaks, test_rows: dict[str, Dataset]) -> list[str]:
    """A warning, or what was done about it; [] where nothing leaks."""
    if not leaks.exact + leaks.near:
        return []
    test_count = sum(rows.num_rows for rows in test_rows.values())
    found = (
        f"{leaks.exact + leaks.near:,} of {test_count:,} test examples also occur in train or validation "
        f"({leaks.exact:,} exactly, {leaks.near:,} nearly; {leaks.across_domains:,} in another domain)"
    )
    if leaks.dropped:
        return [f"{found}: their {leaks.dropped:,} twins there were removed."]
    return [f"{found}, so scores flatter: --data.drop_leaks true removes them from train and validation."]


def _listed(domains: Sequence[str]) -> str:
    """The first few names, for a message."""
    more = f" and {len(domains) - DOMAINS_SHOWN} more" if len(domains) > DOMAINS_SHOWN else ""
    return ", ".join(domains[:DOMAINS_SHOWN]) + more
