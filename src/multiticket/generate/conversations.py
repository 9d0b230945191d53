"""Conversations: the model answers, the task's user or its tools reply, the model answers again.

A conversation is one sequence of tokens: the first prompt, then the completion, which holds the model's answers as they
were sampled and between them what the environment says. `env_mask` is 1 on the model's tokens and 0 on the
environment's, which TRL then leaves out of the loss. Training and evaluation run the same loop, `converse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from multiticket.generate.completion import until
from multiticket.generate.prompts import prompt_texts, render_reply, template_options, with_observation
from multiticket.generate.tool_templates import parse, reply_ids
from multiticket.tasks import MultiTurnTask, Problem, Task
from multiticket.tasks.judging import Turns, begin, reply
from multiticket.tasks.tools import Toolbox, toolbox_of


@dataclass(frozen=True)
class Limits:
    """Where a conversation ends. With tools as TRL has it: `tokens` are all of the completion's."""

    tokens: int | None = None
    """Of one answer; with tools of all answers and all that the tools say between them."""
    positions: int | None = None
    """Tokens of a prompt and completion that the model reads."""
    stops: Sequence[int] = ()
    """Ids that end an answer, and are no part of its text."""


@dataclass
class Conversation:
    """One rollout under way."""

    place: int
    """Among all that were begun together."""
    prompt: str
    """As the model reads it, with what an environment shows."""
    prompt_ids: list[int]
    problem: Problem
    turns: Turns
    """The model's answers as text without special tokens, and the task's state or the tools' episode."""
    completion_ids: list[int] = field(default_factory=list)
    """The model's tokens and the environment's between them."""
    env_mask: list[int] = field(default_factory=list)
    """As long as `completion_ids`: 1 for the model's tokens, 0 for the environment's."""
    logprobs: list[float] = field(default_factory=list)
    """Of the model's tokens, 0 for the environment's; empty where the engine gives none."""

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

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


Generate = Callable[[list[Conversation], int], tuple[list[list[int]], list[list[float]] | None]]
"""Conversations that go on and the turn's number -> ids of one answer each, with their log-probabilities or None."""


def converse(
    prompts: Sequence[str],
    problems: Sequence[Problem],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    generate: Generate,
    limits: Limits | None = None,
    going_on: Callable[[int], bool] = bool,
) -> list[Conversation]:
    """Whole conversations about problems, from rendered `prompts` (see `prompts.render`) and their `problems`.

    An answer that was cut off at its longest is ended for it, by the environment. Contexts are the tokens that were
    sampled, never tokenised anew. A task without turns has conversations of one answer.

    Args:
        going_on: whether there is another turn, by how many conversations go on here; `generate` is called with none
            where others have some.
    """
    limits = limits or Limits()
    other = _other_side(task, tokenizer, limits)
    everyone = other.begin(prompts, problems)
    speaking = everyone
    for turn in range(other.turns):
        if not going_on(len(speaking)):
            break
        said, logprobs = generate(speaking, turn)
        answers = [other.kept(each, ids) for each, ids in zip(speaking, said, strict=True)]
        texts = tokenizer.batch_decode(
            [until(ids, limits.stops) for ids in answers], skip_special_tokens=True
        )
        for i, (each, ids) in enumerate(zip(speaking, answers, strict=True)):
            other.hear(each, ids)
            each.add_answer(ids, list(logprobs[i])[: len(ids)] if logprobs is not None else None, texts[i])
        if turn + 1 == other.turns:
            break
        replies = [(each, other.reply(each)) for each in speaking]
        for each, words in replies:
            if words is not None:
                each.add_reply(words)
        speaking = [each for each, words in replies if words is not None]
    return everyone


def transcript(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a person reads of a conversation: the answers, and with tools all that was said between them."""
    if conversation.turns.episode is None:
        return "\n\n".join(conversation.turns)
    return str(tokenizer.decode(conversation.completion_ids, skip_special_tokens=True))


class _Nobody:
    """A task without turns: there is one answer."""

    turns = 1

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
        self.task = task
        self.tokenizer = tokenizer

    def begin(self, prompts: Sequence[str], problems: Sequence[Problem]) -> list[Conversation]:
        """Conversations in which nothing has been said."""
        tokenised: Any = self.tokenizer(text=list(prompts))["input_ids"] if prompts else []
        return [
            Conversation(place, prompts[place], list(ids), problem, begin(self.task, problem))
            for place, (ids, problem) in enumerate(zip(tokenised, problems, strict=True))
        ]

    def kept(self, conversation: Conversation, ids: list[int]) -> list[int]:
        """Of an answer, what there is room for."""
        return list(ids)

    def hear(self, conversation: Conversation, ids: list[int]) -> None:
        """Take in an answer that is about to be added."""

    def reply(self, conversation: Conversation) -> list[int] | None:
        """The ids of what is said to the newest answer; None at the end."""
        return None


class _User(_Nobody):
    """A user who speaks again."""

    def __init__(self, task: MultiTurnTask, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(task, tokenizer)
        self.turns = task.turns
        self.options = template_options(task, tokenizer)

    def reply(self, conversation: Conversation) -> list[int] | None:
        """The end of the turn only where the model has not written it itself."""
        words = reply(self.task, conversation.turns, conversation.problem)
        if words is None:
            return None
        text = render_reply(words, self.tokenizer, self.options)
        encoded: Any = self.tokenizer(text=text, add_special_tokens=False)["input_ids"]
        ids, so_far = list(encoded), conversation.completion_ids
        return ids[1:] if ids and so_far and ids[0] == so_far[-1] else ids


class _Tools(_Nobody):
    """Tools that are called, in the loop of TRL's GRPOTrainer.

    A reply for which there is no room is not said, and an answer is cut off where the completion is at its longest.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, box: Toolbox, limits: Limits) -> None:
        super().__init__(task, tokenizer)
        self.turns = box.rounds + 1
        self.box = box
        self.limits = limits
        self.options = template_options(task, tokenizer)

    def begin(self, prompts: Sequence[str], problems: Sequence[Problem]) -> list[Conversation]:
        episodes = self.box.open(problems)
        texts = [
            text if episode.observation is None else self._observing(problem.prompt, episode.observation)
            for text, problem, episode in zip(prompts, problems, episodes, strict=True)
        ]
        begun = super().begin(texts, problems)
        for each, episode in zip(begun, episodes, strict=True):
            each.turns.episode = episode
        return begun

    def _observing(self, prompt: str, observed: str) -> str:
        return prompt_texts([with_observation(prompt, observed)], self.tokenizer, self.task)[0]

    def kept(self, conversation: Conversation, ids: list[int]) -> list[int]:
        if self.limits.tokens is None:
            return list(ids)
        return list(ids[: self.limits.tokens - len(conversation.completion_ids)])

    def hear(self, conversation: Conversation, ids: list[int]) -> None:
        if ids:
            message = parse(self.tokenizer, ids, conversation.ids, self.box)
            self._episode(conversation).messages.append(message)

    def reply(self, conversation: Conversation) -> list[int] | None:
        episode = self._episode(conversation)
        last = episode.messages[-1] if episode.messages else {}
        calls = last.get("tool_calls") if last.get("role") == "assistant" else None
        if not calls:
            return None
        messages = episode.answer(calls)
        ids = reply_ids(messages, self.tokenizer, self.options)
        tokens = len(conversation.completion_ids) + len(ids)
        most, positions = self.limits.tokens, self.limits.positions
        beyond = (most is not None and tokens > most) or (
            positions is not None and len(conversation.prompt_ids) + tokens >= positions
        )
        if beyond:
            del episode.messages[-len(messages) :]
            return None
        return ids

    def _episode(self, conversation: Conversation) -> Any:
        assert conversation.turns.episode is not None
        return conversation.turns.episode


def _other_side(task: Task, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> _Nobody:
    box = toolbox_of(task)
    if box is not None:
        return _Tools(task, tokenizer, box, limits)
    return _User(task, tokenizer) if isinstance(task, MultiTurnTask) else _Nobody(task, tokenizer)
