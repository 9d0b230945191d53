"""A masked vector: its products give the gradients of the plain one's, and keep k columns; all else is the view."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import multiticket as mt
from multiticket.plan.memory import plan
from multiticket.plan.workload import Workload
from multiticket.sparse.autograd import masked_vector
from multiticket.sparse.autograd.masked_vector import MaskedVector


class Norm(nn.Module):
    """RMSNorm as most models write it."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.way == "mul":
            return torch.mul(x, self.weight)
        if self.way == "plus one":
            return x * (1 + self.weight)
        if self.way == "cast":
            return self.weight.double() * x
        return self.weight * x if self.way == "left" else x * self.weight


WAYS = ["left", "right", "mul", "plus one", "cast"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 5, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_the_plain_ones(way, shape, dtype):
    torch.manual_seed(0)
    norm, plain = Norm(40, way).to(dtype), Norm(40, way).to(dtype)
    attachment = mt.attach(norm, mt.Mask.random(norm, 0.2))
    x = torch.randn(shape, dtype=dtype)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = norm(first), plain(second)
    assert torch.equal(ours, theirs)
    assert type(ours) is torch.Tensor
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    [values] = attachment.parameters()
    wanted = plain.weight.grad[attachment.mask.indices("weight")]
    torch.testing.assert_close(values.grad, wanted.to(values.dtype), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-5, atol=1e-6)


def test_16_bit_gradients_are_summed_in_fp32():
    torch.manual_seed(0)
    norm, exact = Norm(40, "left").bfloat16(), Norm(40, "left").double()
    exact.weight.data.copy_(norm.weight.data)
    attachment = mt.attach(norm, mt.Mask.random(norm, 0.2))
    x = torch.randn(3000, 40).bfloat16()
    scaled, dy = x * 1, torch.randn(3000, 40).bfloat16()
    (norm.weight * scaled).backward(dy)
    wanted = (dy.double() * scaled.double()).sum(0)[attachment.mask.indices("weight")]
    [values] = attachment.parameters()
    torch.testing.assert_close(values.grad.double(), wanted, rtol=1e-5, atol=1e-4)


def test_of_what_is_scaled_only_k_columns_are_kept():
    norm = Norm(400, "left")
    mt.attach(norm, mt.Mask.random(norm, 0.01))
    kept = []
    x = torch.randn(9, 400, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        norm.weight * x
    assert sorted(kept) == [(9, 4), (400,)]


def test_anything_else_is_the_plain_view():
    norm = Norm(40, "left")
    mt.attach(norm, mt.Mask.random(norm, 0.2))
    vector = norm.weight
    assert isinstance(vector, MaskedVector)
    others = [vector + 1, vector * vector, vector * 2, vector.sum(), vector * torch.ones(3, 40).double()]
    for other in others:
        assert type(other) is torch.Tensor
        assert other.requires_grad
    with torch.no_grad():
        assert type(norm.weight * torch.ones(3, 40)) is torch.Tensor
        assert not (norm.weight * torch.ones(3, 40)).requires_grad


def test_a_model_keeps_less_for_its_backward_pass(monkeypatch):
    """Why there are products of columns at all: they take as long as the plain ones."""

    def kept() -> int:
        workload = Workload("tiny-qwen2", tokens=128, dtype="float32", arms=("ticket",), device="cpu")
        return plan(workload).arms[0].activations

    ours = kept()
    monkeypatch.setattr(masked_vector, "PRODUCTS", frozenset())
    assert ours < 0.85 * kept()
