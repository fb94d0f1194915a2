"""Run by torchrun: the second process has no room for its larger micro-batches; the first says what was learnt."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from test_train_options import PLAIN, SEED, Course, Notes

from hf_transfer.checkpoint import RunFolder
from hf_transfer.errors import RunError
from hf_transfer.model_selection import Chooser
from hf_transfer.train import train

checkpoint, folder, moment, tokens = sys.argv[1:]
# unsynchronised: several micro-batches, of which the last alone exchanges gradients; synchronised: there is one
config = replace(PLAIN, learning_rate=1e-2, tokens_per_micro_batch=30 if moment == "unsynchronised" else 10_000)
course = Course("classification", Path(checkpoint), config)
rank = int(os.environ["RANK"])
plain, failed = course.functions.loss_function, 0
embeddings = course.adapted.model.get_input_embeddings().weight


def no_room(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def loss_function(outputs, batch):
    global failed
    loss = plain(outputs, batch)
    if rank == 1 and batch.tokens > int(tokens) and torch.is_grad_enabled():
        failed += 1
        if moment != "exchange":
            no_room()
        embeddings.register_hook(no_room)  # upper layers have given their gradients by then
    return loss


notes = Notes()
functions = replace(course.functions, loss_function=loss_function)
chooser = Chooser("last", "score", True, lambda model: 0.0)
places = RunFolder(Path(folder) / "log.jsonl", Path(folder) / "checkpoints")
settings = config.settled("classification", "full", False)
try:
    train(course.adapted, course.rows, functions, chooser, Accelerator(), settings, places, SEED, notes)
except RunError as error:
    Path(folder, "words.txt").write_text(str(error), encoding="utf-8")
    os._exit(3)  # the other waits in an exchange that will not come
# with its end of line in one piece, since two processes write to one pipe
print(json.dumps({"rank": rank, "said": notes.said, "failed": failed}) + "\n", end="", flush=True)
if rank == 0:
    torch.save(course.parameters(), Path(folder) / "parameters.pt")
Accelerator().end_training()
