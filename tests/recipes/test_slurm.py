"""The job script: what each task is started with, and when the job goes back into the queue."""

import os
import subprocess
from pathlib import Path

import pytest


def submit(root: Path, folder: Path, code: int) -> tuple[int, list[str], list[str]]:
    """Run the script where ``srun`` starts one task, and a recipe leaves with ``code``: exit code, task, scontrol."""
    tools = {
        "srun": 'shift; SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"\n',
        "scontrol": f'echo "$*" >> {folder}/said\n[[ $1 == show ]] && echo node-7; true\n',
        "python": 'printf "%s\\n" "$RANK $LOCAL_RANK $WORLD_SIZE" "$SRUN_CPUS_PER_TASK" "$MASTER_ADDR" "$@" '
        f"> {folder}/task; exit {code}\n",
    }
    for name, text in tools.items():
        (folder / name).write_text("#!/usr/bin/env bash\n" + text, encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_NTASKS": "1"}
    environment |= {"SLURM_CPUS_PER_TASK": "8"}
    script = root / "recipes" / "slurm" / "text_cls.sbatch"
    ran = subprocess.run(["bash", script, "--output_dir", "runs/a b"], env=environment, check=False)
    return ran.returncode, *((folder / name).read_text(encoding="utf-8").splitlines() for name in ("task", "said"))


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_only_a_run_that_was_told_to_leave_is_queued_again(root, tmp_path, code):
    left, task, said = submit(root, tmp_path, code)
    assert left == code
    words = ["recipes/text_cls.py", "--output_dir", "runs/a b", "--train.resume", "auto"]
    assert task == ["0 0 1", "8", "node-7", *words], "srun is told the processors of a task"
    assert said[0] == "show hostnames node-[7-8]"
    assert said[1:] == (["requeue 41"] if code == 75 else [])
