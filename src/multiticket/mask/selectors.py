"""The methods that choose positions by a rule alone. A new one is a function and a line in `SELECTORS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from multiticket.mask import random
from multiticket.mask.positions import Device, Positions, Shapes
from multiticket.mask.rule import MaskRule, places

Selector = Callable[[Shapes, MaskRule], dict[str, Positions]]


def select_random(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """int(n * density) positions of every tensor, uniformly, by the keyed permutation."""
    assert rule.density is not None
    return {
        name: _permuted(name, shape, *places(math.prod(shape), rule.density, rule.part), rule)
        for name, shape in shapes.items()
    }


def _permuted(name: str, shape: tuple[int, ...], start: int, stop: int, rule: MaskRule) -> Positions:
    numel = math.prod(shape)
    key = random.tensor_key(rule.seed, name, shape)
    return Positions(stop - start, partial(_make_permuted, numel, start, stop, key))


def _make_permuted(numel: int, start: int, stop: int, key: random.Key, device: Device) -> torch.Tensor:
    return random.positions(numel, start, stop, key, device)


SELECTORS: dict[str, Selector] = {
    "random": select_random,
}
