"""Training passes without a graph for the rollouts of groups whose rewards are all equal.

Their advantage is 0, and so is their gradient: such a rollout costs its forward pass, which the log needs, and no
backward pass. Where a base solves few problems, or nearly all, that is most of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PAYS = 0.9
"""Two passes are done where at most this share of the rollouts has a gradient."""


def with_gradient(advantages: Tensor) -> Tensor | None:
    """Which rollouts (rollouts,), as booleans, have a gradient; None where telling them apart does not pay.

    Where none has, the first stands for all, so that a loss has a graph and every gradient is there, and 0.

    Args:
        advantages: (rollouts,) or (rollouts, tokens).
    """
    learning = advantages.reshape(len(advantages), -1).ne(0).any(dim=1)
    if len(learning) < 2 or learning.sum() > PAYS * len(learning):
        return None
    if not learning.any():
        learning[0] = True
    return learning


def in_two_passes(scores: Callable[[Tensor], tuple[Any, ...]], learning: Tensor) -> tuple[Any, ...]:
    """What `scores` says of all rollouts, in their order, with a graph for those that are `learning`.

    Args:
        scores: takes the indices of some rollouts, and gives tensors with a row for each of them, or None.
        learning: (rollouts,) booleans, not all alike.
    """
    some, others = learning.nonzero().flatten(), (~learning).nonzero().flatten()
    with torch.no_grad():
        flat = scores(others)
    back = torch.cat([some, others]).argsort()
    return tuple(
        None if one is None else torch.cat([one, other]).index_select(0, back)
        for one, other in zip(scores(some), flat, strict=True)
    )
