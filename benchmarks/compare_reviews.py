"""Four strategies, three controls and three seeds on ten domains of reviews, and the matrix of every source and target.

    python benchmarks/compare_reviews.py --data ../shared/data/fdu_mtl [--only books_dvd | matrix]

Both are `hf-transfer compare` with the settings below, and go on where they were stopped. What is kept in
``benchmarks/results/compare_NAME`` is the comparison's ``results.json`` for accuracy alone and without words of the
reviews, how it was made, ``report.md``, and a picture; prints one JSON line for each.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import made_by

import hf_transfer as ht

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    "books_dvd": {
        "train_domains": ("books", "dvd"),
        "controls": ("scratch", "tfidf", "majority"),
        "learning_rates": ("full=1e-4", "probe=5e-2"),
        "epochs": 1,
        "picture": "scores",
    },
    "matrix": {
        "train_domains": (),
        "strategies": ("probe",),
        "controls": ("tfidf",),
        "seeds": (0,),
        "matrix": True,
        "keep_models": "none",
        "learning_rates": ("probe=5e-2",),
        "epochs": 10,  # a frozen body is computed once, so that epochs cost next to nothing
        "picture": "matrix_tfidf",
    },
}
MAX_LENGTH = 96  # tokens; TF-IDF reads whole texts
INK = "#6e7781"  # grey that is read on white and on black


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--only", choices=SETTINGS, help="one of the two")
    parser.add_argument("--output", default="runs/compare_reviews", help="folder for the runs")
    given = parser.parse_args()
    made = made_by(torch.get_num_threads())
    for name in [given.only] if given.only else SETTINGS:
        fields = dict(SETTINGS[name])
        picture, epochs, domains = fields.pop("picture"), fields.pop("epochs"), fields.pop("train_domains")
        config = ht.CompareConfig(
            data=ht.DataConfig(source=given.data, train_domains=domains, max_length=MAX_LENGTH),
            train=ht.TrainConfig(epochs=epochs),
            output_dir=f"{given.output}/{name}",
            **fields,
        )
        results = ht.compare(config).results
        if results:  # on the main process
            keep(Path(config.output_dir), RESULTS / f"compare_{name}", picture, made)
            print(json.dumps({"comparison": name, "answer": results["answer"]}))


def keep(source: Path, target: Path, picture: str, made: dict[str, Any], metrics: Sequence[str] = ()) -> None:
    """Copy what may be committed of a comparison in ``source`` to ``target``; of scores ``metrics`` or the main one."""
    target.mkdir(parents=True, exist_ok=True)
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    results["scores"] = [score for score in results["scores"] if score["metric"] in (metrics or [results["metric"]])]
    for pair in results["distances"]:
        pair["words"] = None
    results["made_by"] = made
    (target / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    # the report once more, from what is kept
    ht.rebuild_report([target], target)
    shutil.copy(target / "figures" / f"{picture}.svg", target / f"{picture}.svg")
    svg = (target / f"{picture}.svg").read_text(encoding="utf-8")
    (target / f"{picture}.svg").write_text(re.sub("<svg ", f'<svg color="{INK}" ', svg, count=1), encoding="utf-8")
    shutil.rmtree(target / "figures")
    (target / "report.html").unlink()


if __name__ == "__main__":
    main()
