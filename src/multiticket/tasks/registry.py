"""Tasks by name."""

import importlib

from multiticket.tasks.alphabet_sort import AlphabetSort
from multiticket.tasks.arithmetic import Arithmetic
from multiticket.tasks.protocol import Task

TASKS: dict[str, type] = {"arithmetic": Arithmetic, "alphabet_sort": AlphabetSort}


def get(name: str) -> Task:
    """The task called `name`, or your own as `"my_module:my_task"` (a Task, or a class that makes one).

    Raises ValueError for a name that is not known, and for an attribute that is not a task.
    """
    if ":" in name:
        return load(name)
    if name not in TASKS:
        raise ValueError(
            f'Unknown task {name!r}: choose one of {", ".join(TASKS)}, or your own as "module:task".'
        )
    task: Task = TASKS[name]()
    return task


def load(reference: str) -> Task:
    """The task that `module:attribute` points to."""
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Cannot load the task {reference!r}: {error}.") from error
    task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        raise ValueError(
            f"{reference!r} is not a task: it needs name, max_completion_tokens, problems(), score() and correct()."
        )
    return task
