"""Positions of one tensor that are made when asked for, so that a mask costs nothing to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Device = torch.device | str | None
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Positions:
    """``count`` positions, and ``make(device)``, which gives them sorted as int64 of shape (count,)."""

    count: int
    make: Callable[[Device], torch.Tensor]


def stored(flat: torch.Tensor) -> Positions:
    """Positions kept as they are: sorted int64, unique. Held as int32 where they fit."""
    if flat.numel() == 0 or int(flat[-1]) < 2**31:
        flat = flat.to("cpu", torch.int32)
    return Positions(flat.numel(), partial(_widen, flat.cpu()))


def _widen(flat: torch.Tensor, device: Device) -> torch.Tensor:
    return flat.to(device=device, dtype=torch.int64, copy=True)
