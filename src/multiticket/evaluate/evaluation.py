"""How often a model is right on a task: greedy and sampled completions of a fixed set of problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiticket.config import EvalConfig
from multiticket.evaluate.estimators import mean_interval, pass_at_k
from multiticket.generate.completion import complete_ids, stop_tokens
from multiticket.generate.conversations import Conversation, Limits, converse, transcript
from multiticket.generate.prompts import positions_of, prompt_texts, refuse_too_long
from multiticket.runs.files import write_text
from multiticket.runs.ranks import ALONE, Ranks
from multiticket.tasks import asked, judge
from multiticket.tasks.judging import Judgement, Problem, rows
from multiticket.tasks.tools import toolbox_of

_STREAMS, _TURNS = 2**32, 2**24
"""More turns, and samples of a problem, than anyone draws: keeps the random streams of all completions apart."""


@dataclass(frozen=True)
class ProblemResult:
    """What a model made of one problem."""

    index: int
    """Place in the split."""
    prompt: str
    answer: str
    correct: list[bool]
    """One a sampled completion."""
    reward: float
    """Mean over the sampled completions."""
    greedy_correct: bool
    greedy_completion: str


@dataclass(frozen=True)
class Evaluation:
    """Per-problem results and their summary."""

    settings: EvalConfig
    problems: list[ProblemResult]

    def summary(self) -> dict[str, Any]:
        """pass@1, greedy accuracy and mean reward with 95 % intervals over problems, and pass@k for k = 2, 4, ..."""
        samples = self.settings.samples
        pass_1, low, high = mean_interval([sum(p.correct) / samples for p in self.problems], samples)
        greedy, greedy_low, greedy_high = mean_interval([float(p.greedy_correct) for p in self.problems])
        summary = {
            "pass@1": pass_1,
            "interval": [low, high],
            "greedy": greedy,
            "greedy_interval": [greedy_low, greedy_high],
            "reward": sum(p.reward for p in self.problems) / len(self.problems),
            "n": len(self.problems),
            "samples": samples,
            "temperature": self.settings.temperature,
            "split": self.settings.split,
        }
        k = 2
        while k <= samples:
            estimates = [pass_at_k(samples, sum(p.correct), k) for p in self.problems]
            summary[f"pass@{k}"] = sum(estimates) / len(estimates)
            k *= 2
        return summary

    def save(self, path: Path) -> None:
        """Per-problem results as JSON lines."""
        write_text(
            path, "".join(json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in self.problems)
        )


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Any,
    settings: EvalConfig,
    max_completion_tokens: int | None = None,
    tell: Callable[[int, int, float], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Measure a model on the first `settings.problems` problems of a split.

    The same model, settings and machine always give the same result, and sample s of problem i is the same however
    many others there are; torch's random state is left as it was.

    Args:
        tell: told now and then how many completions are over, of how many in all, and how many there would be had
            those under way been counted by their tokens; a completion of several turns counts once. Of several ranks,
            each is told of its share.
        ranks: they share the problems, each with a whole model of its own, and all know the result.
    """
    task = asked(task, tokenizer)
    split = task.problems(settings.split)
    if settings.problems is not None:
        split = split.select(range(min(settings.problems, len(split))))
    everything = rows(split)
    if not everything:
        raise ValueError(f"The {settings.split} split of task {task.name} has no problems.")
    own = range(ranks.rank, len(everything), ranks.size)
    with ranks.together():
        results = _results(model, tokenizer, task, settings, everything, own, max_completion_tokens, tell)
    shares = ranks.gather(results)
    return Evaluation(settings, sorted((one for share in shares for one in share), key=lambda one: one.index))


def _results(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Any,
    settings: EvalConfig,
    everything: Sequence[Problem],
    own: range,
    max_completion_tokens: int | None,
    tell: Callable[[int, int, float], None] | None,
) -> list[ProblemResult]:
    """Of the problems `own`, by their places in all."""
    problems = [everything[index] for index in own]
    texts = prompt_texts([problem.prompt for problem in problems], tokenizer, task)
    tokens = max_completion_tokens or task.max_completion_tokens
    refuse_too_long(texts, tokenizer, model, settings.split, tokens)

    each = 1 + settings.samples
    in_all = len(texts) * each
    draws = [(i, sample) for i in range(len(texts)) for sample in range(-1, settings.samples)]
    """Problem and sample of each completion; sample -1 is the greedy one."""
    box = toolbox_of(task)
    limits = Limits(tokens, positions_of(model), stop_tokens(model, tokenizer))
    at_once = in_all if box is None or not box.has_environment else max(1, settings.batch_size // each) * each
    """Each has an environment of its own, which is kept."""

    def answer(first: int, speaking: list[Conversation], turn: int) -> tuple[list[list[int]], None]:
        """How many speak after the first turn is not known before: the first alone is told of."""
        said = [draws[first + one.place] for one in speaking]
        room = [tokens if box is None else max(1, tokens - len(one.completion_ids)) for one in speaking]
        return complete_ids(
            model,
            tokenizer,
            [one.ids for one in speaking],
            room,
            [None if sample < 0 else settings.temperature for _, sample in said],
            seed=settings.seed,
            streams=[own[i] * _STREAMS + turn * _TURNS + max(sample, 0) for i, sample in said],
            tell=None
            if tell is None or turn
            else lambda over, worth: tell(first + over, in_all, first + worth),
            batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens,
        ), None

    judged: list[Judgement] = []
    said: list[str] = []
    for first in range(0, in_all, max(1, at_once)):
        some = [i for i, _ in draws[first : first + at_once]]
        given = [texts[i] for i in some], [problems[i] for i in some]
        done = converse(*given, task, tokenizer, partial(answer, first), limits)
        judged += judge(task, [one.turns for one in done], given[1])
        said += [transcript(one, tokenizer) for one in done[::each]]

    results = []
    for place, problem in enumerate(problems):
        greedy, *mine = judged[place * each : (place + 1) * each]
        results.append(
            ProblemResult(
                index=own[place],
                prompt=problem.prompt,
                answer=problem.answer,
                correct=[judgement.correct for judgement in mine],
                reward=sum(judgement.reward for judgement in mine) / len(mine),
                greedy_correct=greedy.correct,
                greedy_completion=said[place],
            )
        )
    return results
