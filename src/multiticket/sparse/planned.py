"""Attaching to a model without weights: what an attachment would keep, on the device that the model will train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from multiticket.mask import Mask

_planned: ContextVar[torch.device | None] = ContextVar("what the meta device stands for", default=None)


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Within, models on the meta device are attached, and run forward, as they would be on ``device``."""
    token = _planned.set(torch.device(device))
    try:
        yield
    finally:
        _planned.reset(token)


def planning() -> bool:
    """Whether the meta device stands for another."""
    return _planned.get() is not None


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor lies, or will lie."""
    planned = _planned.get() if tensor.is_meta else None
    return tensor.device if planned is None else planned


def positions_of(mask: Mask, name: str) -> Tensor:
    """The mask's positions in a tensor: int64 (k,).

    Planning, scattered ones are on the meta device, as if they touched every line: with two expected in each, one line
    in seven is left out. Others tell which rows and columns the engine leaves alone.
    """
    shape, density = mask.shape(name), mask.rule.density or 0.0
    scattered = mask.rule.method in ("random", "numpy") and (len(shape) != 2 or density * min(shape) >= 2)
    if planning() and scattered:
        return torch.empty(mask.count(name), dtype=torch.int64, device="meta")
    return mask.indices(name)
