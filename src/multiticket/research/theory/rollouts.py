"""Completions that a model says to a task's problems, as token sequences with rewards, and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multiticket.generate.completion import complete_ids, stop_tokens
from multiticket.generate.conversations import Conversation, Limits, converse
from multiticket.generate.prompts import positions_of, prompt_texts
from multiticket.tasks import asked, judge
from multiticket.tasks.judging import rows

_STREAMS, _TURNS = 2**32, 2**24
"""Streams of random numbers as `evaluate.evaluation` numbers them: by problem, turn and sample."""


@dataclass(frozen=True)
class Rollout:
    """One completion, or conversation, of one problem."""

    problem: int
    """Place in the split."""
    ids: tuple[int, ...]
    """Tokens of the whole sequence: prompt, answers, and between them what the environment says."""
    generated: tuple[bool, ...]
    """As long as `ids`: which tokens are the model's, the ends of its answers included."""
    reward: float
    advantage: float
    """Reward minus the mean reward of the problem's rollouts (GRPO without division by the deviation)."""


def sample_rollouts(
    model: Any,
    tokenizer: Any,
    task: Any,
    problems: int,
    group: int,
    split: str = "validation",
    temperature: float = 1.0,
    seed: int = 0,
    max_completion_tokens: int | None = None,
) -> list[Rollout]:
    """`group` rollouts of each of the first `problems` problems (0: all), sampled from the model, in order.

    The same model, arguments and machine give the same rollouts, and rollout s of problem i is the same however
    many others there are.

    Raises:
        ValueError: the split has too few problems.
    """
    task = asked(task, tokenizer)
    given = task.problems(split)
    problems = problems or len(given)
    if len(given) < problems:
        raise ValueError(
            f"The {split} split of task {task.name} has {len(given)} problems, not {problems}: ask for fewer."
        )
    chosen = rows(given.select(range(problems)))
    places = [problem for problem in range(problems) for _ in range(group)]
    texts = prompt_texts([problem.prompt for problem in chosen], tokenizer, task)
    tokens = max_completion_tokens or task.max_completion_tokens

    def by_chance(speaking: list[Conversation], turn: int) -> tuple[list[list[int]], None]:
        streams = [places[one.place] * _STREAMS + turn * _TURNS + one.place % group for one in speaking]
        contexts = [one.ids for one in speaking]
        return complete_ids(model, tokenizer, contexts, tokens, temperature, seed=seed, streams=streams), None

    of_places = [chosen[p] for p in places]
    positions = positions_of(model)
    limits = Limits(tokens, positions, stop_tokens(model, tokenizer))
    done = converse([texts[p] for p in places], of_places, task, tokenizer, by_chance, limits)
    rewards = [judgement.reward for judgement in judge(task, [one.turns for one in done], of_places)]
    found = []
    for i, (problem, one) in enumerate(zip(places, done, strict=True)):
        generated = (False,) * len(one.prompt_ids) + tuple(bool(mine) for mine in one.env_mask)
        gain = advantage(rewards[i], rewards[problem * group : (problem + 1) * group])
        found.append(Rollout(problem, tuple(one.ids), generated, rewards[i], gain))
    return found


def advantage(reward: float, group: Sequence[float]) -> float:
    """Above the mean of its group; exactly 0 where all are equal, which a rounded mean need not be."""
    return 0.0 if min(group) == max(group) else reward - math.fsum(group) / len(group)


def generated_logits(model: Any, ids: Tensor, generated: Tensor, temperature: float) -> Tensor:
    """The logits, over temperature, from which each of the model's own tokens was drawn.

    Args:
        ids: (rollouts, length) int64, sequences of one length.
        generated: (rollouts, length) bool.

    Returns:
        (tokens, vocabulary) fp32 or wider, rollout after rollout.
    """
    logits = model(input_ids=ids).logits[:, :-1][generated[:, 1:]]
    return (logits if logits.dtype == torch.float64 else logits.float()) / temperature


def scores(model: Any, rollouts: Sequence[Rollout], temperature: float = 1.0) -> list[Callable[[], Tensor]]:
    """For each rollout a function that computes log p, the sum over the model's own tokens, as a scalar with a
    graph.

    Its gradient is the score of the policy at this rollout.
    """
    return [partial(log_prob, model, rollout, temperature) for rollout in rollouts]


def policy_scalars(
    model: Any, rollouts: Sequence[Rollout], temperature: float = 1.0
) -> list[Callable[[], Tensor]]:
    """The same times each rollout's advantage: their gradients sum to the policy gradient, up to its constant."""
    return [partial(_weighted, model, rollout, temperature) for rollout in rollouts]


def log_prob(model: Any, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """The log-probability of the model's own tokens, summed: a scalar, fp32 or wider."""
    ids, generated = tensors_of([rollout], model)
    said = ids[:, 1:][generated[:, 1:]]
    return generated_logits(model, ids, generated, temperature).log_softmax(-1).gather(1, said[:, None]).sum()


def _weighted(model: Any, rollout: Rollout, temperature: float) -> Tensor:
    return rollout.advantage * log_prob(model, rollout, temperature)


def same_length(rollouts: Sequence[Rollout], tokens: int) -> list[list[int]]:
    """Places of rollouts that go through a model together, without padding and with at most so many tokens, or one."""
    by_length: dict[int, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        by_length.setdefault(len(rollout.ids), []).append(place)
    batches = []
    for length, places in by_length.items():
        rows = max(1, tokens // length)
        batches += [places[first : first + rows] for first in range(0, len(places), rows)]
    return batches


def tensors_of(rollouts: Sequence[Rollout], model: Any) -> tuple[Tensor, Tensor]:
    """Ids, and which are generated, (rollouts, length) each, of rollouts of one length, on the model's device."""
    device = next(model.parameters()).device
    ids = torch.tensor([rollout.ids for rollout in rollouts], device=device)
    return ids, torch.tensor([rollout.generated for rollout in rollouts], device=device)
