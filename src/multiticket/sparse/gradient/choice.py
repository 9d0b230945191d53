"""Which way to a linear weight's gradient is the fastest.

Against the dense product's rows * columns * tokens multiplications, ``native`` and ``sampled`` do density times as
many, each slower, and transpose (rows + columns) * tokens entries. So their time, as a share of the dense product's, is
nearly

    per_edge * (1 / rows + 1 / columns) + per_density * density + constant

whatever the number of tokens. ``python benchmarks/gradient_paths.py --fit`` measures and prints the three numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from multiticket.sparse.gradient import native

METHODS = ("native", "sampled", "blocks")


class Cost(NamedTuple):
    """The time of a way as a share of that of ``blocks``."""

    per_edge: float
    per_density: float
    constant: float

    def share(self, rows: int, columns: int, density: float) -> float:
        return self.per_edge * (1 / rows + 1 / columns) + self.per_density * density + self.constant


CPU_COST = {
    ("native", torch.float32): Cost(per_edge=42.1, per_density=2.37, constant=-0.034),
    ("native", torch.bfloat16): Cost(per_edge=23.9, per_density=2.72, constant=0.011),
    ("sampled", torch.float32): Cost(per_edge=152.5, per_density=3.67, constant=0.066),
    ("sampled", torch.bfloat16): Cost(per_edge=76.7, per_density=5.22, constant=0.329),
}
"""By way and dtype of the operands; ``sampled`` for every other dtype is taken as fp32's. Fitted to 48 cases each, six
shapes at densities from 0.1 % to 10 %, on two cores (``docs/results/gradient_paths.json``)."""


def choose_method(
    device: torch.device,
    rows: int,
    columns: int,
    k: int,
    dtype: torch.dtype = torch.float32,
) -> str:
    """The fastest of ``native``, ``sampled`` and ``blocks`` for a weight (rows, columns) with k entries wanted.

    Off the CPU always ``blocks``: tensor cores do the dense product in less time than k scattered dot products take, in
    each of 84 cases on an H200 (0.5B and 1.5B shapes, densities from 0.01 % to 10 %).
    """
    if device.type != "cpu" or not rows or not columns:
        return "blocks"
    compiled = dtype in native.DTYPES and rows * columns < 2**31 and native.library() is not None
    way = "native" if compiled else "sampled"
    cost = CPU_COST.get((way, dtype), CPU_COST["sampled", torch.float32])
    return way if cost.share(rows, columns, k / (rows * columns)) < 1 else "blocks"


def refuse_method_that_cannot_work(method: str) -> None:
    """Raise ``ValueError`` for a method that does not exist, or that lacks its library or compiler."""
    if method not in ("auto", *METHODS):
        raise ValueError(f"There is no gradient method {method!r}; choose auto, {', '.join(METHODS)}.")
    if method == "native" and native.library() is None:
        raise ValueError(
            "The native gradient needs a C compiler (cc, or the one that CC names); install one, or attach with "
            'gradient="auto".'
        )
