"""One kernel that writes the values of many weights, each at its own positions.

A block of values belongs to one weight, and finds its weight's memory and positions in tables of addresses. The tables
are made when an address changes, which is when a weight is moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024

_tables: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
"""By the addresses themselves: of the last weights, one set a device."""


@triton.jit
def _scatter(flat, dense_at, positions_at, weight_of, first_of, counts, begins, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    weight = tl.load(weight_of + block)
    index = tl.load(first_of + block) + tl.arange(0, BLOCK)
    inside = index < tl.load(counts + weight)
    dense = tl.load(dense_at + weight).to(flat.dtype)
    positions = tl.load(positions_at + weight).to(tl.pointer_type(tl.int32))
    value = tl.load(flat + tl.load(begins + weight) + index, mask=inside)
    position = tl.load(positions + index, mask=inside, other=0)
    tl.store(dense + position, value, mask=inside)


def scatter(flat: Tensor, places: Sequence[tuple[Tensor, Tensor]]) -> None:
    """``dense.view(-1)[positions] = piece`` for each place and its piece of ``flat``.

    Args:
        flat: the pieces one after the other, in the dtype of the dense weights.
        places: (dense weight, contiguous; its positions (k,), int32), on the device of ``flat``.
    """
    weight_of, *tables = _tables_of(places, flat.device)
    if weight_of.numel():
        dense_at, positions_at, first_of, counts, begins = tables
        _scatter[(weight_of.numel(),)](
            flat, dense_at, positions_at, weight_of, first_of, counts, begins, BLOCK=BLOCK
        )


def _tables_of(places: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, ...]:
    dense_at = [dense.data_ptr() for dense, _ in places]
    positions_at = [at.data_ptr() for _, at in places]
    counts = [at.numel() for _, at in places]
    key = (*dense_at, *positions_at, *counts)
    if key not in _tables:
        _tables.clear()
        blocks = [-(-count // BLOCK) for count in counts]
        weight_of = [weight for weight, number in enumerate(blocks) for _ in range(number)]
        first_of = [BLOCK * block for number in blocks for block in range(number)]
        begins = [sum(counts[:weight]) for weight in range(len(counts))]
        lists = (weight_of, dense_at, positions_at, first_of, counts, begins)
        _tables[key] = tuple(torch.tensor(one, dtype=torch.int64, device=device) for one in lists)
    return _tables[key]
