"""The ``triton`` way: k dot products on a CUDA device, also tested under Triton's interpreter.

Both operands are transposed once, so that each dot product reads two contiguous rows. Positions are sorted row-major:
a program's positions are neighbours, mostly in one row of dy^T, which then comes from the cache, while the columns of x
come from anywhere; so many tokens are taken at a time as leave x^T in the device's L2 cache. Sums are fp32.

On an H200 tensor cores do the dense product in less time than the transposes here take, so nothing chooses this way by
itself; ``attach(gradient="triton")`` does.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_POSITIONS, BLOCK_TOKENS, WARPS = 32, 128, 4
SLAB_BYTES = 1 << 24
"""Of x^T read over and over at a time: a third of the L2 cache of an H100."""


@triton.jit
def _dot_products(
    dy_t,
    x_t,
    positions,
    out,
    k,
    columns,
    tokens,
    begin,
    end,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    wanted = index < k
    position = tl.load(positions + index, mask=wanted, other=0)
    # 64 bits from here: features x tokens may pass 2^31 where the positions do not.
    row = (position // columns).to(tl.int64) * tokens
    column = (position % columns).to(tl.int64) * tokens
    total = tl.zeros((BLOCK_POSITIONS,), dtype=tl.float32)
    for first in range(begin, end, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        inside = wanted[:, None] & (token < end)[None, :]
        left = tl.load(dy_t + row[:, None] + token[None, :], mask=inside, other=0.0)
        right = tl.load(x_t + column[:, None] + token[None, :], mask=inside, other=0.0)
        total += tl.sum(left.to(tl.float32) * right.to(tl.float32), axis=1)
    if begin > 0:
        total += tl.load(out + index, mask=wanted, other=0.0)
    tl.store(out + index, total, mask=wanted)


def dot_products(dy: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    """Gradient at sorted ``positions`` (k,) from dy (tokens, rows) and x (tokens, columns); fp32.

    Args:
        dy, x: bf16, fp16 or fp32, of one dtype.
        positions: int32 or int64.

    Raises:
        ValueError: the operands are not on a CUDA device.
    """
    if dy.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'The weights are on the {dy.device.type}, where Triton does not run; attach with gradient="auto".'
        )
    k, tokens = positions.numel(), dy.shape[0]
    out = torch.zeros(k, dtype=torch.float32, device=dy.device)
    if k and tokens:
        dy_t, x_t = dy.t().contiguous(), x.t().contiguous()
        columns = x.shape[1]
        slab = max(1, SLAB_BYTES // (columns * x.element_size() * BLOCK_TOKENS)) * BLOCK_TOKENS
        for begin in range(0, tokens, slab):
            _dot_products[(triton.cdiv(k, BLOCK_POSITIONS),)](
                dy_t,
                x_t,
                positions,
                out,
                k,
                columns,
                tokens,
                begin,
                min(begin + slab, tokens),
                BLOCK_POSITIONS=BLOCK_POSITIONS,
                BLOCK_TOKENS=BLOCK_TOKENS,
                num_warps=WARPS,
            )
    return out
