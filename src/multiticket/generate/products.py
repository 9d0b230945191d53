"""Which of torch's two CPU libraries multiplies fp32 matrices: MKL, or oneDNN where that is as exact.

MKL runs its AVX2 code on processors of other makers than Intel, and oneDNN their AVX-512: measured on two cores of an
AMD EPYC, a product of (64, 896) and (896, 4864) takes 3.5 ms by MKL and 1.5 ms by oneDNN, one of 1,500 rows 60 and 28.
torch takes oneDNN for fp32 where products in bf16 are allowed. A processor that has such products with matrix tiles
(AMX) then rounds to bf16, and others compute in fp32 all the same: that is measured, on one small product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

EXACT = 1e-5
"""The largest relative error that counts as fp32; rounding to bf16 gives a few 1e-3."""


@contextmanager
def fast_products() -> Iterator[None]:
    """fp32 products by oneDNN where they stay fp32; nothing changes elsewhere, nor where somebody has chosen."""
    precision: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(precision, "fp32_precision", None)
    if before not in ("none", "ieee") or not onednn_is_exact():
        yield
        return
    precision.fp32_precision = "bf16"
    try:
        yield
    finally:
        precision.fp32_precision = before


@cache
def onednn_is_exact() -> bool:
    """Whether this processor's oneDNN computes fp32 products in fp32 although bf16 is allowed."""
    precision: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not torch.backends.mkldnn.is_available() or not hasattr(precision, "fp32_precision"):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(128, 128, generator=generator) for _ in range(2))
    before = precision.fp32_precision
    try:
        precision.fp32_precision = "bf16"
        found = a @ b
    finally:
        precision.fp32_precision = before
    exact = a.double() @ b.double()
    return bool((found - exact).norm() <= EXACT * exact.norm())
