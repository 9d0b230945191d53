"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from multiticket.tasks.alphabet_sort import AlphabetSort
from multiticket.tasks.alphabet_sort_turns import AlphabetSortTurns
from multiticket.tasks.arithmetic import Arithmetic
from multiticket.tasks.custom import load_custom
from multiticket.tasks.gsm8k import GSM8K
from multiticket.tasks.hendrycks_math import HendrycksMATH
from multiticket.tasks.procedural import ReasoningGym
from multiticket.tasks.protocol import Task
from multiticket.tasks.references import referred
from multiticket.tasks.tasksets import VerifiersTask
from multiticket.tasks.tools import toolbox_of

TASKS: dict[str, type] = {
    "arithmetic": Arithmetic,
    "alphabet_sort": AlphabetSort,
    "alphabet_sort_turns": AlphabetSortTurns,
    "gsm8k": GSM8K,
    "math": HendrycksMATH,
}
LIBRARIES: dict[str, Callable[[str, str], Task]] = {"reasoning_gym": ReasoningGym, "verifiers": VerifiersTask}
"""Libraries whose tasks are named after a colon."""
WITH_OPTION = {"alphabet_sort_turns": "TURNS", "gsm8k": "FOLDER", "math": "FOLDER"}
"""What may follow a name after an @."""


def get(name: str) -> Task:
    """The task called `name`.

    Either one of `TASKS`, some with an option after an @ (`gsm8k@FOLDER`, `math@FOLDER`, `alphabet_sort_turns@3`);
    or a library's, `"reasoning_gym:NAME"` or `"verifiers:NAME"`, with its options as `@name=value,...`; or your own:
    `"my_module:my_task"` (a Task, or a class that makes one), or `"my_module:score@data.jsonl"` (a function of
    completion and answer, and a file, folder or hub data set of problems, with options: docs/tasks.md), or
    `"my_module:Environment@data.jsonl"` (a class whose methods a model may call, and which scores itself).

    Raises ValueError for a name that is not known, for an option that cannot be, for an attribute that is not a task,
    and for a library that is missing.
    """
    known, _, option = name.partition("@")
    library, _, inside = known.partition(":")
    if library in LIBRARIES and inside:
        return LIBRARIES[library](inside, option)
    if ":" in known:
        return load_custom(known, option) if option else load(known)
    if known not in TASKS:
        raise ValueError(
            f"Unknown task {name!r}: choose one of {', '.join(TASKS)}, or reasoning_gym:NAME, verifiers:NAME, or your "
            'own as "module:task" or "module:score@data.jsonl".'
        )
    if option and known not in WITH_OPTION:
        raise ValueError(f"The task {known} takes no options: remove @{option}.")
    task: Task = TASKS[known](option) if option else TASKS[known]()
    return task


def load(reference: str) -> Task:
    """The task that `module:attribute` points to."""
    found = referred(reference, "task")
    task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        hint = f' (a score function needs its problems: "{reference}@data.jsonl")' if callable(found) else ""
        raise ValueError(
            f"{reference!r} is not a task: it needs name, max_completion_tokens, problems(), score() and correct()"
            f"{hint}."
        )
    toolbox_of(task)
    return task
