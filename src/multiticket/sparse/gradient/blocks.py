"""The ``blocks`` way: the dense product a block of rows at a time, each gathered and dropped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 22
"""Entries of dW held at a time on a CPU: 16 MiB in fp32, which its caches nearly hold."""
DEVICE_BLOCK_ENTRIES = 1 << 24
"""On an accelerator, which wants few large products: 64 MiB, more than any layer of a 1.5B model but its head has."""
BLOCK_OPERAND = 1 << 22
"""Entries of the input cast to fp32 at a time: 16 MiB."""
NARROW = 8
"""With so many times fewer columns than rows (a mask of columns) a CPU multiplies the other way round: the library
packs the left operand, and the whole of dy would take three times as long."""
ALIGNED = 64
"""Rows of a block are a multiple of this. A slice of dy that begins between 16-byte lines is multiplied by an old
kernel: on an H200 the head of a 0.5B model took 2.4 times as long in such blocks as in one product."""


def rows_of_a_block(columns: int, device: torch.device) -> int:
    """How many rows of a weight with ``columns`` are multiplied together on ``device``."""
    rows = max(1, (BLOCK_ENTRIES if device.type == "cpu" else DEVICE_BLOCK_ENTRIES) // columns)
    return rows if rows < ALIGNED else rows - rows % ALIGNED


def row_blocks(
    starts: Tensor, columns: int, device: torch.device, most: int | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """(row, end_row, begin, end) of each block of rows of a weight: its rows, and where its positions lie.

    Args:
        starts: ``row_starts`` of the positions; on the host, or every block waits for the device.
        columns: of the weight.
        device: where the products are made, which says how large a block may be.
        most: rows of a block; None: no other bound.
    """
    per_block = rows_of_a_block(columns, device)
    per_block = per_block if most is None else min(per_block, most)
    rows = starts.numel() - 1
    edges = [*range(0, rows, per_block), rows]
    bounds = starts[torch.tensor(edges, device=starts.device)].tolist()
    yield from zip(edges, edges[1:], bounds, bounds[1:], strict=False)


def blocks(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    """Gradient at sorted ``positions`` (k,) from dy (tokens, rows) and x (tokens, columns); fp32 or fp64."""
    rows, columns = dy.shape[1], x.shape[1]
    if rows <= rows_of_a_block(columns, dy.device) and positions.numel():
        return product(dy, x).view(-1).index_select(0, positions)
    pieces = []
    for row, end_row, begin, end in row_blocks(starts, columns, dy.device):
        if begin < end:
            block = product(dy[:, row:end_row], x)
            inside = positions[begin:end]
            pieces.append(block.view(-1).index_select(0, inside - row * columns if row else inside))
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
