"""A mask of aligned square blocks: its gradient is a batch of small products, one a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_LINES = 1.0
"""Rows and columns gathered, as a share of the weight's own, up to which the small products are worth it."""
LEAST_FILLED = 0.5
"""Share of the blocks' entries that the mask must take."""


@dataclass(frozen=True)
class Tiles:
    """Where the blocks of one weight are, and the mask's positions in them."""

    side: int
    rows: Tensor
    """Rows of each block, one block after the other (blocks * side,)."""
    columns: Tensor
    """Its columns (blocks * side,)."""
    positions: Tensor
    """The mask's entries in (blocks, side, side), flattened (k,)."""

    def gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """All entries (blocks * side * side,) of the blocks of ``dy^T x``: dy (tokens, rows), x (tokens, columns)."""
        tokens, blocks = dy.shape[0], self.rows.numel() // self.side
        left = dy.index_select(1, self.rows).view(tokens, blocks, self.side).permute(1, 2, 0)
        right = x.index_select(1, self.columns).view(tokens, blocks, self.side).permute(1, 0, 2)
        return torch.bmm(left, right).view(-1)


def tiles_of(positions: Tensor, rows: int, columns: int, side: int) -> Tiles | None:
    """The blocks of ``side`` that sorted flat ``positions`` (k,) touch in a weight (rows, columns).

    None where they are cut by the weight's edge, not well filled, or so many that one dense product is cheaper.
    """
    if rows % side or columns % side or not positions.numel():
        return None
    row, column = (positions // columns).long(), (positions % columns).long()
    across = columns // side
    block = row // side * across + column // side
    found, which = block.unique(return_inverse=True)
    many = 2 * found.numel() * side > MOST_LINES * (rows + columns)
    if many or positions.numel() < LEAST_FILLED * found.numel() * side * side:
        return None
    inside = torch.arange(side, device=positions.device)
    place = (which * side + row % side) * side + column % side
    return Tiles(
        side,
        ((found // across * side)[:, None] + inside).flatten().to(positions.dtype),
        ((found % across * side)[:, None] + inside).flatten().to(positions.dtype),
        place.to(positions.dtype),
    )
