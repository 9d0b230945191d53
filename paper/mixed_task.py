"""Arithmetic and alphabet_sort in one task, in turn: what a ticket of both trains on.

multiticket train --task mixed_task:TASK          # in this folder
"""

from __future__ import annotations

from typing import Any

from multiticket.tasks.alphabet_sort import AlphabetSort
from multiticket.tasks.arithmetic import Arithmetic
from multiticket.tasks.protocol import as_dataset


class Mixed:
    """As many problems of each; an answer's tags tell which task it is of."""

    name = "mixed"
    max_completion_tokens = AlphabetSort.max_completion_tokens

    def __init__(self) -> None:
        self._numbers, self._names = Arithmetic(), AlphabetSort()

    def problems(self, split: str) -> Any:
        """Prompt and answer, a problem of each task in turn, as many as the smaller one has."""
        both = [[(row["prompt"], row["answer"]) for row in task.problems(split)] for task in self._tasks]
        return as_dataset([problem for pair in zip(*both, strict=False) for problem in pair])

    def score(self, completion: str, answer: str) -> float:
        """The score of the task that the answer is of."""
        return self._of(answer).score(completion, answer)

    def correct(self, completion: str, answer: str) -> bool:
        """Whether it is right by the task that the answer is of."""
        return self._of(answer).correct(completion, answer)

    @property
    def _tasks(self) -> tuple[Arithmetic, AlphabetSort]:
        return self._numbers, self._names

    def _of(self, answer: str) -> Arithmetic | AlphabetSort:
        return self._names if answer.startswith("<") else self._numbers


TASK = Mixed()
