"""Masks made of masks. Tensor by tensor, on sorted positions: never a boolean the size of the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch

from multiticket.mask.mask import Mask
from multiticket.mask.overlap import common_shapes, is_in
from multiticket.mask.positions import stored
from multiticket.mask.rule import MaskRule

Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def union(first: Mask, *others: Mask) -> Mask:
    """Positions of any of the masks. Raises ValueError where they are of different models."""
    return _combined("union", [first, *others], lambda a, b: torch.cat([a, b]).unique(sorted=True))


def intersection(first: Mask, *others: Mask) -> Mask:
    """Positions of all the masks. Raises ValueError where there is none."""
    return _combined("intersection", [first, *others], lambda a, b: a[is_in(a, b)])


def difference(first: Mask, *others: Mask) -> Mask:
    """Positions of the first mask and of no other. Raises ValueError where there is none."""
    return _combined("difference", [first, *others], lambda a, b: a[~is_in(a, b)])


def complement_count(mask: Mask) -> int:
    """Number of entries in scope that the mask leaves alone."""
    return mask.numel - mask.nnz


def _combined(method: str, masks: Sequence[Mask], combine: Combine) -> Mask:
    """Keeps the positions; the rule says which masks they came from."""
    shapes = common_shapes(masks)
    chosen = {}
    for name in shapes:
        flat = masks[0].indices(name)
        for other in masks[1:]:
            flat = combine(flat, other.indices(name))
        if len(flat):
            chosen[name] = stored(flat)
    if not chosen:
        raise ValueError(f"The {method} of these masks would be empty: no position is left.")
    of = [json.loads(mask.rule.to_json()) for mask in masks]
    return Mask(MaskRule(method, options={"of": of}), shapes, chosen)
