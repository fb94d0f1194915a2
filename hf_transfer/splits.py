"""Floor 1: train, validation and test by domain, and what leaks between them.

Published splits are kept. What is missing is drawn by content: the sha256 of an example's normalised text (and pair),
read as a number in [0, 1), falls under the fraction or not. Every domain and class is so cut at the same rate, in
expectation. An exact quota would tie each row to all others; a plain draw would leave rare classes out: none of six
rows falls under a fifth in 26 of 100 cases. So a class of a domain (where labels are numbers, the domain) of which no
text falls under the fraction lends the one that comes nearest, if it can spare it: with five distinct texts for test,
with four outside test for validation, so that three are left to train on.

What stays and what can move:

- The split is the same for every seed and order of rows, and equal texts never part: a lent text takes its twins along.
- A text under the fraction of test is in test for ever; so is any text in or out of test for ever once every class that
  it (or a twin) belongs to has one under the fraction. For validation the same holds among the texts outside test.
- Rows that are added (or relabelled) can move lent texts only. A class takes its text back when one that comes nearer
  joins it, and one that reaches five texts (four for validation) may begin to lend. So of the texts that were there,
  each class moves at most one into test or out of it; validation is drawn from the rest, so that a text which leaves
  test may turn up there, and one that test takes may be replaced there. This ends once a text falls under the fraction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_transfer.config import DataConfig
from hf_transfer.content_cache import content_key, kept_facts, rows_digest
from hf_transfer.duplicates import content_digest, find_leaks, normalised_texts, numbered
from hf_transfer.errors import InputError
from hf_transfer.fields import nearest
from hf_transfer.labels import as_names, guess_problem, read_label
from hf_transfer.records import DomainSplits, DomainTable, Leaks

if TYPE_CHECKING:  # numpy costs 0.1 s of import time
    import numpy as np
    from datasets import Dataset

TEXTS_LEFT_TO_TRAIN = 3
"""A class lends a text to test or validation only where this many other texts stay in train."""
FEWEST_TEXTS_FOR_TEST = TEXTS_LEFT_TO_TRAIN + 2
FEWEST_TEXTS_FOR_VALIDATION = TEXTS_LEFT_TO_TRAIN + 1
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
    strata: tuple[tuple[str, str | None], ...]
    """Domain and class name of each stratum; where labels are numbers, the domain is one stratum of class None."""
    members: np.ndarray
    """[memberships, 2] row and stratum: a row belongs to each of its classes in its domain."""
    digests: np.ndarray
    """[rows, 32] sha256 of the normalised text."""

    def positions(self, salt: str) -> np.ndarray:
        """[rows] floats in [0, 1): equal for equal texts, and independent draws for different salts."""
        import numpy as np

        prefix = salt.encode("utf-8") + b"\0"
        raw = self.digests.tobytes()
        first_bytes = b"".join(
            hashlib.sha256(prefix + raw[start : start + 32]).digest()[:8] for start in range(0, len(raw), 32)
        )
        return (np.frombuffer(first_bytes, dtype=">u8") >> np.uint64(11)) / 2.0**53  # the 53 bits of a float


def split_by_domain(table: DomainTable, data: DataConfig, seed: int) -> DomainSplits:
    """Train and validation rows of the train domains, test rows of each test domain, leaks counted.

    A domain's test rows are the same whether or not it is trained on. ``seed`` draws the cap and nothing else. The
    notes returned are the splitting's own; those of the table stay with the table.

    Raises:
        InputError: unknown domains, a named domain without train or test rows, or nothing left to train on.
    """
    splits, problems = split_and_check(table, data, seed)
    if problems:
        raise InputError(problems)
    return splits


def split_and_check(
    table: DomainTable, data: DataConfig, seed: int, general: Sequence[str] = ()
) -> tuple[DomainSplits, list[str]]:
    """The splits, and the problems that stop a run; [] if they can be used.

    ``general`` domains are scored like any other, and what they could be trained on stands apart, for mixing in.

    Where a named train domain cannot be used, nobody knows which was meant: train and validation then hold the rows
    of all domains, so that what is found wrong with them is wrong whichever it was. Test holds the domains that can be
    scored. Leaks are then neither counted nor dropped, and nothing is capped.
    """
    # 1. Test rows of every domain: as published, else by content. Then which domains train and which test.
    # 2. Train rows of the train domains, and validation from them where none was published.
    # 3. With drop_leaks, train and validation lose what occurs in test; then the cap, so that it is met. Labelled
    #    examples of target domains come on top of the cap, or in place of the source.
    # 4. Leaks are counted between what is trained on and what is scored.
    facts = _row_facts(table, data)
    test, test_drawn = _test_rows(facts, data.test_fraction)
    train_domains, test_domains, notes, problems = _choose_domains(
        facts, test, table.default_train_domains, data, general
    )
    train, validation, validation_drawn = _train_rows(facts, test, train_domains, data.validation_fraction)
    test_rows = {domain: table.rows.select(_rows_of(facts, test, domain)) for domain in test_domains}
    targets, pool, target_problems = _target_pool(facts, test, train_domains, test_domains, data, general)
    problems += target_problems
    mixed, mixed_validation, _ = _train_rows(facts, test, general, data.validation_fraction)
    leaks = Leaks()
    if data.drop_leaks and not problems:
        everything = train | validation | pool | mixed | mixed_validation
        leaks, twins = _leaks(table, everything, test_rows, data.near_duplicate_threshold)
        leaks = replace(leaks, dropped=int(twins.sum()))
        train, validation, pool = train & ~twins, validation & ~twins, pool & ~twins
        mixed, mixed_validation = mixed & ~twins, mixed_validation & ~twins
    train, validation, validation_notes = _mend_validation(facts, train, validation)
    if not train.any() and not problems:
        problems.append(_nothing_to_train_on(facts, train_domains, data))
    class_notes = _class_notes(facts, train, validation, test, train_domains, test_domains)
    if not problems:
        train = _capped(facts, train, data.max_train_examples, seed)
        for domain in targets:
            own = pool & (facts.domain == facts.domains.index(domain))
            problems += _too_few(domain, int(own.sum()), data)
            train = train | _capped(facts, own, data.target_examples[0], seed)
        if not data.with_source:
            train, validation = train & pool, validation & pool
    if not data.drop_leaks and not problems:
        learnt_from = train | validation | mixed | mixed_validation
        leaks, _ = _leaks(table, learnt_from, test_rows, data.near_duplicate_threshold)
    splits = DomainSplits(
        train=table.rows.select(_indices(train)),
        validation=table.rows.select(_indices(validation)),
        test=test_rows,
        train_domains=train_domains,
        leaks=leaks,
        rule=_rule(test_domains, test_drawn, train_domains, validation_drawn, data),
        notes=(*notes, *validation_notes, *class_notes, *_leak_notes(leaks, test_rows)),
        general=table.rows.select(_indices(mixed)) if general else None,
        general_validation=table.rows.select(_indices(mixed_validation)) if general else None,
        general_domains=tuple(general),
    )
    return splits, problems


def _row_facts(table: DomainTable, data: DataConfig) -> RowFacts:
    import numpy as np

    names = [name for name in ("domain", "split", "label") if name in table.rows.column_names]
    columns = table.rows.select_columns(names).with_format("arrow")[:]
    domains, domain = numbered(columns["domain"])
    splits, split = numbered(columns["split"])
    labels: list[Any] = [None]  # parallel text has none
    label = np.zeros(len(domain), dtype=np.int64)
    if "label" in names:
        labels, label = numbered(columns["label"])
    same: dict[str, int] = {}
    as_text = np.array([same.setdefault(str(raw), len(same)) for raw in labels], dtype=np.int64)
    strata, members = _strata(tuple(domains), domain, labels if "label" in names else None, label, data)
    return RowFacts(
        domains=tuple(domains),
        domain=domain,
        published=np.array(splits, dtype=object)[split] if splits else np.empty(0, dtype=object),
        label=as_text[label],
        strata=strata,
        members=members,
        digests=_content_digests(table.rows),
    )


def _content_digests(rows: Dataset) -> np.ndarray:
    """[rows, 32] ``content_digest`` of each normalised text."""
    import numpy as np

    def make() -> str:
        digests = bytearray()
        for text in normalised_texts(rows):
            digests += content_digest(text)
        return digests.hex()

    key = content_key("digests", rows_digest(rows, ["text", "text_pair", "source"]))
    return np.frombuffer(bytes.fromhex(kept_facts(key, make)), dtype=np.uint8).reshape(-1, 32)


def _strata(
    domains: Sequence[str],
    domain: np.ndarray,
    raw_labels: Sequence[Any] | None,
    label: np.ndarray,
    data: DataConfig,
) -> tuple[tuple[tuple[str, str | None], ...], np.ndarray]:
    """``RowFacts.strata``, in order of appearance, and ``RowFacts.members``; a missing label belongs to no class,
    parallel text to its domain.

    Args:
        domain: [rows] index into ``domains``.
        raw_labels: different labels as they were read; None for parallel text.
        label: [rows] index into ``raw_labels``.
    """
    import numpy as np

    if raw_labels is None:
        rows = np.arange(len(domain))
        return tuple((name, None) for name in domains), np.stack([rows, domain], axis=1)
    read = [() if raw is None else read_label(raw, data.label_separator) for raw in raw_labels]
    problem = data.problem if data.problem != "auto" else guess_problem([item for item in read if item != ()])
    numbers: dict[str | None, int] = {}
    classes: list[list[int]] = []  # of each different label
    for item in read:
        names = [None] if problem == "regression" else dict.fromkeys(as_names(item))
        classes.append([numbers.setdefault(name, len(numbers)) for name in names])
    counts = np.array([len(of_one) for of_one in classes], dtype=np.int64)[label] if len(label) else label
    flat = np.array([number for of_one in classes for number in of_one], dtype=np.int64)
    first = np.cumsum([0, *map(len, classes)])[label]
    rows = np.repeat(np.arange(len(label)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    both = domain[rows] * max(1, len(numbers)) + flat[np.repeat(first, counts) + within]
    found, appeared, stratum = np.unique(both, return_index=True, return_inverse=True)
    order = np.argsort(appeared)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    class_names = list(numbers)
    strata = [(domains[number // len(numbers)], class_names[number % len(numbers)]) for number in found[order].tolist()]
    return tuple(strata), np.stack([rows, place[stratum]], axis=1).astype(np.int64).reshape(-1, 2)


def _test_rows(facts: RowFacts, fraction: float) -> tuple[np.ndarray, set[str]]:
    """[rows] which are test, of all domains; and the domains whose test rows were drawn by content."""
    import numpy as np

    published = facts.published == "test"
    numbers = np.setdiff1d(np.arange(len(facts.domains)), facts.domain[published])
    candidates = _trainable(facts, published) & np.isin(facts.domain, numbers)
    drawn = _drawn(facts, candidates, "test", fraction, FEWEST_TEXTS_FOR_TEST)
    return published | drawn, {facts.domains[number] for number in numbers}


def _drawn(facts: RowFacts, candidates: np.ndarray, salt: str, fraction: float, fewest_texts: int) -> np.ndarray:
    """[rows] the candidates under the fraction, and the nearest text of each stratum that has none under it.

    Which strata lend follows from the draw alone, not from what other strata lend, so that no order plays a part.
    """
    import numpy as np

    positions = facts.positions(salt)
    row, stratum = facts.members[candidates[facts.members[:, 0]]].T
    order = np.lexsort((positions[row], stratum))
    position, stratum = positions[row[order]], stratum[order]
    is_first = np.diff(stratum, prepend=-1) != 0
    is_new_text = is_first | (np.diff(position, prepend=-1.0) != 0)
    text_counts = np.bincount(stratum[is_new_text], minlength=len(facts.strata))
    lowest, text_count = position[is_first], text_counts[stratum[is_first]]
    lent = lowest[(lowest >= fraction) & (text_count >= fewest_texts)]
    return candidates & ((positions < fraction) | np.isin(positions, lent))


def _trainable(facts: RowFacts, test: np.ndarray) -> np.ndarray:
    """[rows] which may be trained on: neither test nor published as validation."""
    return ~test & ((facts.published == "train") | (facts.published == ""))


def _train_rows(
    facts: RowFacts, test: np.ndarray, train_domains: Sequence[str], fraction: float
) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """[rows] which are train, which are validation; and the train domains whose validation was drawn by content."""
    import numpy as np

    inside = np.isin(facts.domain, [facts.domains.index(domain) for domain in train_domains])
    published = inside & (facts.published == "validation")
    by_content = inside & ~np.isin(facts.domain, facts.domain[published])
    trainable = inside & _trainable(facts, test)
    drawn = _drawn(facts, trainable & by_content, "validation", fraction, FEWEST_TEXTS_FOR_VALIDATION)
    return trainable & ~drawn, published | drawn, {facts.domains[number] for number in set(facts.domain[by_content])}


def _choose_domains(
    facts: RowFacts, test: np.ndarray, recommended: Sequence[str], data: DataConfig, general: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...], list[str], list[str]]:
    """Train domains and test domains, train first, each in order of appearance; notes on those left out; problems.

    A domain that nobody named is left out where it has no rows for the purpose; a named one is a problem. With a
    problem among the train domains, all that can be trained on are. ``general`` domains are never trained on unless
    they are named, and always scored where they can be.
    """
    trainable = {facts.domains[number] for number in facts.domain[_trainable(facts, test)]}
    scorable = {facts.domains[number] for number in facts.domain[test]}
    train_problems = _domain_problems("train", data.train_domains, facts.domains, trainable)
    test_problems = _domain_problems("test", data.test_domains, facts.domains, scorable)
    own = tuple(domain for domain in facts.domains if domain not in general)
    wanted = (not train_problems and (data.train_domains or recommended)) or own
    train_domains = tuple(domain for domain in facts.domains if domain in wanted and domain in trainable)
    wanted_for_test = (*data.test_domains, *general) if data.test_domains else facts.domains
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
    if not test_domains and not test_problems:
        test_problems.append("no domain has test rows: give more rows, or raise --data.test_fraction.")
    return train_domains, test_domains, notes, train_problems + test_problems


def _target_pool(
    facts: RowFacts,
    test: np.ndarray,
    train_domains: Sequence[str],
    test_domains: Sequence[str],
    data: DataConfig,
    general: Sequence[str],
) -> tuple[tuple[str, ...], np.ndarray, list[str]]:
    """Target domains, [rows] that their labelled examples may be drawn from, and problems.

    The pool is what the domain would be trained on if it were a source, so that draws never meet its test rows.
    ``general`` domains are no targets: their rows are scored and mixed in, and nobody wants to move towards them.
    """
    import numpy as np

    nothing = np.zeros_like(test)
    count = data.target_examples[0] if data.target_examples else 0
    if not count:
        return (), nothing, []
    shifted = [domain for domain in test_domains if domain not in train_domains and domain not in general]
    problems = [
        f"--data.target_domains names {domain!r}, which is no shifted test domain; there are "
        f"{_listed(shifted) or 'none'}."
        for domain in data.target_domains
        if domain not in shifted
    ]
    targets = tuple(domain for domain in shifted if domain in (data.target_domains or shifted))
    if not targets and not problems:
        problems.append(
            "--data.target_examples needs a shifted domain to draw from, and every test domain is trained on: leave "
            "one out of --data.train_domains."
        )
    pool, _, _ = _train_rows(facts, test, targets, data.validation_fraction) if targets else (nothing, nothing, set())
    return targets, pool, problems


def _too_few(domain: str, available: int, data: DataConfig) -> list[str]:
    """A problem where a target domain has fewer rows to draw from than are asked for."""
    count = data.target_examples[0]
    if available >= count:
        return []
    cause = " that do not occur in test" if data.drop_leaks else ""
    return [
        f"--data.target_examples {count}: {domain} has {available:,} train rows{cause} to draw from; ask for fewer."
    ]


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
    rows = table.rows.select(indices)
    columns = ["text", "text_pair", "source", "domain"]
    contents = [rows_digest(part, columns) for part in (rows, *test_rows.values())]

    def find() -> dict[str, Any]:
        leaks, twins = find_leaks(rows, test_rows, threshold)
        return {"leaks": asdict(leaks), "twins": sorted(twins)}

    found = kept_facts(content_key("leaks", repr((threshold, list(test_rows))), *contents), find)
    is_twin = np.zeros_like(learnt_from)
    is_twin[indices[found["twins"]]] = True
    return Leaks(**found["leaks"]), is_twin


def _mend_validation(
    facts: RowFacts, train: np.ndarray, validation: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Train, validation and notes, with at least one example in validation if train can spare it.

    A checkpoint cannot be selected on nothing, and no domain may have the texts to lend one.
    """
    if validation.any() or not train.any():
        return train, validation, []
    positions = facts.positions("validation")
    lowest = train & (positions <= positions[train].min())
    if not (train & ~lowest).any():
        return train, validation, []
    note = (
        "no row fell to validation by content, so the nearest one was taken: give more rows, or raise "
        "--data.validation_fraction."
    )
    return train & ~lowest, lowest, [note]


def _class_notes(
    facts: RowFacts,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    train_domains: Sequence[str],
    test_domains: Sequence[str],
) -> list[str]:
    """One sentence on the classes that are trained on and not selected by, one on those that no score speaks for."""
    import numpy as np

    notes = []
    unselected = _strata_without(facts, validation, train | validation, train_domains)
    if unselected:
        notes.append(f"no validation row, so selection does not see them: {_listed(unselected)}; give more rows.")
    unscored = _strata_without(facts, test, np.ones_like(test), test_domains)
    if unscored:
        notes.append(f"no test row, so no score speaks for them: {_listed(unscored)}; give more rows.")
    return notes


def _strata_without(facts: RowFacts, split: np.ndarray, among: np.ndarray, domains: Sequence[str]) -> list[str]:
    """Strata of ``domains`` with rows ``among`` which none is of the ``split``, smallest first.

    A domain that lacks the split as a whole comes first and stands for its classes.
    """
    import numpy as np

    def named(name: str, row_count: int) -> str:
        return f"{name} ({row_count:,} row{'s' if row_count > 1 else ''})"

    row, stratum = facts.members.T
    row_counts = np.bincount(stratum[among[row]], minlength=len(facts.strata))
    split_counts = np.bincount(stratum[split[row]], minlength=len(facts.strata))
    split_domains = {facts.domains[number] for number in set(facts.domain[split])}
    whole = [domain for domain in domains if domain not in split_domains]
    found = [named(domain, len(_rows_of(facts, among, domain))) for domain in whole]
    for i in np.argsort(row_counts, kind="stable"):
        domain, name = facts.strata[i]
        if row_counts[i] and not split_counts[i] and domain in domains and domain not in whole:
            found.append(named(f"{domain} {name!r}", int(row_counts[i])))
    return found


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

    at_least = "at least 1 text of a class with"
    by_hash = f"drawn by content hash ({data.test_fraction:.0%}, {at_least} {FEWEST_TEXTS_FOR_TEST})"
    from_train = (
        f"drawn from train by content hash ({data.validation_fraction:.0%}, {at_least} {FEWEST_TEXTS_FOR_VALIDATION})"
    )
    return (
        f"{origin('test', test_domains, test_drawn, by_hash)}; "
        f"{origin('validation', train_domains, validation_drawn, from_train)}"
    )


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
