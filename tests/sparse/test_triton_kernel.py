"""The Triton kernel under Triton's interpreter, on the CPU, against the plain reference. No GPU has run it."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.sparse.crop import row_starts
from multiticket.sparse.gradient import linear_reference, linear_values_grad

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    yield
    if before is None:
        del os.environ["TRITON_INTERPRET"]
    else:
        os.environ["TRITON_INTERPRET"] = before


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.sampled_from([0, 1, 7, 128, 129, 300]),
    share=st.floats(0.0, 0.3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    index=st.sampled_from([torch.int32, torch.int64]),
)
def test_the_kernel_gives_the_dense_gradient_at_the_positions(rows, columns, tokens, share, dtype, index):
    generator = torch.Generator().manual_seed(rows)
    k = int(share * rows * columns)
    positions = torch.randperm(rows * columns, generator=generator)[:k].sort().values.to(index)
    dy = torch.randn(tokens, rows, generator=generator).to(dtype)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    found = linear_values_grad(dy, x, positions, row_starts(positions, rows, columns), "triton")
    wanted = linear_reference(dy.double(), x.double(), positions).float()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


def test_on_a_cpu_the_kernel_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    positions = torch.arange(3, dtype=torch.int32)
    with pytest.raises(ValueError, match="on the cpu, where Triton does not run"):
        linear_values_grad(
            torch.ones(2, 3), torch.ones(2, 3), positions, row_starts(positions, 3, 3), "triton"
        )
