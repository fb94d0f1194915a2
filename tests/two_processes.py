"""Run by torchrun: windows shared by the processes; the first one saves the gradients it would step with."""

import sys

import numpy as np
import torch
from accelerate import Accelerator
from test_train import Recorder, open_tiny
from toy import encoded_rows

from hf_transfer.train import learn_window
from hf_transfer.windows import own_batches

checkpoint, target, *counts = sys.argv[1:]
found = {}
for count in map(int, counts):
    accelerator = Accelerator()
    pretrained, adapted, functions = open_tiny(checkpoint)
    rows = encoded_rows(count, len(pretrained.tokenizer), 3)
    recorder = Recorder(adapted.model.parameters(), lr=1.0)
    model, optimizer = accelerator.prepare(adapted.model, recorder)
    lengths = np.asarray(rows["length"])
    batches = own_batches(rows, np.arange(count), lengths, functions.make_batch, 40, accelerator, True)
    sums = learn_window(model, batches, functions.loss_function, optimizer, 0.0, accelerator)
    assert accelerator.num_processes == 2
    found[count] = {"gradients": recorder.seen, "examples": sums.examples}
    accelerator.free_memory()
if accelerator.is_main_process:
    torch.save(found, target)
accelerator.end_training()
