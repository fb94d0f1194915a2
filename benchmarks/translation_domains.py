"""Ways of adapting a small general English-German model to one domain, what each gains there and loses elsewhere.

    python benchmarks/translation_domains.py --shared ../shared --domain captions [--domain kde4]

`hf-transfer compare --task translation` with the settings below, for each domain in turn: full, freeze, lora, mixed
(with the news and everyday sentences that the checkpoint learnt from), interpolated and knn against `before` and
`scratch`, scored on captions, four OPUS domains and general text. It goes on where it was stopped. What is kept in
``benchmarks/results/translation_DOMAIN`` is the report and its results.json, which hold numbers, how they were made and
no sentence; prints one JSON line for each.
"""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from compare_reviews import keep
from measuring import made_by

import hf_transfer as ht

RESULTS = Path(__file__).parent / "results"
TEST_PAIRS = 200  # of each domain, the first ones
TRAIN_PAIRS = 4000
# like what the checkpoint learnt from, mostly everyday sentences: two to three words of them for each one of news
NEWS_TRAIN_PAIRS, EVERYDAY_TRAIN_PAIRS = 2000, 16000
EVERYDAY_SAMPLE = 4000  # of which the test sentences are taken
OPUS = ("emea", "kde4", "opensubtitles", "ted2020")
RATES = ("mixed=1e-4",)  # half of the default: what is forgotten goes by the rate (LOG.md)
INTERPOLATION = 0.8  # kept 87% of the gain on validation captions, with another share of general text (LOG.md)
STRATEGIES = ("full", "freeze", "lora", "mixed", "interpolated", "knn")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared", help="folder with data/ and checkpoints/")
    parser.add_argument("--domain", action="append", choices=("captions", *OPUS), required=True)
    parser.add_argument("--output", default="runs/translation_domains", help="folder for data and runs")
    given = parser.parse_args()
    made = made_by(torch.get_num_threads())
    shared, output = Path(given.shared), Path(given.output)
    domains, general = prepare(shared / "data", output / "data")
    for domain in given.domain:
        config = ht.CompareConfig(
            task="translation",
            data=ht.DataConfig(
                source=str(domains),
                general_source=str(general),
                general_share=0.7,  # of the tokens of mixed, and of interpolated, which so ends at mixed fine-tuning
                train_domains=(domain,),
                max_train_examples=TRAIN_PAIRS,
                max_length=128,
                source_lang="en",
                target_lang="de",
                drop_leaks=True,
            ),
            model=ht.ModelConfig(checkpoint=str(shared / "checkpoints" / "marian-en-de-small")),
            adapt=ht.AdaptConfig(
                strategy="interpolated",  # for its setting; all of STRATEGIES are compared
                interpolation=INTERPOLATION,
                freeze="cross_attention:trainable",
                lora_rank=32,
                lora_alpha=64,
                general_weight=0.7,
            ),
            train=ht.TrainConfig(epochs=6, window_size=32, tokens_per_micro_batch=4096),
            evaluate=ht.EvaluateConfig(beams=2, validation_examples=200, tokens_per_batch=8192),
            learning_rates=RATES,
            strategies=STRATEGIES,
            controls=("before", "scratch"),
            seeds=(0,),
            keep_models="none",
            output_dir=str(output / domain),
        )
        results = ht.compare(config).results
        if results:  # on the main process
            kept = RESULTS / f"translation_{domain}"
            keep(Path(config.output_dir), kept, "ledger", made, ("bleu", "chrf", "ter"))
            print(json.dumps({"comparison": domain, "answer": results["answer"]}))


def prepare(data: Path, folder: Path) -> tuple[Path, Path]:
    """Captions and OPUS domains with fewer test pairs; news and everyday sentences with test parts of their own.

    The checkpoint has not seen newstest2019. It may have seen the everyday test sentences, which therefore tell of
    forgetting and not of quality.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for split in ("train", "test"):
        rows = pq.read_table(data / "opus_domains_en_de" / f"{split}.parquet")
        for domain in OPUS:
            own = rows.filter(pc.equal(rows["domain"], domain))
            parts.append(named(own.slice(0, TEST_PAIRS) if split == "test" else own, domain, split))
    for name, split in (("train", "train"), ("validation", "validation"), ("test_2016_flickr", "test")):
        rows = pq.read_table(data / "multi30k_en_de" / f"{name}.parquet")
        parts.append(named(rows.slice(0, TEST_PAIRS) if split == "test" else rows, "captions", split))
    pq.write_table(pa.concat_tables(parts), folder / "domains.parquet")

    news = pq.read_table(data / "newstest_en_de" / "newstest2018.parquet").slice(0, NEWS_TRAIN_PAIRS)
    everyday = pq.read_table(data / "tatoeba_anki_en_de" / "train.parquet")
    step = len(everyday) // (EVERYDAY_SAMPLE + TEST_PAIRS)  # the file is sorted by length
    sample = range(0, step * (EVERYDAY_SAMPLE + TEST_PAIRS), step)
    tested = list(sample[:: len(sample) // TEST_PAIRS])[:TEST_PAIRS]
    rest = sorted(set(range(len(everyday))) - set(tested))
    learnt = rest[:: len(rest) // EVERYDAY_TRAIN_PAIRS][:EVERYDAY_TRAIN_PAIRS]
    general = [
        named(news.select(["source", "target"]), "news", "train"),
        named(pq.read_table(data / "newstest_en_de" / "newstest2019.parquet").slice(0, TEST_PAIRS), "news", "test"),
        named(everyday.take(learnt), "everyday", "train"),
        named(everyday.take(tested), "everyday", "test"),
    ]
    pq.write_table(pa.concat_tables(general), folder / "general.parquet")
    return folder / "domains.parquet", folder / "general.parquet"


def named(rows: pa.Table, domain: str, split: str) -> pa.Table:
    """Source and target with a domain and a split."""
    texts = [pc.cast(rows[side], pa.string()) for side in ("source", "target")]
    return pa.table(
        {"source": texts[0], "target": texts[1], "domain": [domain] * len(rows), "split": [split] * len(rows)}
    )


if __name__ == "__main__":
    main()
