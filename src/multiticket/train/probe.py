"""Try Adam's first step at several rates, and leave everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.sharded import local


def any_gradient(optimizer: Any) -> bool:
    """Whether a gradient, or a moment of earlier ones (of a sharded model: this rank's part), is not zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = (value for name, value in optimizer.state.get(parameter, {}).items() if name != "step")
            for tensor in (parameter.grad, *kept):
                if isinstance(tensor, Tensor) and bool((local(tensor) != 0).any()):
                    return True
    return False


class FirstStepProbe:
    """What the optimiser's parameters would be after Adam's first step, at any rate.

    Adam's first step is p - rate * (decay * p + g / (|g| + eps)), whatever its betas: known before the optimiser
    has any state. Keeps one copy of what is trained, which is less than the optimiser's moments will take.

    Args:
        optimizer: an Adam or AdamW whose parameters have the (clipped) gradients of the first step.
        written: called after the parameters have been changed, for what follows them (an attachment's flush).
    """

    def __init__(self, optimizer: Any, written: Callable[[], None]) -> None:
        self._written = written
        self._saved: list[tuple[Tensor, Tensor, float, float]] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    kept = parameter.detach().clone()
                    self._saved.append((parameter, kept, group["eps"], group["weight_decay"]))

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """Put the parameters where Adam's first step at `rate` would."""
        for parameter, kept, eps, decay in self._saved:
            gradient = parameter.grad
            assert gradient is not None
            direction = gradient / (gradient.abs() + eps)
            parameter.copy_(kept * (1 - rate * decay) - rate * direction)
        self._written()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit."""
        for parameter, kept, *_ in self._saved:
            parameter.copy_(kept)
        self._written()
