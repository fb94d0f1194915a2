"""Floor 2: controls that train no transformer: what counting words gives, and what looking at no text gives.

A weak control flatters whatever is compared with it, so what ``fit_tfidf`` does was chosen by cross-validation on train
rows (benchmarks/LOG.md); nothing here reads a test label, and nothing is chosen on test rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.labels import as_names, read_label
from hf_transfer.metrics import SMALLEST_PROBABILITY
from hf_transfer.records import LabelSpace, Predictions
from hf_transfer.statistics import derived_seed
from hf_transfer.tasks.classification import Classification

if TYPE_CHECKING:
    from datasets import Dataset
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer

WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)?|\S"
"""A word with what follows its apostrophe (don't, n't), else any single sign: "!" and "?" tell opinions apart, and
Chinese and Japanese, written without spaces, are read by character."""

MANY_ROWS = 1_000
"""From here on a word must stand in two train texts. With fewer rows that costs short texts up to 4 points."""

FOLDS = 5
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularisation C of the logistic regressions. Accuracy is flat in C: finer steps gave nothing."""
RIDGE_STRENGTHS = (0.1, 1.0, 10.0)
"""The same for regression: 1 / alpha. Penalties are worth more beside a squared error than beside a log loss."""
DEFAULT_STRENGTH = {"single_label": 10.0, "multi_label": 10.0, "regression": 1.0}
"""Where there is nothing to choose by. With 16 to 64 reviews C = 10 is 1 to 8 points above C = 1."""

MOST_COEFFICIENTS = 50_000_000
"""400 MB; with more classes than this allows, the rarest words go."""

Outputs = Callable[["Dataset"], np.ndarray]


@dataclass(frozen=True)
class BaselineModel:
    """A fitted control."""

    labels: LabelSpace
    outputs: Outputs
    """``rows -> [n, outputs]`` probabilities in the order of ``labels.names``, or values for regression."""
    parameters: int
    """Coefficients and intercepts that were fitted; for a majority, one number per output."""
    settings: dict[str, Any]
    """What was chosen and how; plain JSON."""

    def predict(self, rows: Dataset) -> Predictions:
        """Predictions in the order of ``rows``: columns ``example_id, domain, text[, text_pair], label``, as read."""
        shape = (len(rows), self.labels.output_count)
        probabilities = self.outputs(rows).astype(np.float32) if len(rows) else np.zeros(shape, np.float32)
        assert probabilities.shape == shape, f"{probabilities.shape} outputs, expected {shape}"
        return Predictions(
            example_ids=np.asarray(rows["example_id"][:], dtype=str),
            domain_ids=np.asarray(rows["domain"][:], dtype=str),
            predicted=Classification().decide(probabilities, self.labels),
            reference=_references(rows, self.labels),
            probabilities=probabilities,
        )


def fit_majority(train: Dataset, labels: LabelSpace) -> BaselineModel:
    """Always the same answer: the class frequencies of ``train``, or its mean for regression.

    Predicted is the most frequent class (of equally frequent ones the first of ``labels.names``); every label that at
    least half of the examples have; or the mean. Class weights play no part.
    """
    references = _references(train, labels)
    if labels.problem == "single_label":
        answer = np.bincount(references, minlength=labels.output_count) / len(train)
    else:
        answer = references.mean(axis=0).reshape(labels.output_count)
    settings = {"answer": [float(value) for value in answer]}
    return BaselineModel(labels, lambda rows: np.tile(answer, (len(rows), 1)), labels.output_count, settings)


def fit_tfidf(train: Dataset, validation: Dataset, labels: LabelSpace, seed: int) -> BaselineModel:
    """Linear model over the words and pairs of neighbouring words of a text.

    A text is the set of its lower-case 1-grams and 2-grams, each weighted by its inverse document frequency, scaled to
    length 1. A pair of texts is the two side by side, words of the second apart from those of the first, and one more
    column with their cosine, without which no linear model sees that they share words. On top stands one logistic
    regression per class against the rest (for two classes there is one in all), weighted by ``labels.class_weights``,
    its probabilities scaled to sum 1 for single_label; ridge regression for numbers.

    The strength of regularisation is the one with the smallest loss (log loss, squared error) in 5-fold
    cross-validation on train; with less than two classes of five examples, or ten examples in all, the one with the
    smallest loss on ``validation``; without validation rows, ``DEFAULT_STRENGTH``. The loss rather than accuracy,
    since few examples tie often in accuracy: with 32 reviews the choice was 1 to 3 points better. Words and their
    weights are those of all train texts in every fold; they depend on no label.

    A class that does not occur in train has probability 0. Where all train examples have the same label, or none has a
    word, the control is ``fit_majority``. Equal arguments give equal results.
    """
    references = _references(train, labels)
    vectorizer = _fit_words(train, labels.output_count)
    if vectorizer is None or (labels.problem != "regression" and not _varied(references, labels).any()):
        model = fit_majority(train, labels)
        reason = "no word in train" if vectorizer is None else "all train examples have the same label"
        return BaselineModel(labels, model.outputs, model.parameters, {"majority": reason, **model.settings})
    features = _features(vectorizer, train)
    strength, chosen_by, losses = _choose_strength(
        (features, references), (partial(_features, vectorizer, validation), validation), labels, seed
    )
    weights, biases, fitted = _fit_linear(features, references, labels, strength)
    settings = {
        "features": features.shape[1],
        "least_texts_per_word": vectorizer.min_df,
        "strength": strength,
        "chosen_by": chosen_by,
        "losses": losses,
    }
    return BaselineModel(
        labels,
        lambda rows: _probabilities(_features(vectorizer, rows), weights, biases, labels),
        fitted * (features.shape[1] + 1),
        settings,
    )


def _references(rows: Dataset, labels: LabelSpace) -> np.ndarray:
    """[n] class ids, [n, classes] 0/1, or [n] floats, as the task's ``encode`` numbers them."""
    if labels.problem == "regression":
        return np.array([float(raw) for raw in rows["label"][:]])
    named = [as_names(read_label(raw, labels.separator)) for raw in rows["label"][:]]
    if labels.problem == "multi_label":
        held = [[name in names for name in labels.names] for names in named]
        return np.array(held, dtype=np.int64).reshape(-1, len(labels.names))
    index = {name: i for i, name in enumerate(labels.names)}
    return np.array([index[names[0]] for names in named], dtype=np.int64)


def _texts(rows: Dataset) -> list[list[str]]:
    """The texts, and the second texts of pairs."""
    return [list(rows[name]) for name in ("text", "text_pair") if name in rows.column_names]


def _fit_words(train: Dataset, outputs: int) -> TfidfVectorizer | None:
    """The words of train, with the same weights for both texts of a pair; None where there are none."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = _texts(train)
    for least_texts in (2, 1) if len(train) >= MANY_ROWS else (1,):
        vectorizer = TfidfVectorizer(
            token_pattern=WORD,
            ngram_range=(1, 2),
            binary=True,
            min_df=least_texts,
            max_features=max(1, MOST_COEFFICIENTS // (outputs * len(texts))),
        )
        try:
            return vectorizer.fit([text for column in texts for text in column])
        except ValueError:  # no word in so many texts: sklearn has no other name for it
            continue
    return None


def _features(vectorizer: TfidfVectorizer, rows: Dataset) -> csr_array:
    """[n, features]: one block of words, or two and the cosine."""
    from scipy import sparse

    blocks = [sparse.csr_array(vectorizer.transform(texts)) for texts in _texts(rows)]
    if len(blocks) == 1:
        return blocks[0]
    cosine = blocks[0].multiply(blocks[1]).sum(axis=1)  # rows have length 1
    return sparse.csr_array(sparse.hstack([*blocks, sparse.csr_array(cosine[:, None])]))


def _varied(references: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """[classes] whether some train examples have the class and some do not."""
    counts = np.array([_has(references, i).sum() for i in range(labels.output_count)])
    return (counts > 0) & (counts < len(references))


def _has(references: np.ndarray, class_id: int) -> np.ndarray:
    """[n] which examples have the class."""
    return np.asarray(references == class_id if references.ndim == 1 else references[:, class_id] == 1)


def _fit_linear(
    features: csr_array, references: np.ndarray, labels: LabelSpace, strength: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights [features, outputs], biases [outputs], and how many columns of them were fitted."""
    from sklearn.linear_model import LogisticRegression, Ridge

    weights = np.zeros((features.shape[1], labels.output_count))
    if labels.problem == "regression":
        ridge = Ridge(alpha=1 / strength, solver="sparse_cg").fit(features, references)
        weights[:, 0] = ridge.coef_
        return weights, np.array([ridge.intercept_]), 1
    # what all or none of the examples have is certain: probability 1 or 0, whatever the text
    biases = np.array([np.inf if _has(references, i).all() else -np.inf for i in range(labels.output_count)])
    to_fit = np.flatnonzero(_varied(references, labels))
    mirrored = labels.problem == "single_label" and len(to_fit) == 2  # either class is the other one's rest
    for i in to_fit[1:] if mirrored else to_fit:
        # beside lbfgs over all classes at once: a third of the time at 77 classes, accuracy equal or 0.2 points up
        classifier = LogisticRegression(C=strength, solver="liblinear", max_iter=1_000)
        classifier.fit(features, _has(references, i), sample_weight=_example_weights(references, labels))
        weights[:, i], biases[i] = classifier.coef_[0], classifier.intercept_[0]
    if mirrored:
        first, second = to_fit
        weights[:, first], biases[first] = -weights[:, second], -biases[second]
    return weights, biases, 1 if mirrored else len(to_fit)


def _example_weights(references: np.ndarray, labels: LabelSpace) -> np.ndarray | None:
    """[n] weight of each example's class; None where all weigh the same."""
    return np.array(labels.class_weights)[references] if labels.class_weights else None


def _probabilities(features: csr_array, weights: np.ndarray, biases: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """[n, classes], or [n, 1] values."""
    logits = features @ weights + biases
    if labels.problem == "regression":
        return logits
    probabilities = 1 / (1 + np.exp(-logits))
    if labels.problem == "single_label":
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def _choose_strength(
    train: tuple[csr_array, np.ndarray],
    validation: tuple[Callable[[], csr_array], Dataset],
    labels: LabelSpace,
    seed: int,
) -> tuple[float, str, dict[str, float]]:
    """The strength with the smallest held-out loss, how it was found, and the mean loss of each that was tried."""
    features, references = train
    # each case: features and references to fit on, features and references to measure on
    cases = [
        (features[fit], references[fit], features[held_out], references[held_out])
        for fit, held_out in folds(references, labels, seed)
    ]
    chosen_by = f"{FOLDS}-fold cross-validation on {len(references):,} train examples"
    if not cases and len(validation[1]):
        make_features, rows = validation
        cases = [(features, references, make_features(), _references(rows, labels))]
        chosen_by = f"loss on {len(rows):,} validation examples"
    if not cases:
        return DEFAULT_STRENGTH[labels.problem], "default: too few train examples to choose by", {}
    count = sum(len(measured) for *_, measured in cases)
    losses = {}
    for strength in RIDGE_STRENGTHS if labels.problem == "regression" else STRENGTHS:
        total = 0.0
        for fit_features, fit_references, held_features, held_references in cases:
            weights, biases, _ = _fit_linear(fit_features, fit_references, labels, strength)
            total += _loss_sum(_probabilities(held_features, weights, biases, labels), held_references, labels)
        losses[strength] = total / count
    best = min(losses, key=losses.__getitem__)  # of equal losses the strongest regularisation
    return best, chosen_by, {f"{strength:g}": loss for strength, loss in losses.items()}


def folds(references: np.ndarray, labels: LabelSpace, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows held out; [] where there are too few. Classes are spread evenly over the folds."""
    import warnings

    from sklearn.model_selection import KFold, StratifiedKFold

    random_state = derived_seed(seed, "tfidf", "folds") % 2**32
    if len(references) < 2 * FOLDS:
        return []
    if labels.problem != "single_label":
        return list(KFold(FOLDS, shuffle=True, random_state=random_state).split(references))
    if np.sum(np.bincount(references) >= FOLDS) < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # it is then in some folds only
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=random_state)
        return list(splitter.split(references, references))


def _loss_sum(probabilities: np.ndarray, references: np.ndarray, labels: LabelSpace) -> float:
    """Squared error, or log loss weighted by class: a class that a fold has not seen costs much, yet not infinity."""
    if labels.problem == "regression":
        return float(np.sum((probabilities[:, 0] - references) ** 2))
    p = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    if labels.problem == "multi_label":
        return float(-np.sum(np.where(references == 1, np.log(p), np.log1p(-p))))
    losses = -np.log(p[np.arange(len(p)), references])
    return float(np.average(losses, weights=_example_weights(references, labels)) * len(losses))
