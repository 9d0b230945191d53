"""The product that feeds a masked layer is not kept beside its factors; gradients keep their bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import multiticket as mt
from multiticket.sparse import factored

TOKENS, WIDTH, INNER = 12, 8, 24


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def attached() -> tuple[Gated, mt.Attachment]:
    torch.manual_seed(0)
    model = Gated()
    return model, mt.attach(model, mt.Mask.random(model, 0.5))


def gradients(run) -> dict[str, Tensor]:
    model, attachment = attached()
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    run(model, x).square().sum().backward()
    return {name: values.grad for name, values in attachment.named_parameters()} | {"input": x.grad}


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that were found to be products."""
    found = []
    ask = factored.factors

    def noted(x):
        pair = ask(x)
        if pair is not None:
            found.append(tuple(x.shape))
        return pair

    monkeypatch.setattr("multiticket.sparse.layers.factors", noted)
    return found


def test_multiplied_again_it_gives_the_same_bits(products, monkeypatch):
    with_factors = gradients(lambda model, x: model(x))
    assert products == [(TOKENS, INNER)]
    monkeypatch.setattr("multiticket.sparse.layers.factors", lambda x: None)
    kept = gradients(lambda model, x: model(x))
    assert all(torch.equal(with_factors[name], kept[name]) for name in kept)


def test_the_factors_are_kept_and_not_the_product():
    model, _ = attached()
    x = torch.randn(TOKENS, WIDTH).requires_grad_()
    product = F.silu(model.gate(x)) * model.up(x)
    kept = [t for t in model.down(product).grad_fn.saved_tensors if t.shape == product.shape]
    assert len(kept) == 2
    assert all(t.data_ptr() != product.data_ptr() for t in kept)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_nothing_is_set_off_and_the_bits_are_the_same(reentrant, products):
    plain = gradients(lambda model, x: model(x))
    again = gradients(lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert len(products) == (2 if reentrant else 1)  # reentrant ones compute again without hooks


def test_offloaded_tensors_are_not_asked_for(products):
    with torch.autograd.graph.save_on_cpu():
        gradients(lambda model, x: model(x))
    assert products == []


def test_a_scaled_or_changed_input_is_kept_as_it_is():
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    scale = torch.randn(WIDTH, requires_grad=True)
    assert factored.factors(x * scale) is None  # a vector: several layers read a norm's output
    assert factored.factors(x * 2) is None
    assert factored.factors(x + 1) is None
    assert factored.factors(x) is None
    with torch.no_grad():
        assert factored.factors(x * x) is None
    assert factored.factors(x * x) is not None
