"""Run by test_triton_kernel.py with TRITON_INTERPRET=1, which Triton reads when it is imported: a fresh process.

Prints, as JSON, the largest error of each case relative to the largest gradient, and the result's dtype; and whether
``scatter`` writes what ``index_copy`` does.
"""

from __future__ import annotations

import itertools
import json

import torch

from multiticket.sparse import triton_kernel
from multiticket.sparse.crop import row_starts
from multiticket.sparse.gradient import linear_reference, linear_values_grad
from multiticket.sparse.triton_scatter import scatter

SHAPES = [(1, 1), (1, 37), (40, 3), (33, 17)]
TOKENS = [1, 129, 300]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def error(rows: int, columns: int, tokens: int, k: int, dtype: torch.dtype, index: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(rows + tokens)
    positions = torch.randperm(rows * columns, generator=generator)[:k].sort().values.to(index)
    dy = torch.randn(tokens, rows, generator=generator).to(dtype)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    found = linear_values_grad(dy, x, positions, row_starts(positions, rows, columns), "triton")
    wanted = linear_reference(dy.double(), x.double(), positions)
    assert found.shape == wanted.shape
    worst = (
        ((found - wanted).abs().max() / wanted.abs().max()).item()
        if wanted.any()
        else found.abs().sum().item()
    )
    return {"error": worst, "dtype": str(found.dtype), "case": f"{rows} x {columns}, {tokens}, {k}, {dtype}"}


def scattered(dtype: torch.dtype) -> bool:
    """Whether one call writes three weights, one of more than a block of values and one of none, as index_copy does."""
    generator = torch.Generator().manual_seed(0)
    places, wanted, pieces = [], [], []
    for shape, k in (((50, 60), 2500), ((7,), 0), ((9, 5), 11)):
        dense = torch.randn(shape, generator=generator).to(dtype)
        size = dense.numel()
        at = torch.randperm(size, generator=generator)[:k].sort().values.to(torch.int32)
        piece = torch.randn(k, generator=generator).to(dtype)
        wanted.append(dense.flatten().index_copy(0, at.long(), piece).view(shape))
        places.append((dense, at))
        pieces.append(piece)
    for _ in range(2):  # the second time with the tables of the first
        scatter(torch.cat(pieces), places)
    return all(torch.equal(dense, right) for (dense, _), right in zip(places, wanted, strict=True))


def main() -> None:
    cases = []
    for (rows, columns), tokens, dtype in itertools.product(SHAPES, TOKENS, DTYPES):
        for share, index in ((0.06, torch.int32), (1.0, torch.int64)):
            k = max(1, min(70, int(share * rows * columns)))
            cases.append(error(rows, columns, tokens, k, dtype, index))
    cases.append(error(5, 4, 0, 3, torch.float32, torch.int32))
    triton_kernel.SLAB_BYTES = 1  # a block of tokens at a time
    cases.append(error(40, 3, 300, 70, torch.bfloat16, torch.int32))
    nothing = torch.zeros(0, dtype=torch.int32)
    empty = linear_values_grad(
        torch.ones(2, 5), torch.ones(2, 4), nothing, row_starts(nothing, 5, 4), "triton"
    )
    scatters = [scattered(dtype) for dtype in DTYPES]
    print(json.dumps({"cases": cases, "empty": list(empty.shape), "scatters": scatters}))


if __name__ == "__main__":
    main()
