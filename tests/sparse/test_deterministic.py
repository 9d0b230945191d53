"""Under ``torch.use_deterministic_algorithms`` everything trains, and to the same values."""

from __future__ import annotations

import pytest
import torch
from toy_models import build, tokens

import multiticket as mt
from multiticket.mask.put import put

pytestmark = pytest.mark.usefixtures("path")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def trained(dtype: torch.dtype, lying: bool) -> list[torch.Tensor]:
    """Values after three steps; with `lying`, of weights that do not lie in one piece."""
    torch.manual_seed(0)
    model = build("qwen2", dtype)
    if lying:
        for layer in model.model.layers:
            for linear in (layer.mlp.up_proj, layer.self_attn.q_proj):
                linear.weight.data = linear.weight.data.t().contiguous().t()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    for _ in range(3):
        model(tokens()).logits.float().logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    attachment.flush()
    return [values.detach().clone() for values in attachment.parameters()]


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_is_allowed_and_the_same(dtype, lying, request):
    wanted = trained(dtype, lying)
    request.getfixturevalue("deterministic")
    for ours, theirs in zip(trained(dtype, lying), wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("turned", [False, True])
def test_entries_are_put_where_put_puts_them(turned, deterministic):
    torch.use_deterministic_algorithms(False)
    dense = torch.arange(35.0).view(5, 7)
    dense = dense.t() if turned else dense
    flat, content = torch.tensor([0, 3, 34, 17], dtype=torch.int32), torch.tensor([-1.0, -2.0, -3.0, -4.0])
    wanted = dense.clone().put_(flat.long(), content)
    torch.use_deterministic_algorithms(True)
    assert torch.equal(put(dense, flat, content), wanted)
