"""The product that a layer's input was made as, again, with the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def product(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """x times each of ``factors``, one after the other."""
    return reduce(torch.mul, factors, x)
