"""Probes are the optimum that scikit-learn finds, and what is chosen is what its cross-validation would choose."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_transfer.layer_probe import CERTAIN, DEFAULT_STRENGTH, EXACT, STRENGTHS, Targets, _Axes, _Problem, choose_probe
from hf_transfer.layers import features_of
from hf_transfer.records import LabelSpace
from hf_transfer.statistics import derived_seed

TWO = LabelSpace("single_label", ("bad", "good"))
THREE = LabelSpace("single_label", ("bad", "good", "mixed"))
MULTI = LabelSpace("multi_label", ("taste", "plot", "speed"))
NUMBER = LabelSpace("regression")
SPACES = {"two": TWO, "three": THREE, "multi": MULTI, "number": NUMBER}


def make_features(count: int = 150, width: int = 12, seed: int = 0) -> np.ndarray:
    """Correlated columns of unlike sizes and means, one of them constant."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) * np.geomspace(0.1, 10, width)
    features[:, 3] = 7.0
    return (features + rng.normal(size=width)).astype(np.float32)


def make_targets(features: np.ndarray, labels: LabelSpace, seed: int = 1) -> np.ndarray:
    """What columns 0 to 2 say, with noise."""
    rng = np.random.default_rng(seed)
    signal = StandardScaler().fit_transform(features)[:, :3] + rng.normal(size=(len(features), 3))
    if labels.problem == "regression":
        return signal[:, 0] * 4 + 100
    if labels.problem == "multi_label":
        return (signal > 0.3).astype(float)
    return signal[:, : len(labels.names)].argmax(1)


def sklearn_logits(features: np.ndarray, values: np.ndarray, labels: LabelSpace, strength: float, **fit) -> np.ndarray:
    """By a pipeline of StandardScaler and LogisticRegression or Ridge."""

    def pipeline(model) -> np.ndarray:
        return make_pipeline(StandardScaler(), model)

    def logistic():
        return pipeline(LogisticRegression(C=strength, tol=1e-10, max_iter=10_000))

    features = features.astype(np.float64)
    if labels.problem == "regression":
        return pipeline(Ridge(alpha=1 / strength)).fit(features, values).predict(features)[:, None]
    if labels.problem == "multi_label":
        columns = [logistic().fit(features, column).decision_function(features) for column in values.T]
        return np.stack(columns, axis=1)
    found = logistic().fit(features, values, **fit).decision_function(features)
    return found if found.ndim == 2 else np.stack([-found / 2, found / 2], axis=1)


@pytest.mark.parametrize("strength", [1e-3, 0.3, 10])
@pytest.mark.parametrize("exact", [EXACT, 5], ids=["all directions", "main directions"])
@pytest.mark.parametrize("count", [150, 8], ids=["many", "fewer than columns"])
@pytest.mark.parametrize("name", SPACES)
def test_a_probe_is_the_optimum_that_scikit_learn_finds_on_standardised_features(
    name, count, exact, strength, monkeypatch
):
    monkeypatch.setattr("hf_transfer.layer_probe.EXACT", exact)
    monkeypatch.setattr("hf_transfer.layer_probe.DIRECTIONS", 3)
    features = make_features(count)
    values = make_targets(features, SPACES[name], seed=4)
    found = _Problem(features, Targets(values, SPACES[name])).fit(strength, None).logits(features)
    expected = sklearn_logits(features, values, SPACES[name], strength)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("count, width, kept", [(150, 12, 12), (8, 12, 8), (12, 12, 12), (40, 30, 30), (30, 40, 40)])
def test_features_along_their_axes_keep_every_product_and_of_few_rows_only_what_varies(count, width, kept, monkeypatch):
    monkeypatch.setattr("hf_transfer.layer_probe.EXACT", 15)
    monkeypatch.setattr("hf_transfer.layer_probe.DIRECTIONS", 10)
    features = torch.from_numpy(make_features(count, width).astype(np.float64))
    axes = _Axes.of(features)
    along = axes.coordinates(features)
    assert along.shape == (count, kept)
    weights = torch.randn(2, kept, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = axes.turned_back(weights)
    torch.testing.assert_close(features @ back.T, along @ weights.T)
    torch.testing.assert_close(back @ back.T, weights @ weights.T)


def test_the_start_does_not_move_the_optimum():
    features = make_features()
    problem = _Problem(features, Targets(make_targets(features, THREE), THREE))
    _, _, start = problem.choose_strength(0, None)
    assert start is not None and float(start.abs().max()) > 0.01
    warm, cold = problem.fit(0.1, start), problem.fit(0.1, None)
    np.testing.assert_allclose(warm.weight, cold.weight, atol=1e-5)
    np.testing.assert_allclose(warm.bias, cold.bias, atol=1e-4)


def test_class_weights_multiply_the_loss_of_their_examples():
    features = make_features()
    values = make_targets(features, TWO)
    labels = LabelSpace("single_label", TWO.names, class_weights=(0.5, 3.0))
    found = _Problem(features, Targets(values, labels)).fit(0.1, None).logits(features)
    fit = {"logisticregression__sample_weight": np.where(values == 1, 3.0, 0.5)}
    np.testing.assert_allclose(found, sklearn_logits(features, values, TWO, 0.1, **fit), rtol=1e-4, atol=1e-4)


def held_out_losses(features: np.ndarray, values: np.ndarray, labels: LabelSpace) -> list[float]:
    """Mean held-out loss of each strength: scikit-learn's models on the folds that a seed of 0 draws."""
    kind = StratifiedKFold if labels.problem == "single_label" else KFold
    splitter = kind(5, shuffle=True, random_state=derived_seed(0, "tfidf", "folds") % 2**32)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for fit, held in splitter.split(scaled, values):
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
            if labels.problem == "regression":
                predicted = Ridge(alpha=1 / strength).fit(scaled[fit], values[fit]).predict(scaled[held])
                total += float(((predicted - values[held]) ** 2).sum()) / 2 / values.var()
            elif labels.problem == "multi_label":
                for i in range(values.shape[1]):
                    model.fit(scaled[fit], values[fit, i])
                    total += log_loss(values[held, i], model.predict_proba(scaled[held]), normalize=False)
            else:
                model.fit(scaled[fit], values[fit])
                total += log_loss(values[held], model.predict_proba(scaled[held]), normalize=False)
        losses.append(total / len(values))
    return losses


@pytest.mark.parametrize("name", SPACES)
def test_the_strength_is_the_one_that_cross_validation_by_scikit_learn_chooses(name):
    labels, features = SPACES[name], make_features(120)
    values = make_targets(features, labels)
    choice = choose_probe(features[None], Targets(values, labels), None, ["0"], seed=0)
    losses = held_out_losses(features, values, labels)
    assert choice.strength == STRENGTHS[int(np.argmin(losses))]
    assert 0 < int(np.argmin(losses)) < len(STRENGTHS) - 1, "a choice at the end of the path would test little"
    np.testing.assert_allclose(choice.candidates[0].cross_validation_loss, min(losses), rtol=1e-3)
    assert choice.rule == "cross-validation on train"


def three_states(count: int, informed: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three states of noise, and labels of which state ``informed`` tells."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(3, count, 4)).astype(np.float32)
    return states, (states[informed, :, 0] + rng.normal(size=count) / 2 > 0).astype(int)


def test_in_domain_validation_chooses_the_layer_and_every_candidate_is_told():
    states, values = three_states(90, 1, 0)
    held_states, held_values = three_states(40, 1, 1)
    ways = ["0", "1", "2", "mean", "all"]

    def score(logits):
        return float((logits.argmax(1) == held_values).mean())

    validation = (held_states, Targets(held_values, TWO))
    choice = choose_probe(states, Targets(values, TWO), validation, ways, 0, score=score)
    assert [candidate.layers for candidate in choice.candidates] == ways
    assert choice.layers == "1" and choice.rule == "in-domain validation"
    chosen = choice.candidates[1]
    expected = sklearn_pipeline(states[1], values, choice.strength).predict_proba(held_states[1].astype(np.float64))
    assert chosen.validation_loss == pytest.approx(log_loss(held_values, expected), rel=1e-4)
    assert chosen.score == (expected.argmax(1) == held_values).mean()
    assert chosen.validation_loss == min(candidate.validation_loss for candidate in choice.candidates)
    np.testing.assert_allclose(choice.head.logits(features_of(held_states, "1")).argmax(1), expected.argmax(1))


def sklearn_pipeline(features, values, strength):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-10, max_iter=10_000))
    return model.fit(features.astype(np.float64), values)


def test_train_alone_decides_where_validation_may_not():
    states, values = three_states(90, 1, 0)
    held_states, held_values = three_states(40, 2, 1)  # of another layer: what state 1 says is worse than nothing
    validation = (held_states, Targets(held_values, TWO))
    ways = ["0", "1", "2"]
    assert choose_probe(states, Targets(values, TWO), validation, ways, 0).layers != "1"
    choice = choose_probe(states, Targets(values, TWO), validation, ways, 0, by_validation=False, score=lambda _: 0.25)
    assert (choice.layers, choice.rule) == ("1", "cross-validation on train")
    assert {candidate.score for candidate in choice.candidates} == {0.25}


def test_with_too_few_examples_for_folds_validation_chooses_the_strength_or_a_default_is_taken():
    states, values = three_states(6, 0, 0)
    values = np.array([0, 1, 0, 1, 0, 1])
    choice = choose_probe(states, Targets(values, TWO), None, ["0", "all"], 0)
    assert (choice.strength, choice.layers, choice.rule) == (DEFAULT_STRENGTH, "all", "too few examples to choose by")
    held_states, held_values = three_states(40, 0, 1)
    validation = (held_states, Targets(held_values, TWO))
    without = choose_probe(states, Targets(values, TWO), validation, ["0"], 0, by_validation=False)
    assert (without.strength, without.rule) == (DEFAULT_STRENGTH, "too few examples to choose by")
    choice = choose_probe(states, Targets(values, TWO), validation, ["0"], 0)
    losses = [
        log_loss(held_values, sklearn_pipeline(states[0], values, c).predict_proba(held_states[0].astype(np.float64)))
        for c in STRENGTHS
    ]
    assert choice.strength == STRENGTHS[int(np.argmin(losses))] != DEFAULT_STRENGTH
    assert choice.rule == "in-domain validation"


def test_a_class_that_no_example_has_is_never_predicted():
    features = make_features()
    values = make_targets(features, TWO) * 2  # classes 0 and 2 of three
    logits = _Problem(features, Targets(values, THREE)).fit(0.1, None).logits(features)
    np.testing.assert_array_equal(logits[:, 1], -CERTAIN)
    found = logits[:, [0, 2]]
    np.testing.assert_allclose(found, sklearn_logits(features, values // 2, TWO, 0.1), rtol=1e-4, atol=1e-4)
    only = _Problem(features, Targets(np.ones(len(features), dtype=int), THREE)).fit(0.1, None).logits(features)
    assert only[0].tolist() == [-CERTAIN, 0.0, -CERTAIN]
    flags = make_targets(features, MULTI)
    flags[:, 1], flags[:, 2] = 1.0, 0.0
    logits = _Problem(features, Targets(flags, MULTI)).fit(0.1, None).logits(features)
    assert logits[0, 1:].tolist() == [CERTAIN, -CERTAIN]
    expected = sklearn_logits(features, flags[:, :1], MULTI, 0.1)[:, 0]
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_validation", [False, True])
def test_where_all_labels_are_settled_there_is_nothing_to_choose(with_validation):
    features = make_features()
    targets = Targets(np.tile([1.0, 1.0, 0.0], (len(features), 1)), MULTI)
    validation = (features[None], targets) if with_validation else None
    choice = choose_probe(features[None], targets, validation, ["0"], 0)
    assert choice.head.logits(features)[0].tolist() == [CERTAIN, CERTAIN, -CERTAIN]
    assert choice.strength == DEFAULT_STRENGTH
