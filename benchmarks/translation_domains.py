"""Ways of adapting a small general English-German model to one domain, what each gains there and loses elsewhere.

    python benchmarks/translation_domains.py --shared ../shared --domain emea [--domain kde4]

`hf-transfer compare --task translation` with the settings below, for each domain in turn: full, freeze, lora, mixed
(with the news and everyday sentences that the checkpoint learnt from), interpolated and knn against `before` and
`scratch`, scored on seven OPUS domains and on general text. It goes on where it was stopped. What is kept in
``benchmarks/results/translation_DOMAIN`` is the report and its results.json, which hold numbers and no sentence; prints
one JSON line for each.
"""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from compare_reviews import keep

import hf_transfer as ht

RESULTS = Path(__file__).parent / "results"
TEST_PAIRS = 150  # of each domain, the first ones
TRAIN_PAIRS = 3000
GENERAL_TRAIN_PAIRS = 4000  # of news and of everyday sentences each
STRATEGIES = ("full", "freeze", "lora", "mixed", "interpolated", "knn")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared", help="folder with data/ and checkpoints/")
    parser.add_argument("--domain", action="append", choices=("emea", "kde4", "tanzil", "jrc-acquis"), required=True)
    parser.add_argument("--output", default="runs/translation_domains", help="folder for data and runs")
    given = parser.parse_args()
    shared, output = Path(given.shared), Path(given.output)
    opus, general = prepare(shared / "data", output / "data")
    for domain in given.domain:
        config = ht.CompareConfig(
            task="translation",
            data=ht.DataConfig(
                source=str(opus),
                general_source=str(general),
                train_domains=(domain,),
                max_train_examples=TRAIN_PAIRS,
                max_length=128,
                source_lang="en",
                target_lang="de",
                drop_leaks=True,
            ),
            model=ht.ModelConfig(checkpoint=str(shared / "checkpoints" / "marian-en-de-small")),
            adapt=ht.AdaptConfig(freeze="cross_attention:trainable", lora_rank=32, lora_alpha=64),
            train=ht.TrainConfig(epochs=3, window_size=32, tokens_per_micro_batch=4096),
            evaluate=ht.EvaluateConfig(beams=2, validation_examples=100, tokens_per_batch=8192),
            strategies=STRATEGIES,
            controls=("before", "scratch"),
            seeds=(0,),
            keep_models="none",
            output_dir=str(output / domain),
        )
        results = ht.compare(config).results
        if results:  # on the main process
            keep(Path(config.output_dir), RESULTS / f"translation_{domain}", "ledger")
            print(json.dumps({"comparison": domain, "answer": results["answer"]}))


def prepare(data: Path, folder: Path) -> tuple[Path, Path]:
    """The OPUS domains with fewer test pairs, and general text: news and everyday sentences with their own test parts.

    The checkpoint has not seen newstest2019. It may have seen the everyday test sentences, which therefore tell of
    forgetting and not of quality.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for split in ("train", "test"):
        rows = pq.read_table(data / "opus_domains_en_de" / f"{split}.parquet")
        for domain in sorted(set(rows["domain"].to_pylist())):
            own = rows.filter(pc.equal(rows["domain"], domain))
            parts.append(named(own.slice(0, TEST_PAIRS) if split == "test" else own, domain, split))
    pq.write_table(pa.concat_tables(parts), folder / "opus.parquet")

    news = [pq.read_table(data / "newstest_en_de" / f"newstest{year}.parquet") for year in (2016, 2017, 2018)]
    everyday = pq.read_table(data / "tatoeba_anki_en_de" / "train.parquet")
    step = len(everyday) // (GENERAL_TRAIN_PAIRS + TEST_PAIRS)  # the file is sorted by length
    everyday = everyday.take(list(range(0, step * (GENERAL_TRAIN_PAIRS + TEST_PAIRS), step)))
    tested = list(range(0, len(everyday), len(everyday) // TEST_PAIRS))[:TEST_PAIRS]
    learnt = [row for row in range(len(everyday)) if row not in set(tested)]
    general = [
        named(pa.concat_tables(table.select(["source", "target"]) for table in news), "news", "train"),
        named(pq.read_table(data / "newstest_en_de" / "newstest2019.parquet").slice(0, TEST_PAIRS), "news", "test"),
        named(everyday.take(learnt), "everyday", "train"),
        named(everyday.take(tested), "everyday", "test"),
    ]
    pq.write_table(pa.concat_tables(general), folder / "general.parquet")
    return folder / "opus.parquet", folder / "general.parquet"


def named(rows: pa.Table, domain: str, split: str) -> pa.Table:
    """Source and target with a domain and a split."""
    texts = [pc.cast(rows[side], pa.string()) for side in ("source", "target")]
    return pa.table(
        {"source": texts[0], "target": texts[1], "domain": [domain] * len(rows), "split": [split] * len(rows)}
    )


if __name__ == "__main__":
    main()
