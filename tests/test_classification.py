"""Classification: labels as they are read, what is wrong with them, and the arithmetic from texts to losses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from tiny import make_tokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_transfer.config import DataConfig, RunConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.labels import as_names, guess_problem, read_label, sort_names
from hf_transfer.records import Batch, DomainSplits, LabelSpace, Leaks
from hf_transfer.tasks import TASKS

TASK = TASKS["classification"]


def opened(tokenizer):
    """What a task needs of an opened checkpoint here."""
    return SimpleNamespace(tokenizer=tokenizer)


def table(labels: list, name: str = "train", texts: list[str] | None = None, **more) -> Dataset:
    columns = {
        "text": texts or ["the book was good"] * len(labels),
        "label": labels,
        "example_id": [f"{name}-{i}" for i in range(len(labels))],
        "domain": ["books"] * len(labels),
        "place": [f"{name}.csv:{i + 1}" for i in range(len(labels))],
        "split": [""] * len(labels),
    }
    return Dataset.from_dict(columns | more)


def splits_of(train: list, validation: list | None = None, test: dict[str, list] | None = None) -> DomainSplits:
    return DomainSplits(
        train=table(train),
        validation=table(train[:1] if validation is None else validation, "validation"),
        test={domain: table(labels, domain) for domain, labels in (test or {"books": train}).items()},
        train_domains=("books",),
        leaks=Leaks(),
        rule="hash",
    )


def read(splits: DomainSplits, train: TrainConfig | None = None, **data) -> LabelSpace:
    return TASK.read_labels(splits, DataConfig(**data), train or TrainConfig())


def problems_of(splits: DomainSplits, train: TrainConfig | None = None, **data) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read(splits, train, **data)
    return caught.value.problems


# labels


@pytest.mark.parametrize(
    ("raw", "separator", "wanted"),
    [
        (3, None, "3"),
        ("3", None, "3"),
        (3.0, None, "3"),
        (" good ", None, "good"),
        (0.5, None, 0.5),
        (["a", " b"], None, ("a", "b")),
        ((1, 2.0), None, ("1", "2")),
        ([], None, ()),
        ("a|b", None, "a|b"),
        ("a | b|", "|", ("a", "b")),
        ("a", "|", ("a",)),
        (3.0, "|", ("3",)),
        ("", "|", ()),
    ],
)
def test_a_label_is_read_in_one_canonical_form(raw, separator, wanted):
    assert read_label(raw, separator) == wanted


def test_a_label_of_any_form_has_names():
    assert (as_names("a"), as_names(0.5), as_names(("a", "b")), as_names(())) == (("a",), ("0.5",), ("a", "b"), ())


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["good", "bad"], "single_label"),
        (["1", "2", "3"], "single_label"),
        (["1", "2.5"], "regression"),
        ([0.5, "1"], "regression"),
        (["-1e-3", "2"], "regression"),
        (["0.5", "good"], "single_label"),
        (["0.5", "nan"], "single_label"),
        (["0.5", "inf"], "single_label"),
        ([("a",), ("a", "b")], "multi_label"),
        (["a", ()], "multi_label"),
    ],
)
def test_the_kind_of_problem_is_read_from_the_labels(labels, wanted):
    assert guess_problem(labels) == wanted


def test_names_sort_as_people_count():
    assert sort_names({"10", "2", "1"}) == ["1", "2", "10"]
    assert sort_names({"star 10", "star 9", "neutral", "10", "Star 9"}) == [
        "10",
        "Star 9",
        "neutral",
        "star 9",
        "star 10",
    ]
    assert sort_names({"1", "01", "²", "1a"}) == ["01", "1", "1a", "²"]


def test_the_classes_of_integers_strings_and_whole_floats_are_the_same():
    wanted = LabelSpace("single_label", ("2", "10"))
    for labels in ([10, 2, 2], ["10", "2", "2"], [10.0, 2.0, 2.0]):
        assert read(splits_of(labels)) == wanted
    mixed = splits_of([10, 2], test={"books": ["2", "10"], "apps": [2.0, 10.0]})
    encoded = TASK.encode(mixed, read(mixed), opened(make_tokenizer()), 20)
    assert [rows["labels"][:] for rows in (encoded.train, *encoded.test.values())] == [[1, 0], [0, 1], [0, 1]]


def test_the_class_set_comes_from_train_and_never_from_test():
    problems = problems_of(splits_of(["bad", "good"], test={"books": ["good"], "apps": ["mixed", "good", "mixed"]}))
    assert problems == (
        "label 'mixed' occurs 2 times in test:apps (first at apps.csv:1) but not in train: mend it, add train examples "
        "of it, or declare the class set with --data.label_names.",
    )


def test_unseen_labels_of_every_split_and_domain_are_reported_together():
    splits = splits_of(["a", "b"], ["x"], {"books": ["a", "y"], "apps": list("zzwvu")})
    problems = problems_of(splits)
    assert [text[: text.index(" but")] for text in problems[:5]] == [
        "label 'x' occurs 1 times in validation (first at validation.csv:1)",
        "label 'y' occurs 1 times in test:books (first at books.csv:2)",
        "label 'z' occurs 2 times in test:apps (first at apps.csv:1)",
        "label 'w' occurs 1 times in test:apps (first at apps.csv:3)",
        "label 'v' occurs 1 times in test:apps (first at apps.csv:4)",
    ]
    assert problems[5:] == ("1 more labels of test:apps do not occur in train.",)


def test_declared_names_give_the_order_and_hold_for_every_split():
    splits = splits_of(["bad", "good"], test={"books": ["mixed"]})
    assert read(splits, label_names=("mixed", "good", "bad")).names == ("mixed", "good", "bad")
    for problem, name in zip(problems_of(splits, label_names=("mixed", "good")), ("train", "validation"), strict=True):
        assert f"'bad' occurs 1 times in {name} (first at {name}.csv:1) but not in --data.label_names" in problem


def test_one_class_alone_is_refused():
    (problem,) = problems_of(splits_of(["good", "good"]))
    assert problem.startswith("train holds one class only ('good'): give data with two or more classes")
    assert read(splits_of(["good", "good"]), label_names=("bad", "good")).names == ("bad", "good")


def test_lists_and_separated_strings_are_multi_label():
    wanted = LabelSpace("multi_label", ("plot", "speed", "taste"))
    lists = splits_of([["taste", "plot"], ["speed"], []])
    assert read(lists) == wanted
    separated = splits_of(["taste;plot", "speed", ""])
    space = read(separated, label_separator=";")
    assert (space.names, space.separator) == (wanted.names, ";")
    for splits, labels in ((lists, wanted), (separated, space)):
        encoded = TASK.encode(splits, labels, opened(make_tokenizer()), 20)
        assert encoded.train["labels"][:] == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    (problem,) = problems_of(splits_of([["a"], ["b"]], test={"books": [["a", "c"]]}))
    assert problem.startswith("label 'c' occurs 1 times in test:books (first at books.csv:1)")


def test_several_labels_are_refused_where_one_was_asked_for():
    splits = splits_of([["a"], ["b", "a"], []], validation=[["a"]], test={"books": [["a"], ["b"]]})
    assert problems_of(splits, problem="single_label") == (
        "2 examples of train have several labels or none (train.csv:2, train.csv:3): give each one label, or use "
        "--data.problem multi_label.",
    )
    assert read(splits_of([["a"], ["b"]]), problem="single_label").names == ("a", "b")


@pytest.mark.parametrize("problem", ["auto", "single_label", "multi_label"])
def test_labels_that_are_all_empty_are_refused(problem):
    assert "no train example has a label" in problems_of(splits_of([[], []]), problem=problem)[0]


def test_fractions_are_regression_and_what_is_no_number_is_named():
    splits = splits_of([0.5, 2.0])
    assert read(splits) == LabelSpace("regression")
    assert read(splits).output_count == 1
    assert TASK.encode(splits, read(splits), opened(make_tokenizer()), 20).train["labels"][:] == [0.5, 2.0]
    problems = problems_of(splits_of(["0.5", "2"], test={"books": ["1", "good", "nan"]}))
    wanted = "2 labels of test:books are not numbers (books.csv:2, books.csv:3): mend them, or choose another"
    assert len(problems) == 1 and problems[0].startswith(wanted)
    assert read(splits_of([1, 2]), problem="regression") == LabelSpace("regression")


def test_options_that_do_not_fit_the_problem_are_reported_with_the_rest():
    train = TrainConfig(class_weights="balanced", label_smoothing=0.1)
    problems = problems_of(splits_of([0.5, 2.0]), train, label_names=("a",))
    assert problems == (
        "--data.label_names does not go with regression: leave it out.",
        "--train.class_weights balanced needs single-label data, found regression: leave it out.",
        "--train.label_smoothing needs single-label data, found regression: leave it out.",
    )
    assert len(problems_of(splits_of([["a"], ["b"]]), train)) == 2


def test_balanced_class_weights_are_those_of_scikit_learn():
    train = TrainConfig(class_weights="balanced")
    for labels in (["b"] * 7 + ["a"] * 2 + ["c"], [10, 2, 2, 2, 10.0, 3], [["a"], ["b"], ["b"]]):
        space = read(splits_of(labels), train, problem="single_label")
        names = np.array([as_names(read_label(raw, None))[0] for raw in labels])
        wanted = compute_class_weight("balanced", classes=np.array(space.names), y=names)
        assert space.class_weights == pytest.approx(wanted, rel=1e-12)
    assert read(splits_of(["a", "b", "b"])).class_weights == ()


def test_a_declared_class_without_examples_does_not_change_the_weights_of_the_others():
    train = TrainConfig(class_weights="balanced")
    labels = ["a"] * 3 + ["b"]
    plain = read(splits_of(labels), train).class_weights
    declared = read(splits_of(labels), train, label_names=("b", "unseen", "a")).class_weights
    assert declared == (plain[1], 1.0, plain[0])
    assert sum(plain[name == "b"] for name in labels) == pytest.approx(len(labels)), "the sum keeps its size"


# encoding


def encode(texts: list[str], max_length: int = 20, pairs: list[str] | None = None, types: bool = True):
    rows = table(["a"] * len(texts), texts=texts, **({"text_pair": pairs} if pairs else {}))
    splits = DomainSplits(rows, rows.select([]), {"books": rows.select([0])}, ("books",), Leaks(), "hash")
    return TASK.encode(splits, LabelSpace("single_label", ("a", "b")), opened(make_tokenizer(types)), max_length)


def test_texts_become_the_tokenizers_ids_with_their_length_domain_and_id():
    texts = ["the book was good", "a dry soup and a broken blade edge", "unheard"]
    encoded = encode(texts)
    tokenizer = make_tokenizer()
    assert encoded.train["input_ids"][:] == [tokenizer(text)["input_ids"] for text in texts]
    assert encoded.train["length"][:] == [6, 10, 3]
    assert encoded.train["example_id"][:] == ["train-0", "train-1", "train-2"]
    assert set(encoded.train.column_names) == {
        "input_ids",
        "token_type_ids",
        "labels",
        "length",
        "example_id",
        "domain",
    }
    assert len(encoded.validation) == 0
    assert encoded.test["books"]["input_ids"][:] == encoded.train["input_ids"][:1]
    assert encoded.truncated == 0


def test_cut_texts_are_counted_exactly():
    texts = [" ".join(["book"] * count) for count in (1, 7, 8, 9, 30)]  # with [CLS] and [SEP]: 3, 9, 10, 11, 32
    encoded = encode(texts, max_length=10)
    assert encoded.train["length"][:] == [3, 9, 10, 10, 10]
    assert encoded.truncated == 2, "a text that just fits is not cut"
    assert encode(texts, max_length=32).truncated == 0
    assert encode(texts[::-1], max_length=9).truncated == 3 + 1, "splits add up: the test row is the longest text"


def test_pairs_are_encoded_together_and_cut_together():
    first, second = ["the book was good", "app"], ["it is", " ".join(["soup"] * 30)]
    encoded = encode(first, max_length=12, pairs=second)
    tokenizer = make_tokenizer()
    for row, text, pair in zip(encoded.train, first, second, strict=True):
        wanted = tokenizer(text, pair, truncation=True, max_length=12)
        assert row["input_ids"] == wanted["input_ids"]
        assert row["token_type_ids"] == wanted["token_type_ids"]
    assert encoded.train[0]["token_type_ids"] == [0] * 6 + [1] * 3
    assert encoded.truncated == 1
    assert "token_type_ids" not in encode(first, pairs=second, types=False).train.column_names


# batches


def test_a_batch_is_padded_on_the_right_and_counts_its_tokens():
    tokenizer = make_tokenizer()
    rows = {
        "input_ids": [[2, 7, 3], [2, 7, 8, 9, 3], [2, 3]],
        "token_type_ids": [[0, 0, 1], [0, 0, 0, 1, 1], [0, 0]],
        "labels": [0, 2, 1],
        "example_id": ["x", "y", "z"],
        "length": [3, 5, 2],
        "domain": ["d"] * 3,
    }
    batch = TASK.make_batch(rows, tokenizer)
    assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert batch.inputs["input_ids"].tolist() == [[2, 7, 3, 0, 0], [2, 7, 8, 9, 3], [2, 3, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 0, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0] * 5]
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels)} == {torch.int64}
    assert (batch.tokens, batch.padding_tokens, batch.target_count) == (10, 5, 3)
    assert batch.example_ids == ("x", "y", "z")
    wanted = tokenizer.pad({"input_ids": rows["input_ids"]}, return_tensors="pt")
    assert torch.equal(batch.inputs["input_ids"], wanted["input_ids"])
    assert torch.equal(batch.inputs["attention_mask"], wanted["attention_mask"])
    tokenizer.pad_token = "[UNK]"
    assert TASK.make_batch(rows, tokenizer).inputs["input_ids"][2].tolist() == [2, 3, 1, 1, 1]


@pytest.mark.parametrize(
    ("labels", "shape", "dtype", "targets"),
    [
        ([0, 1], (2,), torch.int64, 2),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], (2, 3), torch.float32, 6),
        ([0.5, 1.0], (2,), torch.float32, 2),
    ],
)
def test_labels_of_a_batch_have_the_shape_of_the_problem(labels, shape, dtype, targets):
    rows = {"input_ids": [[2, 3]] * 2, "labels": labels, "example_id": ["x", "y"]}
    batch = TASK.make_batch(rows, make_tokenizer())
    assert (tuple(batch.labels.shape), batch.labels.dtype, batch.target_count) == (shape, dtype, targets)


# losses


def loss(logits: torch.Tensor, labels: list, space: LabelSpace, smoothing: float = 0.0):
    rows = {"input_ids": [[2, 3]] * len(labels), "labels": labels, "example_id": [""] * len(labels)}
    batch: Batch = TASK.make_batch(rows, make_tokenizer())
    functions = TASK.bind(space, opened(make_tokenizer()), RunConfig(train=TrainConfig(label_smoothing=smoothing)), ())
    return functions.loss_function(SequenceClassifierOutput(logits=logits), batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 3.0)])
def test_the_single_label_loss_is_the_sum_of_cross_entropies(smoothing, weights):
    """Against the definition: minus the sum over classes of weight x smoothed target x log probability."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    labels = [0, 2, 1, 1, 0]
    target = (1 - smoothing) * torch.eye(3, dtype=torch.float64)[labels] + smoothing / 3
    weight = torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float64)
    wanted = -(weight * target * logits.log_softmax(-1)).sum()
    found = loss(logits.float(), labels, LabelSpace("single_label", ("a", "b", "c"), weights), smoothing)
    assert found.loss_sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert found.target_count == 5


def test_the_single_label_loss_of_two_examples_worked_out_by_hand():
    # softmax of (0, ln 3) is (1/4, 3/4): -ln(1/4) - ln(3/4) = ln(16/3)
    logits = torch.tensor([[0.0, math.log(3.0)]] * 2)
    found = loss(logits, [0, 1], LabelSpace("single_label", ("a", "b")))
    assert found.loss_sum.item() == pytest.approx(math.log(16 / 3), rel=1e-6)
    # weights 2 and 4 multiply the losses, and do not change what they are divided by
    found = loss(logits, [0, 1], LabelSpace("single_label", ("a", "b"), (2.0, 4.0)))
    assert found.loss_sum.item() == pytest.approx(2 * math.log(4) + 4 * math.log(4 / 3), rel=1e-6)
    assert found.target_count == 2


def test_the_multi_label_loss_is_the_sum_over_examples_and_classes():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    labels = [[1.0, 0.0, 1.0], [0.0] * 3, [1.0] * 3, [0.0, 1.0, 0.0]]
    target = torch.tensor(labels, dtype=torch.float64)
    chance = 1 / (1 + (-logits).exp())
    wanted = -(target * chance.log() + (1 - target) * (1 - chance).log()).sum()
    found = loss(logits.float(), labels, LabelSpace("multi_label", ("a", "b", "c")))
    assert found.loss_sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert found.target_count == 12


def test_the_regression_loss_is_the_sum_of_squared_errors():
    logits = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = [0.5, -1.0, 2.25, 0.0]
    wanted = sum((float(output) - label) ** 2 for output, label in zip(logits[:, 0], labels, strict=True))
    found = loss(logits.float(), labels, LabelSpace("regression"))
    assert found.loss_sum.item() == pytest.approx(wanted, rel=1e-6)
    assert found.target_count == 4


def test_half_precision_logits_give_a_single_precision_loss():
    logits = torch.tensor([[300.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    found = loss(logits, [1, 1], LabelSpace("single_label", ("a", "b")))
    assert found.loss_sum.dtype == torch.float32
    assert found.loss_sum.item() == pytest.approx(300 + math.log(1 + math.exp(-1)), rel=1e-6)


def test_outputs_become_probabilities_and_probabilities_decisions():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, -1.0]])
    outputs = SequenceClassifierOutput(logits=logits)
    single, multi = LabelSpace("single_label", ("a", "b")), LabelSpace("multi_label", ("a", "b"))
    probabilities = TASK.read_outputs(outputs, single)
    np.testing.assert_allclose(probabilities[0], [0.25, 0.75], atol=1e-7)
    assert TASK.decide(probabilities.numpy(), single).tolist() == [1, 0]
    chances = TASK.read_outputs(outputs, multi)
    np.testing.assert_allclose(chances, [[0.5, 0.75], [0.5, 1 / (1 + math.e)]], atol=1e-7)
    assert TASK.decide(chances.numpy(), multi).tolist() == [[1, 1], [1, 0]]
    values = TASK.read_outputs(SequenceClassifierOutput(logits=logits[:, 1:]), LabelSpace("regression"))
    np.testing.assert_allclose(TASK.decide(values.numpy(), LabelSpace("regression")), [math.log(3), -1.0], atol=1e-7)


def test_the_head_is_named_by_the_labels():
    assert TASK.head(LabelSpace("multi_label", ("a", "b"))) == {
        "num_labels": 2,
        "id2label": {0: "a", 1: "b"},
        "label2id": {"a": 0, "b": 1},
        "problem_type": "multi_label_classification",
    }
    assert TASK.head(LabelSpace("regression"))["num_labels"] == 1
    assert TASK.head(LabelSpace("regression"))["problem_type"] == "regression"
    assert TASK.head(LabelSpace("single_label", ("a", "b")))["problem_type"] == "single_label_classification"
