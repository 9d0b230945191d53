"""How often a model is right on a task: greedy and sampled completions of a fixed set of problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from multiticket.config import EvalConfig
from multiticket.tasks import all_correct, reward_of
from multiticket.train.estimators import mean_interval, pass_at_k
from multiticket.train.files import write_text
from multiticket.train.multi_turn import complete_turns
from multiticket.train.prompts import prompt_texts


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

    The same model, settings and machine always give the same result; the caller's random state is left as it
    was.
    """
    problems = task.problems(settings.split)
    if settings.problems is not None:
        problems = problems.select(range(min(settings.problems, len(problems))))
    prompts, answers = list(problems["prompt"]), list(problems["answer"])
    if not prompts:
        raise ValueError(f"The {settings.split} split of task {task.name} has no problems.")
    texts = prompt_texts(prompts, tokenizer, task)
    tokens = max_completion_tokens or task.max_completion_tokens
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        greedy = complete_turns(
            texts,
            answers,
            task,
            tokenizer,
            lambda contexts, places, turn: complete(
                model, tokenizer, contexts, tokens, batch_size=settings.batch_size
            ),
        )
        sampled = complete_turns(
            [text for text in texts for _ in range(settings.samples)],
            [answer for answer in answers for _ in range(settings.samples)],
            task,
            tokenizer,
            lambda contexts, places, turn: complete(
                model, tokenizer, contexts, tokens, settings.temperature, settings.batch_size
            ),
        )

    results = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mine = sampled[index * settings.samples : (index + 1) * settings.samples]
        results.append(
            ProblemResult(
                index=index,
                prompt=prompt,
                answer=answer,
                correct=[all_correct(task, turns, answer) for turns in mine],
                reward=sum(reward_of(task, turns, answer) for turns in mine) / len(mine),
                greedy_correct=all_correct(task, greedy[index], answer),
                greedy_completion="\n\n".join(greedy[index]),
            )
        )
    return Evaluation(settings, results)


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float | None = None,
    batch_size: int = 512,
) -> list[str]:
    """One completion a prompt, as text without special tokens; greedy unless a temperature is given.

    Prompts are tokenised, padded on the left and ended exactly as TRL does in training. Batches hold prompts
    of like length, so that little of the work is padding.
    """
    ids = tokenizer(text=list(prompts))["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    generation = GenerationConfig(
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=stops, disable_compile=True, **sampling
    )
    was_training = model.training
    model.eval()
    texts = [""] * len(ids)
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(ids[i]) for i in batch)
            inputs = torch.full((len(batch), width), pad)
            attention = torch.zeros_like(inputs)
            for row, i in enumerate(batch):
                inputs[row, width - len(ids[i]) :] = torch.tensor(ids[i])
                attention[row, width - len(ids[i]) :] = 1
            output = model.generate(
                input_ids=inputs.to(model.device),
                attention_mask=attention.to(model.device),
                generation_config=generation,
            )[:, width:].tolist()
            decoded = tokenizer.batch_decode([_until(row, stops) for row in output], skip_special_tokens=True)
            for i, text in zip(batch, decoded, strict=True):
                texts[i] = text
    finally:
        model.train(was_training)
    return texts


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's and those that the model declares."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    stops = [declared] if isinstance(declared, int) else list(declared or [])
    own = tokenizer.eos_token_id
    if isinstance(own, int) and own not in stops:
        stops.insert(0, own)
    if not stops:
        raise ValueError(
            "The tokenizer and the model name no end-of-sequence token, so no completion could end."
        )
    return stops


def _until(row: list[int], stops: list[int]) -> list[int]:
    """A completion's ids up to its first stop token; what follows is padding."""
    for place, token in enumerate(row):
        if token in stops:
            return row[:place]
    return row
