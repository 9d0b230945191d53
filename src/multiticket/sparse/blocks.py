"""The ``blocks`` way: the dense product a block of rows at a time, each gathered and dropped."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 22
"""Entries of dW held at a time: 16 MiB in fp32."""
BLOCK_OPERAND = 1 << 22
"""Entries of the input cast to fp32 at a time: 16 MiB."""
NARROW = 8
"""With so many times fewer columns than rows (a mask of columns) a CPU multiplies the other way round: the library
packs the left operand, and the whole of dy would take three times as long."""


def blocks(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    """Gradient at sorted ``positions`` (k,) from dy (tokens, rows) and x (tokens, columns); fp32 or fp64."""
    rows, columns = dy.shape[1], x.shape[1]
    per_block = max(1, BLOCK_ENTRIES // columns)
    if rows <= per_block and positions.numel():
        return product(dy, x).view(-1).index_select(0, positions)
    first_rows = list(range(0, rows, per_block))
    bounds = starts[torch.tensor([*first_rows, rows], device=starts.device)].tolist()
    pieces = []
    for row, begin, end in zip(first_rows, bounds, bounds[1:], strict=False):
        if begin < end:
            block = product(dy[:, row : row + per_block], x)
            pieces.append(block.view(-1).index_select(0, positions[begin:end].long() - row * columns))
    if not pieces:
        return torch.zeros(
            positions.shape, dtype=torch.promote_types(torch.float32, dy.dtype), device=dy.device
        )
    return torch.cat(pieces)


def product(dy: Tensor, x: Tensor) -> Tensor:
    """``dy^T x`` (rows, columns), summed and returned in fp32 (fp64 for fp64).

    A bf16 product returned in bf16 is rounded once more than it need be. CUDA returns fp32 from 16-bit operands; a CPU
    does not, so there both are cast, a block of tokens at a time.
    """
    if dy.dtype.itemsize >= 4:
        if dy.device.type == "cpu" and NARROW * x.shape[1] <= dy.shape[1]:
            return (x.T @ dy).T.contiguous()
        return dy.T @ x
    if dy.device.type == "cuda":
        return torch.mm(dy.T, x, out_dtype=torch.float32)
    total = torch.zeros(dy.shape[1], x.shape[1], device=dy.device)
    step = max(1, BLOCK_OPERAND // max(dy.shape[1], x.shape[1]))
    for dy_block, x_block in zip(dy.split(step), x.split(step), strict=True):
        total.addmm_(dy_block.float().T, x_block.float())
    return total
