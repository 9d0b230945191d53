"""Judge completions: a task's reward for each, and whether it is exactly right. Every score of a run is from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
    """A judgement of each conversation, of which a task without turns has one answer each.

    Raises ScoreFails where a task of somebody else's fails on nearly all; one that it fails on counts 0.
    """
    if not conversations:
        return []
    if not _is_ours(task):
        return _own_scores(task)(conversations, problems)
    if isinstance(task, BatchTask):
        return task.judge(conversations, problems)
    return [judge_one(task, turns, problem) for turns, problem in zip(conversations, problems, strict=True)]


def judge_one(task: Task, turns: list[str], problem: Problem) -> Judgement:
    """The judgement of one conversation by a task that takes them one by one."""
    if isinstance(task, StatefulTask):
        return task.judge_state(getattr(turns, "state", None), turns, problem)
    if isinstance(task, MultiTurnTask):
        reward, right = task.score_turns(turns, problem.answer), task.correct_turns(turns, problem.answer)
    else:
        said = last_words(turns)
        reward, right = task.score(said, problem.answer), task.correct(said, problem.answer)
    return Judgement(float(reward), bool(right))


def failures_of(task: Any) -> int:
    """Completions so far that the task could not judge, where it or its caller counts them."""
    own = _OWN.get(id(task))
    return own.failures if own is not None else int(getattr(task, "failures", 0))


_OWN: dict[int, Any] = {}
"""By the task's id: an `OwnScores`, which keeps the task."""


def _own_scores(task: Task) -> Any:
    from multiticket.tasks.own_scores import OwnScores  # which needs this module

    if id(task) not in _OWN:
        _OWN[id(task)] = OwnScores(task)
    return _OWN[id(task)]


def _is_ours(task: Any) -> bool:
    return type(task).__module__.partition(".")[0] == "multiticket"


def begin(task: Task, problem: Problem) -> Turns:
    """A conversation in which nothing has been said."""
    turns = Turns()
    if isinstance(task, StatefulTask):
        turns.state = task.begin(problem)
    return turns


def reply(task: Task, turns: list[str], problem: Problem) -> str | None:
    """What the user says after `turns` of a task with turns; None at the end."""
    if isinstance(task, StatefulTask):
        return _spoken(task, lambda: task.answer(getattr(turns, "state", None), turns[-1]))
    assert isinstance(task, MultiTurnTask)
    return _spoken(task, lambda: task.reply(list(turns), problem.answer))


def _spoken(task: Task, speak: Callable[[], str | None]) -> str | None:
    from multiticket.tasks.own_scores import spoken

    return speak() if _is_ours(task) else spoken(task, speak)


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
