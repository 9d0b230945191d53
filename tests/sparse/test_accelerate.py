"""An attached model in ``accelerate.Accelerator``: prepared, accumulated, clipped and stepped as any other."""

from __future__ import annotations

import pytest
import torch
from test_training import loss_of, weights_of
from torch import nn
from toy_models import build, tokens

import multiticket as mt


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


def test_a_saved_state_goes_on_bit_for_bit(tmp_path):
    """``save_state`` and ``load_state``, into a model that is built and attached anew."""
    accelerate = pytest.importorskip("accelerate")

    def start():
        accelerator = accelerate.Accelerator(cpu=True)
        model = build("qwen2")
        attachment = mt.attach(model, mt.Mask.random(model, 0.1))
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2, fused=True)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return accelerator, attachment, *accelerator.prepare(model, optimizer, scheduler)

    def train(accelerator, model, optimizer, scheduler, steps):
        for step in steps:
            accelerator.backward(loss_of(model, tokens(seed=step)))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    accelerator, attachment, *parts = start()
    train(accelerator, *parts, range(2))
    accelerator.save_state(tmp_path / "state")
    train(accelerator, *parts, range(2, 4))
    again, resumed, *others = start()
    again.load_state(tmp_path / "state")
    train(again, *others, range(2, 4))
    for values, wanted in zip(resumed.parameters(), attachment.parameters(), strict=True):
        assert torch.equal(values, wanted)
    for name, weight in weights_of(others[0]).items():
        assert torch.equal(weight, weights_of(parts[0])[name])
