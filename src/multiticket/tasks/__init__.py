"""Problems with answers that a program can verify."""

from multiticket.tasks.asking import Asking, asked
from multiticket.tasks.judging import BatchTask, Judgement, Problem, StatefulTask, judge
from multiticket.tasks.protocol import SPLITS, MultiTurnTask, Task
from multiticket.tasks.registry import get

__all__ = [
    "SPLITS",
    "Asking",
    "BatchTask",
    "Judgement",
    "MultiTurnTask",
    "Problem",
    "StatefulTask",
    "Task",
    "asked",
    "get",
    "judge",
]
