from __future__ import annotations

from typing import Any

import pytest
import torch

from multiticket.generate import products
from multiticket.generate.products import fast_products, onednn_is_exact

MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)


def test_products_stay_fp32() -> None:
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    exact = a.double() @ b.double()
    with fast_products():
        assert (a @ b - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.skipif(MATMUL is None, reason="this torch has no such setting")
def test_the_setting_is_put_back_and_a_users_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    before = MATMUL.fp32_precision
    with fast_products():
        assert MATMUL.fp32_precision == "bf16"
    assert MATMUL.fp32_precision == before
    MATMUL.fp32_precision = "tf32"
    try:
        with fast_products():
            assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = before


@pytest.mark.skipif(MATMUL is None, reason="this torch has no such setting")
def test_a_processor_that_rounds_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **named: _Rounded(rounding(*size, **named)))
    onednn_is_exact.cache_clear()
    try:
        assert not onednn_is_exact()
        before = MATMUL.fp32_precision
        with fast_products():
            assert MATMUL.fp32_precision == before
    finally:
        onednn_is_exact.cache_clear()


class _Rounded:
    """A matrix whose products are computed in bf16."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __matmul__(self, other: Any) -> Any:
        return (self.values.bfloat16() @ other.values.bfloat16()).float()

    def double(self) -> Any:
        return self.values.double()
