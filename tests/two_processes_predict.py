"""Run by torchrun: every process predicts rows shared by two and writes down what it got."""

import sys

import torch
from accelerate import Accelerator
from test_predict import BUDGETS, everything_about, open_with_rows

from hf_transfer.predict import predict

checkpoint, target = sys.argv[1:]
accelerator = Accelerator()
assert accelerator.num_processes == 2
found = {}
for count, budget in BUDGETS:
    model, rows, functions = open_with_rows(checkpoint, count)
    model = accelerator.prepare(model)
    found[f"{count} rows, {budget} tokens"] = everything_about(predict(model, rows, functions, accelerator, budget))
torch.save(found, f"{target}/{accelerator.process_index}.pt")
accelerator.end_training()
