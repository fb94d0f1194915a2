"""Floor 4: what ``hf-transfer plan`` prints: one table of the model's parts and a few lines below it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from hf_transfer.report.cells import Table, make_table
from hf_transfer.report.console import fitting, grid_of, label_lines
from hf_transfer.report.tables import format_bytes, format_seconds

Plan = Mapping[str, Any]

LAST_COLUMNS = ("Forward", "Backward")
"""Columns that go first where a console is narrow."""
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print what ``planning.plan`` found; by default on standard output."""
    console = console or Console()
    table, _ = fitting(_parts(plan), LAST_COLUMNS, console)
    console.print(grid_of(table, console))
    console.print(label_lines(_lines(plan), console))


def format_operations(count: float) -> str:
    """``2.48 TFLOP``: floating-point operations, not per second."""
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if count >= size), (1.0, ""))
    return f"{count / size:.3g} {prefix}FLOP"


def _parts(plan: Plan) -> Table:
    """Parameters and operations from bottom to top; neighbouring layers that are alike share a row."""
    parameters, whole = plan["parameters"], plan["operations"]
    spent = {part["name"]: (part["forward"], part["backward"]) for part in whole["parts"]}
    names = [part["name"] for part in parameters["parts"]]
    # what comes after the layers is the head, with a pooler before it, or an output layer that embeddings lend weights
    top = "head" if "head" in names else "output layer"
    spent |= {"embeddings": spent["below the layers"], top: spent["above the layers"]}
    rows = [
        (part["name"], f"{part['total']:,}", f"{part['trainable']:,}", *_pair(spent.get(part["name"])))
        for part in parameters["parts"]
    ]
    if top not in names:
        rows.append((top, "", "", *_pair(spent[top])))
    share = parameters["trainable"] / parameters["total"]
    both = (whole["forward"], whole["input_gradients"] + whole["weight_gradients"])
    total = ("all", f"{parameters['total']:,}", f"{parameters['trainable']:,} ({share:.1%})", *_pair(both))
    title = f"{plan['checkpoint']}: {plan['strategy']}"
    header = ["Part", "Parameters", "Learn", "Forward", "Backward"]
    return make_table("plan", title, "", header, "lrrrr", [*_grouped(rows), total])


def _pair(spent: tuple[float, float] | None) -> tuple[str, str]:
    """Operations of forward and backward."""
    if spent is None:
        return "", ""
    forward, backward = (format_operations(count) if count else "0" for count in spent)
    return forward, backward


def _grouped(rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Runs of layers with equal cells as one row, ``layers 0-3, each``."""
    for cells, group in itertools.groupby(rows, key=lambda row: (row[0].startswith("layer "), *row[1:])):
        names = [row[0] for row in group]
        if len(names) == 1 or not cells[0]:
            yield from ((name, *cells[1:]) for name in names)
        else:
            first, last = (names[place].removeprefix("layer ") for place in (0, -1))
            yield (f"layers {first}-{last}, each", *cells[1:])


def _lines(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan["lora"]:
        yield "LoRA", _lora(plan["lora"])
    yield "Data", _data(plan["data"])
    if plan["steps"]["steps"]:
        yield "Steps", _steps(plan["steps"])
    yield "Cost", _cost(plan["operations"], plan["steps"])
    yield "Memory", _memory(plan["memory"])
    yield "Time", _time(plan)
    if plan["steps"]["steps"] or plan["cache"]["stages"]:
        yield "Cache", _cache(plan)


def _lora(lora: Mapping[str, Any]) -> str:
    kinds = Counter(name.rsplit(".", 1)[-1] for name in lora["modules"])
    names = ", ".join(f"{name} ({count})" for name, count in kinds.items())
    return f"rank {lora['rank']} beside {lora['count']:,} modules: {names}"


def _data(data: Mapping[str, Any]) -> str:
    sides = f" ({data['source_tokens']:,} source, {data['target_tokens']:,} target)" if data["target_tokens"] else ""
    cut = f"; {data['truncated']:,} examples are over the limit" if data["truncated"] else ""
    if data["path"] == "flattened":
        share = data["padding_fraction_of_batches"]
        padding = f"the layers see no padding ({share:.1%} of the batches, which embeddings alone see)"
    else:
        padding = f"{data['padding_fraction']:.1%} padding: {data['why_padded'].rstrip('.')}"
    return (
        f"{data['train_examples']:,} train examples, {data['tokens']:,} tokens{sides}, the longest {data['longest']}"
        f"{cut}; {padding}"
    )


def _steps(steps: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{stage['name']} {stage['steps']:,}" for stage in steps["stages"])
    several = f" ({stages})" if len(steps["stages"]) > 1 else ""
    epochs = f"{steps['epochs']:.3g} epoch" + "s" * (steps["epochs"] != 1)
    pieces = f"{steps['micro_batches_per_step']:.3g}"
    clauses = [
        f"{steps['steps']:,} steps{several}: {epochs} of {steps['windows_per_epoch']:,} windows of "
        f"{steps['window_size']} examples, each in {pieces} micro-batch" + "es" * (pieces != "1"),
        f"{steps['examples']:,} examples, {steps['tokens']:,} tokens",
    ]
    if steps["most_seconds"]:
        clauses.append(f"{format_seconds(steps['most_seconds'])} at most")
    if steps["may_stop_early"]:
        clauses.append("fewer if validation stops getting better")
    return "; ".join(clauses)


def _cost(operations: Mapping[str, Any], steps: Mapping[str, Any]) -> str:
    each = f", {format_operations(operations['per_step'])} a step" if steps["steps"] else " (one pass over train)"
    return f"{format_operations(operations['total'])}{each}; matrix products of training alone; validation comes on top"


def _memory(memory: Mapping[str, Any]) -> str:
    largest = memory["largest_micro_batch"]
    named = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "AdamW's averages",
        "activations": f"for the backward of the largest micro-batch ({largest['examples']} examples, "
        f"{largest['tokens']:,} tokens)",
        "start": "copies of the start",
        "store": "store",
    }
    found = ", ".join(f"{format_bytes(memory[key])} {words}" for key, words in named.items() if memory[key])
    return f"about {format_bytes(memory['total'])} of tensors: {found}; Python and its libraries come on top"


def _time(plan: Plan) -> str:
    time = plan["time"]
    step = time["seconds_per_step"]
    each = "" if step is None else f" ({format_seconds(step) if step >= 1 else f'{1000 * step:.3g} ms'} a step)"
    speed = f"{format_operations(time['operations_per_second'])}/s"
    product = f"{format_operations(time['product_operations_per_second'])}/s"
    if time["micro_batches_run"]:
        how = (
            f"as busy as it is now: micro-batches ({time['micro_batches_run']} tried) run at {speed}, a large product "
        )
        how += f"at {product}"
    else:
        how = f"at least: at {product}, the speed of a large product, as one example was too long to try"
    where = f"on this {plan['device']} in {plan['precision']}"
    return f"about {format_seconds(time['seconds'])}{each} of training {where}, {how}"


def _cache(plan: Plan) -> str:
    cache, seconds = plan["cache"], plan["time"]["seconds_with_cache"]
    rows = cache["stages"]
    if not rows:
        return "nothing to keep: the lowest layer or the embeddings learn, or dropout changes them"
    if not rows[0]["layers"]:
        return f"{rows[0]['holds']}: {format_bytes(cache['bytes'])}"
    sizes = [format_bytes(row["bytes"]) + _fits(row["stored_share"]) for row in rows]
    left = f"{format_operations(cache['operations_with'])} and about {format_seconds(seconds)}, the first pass included"
    if len(plan["steps"]["stages"]) == 1:
        layers = f"{rows[0]['layers']} of {cache['of_layers']} layers never change"
        return f"{layers}; with their {rows[0]['holds']} kept ({sizes[0]}) {left}"
    kept = "; ".join(
        f"{row['name']}: {row['layers']} of {cache['of_layers']} layers, {row['holds']} ({size})"
        for row, size in zip(rows, sizes, strict=True)
    )
    return f"what has not learnt yet is kept in {kept}; with it {left}"


def _fits(share: float) -> str:
    return f", of which {share:.0%} fit" if share < 1 else ""
