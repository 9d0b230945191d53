"""A few rollouts with their rewards, now and then: ``samples.jsonl``."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from multiticket.runs.lines import StepLines
from multiticket.runs.ranks import ALONE, Ranks

ROLLOUTS = 4
"""Rollouts kept each time, spread evenly over the batch."""
LONGEST = 4096
"""Characters kept of a text."""
MOST_BYTES = 2**24
"""The file's size from which on nothing is added."""


class SampleWriter(TrainerCallback):
    """Writes a line each of a few rollouts of step 1 and of every `every`-th step.

    `trainer` is an RLVRTrainer whose reward function logs the column ``answer``.
    """

    def __init__(self, trainer: Any, every: int, lines: StepLines, ranks: Ranks = ALONE) -> None:
        self.trainer = trainer
        self.every = every
        self.lines = lines
        self.ranks = ranks

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        step = state.global_step
        if logs and "reward" in logs and (step == 1 or step % self.every == 0):
            self.ranks.by_first(lambda: self._write(step))

    def _write(self, step: int) -> None:
        path = self.lines.path
        if path.exists() and path.stat().st_size >= MOST_BYTES:
            return
        for sample in rollouts(self.trainer.last_rollouts, ROLLOUTS):
            self.lines.append({"step": step, **sample})


def rollouts(logs: Any, count: int) -> list[dict[str, Any]]:
    """`count` of TRL's logged rollouts: prompt, completion, answer, reward (the mean, were there several) each."""
    completions = list(logs["completion"])
    prompts = list(logs["extra"].get("prompt", ())) or list(logs["prompt"])  # with what an environment showed
    answers = list(logs["extra"].get("answer", ())) or [None] * len(prompts)
    by_function = [list(column) for column in logs["rewards"].values()]
    count = min(count, len(prompts))
    return [
        {
            "prompt": _text(prompts[i]),
            "completion": _text(completions[i]),
            "answer": _text(answers[i]),
            "reward": sum(column[i] for column in by_function) / len(by_function),
        }
        for i in (n * len(prompts) // count for n in range(count))
    ]


def _text(value: Any) -> str | None:
    """A text, or a conversation's messages one after another, cut where it is too long."""
    if value is None:
        return None
    if isinstance(value, list):
        value = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in value)
    text = str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."
