"""Judgements by a task that somebody else wrote: what fails counts 0, and enough of it ends the run in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from multiticket.tasks.judging import BatchTask, Judgement, Problem, judge_one
from multiticket.tasks.score_function import ScoreFails, ScoreFunction

TIMEOUT_S = 60.0
"""Seconds that one judgement may take, or that of a batch."""


class OwnScores:
    """As a score function is called (`score_function`), and so is `task`, whatever it does."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self._right: list[bool] = []
        self._function = ScoreFunction(
            self._all_at_once if isinstance(task, BatchTask) else self._one, task.name, TIMEOUT_S
        )

    @property
    def failures(self) -> int:
        """Conversations so far that the task failed on."""
        return self._function.failures

    def __call__(self, conversations: Sequence[list[str]], problems: Sequence[Problem]) -> list[Judgement]:
        """Raises ScoreFails where nearly all fail."""
        if self._function.is_batch:
            self._right = [False] * len(conversations)
            rewards = self._function(conversations, problems)  # type: ignore[arg-type]
            return [Judgement(*both) for both in zip(rewards, self._right, strict=True)]
        judged = []
        for turns, problem in zip(conversations, problems, strict=True):
            self._right = [False]
            (reward,) = self._function([turns], [problem])  # type: ignore[list-item]
            judged.append(Judgement(reward, self._right[0]))
        return judged

    def _one(self, turns: list[str], answer: str, prompt: str, metadata: dict[str, Any]) -> float:
        judgement = judge_one(self.task, turns, Problem(prompt, answer, metadata))
        self._right = [judgement.correct]
        return judgement.reward

    def _all_at_once(
        self,
        completions: list[list[str]],
        answers: list[str],
        prompts: list[str],
        metadata: list[dict[str, Any]],
    ) -> list[float]:
        problems = [Problem(*row) for row in zip(prompts, answers, metadata, strict=True)]
        judged = self.task.judge(completions, problems)
        self._right = [bool(one.correct) for one in judged]
        return [one.reward for one in judged]


def spoken(task: Any, speak: Callable[[], str | None]) -> str | None:
    """What a task says in a conversation. Raises ScoreFails, with the task's own error in it, where it cannot."""
    try:
        return speak()
    except Exception as error:
        raise ScoreFails(
            f"The task {task.name} failed to go on with a conversation: {type(error).__name__}: {error}."
        ) from error
