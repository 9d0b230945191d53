"""Rollouts that are conversations (`generate.conversations`), as TRL's `rollout_func`."""

from __future__ import annotations

import os
from typing import Any

import torch

from multiticket.generate.conversations import Conversation, Limits, converse
from multiticket.tasks import MultiTurnTask, Problem, Task
from multiticket.tasks.judging import rows
from multiticket.tasks.tools import toolbox_of


class Together:
    """Processes that generate turn by turn in step, until no conversation of any of them goes on."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._most = 0
        self._some: list[int] = []

    def going_on(self, here: int) -> bool:
        """Whether any process has conversations that go on, of which this one has `here`."""
        count = torch.tensor([here], device=self._trainer.accelerator.device)
        self._most = int(self._trainer.accelerator.gather(count).max())
        return self._most > 0

    def filled(self, contexts: list[list[int]]) -> list[list[int]]:
        """The contexts, and after them what is generated for nobody: a server takes as many from each process."""
        self._some = contexts[0] if contexts else self._some
        needed = self._most if self._trainer.use_vllm else 1
        return contexts + [self._some] * (needed - len(contexts))


def rollout_function(task: Task, problems: Any) -> Any:
    """TRL's `rollout_func` for a task with turns or tools and its rendered `problems`; None for any other.

    TRL passes prompts alone, so the problem is found by the prompt. Uses TRL's own engine for each turn, whichever is
    set (transformers or vLLM); `max_completion_length` bounds one turn, or with tools the whole completion.

    Raises ValueError where one prompt has two different answers.
    """
    box = toolbox_of(task)
    if box is None and not isinstance(task, MultiTurnTask):
        return None
    same_prompts = box is None or not box.has_environment
    problem_of: dict[str, Problem] = {}
    for shown, problem in zip(problems["prompt"], rows(problems), strict=True):
        if problem_of.setdefault(shown, problem) != problem:
            raise ValueError(
                f"Two problems of the task {task.name} have the same prompt: {problem.prompt[:80]!r}."
            )

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is one of its experimental features

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        training = trainer.model.training
        group = trainer.num_generations if training else trainer.num_generations_eval
        together = Together(trainer)

        def generate(
            speaking: list[Conversation], turn: int
        ) -> tuple[list[list[int]], list[list[float]] | None]:
            # a group shares its context in the first turn only, unless its environments begin differently
            contexts = [each.ids for each in speaking]
            asked = together.filled(contexts)
            said, logprobs = trainer.generate_turn(asked, group if turn == 0 and same_prompts else 1)
            return said[: len(contexts)], logprobs[: len(contexts)] if logprobs is not None else None

        of_prompts = [problem_of[prompt] for prompt in prompts]
        limits = Limits(trainer.args.max_completion_length, trainer.positions, trainer.stop_ids)
        done = converse(
            prompts, of_prompts, task, trainer.processing_class, generate, limits, together.going_on
        )
        has_logprobs = bool(trainer.use_vllm)
        seen = {} if box is None else {"seen": [each.prompt for each in done]}
        return {
            "prompt_ids": [each.prompt_ids for each in done],
            "completion_ids": [each.completion_ids for each in done],
            "logprobs": [each.logprobs for each in done] if has_logprobs else None,
            "env_mask": [each.env_mask for each in done],
            "turns": [each.turns for each in done],
            **seen,
        }

    return rollout
