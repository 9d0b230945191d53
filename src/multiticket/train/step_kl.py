"""How far a step moves the policy: KL(before || after) on rollouts of the step's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class StepKL(NamedTuple):
    """How far one step moved the policy, in nats: the mean over tokens, and over whole completions."""

    token: float
    completion: float


class Kept(NamedTuple):
    """Rollouts of a training pass as they were before its step."""

    asked: tuple[Tensor, Tensor, int]
    """Token ids and attention mask (rollouts, prompt and completion), and how many tokens are the completion's."""
    log_probs: Tensor
    """(rollouts, completion tokens), under the policy that sampled them."""
    mask: Tensor
    """(rollouts, completion tokens): 1 for a token that the policy chose."""

    @classmethod
    def first(
        cls, count: int, asked: tuple[Tensor, Tensor, int], log_probs: Tensor, chosen: Tensor | None
    ) -> Kept:
        """The first `count` rollouts of a pass, which are shuffled. `chosen` (rollouts, tokens): None is all tokens."""
        ids, attention, tokens = asked
        some = slice(count)
        mask = attention[some, -tokens:]
        mask = mask if chosen is None else mask * chosen[some]
        return cls((ids[some], attention[some], tokens), log_probs[some].detach(), mask)

    def sums(self, after: Tensor) -> Tensor:
        """Summed estimate, tokens and completions (3,), to be added up over ranks; `after`: log-probabilities now.

        k3 = r - 1 - log r with r = p_after / p_before, over tokens sampled from p_before: an unbiased estimate of the
        KL that is never negative (Schulman).
        """
        log_ratio = (after - self.log_probs).float()
        estimate = torch.expm1(log_ratio) - log_ratio
        counts = [self.mask.sum().float(), self.mask.new_tensor(len(self.mask)).float()]
        return torch.stack([(estimate * self.mask).sum(), *counts])


def mean(sums: Any) -> StepKL:
    """From `Kept.sums` of all ranks together."""
    total, tokens, completions = sums.tolist()
    return StepKL(total / max(tokens, 1.0), total / completions)
