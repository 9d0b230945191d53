"""Low precision, loss scaling, other optimisers and accelerate, each beside dense training restricted to the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from test_training import loss_of, weights_of
from torch import nn
from toy_models import build, tokens

import multiticket as mt


def masked_gradients(model: nn.Module, mask: mt.Mask) -> None:
    """Zero every gradient outside the mask: what an elementwise optimiser then does inside is what a ticket does."""
    for name, parameter in model.named_parameters():
        inside = torch.zeros(parameter.numel(), dtype=torch.bool)
        if name in mask.names:
            inside[mask.indices(name)] = True
        parameter.grad[~inside.view_as(parameter)] = 0


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, weight_decay=0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_elementwise_optimisers_do_inside_the_mask_what_they_do_to_dense_weights(name):
    model = build("qwen2", torch.float64)
    twin = copy.deepcopy(model)
    mask = mt.Mask.random(model, 0.1)
    attachment = mt.attach(model, mask)
    optimizer, reference = OPTIMIZERS[name](attachment.parameters()), OPTIMIZERS[name](twin.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    other = torch.optim.lr_scheduler.ExponentialLR(reference, 0.9)
    start = weights_of(model)
    for step in range(3):
        loss_of(model, tokens(seed=step)).backward()
        loss_of(twin, tokens(seed=step)).backward()
        masked_gradients(twin, mask)
        nn.utils.clip_grad_norm_(attachment.parameters(), 0.5)
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for current, rate in ((optimizer, scheduler), (reference, other)):
            current.step()
            rate.step()
            current.zero_grad()
    trained, wanted = weights_of(model), weights_of(twin)
    assert max(float((trained[n] - start[n]).abs().max()) for n in start) > 1e-4
    for tensor in trained:
        torch.testing.assert_close(trained[tensor], wanted[tensor], rtol=1e-8, atol=1e-10)


def test_loss_scaling_trains_the_same_and_skips_a_step_that_overflows():
    torch.manual_seed(0)
    model = build("qwen2")
    twin = copy.deepcopy(model)
    mask = mt.Mask.random(model, 0.1)
    plain, scaled = mt.attach(twin, mask), mt.attach(model, mask)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        reference.zero_grad()
        loss_of(twin, tokens(seed=step)).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        reference.step()
        optimizer.zero_grad()
        scaler.scale(loss_of(model, tokens(seed=step))).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(scaled.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    for values, wanted in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-7)

    before = weights_of(model)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, tokens(seed=9)) * 1e38).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_written_weight_is_the_rounded_value_and_what_rounding_hides_is_told(dtype):
    torch.manual_seed(0)
    model = build("llama", dtype)
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    assert {values.dtype for values in attachment.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-5)
    assert attachment.unchanged_by_last_step() == 1.0
    before = {name: attachment.dense_values(name).clone() for name in attachment.mask.names}
    loss_of(model, tokens()).backward()
    assert {values.grad.dtype for values in attachment.parameters()} == {torch.float32}
    optimizer.step()
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}
    unchanged = 0
    for name, values in attachment.named_parameters():
        assert torch.equal(attachment.dense_values(name), values.detach().to(dtype))
        unchanged += int((attachment.dense_values(name) == before[name]).sum())
    assert attachment.unchanged_by_last_step() == unchanged / attachment.nnz
    assert 0.1 < unchanged / attachment.nnz < 1.0  # rate 1e-5 is below half a step of most weights


def test_in_fp32_a_step_moves_nearly_every_weight():
    model = build("llama")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3)
    loss_of(model, tokens()).backward()
    optimizer.step()
    assert attachment.unchanged_by_last_step() < 0.5  # an embedding's rows that did not occur stay


@pytest.mark.parametrize("passes", [1, 2])
def test_accelerate_prepares_an_attached_model_as_it_is(passes):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=passes)
    model, twin = build("qwen2"), build("qwen2")
    twin.load_state_dict(model.state_dict())
    mask = mt.Mask.random(model, 0.1)
    attachment, alone = mt.attach(model, mask), mt.attach(twin, mask)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2, eps=1e-5)
    reference = torch.optim.AdamW(alone.parameters(), lr=1e-2, eps=1e-5)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    for step in range(2 * passes):
        with accelerator.accumulate(prepared):
            accelerator.backward(loss_of(prepared, tokens(seed=step)))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(attachment.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        (loss_of(twin, tokens(seed=step)) / passes).backward()
        if (step + 1) % passes == 0:
            nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
            reference.step()
            reference.zero_grad()
    for values, wanted in zip(attachment.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-6)
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, weights_of(twin)[name], rtol=1e-5, atol=1e-6)
