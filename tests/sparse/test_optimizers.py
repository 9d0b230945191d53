"""Whatever the optimiser, clipping and schedule: values step as dense training restricted to the mask does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from test_training import loss_of, weights_of
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from toy_models import build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")

STEPS, MICRO_BATCHES, CLIP = 4, 2, 0.05
Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

ELEMENTWISE: dict[str, Make] = {
    "adamw, a loop": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, fused=True),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1.0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}
"""Their step of one entry depends on that entry's gradients alone."""
WHOLE_TENSOR: dict[str, Make] = {
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "adafactor foreach": lambda p: torch.optim.Adafactor(p, lr=1e-2, foreach=True),
    "adamw fused": ELEMENTWISE["adamw fused"],
}
"""Adafactor scales by a tensor's root mean square, and a ticket's tensor is the vector of its values."""


def schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Warm-up over two steps, then a cosine."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 2) * math.cos(step / STEPS))


def add_gradients(model: nn.Module, step: int) -> None:
    for micro in range(MICRO_BATCHES):
        (loss_of(model, tokens(seed=10 * step + micro)) / MICRO_BATCHES).backward()


def train_attached(model: nn.Module, mask: mt.Mask, make: Make, by_tensor: bool = False) -> None:
    attachment = mt.attach(model, mask)
    trained = (
        [values for _, values in attachment.named_parameters()] if by_tensor else attachment.parameters()
    )
    optimizer = make(trained)
    scheduler = schedule(optimizer)
    for step in range(STEPS):
        add_gradients(model, step)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def train_restricted(model: nn.Module, mask: mt.Mask, make: Make) -> None:
    """The paper's way: dense gradients, zero outside the mask; whatever moved outside is put back."""
    inside = {}
    for name, parameter in model.named_parameters():
        flat = torch.zeros(parameter.numel(), dtype=torch.bool)
        flat[mask.indices(name)] = True
        inside[name] = flat.view_as(parameter)
    optimizer = make(model.parameters())
    scheduler = schedule(optimizer)
    for step in range(STEPS):
        add_gradients(model, step)
        for name, parameter in model.named_parameters():
            parameter.grad.mul_(inside[name])
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        before = weights_of(model)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.where(inside[name], parameter, before[name]))
        optimizer.zero_grad()


class Vectors:
    """The other reference: plain vectors of k numbers, put into a dense model, whose dense gradient is gathered."""

    def __init__(self, model: nn.Module, mask: mt.Mask) -> None:
        self.model, self.mask = model, mask
        self.places = {name: mask.indices(name) for name in mask.names}
        dense = dict(model.named_parameters())
        self.vectors = {n: dense[n].detach().take(at).requires_grad_() for n, at in self.places.items()}

    @torch.no_grad()
    def put(self) -> None:
        for name, vector in self.vectors.items():
            self.model.get_parameter(name).put_(self.places[name], vector)

    def gather(self) -> None:
        for name, vector in self.vectors.items():
            parameter = self.model.get_parameter(name)
            vector.grad, parameter.grad = parameter.grad.take(self.places[name]), None


def train_vectors(model: nn.Module, mask: mt.Mask, make: Make) -> None:
    twin = Vectors(model, mask)
    optimizer = make(twin.vectors.values())
    scheduler = schedule(optimizer)
    for step in range(STEPS):
        add_gradients(model, step)
        twin.gather()
        nn.utils.clip_grad_norm_(twin.vectors.values(), CLIP)
        optimizer.step()
        scheduler.step()
        twin.put()


def assert_same_training(
    trained: nn.Module, control: nn.Module, base: nn.Module, relative: float = 1e-9
) -> None:
    """As far apart as summation order puts them, beside how far they moved."""
    now, wanted, start = weights_of(trained), weights_of(control), weights_of(base)
    moved = max(float((now[name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-4
    for name in start:
        torch.testing.assert_close(now[name], wanted[name], rtol=0, atol=relative * max(moved, 1.0))


def three_alike() -> tuple[nn.Module, nn.Module, nn.Module, mt.Mask]:
    base = build("qwen2", torch.float64)
    return base, copy.deepcopy(base), copy.deepcopy(base), mt.Mask.random(base, 0.2, seed=3)


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_steps_are_dense_steps_restricted_to_the_mask(optimizer):
    base, model, twin, mask = three_alike()
    train_attached(model, mask, ELEMENTWISE[optimizer])
    train_restricted(twin, mask, ELEMENTWISE[optimizer])
    assert_same_training(model, twin, base)


@pytest.mark.parametrize("optimizer", WHOLE_TENSOR)
def test_steps_are_those_of_plain_vectors(optimizer):
    base, model, twin, mask = three_alike()
    train_attached(model, mask, WHOLE_TENSOR[optimizer], by_tensor=True)
    train_vectors(twin, mask, WHOLE_TENSOR[optimizer])
    assert_same_training(model, twin, base)


def test_an_optimiser_that_evaluates_within_its_step():
    """L-BFGS writes the values itself and asks for the loss again: each forward pass must see what was written."""
    base, model, twin, mask = three_alike()
    options = {"lr": 0.5, "max_iter": 5, "line_search_fn": "strong_wolfe"}

    attachment = mt.attach(model, mask)
    optimizer = torch.optim.LBFGS(attachment.parameters(), **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, tokens())
        loss.backward()
        return loss

    reference = Vectors(twin, mask)
    control = torch.optim.LBFGS(reference.vectors.values(), **options)

    def control_closure() -> Tensor:
        reference.put()
        loss = loss_of(twin, tokens())
        loss.backward()
        reference.gather()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        control.step(control_closure)
    reference.put()
    with torch.no_grad():
        assert loss_of(model, tokens()) < 0.9 * loss_of(base, tokens())
    assert_same_training(model, twin, base, relative=1e-7)


def test_a_resumed_optimiser_goes_on_bit_for_bit():
    """Values, moments and schedule saved after two steps, loaded beside a fresh base: the same four steps."""
    straight, stopped = build("llama"), build("llama")
    mask = mt.Mask.random(straight, 0.2)

    def parts(model: nn.Module) -> tuple[mt.Attachment, torch.optim.Optimizer, LambdaLR]:
        attachment = mt.attach(model, mask)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2, fused=True)
        return attachment, optimizer, schedule(optimizer)

    def go(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LambdaLR, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            add_gradients(model, step)
            optimizer.step()
            scheduler.step()

    _, optimizer, scheduler = parts(straight)
    go(straight, optimizer, scheduler, range(4))
    attachment, optimizer, scheduler = parts(stopped)
    go(stopped, optimizer, scheduler, range(2))
    saved = copy.deepcopy((attachment.state_dict(), optimizer.state_dict(), scheduler.state_dict()))

    again = build("llama")
    for part, state in zip(resumed := parts(again), saved, strict=True):
        part.load_state_dict(state)
    go(again, *resumed[1:], range(2, 4))
    wanted, found = weights_of(straight), weights_of(again)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
