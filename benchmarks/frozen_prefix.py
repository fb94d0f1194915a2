"""What a step costs once the states below the trained layers are stored, beside the bound that counting gives.

    python benchmarks/frozen_prefix.py --shared ../shared [--repeats 5] [--output FILE.json]

By turns, on the same rows: full fine-tuning for one epoch, then ``freeze`` with 4 and with 5 of 6 layers for three. The
seconds per real token of the steps after the first epoch, where every state is found in the store, are held against
those of full fine-tuning (without its first two steps). With k of L layers frozen and their outputs stored, L - k of
them are gone through in place of L: the bound is L / (L - k) (hf_transfer/features.py). It knows of layers alone:
embeddings fall away with the frozen ones, head, optimizer and reading stay, so that what is reached may lie on either
side of it.
Prints one JSON: each ratio with its spread, its bound, and what share of the bound is reached.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import made_by, read_rows, spread, tell
from throughput import CHECKPOINT, folder_of, reviews

import hf_transfer as ht

LAYERS, FROZEN = 6, (4, 5)
FULL_WARM_UP = 2
EPOCHS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared", help="folder with data/")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=256, help="train rows")
    parser.add_argument("--limit", type=int, default=256, help="tokens per example")
    parser.add_argument("--work", default="runs/frozen_prefix", help="folder for rows and runs; what is in it goes")
    parser.add_argument("--output", help="also write the JSON to this file")
    given = parser.parse_args()
    made = made_by(torch.get_num_threads())
    work = Path(given.work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = reviews(
        Path(given.shared) / "data" / "fdu_mtl", ["all"], {"train": given.examples, "validation": 8, "test": 8}
    )
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ways: dict[str, Any] = {"full": 0} | {f"freeze {k} of {LAYERS}": k for k in FROZEN}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(given.repeats):
        for way, frozen in ways.items():
            seconds[way].append(seconds_per_token(work, frozen, given.limit, repeat))
        told = ", ".join(f"{way} {values[-1] * 1e6:.0f} us/token" for way, values in seconds.items())
        print(f"repeat {repeat + 1} of {given.repeats}: {told}", file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(given).items() if name not in ("shared", "work", "output")}
    record: dict[str, Any] = {"benchmark": "frozen_prefix", "settings": settings, "seconds_per_token": seconds}
    for way, frozen in ways.items():
        if frozen:
            ratio = spread([full / own for full, own in zip(seconds["full"], seconds[way], strict=True)])
            bound = LAYERS / (LAYERS - frozen)
            record[way] = {"ratio": ratio, "bound": bound, "share_of_bound": ratio["median"] / bound}
    tell(record | {"made_by": made}, given.output)


def seconds_per_token(work: Path, frozen: int, limit: int, seed: int) -> float:
    """Of the steps after the first epoch; with nothing frozen, of all but the first ``FULL_WARM_UP``."""
    result = ht.run(
        ht.RunConfig(
            data=ht.DataConfig(source=str(work / "rows.jsonl"), id_column="id", max_length=limit),
            model=ht.ModelConfig(checkpoint=folder_of(CHECKPOINT)),
            adapt=ht.AdaptConfig(strategy="freeze", freeze=str(frozen)) if frozen else ht.AdaptConfig(strategy="full"),
            train=ht.TrainConfig(epochs=EPOCHS if frozen else 1, validation_steps=10**9),
            evaluate=ht.EvaluateConfig(metrics=("accuracy",), selection="last"),
            output_dir=str(work / "run"),
            overwrite=True,
            seed=seed,
        )
    )
    steps = read_rows(result.output_dir / "log.jsonl")
    counted = steps[len(steps) // EPOCHS :] if frozen else steps[FULL_WARM_UP:]
    return float(np.sum([s["seconds"] for s in counted]) / np.sum([s["tokens"] for s in counted]))


if __name__ == "__main__":
    main()
