"""What it saves to leave padding out of the layers (hf_transfer/flattened.py).

    python benchmarks/flattened_windows.py [--repeats 5] [--limits 64 256 512] [--dropout 0] [--output FILE.json]

Draws windows of examples with log-normal lengths, as reviews have them, cut off at each limit, and times forward and
backward of a BERT of random weights (6 layers, d = 384, as MiniLM) over the same windows in three ways, by turns:
padded whole, cut into micro-batches by length (hf_transfer/batching.py), and flattened. Also the embeddings alone: what
they cost per padded token is what a flattened window still pays for padding. Prints one JSON.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from measuring import made_by, tell

from hf_transfer.batching import cut_window
from hf_transfer.flattened import flattened

WINDOW = 32
MEDIAN_LENGTH, SPREAD = 90, 1.0
"""exp of mean and standard deviation of the log of the length in tokens."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limits", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--output", help="also write the JSON to this file")
    options = parser.parse_args()
    made, records = made_by(torch.get_num_threads()), []
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
    )
    model = transformers.BertForSequenceClassification(config).train()
    for limit in options.limits:
        rng = np.random.default_rng(limit)
        seconds: dict[str, list[float]] = {"padded": [], "cut": [], "flattened": [], "embeddings": []}
        real = padded = 0
        for repeat in range(options.repeats + 1):
            drawn = rng.lognormal(np.log(MEDIAN_LENGTH), SPREAD, options.window)
            lengths = np.clip(drawn.round().astype(int), 3, limit)
            ways = [
                ("padded", lambda lengths=lengths: learn(model, [lengths], False)),
                ("cut", lambda lengths=lengths: learn(model, [lengths[i] for i in cut_window(lengths, 16384)], False)),
                ("flattened", lambda lengths=lengths: learn(model, [lengths], True)),
                ("embeddings", lambda lengths=lengths: embed(model, lengths)),
            ]
            for name, way in ways:
                took = timed(way)
                if repeat:  # the first round warms up
                    seconds[name].append(took)
            if repeat:
                real, padded = real + int(lengths.sum()), padded + int(lengths.max()) * len(lengths)
        times = {name: np.array(values) for name, values in seconds.items()}
        per_padded_token = np.median(times["embeddings"]) / padded
        per_real_token = np.median(times["flattened"] - times["embeddings"]) / real
        record = {
            "limit": limit,
            "padded_over_flattened": quartiles(times["padded"] / times["flattened"]),
            "cut_over_flattened": quartiles(times["cut"] / times["flattened"]),
            "cpu_seconds_flattened": quartiles(times["flattened"]),
            "real_share": round(real / padded, 3),
            "padded_token_in_real_tokens": round(float(per_padded_token / per_real_token), 4),
            "dropout": options.dropout,
            "window": options.window,
            "repeats": options.repeats,
        }
        records.append(record)
    tell({"benchmark": "flattened_windows", "limits": records, "made_by": made}, options.output)


def learn(model: torch.nn.Module, pieces: list[np.ndarray], flat: bool) -> None:
    """Forward and backward over micro-batches with these lengths."""
    model.zero_grad()
    for lengths in pieces:
        inputs = make_inputs(lengths)
        mask = inputs["attention_mask"] if flat else torch.ones(1, 1)
        with flattened(model, mask):  # a mask without padding leaves the model as it is
            logits = model(**inputs).logits
        logits.sum().backward()


def embed(model: torch.nn.Module, lengths: np.ndarray) -> None:
    """Forward and backward of the embeddings, which see padding in any case."""
    model.zero_grad()
    model.bert.embeddings(make_inputs(lengths)["input_ids"]).sum().backward()


def make_inputs(lengths: np.ndarray) -> dict[str, torch.Tensor]:
    """Random pieces, padded to the longest."""
    mask = (torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]).long()
    return {"input_ids": torch.randint(1000, 30000, mask.shape) * mask, "attention_mask": mask}


def timed(way: Callable[[], None]) -> float:
    """Seconds of computing by this process, which others on the machine do not lengthen as they do the clock's."""
    started = time.process_time()
    way()
    return time.process_time() - started


def quartiles(values: np.ndarray) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(float(q), 3) for q in np.percentile(values, [25, 50, 75])]


if __name__ == "__main__":
    main()
