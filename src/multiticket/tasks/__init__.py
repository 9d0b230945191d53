"""Problems with answers that a program can verify."""

from multiticket.tasks.asking import Asking, asked
from multiticket.tasks.judging import BatchTask, Judgement, Problem, StatefulTask, judge
from multiticket.tasks.protocol import SPLITS, MultiTurnTask, Task
from multiticket.tasks.registry import get
from multiticket.tasks.splits import before_a_measurement, before_a_run

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
    "before_a_measurement",
    "before_a_run",
    "get",
    "judge",
]
