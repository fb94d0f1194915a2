"""The stock side of throughput.py: ``transformers.Trainer``, PEFT, ``generate`` and sentence-transformers as they are.

What a user of these gets who pads by batch (``DataCollatorWithPadding``) and follows their documentation: rows as lists
of token ids in memory, fused AdamW, no checkpoints, no trackers. What is added: a collator counts tokens on the way,
and ``paired_trainer`` takes the windows and rates of ours (throughput.py says what is left to differ in).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from measuring import (
    LORA_RANK,
    Clock,
    Order,
    loss_stretch,
    matmul_rate,
    plain_record,
    read_rows,
    seconds_at,
    training_record,
)
from our_side import encode

NOT_LOGGED = float("nan")
WARM_UP = 0.1
"""Share of the steps in which the rate rises: the default of ours."""


class OurWindows:
    """Row numbers as ours takes them, window by window; each pass is the next epoch."""

    def __init__(self, examples: int, order: Order) -> None:
        self._examples, self._order, self._epoch = examples, order, 0

    def __len__(self) -> int:
        return self._examples

    def __iter__(self) -> Iterator[int]:
        from hf_transfer.batching import window_count, window_indices

        per_epoch = window_count(self._examples, self._order.window)
        first = self._epoch * per_epoch
        self._epoch += 1
        for window in range(first, first + per_epoch):
            yield from window_indices(self._examples, self._order.window, self._order.seed, window).tolist()


def paired_trainer(order: Order, **given: Any) -> Any:
    """A ``Trainer`` with the rates of ours and, unless it groups by length, its windows."""
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import SequentialSampler
    from transformers import Seq2SeqTrainer, Trainer

    from hf_transfer.optim import rate_factor

    kind: Any = Seq2SeqTrainer if order.case == "translation" else Trainer

    class PairedTrainer(kind):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if order.way.endswith("grouped"):
                return super()._get_train_sampler(train_dataset)
            return OurWindows(len(train_dataset or self.train_dataset), order)

        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            return SequentialSampler(eval_dataset)  # grouped by length, it would answer in another order than asked

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def factor(step: int) -> float:
                return rate_factor(step, num_training_steps, WARM_UP, "linear")

            self.lr_scheduler = self.lr_scheduler or LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

    return PairedTrainer(**given)


class CountingCollator:
    """``DataCollatorWithPadding`` (of a ``translator`` ``DataCollatorForSeq2Seq``), and what it made of each batch."""

    def __init__(self, tokenizer: Any, translator: Any = None) -> None:
        from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

        self.inner: Any = DataCollatorWithPadding(tokenizer)
        if translator is not None:
            self.inner = DataCollatorForSeq2Seq(tokenizer, model=translator)
        self.batches: list[dict[str, float]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.inner(rows)
        masks = [batch["attention_mask"] != 0]
        if isinstance(rows[0].get("labels"), list):
            masks.append(batch["labels"] != -100)
        tokens = sum(int(mask.sum()) for mask in masks)
        counts = {"examples": len(rows), "tokens": tokens}
        counts["padding_tokens"] = sum(mask.numel() for mask in masks) - tokens
        self.batches.append({**counts, "loss": NOT_LOGGED})
        return batch


def train(order: Order) -> dict[str, Any]:
    """Trainer over the train rows; predictions of the test rows."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(order.seed)
    tokenizer = AutoTokenizer.from_pretrained(order.checkpoint)
    splits, names = encoded(order, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(order.checkpoint, num_labels=len(names))
    model = restricted(model.float(), order)
    collator = CountingCollator(tokenizer)
    trainer = paired_trainer(
        order,
        model=model,
        args=arguments(order, loss_stretch(steps_of(order, splits))),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"] if order.validation_steps else None,
        data_collator=collator,
        processing_class=tokenizer,
        compute_metrics=lambda output: {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())},
    )
    record = trained(trainer, collator, splits, order)
    started = time.perf_counter()
    logits = trainer.predict(splits["test"]).predictions
    record["scoring_seconds_per_example"] = (time.perf_counter() - started) / len(splits["test"])
    return record | outputs(order, logits, splits["test"])


def translate(order: Order) -> dict[str, Any]:
    """Seq2SeqTrainer over the train pairs; translations of the test rows by ``generate``, as long as ours may be."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

    from hf_transfer.decoding import most_new_tokens

    set_seed(order.seed)
    tokenizer = AutoTokenizer.from_pretrained(order.checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(order.checkpoint).float()
    splits, _ = encoded(order, tokenizer, ("train", "test"))
    collator = CountingCollator(tokenizer, model)
    trainer = paired_trainer(
        order,
        model=model,
        args=arguments(order, loss_stretch(steps_of(order, splits))),
        train_dataset=splits["train"],
        data_collator=collator,
        processing_class=tokenizer,
    )
    record = trained(trainer, collator, splits, order)
    started = time.perf_counter()
    limits = [most_new_tokens(len(row["input_ids"]), model.config.max_position_embeddings) for row in splits["test"]]
    written = trainer.predict(splits["test"], max_length=1 + max(limits), num_beams=order.beams).predictions
    record["scoring_seconds_per_example"] = (time.perf_counter() - started) / len(splits["test"])
    for row, limit in zip(written, limits, strict=True):
        row[limit:] = -1  # behind the start as many as ours may write, the end of them
    written = np.where(written < 0, tokenizer.pad_token_id, written)
    test = [row for row in read_rows(order.rows) if row["split"] == "test"]
    return record | {
        "ids": [row["id"] for row in test],
        "predicted": [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)],
        "reference": [row["reference"] for row in test],
    }


def steps_of(order: Order, splits: dict[str, list[dict[str, Any]]]) -> int:
    """Optimizer steps of a training."""
    return -(-len(splits["train"]) // order.window) * order.epochs


def trained(
    trainer: Any, collator: CountingCollator, splits: dict[str, list[dict[str, Any]]], order: Order
) -> dict[str, Any]:
    """``trainer.train()`` with the clock around it."""
    steps = steps_of(order, splits)
    validated = range(order.validation_steps, steps + 1, order.validation_steps) if order.validation_steps else ()
    peaks = [matmul_rate(order)]
    with Clock(order.device, {order.warm_up_steps, steps, *validated}) as clock:
        clock.start()
        trainer.train()
    peaks.append(matmul_rate(order))
    # a batch is collated before the one in front of it is learnt from, and validation's are collated in between
    batches = trained_batches(collator.batches, splits, order)
    record = training_record(clock, order, batches, peaks)
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    record["final_loss"] = losses[steps // loss_stretch(steps) * loss_stretch(steps)]
    if validated:
        seconds = seconds_at(clock, batches, validated)
        record["curve"] = [
            [entry["step"], entry["eval_accuracy"], *seconds[entry["step"]].tolist()]
            for entry in trainer.state.log_history
            if "eval_accuracy" in entry
        ]
    return record


def evaluate(order: Order) -> dict[str, Any]:
    """Texts to classes with ``Trainer.predict``, tokenising included, in the order in which they came."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

    tokenizer = AutoTokenizer.from_pretrained(order.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(order.checkpoint)
    collator = CountingCollator(tokenizer)
    trainer = Trainer(model=model, args=arguments(order, 1), data_collator=collator, processing_class=tokenizer)
    trainer.predict(encoded(order, tokenizer)[0]["validation"])  # warms up
    collator.batches.clear()
    clock = Clock(order.device)
    clock.start()
    test = encoded(order, tokenizer, ("test",))[0]["test"]
    logits = trainer.predict(test).predictions
    clock.stop()
    tokens, padding = (int(sum(batch[name] for batch in collator.batches)) for name in ("tokens", "padding_tokens"))
    return plain_record(clock, len(test), tokens, padding) | outputs(order, logits, test)


def decode(order: Order) -> dict[str, Any]:
    """``generate`` over texts in the order in which they came, padded by batch; answers may be as long as ours."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(order.checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(order.checkpoint).to(order.device).eval()
    texts = [row["text"] for row in read_rows(order.rows)]
    clock = Clock(order.device)
    said: list[str] = []
    tokens = padding = 0
    for start in range(-order.window, len(texts), order.window):
        if start == 0:
            said.clear()  # the first batch, taken twice, warmed up
            tokens = padding = 0
            clock.start()
        chosen = texts[max(0, start) : max(0, start) + order.window]
        batch = tokenizer(chosen, padding=True, truncation=True, max_length=order.limit, return_tensors="pt")
        real = int(batch["attention_mask"].sum())
        tokens, padding = tokens + real, padding + batch["attention_mask"].numel() - real
        with torch.no_grad():
            written = model.generate(
                **batch.to(order.device),
                num_beams=order.beams,
                length_penalty=1.0 if order.beams > 1 else None,
                do_sample=False,
                max_new_tokens=2 * batch["input_ids"].shape[1] + 20,
            )
        said += [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    clock.stop()
    return plain_record(clock, len(texts), tokens, padding) | {"predicted": said}


def probe_by_sentence_transformers(order: Order) -> dict[str, Any]:
    """Embed with sentence-transformers, then logistic regression: what SetFit does where the body is not trained."""
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    model = SentenceTransformer(order.checkpoint, device=order.device)
    model.max_seq_length = order.limit
    rows = read_rows(order.rows)
    train_rows, test_rows = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    clock = Clock(order.device)
    clock.start()
    features = model.encode([row["text"] for row in train_rows], batch_size=order.window, show_progress_bar=False)
    head = LogisticRegression(max_iter=1000).fit(features, [row["label"] for row in train_rows])
    clock.stop()
    tested = model.encode([row["text"] for row in test_rows], batch_size=order.window, show_progress_bar=False)
    names = sorted({row["label"] for row in rows})
    # the job is the same as that of a probe that passes over these examples `epochs` times
    return plain_record(clock, len(train_rows) * order.epochs) | {
        "ids": [row["id"] for row in test_rows],
        "predicted": [names.index(name) for name in head.predict(tested)],
        "reference": [names.index(row["label"]) for row in test_rows],
    }


def encoded(
    order: Order, tokenizer: Any, wanted: Sequence[str] = ("train", "validation", "test")
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Rows of each split as token ids with labels, and the names of the classes in their order (of sentences none)."""
    rows = read_rows(order.rows)
    names = sorted({row["label"] for row in rows if "label" in row})
    splits: dict[str, list[dict[str, Any]]] = {}
    for split in wanted:
        own = [row for row in rows if row["split"] == split]
        tokens = encode(tokenizer, own, order)
        splits[split] = [{name: values[i] for name, values in tokens.items()} for i in range(len(own))]
        if names:
            for encoding, row in zip(splits[split], own, strict=True):
                encoding["label"] = names.index(row["label"])
    return splits, names


def restricted(model: Any, order: Order) -> Any:
    """``model`` with what ``order.way`` leaves to learn: by ``requires_grad``, or wrapped by PEFT."""
    from torch import nn

    way = order.way.split()[0]
    layers = next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    if way == "probe":
        model.base_model.requires_grad_(False)
    if way == "freeze":
        for name, parameter in model.base_model.named_parameters():
            if "embeddings" in name.split("."):
                parameter.requires_grad_(False)
        for layer in layers[: order.frozen_layers]:
            layer.requires_grad_(False)
    if way == "lora":
        from peft import LoraConfig, get_peft_model

        inside = {id(module) for module in layers.modules()}
        targets = [
            name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside
        ]
        config = LoraConfig(task_type="SEQ_CLS", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=targets)
        model = get_peft_model(model, config)
    return model


def arguments(order: Order, logging_steps: int) -> Any:
    """Trainer's settings, equal to ours where both have them."""
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    kind: Any = TrainingArguments
    if order.case == "translation":
        kind = partial(Seq2SeqTrainingArguments, predict_with_generate=True)
    return kind(
        output_dir=order.output,
        per_device_train_batch_size=order.window,
        per_device_eval_batch_size=order.window,
        num_train_epochs=order.epochs,
        learning_rate=order.learning_rate,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if order.way.endswith("grouped") else "random",
        bf16=order.precision == "bf16" and order.case != "evaluation",
        use_cpu=order.device == "cpu",
        dataloader_pin_memory=order.device != "cpu",
        seed=order.seed,
        logging_steps=logging_steps,
        eval_strategy="steps" if order.validation_steps else "no",
        eval_steps=order.validation_steps or None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],  # PEFT's wrapper hides them
    )


def trained_batches(
    batches: Sequence[dict[str, float]], splits: dict[str, list[dict[str, Any]]], order: Order
) -> list[dict[str, float]]:
    """Batches of training in their order; those of a validation, known by their tokens, are taken out."""
    if not order.validation_steps:
        return list(batches)
    tokens = [len(row["input_ids"]) for row in splits["validation"]]
    pieces = [tokens[start : start + order.window] for start in range(0, len(tokens), order.window)]
    wanted = [(len(piece), sum(piece)) for piece in pieces]
    kept, place = [], 0
    while place < len(batches):
        found = [(batch["examples"], batch["tokens"]) for batch in batches[place : place + len(wanted)]]
        if found == wanted:
            place += len(wanted)
        else:
            kept.append(batches[place])
            place += 1
    return kept


def outputs(order: Order, logits: np.ndarray, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Predictions by example, accuracy and cross-entropy of test rows from ``logits`` [rows, classes]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    reference = np.array([row["label"] for row in rows])
    predicted = logits.argmax(-1)
    return {
        "accuracy": float((predicted == reference).mean()),
        "test_loss": float(-log_probabilities[np.arange(len(rows)), reference].mean()),
        "ids": [row["id"] for row in read_rows(order.rows) if row["split"] == "test"],
        "predicted": predicted.tolist(),
        "reference": reference.tolist(),
    }
