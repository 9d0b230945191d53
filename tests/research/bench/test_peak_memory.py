"""Peaks of steps whose memory is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multiticket.research.bench.peak_memory import living, peak_above_rest

N = 100_000
SLACK = 64  # numbers that torch boxes as tensors


def test_temporaries_count_while_they_live() -> None:
    x = torch.randn(N)

    def step() -> None:
        a = x + 1
        b = a * 2  # two live
        del a
        c = b.exp()  # two again
        d = c + b  # three
        del b, c, d

    assert peak_above_rest(step) == pytest.approx(3 * 4 * N, abs=SLACK)


def test_what_an_operator_takes_inside_is_seen() -> None:
    x = torch.randn(N)
    inside = peak_above_rest(lambda: torch.sort(x).values.sum() and None)
    assert inside >= (4 + 8) * N  # values and the indices nobody asked for


def test_what_autograd_saves_is_seen() -> None:
    x = torch.randn(N, requires_grad=True)

    def step() -> None:
        x.exp().sum().backward()
        x.grad = None

    # exp's result is saved; backward makes the gradient that arrives (an expanded number) times it
    assert peak_above_rest(step) == pytest.approx(2 * 4 * N, abs=SLACK)


def test_a_block_that_each_step_replaces_is_at_rest_and_not_of_the_step() -> None:
    kept: dict[str, Tensor] = {"state": torch.zeros(N)}

    def step() -> None:
        del kept["state"]
        kept["state"] = torch.zeros(N)

    assert peak_above_rest(step) == pytest.approx(0, abs=SLACK)


def test_living_tensors_count_once_for_each_storage() -> None:
    before = living()
    x = torch.randn(N)
    views = [x[1:], x.view(2, -1)]
    assert living() - before == 4 * N
    del x, views
    assert living() == before
