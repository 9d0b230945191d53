"""How often a model is right on a task: greedy and sampled completions of a fixed set of problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiticket.config import EvalConfig
from multiticket.train.completion import complete, stop_tokens
from multiticket.train.estimators import mean_interval, pass_at_k
from multiticket.train.files import write_text

__all__ = ["Evaluation", "ProblemResult", "complete", "evaluate", "prompt_texts", "stop_tokens"]

_STREAMS = 2**32
"""More samples of a problem than anyone draws: keeps the random streams of problems apart."""


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
) -> Evaluation:
    """Measure a model on the first `settings.problems` problems of a split.

    The same model, settings and machine always give the same result, and sample s of problem i is the same however
    many others there are; torch's random state is left as it was.
    """
    problems = task.problems(settings.split)
    if settings.problems is not None:
        problems = problems.select(range(min(settings.problems, len(problems))))
    prompts, answers = list(problems["prompt"]), list(problems["answer"])
    texts = prompt_texts(prompts, tokenizer)
    if not prompts:
        raise ValueError(f"The {settings.split} split of task {task.name} has no problems.")
    tokens = max_completion_tokens or task.max_completion_tokens
    together: dict[str, Any] = {"batch_size": settings.batch_size, "batch_tokens": settings.batch_tokens}
    greedy = complete(model, tokenizer, texts, tokens, **together)
    draws = [(i, sample) for i in range(len(texts)) for sample in range(settings.samples)]
    sampled = complete(
        model,
        tokenizer,
        [texts[i] for i, _ in draws],
        tokens,
        settings.temperature,
        seed=settings.seed,
        streams=[i * _STREAMS + sample for i, sample in draws],
        **together,
    )

    results = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mine = sampled[index * settings.samples : (index + 1) * settings.samples]
        results.append(
            ProblemResult(
                index=index,
                prompt=prompt,
                answer=answer,
                correct=[bool(task.correct(completion, answer)) for completion in mine],
                reward=sum(task.score(completion, answer) for completion in mine) / len(mine),
                greedy_correct=bool(task.correct(greedy[index], answer)),
                greedy_completion=greedy[index],
            )
        )
    return Evaluation(settings, results)


def prompt_texts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a model reads of each problem: the prompt as it is, in training and in evaluation."""
    return list(prompts)
