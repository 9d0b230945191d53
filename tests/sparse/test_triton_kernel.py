"""The Triton kernel against its plain reference, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed; it is for Linux alone")

from multiticket.sparse.gradient import linear_reference, linear_values_grad, row_starts
from multiticket.sparse.triton_kernel import sampled_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "k"), [(1, 3, 5, 1), (70, 17, 33, 100), (64, 8, 16, 128)]
)
def test_the_kernel_is_the_reference(dtype, tokens, rows, columns, k):
    generator = torch.Generator().manual_seed(k)
    positions = torch.randperm(rows * columns, generator=generator)[:k].sort().values.int().to(DEVICE)
    dy = torch.randn(tokens, rows, generator=generator).to(DEVICE, dtype)
    x = torch.randn(tokens, columns, generator=generator).to(DEVICE, dtype)
    wanted = linear_reference(dy.double(), x.double(), positions)
    found = sampled_product(dy, x, positions)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * tokens**0.5)
    starts = row_starts(positions, rows, columns)
    assert torch.equal(linear_values_grad(dy, x, positions, starts, "triton"), found)


def test_every_position_and_wide_indices():
    dy, x = torch.randn(9, 6, device=DEVICE), torch.randn(9, 7, device=DEVICE)
    every = torch.arange(42, device=DEVICE)
    torch.testing.assert_close(sampled_product(dy, x, every), (dy.T @ x).flatten(), rtol=1e-5, atol=1e-5)


def test_fp64_is_refused():
    with pytest.raises(ValueError, match="accumulates in fp32"):
        sampled_product(torch.randn(2, 2).double(), torch.randn(2, 2).double(), torch.tensor([0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_attached_model_trains_by_the_kernel():
    import multiticket as mt

    model = torch.nn.Linear(256, 128, device="cuda", dtype=torch.bfloat16)
    attachment = mt.attach(model, mt.Mask.random(model, 0.01), gradient="triton")
    x = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    model(x).sum().backward()
    (values, _) = attachment.parameters()
    assert values.grad is not None
    wanted = linear_reference(
        torch.ones(64, 128).double(), x.cpu().double(), attachment.mask.indices("weight")
    )
    torch.testing.assert_close(values.grad.cpu().double(), wanted, rtol=1e-4, atol=1e-3)
