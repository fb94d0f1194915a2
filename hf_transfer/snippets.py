"""Floor 4: the lines that open an artefact, with this package and without it: for the README beside it and its card.

All are made from ``hf_transfer.json``'s contents; ``PATH`` stands for the place of the artefact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hf_transfer.layers import HEAD_NAME, WAYS

Metadata = Mapping[str, Any]


def loading_notes(metadata: Metadata, is_adapter: bool) -> str:
    """README.md of an artefact: how to open it, with the exact arguments."""
    kind = "LoRA adapter" if is_adapter else "Model"
    title, what = f"{kind} for text {metadata['task']}", ""
    if metadata["task"] == "translation":
        pair = (metadata["source_lang"], metadata["target_lang"])
        languages = " to ".join(language for language in pair if language)
        title = f"{kind} for translation{': ' + languages if languages else ''}"
    elif "layer_probe" in metadata:
        title = f"Linear probe on {layers_in_words(metadata)}"
        what = ": a plain checkpoint of the body, and a linear head on its mean-pooled states"
    return (
        f"# {title}\n\n"
        f"Adapted from `{metadata['base_checkpoint']}` by hf-transfer-learning. PATH is this folder{what}.\n\n"
        f"```python\n{own_code(metadata)}\n```\n\nWithout that package:\n\n"
        f"```python\n{stock_code(metadata, is_adapter)}\n```\n"
    )


def layers_in_words(metadata: Metadata) -> str:
    """What a probe on chosen layers reads."""
    reads = {"mean": "the mean of all layers", "all": "all layers side by side"}
    layers = metadata["layer_probe"]["layers"]
    return reads.get(layers, f"layer {layers}")


def own_code(metadata: Metadata) -> str:
    """Open and use the artefact with this package."""
    use = 'predict(["some text"]).labels'
    if metadata["task"] == "translation":
        use = 'translate(["some text"])'
    return f'import hf_transfer as ht\n\nprint(ht.load("PATH").{use})'


def stock_code(metadata: Metadata, is_adapter: bool) -> str:
    """Open and use the artefact without this package."""
    if metadata["task"] == "translation":
        return "\n".join(_translation_lines(metadata, is_adapter))
    if "layer_probe" in metadata:
        return "\n".join(_probe_lines(metadata))
    if is_adapter:
        return "\n".join(_adapter_lines(metadata))
    return (
        "from transformers import pipeline\n\n"
        'classify = pipeline("text-classification", "PATH")\nprint(classify("some text"))'
    )


def merged_code(metadata: Metadata) -> str:
    """Open the full model that a LoRA update was folded into, in the sub-folder ``merged`` of the artefact.

    By its path on disk: asked for a sub-folder of a repository, transformers finds the adapter at its root first.
    """
    kind = "AutoModelForSeq2SeqLM" if metadata["task"] == "translation" else "AutoModelForSequenceClassification"
    return "\n".join(
        [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("PATH/merged")',
            f'model = {kind}.from_pretrained("PATH/merged")',
        ]
    )


def onnx_code(place: str = "PATH/onnx") -> str:
    """Open and use the ONNX form of a classifier, in the sub-folder ``onnx`` of the artefact, without torch."""
    return "\n".join(
        [
            "import onnxruntime",
            "from transformers import AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")',
            f'session = onnxruntime.InferenceSession("{place}/model.onnx")',
            'inputs = tokenizer(["some text"], return_tensors="np", padding=True, padding_side="right")',
            'print(session.run(["logits"], {item.name: inputs[item.name] for item in session.get_inputs()})[0])',
        ]
    )


def onnx_notes(metadata: Metadata) -> str:
    """README.md of an ONNX export: how to open it."""
    columns = f"a column for each of {json.dumps(metadata['label_names'], ensure_ascii=False)}"
    return (
        f"# ONNX form of a model for text {metadata['task']}\n\n"
        f"Adapted from `{metadata['base_checkpoint']}` by hf-transfer-learning. PATH is this folder.\n\n"
        f"```python\n{own_code(metadata)}\n```\n\nWithout that package it gives logits, "
        f"{columns if metadata['label_names'] else 'one column with the value'}:\n\n"
        f"```python\n{onnx_code('PATH')}\n```\n"
    )


def _base(metadata: Metadata) -> tuple[list[str], str, list[str]]:
    """Imports that finding the base checkpoint takes, where it is, and further arguments of ``from_pretrained``."""
    base, revision = metadata["base_checkpoint"], metadata["base_revision"]
    further = [f"revision={json.dumps(revision)}"] if revision else []
    if base.startswith("package:"):
        module, _, inside = base.removeprefix("package:").partition("/")
        return ["from importlib.resources import files\n"], f'str(files("{module}") / "{inside}")', further
    return [], json.dumps(base, ensure_ascii=False), further


def _adapter_lines(metadata: Metadata) -> list[str]:
    imports, location, further = _base(metadata)
    names = metadata["label_names"] or ["value"]
    return [
        *imports,
        "from peft import PeftModel",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"names = {json.dumps(names, ensure_ascii=False)}",
        "base = AutoModelForSequenceClassification.from_pretrained(",
        f"    {location}, num_labels={len(names)},",
        *(f"    {argument}," for argument in further),
        *(f"    {name}={value!r}," for name, value in metadata.get("base_layers", {}).items()),
        # the base may have a head for other labels, in whose place the adapter's comes
        *([] if metadata["keeps_head"] else ["    ignore_mismatched_sizes=True,"]),
        "    id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},",
        ")",
        'model = PeftModel.from_pretrained(base, "PATH").eval()',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        'print(model(**tokenizer(["some text"], return_tensors="pt")).logits)',
    ]


def _probe_lines(metadata: Metadata) -> list[str]:
    probe = metadata["layer_probe"]
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer, body = AutoTokenizer.from_pretrained("PATH"), AutoModel.from_pretrained("PATH").eval()',
        f'head = load_file("PATH/{HEAD_NAME}")',
        'inputs = tokenizer(["some text"], return_tensors="pt", padding=True, padding_side="right")',
        'real = inputs["attention_mask"][:, :, None]',
        "with torch.no_grad():",
    ]
    if probe["layers"] in (*WAYS, "0"):
        lines.append("    *states, last = body(**inputs, output_hidden_states=True).hidden_states")
        if probe["final_norm"]:  # the last of hidden_states has gone through it already
            lines.append(f'    states = [body.get_submodule("{probe["final_norm"]}")(state) for state in states]')
        lines.append("    pooled = [(state * real).sum(1) / real.sum(1) for state in (*states, last)]")
        joined = {"mean": "torch.stack(pooled).mean(0)", "all": "torch.cat(pooled, dim=-1)", "0": "pooled[0]"}
        lines.append(f"    features = {joined[probe['layers']]}")
    else:
        lines += [
            "    states = body(**inputs).last_hidden_state",
            "    features = (states * real).sum(1) / real.sum(1)",
        ]
    lines.append('print(features @ head["weight"].T + head["bias"])')
    if metadata["label_names"]:
        lines.append(f"# logits of {json.dumps(metadata['label_names'], ensure_ascii=False)}")
    return lines


def _translation_lines(metadata: Metadata, is_adapter: bool) -> list[str]:
    lines = ["from transformers import AutoModelForSeq2SeqLM, AutoTokenizer", ""]
    opened = ['model = AutoModelForSeq2SeqLM.from_pretrained("PATH")']
    if is_adapter:
        imports, location, further = _base(metadata)
        needed = "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig"
        lines = [*imports, "from peft import PeftModel", needed, ""]
        opened = [
            f"base = AutoModelForSeq2SeqLM.from_pretrained({', '.join([location, *further])})",
            # PEFT writes with the settings of the base, which may name another language
            'base.generation_config = GenerationConfig.from_pretrained("PATH")',
            'model = PeftModel.from_pretrained(base, "PATH")',
        ]
    text = json.dumps(f"{metadata['source_head']}some text", ensure_ascii=False)
    return [
        *lines,
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        *opened,
        f'inputs = tokenizer([{text}], return_tensors="pt", padding=True)',
        "print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))",
    ]
