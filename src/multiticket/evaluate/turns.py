"""A model's answers to problems of one turn or several, as texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from multiticket.evaluate.prompts import render_reply
from multiticket.tasks import MultiTurnTask, Task


def complete_turns(
    prompts: Sequence[str],
    answers: Sequence[str],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    complete: Callable[[list[str], list[int], int], list[str]],
) -> list[list[str]]:
    """The model's answers, a list of turns for each problem: what `tasks.reward_of` and `tasks.all_correct` judge.

    A task without turns has lists of one.

    Args:
        prompts, answers: rendered prompts (see `prompts.render`) and the problems' answers.
        complete: texts of contexts, the place in `prompts` of each, and the turn's number -> one completion each,
            without special tokens.
    """
    contexts = list(prompts)
    turns: list[list[str]] = [[] for _ in prompts]
    speaking = list(range(len(contexts)))
    turn = 0
    while speaking:
        said = complete([contexts[i] for i in speaking], speaking, turn)
        for i, text in zip(speaking, said, strict=True):
            turns[i].append(text)
        turn += 1
        if not isinstance(task, MultiTurnTask) or turn == task.turns:
            break
        replies = {i: task.reply(turns[i], answers[i]) for i in speaking}
        speaking = [i for i in speaking if replies[i] is not None]
        for i in speaking:
            contexts[i] += turns[i][-1] + render_reply(str(replies[i]), tokenizer)
    return turns
