"""Floor 1: how good translations are. BLEU, chrF++, TER and COMET from statistics of each sentence; what went wrong.

A corpus score is not a mean over sentences. It is a function of sums over sentences, so each sentence leaves its
summands (``sentence_statistics``) and the score of any sample of sentences, a bootstrap resample say, is that function
of ``counts @ statistics``. Tokenizers, statistics, values and signatures are sacrebleu's own (Post, A call for clarity
in reporting BLEU scores, 2018), whose only home this is: values equal those of its command line to the last digit.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_transfer.errors import InputError

TRANSLATION_COLUMNS: dict[str, slice] = {
    "bleu": slice(0, 10),
    "chrf": slice(10, 34),
    "ter": slice(34, 36),
    "comet": slice(36, 37),
}
"""Where the summands of each metric are in a row of statistics. bleu: hypothesis and reference length, n-grams of order
1 to 4 that are right, and all of them. chrf: n-grams in the hypothesis, in the reference and in both, for characters of
order 1 to 6, then words of order 1 and 2. ter: edits and reference length. comet: 100 times the sentence's score."""

COLUMN_COUNT = 37

_PACKAGES = {"ja-mecab": ("MeCab", "ja"), "ko-mecab": ("mecab_ko", "ko")}  # module, extra of sacrebleu

COMET_MODEL = "Unbabel/wmt22-comet-da"

LONG_COPY = 5
"""Tokens in a row that an output shares with its source alone from which it counts as partly copied: names and titles,
which rightly stay as they are, are mostly shorter."""

LONGEST_REPEATED, FEWEST_REPEATS = 4, 4
"""An output loops where up to 4 tokens come 4 times or more in a row."""


def sentence_statistics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str],
    sources: Sequence[str] | None = None,
    tokenize: str = "13a",
) -> np.ndarray:
    """Return what every sentence adds to the corpus scores.

    Args:
        hypotheses: n translations; "" where a model gave nothing.
        references: n, one each.
        metrics: keys of ``TRANSLATION_COLUMNS``. 1,000 short sentences take 0.2 s (bleu), 0.3 s (chrf), 0.9 s (ter).
        sources: n; only comet reads them.
        tokenize: BLEU's tokenizer, as in ``sacrebleu --tokenize``: ``zh`` for Chinese, say. The others have their own.

    Returns:
        [n, 37] float64, columns as in ``TRANSLATION_COLUMNS``; nan in those of metrics that were not asked for.

    Raises:
        InputError: comet is asked for and cannot be had.
    """
    assert len(hypotheses) == len(references), "a translation without a reference"
    statistics = np.full((len(hypotheses), COLUMN_COUNT), np.nan)
    if not len(hypotheses):
        return statistics
    for metric in metrics:
        if metric == "comet":
            assert sources is not None and len(sources) == len(hypotheses), "comet reads the sources"
            statistics[:, TRANSLATION_COLUMNS[metric]] = _comet(sources, hypotheses, references)
        else:
            rows = _scorer(metric, tokenize)._extract_corpus_statistics(list(hypotheses), [list(references)])
            statistics[:, TRANSLATION_COLUMNS[metric]] = rows
    return statistics


def columns_of(metric: str, statistics: np.ndarray) -> np.ndarray:
    """[n, columns] the summands of ``metric`` in ``statistics`` [n, 37]; nan if they were not kept."""
    columns = TRANSLATION_COLUMNS[metric]
    if statistics.shape[1] != COLUMN_COUNT:
        return np.full((len(statistics), columns.stop - columns.start), np.nan)
    return statistics[:, columns].astype(np.float64)


def signature(metric: str, tokenize: str = "13a") -> str:
    """How ``metric`` is computed, as the sacrebleu command line prints it; for comet, the model."""
    if metric == "comet":
        return f"model:{COMET_MODEL}"
    return _scorer(metric, tokenize).get_signature().format()


def corpus_value(metric: str, sums: np.ndarray) -> float:
    """Points of bleu, chrf or ter of the column sums [columns] of its statistics, by sacrebleu's own function."""
    return float(_scorer(metric)._compute_score_from_stats(sums.tolist()).score)


def vectorised(metric: str, sums: np.ndarray) -> np.ndarray:
    """Points of bleu, chrf or ter of many samples at once.

    Args:
        metric: which.
        sums: [resamples, columns] sums of its columns over each sample.

    Returns:
        [resamples]: ``corpus_value`` of every row, to 1e-9.
    """
    return {"bleu": _bleu, "chrf": _chrf, "ter": _ter}[metric](sums)


def sacrebleu_interval(
    metric: str, statistics: np.ndarray, seed: int = 12345, resamples: int = 1000
) -> tuple[float, float]:
    """Return what ``sacrebleu --confidence`` prints: the mean of bootstrap resamples and half a 95% interval's width.

    Scores of resamples have the 7 digits of float32, as sacrebleu's do, and come from the same draws.

    Args:
        metric: bleu, chrf or ter.
        statistics: [n, 37], n at least 1.
        seed: ``SACREBLEU_SEED``; sacrebleu's default.
        resamples: ``--confidence-n``.
    """
    scorer = _scorer(metric)
    rows = columns_of(metric, statistics).astype(np.float32)
    rng = np.random.default_rng(seed)
    # one resample at a time: sacrebleu draws all of them at once, which is a copy of the statistics for each
    scores = [
        scorer._compute_score_from_stats(rows[rng.choice(len(rows), size=len(rows), replace=True)].sum(0))
        for _ in range(resamples)
    ]
    if len({type(drawn.score) for drawn in scores}) > 1:
        for drawn in scores:  # a 0 comes as a plain float, and their mean takes one kind only
            drawn.score = np.float32(drawn.score)
    summary = scorer._compute_score_from_stats(rows.sum(0))
    summary.estimate_ci(scores)
    return float(summary._mean), float(summary._ci)


def approximate_randomisation(metric: str, a: np.ndarray, b: np.ndarray, trials: int) -> float:
    """Return the two-sided p-value of ``sacrebleu.significance.PairedTest`` (``ar``) with equal results counted.

    The test swaps the two translations of a sentence with probability 1/2 and asks how often the scores then are at
    least as far apart (Riezler and Maxwell, On some pitfalls in automatic evaluation and significance testing for MT,
    2005). sacrebleu asks how often they are farther: that never happens to equal systems or to those that differ in one
    sentence, which would be the most certain finding of all. Trials in which the scores are exactly as far apart as
    those observed are therefore added. Where there are none, as with most sentences translated in two ways, the
    p-value is that of ``sacrebleu --paired-ar`` to the last digit: the draws are its own, from ``SACREBLEU_SEED``.

    Args:
        metric: bleu, chrf or ter.
        a: [n, columns] statistics of one system, only the columns of ``metric``.
        b: of the other, on the same sentences.
        trials: how often to swap; takes 2 bytes per trial and sentence.
    """
    from sacrebleu.significance import PairedTest

    recorded: Any = _Recorded(metric)
    systems: list[Any] = [("b", _Rows(b)), ("a", _Rows(a))]
    results: dict[str, Any] = PairedTest(systems, {metric: recorded}, None, test_type="ar", n_samples=trials)()[1]
    (p_value,) = (of_metric[1].p_value for name, of_metric in results.items() if name != "System")
    scores = np.array(recorded.scores)
    assert len(scores) == 2 + 2 * trials, "sacrebleu scores both systems, then both sides of every trial"
    apart = np.abs(scores[2 : 2 + trials] - scores[2 + trials :])
    return float(p_value + (apart == abs(scores[0] - scores[1])).sum() / (trials + 1))


def tokenizer_of(language: str) -> str:
    """sacrebleu's choice for a target language, as with ``-l en-zh``: a language without spaces needs its own.

    Args:
        language: two-letter code; "" where there is none for all.
    """
    from sacrebleu.metrics import BLEU

    return BLEU._TOKENIZER_MAP.get(language, "13a")


def tokenizer_problem(tokenize: str) -> str:
    """Why BLEU cannot be computed with ``tokenize`` here, with the remedy; "" if it can."""
    module, extra = _PACKAGES.get(tokenize, ("", ""))
    if not module or importlib.util.find_spec(module) is not None:
        return ""
    return (
        f"BLEU with sacrebleu's tokenizer {tokenize} needs a package that is not installed: pip install "
        f"'sacrebleu[{extra}]', or count characters with --evaluate.tokenize char."
    )


def comet_problem() -> str:
    """Why comet cannot be computed here, with the remedy; "" if it can. Nothing is downloaded."""
    if importlib.util.find_spec("comet") is None:
        return "`comet` needs a package that is not installed: pip install unbabel-comet."
    try:
        _comet_file()
    except Exception:  # whatever the package says of a model that is not there: its text names neither place nor remedy
        return (
            f"`comet` needs the model {COMET_MODEL}, which is not in the Hugging Face cache: fetch it once (2.3 GB) by "
            f"python -c \"import comet; comet.load_from_checkpoint(comet.download_model('{COMET_MODEL}'))\"."
        )
    return ""


def quality_counts(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a"
) -> dict[str, float]:
    """Count outputs that look wrong whatever their score. Tokens are those that BLEU counts, case aside.

    Returns:
        ``count``: sentences.
        ``length_ratio``: tokens of all outputs divided by those of all references; nan if these have none.
        ``copied``: outputs equal to their source but for case and whitespace. Empty ones, and those whose reference is
        the source as well, are not counted.
        ``copy_rate``: ``copied`` divided by ``count``; nan if there are no sentences.
        ``partly_copied``: further outputs with a run of ``LONG_COPY`` tokens that the source has and the reference has
        not.
        ``empty``: outputs of whitespace alone whose source is not.
        ``repeated``: outputs in which an n-gram of 1 to 4 tokens comes 4 times or more in a row, and whose reference
        has no such run.
    """
    assert len(sources) == len(hypotheses) == len(references), "sentences without a partner"
    split = _scorer("bleu", tokenize)._preprocess_segment
    copied = partly_copied = empty = repeated = hypothesis_tokens = reference_tokens = 0
    for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True):
        of_source, output, wanted = (split(text).casefold().split() for text in (source, hypothesis, reference))
        hypothesis_tokens, reference_tokens = hypothesis_tokens + len(output), reference_tokens + len(wanted)
        is_copy = bool(hypothesis.strip()) and _folded(hypothesis) == _folded(source) != _folded(reference)
        copied += is_copy
        partly_copied += not is_copy and bool((_runs(output) & _runs(of_source)) - _runs(wanted))
        empty += not hypothesis.strip() and bool(source.strip())
        repeated += _loops(output) and not _loops(wanted)
    nan, count = float("nan"), len(hypotheses)
    return {
        "count": count,
        "length_ratio": hypothesis_tokens / reference_tokens if reference_tokens else nan,
        "copied": copied,
        "copy_rate": copied / count if count else nan,
        "partly_copied": partly_copied,
        "empty": empty,
        "repeated": repeated,
    }


def _scorer(metric: str, tokenize: str = "13a") -> Any:
    """The metric as the sacrebleu command line sets it up, for one reference."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    scorer = {"bleu": lambda: BLEU(tokenize=tokenize), "chrf": lambda: CHRF(word_order=2), "ter": TER}[metric]()
    scorer.num_refs = 1  # set where references are read; signatures are asked for before
    return scorer


# --- corpus scores of many samples ---


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Papineni et al., BLEU (2002), smoothed as in mteval-v13a: the k-th order without a match counts as 2^-k."""
    lengths, matches, totals = sums[:, :2], sums[:, 2:6], sums[:, 6:10]
    unmatched = matches == 0
    with np.errstate(divide="ignore", invalid="ignore"):  # samples that have no 4-gram or no token: 0 points, below
        counted = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=1), matches)
        points = np.exp(np.log(100 * counted / totals).mean(axis=1))
        brevity = np.exp(np.minimum(0, 1 - lengths[:, 1] / lengths[:, 0]))
        value = brevity * points
    return np.where(unmatched.all(axis=1) | (totals == 0).any(axis=1), 0.0, value)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """Popović, chrF++ (2017): F2 of precision and recall, each averaged over the orders that both sides have."""
    hypothesis, reference, matches = (sums[:, start::3] for start in range(3))
    both = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(both.sum(axis=1), 1)
    precision, recall = (
        np.divide(matches, total, out=np.zeros(total.shape), where=both).sum(axis=1) / orders
        for total in (hypothesis, reference)
    )
    below = 4 * precision + recall
    return 100 * np.divide(5 * precision * recall, below, out=np.zeros(len(sums)), where=below > 0)


def _ter(sums: np.ndarray) -> np.ndarray:
    """Snover et al., A study of translation edit rate (2006): edits per reference token."""
    edits, length = sums.T
    without_reference = (edits > 0).astype(np.float64)
    return 100 * np.divide(edits, length, out=without_reference, where=length > 0)


# --- sacrebleu's paired test, handed statistics in the place of text ---


class _Rows:
    """Statistics [n, columns] of a system's sentences."""

    __array_ufunc__ = None  # ``selected @ rows`` is __rmatmul__: numpy's needs 8 bytes per trial and sentence

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __rmatmul__(self, selected: np.ndarray) -> np.ndarray:
        """[trials, columns] sums over the sentences ``selected`` [trials, n]."""
        trials_at_once = max(1, (1 << 20) // max(1, len(self.rows)))
        parts = (selected[start : start + trials_at_once] for start in range(0, len(selected), trials_at_once))
        return np.concatenate([part @ self.rows for part in parts])


class _Recorded:
    """A metric of ``PairedTest`` whose sentences are ``_Rows``, and which keeps every score that it gave."""

    def __init__(self, metric: str):
        self.scorer = _scorer(metric)
        self.scores: list[float] = []

    def _extract_corpus_statistics(self, hypotheses: _Rows, references: None) -> _Rows:
        return hypotheses

    def _aggregate_and_compute(self, statistics: _Rows | np.ndarray) -> Any:
        rows = statistics.rows if isinstance(statistics, _Rows) else statistics
        value = self.scorer._compute_score_from_stats(rows.sum(axis=0).tolist())
        self.scores.append(value.score)
        return value

    def get_signature(self) -> Any:
        return self.scorer.get_signature()


# --- COMET ---


def _comet_file() -> str:
    import comet

    return comet.download_model(COMET_MODEL, local_files_only=True)


@functools.cache
def _comet_model() -> Any:
    import comet

    return comet.load_from_checkpoint(_comet_file(), local_files_only=True)


def _comet(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """[n, 1] Rei et al., COMET-22 (2022), times 100."""
    problem = comet_problem()
    if problem:
        raise InputError(problem)
    import torch

    rows = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    ]
    gpus = int(torch.cuda.is_available())
    scores = _comet_model().predict(rows, batch_size=16, gpus=gpus, progress_bar=False).scores
    return 100 * np.asarray(scores, dtype=np.float64)[:, None]


# --- outputs that look wrong ---


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _runs(tokens: Sequence[str]) -> set[tuple[str, ...]]:
    """Every run of ``LONG_COPY`` tokens."""
    return {tuple(tokens[start : start + LONG_COPY]) for start in range(len(tokens) - LONG_COPY + 1)}


def _loops(tokens: Sequence[str]) -> bool:
    """Whether up to ``LONGEST_REPEATED`` tokens come ``FEWEST_REPEATS`` times or more in a row."""
    for size in range(1, LONGEST_REPEATED + 1):
        equal = 0  # tokens in a row that are the one ``size`` places before them
        for before, token in zip(tokens, tokens[size:], strict=False):
            equal = equal + 1 if token == before else 0
            if equal == size * (FEWEST_REPEATS - 1):
                return True
    return False
