"""Floor 2: linear probes on the pooled states of a frozen body: which layer to read, and how hard to regularise.

Each probe is the exact optimum of a convex problem, as scikit-learn's LogisticRegression or Ridge would find it on
standardised features, and comes as one weight and one bias for features as they are. What makes a choice among all
layers a matter of seconds: the folds of a cross-validation are solved as one problem (the sum of theirs, which have no
variable in common), so that each product with the features serves all of them; each strength starts where the stronger
regularisation before it has ended; and the features are turned once so that their first coordinates are those along
which they vary most, and the solver steps in parameters that are scaled by how much each varies, since states of a
transformer are so correlated that it would else crawl. Turning changes no penalty, and a solution is turned back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hf_transfer.controls import folds
from hf_transfer.layers import features_of
from hf_transfer.records import LabelSpace

STRENGTHS = tuple(float(f"{10 ** (exponent / 2):.1g}") for exponent in range(-10, 3))
"""Inverse regularisation C, from 1e-5 to 10: strong first, since those are solved in a few steps."""
DEFAULT_STRENGTH = 0.01
"""Where there is nothing to choose by."""
PATIENCE = 2
"""Strengths in a row with a larger loss than the best one that end the search: the loss has one valley in C."""
CERTAIN = 100.0
"""Logit of what all train examples have, or none: probability 1 or 0 in single precision."""
CLOSE, ROUGH = 1e-8, 1e-5
"""Largest entry of the gradient of the mean loss by the solver's scaled parameters at which a probe counts as solved,
the second while choosing; a step that lowers the loss by its square or less ends it too."""
MOST_STEPS = 5_000
EXACT = 1024
"""Rows or features up to which all directions are found; of more, the ``DIRECTIONS`` along which features vary most."""
DIRECTIONS = 256
CURVATURE = {"binary": 0.25, "softmax": 0.5, "squared": 1.0}
"""Largest second derivative of a loss by its logit (Boehning 1992, for the softmax)."""


@dataclass(frozen=True)
class Targets:
    """What a probe learns."""

    values: np.ndarray
    """[n] class ids or floats, [n, classes] 0/1: as encoded rows hold them."""
    labels: LabelSpace

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class LinearHead:
    """Logits of features as they are: ``features @ weight.T + bias``."""

    weight: np.ndarray
    """[outputs, features] float64."""
    bias: np.ndarray
    """[outputs]."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[n, outputs] float64."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Candidate:
    """What was tried, and how it did."""

    layers: str
    """``mean``, ``all`` or the number of a state."""
    strength: float
    cross_validation_loss: float
    """Mean log loss (multi-label: summed over labels) or half the squared error in standard deviations, on held-out
    folds of train; nan where there were too few examples."""
    validation_loss: float
    """The same on in-domain validation; nan where there is none."""
    score: float
    """The run's metric on in-domain validation; nan likewise."""


@dataclass(frozen=True)
class LayerChoice:
    """The probe that was chosen among candidates."""

    layers: str
    strength: float
    head: LinearHead
    rule: str
    candidates: tuple[Candidate, ...]


def choose_probe(
    states: np.ndarray,
    targets: Targets,
    validation: tuple[np.ndarray, Targets] | None,
    ways: Sequence[str],
    seed: int,
    by_validation: bool = True,
    score: Callable[[np.ndarray], float] = lambda logits: float("nan"),
) -> LayerChoice:
    """Fit a probe for each of ``ways`` to read ``states`` [states, rows, width], and choose one.

    The strength of each is that with the smallest loss in 5-fold cross-validation on train; with too few examples for
    that, in-domain validation decides, and without any it is ``DEFAULT_STRENGTH``. Among ways the smallest loss on
    ``validation`` decides; without validation rows that of the cross-validation; without either the last of ``ways``.
    The loss rather than accuracy, which many candidates share where examples are few (benchmarks/LOG.md). Features are
    standardised by all train rows in every fold: means and deviations depend on no label.

    Args:
        validation: states [states, rows, width] and targets; None where there are none.
        by_validation: let validation decide; else it is scored and train decides.
        score: of logits [validation rows, outputs], for the table of candidates.
    """
    tried: list[tuple[Candidate, LinearHead]] = []
    rule = ""
    for way in ways:
        problem = _Problem(features_of(states, way), targets)
        held_out = None if validation is None else (features_of(validation[0], way), validation[1])
        strength, fold_loss, start = problem.choose_strength(seed, held_out if by_validation else None)
        head = problem.fit(strength, start)
        loss = scored = float("nan")
        if held_out is not None:
            logits = head.logits(held_out[0])
            loss, scored = problem.loss(logits, held_out[1]), score(logits)
        tried.append((Candidate(way, strength, fold_loss, loss, scored), head))
    first = tried[0][0]
    cross_validated = not np.isnan(first.cross_validation_loss)
    if validation is not None and by_validation and (len(ways) > 1 or not cross_validated):
        rule, losses = "in-domain validation", [candidate.validation_loss for candidate, _ in tried]
    elif cross_validated:
        rule, losses = "cross-validation on train", [candidate.cross_validation_loss for candidate, _ in tried]
    else:
        rule, losses = "too few examples to choose by", [0.0] * (len(tried) - 1) + [-1.0]
    best, head = tried[int(np.argmin(losses))]
    return LayerChoice(best.layers, best.strength, head, rule, tuple(candidate for candidate, _ in tried))


class _Problem:
    """Train features, standardised, and what is to be learnt from them; settled once, solved for many strengths."""

    def __init__(self, features: np.ndarray, targets: Targets):
        labels, values = targets.labels, targets.values
        self.targets = targets
        self.mean = features.mean(0, dtype=np.float64)
        deviation = features.std(0, dtype=np.float64)
        self.deviation = np.where(deviation > 0, deviation, 1.0)
        self.axes = _Axes.of(standard := torch.from_numpy((features - self.mean) / self.deviation))
        self.features = self.axes.coordinates(standard)
        self.variances = torch.linalg.vector_norm(self.features, dim=0) ** 2
        self.offset, self.scale = 0.0, 1.0  # of what is predicted; regression alone has others
        self.fixed = np.zeros(labels.output_count)
        if labels.problem == "regression":
            self.kind, self.outputs = "squared", np.array([0])
            self.offset, self.scale = float(values.mean()), float(values.std()) or 1.0
            wanted = ((values - self.offset) / self.scale)[:, None]
        elif labels.problem == "multi_label":
            share = values.mean(0)
            self.kind, self.outputs = "binary", np.flatnonzero((share > 0) & (share < 1))
            self.fixed = np.where(share >= 1, CERTAIN, -CERTAIN)
            wanted = values[:, self.outputs]
        else:
            self.outputs = np.unique(values)
            self.fixed = np.full(labels.output_count, -CERTAIN)
            self.kind = "softmax" if len(self.outputs) > 2 else "binary"
            wanted = (values[:, None] == self.outputs[1 if len(self.outputs) <= 2 else 0 :]).astype(float)
        self.wanted = torch.from_numpy(np.ascontiguousarray(wanted, dtype=np.float64))
        weights = np.array(labels.class_weights)[values] if labels.class_weights else np.ones(len(values))
        self.example_weights = torch.from_numpy(weights)

    def rows(self, kind: torch.dtype) -> _Rows:
        """What the solver sees, in single or double precision."""
        features, wanted, weights = (part.to(kind) for part in (self.features, self.wanted, self.example_weights))
        return _Rows(features, wanted, weights, self.variances)

    def choose_strength(
        self, seed: int, held_out: tuple[np.ndarray, Targets] | None
    ) -> tuple[float, float, torch.Tensor | None]:
        """The strength, the held-out loss of its cross-validation, and parameters near those of all of train."""
        if not self.wanted.shape[1]:
            return DEFAULT_STRENGTH, float("nan"), None
        cut = folds(self.targets.values, self.targets.labels, seed)
        if not cut:
            if held_out is None:
                return DEFAULT_STRENGTH, float("nan"), None
            features, targets = held_out
            losses = [self.loss(self.fit(strength, None).logits(features), targets) for strength in STRENGTHS]
            return STRENGTHS[int(np.argmin(losses))], float("nan"), None
        counted = torch.ones(len(self.wanted), len(cut))  # [rows, folds], 0 where a row is held out
        for fold, (_, rows) in enumerate(cut):
            counted[torch.from_numpy(rows), fold] = 0
        single = self.rows(torch.float32)
        best: tuple[float, float, torch.Tensor | None] = (STRENGTHS[0], float("inf"), None)
        parameters, worse = None, 0
        for strength in STRENGTHS:
            parameters = _solve(self.kind, single, counted, strength, parameters, ROUGH)
            held = _losses(self.kind, single, parameters) * (1 - counted)
            loss = float(held.sum() / single.weights.sum())
            if loss < best[1]:
                best, worse = (strength, loss, parameters.mean(0, keepdim=True)), 0
            else:
                worse += 1
            if worse == PATIENCE:
                break
        return best

    def fit(self, strength: float, start: torch.Tensor | None) -> LinearHead:
        """The optimum over all of train, as a head for features that are not standardised."""
        count = self.targets.labels.output_count
        weight, bias = np.zeros((count, len(self.mean))), self.fixed.copy()
        if self.wanted.shape[1]:
            everything = torch.ones(len(self.wanted), 1)
            solved = _solve(self.kind, self.rows(torch.float64), everything, strength, start, CLOSE)[0]
            learnt, constant = self.axes.turned_back(solved[:, :-1]).numpy(), solved[:, -1].numpy()  # by column
            if self.targets.labels.problem == "single_label" and self.kind == "binary":
                # of two logits only the difference counts
                learnt, constant = np.concatenate([-learnt, learnt]) / 2, np.concatenate([-constant, constant]) / 2
            learnt = learnt / self.deviation * self.scale
            weight[self.outputs] = learnt
            bias[self.outputs] = constant * self.scale + self.offset - learnt @ self.mean
        elif self.targets.labels.problem == "single_label":
            bias[self.outputs] = 0.0  # the only class there is
        return LinearHead(weight, bias)

    def loss(self, logits: np.ndarray, targets: Targets) -> float:
        """Mean loss of ``logits`` [n, outputs], weighted as in training."""
        z, values = torch.from_numpy(logits), torch.from_numpy(np.asarray(targets.values))
        if targets.labels.problem == "regression":
            return float((((z[:, 0] - values) / self.scale) ** 2).mean() / 2)
        if targets.labels.problem == "multi_label":
            return float(functional.binary_cross_entropy_with_logits(z, values.double(), reduction="sum") / len(z))
        weights = targets.labels.class_weights
        return float(functional.cross_entropy(z, values, torch.tensor(weights).double() if weights else None))


@dataclass(frozen=True)
class _Axes:
    """Orthonormal axes of a space of features, the first along the directions in which its rows vary most."""

    reflectors: tuple[torch.Tensor, torch.Tensor]
    """A Householder factorisation of those directions, which completes them to all axes without storing those."""
    count: int
    """Axes that are kept: fewer than features where rows are few, which do not vary along the others."""

    @classmethod
    def of(cls, features: torch.Tensor) -> _Axes:
        """Those of ``features`` [rows, features] float64."""
        directions = _main_directions(features)
        rows, width = features.shape
        scaled, factors = torch.geqrf(directions)
        return cls((scaled, factors), rows if rows == directions.shape[1] else width)

    def coordinates(self, features: torch.Tensor) -> torch.Tensor:
        """``features`` [rows, features] along the axes, [rows, count]."""
        # transposed, since LAPACK writes columns: rows then lie in one piece without another copy
        return torch.ormqr(*self.reflectors, features.T, transpose=True).T[:, : self.count].contiguous()

    def turned_back(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights [columns, features] of features from those of their coordinates, [columns, count]."""
        width = len(self.reflectors[0])
        return torch.ormqr(*self.reflectors, functional.pad(weights, (0, width - self.count)).T).T


@dataclass(frozen=True)
class _Rows:
    """What the solver sees."""

    features: torch.Tensor
    """[rows, features], along their axes."""
    wanted: torch.Tensor
    """[rows, columns]: 0/1 (softmax: one 1 in each row), or values."""
    weights: torch.Tensor
    """[rows]."""
    variances: torch.Tensor
    """[features] float64 sums of squares, falling as far as known."""


def _main_directions(features: torch.Tensor) -> torch.Tensor:
    """Directions [features, rank] in which ``features`` [rows, features] vary, orthonormal; of many the main ones by
    subspace iteration (Halko 2011, algorithm 4.4). They set the speed of the solver and not its result, so two rounds
    in single precision do; of few rows, though, they must span all that the rows span."""
    rows, width = features.shape
    if width <= min(rows, EXACT):
        basis = torch.eye(width, dtype=features.dtype)
    elif rows <= EXACT:
        basis, _ = torch.linalg.qr(features.T)
    else:
        single = features.float()
        basis = torch.randn(width, DIRECTIONS, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            basis, _ = torch.linalg.qr(single.T @ (single @ basis))
        basis = basis.double()
    along = features @ basis
    return basis @ torch.linalg.eigh(along.T @ along)[1].flip(1)


def _raw(rows: _Rows, parameters: torch.Tensor) -> torch.Tensor:
    """[rows, problems, columns] from ``parameters`` [problems, columns, features + 1], the bias last."""
    weights = parameters[..., :-1].flatten(0, 1).to(rows.features.dtype)
    return (rows.features @ weights.T).unflatten(1, parameters.shape[:2]) + parameters[..., -1].to(rows.features.dtype)


def _losses(kind: str, rows: _Rows, parameters: torch.Tensor) -> torch.Tensor:
    """[rows, problems] weighted loss of each row."""
    return _loss_of(kind, _raw(rows, parameters), rows.wanted[:, None]) * rows.weights[:, None]


def _loss_of(kind: str, z: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[rows, problems] losses of ``z`` and ``wanted``, both [rows, problems, columns]."""
    if kind == "softmax":
        return z.logsumexp(-1) - (z * wanted).sum(-1)
    if kind == "binary":
        return (functional.softplus(z) - z * wanted).sum(-1)
    return ((z - wanted) ** 2).sum(-1) / 2


def _solve(
    kind: str, rows: _Rows, counted: torch.Tensor, strength: float, start: torch.Tensor | None, tolerance: float
) -> torch.Tensor:
    """Minimise strength * sum of losses + |weights|^2 / 2 for each problem, biases unpenalised; by L-BFGS.

    Args:
        counted: [rows, problems] 1 where a problem sees a row.
        start: parameters to begin with, [problems, columns, features + 1].

    Returns:
        [problems, columns, features + 1] float64.
    """
    from scipy.optimize import minimize

    shape = (counted.shape[1], rows.wanted.shape[1], rows.features.shape[1] + 1)
    wanted = rows.wanted[:, None]
    importance = (counted.to(rows.features.dtype) * rows.weights[:, None])[:, :, None]
    share = 1 / float(rows.weights.sum())  # of the mean loss, whose size does not grow with the data
    penalty = share / strength
    stretch = functional.pad((share * rows.variances + penalty / CURVATURE[kind]) ** 0.5, (0, 1), value=1.0)  # bias: 1

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).view(shape) / stretch
        z = _raw(rows, parameters)
        loss = float((_loss_of(kind, z, wanted) * importance[:, :, 0]).sum(dtype=torch.float64)) * share
        expected = z.softmax(-1) if kind == "softmax" else z.sigmoid() if kind == "binary" else z
        residual = (expected - wanted) * importance * share  # [rows, problems, columns]
        gradient = torch.empty(shape, dtype=torch.float64)
        gradient[..., :-1] = (residual.flatten(1).T @ rows.features).view(*shape[:2], -1)  # the other order is slow
        gradient[..., :-1] += penalty * parameters[..., :-1]
        gradient[..., -1] = residual.sum(0)
        value = loss + penalty / 2 * float((parameters[..., :-1] ** 2).sum())
        return value, (gradient / stretch).flatten().numpy()

    first = torch.zeros(shape, dtype=torch.float64) if start is None else start.double() * stretch
    options: dict[str, Any] = {"gtol": tolerance, "ftol": tolerance**2, "maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS}
    found = minimize(objective, first.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view(shape) / stretch
