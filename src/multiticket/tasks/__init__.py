"""Problems with answers that a program can verify."""

from multiticket.tasks.protocol import SPLITS, MultiTurnTask, Task
from multiticket.tasks.registry import get

__all__ = ["SPLITS", "MultiTurnTask", "Task", "get"]
