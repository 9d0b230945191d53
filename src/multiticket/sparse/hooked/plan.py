"""How a linear layer's weight gradient is gathered, decided once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.gradient.blocks import rows_of_a_block
from multiticket.sparse.gradient.factored import Factors, factors
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.tiles import Tiles, tiles_of
from multiticket.sparse.planned import device_of


@dataclass
class LinearPlan:
    """Of one masked linear weight (rows, columns).

    What a hook would hold is the layer's whole input until the backward pass, and its dense gradient for a moment. That
    is too much where the mask needs few columns of the input, where the input is a product that autograd keeps in
    factors anyway, and where the gradient is as large as a vocabulary's.
    """

    tensor: MaskedTensor
    collector: Any
    rows: Tensor | None
    """Rows that the mask touches, if few."""
    columns: Tensor | None
    """Columns that the mask touches, if few."""
    positions: Tensor
    """Within those rows and columns (k,)."""
    complete: bool
    """Whether the mask takes every entry of them: the product is the gradient, and nothing is gathered."""
    narrowing: bool
    """From wider than the model's width back to it: in a gated block, the input is a product, and the widest
    activation."""
    tiles: Tiles | None
    """The blocks of a mask of aligned blocks."""
    bounds: tuple[tuple[int, int, int, int], ...]
    """(row, end_row, begin, end) of each block of rows that is multiplied together, and of its positions."""

    def __post_init__(self) -> None:
        self.dense: Tensor = self.tensor.dense
        """The frozen weight, as it is where this plan was made."""
        self.small = self.method in ("thin", "blocks")
        """Whether a function of ours makes less than the dense gradient at a time, or less than all of it."""
        self._compared = False

    def factors_of(self, x: Tensor) -> Factors | None:
        """What to keep in the place of the layer's input x (..., features); None: x itself.

        To compare x with the product waits for the device, so that on an accelerator it is done until it has held once;
        from then on, a version above 0 is what tells of writes.
        """
        if not self.narrowing:
            return None
        found = factors(x, compare=not self._compared or x.device.type == "cpu")
        self._compared = self._compared or found is not None
        return found

    @property
    def method(self) -> str:
        """Its name: ``thin`` or ``blocks``, ``factors`` (where the input has any), or ``hook``."""
        if self.rows is not None or self.columns is not None or self.tiles is not None:
            return "thin"
        if len(self.bounds) > 1:
            return "blocks"
        return "factors" if self.narrowing else "hook"

    def gather(self, dy: Tensor, x: Tensor) -> None:
        """Put k entries of ``dy^T x`` in their place, from dy (tokens, rows) and x (tokens, columns kept)."""
        if self.tiles is not None:
            self.collector.put(self.tensor, self.tiles.gradient(dy, x), self.tiles.positions)
            return
        if self.rows is not None:
            dy = dy.index_select(1, self.rows)
        if len(self.bounds) == 1:
            gradient = (dy.t() @ x).view(-1)
            self.collector.put(self.tensor, gradient, None if self.complete else self.positions)
            return
        pieces = []
        for row, end_row, begin, end in self.bounds:
            if begin < end:
                block = (dy[:, row:end_row].t() @ x).view(-1)
                inside = (
                    self.positions[begin:end] - row * x.shape[1]
                )  # not kept: that would be the head's again
                pieces.append(block.index_select(0, inside))
        self.collector.put(self.tensor, torch.cat(pieces), None)


def plan_linear(tensor: MaskedTensor, collector: Any, width: int, side: int | None = None) -> LinearPlan:
    """The plan of a masked linear weight.

    Args:
        width: features in which the model embeds tokens; 0: it embeds none.
        side: of the blocks, where the mask is made of square ones.
    """
    crop = tensor.crop
    rows, columns = crop.shape
    step = rows_of_a_block(columns, device_of(tensor.dense))
    edges = [*range(0, rows, step), rows]
    if crop.host_starts.is_meta:  # planned: how many there are in each block is not known
        starts = [edge * crop.positions.numel() // rows for edge in edges]
    else:
        starts = crop.host_starts[torch.tensor(edges)].tolist()
    cropped = crop.rows is not None or crop.columns is not None
    tiles = None if cropped or side is None else tiles_of(tensor.positions, rows, columns, side)
    return LinearPlan(
        tensor=tensor,
        collector=collector,
        rows=crop.rows,
        columns=crop.columns,
        positions=crop.positions,
        complete=crop.positions.numel() == rows * columns,
        tiles=tiles,
        narrowing=max(tensor.shape[0], width) < tensor.shape[1],
        bounds=tuple(zip(edges, edges[1:], starts, starts[1:], strict=False)),
    )
