"""k columns of an activation: what a masked bias or norm needs of it.

Few columns lie far apart, one cache line a token, and torch's ``index_select`` takes three times what reading those
lines takes. So a few come through the compiled kernel; many, other dtypes and other devices through torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multiticket.sparse.gradient import native

MOST_TAKEN = 1 << 18
"""Numbers (tokens x k) up to which one thread of the kernel is quicker than all of torch's."""


def take_columns(x: Tensor, positions: Tensor) -> Tensor:
    """``x[..., positions]`` for x (..., features) and positions (k,): (..., k), a copy."""
    if not _few(x, positions):
        return x.index_select(-1, positions)
    return native.columns(x.reshape(-1, x.shape[-1]), positions).view(*x.shape[:-1], -1)


def column_sums(dy: Tensor, positions: Tensor, times: Tensor | None = None) -> Tensor:
    """Sums over tokens of the columns of dy (..., features) at ``positions`` (k,), in at least fp32.

    Args:
        times: (..., k) of the dtype of dy, by which those columns are multiplied first.
    """
    dy = dy.reshape(-1, dy.shape[-1])
    times = None if times is None else times.flatten(0, -2)  # k may be 0
    if _few(dy, positions):
        return native.column_sums(dy, positions, times)
    dtype = torch.promote_types(torch.float32, dy.dtype)
    if times is not None:
        return (dy.index_select(1, positions).to(dtype) * times.to(dtype)).sum(0)
    if 2 * positions.numel() < dy.shape[1]:
        return dy.index_select(1, positions).sum(0, dtype=dtype)
    return dy.sum(0, dtype=dtype).index_select(0, positions)


def _few(x: Tensor, positions: Tensor) -> bool:
    if torch.compiler.is_compiling() or type(x) is not Tensor or not native.can_take(x, positions):
        return False
    k, features = positions.numel(), x.shape[-1]
    return 0 < k * x.numel() <= MOST_TAKEN * features and 2 * k < features and native.library() is not None
