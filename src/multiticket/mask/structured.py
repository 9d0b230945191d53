"""Masks of whole columns, rows or blocks, as controls for scattered positions.

Each is another order of a tensor's positions, from which a mask takes the same places as a random one:
int(n * density) positions exactly, parts and nesting as for ``random``. A structure that the budget does not fill
is left partial: at most the first and the last column, row or block of a tensor's part. A tensor with more than
two dimensions counts as a matrix of its last dimension by all others; one with a single dimension has one-entry
columns and rows, so there both are random positions.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from multiticket.mask import random
from multiticket.mask.positions import Device, Positions, Shapes
from multiticket.mask.rule import MaskRule, places

MAX_BLOCKS = 2**26


def select_columns(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """Random input features: all weights that read one feature, feature after feature."""
    rule.only_options()
    return _lines(shapes, rule, by_column=True)


def select_rows(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """Random output features: all weights that write one feature, feature after feature."""
    rule.only_options()
    return _lines(shapes, rule, by_column=False)


def select_blocks(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """Random square blocks of a grid. Option ``size``: the side, 16 by default; blocks at the edge are cut off."""
    rule.only_options("size")
    size = rule.options.get("size", 16)
    if type(size) is not int or size < 1:
        raise ValueError(f"Option size must be a whole number of at least 1, not {size!r}.")
    chosen = {}
    for name, shape in shapes.items():
        start, stop = places(math.prod(shape), rule.share, rule.part)
        rows, columns = matrix(shape) if len(shape) > 1 else (1, math.prod(shape))
        if math.ceil(rows / size) * math.ceil(columns / size) > MAX_BLOCKS:
            raise ValueError(f"{name} has more than {MAX_BLOCKS} blocks of side {size}; use larger blocks.")
        key = random.tensor_key(rule.seed, name, shape, rule.method)
        chosen[name] = Positions(stop - start, partial(_blocks, rows, columns, size, start, stop, key))
    return chosen


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix; a vector is one column."""
    if len(shape) < 2:
        return math.prod(shape), 1
    return math.prod(shape[:-1]), shape[-1]


def _lines(shapes: Shapes, rule: MaskRule, by_column: bool) -> dict[str, Positions]:
    chosen = {}
    for name, shape in shapes.items():
        start, stop = places(math.prod(shape), rule.share, rule.part)
        rows, columns = matrix(shape)
        keys = [
            random.tensor_key(rule.seed, name, shape, f"{rule.method}/{axis}") for axis in ("row", "column")
        ]
        make = partial(_columns if by_column else _rows, rows, columns, start, stop, keys[0], keys[1])
        chosen[name] = Positions(stop - start, make)
    return chosen


def _columns(
    rows: int,
    columns: int,
    start: int,
    stop: int,
    row_key: random.Key,
    column_key: random.Key,
    device: Device,
) -> torch.Tensor:
    place = torch.arange(start, stop, device=device)
    column = random.permuted_at(place // rows, columns, column_key)
    # Rows too are permuted, so that a partial column is not always its first rows.
    row = random.permuted_at(place % rows, rows, row_key)
    return (row * columns + column).sort().values


def _rows(
    rows: int,
    columns: int,
    start: int,
    stop: int,
    row_key: random.Key,
    column_key: random.Key,
    device: Device,
) -> torch.Tensor:
    place = torch.arange(start, stop, device=device)
    row = random.permuted_at(place // columns, rows, row_key)
    column = random.permuted_at(place % columns, columns, column_key)
    return (row * columns + column).sort().values


def _blocks(
    rows: int, columns: int, size: int, start: int, stop: int, key: random.Key, device: Device
) -> torch.Tensor:
    across = math.ceil(columns / size)
    block = random.permuted(math.ceil(rows / size) * across, 0, math.ceil(rows / size) * across, key, device)
    top, left = block // across * size, block % across * size
    height, width = (rows - top).clamp_(max=size), (columns - left).clamp_(max=size)
    ends = (height * width).cumsum(0)
    place = torch.arange(start, stop, device=device)
    which = torch.searchsorted(ends, place, right=True)
    inside = place - (ends - height * width)[which]
    row = top[which] + inside // width[which]
    return (row * columns + left[which] + inside % width[which]).sort().values
