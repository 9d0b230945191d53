"""Which way to a linear weight's gradient is the faster, as measured.

Against the dense product's rows * columns * tokens multiplications, ``sampled`` does density times as many, each
slower, and copies (rows + columns) * tokens entries. So its time, as a share of the dense product's, is nearly

    per_edge * (1 / rows + 1 / columns) + per_density * density + constant

whatever the number of tokens. ``python benchmarks/gradient_paths.py --fit`` measures and prints the three numbers.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch

METHODS = ("sampled", "blocks", "triton")


class Cost(NamedTuple):
    """The time of ``sampled`` as a share of that of ``blocks``."""

    per_edge: float
    per_density: float
    constant: float

    def share(self, rows: int, columns: int, density: float) -> float:
        return self.per_edge * (1 / rows + 1 / columns) + self.per_density * density + self.constant


CPU_COST = {
    torch.float32: Cost(per_edge=43.0, per_density=6.0, constant=0.05),
}
"""By dtype of the operands; others use fp32's. Laid by hand through five shapes at 1 % and 1,024 tokens (fp32, one
core, 0.64 to 0.90 at 128 x 128, 0.31 at 512 x 512, 0.21 at 2048 x 512, 0.18 at 8192 x 512)."""


def choose_method(
    device: torch.device, rows: int, columns: int, k: int, dtype: torch.dtype = torch.float32
) -> str:
    """``sampled`` or ``blocks``, whichever is the faster for a weight (rows, columns) with k entries wanted.

    Off the CPU always ``blocks``: ``triton`` has not been measured on a GPU, so it is used only where it is asked for.
    """
    if device.type != "cpu" or not rows or not columns:
        return "blocks"
    cost = CPU_COST.get(dtype, CPU_COST[torch.float32])
    return "sampled" if cost.share(rows, columns, k / (rows * columns)) < 1 else "blocks"


def refuse_method_that_cannot_work(method: str) -> None:
    """Raise ``ValueError`` for a method that does not exist, or whose library is not installed."""
    if method not in ("auto", *METHODS):
        raise ValueError(f"There is no gradient method {method!r}; choose auto, {', '.join(METHODS)}.")
    if method == "triton" and find_spec("triton") is None:
        raise ValueError('Triton is not installed; install it, or attach with gradient="auto".')
