"""Floor 2: one complete file per task. A new task is a file here and a line in this table."""

from hf_transfer.tasks.base import Task, TaskFunctions, bind
from hf_transfer.tasks.classification import Classification

TASKS: dict[str, Task] = {"classification": Classification()}

__all__ = ["TASKS", "Task", "TaskFunctions", "bind"]
