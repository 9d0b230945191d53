"""Judge completions: a task's reward for each, and whether it is exactly right. Every score of a run is from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from multiticket.tasks.protocol import MultiTurnTask, Task
from multiticket.tasks.tools import Episode


class Judgement(NamedTuple):
    """What one completion, or one conversation, came to."""

    reward: float
    """In [0, 1]."""
    correct: bool


class Problem(NamedTuple):
    """A row of a task's problems."""

    prompt: str
    answer: str
    metadata: dict[str, Any]
    """What the task keeps for its score, beside the answer; {} where it keeps nothing."""


class Turns(list[str]):
    """The model's answers of one conversation, and the task's own `state` of it (None for a task that has none)."""

    state: Any = None
    episode: Episode | None = None
    """Where the model may call tools: its environment and all messages."""


def last_words(turns: list[str]) -> str:
    """What is scored of a conversation in which no user replies: the one answer, or the one after the last call."""
    episode = getattr(turns, "episode", None)
    return turns[0] if episode is None else episode.last_words


@runtime_checkable
class BatchTask(Task, Protocol):
    """A task that judges many completions at once, with all that it knows of their problems."""

    def judge(self, conversations: Sequence[list[str]], problems: Sequence[Problem]) -> list[Judgement]:
        """One judgement for each conversation (of one answer, in a task without turns) and its problem."""
        ...


@runtime_checkable
class StatefulTask(MultiTurnTask, Protocol):
    """A task whose conversations have a state, such as a game's board."""

    def begin(self, problem: Problem) -> Any:
        """The state of a new conversation."""
        ...

    def answer(self, state: Any, completion: str) -> str | None:
        """What the user says to the model's newest answer, which may change the state; None at the end."""
        ...

    def judge_state(self, state: Any, turns: list[str], problem: Problem) -> Judgement:
        """What a whole conversation came to."""
        ...


def judge(task: Task, conversations: Sequence[list[str]], problems: Sequence[Problem]) -> list[Judgement]:
    """A judgement of each conversation, of which a task without turns has one answer each."""
    if not conversations:
        return []
    if isinstance(task, BatchTask):
        return task.judge(conversations, problems)
    pairs = zip(conversations, problems, strict=True)
    if isinstance(task, StatefulTask):
        return [task.judge_state(getattr(turns, "state", None), turns, problem) for turns, problem in pairs]
    if isinstance(task, MultiTurnTask):
        return [
            Judgement(
                float(task.score_turns(turns, problem.answer)),
                bool(task.correct_turns(turns, problem.answer)),
            )
            for turns, problem in pairs
        ]
    said = [(last_words(turns), problem.answer) for turns, problem in pairs]
    return [Judgement(float(task.score(*one)), bool(task.correct(*one))) for one in said]


def begin(task: Task, problem: Problem) -> Turns:
    """A conversation in which nothing has been said."""
    turns = Turns()
    if isinstance(task, StatefulTask):
        turns.state = task.begin(problem)
    return turns


def reply(task: Task, turns: list[str], problem: Problem) -> str | None:
    """What the user says after `turns` of a task with turns; None at the end."""
    if isinstance(task, StatefulTask):
        return task.answer(getattr(turns, "state", None), turns[-1])
    assert isinstance(task, MultiTurnTask)
    return task.reply(list(turns), problem.answer)


def rows(problems: Any) -> list[Problem]:
    """The problems of a `datasets.Dataset` or a mapping of columns: prompt, answer and perhaps metadata.

    Where prompts are as a model reads them, their own ones are in a column `problem`.
    """
    names = getattr(problems, "column_names", None) or list(problems)
    prompts = list(problems["problem" if "problem" in names else "prompt"])
    answers = list(problems["answer"])
    kept = list(problems["metadata"]) if "metadata" in names else [None] * len(prompts)
    return [Problem(p, a, read_metadata(m)) for p, a, m in zip(prompts, answers, kept, strict=True)]


def read_metadata(text: Any) -> dict[str, Any]:
    """The metadata column holds JSON text, so that rows may differ in what they keep."""
    if not text:
        return {}
    found = dict(text) if isinstance(text, Mapping) else json.loads(text)
    return found if isinstance(found, dict) else {"metadata": found}
