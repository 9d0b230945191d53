"""The methods that choose positions by a rule alone. A new one is a function and a line in `SELECTORS`.

Every method spends the same budget at one density and scope: int(n * density) positions of every tensor,
summed. ``layers`` and ``modules`` spend the whole sum inside fewer tensors; the others spend each tensor's share
in that tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch

from multiticket.mask import random
from multiticket.mask.positions import Device, Positions, Shapes
from multiticket.mask.rule import MaskRule, places
from multiticket.mask.structured import select_blocks, select_columns, select_rows

Selector = Callable[[Shapes, MaskRule], dict[str, Positions]]

LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def select_random(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """int(n * density) positions of every tensor, uniformly, by the keyed permutation."""
    rule.only_options()
    return {
        name: _permuted(name, shape, *places(math.prod(shape), rule.share, rule.part), rule)
        for name, shape in shapes.items()
    }


def select_numpy(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """The recipe published with arXiv 2602.01599, draw for draw.

    ``default_rng(seed).choice(n, int(n * density), replace=False)``, one generator running through the
    tensors in the model's order. All tensors are drawn when the first is asked for.
    """
    rule.only_options()
    if rule.part:
        raise ValueError(
            "The numpy method has part 0 only; use another seed, or method random for disjoint parts."
        )
    counts = {name: int(math.prod(shape) * rule.share) for name, shape in shapes.items()}
    draws = _NumpyDraws({name: math.prod(shape) for name, shape in shapes.items()}, counts, rule.seed)
    return {name: Positions(count, partial(draws.make, name)) for name, count in counts.items()}


def select_layers(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """The whole budget at random inside some layers. Option ``layers``: first, last, or a list of numbers.

    A layer's number is the first number in a tensor's name; where a model has several stacks of layers, the
    stack with the most entries counts. Each tensor gets its share by size, to one position.
    """
    rule.only_options("layers")
    wanted = rule.options.get("layers", "first")
    layers = _layers(shapes)
    numbers = sorted(layers)
    if wanted in ("first", "last"):
        wanted = [numbers[0 if wanted == "first" else -1]]
    if not isinstance(wanted, list) or not wanted or not all(type(number) is int for number in wanted):
        raise ValueError(f"Option layers must be 'first', 'last' or a list of layer numbers, not {wanted!r}.")
    if missing := sorted(set(wanted) - set(numbers)):
        raise ValueError(f"The model has no layer {missing[0]}; it has layers {numbers[0]} to {numbers[-1]}.")
    inside = {name for number in wanted for name in layers[number]}
    return _random_inside(shapes, inside, f"layer {', '.join(map(str, wanted))}", rule)


def select_modules(shapes: Shapes, rule: MaskRule) -> dict[str, Positions]:
    """The whole budget at random inside one kind of module. Option ``modules``: a kind or a list of kinds.

    Kinds are attention, mlp, embeddings (the output head included) and norms, told by name (`module_kind`).
    Each tensor gets its share by size, to one position.
    """
    rule.only_options("modules")
    wanted = rule.options.get("modules", "attention")
    kinds = wanted if isinstance(wanted, list) else [wanted]
    if not kinds or not all(isinstance(kind, str) and kind in _KINDS for kind in kinds):
        raise ValueError(f"Option modules must be among {', '.join(_KINDS)}, not {wanted!r}.")
    inside = {name for name in shapes if module_kind(name) in kinds}
    return _random_inside(shapes, inside, " and ".join(kinds), rule)


_KINDS = {
    "norms": re.compile(r"norm|(^|\.)ln_"),
    "embeddings": re.compile(r"embed|(^|\.)(wte|wpe|lm_head)\."),
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|ffn|feed_forward|experts|(^|\.)(fc1|fc2)\."),
}


def module_kind(name: str) -> str | None:
    """norms, embeddings, attention or mlp: the first whose usual names occur in ``name``; None for another."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(name)), None)


def _layers(shapes: Shapes) -> dict[int, list[str]]:
    """The tensors of each layer of the largest stack."""
    stacks: dict[str, dict[int, list[str]]] = {}
    for name in shapes:
        if found := LAYER.search(name):
            stacks.setdefault(name[: found.start()], {}).setdefault(int(found[1]), []).append(name)
    if not stacks:
        raise ValueError("The layers method needs numbered layers, and no tensor's name has a number.")

    def size(layers: dict[int, list[str]]) -> int:
        return sum(math.prod(shapes[name]) for names in layers.values() for name in names)

    return max(stacks.values(), key=size)


def _random_inside(shapes: Shapes, inside: set[str], what: str, rule: MaskRule) -> dict[str, Positions]:
    """The budget of all tensors, spent on those ``inside`` in proportion to their sizes."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if name in inside}
    room = sum(sizes.values())
    budget = sum(int(math.prod(shape) * rule.share) for shape in shapes.values())
    if (rule.part + 1) * budget > room:
        raise ValueError(
            f"{(rule.part + 1) * budget} positions do not fit into the {room} entries of {what}: "
            "lower the density or choose more of the model."
        )
    counts = _shares(sizes, budget)
    for name, count in counts.items():
        if (rule.part + 1) * count > sizes[name]:
            raise ValueError(f"Part {rule.part} does not fit into {name}; use a lower part or density.")
    return {
        name: _permuted(name, shapes[name], rule.part * count, (rule.part + 1) * count, rule)
        for name, count in counts.items()
    }


def _shares(sizes: dict[str, int], budget: int) -> dict[str, int]:
    """``budget`` split in proportion to ``sizes``, exactly, the largest remainders rounded up."""
    room = sum(sizes.values())
    counts = {name: budget * size // room for name, size in sizes.items()}
    left = budget - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda name: budget * sizes[name] % room, reverse=True)
    for name in by_remainder[:left]:
        counts[name] += 1
    return counts


def _permuted(name: str, shape: tuple[int, ...], start: int, stop: int, rule: MaskRule) -> Positions:
    key = random.tensor_key(rule.seed, name, shape, rule.method)
    return Positions(stop - start, partial(_make_permuted, math.prod(shape), start, stop, key))


def _make_permuted(numel: int, start: int, stop: int, key: random.Key, device: Device) -> torch.Tensor:
    return random.positions(numel, start, stop, key, device)


class _NumpyDraws:
    """One generator's draws for all tensors, made together at the first use and kept (4 or 8 bytes each)."""

    def __init__(self, sizes: dict[str, int], counts: dict[str, int], seed: int) -> None:
        self.sizes, self.counts, self.seed = sizes, counts, seed

    @cached_property
    def drawn(self) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(self.seed)
        return {name: self._draw(generator, size, self.counts[name]) for name, size in self.sizes.items()}

    @staticmethod
    def _draw(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
        flat = generator.choice(size, size=count, replace=False)
        flat.sort()
        return flat.astype(np.int32 if size < 2**31 else np.int64)

    def make(self, name: str, device: Device) -> torch.Tensor:
        return torch.from_numpy(self.drawn[name].astype(np.int64)).to(device)


SELECTORS: dict[str, Selector] = {
    "random": select_random,
    "numpy": select_numpy,
    "layers": select_layers,
    "modules": select_modules,
    "columns": select_columns,
    "rows": select_rows,
    "blocks": select_blocks,
}
