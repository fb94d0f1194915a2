"""Values agree with scikit-learn, SciPy and sacrebleu, resamples with the naive loop, and edge cases are recorded."""

import json
import os
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from scipy import stats
from sentences import references_of, with_mistakes
from sklearn import metrics as sk

from hf_transfer import translation_scores
from hf_transfer.errors import InputError
from hf_transfer.metrics import (
    METRICS,
    arrays_of,
    check_metrics,
    default_metrics,
    find_metric,
    score,
    score_with_interval,
)
from hf_transfer.records import Predictions, Problem
from hf_transfer.statistics import bootstrap_counts
from hf_transfer.translation_scores import sentence_statistics

PROBLEMS = get_args(Problem)
CASES = [(name, problem) for name, metric in METRICS.items() for problem in metric.problems]


def averaged(function, average):
    return lambda reference, predicted, _: function(reference, predicted, average=average, zero_division=0)


def on_text(metric):
    return lambda reference, predicted, _: metric.corpus_score(predicted.tolist(), [reference.tolist()]).score


REFERENCES = {  # (reference, predicted, probabilities) -> value, written independently of METRICS
    "accuracy": lambda reference, predicted, _: sk.accuracy_score(reference, predicted),
    "subset_accuracy": lambda reference, predicted, _: sk.accuracy_score(reference, predicted),
    "mcc": lambda reference, predicted, _: sk.matthews_corrcoef(reference, predicted),
    "log_loss": lambda reference, _, given: sk.log_loss(reference, given.astype(float), labels=range(given.shape[1])),
    "pearson": lambda reference, predicted, _: stats.pearsonr(reference, predicted).statistic,
    "spearman": lambda reference, predicted, _: stats.spearmanr(reference, predicted).statistic,
    "mae": lambda reference, predicted, _: sk.mean_absolute_error(reference, predicted),
    "rmse": lambda reference, predicted, _: sk.root_mean_squared_error(reference, predicted),
    "f1_micro": averaged(sk.f1_score, "micro"),
    "f1_macro": averaged(sk.f1_score, "macro"),
    "f1_weighted": averaged(sk.f1_score, "weighted"),
    "precision_micro": averaged(sk.precision_score, "micro"),
    "precision_macro": averaged(sk.precision_score, "macro"),
    "recall_micro": averaged(sk.recall_score, "micro"),
    "recall_macro": averaged(sk.recall_score, "macro"),
    "bleu": on_text(BLEU()),
    "chrf": on_text(CHRF(word_order=2)),
    "ter": on_text(TER()),
    "comet": lambda reference, predicted, statistics: np.mean(statistics[:, 36], dtype=np.float64),
}


def make(reference, predicted, probabilities=None) -> Predictions:
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    ids = np.array([f"e{row}" for row in range(len(reference))])
    if probabilities is None:
        probabilities = predicted.reshape(len(predicted), -1)
    return Predictions(ids, np.full(len(ids), "books"), predicted, reference, np.asarray(probabilities, np.float32))


def make_translations(reference, predicted) -> Predictions:
    """With a made-up column for COMET, which is not installed."""
    statistics = sentence_statistics(predicted, reference, ["bleu", "chrf", "ter"])
    statistics[:, 36] = 90 - statistics[:, 34]
    return make(np.array(reference, dtype=object), np.array(predicted, dtype=object), statistics)


def drawn(problem: Problem, count: int = 40, seed: int = 0) -> Predictions:
    """Predictions that are right a little more often than chance; ties in the regression case."""
    rng = np.random.default_rng(seed)
    if problem == "single_label":
        reference = rng.integers(0, 4, count)
        logits = rng.normal(size=(count, 4)) + (reference[:, None] == np.arange(4))
        probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        return make(reference, probabilities.argmax(axis=1), probabilities)
    if problem == "translation":
        references = references_of(count, seed)
        return make_translations(references, with_mistakes(references, 0.3, seed))
    if problem == "multi_label":
        reference = (rng.random((count, 3)) < 0.4).astype(int)
        return make(reference, np.where(rng.random((count, 3)) < 0.7, reference, 1 - reference))
    reference = rng.normal(3, 1, count).round(1)
    return make(reference, (reference + rng.normal(size=count)).round(1).astype(np.float32))


def expected(name: str, predictions: Predictions) -> float:
    return REFERENCES[name](predictions.reference, predictions.predicted, predictions.probabilities)


def test_every_metric_has_an_independent_reference():
    assert set(REFERENCES) == set(METRICS)


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")  # float32 rows, seen as float64
@pytest.mark.parametrize(("name", "problem"), CASES)
def test_values_equal_scikit_learn_and_scipy(name, problem):
    for seed in range(5):
        predictions = drawn(problem, seed=seed)
        assert score(name, predictions) == pytest.approx(expected(name, predictions), rel=1e-12, abs=1e-12)


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one", "ignore:A single label was found")
@pytest.mark.parametrize("count", [4, 40])
@pytest.mark.parametrize(("name", "problem"), CASES)
def test_vectorised_resamples_equal_the_naive_loop(name, problem, count):
    predictions = drawn(problem, count, seed=count)
    (counts,) = bootstrap_counts(np.ones(count, int), 20, np.random.default_rng(1))
    vectorised = METRICS[name].weighted(counts, *arrays_of(METRICS[name], predictions))
    naive = []
    for row in counts.astype(int):
        chosen = np.repeat(np.arange(count), row)
        resample = make(predictions.reference[chosen], predictions.predicted[chosen], predictions.probabilities[chosen])
        constant = problem == "regression" and min(np.ptp(resample.reference), np.ptp(resample.predicted)) == 0
        naive.append(np.nan if constant and METRICS[name].higher_is_better else expected(name, resample))
    assert vectorised.shape == (20,)
    assert vectorised == pytest.approx(np.array(naive), rel=1e-10, abs=1e-10, nan_ok=True)


INTERVAL_CASES = [case for case in CASES if case[0] in ("f1_macro", "log_loss", "spearman", "bleu")]


@pytest.mark.parametrize(("name", "problem"), INTERVAL_CASES)
def test_intervals_agree_with_a_naive_bootstrap_over_examples(name, problem):
    predictions = drawn(problem, 60, seed=3)
    value, low, high = score_with_interval(name, predictions, 0.9, 4000, seed=0)
    rng, metric = np.random.default_rng(9), METRICS[name]
    reference, given = arrays_of(metric, predictions)
    rows = (rng.integers(0, 60, 60) for _ in range(300))
    naive = np.quantile([metric.score(reference[row], given[row]) for row in rows], [0.05, 0.95])
    assert low < value < high
    assert (low, high) == pytest.approx(naive, abs=0.2 * (high - low)), "300 naive draws against 4,000 of ours"


def test_an_interval_depends_on_its_seed_and_its_metric_alone():
    predictions = drawn("single_label")
    first = score_with_interval("accuracy", predictions, 0.95, 500, seed=1)
    np.random.default_rng(1).random(7)
    assert score_with_interval("accuracy", predictions, 0.95, 500, seed=1) == first
    assert score_with_interval("accuracy", drawn("single_label", 41), 0.95, 500, seed=1) != first
    log_losses = {score_with_interval("log_loss", predictions, 0.95, 500, seed=seed)[1:] for seed in range(3)}
    assert len(log_losses) == 3


def test_a_higher_confidence_gives_a_wider_interval():
    _, low, high = score_with_interval("f1_macro", drawn("single_label"), 0.8, 1000, seed=0)
    _, lower, higher = score_with_interval("f1_macro", drawn("single_label"), 0.99, 1000, seed=0)
    assert lower < low < high < higher


def test_macro_averages_leave_out_a_class_that_occurs_nowhere():
    predictions = make([0, 0, 1], [0, 1, 1])  # of three classes; F1 by hand: 2/3 and 2/3
    assert score("f1_macro", predictions) == pytest.approx(2 / 3)
    assert score("precision_macro", predictions) == pytest.approx((1 + 1 / 2) / 2)
    assert score("recall_macro", predictions) == pytest.approx((1 / 2 + 1) / 2)
    uniform = np.full((3, 3), 1 / 3)
    assert score("log_loss", make([0, 0, 1], [0, 0, 0], uniform)) == pytest.approx(np.log(3))


def test_macro_averages_count_a_class_that_is_only_predicted():
    assert score("f1_macro", make([0, 0, 1], [0, 2, 1])) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_macro_averages_count_every_label_even_if_it_occurs_nowhere():
    assert score("f1_macro", make([[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 1, 0]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_a_single_label_column_is_scored_as_one_label_and_not_as_two_classes(average):
    predictions = make([[1], [1], [0], [0]], [[1], [0], [0], [0]])
    value, low, high = score_with_interval(f"f1_{average}", predictions, 0.95, 200, seed=0)
    assert value == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert low <= value <= high


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "problem"), CASES)
def test_a_single_example_is_scored_without_a_warning(name, problem):
    predictions = drawn(problem, 1)
    value, low, high = score_with_interval(name, predictions, 0.95, 100, seed=0)
    if name in ("pearson", "spearman"):
        assert np.isnan([value, low, high]).all()
    else:
        assert value == pytest.approx(low) == pytest.approx(high)
        if name not in ("mcc", "log_loss"):  # scikit-learn's warn on one example
            assert value == pytest.approx(expected(name, predictions))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("side", ["reference", "predicted"])
def test_a_correlation_with_a_constant_is_recorded_as_undefined(name, side):
    varied, constant = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.1, 0.1])
    predictions = make(constant, varied) if side == "reference" else make(varied, constant)
    assert np.isnan(score(name, predictions))
    assert np.isnan(score_with_interval(name, predictions, 0.95, 100, seed=0)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_constant_resamples_are_left_out_of_a_correlation_interval(name):
    predictions = make(np.array([0.1, 0.2]), np.array([0.7, 0.3]))  # half of all resamples hold one example twice
    assert score_with_interval(name, predictions, 0.95, 100, seed=0) == pytest.approx((-1, -1, -1))


def test_correlations_keep_their_digits_far_from_zero():
    predictions = drawn("regression", 30)
    moved = make(predictions.reference + 1e8, predictions.predicted.astype(float) + 1e8)
    here, there = (score_with_interval("pearson", item, 0.95, 200, seed=0) for item in (predictions, moved))
    assert there == pytest.approx(here, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["pearson", "spearman", "mae", "rmse"])
def test_a_prediction_that_is_not_finite_makes_the_score_undefined(name, bad):
    predictions = make([1.0, 2.0, 3.0], [1.0, bad, 2.0])
    assert np.isnan(score_with_interval(name, predictions, 0.95, 100, seed=0)).all()


def test_probabilities_that_are_not_finite_leave_accuracy_defined_and_log_loss_undefined():
    predictions = make([0, 1], [0, 0], [[0.5, 0.5], [np.nan, np.nan]])
    assert score("accuracy", predictions) == 0.5
    assert np.isnan(score("log_loss", predictions))


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_no_examples_have_no_score(name, problem):
    full = drawn(problem, 2)
    empty = make(full.reference[:0], full.predicted[:0], full.probabilities[:0])
    assert np.isnan(score_with_interval(name, empty, 0.95, 100, seed=0)).all()


def test_log_loss_clips_probabilities_at_the_precision_of_float32():
    sure_and_wrong = make([0], [1], [[0.0, 1.0]])
    assert score("log_loss", sure_and_wrong) == pytest.approx(-np.log(2.0**-23))
    assert score("log_loss", sure_and_wrong) == pytest.approx(
        sk.log_loss([0], sure_and_wrong.probabilities, labels=[0, 1]), rel=1e-6
    )


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_higher_is_better_says_which_way_a_metric_points(name, problem):
    guessed, rng = drawn(problem, 60), np.random.default_rng(0)
    if problem == "translation":
        assert (score(name, make_translations(guessed.reference, guessed.reference)) > score(name, guessed)) == METRICS[
            name
        ].higher_is_better
        return
    perfect = np.eye(4)[guessed.reference] if problem == "single_label" else None
    right = make(guessed.reference, guessed.reference, perfect)
    shuffled = rng.permutation(60)
    wrong = make(guessed.reference, guessed.reference[shuffled], None if perfect is None else perfect[shuffled])
    assert (score(name, right) > score(name, wrong)) == METRICS[name].higher_is_better


@pytest.mark.parametrize("problem", PROBLEMS)
def test_default_metrics_score_their_problem(problem):
    names = default_metrics(problem)
    assert check_metrics(names, problem) == []
    first = {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "pearson", "translation": "bleu"}
    assert names[0] == first[problem]


def test_unknown_metrics_are_refused_with_the_nearest_and_all_of_the_problem():
    (typo,) = check_metrics(["acuracy"], "single_label")
    assert "--evaluate.metrics: `acuracy` is not a metric: did you mean accuracy?" in typo
    assert "For single_label there are accuracy, f1_macro," in typo
    assert "pearson" not in typo
    (short,) = check_metrics(["f1"], "multi_label")
    assert "did you mean f1_micro, f1_macro, f1_weighted?" in short
    (far,) = check_metrics(["bleurt"], "regression")
    assert "`bleurt` is not a metric. For regression there are pearson, spearman, mae, rmse." in far


def test_metrics_of_another_problem_are_refused():
    assert check_metrics(["pearson", "accuracy"], "single_label") == [
        "--evaluate.metrics: `pearson` scores regression predictions, these are single_label. For single_label there "
        "are accuracy, f1_macro, f1_weighted, precision_macro, recall_macro, mcc, log_loss."
    ]


def test_all_problems_with_metrics_arrive_together():
    found = check_metrics(["accuracy", "mae", "mae"], "multi_label")
    assert len(found) == 3
    assert found[2] == "--evaluate.metrics names `mae` 2 times: name it once."


def test_scoring_by_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match="`acuracy` is not a metric: did you mean accuracy"):
        score("acuracy", drawn("single_label"))
    with pytest.raises(InputError, match="`meteor` is not a metric"):
        find_metric("meteor")


# --- translations ---


def test_translations_are_scored_by_their_statistics_alone():
    """results.json holds neither hypotheses nor references."""
    full = drawn("translation")
    nothing = np.full(40, "", dtype=object)
    hashes = np.array([f"{row:08x}" for row in range(40)])
    kept = Predictions(full.example_ids, full.domain_ids, nothing, hashes, full.probabilities)
    for name in ("bleu", "chrf", "ter", "comet"):
        found = score_with_interval(name, kept, 0.95, 100, seed=0)
        assert found == score_with_interval(name, full, 0.95, 100, seed=0) and 0 < found[0] < 100


def test_a_translation_metric_is_undefined_where_its_statistics_are_missing():
    predictions = drawn("translation")
    some = predictions.probabilities.copy()
    some[:, 34:], some[3, 12] = np.nan, np.nan
    for statistics, defined in ((some, {"bleu"}), (np.full((40, 1), np.nan), set()), (some[:, :10], set())):
        kept = make(predictions.reference, predictions.predicted, statistics)
        for name in ("bleu", "chrf", "ter", "comet"):
            found = score_with_interval(name, kept, 0.95, 100, seed=0)
            assert np.isnan(found).all() == (name not in defined) and np.isnan(found).any() == (name not in defined)


def test_translation_metrics_are_in_points_and_say_how_they_were_computed():
    in_points = {name for name, metric in METRICS.items() if metric.unit == "points"}
    assert in_points == {"bleu", "chrf", "ter", "comet"} == {name for name in METRICS if METRICS[name].signature}
    assert METRICS["bleu"].signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nw:2" in METRICS["chrf"].signature and METRICS["chrf"].title == "chrF++"
    perfect = make_translations(references_of(20), references_of(20))
    assert [score(name, perfect) for name in ("bleu", "chrf", "ter")] == pytest.approx([100, 100, 0])


def test_comet_is_refused_with_the_remedy_unless_it_can_be_computed(monkeypatch):
    assert check_metrics(["bleu", "chrf", "ter"], "translation") == []
    monkeypatch.setattr(translation_scores, "comet_problem", lambda: "`comet` needs x: pip install x.")
    assert check_metrics(["bleu", "comet"], "translation") == ["--evaluate.metrics: `comet` needs x: pip install x."]
    assert check_metrics(["comet"], "regression")[0].startswith("--evaluate.metrics: `comet` scores translation")
    monkeypatch.setattr(translation_scores, "comet_problem", lambda: "")
    assert check_metrics(["bleu", "comet"], "translation") == []


# --- modules of Hugging Face evaluate ---


MODULES_SCRIPT = """
import json, os, socket, sys

def refuse(*arguments, **settings):
    raise OSError("a metric tried to reach the network")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
sys.modules["transformers"] = None  # evaluate's pipelines play no part here, and take 6 s to import
import evaluate
del sys.modules["transformers"]

from hf_transfer.metrics import METRICS, evaluate_module

inputs = json.load(sys.stdin)
found = {}
for case, (predictions, references) in inputs.items():
    name = case.split()[0]
    module = evaluate_module(name)
    assert isinstance(module, evaluate.Metric) and module.name == name
    more = {"sources": references} if name == "comet" else {}
    found[case] = module.compute(predictions=predictions, references=references, **more)[name]

predictions, references = inputs["accuracy single_label"]
both = evaluate.combine([evaluate_module("accuracy"), evaluate_module("f1_macro")])
found["combined"] = both.compute(predictions=predictions, references=references)

module = evaluate_module("accuracy")
for prediction, reference in zip(predictions, references):
    module.add(prediction=prediction, reference=reference)
found["added one by one"] = module.compute()["accuracy"]

on_disk = evaluate_module("accuracy", keep_in_memory=False, cache_dir=os.environ["CACHE"])
found["on disk"] = on_disk.compute(predictions=predictions, references=references)["accuracy"]
print(json.dumps(found))
"""


COMET = """
class Model:
    def predict(self, rows, batch_size, gpus, progress_bar):
        self.scores = [(len(row["mt"]) - len(row["src"]) + len(row["ref"])) / 100 for row in rows]
        return self

def download_model(name, local_files_only):
    return "model.ckpt"

def load_from_checkpoint(path, local_files_only):
    return Model()
"""
"""A package of COMET's shape: a translation is as good as it is long, as source and reference are the same here."""


@pytest.fixture(scope="module")
def modules(root, tmp_path_factory):
    """What evaluate's modules give in a fresh process without network, in a folder that holds a trap."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    (work / "accuracy").mkdir()
    (work / "accuracy" / "accuracy.py").write_text("raise SystemExit('evaluate ran a file of the working directory')")
    inputs = {}
    for name, problem in CASES:
        predictions = drawn(problem)
        given = predictions.predicted if problem == "translation" else getattr(predictions, METRICS[name].reads)
        inputs[f"{name} {problem}"] = (given.tolist(), predictions.reference.tolist())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    stands_in = tmp_path_factory.mktemp("comet")
    (stands_in / "comet.py").write_text(COMET)
    path = os.pathsep.join([str(root), str(stands_in)])
    environment |= {"HF_HOME": str(home), "CACHE": str(home / "cache"), "PYTHONPATH": path}
    command = [sys.executable, "-c", MODULES_SCRIPT]
    done = subprocess.run(
        command, input=json.dumps(inputs), capture_output=True, text=True, cwd=work, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), sorted(path.name for path in work.rglob("*"))


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_evaluate_modules_give_the_same_values_without_a_network(modules, name, problem):
    predictions = drawn(problem)
    value = np.mean([len(text) for text in predictions.predicted]) if name == "comet" else score(name, predictions)
    assert modules[0][f"{name} {problem}"] == pytest.approx(value, rel=1e-12, abs=1e-12)


def test_evaluate_modules_can_be_combined_fed_one_by_one_and_kept_on_disk(modules):
    predictions = drawn("single_label")
    found, accuracy = modules[0], score("accuracy", predictions)
    assert found["combined"] == pytest.approx({"accuracy": accuracy, "f1_macro": score("f1_macro", predictions)})
    assert found["added one by one"] == found["on disk"] == pytest.approx(accuracy)


def test_evaluate_modules_leave_nothing_in_the_working_directory(modules):
    assert modules[1] == ["accuracy", "accuracy.py"]
