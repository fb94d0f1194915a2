"""Floor 2: one complete file per task. A new task is a file here and a line in this table."""

from hf_transfer.tasks.base import Task, TaskFunctions
from hf_transfer.tasks.classification import Classification
from hf_transfer.tasks.translation import Translation

TASKS: dict[str, Task] = {"classification": Classification(), "translation": Translation()}

__all__ = ["TASKS", "Task", "TaskFunctions"]
