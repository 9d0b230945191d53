"""How far apart two policies are, exactly over the vocabulary, in the contexts that the first one comes to.

KL(p || q) of whole completions is the mean over completions from p of sum_t KL(p(. | context_t) || q(. |
context_t)). Each term is summed over the whole vocabulary rather than estimated at the token that was drawn, so
only the contexts are random, and two equal policies give exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiticket.evaluate.estimators import Z95
from multiticket.research.theory.rollouts import Rollout, generated_logits, same_length, tensors_of

CHUNK = 2**22
"""Logits of which the KL is taken at once, so that their fp64 copies stay small."""


def token_kl(before: Tensor, after: Tensor) -> Tensor:
    """sum_v p (log p - log q) for p = softmax(before), q = softmax(after): (tokens, vocabulary) to nats (tokens,).

    In fp64, never below 0. Where p gives a word no chance it adds nothing; where q alone gives it none, the KL is
    infinite.
    """
    rows = max(1, CHUNK // before.shape[-1])
    parts = [_token_kl(p, q) for p, q in zip(before.split(rows), after.split(rows), strict=True)]
    return torch.cat(parts)


def _token_kl(before: Tensor, after: Tensor) -> Tensor:
    log_p, log_q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp(min=0)


@dataclass(frozen=True)
class KL:
    """KL(before || after) in nats, with 95 % intervals (normal, problems being the unit)."""

    token: float
    """Mean over all tokens."""
    token_interval: tuple[float, float]
    completion: float
    """Mean over completions of the sum over a completion's tokens: the KL of the policies over completions."""
    completion_interval: tuple[float, float]
    largest_token: float
    completions: int
    tokens: int


@torch.no_grad()
def kl_between(
    before: Any, after: Any, rollouts: Sequence[Rollout], temperature: float = 1.0, tokens: int = 2048
) -> KL:
    """KL(before || after) in the contexts of `rollouts`, which should be sampled from `before`.

    Args:
        before, after: two models of one vocabulary, called in evaluation mode.
        temperature: of both policies.
        tokens: in one forward pass, which takes rollouts of one length; a longer one has a pass to itself.

    Raises:
        ValueError: the models' vocabularies differ.
    """
    were_training = [(model, model.training) for model in (before, after)]

    def pair(ids: Tensor, generated: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        p, q = (generated_logits(model, ids, generated, temperature) for model in (before, after))
        if p.shape != q.shape:
            raise ValueError(
                f"The models have {p.shape[1]} and {q.shape[1]} tokens in their vocabularies: compare states of "
                "one base."
            )
        return {"kl": (p, q)}

    try:
        for model, _ in were_training:
            model.eval()
        return kls_over(rollouts, pair, before, tokens)["kl"]
    finally:
        for model, training in were_training:
            model.train(training)


def kls_over(
    rollouts: Sequence[Rollout],
    pairs: Callable[[Tensor, Tensor], Mapping[str, tuple[Tensor, Tensor]]],
    model: Any,
    tokens: int = 2048,
) -> dict[str, KL]:
    """The KL of named pairs of policies in the contexts of `rollouts`.

    Args:
        pairs: gives of ids and of which are generated, (rollouts, length) each, the logits (tokens, vocabulary) of both
            policies of each pair.
        model: whose device the ids go to.
    """
    sums: dict[str, dict[int, float]] = {}
    largest: dict[str, float] = {}
    counts: dict[int, int] = {}
    for places in same_length(rollouts, tokens):
        ids, generated = tensors_of([rollouts[place] for place in places], model)
        owner = generated[:, 1:].cpu().nonzero()[:, 0]
        counts |= zip(places, owner.bincount(minlength=len(places)).tolist(), strict=True)
        for name, (before, after) in pairs(ids, generated).items():
            of_token = token_kl(before, after).cpu()
            total = torch.zeros(len(places), dtype=torch.float64).index_add_(0, owner, of_token)
            sums.setdefault(name, {}).update(zip(places, total.tolist(), strict=True))
            largest[name] = max(largest.get(name, 0.0), *of_token.tolist(), 0.0)
    return {name: summarise(rollouts, found, counts, largest[name]) for name, found in sums.items()}


def summarise(
    rollouts: Sequence[Rollout], sums: Mapping[int, float], counts: Mapping[int, int], largest: float
) -> KL:
    """Means and intervals of each rollout's sum and number of tokens; rollouts of one problem count together."""
    by_problem: dict[int, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        by_problem.setdefault(rollout.problem, []).append(place)
    totals = [sum(sums[place] for place in places) for places in by_problem.values()]
    tokens = [sum(counts[place] for place in places) for places in by_problem.values()]
    completions = [len(places) for places in by_problem.values()]
    token, token_interval = _ratio(totals, tokens)
    completion, completion_interval = _ratio(totals, completions)
    return KL(token, token_interval, completion, completion_interval, largest, sum(completions), sum(tokens))


def _ratio(totals: Sequence[float], sizes: Sequence[int]) -> tuple[float, tuple[float, float]]:
    """sum(totals) / sum(sizes) with the interval of a ratio of means (linearised), not below 0."""
    count, size = len(totals), sum(sizes)
    ratio = sum(totals) / size
    if count < 2:
        return ratio, (0.0, math.inf)
    spread = sum((total - ratio * part) ** 2 for total, part in zip(totals, sizes, strict=True))
    error = Z95 * math.sqrt(spread * count / (count - 1)) / size
    return ratio, (max(0.0, ratio - error), ratio + error)
