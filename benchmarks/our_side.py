"""Our side of throughput.py: ``ht.run(RunConfig)`` and ``ht.load(...)``, and what both sides start from.

Only the public interface is called, so that what is measured is what the package does today.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from measuring import Clock, Order, matmul_rate, plain_record, read_rows, seconds_at, training_record

SIZES: dict[str, dict[str, int]] = {
    "bert-base": {},  # the defaults of transformers.BertConfig
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128},
    "marian-base": {
        **{f"{stack}_layers": 6 for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": 8 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 2048 for stack in ("encoder", "decoder")},
        "d_model": 512,
    },
}
"""Random weights, with the tokenizer of the checkpoint: speed does not ask what weights know."""


def prepare(order: Order) -> dict[str, Any]:
    """Facts about model and texts, and the checkpoint to start from: random weights, or a model to evaluate."""
    import torch
    import transformers

    checkpoint = order.checkpoint
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    if order.size:
        checkpoint, config = order.output, random_weights(order, tokenizer, config)
    with torch.device("meta"):
        body = transformers.AutoModel.from_config(config)
    rows = [row for row in read_rows(order.rows) if row.get("split", "train") == "train"]
    shape = (shape_of_translator if order.case == "translation" else shape_of_encoder)(
        body, encode(tokenizer, rows, order)
    )
    frozen = 0 if order.case == "translation" else int(shape["layers"]) * 2 // 3
    if order.case == "evaluation":
        trained = replace(order, checkpoint=checkpoint, output=f"{order.output}_trained", frozen_layers=0)
        our_run(trained, "full")
        checkpoint = f"{trained.output}/model"
    return {"checkpoint": checkpoint, "shape": shape, "frozen_layers": frozen}


def random_weights(order: Order, tokenizer: Any, config: Any) -> Any:
    """Write a checkpoint of ``order.size`` to ``order.output``; its configuration."""
    import torch
    import transformers

    torch.manual_seed(order.seed)
    if order.case == "translation":
        config = type(config).from_dict(config.to_dict() | SIZES[order.size])
        transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(order.output)
    else:
        config = transformers.BertConfig(vocab_size=len(tokenizer), **SIZES[order.size])
        transformers.BertModel(config).save_pretrained(order.output)
    tokenizer.save_pretrained(order.output)
    return config


def encode(tokenizer: Any, rows: Sequence[dict[str, Any]], order: Order) -> Any:
    """Token ids of texts, and in translation of references, as the documentation of transformers has it."""
    texts = {"text": [row["text"] for row in rows]}
    if order.case == "translation":
        texts["text_target"] = [row["reference"] for row in rows]
    return tokenizer(**texts, truncation=True, max_length=order.limit)


def lengths_of(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[rows] tokens of each, as floats."""
    return np.array([len(ids) for ids in rows], dtype=float)


def linear_weights(*parts: Any) -> list[Any]:
    """The matrices of all linear layers."""
    import torch

    return [m.weight for part in parts for m in part.modules() if isinstance(m, torch.nn.Linear)]


def shape_of_encoder(body: Any, encoded: Any) -> dict[str, float]:
    """What ``measuring`` counts operations of a mean token from."""
    import torch

    stack = next(module for module in body.modules() if isinstance(module, torch.nn.ModuleList))
    weights, lengths = linear_weights(stack), lengths_of(encoded["input_ids"])
    return {
        "layers": len(stack),
        "hidden": body.config.hidden_size,
        "inner": max(max(weight.shape) for weight in weights),
        "layer_weights": sum(weight.numel() for weight in weights) / len(stack),
        "mean_length": float(lengths.mean()),
        "context": float((lengths**2).sum() / lengths.sum()),  # tokens that an average token attends to
    }


def shape_of_translator(body: Any, encoded: Any) -> dict[str, float]:
    """``shape_of_encoder`` of an encoder-decoder (Marian).

    All that a mean token, source or target, goes through is spread over the layers of both stacks: keys and values of
    cross-attention are a matter of source tokens, the output layer one of target tokens, and a target token attends to
    itself, those before it and the source.
    """
    config = body.config

    def count(*parts: Any) -> int:
        return sum(weight.numel() for weight in linear_weights(*parts))

    source, target = lengths_of(encoded["input_ids"]), lengths_of(encoded["labels"])
    crossed = [layer.encoder_attn for layer in body.decoder.layers]
    read_of_source = count(*(part for attention in crossed for part in (attention.k_proj, attention.v_proj)))
    own = count(body.decoder) - read_of_source + config.vocab_size * config.d_model
    layers, tokens = config.encoder_layers + config.decoder_layers, source.sum() + target.sum()
    used = source.sum() * (count(body.encoder) + read_of_source) + target.sum() * own
    seen = config.encoder_layers * source**2 + config.decoder_layers * target * (source + (target + 1) / 2)
    return {
        "layers": layers,
        "hidden": config.d_model,
        "inner": config.encoder_ffn_dim,
        "layer_weights": used / tokens / layers,
        "mean_length": float((source + target).mean()),
        "context": float(seen.sum() / tokens / layers),
    }


def draw_head(order: Order) -> dict[str, Any]:
    """A checkpoint with a head drawn from the seed, and the dropout asked for, for both sides to start from alike."""
    import transformers

    from hf_transfer.pretrained import set_dropout

    transformers.set_seed(order.seed)
    if order.case == "translation":
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(order.checkpoint)
    else:
        names = sorted({row["label"] for row in read_rows(order.rows)})
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(order.checkpoint, **labels)
    if order.dropout is not None:
        set_dropout(model.config, order.dropout)
    model.save_pretrained(order.output)
    transformers.AutoTokenizer.from_pretrained(order.checkpoint).save_pretrained(order.output)
    return {"checkpoint": order.output}


def our_run(order: Order, strategy: Any, probe_layers: str | None = None) -> Any:
    """``ht.run`` with the settings that stock_trainer.py gives to Trainer."""
    import hf_transfer as ht

    precision: Any = order.precision
    data = ht.DataConfig(source=order.rows, id_column="id", max_length=order.limit)
    train = ht.TrainConfig(
        epochs=order.epochs,
        learning_rate=order.learning_rate,
        window_size=order.window,
        precision=precision,
        validation_steps=order.validation_steps or 10**9,  # the last step alone
    )
    common: dict[str, Any] = {
        "model": ht.ModelConfig(checkpoint=order.checkpoint),
        "output_dir": order.output,
        "overwrite": True,
        "seed": order.seed,
    }
    if order.case == "translation":
        config = ht.RunConfig(
            task="translation",
            data=replace(data, source_column="text", target_column="reference", source_lang="en", target_lang="de"),
            train=replace(train, label_smoothing=0.0),
            evaluate=ht.EvaluateConfig(metrics=("bleu",), selection="last", beams=order.beams),
            **common,
        )
    else:
        config = ht.RunConfig(
            data=data,
            adapt=ht.AdaptConfig(strategy=strategy, freeze=str(order.frozen_layers), probe_layers=probe_layers),
            train=replace(train, head_learning_rate=order.learning_rate),
            evaluate=ht.EvaluateConfig(metrics=("accuracy", "log_loss"), selection="last"),
            **common,
        )
    return ht.run(config)


def train(order: Order) -> dict[str, Any]:
    """``ht.run``, with the clock around it."""
    steps = -(-sum(row["split"] == "train" for row in read_rows(order.rows)) // order.window) * order.epochs
    validated = range(order.validation_steps, steps + 1, order.validation_steps) if order.validation_steps else ()
    peaks = [matmul_rate(order)]
    with Clock(order.device, {order.warm_up_steps, steps, *validated}) as clock:
        result = our_run(order, order.way)
    peaks.append(matmul_rate(order))
    logged = read_rows(result.output_dir / "log.jsonl")
    results = json.loads((result.output_dir / "results.json").read_text(encoding="utf-8"))
    record = training_record(clock, order, logged, peaks)
    record["logged_seconds"] = sum(step["seconds"] for step in logged)
    if validated:
        seconds, history = seconds_at(clock, logged, validated), results["training"]
        record["curve"] = [
            [step, value, *seconds[step].tolist()]
            for step, value in zip(history["validation_steps"], history["validation"], strict=True)
            if step in validated  # Trainer does not validate after the last step
        ]
    return record | scored(order, result, results)


def probe_layers(order: Order) -> dict[str, Any]:
    """``ht.run`` with ``--adapt.probe_layers auto``, which takes no steps: the clock stops where its head is there."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from hf_transfer.layers import LayerProbe

    with Clock(order.device) as clock:

        def head_is_used(module: Any, _: Any) -> None:
            if isinstance(module, LayerProbe) and module.head is not None:
                used.remove()
                clock.stop()

        used = register_module_forward_pre_hook(head_is_used)
        result = our_run(order, "probe", "auto")
    results = json.loads((result.output_dir / "results.json").read_text(encoding="utf-8"))
    rows = [row for row in read_rows(order.rows) if row["split"] == "train"]
    chosen = {"chosen": results["layers"]["probe"]["layers"]}
    return plain_record(clock, len(rows)) | chosen | scored(order, result, results)


def scored(order: Order, result: Any, results: dict[str, Any]) -> dict[str, Any]:
    """How a run did on the test rows, in the order of the file."""
    scores = {score["metric"]: score["value"] for score in results["scores"]}
    numbers = {"bleu": scores["bleu"]} if "bleu" in scores else {}
    said = result.predictions
    place = {name: i for i, name in enumerate(said.example_ids.tolist())}
    ids = [row["id"] for row in read_rows(order.rows) if row["split"] == "test"]
    order_of_rows = [place[name] for name in ids]
    return {
        "scoring_seconds_per_example": 1 / results["timing"]["predict_examples_per_second"],
        **(numbers or {"accuracy": scores["accuracy"], "test_loss": scores["log_loss"]}),
        "ids": ids,
        "predicted": said.predicted[order_of_rows].tolist(),
        "reference": said.reference[order_of_rows].tolist(),
    }


def evaluate(order: Order) -> dict[str, Any]:
    """Texts to classes with ``ht.load``, tokenising included."""
    import hf_transfer as ht

    rows = read_rows(order.rows)
    model = ht.load(order.checkpoint, device=order.device)
    model.predict([row["text"] for row in rows if row["split"] == "validation"])  # warms up
    test = [row for row in rows if row["split"] == "test"]
    clock = Clock(order.device)
    clock.start()
    answer = model.predict([row["text"] for row in test])
    clock.stop()
    predicted = [answer.label_names.index(label) for label in answer.labels]
    reference = [answer.label_names.index(row["label"]) for row in test]
    return plain_record(clock, len(test)) | {
        "accuracy": float(np.mean(np.array(predicted) == reference)),
        "ids": [row["id"] for row in test],
        "predicted": predicted,
        "reference": reference,
    }


def decode(order: Order) -> dict[str, Any]:
    """``ht.load(...).translate``, tokenising included."""
    import hf_transfer as ht

    texts = [row["text"] for row in read_rows(order.rows)]
    translator = ht.load(order.checkpoint, device=order.device)
    translator.translate(texts[: order.window], "en", "de", beams=order.beams)  # warms up
    clock = Clock(order.device)
    clock.start()
    said = translator.translate(texts, "en", "de", beams=order.beams)
    clock.stop()
    return plain_record(clock, len(texts)) | {"predicted": said}
