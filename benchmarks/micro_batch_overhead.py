"""What a micro-batch costs beside its tokens: the constant ``OVERHEAD_TOKENS`` of hf_transfer/batching.py.

    python benchmarks/micro_batch_overhead.py [--repeats 9] [--output FILE.json]

Times forward and backward of MiniLM on batches of one length and several sizes, in turns, and fits
seconds = overhead + tokens x rate to the medians; prints one JSON with the overhead in tokens and its spread.
"""

import argparse
import time

import numpy as np
import torch
from measuring import made_by, tell

from hf_transfer.config import ModelConfig
from hf_transfer.pretrained import find_checkpoint, load_pretrained

LENGTH = 32
SIZES = (1, 2, 4, 8, 12, 16)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", help="also write the JSON to this file")
    given = parser.parse_args()
    repeats, made = given.repeats, made_by(torch.get_num_threads())
    config = ModelConfig()
    head = {"num_labels": 2}
    model = load_pretrained(
        config, find_checkpoint(config), "AutoModelForSequenceClassification", head, False, 0
    ).model.train()
    ids = torch.randint(1000, 30000, (max(SIZES), LENGTH), generator=torch.Generator().manual_seed(0))
    seconds = np.zeros((repeats + 1, len(SIZES)))
    for repeat in range(repeats + 1):  # the first round warms up
        for column, size in enumerate(SIZES):
            started = time.perf_counter()
            model(input_ids=ids[:size]).logits.sum().backward()
            seconds[repeat, column] = time.perf_counter() - started
            model.zero_grad()
    tokens = np.array(SIZES) * LENGTH
    fits = [np.polyfit(tokens, row, 1) for row in seconds[1:]]
    overheads = [intercept / slope for slope, intercept in fits]
    slope, intercept = np.polyfit(tokens, np.median(seconds[1:], axis=0), 1)
    record = {
        "overhead_tokens": round(intercept / slope, 1),
        "overhead_tokens_quartiles": [round(float(q), 1) for q in np.percentile(overheads, [25, 75])],
        "milliseconds_per_token": round(slope * 1e3, 4),
        "repeats": repeats,
        "made_by": made,
    }
    tell({"benchmark": "micro_batch_overhead"} | record, given.output)


if __name__ == "__main__":
    main()
