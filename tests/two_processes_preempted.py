"""Run by torchrun: the second process is told to leave during the third window, and both do."""

import os
import re
import signal
import sys
from pathlib import Path

from test_preemption import Signals, run_training

from hf_transfer.errors import Preempted

checkpoint, folder = map(Path, sys.argv[1:])
rank = int(os.environ["RANK"])
progress = Signals(signal.SIGTERM, at=3 if rank == 1 else 0)
try:
    run_training(checkpoint, folder, progress)
except Preempted as notice:
    (step,) = re.findall(r"stopped after step (\d+)", str(notice))
    print(f"process {rank} left after step {step}", flush=True)
