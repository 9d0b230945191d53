"""Masks of whole columns or rows: few lines, whose gradient is a small dense product.

A ``columns`` mask has its entries in few input features. Then the layer keeps those features alone for its backward
pass, (tokens, c) instead of (tokens, in), and the gradient is ``dy^T x[:, c]``. Likewise for rows. The first and the
last line of such a mask may be partial, so the entries wanted are gathered from the small product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from multiticket.sparse.gradient import product

SLACK = 1.5
"""The lines may have this many times the mask's entries."""
SAMPLE = 4096
"""Entries that are looked at before all of them."""


class Lines(NamedTuple):
    """The columns or rows that hold a mask's entries."""

    kind: str
    """``columns`` or ``rows``."""
    which: Tensor
    """Which ones, sorted, (c,), int64."""


def find_lines(positions: Tensor, rows: int, columns: int) -> Lines | None:
    """The columns or rows of a (rows, columns) weight that sorted flat ``positions`` (k,) nearly fill, if there are."""
    k = positions.numel()
    if positions.is_meta or k == 0 or k * SLACK >= rows * columns:
        return None
    for kind, count, across in (("columns", columns, rows), ("rows", rows, columns)):
        most = int(SLACK * k / across) + 2  # partial lines at both ends
        most = min(most, int(0.5 * count))
        where = _line(positions[:: max(1, k // SAMPLE)], kind, columns)
        if where.unique().numel() > most:
            continue
        occurs = torch.bincount(_line(positions, kind, columns), minlength=count)
        if int((occurs > 0).sum()) <= most:
            return Lines(kind, occurs.nonzero().squeeze(1))
    return None


def lines_values_grad(dy: Tensor, kept: Tensor, positions: Tensor, lines: Lines, columns: int) -> Tensor:
    """Gradient of a linear weight's entries at ``positions``, which lie in ``lines``.

    Args:
        dy: (tokens, out_features).
        kept: for columns the chosen input features (tokens, c), for rows the whole input (tokens, in_features).
        positions: sorted flat positions (k,).
        columns: in_features.

    Returns:
        (k,), in fp32 at least.
    """
    row, column = positions.long() // columns, positions.long() % columns
    if lines.kind == "columns":
        small = product(dy, kept)
        column = torch.searchsorted(lines.which, column)
    else:
        small = product(dy.index_select(1, lines.which), kept)
        row = torch.searchsorted(lines.which, row)
    found = small.reshape(-1).index_select(0, row * small.shape[1] + column)
    return found.to(torch.promote_types(torch.float32, dy.dtype))


def _line(positions: Tensor, kind: str, columns: int) -> Tensor:
    return positions.long() % columns if kind == "columns" else positions.long() // columns
