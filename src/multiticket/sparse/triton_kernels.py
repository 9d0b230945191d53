"""Two kernels for many weights at once: write all values into their places, gather all gradients from theirs.

A block of values belongs to one weight, and finds its weight's memory and positions in tables of addresses. On a
machine without a GPU they run under Triton's interpreter, which the tests do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _write(flat, like, dense_at, positions_at, weight_of, first_of, counts, begins, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    weight = tl.load(weight_of + block)
    index = tl.load(first_of + block) + tl.arange(0, BLOCK)
    inside = index < tl.load(counts + weight)
    dense = tl.load(dense_at + weight).to(like.dtype)
    positions = tl.load(positions_at + weight).to(tl.pointer_type(tl.int32))
    position = tl.load(positions + index, mask=inside, other=0)
    value = tl.load(flat + tl.load(begins + weight) + index, mask=inside, other=0.0).to(like.dtype.element_ty)
    held = tl.load(dense + position, mask=inside, other=0.0)
    tl.store(dense + position, value, mask=inside & (value != held))


@triton.jit
def _gather(out, like, dense_at, positions_at, weight_of, first_of, counts, begins, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    weight = tl.load(weight_of + block)
    index = tl.load(first_of + block) + tl.arange(0, BLOCK)
    inside = index < tl.load(counts + weight)
    dense = tl.load(dense_at + weight).to(like.dtype)
    positions = tl.load(positions_at + weight).to(tl.pointer_type(tl.int32))
    position = tl.load(positions + index, mask=inside, other=0)
    taken = tl.load(dense + position, mask=inside, other=0.0)
    tl.store(out + tl.load(begins + weight) + index, taken.to(out.dtype.element_ty), mask=inside)


class Places:
    """Where the values of many weights lie, as tables on their device.

    Args:
        dense: contiguous tensors of one dtype on one device.
        positions: of each, where its values belong (k,), int32.

    Raises:
        ValueError: a tensor is not contiguous, or positions are not int32.
    """

    def __init__(self, dense: Sequence[Tensor], positions: Sequence[Tensor]) -> None:
        if any(not tensor.is_contiguous() for tensor in dense) or any(
            at.dtype != torch.int32 for at in positions
        ):
            raise ValueError("The kernels take contiguous weights and int32 positions.")
        self._held = (*dense, *positions)  # addresses stay theirs
        counts = [at.numel() for at in positions]
        blocks = [-(-count // BLOCK) for count in counts]
        lists = (
            [tensor.data_ptr() for tensor in dense],
            [at.data_ptr() for at in positions],
            [weight for weight, number in enumerate(blocks) for _ in range(number)],
            [BLOCK * block for number in blocks for block in range(number)],
            counts,
            [sum(counts[:weight]) for weight in range(len(counts))],
        )
        self.blocks = sum(blocks)
        if self.blocks:
            self._like = dense[0]
            self._tables = [torch.tensor(one, dtype=torch.int64, device=dense[0].device) for one in lists]

    def write(self, flat: Tensor) -> None:
        """``dense.view(-1)[positions] = piece.to(dense.dtype)`` for each weight and its piece of ``flat``.

        Stores only what differs, so that what is written twice costs reads alone, and nothing need be compared first.

        Args:
            flat: the pieces one after the other, in any floating-point dtype.
        """
        if self.blocks:
            _write[(self.blocks,)](flat, self._like, *self._tables, BLOCK=BLOCK)

    def gather(self, out: Tensor) -> None:
        """The other way: each weight's entries at its positions, into its piece of ``out``, in the dtype of ``out``."""
        if self.blocks:
            _gather[(self.blocks,)](out, self._like, *self._tables, BLOCK=BLOCK)
