"""A small Marian model from random weights on Multi30k English-German: how far 29,000 captions alone carry.

    python benchmarks/translation_scratch.py --data ../shared/data/multi30k_en_de [--seconds 5400]

`scratch:marian-small` with a vocabulary of its own, scored on the test set of 2016 after the given seconds of training,
with beam search of 5. Prints one JSON line.
"""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measuring import made_by

import hf_transfer as ht

TESTS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.parquet, validation.parquet and the tests")
    parser.add_argument("--seconds", type=float, default=5400, help="of training, validation not counted")
    parser.add_argument("--epochs", type=float, default=26)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--size", default="marian-small")
    parser.add_argument("--output", default="runs/translation_scratch")
    given = parser.parse_args()
    made = made_by(torch.get_num_threads())
    source = prepare(Path(given.data), Path(given.output))
    config = ht.RunConfig(
        task="translation",
        data=ht.DataConfig(
            source=str(source), source_lang="en", target_lang="de", max_length=96, train_domains=("captions",)
        ),
        model=ht.ModelConfig(checkpoint=f"scratch:{given.size}", vocabulary_size=given.pieces, dropout=given.dropout),
        train=ht.TrainConfig(
            epochs=given.epochs,
            max_seconds=given.seconds,
            learning_rate=given.rate,
            warmup_fraction=0.04,
            window_size=given.window,
            average_checkpoints=5,
            checkpoint_steps=500,
            resume="auto",
        ),
        evaluate=ht.EvaluateConfig(beams=5, validation_examples=100),
        output_dir=f"{given.output}/run",
    )
    results = ht.run(config).results
    if results:
        scores = {score["domain"]: {} for score in results["scores"]}
        for score in results["scores"]:
            scores[score["domain"]][score["metric"]] = [score[key] for key in ("value", "low", "high")]
        timing = {name: results["timing"][name] for name in ("train_seconds", "steps", "tokens_per_second", "examples")}
        settings = {name: value for name, value in vars(given).items() if name not in ("data", "output")}
        facts = {"scores": scores, "timing": timing, "strategy": results["strategy"], "settings": settings}
        print(json.dumps(facts | {"signatures": results["translation"]["signatures"], "made_by": made}))


def prepare(data: Path, folder: Path) -> Path:
    """One file with all splits; each test set is a domain, as they are of other years and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in ("train", "validation", *TESTS):
        rows = pq.read_table(data / f"{name}.parquet")
        split = "test" if name in TESTS else name
        domain = "captions" if name in ("train", "validation", "test_2016_flickr") else name
        columns = {"domain": [domain] * len(rows), "split": [split] * len(rows)}
        parts.append(pa.table({"source": rows["source"], "target": rows["target"], **columns}))
    pq.write_table(pa.concat_tables(parts), folder / "multi30k.parquet")
    return folder / "multi30k.parquet"


if __name__ == "__main__":
    main()
