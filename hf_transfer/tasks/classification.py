"""Text classification: one label of many, several at once, or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_transfer.beginnings import beginning_suffices, encode_beginnings
from hf_transfer.config import DataConfig, RunConfig, TrainConfig
from hf_transfer.content_cache import content_key, kept_rows, rows_digest, tokenizer_digest
from hf_transfer.errors import InputError
from hf_transfer.labels import Label, as_names, guess_problem, read_label, read_number, sort_names
from hf_transfer.mapped import map_to_disk
from hf_transfer.records import Batch, DomainSplits, EncodedSplits, LabelSpace, LossSum, Predictions, Pretrained
from hf_transfer.tasks.base import TaskFunctions, twice

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PLACES_SHOWN = 3


class Classification:
    """The task of ``recipes/text_cls.py``; stateless."""

    name = "classification"
    auto_class = "AutoModelForSequenceClassification"

    def read_labels(self, splits: DomainSplits, data: DataConfig, train: TrainConfig) -> LabelSpace:
        """Class set from train rows or as declared, never from test.

        Raises:
            InputError: one class only, labels outside the class set (by domain, with places), numbers that do not
                parse, or options that do not fit the kind of problem. All found are reported together.
        """
        train_labels = [read_label(raw, data.label_separator) for raw in splits.train["label"][:]]
        problem = data.problem if data.problem != "auto" else guess_problem(train_labels)
        if problem == "regression":
            problems = [text for name, rows in _all_splits(splits) for text in _not_numbers(name, rows)]
            if data.label_names:
                problems.append("--data.label_names does not go with regression: leave it out.")
            space = LabelSpace("regression")
        else:
            names = data.label_names or sort_names({name for label in train_labels for name in as_names(label)})
            problems = _class_problems(names, problem, splits, data)
            weights = _class_weights(train_labels, names, problem, train)
            space = LabelSpace(problem, tuple(names), weights, data.label_separator)
        if train.class_weights == "balanced" and problem != "single_label":
            problems.append(f"--train.class_weights balanced needs single-label data, found {problem}: leave it out.")
        if train.label_smoothing and problem != "single_label":
            problems.append(f"--train.label_smoothing needs single-label data, found {problem}: leave it out.")
        if problems:
            raise InputError(problems)
        return space

    def head(self, labels: LabelSpace) -> dict[str, Any]:
        """``num_labels, id2label, label2id, problem_type`` of the checkpoint's config."""
        problem_type = {
            "single_label": "single_label_classification",
            "multi_label": "multi_label_classification",
            "regression": "regression",
        }[labels.problem]
        names = labels.names or ("value",)
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            "problem_type": problem_type,
        }

    def settle(self, labels: LabelSpace, pretrained: Pretrained, config: RunConfig) -> LabelSpace:
        """``labels`` as they are: their order was settled before the checkpoint was opened (``align_labels``)."""
        return labels

    def bind(
        self, labels: LabelSpace, pretrained: Pretrained, config: RunConfig, metrics: Sequence[str]
    ) -> TaskFunctions:
        """The functions of a run."""
        train = config.train.settled(self.name, config.adapt.strategy, from_scratch=False)
        make_batch = partial(self.make_batch, tokenizer=pretrained.tokenizer)
        loss = partial(self.loss_sum, labels=labels, label_smoothing=train.label_smoothing or 0.0, r_drop=train.r_drop)
        return TaskFunctions(
            make_batch=make_batch,
            loss_function=loss,
            read_outputs=partial(self.read_outputs, labels=labels),
            to_predictions=partial(self.to_predictions, labels=labels),
            make_train_batch=(lambda rows: twice(make_batch(rows))) if train.r_drop else None,
        )

    def to_predictions(self, rows: Dataset, probabilities: np.ndarray, labels: LabelSpace) -> Predictions:
        """Predictions for encoded ``rows`` from ``probabilities`` [rows, classes]."""
        import numpy as np

        return Predictions(
            example_ids=np.asarray(rows["example_id"][:]),
            domain_ids=np.asarray(rows["domain"][:]),
            predicted=self.decide(probabilities, labels),
            reference=np.asarray(rows["labels"][:]),
            probabilities=probabilities,
        )

    def encode(
        self, splits: DomainSplits, labels: LabelSpace, pretrained: Pretrained, max_length: int
    ) -> EncodedSplits:
        """Token ids (cut at ``max_length``, counted), numeric labels and lengths for every split."""
        cut = 0
        encoded = {}
        rules = tokenizer_digest(pretrained.tokenizer)
        for name, rows in _all_splits(splits):
            encoded[name], cut_here = _encode_rows(rows, labels, pretrained.tokenizer, rules, max_length)
            cut += cut_here
        test = {domain: encoded[f"test:{domain}"] for domain in splits.test}
        return EncodedSplits(encoded["train"], encoded["validation"], test, cut)

    def make_batch(self, rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Right-pad to the longest row of the batch. ``rows``: columns of ``encode`` as lists."""
        import torch

        lengths = [len(ids) for ids in rows["input_ids"]]
        longest = max(lengths)
        padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": 0}
        inputs = {
            name: torch.tensor([list(ids) + [value] * (longest - len(ids)) for ids in rows[name]])
            for name, value in padding.items()
            if name in rows
        }
        real = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]  # [batch, length]
        inputs["attention_mask"] = real.long()
        labels = torch.tensor(rows["labels"])
        tokens = sum(lengths)
        return Batch(
            inputs=inputs,
            labels=labels,
            example_ids=tuple(rows["example_id"]),
            tokens=tokens,
            padding_tokens=real.numel() - tokens,
            target_count=labels.numel(),  # multi-label: every class of every example is a target
        )

    def loss_sum(
        self, outputs: Any, batch: Batch, labels: LabelSpace, label_smoothing: float, r_drop: float = 0.0
    ) -> LossSum:
        """Cross-entropy, binary cross-entropy or squared error in fp32, summed over the targets.

        With ``r_drop`` the batch holds every example twice (``twice``): the loss is the mean of the two passes and
        ``r_drop`` times the mean of both Kullback-Leibler divergences between their predictions (Liang 2021, equation
        4, which adds up the passes: half of it, with alpha = 2 ``r_drop``).

        ``outputs.logits``: [batch, classes], [batch, 1] for regression. Class weights multiply each example's loss
        and do not change the count, so that the balanced sum has the size of the plain one.
        """
        import torch
        from torch.nn import functional

        from hf_transfer.on_device import send

        logits = outputs.logits.float()
        if labels.problem == "regression":
            total = functional.mse_loss(logits.squeeze(-1), batch.labels.float(), reduction="sum")
        elif labels.problem == "multi_label":
            total = functional.binary_cross_entropy_with_logits(logits, batch.labels.float(), reduction="sum")
        else:
            weight = send(torch.tensor(labels.class_weights), logits.device) if labels.class_weights else None
            total = functional.cross_entropy(
                logits, batch.labels, weight, reduction="sum", label_smoothing=label_smoothing
            )
        if r_drop and len(logits) == 2 * len(batch.example_ids):  # not where gradients are only looked for
            total = total / 2 + r_drop / 2 * _divergence(logits.chunk(2), labels.problem)
        return LossSum(total, batch.target_count)

    def read_outputs(self, outputs: Any, labels: LabelSpace) -> torch.Tensor:
        """[batch, classes] probabilities in fp32; [batch, 1] values for regression."""
        logits = outputs.logits.float()
        if labels.problem == "single_label":
            return logits.softmax(-1)
        return logits.sigmoid() if labels.problem == "multi_label" else logits

    def decide(self, probabilities: np.ndarray, labels: LabelSpace) -> np.ndarray:
        """Most probable class [n]; classes at or over one half [n, classes]; or the value [n]."""
        if labels.problem == "single_label":
            return probabilities.argmax(-1)
        if labels.problem == "multi_label":
            return (probabilities >= 0.5).astype("int64")
        return probabilities[:, 0]


def _divergence(passes: Sequence[torch.Tensor], problem: str) -> torch.Tensor:
    """KL(first || second) + KL(second || first) of logits [n, classes], summed over examples; the squared distance of
    values in regression."""
    from torch.nn import functional

    first, second = passes
    if problem == "regression":
        return functional.mse_loss(first, second, reduction="sum")
    if problem == "multi_label":  # of each label on its own: (p - q) (logit p - logit q), as 1 - p joins in
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).sum()
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum()


def _all_splits(splits: DomainSplits) -> Iterator[tuple[str, Dataset]]:
    yield "train", splits.train
    yield "validation", splits.validation
    for domain, rows in splits.test.items():
        yield f"test:{domain}", rows


def _not_numbers(name: str, rows: Dataset) -> list[str]:
    bad = [place for raw, place in zip(rows["label"][:], rows["place"][:], strict=True) if read_number(raw) is None]
    if not bad:
        return []
    shown = ", ".join(bad[:PLACES_SHOWN])
    return [f"{len(bad)} labels of {name} are not numbers ({shown}): mend them, or choose another --data.problem."]


def _class_problems(names: Sequence[str], problem: str, splits: DomainSplits, data: DataConfig) -> list[str]:
    found = []
    if problem == "single_label" and len(names) == 1:
        found.append(
            f"train holds one class only ({names[0]!r}): give data with two or more classes, "
            "other --data.train_domains, or declare --data.label_names."
        )
    if not names:
        found.append("no train example has a label: give labelled data, or declare --data.label_names.")
    known = set(names)
    origin = "--data.label_names" if data.label_names else "train"
    for name, rows in _all_splits(splits):
        counts: Counter[str] = Counter()
        places: dict[str, str] = {}
        not_one: list[str] = []
        for raw, place in zip(rows["label"][:], rows["place"][:], strict=True):
            labels = as_names(read_label(raw, data.label_separator))
            if problem == "single_label" and len(labels) != 1:
                not_one.append(place)
            for label in labels:
                if label not in known:
                    counts[label] += 1
                    places.setdefault(label, place)
        if not_one:
            found.append(
                f"{len(not_one)} examples of {name} have several labels or none ({', '.join(not_one[:PLACES_SHOWN])}): "
                "give each one label, or use --data.problem multi_label."
            )
        for label, count in counts.most_common(PLACES_SHOWN):
            found.append(
                f"label {label!r} occurs {count} times in {name} (first at {places[label]}) but not in {origin}: mend "
                "it, add train examples of it, or declare the class set with --data.label_names."
            )
        if len(counts) > PLACES_SHOWN:
            found.append(f"{len(counts) - PLACES_SHOWN} more labels of {name} do not occur in {origin}.")
    return found


def _class_weights(
    labels: Sequence[Label], names: Sequence[str], problem: str, train: TrainConfig
) -> tuple[float, ...]:
    """n / (classes x count of the class), as scikit-learn's ``balanced``; 1 for a declared class without examples."""
    if train.class_weights != "balanced" or problem != "single_label":
        return ()
    counts = Counter(name for label in labels for name in as_names(label))
    return tuple(len(labels) / (len(counts) * counts[name]) if counts[name] else 1.0 for name in names)


def _encode_rows(
    rows: Dataset, labels: LabelSpace, tokenizer: PreTrainedTokenizerBase, rules: bytes, max_length: int
) -> tuple[Dataset, int]:
    """Encoded rows and how many of them were cut; ``rules`` is the digest of the tokenizer."""
    index = {name: i for i, name in enumerate(labels.names)}
    by_beginnings = beginning_suffices(tokenizer)

    def number(raw: Any) -> Any:
        if labels.problem == "regression":
            return float(raw)
        names = as_names(read_label(raw, labels.separator))
        if labels.problem == "multi_label":
            return [float(name in names) for name in labels.names]
        return index[names[0]]

    def encode(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pair = columns.get("text_pair")
        if pair is None and by_beginnings:
            tokens, cut = encode_beginnings(tokenizer, columns["text"], max_length)
            return finished(tokens, cut, columns)
        tokens = tokenizer(columns["text"], pair, truncation=True, max_length=max_length, padding=False)
        ids = tokens["input_ids"]
        if tokens.encodings is not None:
            cut = [bool(encoding.overflowing) for encoding in tokens.encodings]
        else:  # a tokenizer in plain Python keeps nothing of what it leaves out
            full = [i for i, row in enumerate(ids) if len(row) >= max_length]
            texts, others = [columns["text"][i] for i in full], [pair[i] for i in full] if pair else None
            whole = tokenizer(texts, others)["input_ids"] if full else []
            too_long = {i for i, row in zip(full, whole, strict=True) if len(row) > max_length}
            cut = [i in too_long for i in range(len(ids))]
        return finished(tokens, cut, columns)

    def finished(tokens: Mapping[str, Any], cut: list[bool], columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = {
            "input_ids": tokens["input_ids"],
            "labels": [number(raw) for raw in columns["label"]],
            "length": [len(row) for row in tokens["input_ids"]],
            "was_cut": cut,
        }
        if "token_type_ids" in tokens:
            encoded["token_type_ids"] = tokens["token_type_ids"]
        return encoded

    if not len(rows):  # a map over nothing makes no columns
        return rows.select_columns(["example_id", "domain"]), 0
    dropped = [name for name in rows.column_names if name not in ("example_id", "domain")]

    def make() -> tuple[Dataset, int]:
        encoded = map_to_disk(rows, encode, dropped)
        return encoded.remove_columns("was_cut"), sum(encoded["was_cut"][:])

    how = repr((labels.problem, labels.names, labels.separator, max_length))
    content = rows_digest(rows, ["example_id", "domain", "text", "text_pair", "label"])
    return kept_rows(content_key("classification", how, rules, content), make)
