"""Floor 2: how far a target domain is from the source, in features and in words, before anything is scored.

Features are rows of numbers per example, pooled hidden states of the checkpoint say; they come in as arrays. Words
say which shift it is, features say how much of it the model sees. None of the numbers is an estimate of lost
accuracy: they rank targets, and roughly so. With fewer examples CORAL, Fréchet distance and Jensen-Shannon divergence
grow and PAD shrinks (only MMD is free of bias), so compare pairs of about equal sizes. P-values are of the hypothesis
that both sides are drawn from one distribution.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.errors import InputError
from hf_transfer.statistics import derived_seed

FEATURE_EXAMPLES = 1000
"""Examples a side from which PAD, CORAL and Fréchet distance are computed in ``describe_distances``."""
MMD_EXAMPLES = 500
"""Examples a side in MMD, which holds a kernel of all pairs: 1,000 x 1,000 numbers, 8 MB."""
FOLDS = 5
INVERSE_REGULARISATION = 0.01
"""C of the domain classifier, on standardised features. Of 1, 0.1, 0.01 and 0.001 it had the lowest held-out errors on
MiniLM features (d = 384) of three review domains: 0.069 between kitchen and electronics, where 1 had 0.097."""
ROUNDING = 1e-12
"""Relative size under which a difference of sums is taken for zero."""


def describe_distances(
    source_texts: Sequence[str],
    target_texts: Sequence[str],
    source_features: np.ndarray | None,
    target_features: np.ndarray | None,
    source_labels: Sequence[Any] | np.ndarray | None,
    target_labels: Sequence[Any] | np.ndarray | None,
    seed: int,
    permutations: int = 500,
) -> dict[str, Any]:
    """Return every distance between a source and a target, ready for JSON.

    Args:
        source_texts: of the train domains together; a pair of texts as one string. All of them are counted.
        target_texts: of the target domain.
        source_features: [n, d], of these texts or of some of them. More than ``FEATURE_EXAMPLES`` rows are
            subsampled, the same ones for the same seed.
        target_features: [m, d]. Where either is None, so is what needs features.
        source_labels: class ids or names; None where there are none, and for regression and multi-label tasks.
        target_labels: likewise.
        seed: of subsamples, folds and permutations.
        permutations: of the MMD test; the smallest p-value is 1 / (permutations + 1).

    Returns:
        ``proxy_a, proxy_a_p, mmd, mmd_p, coral, frechet, jensen_shannon, oov_rate, length_ratio, label_shift`` (a
        float, or None where it is undefined or its input is missing) and ``words`` (see ``most_shifted_words``).

    Raises:
        InputError: a feature is not a finite number.
    """
    found: dict[str, float | None] = dict.fromkeys(("proxy_a", "proxy_a_p", "mmd", "mmd_p", "coral", "frechet"))
    if source_features is not None and target_features is not None:
        source = _subsample(source_features, FEATURE_EXAMPLES, derived_seed(seed, "features", "source"))
        target = _subsample(target_features, FEATURE_EXAMPLES, derived_seed(seed, "features", "target"))
        found["proxy_a"], found["proxy_a_p"] = proxy_a_distance(source, target, seed)
        found["mmd"], found["mmd_p"] = maximum_mean_discrepancy(source, target, permutations, seed)
        found["coral"] = coral_distance(source, target)
        found["frechet"] = frechet_distance(source, target)
    source_counts, target_counts = word_counts(source_texts), word_counts(target_texts)
    found["jensen_shannon"] = jensen_shannon(source_counts, target_counts)
    found["oov_rate"] = out_of_vocabulary_rate(source_counts, target_counts)
    found["length_ratio"] = length_ratio(source_counts, len(source_texts), target_counts, len(target_texts))
    found["label_shift"] = label_shift(source_labels, target_labels)
    plain = {name: None if value is None or math.isnan(value) else value for name, value in found.items()}
    return {**plain, "words": most_shifted_words(source_counts, target_counts)}


def proxy_a_distance(source: np.ndarray, target: np.ndarray, seed: int) -> tuple[float, float]:
    """Tell source from target with a linear classifier, and return how well that goes.

    PAD = 2(1 - 2e) (Ben-David et al., Analysis of Representations for Domain Adaptation, 2007; the proxy of their
    A-distance), with e the held-out error of a logistic regression on standardised features, over 5 folds.
    Both sides are subsampled to the size of the smaller one and lie equally in every fold, so that e is also the
    balanced error and 0.5 by chance.

    The p-value is that of a classifier two-sample test (Lopez-Paz and Oquab, 2017, section 3): learn on one half, count
    right answers on the other, exact binomial test against chance, one-sided. The folds' own count must not be tested
    so: each example that is predicted also trained the classifier of the others, and with no difference at
    all, 8 to 13% of such p-values fell under 0.05 (200 to 400 simulations each, 50 to 200 examples a side); of the
    halves' p-values 4 to 6%.

    Args:
        source: [n, d]; target: [m, d].
        seed: of the subsample, the folds and the halves.

    Returns:
        ``(distance, p_value)``: the distance from 0 (indistinguishable) to 2 (always told apart); values
        below 0, which chance brings, are 0. Both nan where a side has fewer than two examples.

    Raises:
        InputError: a feature is not a finite number.
    """
    _check_features(source, target)
    count = min(len(source), len(target))
    if count < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(derived_seed(seed, "proxy_a"))
    sides = np.stack([rows[rng.permutation(len(rows))[:count]] for rows in (source, target)]).astype(np.float64)

    fold_of_row = np.arange(count) % min(FOLDS, count)
    right = sum(_right_answers(sides, fold_of_row != fold) for fold in range(min(FOLDS, count)))
    error = 1 - right / (2 * count)
    return float(np.clip(2 * (1 - 2 * error), 0, 2)), _two_sample_p_value(sides)


def _two_sample_p_value(sides: np.ndarray) -> float:
    """``sides``: [2, count, d], rows in random order."""
    from scipy.stats import binomtest

    count = sides.shape[1]
    learns = np.arange(count) < count // 2
    right = _right_answers(sides, learns)
    return float(binomtest(right, 2 * int((~learns).sum()), 0.5, alternative="greater").pvalue)


def _right_answers(sides: np.ndarray, learns: np.ndarray) -> int:
    """Learn on the rows ``learns`` [count] of both sides [2, count, d]; return how many others are told right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000))
    classifier.fit(np.concatenate(sides[:, learns]), np.repeat([0, 1], learns.sum()))
    told = classifier.predict(np.concatenate(sides[:, ~learns]))
    return int((told == np.repeat([0, 1], (~learns).sum())).sum())


def maximum_mean_discrepancy(
    source: np.ndarray, target: np.ndarray, permutations: int, seed: int
) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy under a Gaussian kernel, and how likely chance gives as much.

    Unbiased estimate of Gretton et al., A Kernel Two-Sample Test, 2012, equation 3: the mean kernel inside each side,
    without the diagonal, less twice the mean between them. k(x, y) = exp(-|x - y|^2 / 2 s^2) with s the median distance
    of two distinct examples of both sides together (their section 8).

    Args:
        source: [n, d]; target: [m, d]. More than ``MMD_EXAMPLES`` rows are subsampled.
        permutations: how often the sides are drawn anew from all examples.
        seed: of subsamples and permutations.

    Returns:
        ``(mmd2, p_value)``: mmd2 is 0 on average without a difference, and then negative about as often as positive; at
        most 2. The p-value counts the observed split as one of the permutations (Phipson and Smyth, 2010), so it is
        never 0. Both nan where a side has fewer than two examples.

    Raises:
        InputError: a feature is not a finite number.
    """
    _check_features(source, target)
    source = _subsample(source, MMD_EXAMPLES, derived_seed(seed, "mmd", "source"))
    target = _subsample(target, MMD_EXAMPLES, derived_seed(seed, "mmd", "target"))
    n, m = len(source), len(target)
    if min(n, m) < 2:
        return math.nan, math.nan
    kernel = _gaussian_kernel(np.concatenate([source, target]).astype(np.float64))
    np.fill_diagonal(kernel, 0)

    # A row per split of all examples, the observed one first: one matrix product then gives every sum of kernels.
    observed = np.arange(n + m) < n
    rng = np.random.default_rng(derived_seed(seed, "mmd", "permutations"))
    shuffled = rng.permuted(np.tile(observed, (permutations, 1)), axis=1)
    in_source = np.concatenate([observed[None], shuffled]).astype(np.float64)
    of_row = kernel.sum(axis=1)
    inside_source = np.einsum("pi,pi->p", in_source @ kernel, in_source)
    between = in_source @ of_row - inside_source
    inside_target = of_row.sum() - inside_source - 2 * between
    values = inside_source / (n * (n - 1)) + inside_target / (m * (m - 1)) - 2 * between / (n * m)
    as_large = int((values[1:] >= values[0] - ROUNDING).sum())  # equal splits must not differ by rounding
    return float(values[0]), (1 + as_large) / (1 + permutations)


def _gaussian_kernel(rows: np.ndarray) -> np.ndarray:
    """[count, count] from ``rows`` [count, d]; all ones where all rows are equal."""
    rows = rows - rows.mean(axis=0)  # distances stay, and less is lost in the difference below
    lengths = (rows**2).sum(axis=1)
    squared = lengths[:, None] + lengths - 2 * rows @ rows.T
    squared[squared <= ROUNDING * lengths.max()] = 0
    distinct = squared[np.triu_indices(len(rows), k=1)]
    distinct = distinct[distinct > 0]  # copies would make the median 0 where they are more than half of all pairs
    if not len(distinct):
        return np.ones_like(squared)
    bandwidth = np.median(np.sqrt(distinct))
    return np.exp(-squared / (2 * bandwidth**2))


def coral_distance(source: np.ndarray, target: np.ndarray) -> float:
    """Return how much the covariances differ: |C_S - C_T|_F^2 / 4d^2 (Sun and Saenko, Deep CORAL, 2016, equation 1).

    ``source`` is [n, d], ``target`` [m, d]; nan where either has fewer than two examples. It does not see means. It
    scales with the fourth power of the features, so values compare within one checkpoint only.

    Raises:
        InputError: a feature is not a finite number.
    """
    _check_features(source, target)
    if min(len(source), len(target)) < 2:
        return math.nan
    covariances = [np.atleast_2d(np.cov(rows, rowvar=False, dtype=np.float64)) for rows in (source, target)]
    return float(((covariances[0] - covariances[1]) ** 2).sum() / (4 * source.shape[1] ** 2))


def frechet_distance(source: np.ndarray, target: np.ndarray) -> float:
    """Return the squared Fréchet distance of two normal distributions with the sides' means and covariances.

    |mu_S - mu_T|^2 + tr(C_S + C_T - 2 (C_S C_T)^(1/2)) (Dowson and Landau, 1982; Heusel et al., 2017, equation 6). With
    C = R'R for each side, the eigenvalues of C_S C_T are those of the symmetric (R_S R_T')(R_S R_T')', so the
    trace of the root is the sum of the singular values of R_S R_T': real, and exact where covariances are singular.

    ``source`` is [n, d], ``target`` [m, d]. At least 0, in squared units of the features; nan where either has fewer
    than two examples.

    Raises:
        InputError: a feature is not a finite number.
    """
    _check_features(source, target)
    if min(len(source), len(target)) < 2:
        return math.nan
    means = [rows.astype(np.float64).mean(axis=0) for rows in (source, target)]
    factors = [_covariance_factor(rows) for rows in (source, target)]
    traces = sum(float((factor**2).sum()) for factor in factors)
    root = float(np.linalg.norm(factors[0] @ factors[1].T, ord="nuc"))
    return max(0.0, float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * root)


def _covariance_factor(rows: np.ndarray) -> np.ndarray:
    """R [min(count, d), d] with R'R the covariance of ``rows`` [count, d]; no d x d matrix is decomposed for it."""
    rows = rows.astype(np.float64)
    centred: np.ndarray = (rows - rows.mean(axis=0)) / math.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs.

    A word is a run of Unicode letters, digits, underscores and the marks that combine with them, with single
    apostrophes inside ("don't" is one). Before, texts are brought to NFKC and lower case, and curly apostrophes made
    straight, so that a difference in typing is no difference in words. Where a script puts no space between words, a
    run is a phrase.
    """
    counts: Counter[str] = Counter()
    find = _word_pattern().findall
    for text in texts:
        counts.update(find(unicodedata.normalize("NFKC", text).replace("’", "'").lower()))
    return counts


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    # ``\w`` leaves marks out (categories Mn, Mc, Me): words of Hindi or Thai would fall apart at each vowel sign. The
    # two joiners stand inside words too. The first plane has the marks of all but rare scripts.
    marks = "".join(chr(code) for code in range(0x10000) if unicodedata.category(chr(code))[0] == "M") + "\u200c\u200d"
    return re.compile(rf"\w[\w{marks}]*(?:'\w[\w{marks}]*)*")


def jensen_shannon(counts_a: Mapping[str, int], counts_b: Mapping[str, int]) -> float:
    """Return the Jensen-Shannon divergence of two word distributions in bits (Lin, 1991).

    From 0 (equal shares) to 1 (no common word); the divergence, not its square root; nan where either side has no word.
    Samples of one distribution differ too, the more the rarer their words are and the fewer they hold.
    """
    _, _, _, contributions = _word_shares(counts_a, counts_b)
    return float(min(1.0, contributions.sum())) if len(contributions) else math.nan


def most_shifted_words(
    counts_a: Mapping[str, int], counts_b: Mapping[str, int], most: int = 20
) -> list[list[str | float]]:
    """Return ``[word, share in a, share in b]`` of the words that add most to the Jensen-Shannon divergence.

    The largest contribution first, equal ones by the alphabet; at most ``most``, and none that adds nothing. A share
    is a fraction of all words of its side. [] where either side has no word.
    """
    words, share_a, share_b, contributions = _word_shares(counts_a, counts_b)
    order = np.argsort(-contributions, kind="stable")[:most]  # stable: words come sorted
    return [[words[i], float(share_a[i]), float(share_b[i])] for i in order.tolist() if contributions[i] > 0]


def _word_shares(
    counts_a: Mapping[str, int], counts_b: Mapping[str, int]
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Words of both sides, sorted; their shares of a and of b; what each adds to the divergence, in bits, at least 0.

    All empty where either side has no word.
    """
    from scipy.special import rel_entr

    words = sorted({*counts_a, *counts_b})
    a = np.array([counts_a.get(word, 0) for word in words], dtype=np.float64)
    b = np.array([counts_b.get(word, 0) for word in words], dtype=np.float64)
    if not a.sum() or not b.sum():
        return [], np.empty(0), np.empty(0), np.empty(0)
    a, b = a / a.sum(), b / b.sum()
    middle = (a + b) / 2
    bits = (rel_entr(a, middle) + rel_entr(b, middle)) / (2 * math.log(2))
    return words, a, b, np.maximum(bits, 0)  # each is at least 0 but for rounding


def out_of_vocabulary_rate(source_counts: Mapping[str, int], target_counts: Mapping[str, int]) -> float:
    """Return the share of the target's words, repetitions counted, that never occur in the source; nan of no words."""
    total = sum(target_counts.values())
    unseen = sum(count for word, count in target_counts.items() if not source_counts.get(word, 0))
    return unseen / total if total else math.nan


def length_ratio(
    source_counts: Mapping[str, int], source_texts: int, target_counts: Mapping[str, int], target_texts: int
) -> float:
    """Return the mean words of a target text over the mean words of a source text.

    Counts come from ``word_counts``, with the number of texts that they were taken from. Nan where a side has no text
    or the source no word.
    """
    source_words = sum(source_counts.values())
    if not source_words or not source_texts or not target_texts:
        return math.nan
    return (sum(target_counts.values()) / target_texts) / (source_words / source_texts)


def label_shift(
    source_labels: Sequence[Any] | np.ndarray | None, target_labels: Sequence[Any] | np.ndarray | None
) -> float | None:
    """Return the total variation distance of two label distributions: half the sum of |share in S - share in T|.

    From 0 (equal shares) to 1 (no common class). None where a side is missing or empty, and where a label is no
    class, which is an integer or a string: numbers of a regression and label sets have no such shares. Regression
    values that happen to be written as integers cannot be told from class ids: hand over None for them.
    """
    if source_labels is None or target_labels is None:
        return None
    sides = [list(source_labels), list(target_labels)]
    classes = all(isinstance(label, int | str | np.integer | np.bool_) for side in sides for label in side)
    if not all(sides) or not classes:
        return None
    a, b = (Counter(side) for side in sides)
    return sum(abs(a[label] / a.total() - b[label] / b.total()) for label in {*a, *b}) / 2


def _subsample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most ``most`` of ``rows``, in their order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])]


def _check_features(source: np.ndarray, target: np.ndarray) -> None:
    shapes = f"{source.shape} and {target.shape}"
    assert source.ndim == target.ndim == 2 and source.shape[1] == target.shape[1], f"features of shapes {shapes}"
    for name, rows in (("source", source), ("target", target)):
        finite = np.isfinite(rows)
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise InputError(
                f"features of the {name}: row {row} holds {rows[row, column]} in column {column}. Distances need "
                f"finite numbers: take the features from a checkpoint whose outputs are finite, or leave them out."
            )
