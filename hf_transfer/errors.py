"""Floor 0: the ways a run ends before its time, and the exit code of each."""

import re
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave cannot be used; nothing has been written. Exit code 2.

    Every problem is one sentence or two that name the value, the place and the remedy; all that could be
    found at once are reported together.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]):
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """The run started and could not finish (a proof failed, a loss went wrong). Exit code 1."""

    exit_code = 1


class NotWritten(RunError):
    """A checkpoint found no place on disk, or its folder is gone."""


class EndedElsewhere(RunError):
    """Another process of the launch failed or is gone, and this one ended with it."""

    def __init__(self, sentence: str, speak: bool, exit_code: int = RunError.exit_code):
        super().__init__(sentence)
        self.speak = speak
        """Whether it is on this process to say so; on each machine one of them does."""
        self.exit_code = exit_code


class Preempted(BaseException):
    """The machine was taken back; what was learnt is in a checkpoint. Exit code 75 (EX_TEMPFAIL of sysexits.h: try
    again), which a job script can requeue on. Like KeyboardInterrupt it may come anywhere, and is no error that code
    on the way should answer."""

    exit_code = 75

    def __init__(self, sentence: str, together: bool = True):
        super().__init__(sentence)
        self.together = together
        """Whether all processes leave with it; else this one was told alone, and the others follow."""


def printable(text: str) -> str:
    """``text`` for a terminal: what could steer it, or turn the writing direction, shows as U+FFFD; lines stay lines.

    Messages quote labels, domains and file names that others chose.
    """
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)
