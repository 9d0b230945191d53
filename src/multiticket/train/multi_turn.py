"""Conversations: the model answers, the task replies, the model answers again.

In training a conversation is one sequence of tokens: the first prompt, then the completion, which holds the model's
answers as they were sampled and between them what the environment says. `env_mask` is 1 on the model's tokens and 0
on the environment's, which TRL then leaves out of the loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from multiticket.generate.prompts import render_reply, template_options
from multiticket.tasks import MultiTurnTask, Problem, Task
from multiticket.tasks.judging import Turns, begin, reply, rows

Generate = Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float]] | None]]
"""Token ids of contexts and the turn's number -> ids of one completion each, with their log-probabilities or None."""


@dataclass
class Conversation:
    """One rollout under way."""

    prompt_ids: list[int]
    problem: Problem
    turns: Turns
    """The model's answers as text without special tokens, and the task's state."""
    completion_ids: list[int] = field(default_factory=list)
    """The model's tokens and the environment's between them; it ends with the model's."""
    env_mask: list[int] = field(default_factory=list)
    """As long as `completion_ids`: 1 for the model's tokens, 0 for the environment's."""
    logprobs: list[float] = field(default_factory=list)
    """Of the model's tokens, 0 for the environment's; empty where the engine gives none."""

    def add_reply(self, ids: list[int]) -> None:
        """Add a message of the environment."""
        self.completion_ids += ids
        self.env_mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def add_answer(self, ids: list[int], logprobs: list[float] | None, text: str) -> None:
        """Add an answer of the model."""
        self.completion_ids += ids
        self.env_mask += [1] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)
        self.turns.append(text)


def converse(
    prompts: Sequence[str],
    problems: Sequence[Problem],
    task: MultiTurnTask,
    tokenizer: PreTrainedTokenizerBase,
    generate: Generate,
    going_on: Callable[[int], bool] = bool,
) -> list[Conversation]:
    """Whole conversations about problems, from rendered `prompts` (see `prompts.render`) and their `problems`.

    An answer that was cut off at its longest is ended for it, by the environment. Contexts are the tokens that were
    sampled, never tokenised anew.

    Args:
        going_on: whether there is another turn, by how many conversations go on here; `generate` is called with none
            where others have some.
    """
    tokenised: Any = tokenizer(text=list(prompts))["input_ids"]
    everyone = [
        Conversation(list(ids), problem, begin(task, problem))
        for ids, problem in zip(tokenised, problems, strict=True)
    ]
    options = template_options(task)
    speaking = everyone
    for turn in range(task.turns):
        if not going_on(len(speaking)):
            break
        contexts = [each.prompt_ids + each.completion_ids for each in speaking]
        said, logprobs = generate(contexts, turn)
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        for i, each in enumerate(speaking):
            each.add_answer(list(said[i]), list(logprobs[i]) if logprobs is not None else None, texts[i])
        if turn + 1 == task.turns:
            break
        replies = [(each, reply(task, each.turns, each.problem)) for each in speaking]
        for each, words in replies:
            if words is not None:
                each.add_reply(_reply_ids(words, each.completion_ids, tokenizer, options))
        speaking = [each for each, words in replies if words is not None]
    return everyone


def _reply_ids(
    words: str, so_far: list[int], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> list[int]:
    """The tokens between two answers; the end of the turn only where the model has not written it itself."""
    encoded: Any = tokenizer(text=render_reply(words, tokenizer, options), add_special_tokens=False)[
        "input_ids"
    ]
    ids = list(encoded)
    return ids[1:] if ids and so_far and ids[0] == so_far[-1] else ids


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
    """TRL's `rollout_func` for a task with turns and its rendered `problems`; None without turns.

    TRL passes prompts alone, so the problem is found by the prompt. Uses TRL's own engine for each turn, whichever is
    set (transformers or vLLM); `max_completion_length` bounds one turn.

    Raises ValueError where one prompt has two different answers.
    """
    if not isinstance(task, MultiTurnTask):
        return None
    problem_of: dict[str, Problem] = {}
    for problem in rows(problems):
        if problem_of.setdefault(problem.prompt, problem) != problem:
            raise ValueError(
                f"Two problems of the task {task.name} have the same prompt: {problem.prompt[:80]!r}."
            )

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is one of its experimental features

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        training = trainer.model.training
        group = trainer.num_generations if training else trainer.num_generations_eval
        together = Together(trainer)

        def generate(
            contexts: list[list[int]], turn: int
        ) -> tuple[list[list[int]], list[list[float]] | None]:
            # a group shares its context in the first turn only
            asked = together.filled(contexts)
            said, logprobs = trainer.generate_turn(asked, group if turn == 0 else 1)
            return said[: len(contexts)], logprobs[: len(contexts)] if logprobs is not None else None

        of_prompts = [problem_of[prompt] for prompt in prompts]
        done = converse(prompts, of_prompts, task, trainer.processing_class, generate, together.going_on)
        has_logprobs = bool(trainer.use_vllm)
        return {
            "prompt_ids": [each.prompt_ids for each in done],
            "completion_ids": [each.completion_ids for each in done],
            "logprobs": [each.logprobs for each in done] if has_logprobs else None,
            "env_mask": [each.env_mask for each in done],
            "turns": [each.turns for each in done],
        }

    return rollout
