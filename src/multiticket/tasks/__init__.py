"""Problems with answers that a program can verify."""

from multiticket.tasks.protocol import SPLITS, MultiTurnTask, Task, all_correct, reward_of
from multiticket.tasks.registry import get

__all__ = ["SPLITS", "MultiTurnTask", "Task", "all_correct", "get", "reward_of"]
