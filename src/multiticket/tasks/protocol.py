"""What a task is: problems with a prompt and an answer, and two judgements of a completion.

A task may have more: turns (:class:`MultiTurnTask`), judgements of a whole batch or of a conversation with a state
(`judging`), prompts of its own (`asking`), `notes()` for a person before a run, `cut`, the splits that were cut from
`train`, and `failures`, the number of completions so far that its verifier could not judge (each scored 0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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
        """The problems of `train`, `validation` or `test`: string columns `prompt`, `answer` and, where it needs
        more for its score, `metadata` (JSON), in a fixed order."""
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


def check_split(split: str) -> None:
    """Raises ValueError for a split that no task has."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")


def as_dataset(problems: list[tuple[str, str]]) -> Dataset:
    """A `datasets.Dataset` with columns `prompt` and `answer`, in the given order."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [p for p, _ in problems], "answer": [a for _, a in problems]})


def with_metadata(problems: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Dataset:
    """As `as_dataset`; where a problem has metadata, a third column holds it, as JSON text."""
    from datasets import Dataset

    columns = {"prompt": [p for p, _, _ in problems], "answer": [a for _, a, _ in problems]}
    if any(metadata for _, _, metadata in problems):
        columns["metadata"] = [json.dumps(metadata, ensure_ascii=False) for _, _, metadata in problems]
    return Dataset.from_dict(columns)
