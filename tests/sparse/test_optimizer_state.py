"""A run that changes its path, as from a CPU to a GPU, goes on with the moments it had."""

from __future__ import annotations

import copy

import pytest
import torch
from test_exactness import loss_of
from torch import nn
from toy_models import build, tokens

import multiticket as mt
from multiticket.sparse.optimizer_state import load_either_layout

WAYS = {"direct": "blocks", "hooks": "hooks"}


def attached(way: str, density: float = 0.2) -> tuple[nn.Module, mt.Attachment]:
    model = build("llama", torch.float64)
    return model, mt.attach(model, mt.Mask.random(model, density), gradient=WAYS[way])


def optimizer_of(attachment: mt.Attachment, grouped: bool) -> torch.optim.Optimizer:
    """AdamW over all values; ``grouped``: vectors in a group of their own, without decay."""
    parameters = list(attachment.parameters())
    if not grouped:
        return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    if attachment.path == "hooks":
        decayed, spared = parameters[:1], parameters[1:]
    else:
        named = list(attachment.named_parameters())
        decayed = [values for name, values in named if len(attachment.mask.shape(name)) > 1]
        spared = [values for name, values in named if len(attachment.mask.shape(name)) < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        loss_of(model, tokens(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("first", "then"), [("direct", "hooks"), ("hooks", "direct"), ("hooks", "hooks")])
def test_a_run_goes_on_with_the_other_layout(first, then, grouped):
    model, attachment = attached(first)
    optimizer = optimizer_of(attachment, grouped)
    train(model, optimizer, range(3))
    saved = copy.deepcopy((attachment.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(3, 6))

    again, other = attached(then)
    other.load_state_dict(saved[0])
    resumed = optimizer_of(other, grouped)
    load_either_layout(other, resumed)
    resumed.load_state_dict(saved[1])
    train(again, resumed, range(3, 6))
    for name in attachment.mask.names:
        torch.testing.assert_close(
            attachment.dense_values(name), other.dense_values(name), rtol=1e-9, atol=1e-11
        )


def test_the_state_of_other_values_is_refused():
    model, attachment = attached("direct")
    optimizer = optimizer_of(attachment, False)
    train(model, optimizer, range(1))
    _, other = attached("hooks", density=0.1)
    resumed = optimizer_of(other, False)
    load_either_layout(other, resumed)
    with pytest.raises(ValueError, match=r"mask that w(as|ere) saved"):
        resumed.load_state_dict(optimizer.state_dict())
    state = optimizer.state_dict()
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][:-1]
    with pytest.raises(ValueError, match="arm and the mask"):
        resumed.load_state_dict(state)
