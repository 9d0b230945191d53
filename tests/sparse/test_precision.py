"""fp32 values over bf16, fp16 and fp32 weights: autocast, gradient scaling, and what rounding hides."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import assert_gradients_are_the_dense_ones
from test_training import loss_of, weights_of
from torch import Tensor, nn
from toy_models import build, tokens

import multiticket as mt
from multiticket.sparse.rounding import RoundingWatch

pytestmark = pytest.mark.usefixtures("path")

HALVES = [torch.bfloat16, torch.float16]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-5, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-5, fused=True),
}


def assert_written_is_rounded(attachment: mt.Attachment, model: nn.Module) -> None:
    weights = weights_of(model)
    for name, values in attachment.named_parameters():
        inside = weights[name].flatten()[attachment.mask.indices(name)]
        assert torch.equal(inside, values.detach().to(inside.dtype))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_values_gradients_and_moments_are_fp32_and_the_weight_is_the_rounded_value(dtype, optimizer):
    model = build("llama", dtype)
    base = weights_of(model)
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = OPTIMIZERS[optimizer](attachment.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, tokens(seed=step)).backward()
        optimizer.step()
        assert_written_is_rounded(attachment, model)
    for values in attachment.parameters():
        held = [values, values.grad, *optimizer.state[values].values()]
        assert {tensor.dtype for tensor in held if isinstance(tensor, Tensor)} == {torch.float32}
    trained = weights_of(model)
    assert {tensor.dtype for tensor in trained.values()} == {dtype}
    for name in base:
        moved = (trained[name] != base[name]).flatten().nonzero().flatten()
        assert torch.isin(moved, attachment.mask.indices(name)).all()


def train_scaled(model: nn.Module, optimizer: torch.optim.Optimizer, restrict, broken: int) -> list[float]:
    """Four steps of fp16 autocast with a scaler; in step ``broken`` the loss overflows. Returns the scales."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scales = []
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model, tokens(seed=step))
        scaler.scale(loss * (float("inf") if step == broken else 1.0)).backward()
        scaler.unscale_(optimizer)
        restrict()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.1)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("broken", [-1, 0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_scaler_scales_skips_and_goes_on(optimizer, broken):
    """Beside dense training restricted to the mask, whose fp16 weight gradients are rounded once more."""
    model = build("qwen2")
    twin, base = copy.deepcopy(model), weights_of(model)
    mask = mt.Mask.random(model, 0.2)
    attachment = mt.attach(model, mask)
    scales = train_scaled(model, OPTIMIZERS[optimizer](attachment.parameters()), lambda: None, broken)

    inside = {}
    for name, parameter in twin.named_parameters():
        flat = torch.zeros(parameter.numel())
        flat[mask.indices(name)] = 1
        inside[name] = flat.view_as(parameter)

    def restrict() -> None:
        for name, parameter in twin.named_parameters():
            parameter.grad = torch.where(inside[name] > 0, parameter.grad, 0.0)

    wanted_scales = train_scaled(twin, OPTIMIZERS[optimizer](twin.parameters()), restrict, broken)
    assert scales == wanted_scales
    assert (scales[broken] < 2.0**10) == (broken == 0)
    trained, wanted = weights_of(model), weights_of(twin)
    moved = max(float((wanted[n] - base[n]).abs().max()) for n in base)
    assert moved > 1e-3
    for name in mask.names:
        places = mask.indices(name)
        torch.testing.assert_close(
            trained[name].flatten()[places], wanted[name].flatten()[places], rtol=0, atol=0.01 * moved
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_changes_no_bit(optimizer):
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = OPTIMIZERS[optimizer](attachment.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights_of(model), [values.detach().clone() for values in attachment.parameters()]
    loss = loss_of(model, tokens())
    scaler.scale(loss * float("inf")).backward()
    watch = RoundingWatch(attachment)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert watch.hidden() == 0
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), weights_of(model).values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], attachment.parameters(), strict=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_over_a_16_bit_base_are_those_of_the_dense_16_bit_model(dtype):
    """Closer than the dense ones to the truth, if anything: those are rounded to 16 bits where they are stored."""
    model = build("qwen2", dtype)
    dense_model = copy.deepcopy(model)
    loss_of(dense_model, tokens()).backward()
    dense = {name: p.grad.flatten() for name, p in dense_model.named_parameters()}
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    loss_of(model, tokens()).backward()
    assert all(values.grad.dtype == torch.float32 for values in attachment.parameters())
    relative = 2 * torch.finfo(dtype).eps
    assert_gradients_are_the_dense_ones(attachment, dense, relative)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_over_a_base_of_another_dtype(dtype):
    """bf16 autocast over fp16 and bf16 weights: the same loss as without an attachment, and finite fp32 gradients."""
    model = build("llama", dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = loss_of(model, tokens())
        attachment = mt.attach(model, mt.Mask.random(model, 0.2))
        loss = loss_of(model, tokens())
    assert torch.equal(loss, wanted)
    loss.backward()
    for values in attachment.parameters():
        assert values.grad.dtype == torch.float32
        assert values.grad.isfinite().all()


@given(
    start=st.floats(0.5, 2.0, width=32),
    exponent=st.integers(-14, -1),
    dtype=st.sampled_from([*HALVES, torch.float32]),
)
def test_hidden_are_the_values_that_moved_and_round_to_the_same(start, exponent, dtype):
    layer = nn.Linear(8, 8, bias=False)
    nn.init.constant_(layer.weight, start)
    layer = layer.to(dtype)
    attachment = mt.attach(layer, mt.Mask.random(layer, 0.5))
    (values,) = attachment.parameters()
    values.requires_grad_(False)
    kept = values.clone()
    watch = RoundingWatch(attachment)
    steps = torch.arange(values.numel()) * 2.0**exponent  # the first does not move
    with torch.no_grad():
        values.add_(steps)
    moved = [i for i in range(values.numel()) if float(values[i]) != float(kept[i])]
    same = [i for i in moved if float(values[i].to(dtype)) == float(kept[i].to(dtype))]
    assert watch.hidden() == float(Fraction(len(same), max(len(moved), 1)))
    if dtype == torch.float32:
        assert watch.hidden() == 0


def test_small_steps_on_a_bf16_base_are_all_hidden_and_large_ones_are_not():
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    nn.init.constant_(layer.weight, 0.5)
    attachment = mt.attach(layer, mt.Mask.random(layer, 0.1))
    (values,) = attachment.parameters()
    for rate, wanted in ((1e-5, 1.0), (1e-1, 0.0)):
        optimizer = torch.optim.SGD([values], lr=rate)
        values.grad = torch.ones_like(values)
        watch = RoundingWatch(attachment)
        optimizer.step()
        assert watch.hidden() == wanted
