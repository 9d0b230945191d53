"""Problems with answers that a program can verify."""

from multiticket.tasks.protocol import SPLITS, Task
from multiticket.tasks.registry import get

__all__ = ["SPLITS", "Task", "get"]
