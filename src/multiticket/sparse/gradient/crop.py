"""The part of a weight that a mask touches: masks of whole columns or rows, and very sparse ones, leave most out.

The gradient at the positions is that of the smaller weight made of the touched rows and columns alone. A linear layer
then keeps only the touched input features for its backward pass, and the rest of the activation is freed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MOST_TOUCHED = 0.2
"""Above this share of touched lines, nothing is cropped: copying them would cost what it saves."""


@dataclass(frozen=True)
class Crop:
    """A mask's positions, told within the rows and columns that it touches."""

    shape: tuple[int, int]
    """Of the cropped weight."""
    positions: Tensor
    """Sorted flat positions in it (k,)."""
    starts: Tensor
    """Its ``row_starts``."""
    rows: Tensor | None
    """Which rows of the weight it has, ascending, int32; None for all."""
    columns: Tensor | None
    """Which columns, ascending, int32; None for all."""
    host_starts: Tensor
    """``starts`` in the host's memory, where a loop over blocks of rows reads them without waiting for the device."""

    def along(self, positions: Tensor, starts: Tensor) -> Crop:
        """The same on the device of the weight's ``positions`` and ``starts``, which are its own if it has all."""
        if self.rows is None and self.columns is None:
            return replace(self, positions=positions, starts=starts)
        device = positions.device
        rows, columns = (None if axis is None else axis.to(device) for axis in (self.rows, self.columns))
        positions, starts = self.positions.to(device), self.starts.to(device)
        return Crop(self.shape, positions, starts, rows, columns, self.host_starts)


def row_starts(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Where each row's entries start in sorted ``positions``: (rows + 1,), the row pointers of a CSR matrix."""
    edges = torch.arange(rows + 1, device=positions.device, dtype=torch.int64) * columns
    return torch.searchsorted(positions.long(), edges).to(positions.dtype)


def crop(positions: Tensor, starts: Tensor, rows: int, columns: int) -> Crop:
    """The crop of a (rows, columns) weight to what sorted ``positions`` (k,) touch.

    What counts is the positions, not the rule that made them: a mask of columns that its budget does not fill has a
    partial column, and any mask of few enough entries leaves lines untouched. A share of touched lines above
    ``MOST_TOUCHED`` leaves that axis whole. Order is kept, so that the k entries stay in their places.
    """
    if positions.is_meta:  # planned, not attached: which lines are touched is not known
        return Crop((rows, columns), positions, starts, None, None, starts)
    touched_rows = _if_few((starts[1:] > starts[:-1]).nonzero().flatten(), rows)
    seen = torch.zeros(columns, dtype=torch.bool, device=positions.device)
    seen[(positions % columns).long()] = True
    touched_columns = _if_few(seen.nonzero().flatten(), columns)
    if touched_rows is None and touched_columns is None:
        return Crop((rows, columns), positions, starts, None, None, starts.cpu())
    row, column = (positions // columns).long(), (positions % columns).long()
    if touched_rows is not None:
        row = torch.searchsorted(touched_rows, row)
        rows = touched_rows.numel()
    if touched_columns is not None:
        column = torch.searchsorted(touched_columns, column)
        columns = touched_columns.numel()
    inside = (row * columns + column).to(positions.dtype)
    starts = row_starts(inside, rows, columns)
    return Crop(
        (rows, columns), inside, starts, _narrow(touched_rows), _narrow(touched_columns), starts.cpu()
    )


def _if_few(touched: Tensor, lines: int) -> Tensor | None:
    return touched if 0 < touched.numel() <= MOST_TOUCHED * lines else None


def _narrow(lines: Tensor | None) -> Tensor | None:
    return None if lines is None else lines.int()
