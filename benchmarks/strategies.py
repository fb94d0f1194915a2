"""The four strategies on real reviews: train on books and dvd, score ten domains.

    python benchmarks/strategies.py --data ../shared/data/fdu_mtl [--strategies full,lora]

Runs the text classification page once per strategy and keeps each ``results.json``, with how it was made, as
``benchmarks/results/reviews_books_dvd_STRATEGY.json``; prints one JSON line per strategy.
"""

import argparse
import json
from pathlib import Path

import torch
from measuring import made_by

import hf_transfer as ht

LEARNING_RATES = {"full": 1e-4}  # MiniLM has half the width of BERT base and takes twice its rate
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--strategies", default="probe,freeze,lora,full")
    parser.add_argument("--output", default="runs/benchmark_strategies", help="folder for the runs")
    given = parser.parse_args()
    made = made_by(torch.get_num_threads())
    for strategy in given.strategies.split(","):
        result = ht.run(
            ht.RunConfig(
                data=ht.DataConfig(source=given.data, train_domains=("books", "dvd")),
                adapt=ht.AdaptConfig(strategy=strategy),
                train=ht.TrainConfig(epochs=2, learning_rate=LEARNING_RATES.get(strategy)),
                output_dir=f"{given.output}/{strategy}",
                overwrite=True,
            )
        )
        results = json.loads((result.output_dir / "results.json").read_text(encoding="utf-8")) | {"made_by": made}
        kept = json.dumps(results, indent=2, ensure_ascii=False)
        (RESULTS / f"reviews_books_dvd_{strategy}.json").write_text(kept + "\n", encoding="utf-8")
        scores = {s.domain: s.value for s in result.shift.scores if s.metric == "accuracy"}
        print(json.dumps({"strategy": strategy, "accuracy": scores, "gap": result.shift.gap}))


if __name__ == "__main__":
    main()
