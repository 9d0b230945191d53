"""A model's answers to problems of one turn or several, as texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from multiticket.generate.prompts import render_reply, template_options
from multiticket.tasks import MultiTurnTask, Problem, Task
from multiticket.tasks.judging import Turns, begin, reply


def complete_turns(
    prompts: Sequence[str],
    problems: Sequence[Problem],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    complete: Callable[[list[str], list[int], int], list[str]],
) -> list[Turns]:
    """The model's answers, a list of turns for each problem: what `tasks.judge` judges.

    A task without turns has lists of one.

    Args:
        prompts, problems: rendered prompts (see `prompts.render`), and their problems.
        complete: texts of contexts, the place in `prompts` of each, and the turn's number -> one completion each,
            without special tokens.
    """
    contexts = list(prompts)
    turns = [begin(task, problem) for problem in problems]
    speaking = list(range(len(contexts)))
    turn = 0
    while speaking:
        said = complete([contexts[i] for i in speaking], speaking, turn)
        for i, text in zip(speaking, said, strict=True):
            turns[i].append(text)
        turn += 1
        if not isinstance(task, MultiTurnTask) or turn == task.turns:
            break
        replies = {i: reply(task, turns[i], problems[i]) for i in speaking}
        speaking = [i for i in speaking if replies[i] is not None]
        for i in speaking:
            contexts[i] += turns[i][-1] + render_reply(str(replies[i]), tokenizer, template_options(task))
    return turns
