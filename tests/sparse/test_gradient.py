"""Each way to compute the k gradients against its plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.sparse import gradient


def positions_of(rows: int, columns: int, k: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows * columns, generator=generator)[:k].sort().values.to(torch.int32)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.integers(1, 30) | st.sampled_from([gradient.TOKENS, 2 * gradient.TOKENS + 1]),
    share=st.floats(0.0, 1.0),
    method=st.sampled_from(["sampled", "blocks"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_linear_gradient_is_the_dense_one_at_the_positions(rows, columns, tokens, share, method, dtype):
    positions = positions_of(rows, columns, max(1, int(share * rows * columns)), seed=rows)
    starts = gradient.row_starts(positions, rows, columns)
    generator = torch.Generator().manual_seed(columns)
    dy = torch.randn(tokens, rows, generator=generator).to(dtype)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    found = gradient.linear_values_grad(dy, x, positions, starts, method)
    wanted = gradient.linear_reference(dy.double(), x.double(), positions)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5}[
        dtype
    ]  # bf16: summed in fp32
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * tokens**0.5)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_blocks_never_hold_more_than_a_block(monkeypatch):
    monkeypatch.setattr(gradient, "BLOCK_ENTRIES", 64)
    positions = positions_of(50, 16, 100, seed=0)
    dy, x = torch.randn(5, 50), torch.randn(5, 16)
    found = gradient.linear_values_grad(dy, x, positions, gradient.row_starts(positions, 50, 16), "blocks")
    torch.testing.assert_close(found, gradient.linear_reference(dy, x, positions), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    width=st.integers(1, 20),
    count=st.integers(1, 60),
    share=st.floats(0.0, 1.0),
    padded=st.booleans(),
)
def test_embedding_gradient_is_the_dense_one_at_the_positions(rows, width, count, share, padded):
    positions = positions_of(rows, width, max(1, int(share * rows * width)), seed=count)
    starts = gradient.row_starts(positions, rows, width)
    generator = torch.Generator().manual_seed(width)
    tokens = torch.randint(0, rows, (count,), generator=generator)
    dy = torch.randn(count, width, generator=generator, dtype=torch.float64)
    padding = int(tokens[0]) if padded else -1
    found = gradient.embedding_values_grad(dy, tokens, positions, starts, padding)
    wanted = gradient.embedding_reference(dy, tokens, positions, rows, padding)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["sampled", "blocks"])
def test_the_operators_are_registered_as_torch_library_asks(method):
    positions = positions_of(8, 6, 10, seed=0)
    starts = gradient.row_starts(positions, 8, 6)
    checks = ("test_schema", "test_faketensor")
    arguments = (torch.randn(4, 8), torch.randn(4, 6), positions, starts, method)
    torch.library.opcheck(gradient.linear_values_grad, arguments, test_utils=checks)
    tokens = torch.tensor([1, 5, 1, 7])
    arguments = (torch.randn(4, 6), tokens, positions, starts, -1)
    torch.library.opcheck(gradient.embedding_values_grad, arguments, test_utils=checks)
