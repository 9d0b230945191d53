"""How often a model is right on a task: greedy and sampled completions of a fixed set of problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiticket.config import EvalConfig
from multiticket.evaluate.estimators import mean_interval, pass_at_k
from multiticket.generate.completion import complete
from multiticket.generate.conversations import complete_turns
from multiticket.generate.prompts import prompt_texts
from multiticket.runs.files import write_text
from multiticket.tasks import asked, judge
from multiticket.tasks.judging import rows

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
    tell: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model on the first `settings.problems` problems of a split.

    The same model, settings and machine always give the same result, and sample s of problem i is the same however
    many others there are; torch's random state is left as it was.

    Args:
        tell: told now and then how many completions are over, of how many in all; those of several turns count once.
    """
    task = asked(task, tokenizer)
    split = task.problems(settings.split)
    if settings.problems is not None:
        split = split.select(range(min(settings.problems, len(split))))
    problems = rows(split)
    if not problems:
        raise ValueError(f"The {settings.split} split of task {task.name} has no problems.")
    texts = prompt_texts([problem.prompt for problem in problems], tokenizer, task)
    tokens = max_completion_tokens or task.max_completion_tokens
    together: dict[str, Any] = {"batch_size": settings.batch_size, "batch_tokens": settings.batch_tokens}

    in_all = len(texts) * (1 + settings.samples)

    def over(before: int, turn: int) -> Callable[[int], None] | None:
        """Told of the first turn alone: how many speak in later ones is not known before."""
        return None if tell is None or turn else lambda more: tell(before + more, in_all)

    def greedily(contexts: list[str], places: list[int], turn: int) -> list[str]:
        return complete(model, tokenizer, contexts, tokens, tell=over(0, turn), **together)

    draws = [(i, sample) for i in range(len(texts)) for sample in range(settings.samples)]

    def by_chance(contexts: list[str], places: list[int], turn: int) -> list[str]:
        streams = [draws[i][0] * _STREAMS + turn * _TURNS + draws[i][1] for i in places]
        return complete(
            model,
            tokenizer,
            contexts,
            tokens,
            settings.temperature,
            seed=settings.seed,
            streams=streams,
            tell=over(len(texts), turn),
            **together,
        )

    greedy = complete_turns(texts, problems, task, tokenizer, greedily)
    greedy_judged = judge(task, greedy, problems)
    of_draws = [problems[i] for i, _ in draws]
    sampled = complete_turns([texts[i] for i, _ in draws], of_draws, task, tokenizer, by_chance)
    judged = judge(task, sampled, of_draws)

    results = []
    for index, problem in enumerate(problems):
        mine = judged[index * settings.samples : (index + 1) * settings.samples]
        results.append(
            ProblemResult(
                index=index,
                prompt=problem.prompt,
                answer=problem.answer,
                correct=[judgement.correct for judgement in mine],
                reward=sum(judgement.reward for judgement in mine) / len(mine),
                greedy_correct=greedy_judged[index].correct,
                greedy_completion="\n\n".join(greedy[index]),
            )
        )
    return Evaluation(settings, results)
