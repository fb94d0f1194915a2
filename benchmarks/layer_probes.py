"""Probes on the layers of MiniLM, in-domain: which layer is worth reading, and what choosing one costs.

    python benchmarks/layer_probes.py --data ../shared/data/fdu_mtl [--domains books,dvd] [--together] [--output FILE]

Trains on each domain apart (a tenth held out for validation) and scores it on its own test rows. Prints one JSON: for
each domain accuracy on test of each way to read the states, which of them validation or train would choose, seconds for
the states and for the choice; their means; how it was made. With ``--together`` all domains are one, which shows the
seconds for 14,000 examples.
"""

import argparse
import json
import sys
import time
from statistics import mean
from typing import Any

import numpy as np
import torch
from measuring import made_by, tell

import hf_transfer as ht
from hf_transfer.layer_probe import Targets, choose_probe
from hf_transfer.layers import WAYS, depth_of, features_of, make_reader, pooled_states
from hf_transfer.records import Text
from hf_transfer.tasks import TASKS
from hf_transfer.text import read_text


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="any data.source with train and test rows of several domains")
    parser.add_argument("--domains", default="books,dvd,electronics,kitchen_housewares,music")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--together", action="store_true", help="all domains as one")
    parser.add_argument("--output", help="also write the JSON to this file")
    given = parser.parse_args()
    domains = given.domains.split(",")
    made = made_by(torch.get_num_threads())
    records = [measure(given.data, group, given.max_length) for group in ([domains] if given.together else domains)]
    means: dict[str, Any] = {
        way: round(mean(record["test_accuracy"][way] for record in records), 4) for way in records[0]["test_accuracy"]
    }
    for name in ("by_validation", "by_train"):
        means[name] = round(mean(record["test_accuracy"][record[name]] for record in records), 4)
    settings = {"max_length": given.max_length, "together": given.together}
    found = {"benchmark": "layer_probes", "domains": records, "mean_test_accuracy": means, "settings": settings}
    tell(found | {"made_by": made}, given.output)


def measure(source: str, domains: str | list[str], max_length: int) -> dict:
    """What one domain, or several as one, gives."""
    names = (domains,) if isinstance(domains, str) else tuple(domains)
    config = ht.RunConfig(data=ht.DataConfig(source=source, train_domains=names, test_domains=names))
    task = TASKS[config.task]
    text = Text(*read_text(config.data, config.train, task, config.seed))
    found = ht.find_checkpoint(config.model)
    opened = ht.load_pretrained(config.model, found, task.auto_class, task.head(text.labels), False, config.seed)
    encoded = task.encode(text.splits, text.labels, opened, max_length)
    functions = task.bind(text.labels, opened, config, ["accuracy"])
    reader = make_reader(opened.model.base_model)
    started = time.perf_counter()
    states, targets = {}, {}
    for name, rows in [("train", encoded.train), ("validation", encoded.validation), *encoded.test.items()]:
        states[name] = pooled_states(reader, rows, functions.make_batch, config.evaluate.tokens_per_batch)
        targets[name] = Targets(np.asarray(rows["labels"]), text.labels)
    seconds = {"states": time.perf_counter() - started}
    ways = [*map(str, range(depth_of(opened.model.config) + 1)), *WAYS]
    tested, candidates = {}, {}
    for way in ways:
        started = time.perf_counter()
        choice = choose_probe(
            states["train"], targets["train"], (states["validation"], targets["validation"]), [way], config.seed
        )
        seconds[way] = time.perf_counter() - started
        candidates[way] = choice.candidates[0]
        right = [
            choice.head.logits(features_of(states[name], way)).argmax(1) == targets[name].values
            for name in encoded.test
        ]
        tested[way] = float(np.concatenate(right).mean())
    record = {
        "domains": domains,
        "train": len(encoded.train),
        "test_accuracy": {way: round(value, 4) for way, value in tested.items()},
        "strength": {way: candidates[way].strength for way in ways},
        "by_validation": min(ways, key=lambda way: candidates[way].validation_loss),
        "by_train": min(ways, key=lambda way: candidates[way].cross_validation_loss),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    print(json.dumps(record), file=sys.stderr, flush=True)
    return record


if __name__ == "__main__":
    main()
