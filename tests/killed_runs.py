"""Run by test_killed_runs.py: runs that are killed at random moments and continued, held against one that was not.

    python killed_runs.py TASK STRATEGY PROCESSES TRIALS FOLDER

Everything is imported once; each run is a fork of this process (of each rank a fork), so that a trial costs what the
run costs. A trial starts a run afresh, kills it after a random time, continues it with ``train.resume auto``, may kill
that too, and lets the last one end. Every third trial kills while a checkpoint is being written. With several processes
a kill takes any of them, each as often, or in those third trials the first, which writes; the others must end by
themselves. When and where a trial kills is drawn by its number. Prints one JSON record.
"""

import dataclasses
import hashlib
import io
import json
import random
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from forked_runs import run
from matplotlib.figure import Figure
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from toy import sentence_pairs, write_reviews

import hf_transfer as ht
from hf_transfer import artefact, decoding, feature_store, launch  # with all that a run imports, before the forks

MOST_KILLS = 3
SAVES_TO_DRAW = 6
"""A kill inside a save takes one of so many first ones; the shortest run has eight, best steps included."""
FILES_OF_A_SAVE = 3


def main() -> None:
    """Make the data, the uninterrupted run and the trials."""
    task, strategy, processes, trials, folder = sys.argv[1:]
    base = Path(folder)
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = base / "cache"
    artefact._prove = artefact._prove_translations = lambda *_: 0.0  # in a fresh process: see tests of the artefact
    launch.LONGEST_ARRIVAL = timedelta(seconds=8)  # where the other was killed before it was there
    feature_store.MEMORY_BYTES = 4096  # so that stored states lie in memory and in the file
    decoding.most_new_tokens = lambda length, positions: 8  # which decides nothing here, and half of the seconds
    figure = Figure(layout="constrained")
    figure.add_subplot(title="fonts and layouts are found once, before the forks").plot([0, 1])
    figure.savefig(io.BytesIO(), format="svg")
    config = make_config(task, strategy, base)
    for name in ("warm", "whole"):
        began = time.monotonic()
        ended = run(at(config, base / name), int(processes))
        length = time.monotonic() - began
        assert all(one.code == 0 for one in ended), ended[0].said
    expected = outcome(base / "whole")
    assert outcome(base / "warm") == expected, "two uninterrupted runs differ"
    record: dict[str, Any] = {"trials": 0, "hung": 0, "in_a_save": 0}
    record |= {name: [] for name in ("victims", "writers", "continued_from", "differ")}
    while record["trials"] < int(trials):
        trial = at(config, base / f"trial-{record['trials']}")
        rng = random.Random(f"{task} {strategy} {record['trials']}")
        one_trial(trial, int(processes), length, rng, record["trials"] % 3 == 0, record)
        difference = [name for name, value in outcome(Path(trial.output_dir)).items() if value != expected[name]]
        record["differ"] += [(record["trials"], difference)] * bool(difference)
        record["trials"] += 1
    print(json.dumps(record))


def make_config(task: str, strategy: str, base: Path) -> ht.RunConfig:
    """A short run with a checkpoint after every second step, inside and at the end of epochs."""
    if task == "translation":
        source, checkpoint = write_pairs(base), make_translation_checkpoint("marian", base / "checkpoint")
    else:
        source = write_reviews(base, count=60)
        checkpoint = make_checkpoint(base / "checkpoint", num_hidden_layers=3, hidden_dropout_prob=0.1)
    adapt: dict[str, Any] = {"strategy": strategy}
    general = {}
    if strategy in ("mixed", "interpolated"):
        general["general_source"] = str(write_general(base))
    if strategy == "freeze":
        adapt["freeze"] = "1"
    return ht.RunConfig(
        task=task,
        data=ht.DataConfig(source=str(source), **general),
        model=ht.ModelConfig(checkpoint=str(checkpoint)),
        adapt=ht.AdaptConfig(**adapt),
        train=ht.TrainConfig(epochs=4, window_size=8, learning_rate=1e-3, checkpoint_steps=2, validation_steps=5),
        evaluate=ht.EvaluateConfig(resamples=100, **({"beams": 1} if task == "translation" else {})),
    )


def write_pairs(base: Path) -> Path:
    rows = sentence_pairs(8)
    folder = base / "pairs"
    folder.mkdir()
    (folder / "songs.tsv").write_text("source\ttarget\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_general(base: Path) -> Path:
    path = base / "streets.tsv"
    pairs = [f"the street number {i} is wet\tdie Straße Nummer {i} ist nass" for i in range(40)]
    path.write_text("source\ttarget\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    return path


def at(config: ht.RunConfig, folder: Path) -> ht.RunConfig:
    """``config`` with another output folder."""
    return dataclasses.replace(config, output_dir=str(folder))


def one_trial(
    config: ht.RunConfig, processes: int, length: float, rng: random.Random, in_saves: bool, record: dict[str, Any]
) -> None:
    """Kill, continue, perhaps kill again, and end."""
    folder = Path(config.output_dir)
    resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, resume="auto"))
    for kill in range(1 + rng.randrange(MOST_KILLS)):
        before = unfinished_saves(folder)
        if in_saves:
            moment = InASave(folder, 1 + rng.randrange(SAVES_TO_DRAW), rng.randint(0, FILES_OF_A_SAVE))
            after, victim = 0.0, 0
        else:
            moment, after, victim = None, rng.uniform(0.1, 1.0) * length, next_victim(processes, rng, record)
        ended = run(config if kill == 0 else resumed, processes, kill_after=after, victim=victim, kill_when=moment)
        codes = [one.code for one in ended]
        record["hung"] += None in codes
        record["continued_from"] += continued_from(ended[0].said)
        if -signal.SIGKILL not in codes:
            assert all(code == 0 for code in codes), ended[0].said
            return  # it was over before the kill
        record["writers" if in_saves else "victims"].append(victim)
        record["in_a_save"] += bool(unfinished_saves(folder) - before)
        if (folder / "results.json").exists():
            return  # killed on its way out
    ended = run(resumed, processes)
    assert all(one.code == 0 for one in ended), ended[0].said
    record["continued_from"] += continued_from(ended[0].said)


def next_victim(processes: int, rng: random.Random, record: dict[str, Any]) -> int:
    """The rank to kill at a random moment: any of those that were killed least often."""
    times = [record["victims"].count(rank) for rank in range(processes)]
    return rng.choice([rank for rank in range(processes) if times[rank] == min(times)])


def continued_from(said: str) -> list[int]:
    """The step after which a run went on, if it did."""
    return [int(line.split()[3]) for line in said.splitlines() if "continuing after step" in line]


def unfinished_saves(folder: Path) -> set[tuple[Path, int]]:
    """Checkpoints and best steps of which a part is there, with the time of the last change: they stay after a kill."""
    found = set()
    for place in ("checkpoints/step-*.partial", "checkpoints/best/at-*.partial"):
        with suppress(FileNotFoundError):  # a run that starts afresh has just removed the folder that is looked into
            for path in folder.glob(place):
                with suppress(FileNotFoundError):  # it has just become whole
                    found.add((path, path.stat().st_ctime_ns))
    return found


class InASave:
    """Says yes in the ``nth`` save from now or a later one, once ``files`` of its files are there."""

    def __init__(self, folder: Path, nth: int, files: int) -> None:
        self.folder, self.nth, self.files = folder, nth, files
        self.left_before = unfinished_saves(folder)
        self.saves: list[Path] = []

    def __call__(self) -> bool:
        for path, _ in unfinished_saves(self.folder) - self.left_before:
            if path not in self.saves[-1:]:
                self.saves.append(path)
            with suppress(FileNotFoundError):
                if len(self.saves) >= self.nth and len(list(path.iterdir())) >= self.files:
                    return True
        return False


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal to the bit: weights, the checkpoints with the optimizer's averages, log, history, predictions
    and scores."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    places = {"weights": "model/*.safetensors", "checkpoints": "checkpoints/step-*/*.safetensors"}
    places["translations"] = "translations/*"
    files = {name: sorted(folder.glob(place)) for name, place in places.items()}
    assert files["weights"] and files["checkpoints"], "nothing would be compared"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        **{
            name: {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
            for name, found in files.items()
        },
        "predictions": results["examples"],
        "log": [{name: value for name, value in line.items() if name != "seconds"} for line in lines],
        "history": [results["training"][name] for name in ("validation_steps", "validation")],
        "selection": results["selection"],
        "scores": [{name: score[name] for name in ("domain", "metric", "value")} for score in results["scores"]],
    }


if __name__ == "__main__":
    main()
