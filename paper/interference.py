"""Whether two trained task vectors of one base, made together, do to its policy what they do apart.

In each context the base has logits z, and with the task vectors z_a, z_b and z_ab. If the network were linear in its
weights z_ab would be z_a + z_b - z, and all that B does to A's task is what B does there by itself (its *drift*). What
is left, z_ab - z_a - z_b + z, is their *interaction*. Both are told as KL from A's own policy, in A's own contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiticket.research.theory.kl import KL, kls_over
from multiticket.research.theory.rollouts import Rollout, generated_logits


@dataclass(frozen=True)
class Interference:
    """Of a second task vector B with a first one A, in contexts of A's policy."""

    together: KL
    """KL(A || A and B)."""
    additive: KL
    """KL(A || softmax(z_a + z_b - z)): what B's drift alone would do."""
    drift: KL
    """KL(base || B)."""
    interaction: float
    """sum |z_ab - z_a - z_b + z|^2 / sum |z_ab - z_a|^2 over contexts, logits without their mean: the share of the
    change that is not B's drift. 0 where task vectors add up; 1 where B by itself does nothing here."""


@torch.no_grad()
def interference(
    base: Any,
    first: Any,
    second: Any,
    both: Any,
    rollouts: Sequence[Rollout],
    temperature: float = 1.0,
    tokens: int = 2048,
) -> Interference:
    """Four models of one vocabulary, in evaluation mode, in the contexts of `rollouts`, sampled from `first`."""
    rest = change = 0.0

    def pairs(ids: Tensor, generated: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        nonlocal rest, change
        models = (base, first, second, both)
        z, a, b, ab = (generated_logits(model, ids, generated, temperature).double() for model in models)
        rest += _squares(ab - a - b + z)
        change += _squares(ab - a)
        return {"together": (a, ab), "additive": (a, a + b - z), "drift": (z, b)}

    found = kls_over(rollouts, pairs, base, tokens)
    return Interference(**found, interaction=rest / change if change else 0.0)


def _squares(logits: Tensor) -> float:
    """Of (tokens, vocabulary): adding a number to all of a context's logits changes no policy."""
    return float((logits - logits.mean(-1, keepdim=True)).square().sum())
