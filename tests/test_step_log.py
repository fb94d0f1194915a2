"""The log of steps: cut back where a run continues, whole at any moment."""

import json
import os
import sys

from hf_transfer.step_log import open_log


def test_the_log_of_a_continued_run_is_never_without_the_steps_behind_it(tmp_path):
    """A process that is killed while the log is cut back must not leave it empty."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    opened, watching = [], True
    sys.addaudithook(
        lambda event, given: opened.append(given[2]) if watching and event == "open" and given[0] == str(path) else None
    )
    with open_log(path, 2, True) as log:
        log.write('{"step": 3}\n')
    watching = False
    assert opened and not any(flags & os.O_TRUNC for flags in opened)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    with open_log(path, 0, True):
        pass
    assert path.read_text() == "", "a run that starts afresh has a log of its own"
