"""Optimiser steps on the values are dense steps restricted to the mask, and the dense weight is never stale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toy_models import FAMILIES, build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not n.endswith("__values")}


class RestrictedAdamW:
    """Dense AdamW whose gradients and updates are zeroed outside the mask: the paper's way, kept as the reference."""

    def __init__(self, model: nn.Module, mask: mt.Mask, **options) -> None:
        self.model = model
        self.inside = {}
        for name, parameter in model.named_parameters():
            inside = torch.zeros(parameter.numel(), dtype=torch.bool)
            inside[mask.indices(name)] = True
            self.inside[name] = inside.view_as(parameter)
        self.optimizer = torch.optim.AdamW(model.parameters(), **options)

    def step(self) -> None:
        before = weights_of(self.model)
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.where(self.inside[name], parameter, before[name]))
        self.optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen3_moe"}))
def test_adamw_steps_equal_dense_adamw_restricted_to_the_mask(family, fused):
    model = build(family, torch.float64)
    twin = copy.deepcopy(model)
    start = weights_of(model)
    mask = mt.Mask.random(model, 0.1, seed=3)
    options = {"lr": 1e-2, "weight_decay": 0.1}
    reference = RestrictedAdamW(twin, mask, **options)
    attachment = mt.attach(model, mask)
    optimizer = torch.optim.AdamW(attachment.parameters(), fused=fused, **options)
    for step in range(4):
        for current, trainer in ((model, optimizer), (twin, reference)):
            loss_of(current, tokens(seed=step)).backward()
            trainer.step()
        optimizer.zero_grad()
    trained, wanted = weights_of(model), weights_of(twin)
    for name in start:
        torch.testing.assert_close(trained[name], wanted[name], rtol=1e-8, atol=1e-10)
        moved = (trained[name] != start[name]).flatten().nonzero().flatten()
        assert torch.isin(moved, mask.indices(name)).all(), f"{name} moved outside the mask"
    assert any(not torch.equal(trained[name], start[name]) for name in mask.names)


STEPS = {
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True).step(),
    "foreach adamw": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True).step(),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1).step(),
    "by hand": lambda p: [v.sub_(0.1 * v.grad) for v in p],
    "through .data": lambda p: [v.data.sub_(0.1 * v.grad) for v in p],
    "by assignment": lambda p: [setattr(v, "data", v.data - 0.1 * v.grad) for v in p],
}


@pytest.mark.parametrize("how", STEPS)
@pytest.mark.parametrize("read", ["forward", "attribute", "state_dict"])
def test_a_stale_dense_weight_is_impossible(how, read, path):
    model = build("qwen2")
    ids = tokens()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    name = "model.layers.1.mlp.down_proj.weight"
    original = dict(model.named_parameters())[name].detach().flatten()[attachment.mask.indices(name)].clone()
    loss_of(model, ids).backward()
    with torch.no_grad():
        STEPS[how](list(attachment.parameters()))
    if path == "hooks" and read != "state_dict" and not how.endswith(("adamw", "sgd")):
        attachment.flush()  # there a layer runs nothing of ours that could notice
    down = model.model.layers[1].mlp.down_proj
    if read == "forward":
        down(torch.ones(1, 24))
        dense = down._parameters["weight"]
    elif read == "attribute":
        dense = down.weight
    else:
        dense = model.state_dict()[name]
    values = dict(attachment.named_parameters())[name]
    assert torch.equal(dense.detach().flatten()[attachment.mask.indices(name)], values.detach())
    assert not torch.equal(values.detach(), original)


def test_a_change_between_forward_and_backward_raises():
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    loss = loss_of(model, tokens())
    with torch.no_grad():
        for values in attachment.parameters():
            values.add_(1.0)
    attachment.flush()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_small_steps_are_not_lost_under_bf16_weights():
    """200 steps of 1e-5 move a weight near 1 by 2e-3: invisible step by step in bf16, half an ulp in sum."""
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(0.5)
    attachment = mt.attach(layer, mt.Mask.random(layer, 0.1))
    (values,) = attachment.parameters()
    assert values.dtype == torch.float32
    optimizer = torch.optim.SGD([values], lr=1e-5)
    for _ in range(200):
        values.grad = torch.ones_like(values)
        optimizer.step()
    torch.testing.assert_close(values.detach(), torch.full_like(values, 0.498), rtol=0, atol=1e-5)
    inside = layer.weight.detach().flatten()[attachment.mask.indices("weight")]
    assert (inside == torch.tensor(0.498).bfloat16()).all()
    assert (inside != 0.5).all()


def test_clipping_and_schedulers_see_the_values_alone():
    model = build("llama")
    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert held == attachment.nnz
    loss_of(model, tokens()).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    own = torch.stack([values.grad.norm() for values in attachment.parameters()]).norm()
    assert float(own) == pytest.approx(1e-3, rel=1e-2)
    assert float(norm) > 1e-3


def test_the_same_steps_twice_give_the_same_bits():
    def run() -> list[Tensor]:
        model = build("qwen3_moe")
        attachment = mt.attach(model, mt.Mask.random(model, 0.1))
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2, fused=True)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, tokens(seed=step)).backward()
            optimizer.step()
        return [values.detach() for values in attachment.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
