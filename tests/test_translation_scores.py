"""Values, signatures, intervals and p-values are those of sacrebleu and its command line; outputs counted by hand."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest, _bootstrap_resample
from sentences import references_of, statistics_of, with_mistakes

from hf_transfer import translation_scores
from hf_transfer.errors import InputError
from hf_transfer.translation_scores import (
    COLUMN_COUNT,
    TRANSLATION_COLUMNS,
    approximate_randomisation,
    columns_of,
    comet_problem,
    corpus_value,
    quality_counts,
    sacrebleu_interval,
    sentence_statistics,
    signature,
    tokenizer_of,
    tokenizer_problem,
    vectorised,
)

METRICS = ("bleu", "chrf", "ter")
THEIRS = {"bleu": BLEU, "chrf": lambda **settings: CHRF(word_order=2, **settings), "ter": TER}
THEIR_NAMES = {"bleu": "BLEU", "chrf": "chrF2++", "ter": "TER"}

WORDS = st.sampled_from(
    ["der", "Der", "Hund", "Hund.", "läuft", ",", "!", "...", "12,5", "&quot;", "\u2028", "猫が", "’s", "-"]
)
SENTENCES = st.one_of(
    st.lists(WORDS, max_size=12).map(" ".join),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"), max_size=20),
)
CORPORA = st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=8)


def command_line(folder, hypotheses, references, *options):
    """What sacrebleu prints as JSON, by the metric's own name."""
    (folder / "hypotheses").write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8", newline="\n")
    (folder / "references").write_text("".join(f"{line}\n" for line in references), encoding="utf-8", newline="\n")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", *options]
    command += ["-m", "bleu", "chrf", "ter", "--chrf-word-order", "2", "-f", "json", "-w", "14"]
    environment = {key: value for key, value in os.environ.items() if key != "SACREBLEU_SEED"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=True)
    by_name = {line["name"]: line for line in json.loads(done.stdout)}
    return {metric: by_name[name] for metric, name in THEIR_NAMES.items()}


def corpus_values(hypotheses, references) -> dict[str, float]:
    statistics = sentence_statistics(hypotheses, references, METRICS)
    return {metric: corpus_value(metric, columns_of(metric, statistics).sum(axis=0)) for metric in METRICS}


# --- values ---


def check_against_the_command_line(folder, hypotheses, references):
    printed = command_line(folder, hypotheses, references)
    for metric, value in corpus_values(hypotheses, references).items():
        assert float(f"{value:.14f}") == printed[metric]["score"], metric
        assert signature(metric) == printed[metric]["signature"], metric


def test_values_and_signatures_are_those_of_the_command_line_to_the_last_digit(tmp_path):
    references = references_of(150)
    hypotheses = with_mistakes(references, 0.3, 1)
    hypotheses[3], hypotheses[5], references[7], hypotheses[9], references[9] = "", " ", "", "", ""
    hypotheses[11] += "  \t"
    check_against_the_command_line(tmp_path, hypotheses, references)


def test_odd_texts_have_the_values_of_the_command_line(tmp_path):
    odd = [
        "",
        "…",
        "e\u0301 é",
        "日本語 テスト。",
        "&amp; &quot;x&quot;",
        "a\u2028b",
        "🤖🤖",
        "<skipped>",
        "x" * 300,
        "\tA-\tB\r",
        "1,000.50%",
    ]
    check_against_the_command_line(tmp_path, odd, odd[::-1])
    check_against_the_command_line(tmp_path, odd, odd)
    check_against_the_command_line(tmp_path, [""], [""])


@settings(max_examples=4, deadline=None, derandomize=True)
@given(CORPORA)
def test_drawn_texts_have_the_values_of_the_command_line(tmp_path_factory, corpus):
    hypotheses, references = zip(*corpus, strict=True)
    check_against_the_command_line(tmp_path_factory.mktemp("drawn"), hypotheses, references)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(CORPORA)
def test_drawn_texts_have_the_values_of_sacrebleu_and_so_have_samples_of_them(corpus):
    hypotheses, references = (list(side) for side in zip(*corpus, strict=True))
    statistics = sentence_statistics(hypotheses, references, METRICS)
    counts = np.random.default_rng(0).multinomial(len(corpus), np.full(len(corpus), 1 / len(corpus)), 5)
    for metric in METRICS:
        rows = columns_of(metric, statistics)
        expected = THEIRS[metric]().corpus_score(hypotheses, [references]).score
        assert corpus_value(metric, rows.sum(axis=0)) == expected
        assert vectorised(metric, rows.sum(axis=0)[None]) == pytest.approx([expected], abs=1e-9)
        for value, row in zip(vectorised(metric, counts @ rows), counts, strict=True):
            sample = [np.repeat(side, row).tolist() for side in (hypotheses, references)]
            theirs = THEIRS[metric]().corpus_score(sample[0], [sample[1]]).score
            assert value == pytest.approx(theirs, abs=1e-9)


def test_resamples_of_many_sentences_have_the_values_of_sacrebleu():
    statistics = statistics_of(400, 0.3, 1)
    counts = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), 200)
    for metric in METRICS:
        sums = counts @ columns_of(metric, statistics)
        theirs = [THEIRS[metric]()._compute_score_from_stats(row.tolist()).score for row in sums]
        assert vectorised(metric, sums) == pytest.approx(theirs, abs=1e-9)
        assert np.ptp(theirs) > 1, "200 times the same shows nothing"


@pytest.mark.filterwarnings("error")
def test_samples_without_matches_or_tokens_have_a_value_and_no_warning():
    bleu = [
        [0, 0, *[0] * 8],
        [0, 4, *[0] * 8],
        [3, 4, 3, 2, 1, 0, 3, 2, 1, 0],  # no run of four: nothing to smooth
        [4, 4, 2, 0, 0, 0, 4, 3, 2, 1],  # 2/4, 1/2/3, 1/4/2, 1/8/1
        [4, 0, 0, 0, 0, 0, 4, 3, 2, 1],
    ]
    by_hand = [0, 0, 0, 100 * (1 / 2 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25, 0]
    assert vectorised("bleu", np.array(bleu, float)) == pytest.approx(by_hand)
    assert vectorised("ter", np.array([[0.0, 0.0], [3, 0], [3, 4]])) == pytest.approx([0, 100, 75])
    chrf = np.zeros((3, 24))
    chrf[1, :3] = 4, 2, 1  # precision 1/4, recall 1/2
    chrf[2, :6] = 4, 2, 1, 1, 0, 0
    assert vectorised("chrf", chrf) == pytest.approx([0, *[100 * 5 * 0.125 / (4 * 0.25 + 0.5)] * 2])


def test_columns_are_laid_out_side_by_side_and_only_those_asked_for_are_filled():
    assert [(part.start, part.stop) for part in TRANSLATION_COLUMNS.values()] == [(0, 10), (10, 34), (34, 36), (36, 37)]
    statistics = sentence_statistics(["ein Hund", ""], ["ein Hund läuft", "x"], ["ter", "bleu"])
    assert statistics.shape == (2, COLUMN_COUNT) and statistics.dtype == np.float64
    assert statistics[:, :10].tolist() == [[2, 3, 2, 1, 0, 0, 2, 1, 0, 0], [0, 1, *[0] * 8]]
    assert statistics[:, 34:36].tolist() == [[1, 3], [1, 1]]
    assert np.isnan(statistics[:, 10:34]).all() and np.isnan(statistics[:, 36]).all()
    assert sentence_statistics([], [], METRICS).shape == (0, COLUMN_COUNT)
    assert np.isnan(columns_of("chrf", np.ones((3, 1)))).all() and columns_of("chrf", np.ones((3, 1))).shape == (3, 24)
    with pytest.raises(AssertionError, match="without a reference"):
        sentence_statistics(["a"], ["a", "b"], METRICS)


def test_another_tokenizer_changes_bleu_and_its_signature(tmp_path):
    hypotheses, references = ["我喜欢猫。"], ["我喜欢狗。"]
    printed = command_line(tmp_path, hypotheses, references, "-tok", "zh")["bleu"]
    statistics = sentence_statistics(hypotheses, references, ["bleu"], tokenize="zh")
    assert corpus_value("bleu", columns_of("bleu", statistics).sum(axis=0)) == pytest.approx(
        printed["score"], abs=1e-13
    )
    assert signature("bleu", "zh") == printed["signature"] and "tok:zh" in printed["signature"]


# --- intervals and tests ---


def test_intervals_are_those_of_the_command_line(tmp_path):
    references = references_of(60)
    hypotheses = with_mistakes(references, 0.3, 1)
    printed = command_line(tmp_path, hypotheses, references, "--confidence", "--confidence-n", "200")
    statistics = sentence_statistics(hypotheses, references, METRICS)
    for metric in METRICS:
        mean, half_width = sacrebleu_interval(metric, statistics, resamples=200)
        assert float(f"{mean:.14f}") == printed[metric]["confidence_mean"], metric
        assert float(f"{half_width:.14f}") == printed[metric]["confidence_var"], metric


def test_p_values_are_those_of_the_paired_test_on_text():
    references = references_of(80)
    a, b = with_mistakes(references, 0.25, 1), with_mistakes(references, 0.3, 2)
    found = [sentence_statistics(side, references, METRICS) for side in (a, b)]
    for metric in METRICS:
        systems, metrics = [("b", b), ("a", a)], {metric: THEIRS[metric](references=[references])}
        _, table = PairedTest(systems, metrics, None, test_type="ar", n_samples=500)()
        theirs = table[THEIR_NAMES[metric]][1].p_value
        mine = approximate_randomisation(metric, *(columns_of(metric, one) for one in found), trials=500)
        assert 0.01 < theirs < 0.9, "a p-value that could be another's"
        if metric == "ter":  # whole edits over the same tokens: other swaps give exactly the same difference
            assert theirs <= mine <= theirs + 0.1
        else:
            assert mine == theirs


def test_p_values_of_systems_that_hardly_differ_count_equal_results():
    """sacrebleu's is 1 / (trials + 1) for each of these: no swap moves them farther apart."""
    a = columns_of("bleu", statistics_of(40, 0.3, 1))
    other = columns_of("bleu", statistics_of(40, 0.5, 2))
    for changed, expected in ((0, 1.0), (1, 1.0), (2, 0.5), (3, 0.25)):
        b = a.copy()
        worse = np.flatnonzero(a[:, 2] > other[:, 2])[:changed]
        b[worse] = other[worse]
        assert approximate_randomisation("bleu", a, b, 2000) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_equal_systems_are_told_apart_in_3_to_7_percent_of_comparisons():
    pool = [statistics_of(1000, 0.3, seed) for seed in (1, 2)]
    rng, found = np.random.default_rng(0), dict.fromkeys(METRICS, 0)
    for _ in range(300):
        chosen = rng.choice(1000, 60, replace=False)
        for metric in METRICS:
            a, b = (columns_of(metric, one[chosen]) for one in pool)
            swapped = rng.random(60) < 0.5  # exchangeable by construction
            sides = np.where(swapped[:, None], b, a), np.where(swapped[:, None], a, b)
            found[metric] += approximate_randomisation(metric, *sides, trials=99) <= 0.05
    for metric, count in found.items():
        assert 0.03 <= count / 300 <= 0.07, metric


def test_resampled_scores_are_spread_as_those_of_sacrebleu():
    statistics = statistics_of(200, 0.3, 1)
    counts = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), 4000)
    for metric in METRICS:
        rows = columns_of(metric, statistics)
        _, theirs = _bootstrap_resample(rows.tolist(), THEIRS[metric](), 2000)
        expected = np.array([score.score for score in theirs], dtype=np.float64)  # some are float32
        mine = vectorised(metric, counts @ rows)
        assert mine.mean() == pytest.approx(expected.mean(), abs=0.1 * expected.std())
        assert mine.std() == pytest.approx(expected.std(), rel=0.06)


# --- COMET ---


def install_comet(monkeypatch, has_model: bool = True):
    """A package of the same shape whose model finds longer translations better."""
    asked = []

    class Model:
        def predict(self, rows, batch_size, gpus, progress_bar):
            asked.append([tuple(row.values()) for row in rows])
            return types.SimpleNamespace(scores=[len(row["mt"]) / 100 for row in rows])

    def download_model(model, local_files_only):
        assert model == "Unbabel/wmt22-comet-da" and local_files_only, "nothing may be fetched unasked"
        if not has_model:
            raise KeyError("Model 'Unbabel/wmt22-comet-da' not supported by COMET.")
        return "model.ckpt"

    module = types.ModuleType("comet")
    module.__spec__ = types.SimpleNamespace()
    module.download_model, module.load_from_checkpoint = download_model, lambda path, local_files_only: Model()
    monkeypatch.setitem(sys.modules, "comet", module)
    translation_scores._comet_model.cache_clear()
    return asked


def test_comet_is_refused_with_the_remedy_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(translation_scores.importlib.util, "find_spec", lambda name: None)
    assert "pip install unbabel-comet" in comet_problem()
    with pytest.raises(InputError, match="pip install unbabel-comet"):
        sentence_statistics(["a"], ["a"], ["comet"], ["a"])


def test_comet_is_refused_with_the_remedy_where_its_model_is_not_cached(monkeypatch):
    install_comet(monkeypatch, has_model=False)
    assert "Unbabel/wmt22-comet-da" in comet_problem() and "comet.download_model(" in comet_problem()
    with pytest.raises(InputError, match="not in the Hugging Face cache"):
        sentence_statistics(["a"], ["a"], ["comet"], ["a"])


def test_comet_scores_sentences_in_points_where_it_is_installed(monkeypatch):
    asked = install_comet(monkeypatch)
    assert comet_problem() == ""
    statistics = sentence_statistics(["ein Hund", "ja"], ["der Hund", "ja"], ["comet", "bleu"], ["a dog", "yes"])
    assert statistics[:, 36] == pytest.approx([8, 2])
    assert asked == [[("a dog", "ein Hund", "der Hund"), ("yes", "ja", "ja")]]
    assert signature("comet") == "model:Unbabel/wmt22-comet-da"
    with pytest.raises(AssertionError, match="comet reads the sources"):
        sentence_statistics(["a"], ["a"], ["comet"])


# --- outputs that look wrong ---


@pytest.mark.parametrize(
    ("source", "hypothesis", "reference", "found"),
    [
        ("A dog runs.", "Ein Hund läuft.", "Ein Hund läuft.", {}),
        ("A dog runs.", " a DOG  runs. ", "Ein Hund läuft.", {"copied"}),
        ("OK", "ok", "Gut", {"copied"}),
        (
            "The big dog runs in the park.",
            "The big dog runs in the park.",
            "Ein Hund.",
            {"copied"},
        ),  # no more
        ("Windows 95", "Windows 95", "Windows 95", {}),  # rightly so
        ("A dog runs.", "A dog run.", "Ein Hund läuft.", {}),
        ("The big dog runs in the park.", "Hier: The big dog runs in einem Park.", "Ein Hund.", {"partly_copied"}),
        ("The big dog runs in.", "Hier: The big dog runs.", "Ein Hund.", {}),  # a run of four
        ("Bank of New York Mellon fell.", "Bank of New York Mellon fiel.", "Die Bank of New York Mellon sank.", {}),
        ("A dog runs.", "", "Ein Hund läuft.", {"empty"}),
        ("A dog runs.", " \t", "Ein Hund läuft.", {"empty"}),
        (" ", "", "", {}),
        ("Yes.", "ja ja Ja ja", "Ja.", {"repeated"}),
        ("Yes.", "ja ja ja", "Ja.", {}),
        ("Yes.", "!!!!", "Ja.", {"repeated"}),
        ("No, no, no, no!", "nein, nein, nein, nein!", "Nein, nein, nein, nein!", {}),  # the comma: three times
        ("No.", "nein, nein, nein, nein, gut", "Nein.", {"repeated"}),
        ("No no no no", "nein nein nein nein", "nein nein nein nein nein", {}),
        ("x", "a b c d a b c d a b c d a b c d", "y", {"repeated"}),
        ("x", "a b c d a b c d a b c d a b c", "y", {}),
        ("x", "ja ja nein ja ja gut ja ja doch ja ja", "y", {}),  # often, but not in a row
        ("x", "a b c d e a b c d e a b c d e a b c d e", "y", {}),  # five tokens long
    ],
)
def test_outputs_that_look_wrong_are_counted(source, hypothesis, reference, found):
    counts = quality_counts([source], [hypothesis], [reference])
    assert {name for name in ("copied", "partly_copied", "empty", "repeated") if counts[name]} == set(found)
    assert counts["copy_rate"] == ("copied" in found)


def test_lengths_are_those_of_bleu_and_rates_are_of_all_sentences():
    references = references_of(50)
    hypotheses = with_mistakes(references, 0.3, 1)
    counts = quality_counts(["a dog"] * 50, ["a dog"] * 10 + hypotheses[10:], references)
    bleu = BLEU().corpus_score(["a dog"] * 10 + hypotheses[10:], [references])
    assert counts["length_ratio"] == bleu.sys_len / bleu.ref_len
    assert (counts["count"], counts["copied"], counts["copy_rate"]) == (50, 10, 0.2)
    nothing = quality_counts([], [], [])
    assert nothing["count"] == 0 and np.isnan([nothing["length_ratio"], nothing["copy_rate"]]).all()
    assert np.isnan(quality_counts(["a"], ["a"], [""])["length_ratio"])
    json.dumps(counts, allow_nan=False)


@pytest.mark.parametrize(
    ("language", "tokenize"), [("zh", "zh"), ("ja", "ja-mecab"), ("ko", "ko-mecab"), ("de", "13a"), ("", "13a")]
)
def test_bleu_counts_the_words_of_the_target_language_as_sacrebleu_does(language, tokenize):
    assert tokenizer_of(language) == tokenize


def test_chinese_is_counted_by_characters():
    said, wanted = ["把面团放在温暖的地方。"] * 3, ["把面团放在凉爽的地方。"] * 3
    rows = sentence_statistics(said, wanted, ["bleu"], tokenize="zh")
    expected = sacrebleu.corpus_bleu(said, [wanted], tokenize="zh").score
    assert corpus_value("bleu", columns_of("bleu", rows).sum(axis=0)) == pytest.approx(expected, abs=1e-9)
    assert expected > 40 and sacrebleu.corpus_bleu(said, [wanted]).score < 20
    assert "tok:zh" in signature("bleu", "zh")


def test_a_tokenizer_without_its_package_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tokenizer_problem("13a") == tokenizer_problem("zh") == ""
    assert "pip install 'sacrebleu[ja]'" in tokenizer_problem("ja-mecab")
