"""Controls that train no transformer: their numbers are scikit-learn's, or counted by hand."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier

from hf_transfer import controls
from hf_transfer.controls import fit_majority, fit_tfidf
from hf_transfer.records import LabelSpace
from hf_transfer.statistics import derived_seed

TWO = LabelSpace("single_label", ("bad", "good"))
THREE = LabelSpace("single_label", ("bad", "fair", "good"))
TOPICS = LabelSpace("multi_label", ("plot", "price", "taste"), separator=",")
NUMBERS = LabelSpace("regression")
SIGNAL = {"bad": ["awful", "stale", "broke"], "fair": ["okay", "plain", "mixed"], "good": ["great", "fresh", "lovely"]}
NOISE = ["the", "a", "this", "of", "my", "was", "it", "and", "so", "on", "we", "had", "at", "first", "then", "again"]
NOISE += ["after", "lunch", "yesterday"]


def table(texts: list[str], labels: list, pairs: list[str] | None = None, domain: str = "books") -> Dataset:
    columns = {
        "example_id": [f"{domain}-{i}" for i in range(len(texts))],
        "domain": [domain] * len(texts),
        "text": texts,
        "label": labels,
    }
    return Dataset.from_dict(columns | ({"text_pair": pairs} if pairs else {}))


def sentence(signal: list[str], rng: random.Random) -> str:
    """Six words of noise, and one of ``signal`` in seven of ten cases."""
    found = rng.choices(NOISE, k=6) + ([rng.choice(signal)] if rng.random() < 0.7 else [])
    rng.shuffle(found)
    return " ".join(found)


def reviews(count: int, labels: tuple[str, ...], seed: int = 0) -> Dataset:
    rng = random.Random(seed)
    drawn = [labels[i % len(labels)] for i in range(count)]
    return table([sentence(SIGNAL[label], rng) for label in drawn], drawn)


def nothing() -> Dataset:
    return table([], [])


def words_of(train: Dataset, rows: Dataset, least_texts: int = 1) -> tuple:
    """Features of both, through scikit-learn alone."""
    # in plain English text without signs, the control's own pattern finds the words that split() finds
    vectorizer = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), binary=True, min_df=least_texts)
    return vectorizer.fit_transform(list(train["text"])), vectorizer.transform(list(rows["text"]))


def folds(kind: type, seed: int) -> KFold | StratifiedKFold:
    return kind(5, shuffle=True, random_state=derived_seed(seed, "tfidf", "folds") % 2**32)


# majority


def test_majority_answers_with_the_class_frequencies_of_train_in_the_order_of_the_label_space():
    train = table(["x"] * 5, ["good", "bad", "good", "good", "fair"])
    space = LabelSpace("single_label", ("great", "good", "fair", "bad"))
    predictions = fit_majority(train, space).predict(table(["y", "z"], ["bad", "great"], domain="apps"))
    np.testing.assert_allclose(predictions.probabilities, [[0, 0.6, 0.2, 0.2]] * 2, rtol=1e-6)
    assert predictions.probabilities.dtype == np.float32
    assert predictions.predicted.tolist() == [1, 1]
    assert predictions.reference.tolist() == [3, 0]
    assert predictions.example_ids.tolist() == ["apps-0", "apps-1"]
    assert predictions.domain_ids.tolist() == ["apps", "apps"]


@pytest.mark.parametrize(("names", "winner"), [(("b", "a", "c"), "b"), (("c", "a", "b"), "a")])
def test_of_equally_frequent_classes_the_first_of_the_label_space_wins(names, winner):
    model = fit_majority(table(["x"] * 5, ["a", "b", "a", "b", "c"]), LabelSpace("single_label", names))
    assert names[model.predict(table(["y"], ["c"])).predicted[0]] == winner


def test_majority_gives_each_label_that_half_of_the_examples_have():
    train = table(["x"] * 4, ["plot", "plot, price", "", "price, plot"])
    predictions = fit_majority(train, TOPICS).predict(table(["y"], ["taste"]))
    assert predictions.probabilities.tolist() == [[0.75, 0.5, 0.0]]
    assert predictions.predicted.tolist() == [[1, 1, 0]]
    assert predictions.reference.tolist() == [[0, 0, 1]]


def test_majority_of_numbers_is_the_mean_of_train():
    model = fit_majority(table(["x"] * 3, ["1.5", "2", "4"]), NUMBERS)
    predictions = model.predict(table(["y", "z"], ["3", "0.5"]))
    assert predictions.probabilities.tolist() == [[2.5], [2.5]]
    assert predictions.predicted.tolist() == [2.5, 2.5]
    assert predictions.reference.tolist() == [3.0, 0.5]
    assert (model.parameters, model.settings) == (1, {"answer": [2.5]})


# words: against scikit-learn


def test_two_classes_are_one_logistic_regression_with_the_strength_of_least_cross_validated_log_loss():
    train, test = reviews(200, TWO.names), reviews(60, TWO.names, seed=1)
    known, unknown = words_of(train, test)
    search = GridSearchCV(
        LogisticRegression(solver="liblinear", max_iter=1000),
        {"C": [1.0, 10.0, 100.0]},
        cv=folds(StratifiedKFold, 3),
        scoring="neg_log_loss",
    ).fit(known, list(train["label"]))
    model = fit_tfidf(train, nothing(), TWO, seed=3)
    assert model.settings["strength"] == search.best_params_["C"]
    # probabilities of scikit-learn's scorer are clipped elsewhere, which these do not reach
    np.testing.assert_allclose(
        list(model.settings["losses"].values()), -search.cv_results_["mean_test_score"], rtol=1e-6
    )
    predictions = model.predict(test)
    np.testing.assert_allclose(predictions.probabilities, search.predict_proba(unknown), atol=1e-6)
    assert [TWO.names[i] for i in predictions.predicted] == search.predict(unknown).tolist()
    assert [TWO.names[i] for i in predictions.reference] == list(test["label"])
    assert model.parameters == known.shape[1] + 1
    assert 0.75 < np.mean(predictions.predicted == predictions.reference) < 1


def test_more_classes_are_one_regression_each_scaled_to_sum_one():
    train, test = reviews(150, THREE.names), reviews(30, THREE.names, seed=1)
    known, unknown = words_of(train, test)
    model = fit_tfidf(train, nothing(), THREE, seed=0)
    regression = LogisticRegression(C=model.settings["strength"], solver="liblinear", max_iter=1000)
    wanted = OneVsRestClassifier(regression).fit(known, list(train["label"]))
    np.testing.assert_allclose(model.predict(test).probabilities, wanted.predict_proba(unknown), atol=1e-6)
    assert model.parameters == 3 * (known.shape[1] + 1)
    held_out = []
    labels = np.array(train["label"])
    for fit, held in folds(StratifiedKFold, 0).split(labels, labels):
        fold = OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear", max_iter=1000))
        held_out.append(log_loss(labels[held], fold.fit(known[fit], labels[fit]).predict_proba(known[held])))
    assert model.settings["losses"]["10"] == pytest.approx(np.mean(held_out), rel=1e-6)


def test_class_weights_weigh_each_example_of_the_class_in_the_fit_and_in_the_choice():
    train = table([*reviews(90, ("bad",))["text"], *reviews(30, ("good",))["text"]], ["bad"] * 90 + ["good"] * 30)
    test = reviews(20, TWO.names, seed=1)
    model = fit_tfidf(train, nothing(), LabelSpace("single_label", TWO.names, (2 / 3, 2.0)), seed=0)
    known, unknown = words_of(train, test)
    labels = np.array(train["label"])

    def fitted(rows, strength: float) -> LogisticRegression:
        weights = {"bad": 2 / 3, "good": 2.0}
        regression = LogisticRegression(C=strength, solver="liblinear", class_weight=weights, max_iter=1000)
        return regression.fit(known[rows], labels[rows])

    wanted = fitted(slice(None), model.settings["strength"])
    np.testing.assert_allclose(model.predict(test).probabilities, wanted.predict_proba(unknown), atol=1e-6)
    losses = [
        log_loss(
            labels[held], fitted(fit, 1).predict_proba(known[held]), sample_weight=np.where(labels[held] == "bad", 1, 3)
        )
        for fit, held in folds(StratifiedKFold, 0).split(labels, labels)
    ]
    assert model.settings["losses"]["1"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_several_labels_are_one_regression_each_and_need_not_sum_to_one():
    rng = random.Random(0)
    signal = {"plot": ["twist", "hero"], "price": ["cheap", "dear"], "taste": ["sweet", "salty"]}
    chosen = [rng.sample(TOPICS.names[:2], rng.randint(0, 2)) for _ in range(80)]
    texts = [" ".join([sentence(NOISE, rng), *(rng.choice(signal[name]) for name in names)]) for names in chosen]
    train = table(texts, [", ".join(names) for names in chosen])
    model = fit_tfidf(train, nothing(), TOPICS, seed=0)
    test = table(["the hero was cheap", "a twist", "so so"], ["plot,price", "plot", ""])
    known, unknown = words_of(train, test)
    wanted = []
    for name in TOPICS.names[:2]:
        regression = LogisticRegression(C=model.settings["strength"], solver="liblinear", max_iter=1000)
        wanted.append(regression.fit(known, [name in names for names in chosen]).predict_proba(unknown)[:, 1])
    predictions = model.predict(test)
    np.testing.assert_allclose(predictions.probabilities[:, :2], np.stack(wanted, axis=1), atol=1e-6)
    assert predictions.probabilities[:, 2].tolist() == [0, 0, 0], "no train example is about taste"
    assert predictions.predicted[:, :2].tolist() == (np.stack(wanted, axis=1) >= 0.5).tolist()
    seen = model.predict(train)
    assert np.mean(seen.predicted == seen.reference) > 0.95
    assert predictions.reference.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert model.parameters == 2 * (known.shape[1] + 1)
    total = 0.0
    for fit, held in folds(KFold, 0).split(chosen):
        for name in TOPICS.names[:2]:
            has = np.array([name in names for names in chosen])
            regression = LogisticRegression(C=1, solver="liblinear", max_iter=1000).fit(known[fit], has[fit])
            total += log_loss(has[held], regression.predict_proba(known[held]), normalize=False)
    assert model.settings["losses"]["1"] == pytest.approx(total / len(chosen), rel=1e-5)


def test_numbers_are_ridge_regression_with_the_strength_of_least_squared_error():
    rng = random.Random(0)
    values = [rng.choice([-1.5, 0.0, 2.0]) for _ in range(90)]
    names = {-1.5: "bad", 0.0: "fair", 2.0: "good"}
    train = table([sentence(SIGNAL[names[value]], rng) for value in values], [str(value) for value in values])
    test = table(["the great lunch", "awful and stale", "we had lunch"], ["2.0", "-1.5", "0.0"])
    known, unknown = words_of(train, test)
    search = GridSearchCV(
        Ridge(), {"alpha": [10.0, 1.0, 0.1]}, cv=folds(KFold, 0), scoring="neg_mean_squared_error"
    ).fit(known, values)
    model = fit_tfidf(train, nothing(), NUMBERS, seed=0)
    assert model.settings["strength"] == 1 / search.best_params_["alpha"]
    predictions = model.predict(test)
    assert predictions.probabilities.shape == (3, 1)
    np.testing.assert_allclose(predictions.predicted, search.predict(unknown), atol=2e-3)  # solved by iteration
    assert predictions.predicted[0] > predictions.predicted[2] > predictions.predicted[1]
    assert predictions.reference.tolist() == [2.0, -1.5, 0.0]
    assert model.parameters == known.shape[1] + 1


def test_from_a_thousand_rows_on_a_word_must_stand_in_two_texts():
    train = reviews(controls.MANY_ROWS, TWO.names)
    few = train.select(range(controls.MANY_ROWS - 1))
    for rows, least_texts in ((train, 2), (few, 1)):
        model = fit_tfidf(rows, nothing(), TWO, seed=0)
        assert model.settings["least_texts_per_word"] == least_texts
        assert model.settings["features"] == words_of(rows, rows, least_texts)[0].shape[1]


def test_many_rows_without_a_repeated_word_are_still_learnt_from(monkeypatch):
    monkeypatch.setattr(controls, "MANY_ROWS", 4)
    train = table(["awful", "stale", "great", "fresh"], ["bad", "bad", "good", "good"])
    model = fit_tfidf(train, nothing(), TWO, seed=0)
    assert model.predict(train).predicted.tolist() == [0, 0, 1, 1]


def test_with_very_many_classes_the_rarest_words_go(monkeypatch):
    monkeypatch.setattr(controls, "MOST_COEFFICIENTS", 30)
    train = table(["good book", "good good", "bad book"] * 5, ["good", "good", "bad"] * 5)
    assert fit_tfidf(train, nothing(), TWO, seed=0).settings["features"] == 6, "there are no more"
    assert fit_tfidf(reviews(60, THREE.names), nothing(), THREE, seed=0).settings["features"] == 10


# words: what counts as one


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I do n't, don't!", ["i", "do", "n't", ",", "don't", "!"]),
        ("It’s 5 stars :)", ["it’s", "5", "stars", ":", ")"]),
        ("Straße 'naïve'", ["straße", "'", "naïve", "'"]),
        ("很好 ok本", ["很", "好", "ok", "本"]),
    ],
)
def test_a_word_keeps_its_apostrophe_and_signs_stand_alone(text, found):
    analyse = TfidfVectorizer(token_pattern=controls.WORD).build_analyzer()
    assert analyse(text) == found


def test_case_makes_no_difference():
    model = fit_tfidf(reviews(60, TWO.names), nothing(), TWO, seed=0)
    lower, upper = model.predict(table(["great fresh lunch", "GREAT Fresh LUNCH"], ["good"] * 2)).probabilities
    assert lower.tolist() == upper.tolist()


# pairs


def test_words_of_the_second_text_count_apart_from_those_of_the_first():
    sides = [("awful", "great"), ("great", "awful")] * 10
    train = table([first for first, _ in sides], ["bad", "good"] * 10, [second for _, second in sides])
    predictions = fit_tfidf(train, nothing(), TWO, seed=0).predict(train.select(range(4)))
    assert predictions.predicted.tolist() == [0, 1, 0, 1]
    assert predictions.probabilities.max(axis=1).min() > 0.9


def test_two_texts_that_share_words_are_seen_to_whatever_the_words():
    rng = random.Random(0)
    words = [f"word{i}" for i in range(400)]
    first = [rng.sample(words, 6) for _ in range(120)]
    shared = [i % 7 for i in range(120)]
    second = [have[:count] + rng.sample(words, 6 - count) for have, count in zip(first, shared, strict=True)]
    rows = table([" ".join(text) for text in first], [str(count) for count in shared], [" ".join(t) for t in second])
    model = fit_tfidf(rows.select(range(80)), nothing(), NUMBERS, seed=0)
    predictions = model.predict(rows.select(range(80, 120)))
    assert np.corrcoef(predictions.predicted, predictions.reference)[0, 1] > 0.9


def test_the_cosine_of_a_pair_is_one_for_equal_texts_and_zero_for_texts_that_share_nothing():
    train = table(["good book", "bad book", "fine film"], ["good", "bad", "good"], ["good book", "fine film", "fine"])
    vectorizer = controls._fit_words(train, 2)
    features = controls._features(vectorizer, train).toarray()
    assert features.shape == (3, 2 * len(vectorizer.vocabulary_) + 1)
    # third row: weights of fine, film, "fine film" against fine alone; texts counted over both sides, 6 in all
    idf = {word: np.log(7 / (1 + texts)) + 1 for word, texts in {"fine": 3, "film": 2, "fine film": 2}.items()}
    wanted = idf["fine"] / np.sqrt(sum(value**2 for value in idf.values()))
    np.testing.assert_allclose(features[:, -1], [1, 0, wanted], atol=1e-12)


# edges


def test_a_declared_class_that_train_does_not_have_gets_no_probability():
    train = reviews(60, TWO.names)
    space = LabelSpace("single_label", ("good", "unseen", "bad"))
    test = reviews(10, TWO.names, seed=1)
    predictions = fit_tfidf(train, nothing(), space, seed=0).predict(test)
    without = fit_tfidf(train, nothing(), LabelSpace("single_label", ("good", "bad")), seed=0).predict(test)
    assert predictions.probabilities[:, 1].tolist() == [0] * 10
    np.testing.assert_allclose(predictions.probabilities[:, [0, 2]], without.probabilities, atol=1e-6)


def test_a_class_too_rare_for_every_fold_neither_stops_the_choice_nor_warns(recwarn):
    train = table([*reviews(40, TWO.names)["text"], "okay plain mixed"], [*reviews(40, TWO.names)["label"], "fair"])
    model = fit_tfidf(train, nothing(), THREE, seed=0)
    assert "cross-validation on 41 train examples" in model.settings["chosen_by"]
    assert np.isfinite(list(model.settings["losses"].values())).all()
    assert model.predict(table(["okay plain mixed"], ["fair"])).predicted.tolist() == [1]
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize(
    ("labels", "space", "wanted"),
    [
        (["good"] * 3, TWO, [0, 1]),
        (["plot,taste"] * 3, TOPICS, [1, 0, 1]),
    ],
)
def test_train_with_one_label_gives_that_label(labels, space, wanted):
    model = fit_tfidf(table(["fine book"] * 3, labels), nothing(), space, seed=0)
    assert model.predict(table(["awful"], labels[:1])).probabilities.tolist() == [wanted]
    assert "same label" in model.settings["majority"]


def test_texts_without_a_word_are_answered_by_majority():
    train = table(["", " ", "\n"], ["good", "bad", "good"])
    model = fit_tfidf(train, nothing(), TWO, seed=0)
    np.testing.assert_allclose(model.predict(train).probabilities, [[1 / 3, 2 / 3]] * 3, rtol=1e-6)
    assert "no word" in model.settings["majority"]


def test_a_text_of_unknown_words_gets_the_answer_of_the_intercept():
    model = fit_tfidf(reviews(60, TWO.names), nothing(), TWO, seed=0)
    first, second = model.predict(table(["", "zygote xylem"], ["bad", "bad"])).probabilities
    assert first.tolist() == second.tolist()
    assert first.sum() == pytest.approx(1)


def test_too_few_rows_for_folds_are_judged_on_validation():
    train = table(["awful lunch", "stale lunch", "great lunch", "fresh lunch"], ["bad", "bad", "good", "good"])
    validation = table(["awful", "great lunch", "fresh"], ["bad", "good", "good"])
    model = fit_tfidf(train, validation, TWO, seed=0)
    known, unknown = words_of(train, validation)
    wanted = {}
    for strength in (1, 10, 100):
        regression = LogisticRegression(C=strength, solver="liblinear", max_iter=1000).fit(known, list(train["label"]))
        wanted[str(strength)] = log_loss(list(validation["label"]), regression.predict_proba(unknown))
    assert model.settings["losses"] == pytest.approx(wanted, rel=1e-6)
    assert model.settings["chosen_by"] == "loss on 3 validation examples"
    assert str(int(model.settings["strength"])) == min(wanted, key=wanted.get)


@pytest.mark.parametrize(("space", "labels"), [(TWO, ["bad", "good"]), (NUMBERS, [1.5, 2.5]), (TOPICS, ["plot", ""])])
def test_with_nothing_to_choose_by_the_default_strength_is_taken(space, labels):
    model = fit_tfidf(table(["awful lunch", "great lunch"], labels), nothing(), space, seed=0)
    assert model.settings["strength"] == controls.DEFAULT_STRENGTH[space.problem]
    assert model.settings["chosen_by"].startswith("default")


def test_train_rows_are_enough_where_folds_can_be_made_and_validation_is_not_read():
    train, test = reviews(60, TWO.names), reviews(20, TWO.names, seed=1)
    wrong = table(list(test["text"]), ["good" if label == "bad" else "bad" for label in test["label"]])
    first, second = (fit_tfidf(train, rows, TWO, seed=0) for rows in (test, wrong))
    assert first.settings == second.settings


def test_equal_arguments_give_equal_results_and_the_seed_draws_only_the_folds():
    train, test = reviews(80, THREE.names), reviews(20, THREE.names, seed=1)
    first, again, other = (fit_tfidf(train, nothing(), THREE, seed=seed) for seed in (0, 0, 1))
    assert first.settings == again.settings
    assert np.array_equal(first.predict(test).probabilities, again.predict(test).probabilities)
    assert first.settings["losses"] != other.settings["losses"]


@pytest.mark.parametrize("space", [TWO, NUMBERS])
def test_settings_are_plain_json(space):
    train = reviews(40, TWO.names) if space is TWO else table(["good book", "bad book"] * 10, [1.5, 2.5] * 10)
    for model in (fit_tfidf(train, nothing(), space, seed=0), fit_majority(train, space)):
        assert json.loads(json.dumps(model.settings)) == model.settings
        assert type(model.parameters) is int


@pytest.mark.parametrize("space", [TWO, NUMBERS, TOPICS])
def test_no_rows_give_no_predictions(space):
    labels = {"single_label": ["bad", "good"], "regression": [1.5, 2.5], "multi_label": ["plot", ""]}[space.problem]
    train = table(["awful lunch", "great lunch"], labels)
    for model in (fit_tfidf(train, nothing(), space, seed=0), fit_majority(train, space)):
        predictions = model.predict(nothing())
        assert predictions.probabilities.shape == (0, space.output_count)
        assert len(predictions.predicted) == len(predictions.reference) == len(predictions.example_ids) == 0
