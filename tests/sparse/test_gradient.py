"""Each way to compute a linear weight's k gradients against the plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import positions_of

from multiticket.sparse.gradient import blocks, sampled
from multiticket.sparse.gradient import linear as gradient
from multiticket.sparse.gradient.choice import Cost, choose_method
from multiticket.sparse.gradient.crop import row_starts


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.integers(1, 30),
    share=st.floats(0.0, 1.0),
    method=st.sampled_from(["native", "sampled", "blocks"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_linear_gradient_is_the_dense_one_at_the_positions(rows, columns, tokens, share, method, dtype):
    """To the accuracy of fp32 sums even in 16 bits, whose operands are taken as they are."""
    positions = positions_of(rows, columns, max(1, int(share * rows * columns)), seed=rows)
    starts = row_starts(positions, rows, columns)
    generator = torch.Generator().manual_seed(columns)
    dy = torch.randn(tokens, rows, generator=generator).to(dtype)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    found = gradient.linear_values_grad(dy, x, positions, starts, method)
    wanted = gradient.linear_reference(dy.double(), x.double(), positions)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * tokens**0.5)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("method", ["native", "sampled", "blocks"])
def test_16_bit_gradients_are_more_exact_than_dense_autograd(method):
    """The plain control rounds its result to bf16, by one part in 256 or so; here only fp32 sums round."""
    positions = positions_of(64, 48, 300, seed=0)
    torch.manual_seed(0)
    weight = torch.randn(64, 48).bfloat16().requires_grad_()
    x, dy = torch.randn(500, 48).bfloat16(), torch.randn(500, 64).bfloat16()
    torch.nn.functional.linear(x, weight).backward(dy)
    wanted = gradient.linear_reference(dy.double(), x.double(), positions)
    control = (weight.grad.flatten()[positions.long()].double() - wanted).norm() / wanted.norm()
    found = gradient.linear_values_grad(dy, x, positions, row_starts(positions, 64, 48), method)
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < 1e-6 < 1e-4 < control


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_and_of_tokens_add_up(dtype, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 64)
    monkeypatch.setattr(blocks, "BLOCK_OPERAND", 128)
    monkeypatch.setattr(sampled, "BLOCK_OPERAND", 1)
    monkeypatch.setattr(sampled, "LEAST_TOKENS", 7)
    positions = positions_of(50, 16, 100, seed=0)
    positions = positions[(positions // 16) % 9 > 4]  # whole blocks of rows without an entry
    dy, x = torch.randn(40, 50).to(dtype), torch.randn(40, 16).to(dtype)
    wanted = gradient.linear_reference(dy.double(), x.double(), positions).float()
    for method in ("native", "sampled", "blocks"):
        found = gradient.linear_values_grad(dy, x, positions, row_starts(positions, 50, 16), method)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["native", "sampled", "blocks"])
def test_without_entries_or_tokens_the_gradient_is_empty_or_zero(method):
    nothing = torch.zeros(0, dtype=torch.int32)
    dy, x = torch.randn(4, 8), torch.randn(4, 6)
    assert gradient.linear_values_grad(dy, x, nothing, row_starts(nothing, 8, 6), method).shape == (0,)
    positions = positions_of(8, 6, 10, seed=0)
    found = gradient.linear_values_grad(dy[:0], x[:0], positions, row_starts(positions, 8, 6), method)
    assert torch.equal(found, torch.zeros(10))


@pytest.mark.parametrize("method", ["native", "sampled", "blocks"])
def test_the_operator_is_registered_as_torch_library_asks(method):
    positions = positions_of(8, 6, 10, seed=0)
    arguments = (torch.randn(4, 8), torch.randn(4, 6), positions, row_starts(positions, 8, 6), method)
    torch.library.opcheck(
        gradient.linear_values_grad, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_k_dot_products_are_chosen_for_large_and_sparse_weights_on_a_cpu(compiled, monkeypatch):
    monkeypatch.setattr("multiticket.sparse.gradient.native.library", lambda: object() if compiled else None)
    cpu = torch.device("cpu")
    assert choose_method(cpu, 2048, 512, 10_486) == ("native" if compiled else "sampled")
    assert choose_method(cpu, 8192, 512, 41_943, torch.float16) == "sampled"
    assert choose_method(cpu, 2048, 512, 2048 * 512 // 2) == "blocks"
    assert choose_method(cpu, 16, 512, 81) == "blocks"
    assert choose_method(torch.device("cuda"), 2048, 512, 10_486) == "blocks"


@given(rows=st.integers(1, 10**6), columns=st.integers(1, 10**6), density=st.floats(0, 0.5))
def test_a_larger_or_sparser_weight_never_makes_sampling_dearer(rows, columns, density):
    cost = Cost(40.0, 6.0, 0.05)
    assert cost.share(rows + 1, columns, density) <= cost.share(rows, columns, density)
    assert cost.share(rows, columns, density / 2) <= cost.share(rows, columns, density)
