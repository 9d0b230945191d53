"""Run by test_triton_kernels.py with TRITON_INTERPRET=1, which Triton reads when it is imported: a fresh process.

Prints, as JSON, by case whether the kernels do what torch's indexing does, and how many stores a second write makes.
"""

from __future__ import annotations

import json

import torch

from multiticket.sparse.triton_kernels import BLOCK, Places

DTYPES = [torch.float32, torch.float16, torch.float64]
SHAPES = [((50, 60), 2500), ((7,), 0), ((9, 5), 11), ((40, BLOCK // 8), 2 * BLOCK)]


def made(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Weights, one of more than a block of values and one of none, positions in them, and values for all."""
    generator = torch.Generator().manual_seed(0)
    dense = [torch.randn(shape, generator=generator).to(dtype) for shape, _ in SHAPES]
    positions = [
        torch.randperm(weight.numel(), generator=generator)[:k].sort().values.to(torch.int32)
        for weight, (_, k) in zip(dense, SHAPES, strict=True)
    ]
    values = torch.randn(sum(at.numel() for at in positions), generator=generator).to(
        torch.promote_types(torch.float32, dtype)
    )
    return dense, positions, values


def writes(dtype: torch.dtype) -> bool:
    """Whether one call writes all weights as ``put_`` does, rounded, twice as once, and touches nothing else."""
    dense, positions, values = made(dtype)
    pieces = values.split([at.numel() for at in positions])
    wanted = [
        weight.clone().put_(at.long(), piece.to(dtype))
        for weight, at, piece in zip(dense, positions, pieces, strict=True)
    ]
    places = Places(dense, positions)
    for _ in range(2):
        places.write(values)
    return all(torch.equal(weight, right) for weight, right in zip(dense, wanted, strict=True))


def gathers(dtype: torch.dtype) -> bool:
    """Whether one call takes the entries of all weights as ``take`` does."""
    dense, positions, values = made(dtype)
    out = torch.full_like(values, torch.nan)
    Places(dense, positions).gather(out)
    wanted = torch.cat([weight.take(at.long()) for weight, at in zip(dense, positions, strict=True)])
    return torch.equal(out, wanted.to(out.dtype))


def nothing() -> bool:
    """Whether no values at all is no trouble."""
    places = Places([torch.ones(3)], [torch.zeros(0, dtype=torch.int32)])
    places.write(torch.zeros(0))
    places.gather(torch.zeros(0))
    return True


def main() -> None:
    cases = {f"{what.__name__} {dtype}": what(dtype) for dtype in DTYPES for what in (writes, gathers)}
    print(json.dumps({**cases, "nothing": nothing()}))


if __name__ == "__main__":
    main()
