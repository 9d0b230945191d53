"""The sampled product as one Triton kernel: k dot products over the tokens, accumulated in fp32.

Both operands are transposed once, so that an entry (r, c) reads two contiguous rows: row r of ``dy^T`` and row c of
``x^T``. Positions are sorted, so the entries of one program share few rows of ``dy^T``, which the cache holds. Reads
2 k tokens numbers where the dense product computes rows x columns x tokens: on tensor cores the dense product wins
unless the density is a fraction of a percent. Tested under Triton's interpreter on a CPU (TRITON_INTERPRET=1); it has
not run on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 64
"""Entries of one program."""
TOKENS = 64
"""Tokens it takes at a time."""


@triton.jit
def _kernel(
    dy_t,
    x_t,
    positions,
    out,
    k,
    tokens,
    columns,
    ENTRIES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    wanted = entry < k
    position = tl.load(positions + entry, mask=wanted, other=0).to(tl.int64)
    row = (position // columns) * tokens
    column = (position % columns) * tokens
    total = tl.zeros((ENTRIES,), dtype=tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = wanted[:, None] & (token < tokens)[None, :]
        a = tl.load(dy_t + row[:, None] + token[None, :], mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x_t + column[:, None] + token[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(a * b, axis=1)
    tl.store(out + entry, total, mask=wanted)


def sampled_product(dy: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    """Entries of ``dy^T x`` at flat ``positions``.

    Args:
        dy: (tokens, out_features), bf16, fp16 or fp32.
        x: (tokens, in_features), the same dtype.
        positions: (k,), int32 or int64, sorted for speed.

    Returns:
        (k,), fp32.

    Raises:
        ValueError: fp64 operands, which the kernel would round.
    """
    if dy.dtype == torch.float64:
        raise ValueError("The Triton kernel accumulates in fp32; train fp64 weights with gradient='blocks'.")
    out = torch.empty(positions.numel(), dtype=torch.float32, device=dy.device)
    if len(dy) == 0:
        return out.zero_()
    grid = (triton.cdiv(positions.numel(), ENTRIES),)
    _kernel[grid](
        dy.T.contiguous(),
        x.T.contiguous(),
        positions,
        out,
        positions.numel(),
        len(dy),
        x.shape[1],
        ENTRIES=ENTRIES,
        TOKENS=TOKENS,
    )
    return out
