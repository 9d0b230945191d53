"""The gradient of k chosen entries of an embedding: a sum over the rows that were looked up, and no other row."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_PAIRS = 0.1
"""Above this density it pays to sum the rows that occurred, of the whole width, before the entries are taken."""


def embedding_reference(dy: Tensor, tokens: Tensor, positions: Tensor, rows: int, padding_idx: int) -> Tensor:
    """The definition for an embedding of ``rows`` rows: scatter-add into the dense gradient, then gather.

    Args:
        dy: gradient of the layer's output (tokens, width).
        tokens: the rows that were looked up (tokens,).
        positions: flat positions in the weight (k,).
        padding_idx: the row that takes no gradient, -1 for none.

    Returns:
        (k,) in the dtype of ``dy``.
    """
    dense = dy.new_zeros(rows, dy.shape[1]).index_add_(0, tokens, dy)
    if padding_idx >= 0:
        dense[padding_idx] = 0
    return dense.reshape(-1)[positions.long()]


@torch.library.custom_op("multiticket::embedding_values_grad", mutates_args=())
def embedding_values_grad(
    dy: Tensor, tokens: Tensor, positions: Tensor, starts: Tensor, padding_idx: int
) -> Tensor:
    """Gradient of an embedding's entries at ``positions``; memory grows with the rows that occurred, not all rows.

    Args:
        dy: (tokens, width).
        tokens: rows looked up (tokens,), int32 or int64.
        positions: sorted flat positions (k,).
        starts: ``row_starts`` of the positions (rows + 1,).
        padding_idx: the row that takes no gradient, -1 for none.

    Returns:
        (k,), fp32, or fp64 where ``dy`` is.
    """
    if dy.is_cuda:
        return sum_by_slot(dy, tokens, positions, starts.numel() - 1, padding_idx)
    dtype = torch.promote_types(torch.float32, dy.dtype)
    grad = torch.zeros(positions.shape, dtype=dtype, device=dy.device)
    looked_up, rows = dy, tokens
    if positions.numel() > MOST_PAIRS * (starts.numel() - 1) * dy.shape[1]:  # sum each row once, then gather
        rows, inverse = torch.unique(tokens, return_inverse=True)
        looked_up = torch.zeros(rows.numel(), dy.shape[1], dtype=dtype, device=dy.device)
        looked_up.index_add_(0, inverse, dy.to(dtype))
    begin, end = starts[rows], starts[rows + 1]
    count = (end - begin).masked_fill(rows == padding_idx, 0).long()
    at = torch.repeat_interleave(torch.arange(rows.numel(), device=dy.device), count)
    entry = begin.long()[at] + torch.arange(at.numel(), device=dy.device) - (count.cumsum(0) - count)[at]
    return grad.index_add_(0, entry, looked_up[at, positions[entry].long() % dy.shape[1]].to(dtype))


def sum_by_slot(dy: Tensor, tokens: Tensor, positions: Tensor, rows: int, padding_idx: int) -> Tensor:
    """The same without a shape that depends on the tokens, so that nobody waits for the device.

    Each row that occurred is summed in the place of one of its tokens (tokens, width), and every position looks whether
    its row has a place: k reads, of which an accelerator does millions in the time of a wait.
    """
    dtype = torch.promote_types(torch.float32, dy.dtype)
    place = torch.full((rows,), -1, dtype=torch.int64, device=dy.device)
    place[tokens.long()] = torch.arange(tokens.numel(), device=dy.device)
    if padding_idx >= 0:
        place[padding_idx] = -1
    summed = torch.zeros(dy.shape, dtype=dtype, device=dy.device)
    slots = place[tokens.long()]
    summed.index_add_(0, slots.clamp(min=0), torch.where(slots[:, None] >= 0, dy, 0).to(dtype))
    flat = positions.long()
    slot = place[flat // dy.shape[1]]
    found = summed[slot.clamp(min=0), flat % dy.shape[1]] if tokens.numel() else summed.new_zeros(flat.shape)
    return torch.where(slot >= 0, found, 0.0)


@embedding_values_grad.register_fake
def _(dy: Tensor, tokens: Tensor, positions: Tensor, starts: Tensor, padding_idx: int) -> Tensor:
    return dy.new_empty(positions.shape, dtype=torch.promote_types(torch.float32, dy.dtype))
