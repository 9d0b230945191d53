"""What a task is: problems with a prompt and an answer, and two judgements of a completion.

A task may have more: a `system_prompt`, turns (:class:`MultiTurnTask`), and `failures`, the number of completions so
far that its verifier could not judge (each scored 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


@runtime_checkable
class Task(Protocol):
    """A family of problems whose answers can be verified."""

    name: str
    max_completion_tokens: int
    """Enough for the longest answer and its end, in tokens of the shipped base."""

    def problems(self, split: str) -> Dataset:
        """The problems of `train`, `validation` or `test`: string columns `prompt` and `answer`, in a fixed order."""
        ...

    def score(self, completion: str, answer: str) -> float:
        """The reward in [0, 1]. Pure, never raises, and always returns in time, whatever `completion` is."""
        ...

    def correct(self, completion: str, answer: str) -> bool:
        """Whether the completion answers the problem exactly: what accuracy counts."""
        ...


@runtime_checkable
class MultiTurnTask(Task, Protocol):
    """A task in which the user speaks again after the model has answered. `max_completion_tokens` is for one turn."""

    turns: int
    """The most answers of a conversation."""

    def reply(self, completions: list[str], answer: str) -> str | None:
        """What the user says after these answers of the model; None at the end. Pure, never raises."""
        ...

    def score_turns(self, completions: list[str], answer: str) -> float:
        """The reward in [0, 1] of a whole conversation; as `Task.score`, which judges one of a single answer."""
        ...

    def correct_turns(self, completions: list[str], answer: str) -> bool:
        """Whether every answer is exactly right."""
        ...


def reward_of(task: Task, turns: list[str], answer: str) -> float:
    """The reward of a conversation's answers, of which a task without turns has one."""
    return float(
        task.score_turns(turns, answer) if isinstance(task, MultiTurnTask) else task.score(turns[0], answer)
    )


def all_correct(task: Task, turns: list[str], answer: str) -> bool:
    """Whether a conversation is exactly right."""
    return bool(
        task.correct_turns(turns, answer)
        if isinstance(task, MultiTurnTask)
        else task.correct(turns[0], answer)
    )


def check_split(split: str) -> None:
    """Raises ValueError for a split that no task has."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")


def as_dataset(problems: list[tuple[str, str]]) -> Dataset:
    """A `datasets.Dataset` with columns `prompt` and `answer`, in the given order."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [p for p, _ in problems], "answer": [a for _, a in problems]})
