"""Task vectors: what training added to a base, and the base with several of them added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiticket.mask import masked_candidates

TaskVector = dict[str, Tensor]
"""By tensor name, what was added to the base, in fp64 on the CPU; tensors that did not move are left out."""


def task_vector(base: Any, model: Any) -> TaskVector:
    """What has to be added to the base's weights to get the model's.

    Raises:
        ValueError: they have other tensors, or other shapes.
    """
    before, after = masked_candidates(base), masked_candidates(model)
    if {name: weight.shape for name, weight in before.items()} != {n: w.shape for n, w in after.items()}:
        raise ValueError("The two models have other tensors: compare states of one base.")
    found = {name: (after[name].detach().double() - before[name].detach().double()).cpu() for name in before}
    return {name: delta for name, delta in found.items() if bool(delta.any())}


@contextmanager
def with_task_vectors(model: Any, parts: Sequence[tuple[float, TaskVector]]) -> Iterator[Any]:
    """The model with a sum of task vectors, each times a factor, added; its own weights, bit for bit, on exit."""
    weights = masked_candidates(model)
    names = {name for _, vector in parts for name in vector}
    saved = {name: weights[name].detach().clone() for name in names}
    try:
        with torch.no_grad():
            for name in names:
                total = saved[name].double().cpu()
                for factor, vector in parts:
                    if name in vector:
                        total = total + factor * vector[name]
                weights[name].copy_(total)
        yield model
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                weights[name].copy_(values)


def shuffled(vector: TaskVector, seed: int = 0) -> TaskVector:
    """The same with each tensor's changed entries among themselves in random order: as far, in no direction."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, delta in vector.items():
        places = delta.reshape(-1).nonzero().squeeze(1)
        mixed = torch.zeros_like(delta).reshape(-1)
        mixed[places] = delta.reshape(-1)[places[torch.randperm(len(places), generator=generator)]]
        found[name] = mixed.reshape(delta.shape)
    return found


@dataclass(frozen=True)
class Size:
    """How far a task vector goes."""

    moved: int
    """Entries that changed."""
    distance: float
    """||D||, over all tensors."""
    relative: float
    """||D|| / ||W||, of all weights."""
    relative_there: float
    """||D|| over the norm of the weights that moved: 1 where they moved by as much as they were."""


def size_of(base: Any, vector: TaskVector) -> Size:
    """Of a task vector of a base."""
    weights = {name: weight.detach().double().cpu() for name, weight in masked_candidates(base).items()}
    squared = sum(float(delta.square().sum()) for delta in vector.values())
    everything = sum(float(weight.square().sum()) for weight in weights.values())
    there = sum(float((weights[name] * (delta != 0)).square().sum()) for name, delta in vector.items())
    moved = sum(int((delta != 0).sum()) for delta in vector.values())
    return Size(moved, squared**0.5, _root(squared, everything), _root(squared, there))


def _root(squared: float, of: float) -> float:
    return (squared / of) ** 0.5 if of else 0.0


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Of the angle between two task vectors; 0 where one does not move."""
    product = sum(float((one[name] * other[name]).sum()) for name in one if name in other)
    norms = [sum(float(delta.square().sum()) for delta in vector.values()) ** 0.5 for vector in (one, other)]
    return product / (norms[0] * norms[1]) if all(norms) else 0.0
