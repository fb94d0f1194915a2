"""Run by recipes/test_whole_life.py: all that happens to a model, in one process, on text that must not get out.

    python whole_life.py FOLDER [quick]

Commands are those of the console, one after the other; what each ended with is printed as JSON.
"""

import json
import logging
import os
import shutil
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import torch
from tiny import make_checkpoint
from tiny_translation import PAIRS, make_translation_checkpoint
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import artefact, feature_store
from hf_transfer.cli import main

MARKERS = {"train": "zqtrain", "validation": "zqvalidation", "test": "zqtest"}
"""A word that stands in every row of a split, on both sides of a pair, and nowhere else."""
BEGINS, ENDS = "/pushing-begins", "/pushing-ends"
"""What the Hub is asked for before and after the pushes, so that its list of requests tells what was asked when."""
DOMAINS = ("books", "<script>alert(1)</script>|`x`\x1b[31m\u202e\n# heading")
QUICK = ["--train.window_size", 8, "--train.learning_rate", 1e-3, "--train.checkpoint_steps", 2]
QUICK += ["--evaluate.resamples", 100]


def life(folder: Path, quick: bool) -> dict[str, object]:
    """Exit code of each command by its name."""
    logging.basicConfig(level=logging.DEBUG, filename=folder / "debug.log")
    torch.set_num_threads(1)
    feature_store.MEMORY_BYTES = 0  # so that stored states go through the file
    source = mark(write_reviews(folder, ("books", "apps"), count=40))
    pairs = write_pairs(folder / "pairs.jsonl")
    body = make_checkpoint(folder / "bert", num_hidden_layers=3, scale=0.1)
    common = ["--data.source", source, "--data.train_domains", "books", "--model.checkpoint", body, *QUICK]
    ended: dict[str, object] = {}

    def do(name: str, *words: object) -> None:
        try:
            main([str(word) for word in words])
            ended[name] = 0
        except SystemExit as leaving:
            ended[name] = leaving.code

    def run(name: str, *words: object) -> None:
        do(name, "run", *common, "--output_dir", folder / name, *words)

    run("printed", "--print_config")
    twice = ["--train.epochs", 2, "--evaluate.controls", "tfidf,majority"]
    run("full", *twice)
    if quick:
        artefact._prove = lambda *_: 0.0  # one fresh process has been seen, and each takes seconds
    run("resumed", *twice, "--train.resume", folder / "full" / "checkpoints" / "step-4")
    run("lora", "--train.max_steps", 2, "--adapt.strategy", "lora", "--publish.export", "merged")
    small = ["--train.max_steps", 2, "--evaluate.resamples", 100, "--evaluate.beams", 1]
    translation = ["--task", "translation", "--data.source", pairs, "--data.train_domains", "books", *small]
    marian = make_translation_checkpoint("marian", folder / "marian")
    do("translation", "run", *translation, "--model.checkpoint", marian, "--output_dir", folder / "translation")
    if not quick:
        run("freeze", "--train.epochs", 2, "--adapt.strategy", "freeze", "--adapt.freeze", 2)
        run("probe", "--adapt.strategy", "probe", "--train.epochs", 1)
        run("layers", "--adapt.strategy", "probe", "--adapt.probe_layers", "mean")
        two = ["--strategies", "probe,full", "--controls", "tfidf", "--seeds", "0", "--output_dir", folder / "compare"]
        do("compare", "compare", *common, "--train.epochs", 1, *two)
        shutil.rmtree(folder / "compare" / "figures")
        do("report", "report", folder / "compare")
        do("scratch", "run", *translation, "--output_dir", folder / "scratch")
        broken = make_checkpoint(folder / "broken", scale=1e30)  # no gradient is finite
        do("diverged", "run", *common[:4], "--model.checkpoint", broken, *QUICK, "--output_dir", folder / "diverged")
        run("refused", "--data.label_column", "split", "--data.split_column", "label")
    ask(BEGINS)
    do("push", "push", folder / "full", "--repo_id", "me/model")
    do("push translation", "push", folder / "translation", "--repo_id", "me/translator")
    do("push again", "push", folder / "lora", "--repo_id", "me/refused")
    ask(ENDS)
    for name in ("full", "lora", "lora/merged", "probe", "layers", "freeze"):
        if (folder / name).is_dir():
            ht.load(folder / name, device="cpu").predict(["a good book", "not a book"])
    do("predict", "predict", "--model", folder / "full", "--input", source, "--output", folder / "labelled.jsonl")
    translate = ["--model", folder / "translation", "--input", pairs, "--text_column", "source"]
    do("translate", "predict", *translate, "--output", folder / "translated.jsonl")
    return ended


def ask(path: str) -> None:
    """Ask the Hub for ``path``, which it does not have."""
    hub = HTTPConnection(urlsplit(os.environ["HF_ENDPOINT"]).netloc)
    hub.request("GET", path)
    hub.getresponse().read()
    hub.close()


def write_pairs(path: Path) -> Path:
    """Sentences with their translations, the marker of its split behind both, half of them in the hostile domain."""
    rows = []
    for number, (source, target) in enumerate(PAIRS):
        split = ("train", "test", "train", "validation")[number % 4]
        sides = {"source": f"{source} {MARKERS[split]}", "target": f"{target} {MARKERS[split]}"}
        rows.append(sides | {"split": split, "domain": DOMAINS[number // 4 % 2]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mark(path: Path) -> Path:
    """Put the marker of its split into every text, the second domain's hostile name on it, and give train a
    validation split."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["split"] = "validation" if row["split"] == "train" and number % 4 == 1 else row["split"]
        row["text"] += f" {MARKERS[row['split']]}"
        row["domain"] = DOMAINS[row["domain"] == "apps"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    print("ENDED", json.dumps(life(Path(sys.argv[1]), sys.argv[2:] == ["quick"])))
