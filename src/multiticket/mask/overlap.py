"""How much masks share, beside what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from multiticket.mask.mask import Mask


@dataclass(frozen=True)
class Overlap:
    """What two masks share, in one tensor or in all."""

    intersection: int
    """Positions that both chose."""
    first: int
    """Positions of the first mask."""
    second: int
    """Positions of the second mask."""
    expected_intersection: float
    """Mean intersection of two masks with the same counts in every tensor, drawn independently."""
    variance: float
    """Variance of that intersection (hypergeometric, summed over tensors)."""
    tensors: dict[str, Overlap] = field(default_factory=dict, repr=False)
    """The same by tensor; empty for a tensor's own entry."""

    @property
    def union(self) -> int:
        return self.first + self.second - self.intersection

    @property
    def jaccard(self) -> float:
        """Intersection over union, 0 where both are empty."""
        return self.intersection / self.union if self.union else 0.0

    @property
    def expected(self) -> float:
        """Jaccard index of the expected intersection: p / (2 - p) for two masks of density p."""
        union = self.first + self.second - self.expected_intersection
        return self.expected_intersection / union if union else 0.0

    @property
    def z(self) -> float:
        """Standard deviations between the intersection and its expectation; 0 where chance has no spread."""
        return (
            (self.intersection - self.expected_intersection) / math.sqrt(self.variance)
            if self.variance
            else 0.0
        )


def overlap(first: Mask, second: Mask) -> Overlap:
    """Compare two masks of one model, tensor by tensor, in memory O(the largest tensor's positions).

    Raises ValueError where a tensor has one name and two shapes.
    """
    return overlap_matrix([first, second])[0][1]


def overlap_matrix(masks: Sequence[Mask]) -> list[list[Overlap]]:
    """`overlap` of every pair: ``result[i][j]``; each mask's positions are made once for each tensor."""
    shapes = common_shapes(masks)
    parts: dict[tuple[int, int], dict[str, Overlap]] = {
        (i, j): {} for i in range(len(masks)) for j in range(i, len(masks))
    }
    for name, shape in shapes.items():
        flats = [mask.indices(name) for mask in masks]
        for (i, j), tensors in parts.items():
            shared = count_shared(flats[i], flats[j]) if i != j else len(flats[i])
            tensors[name] = _of_tensor(shared, len(flats[i]), len(flats[j]), math.prod(shape))
    total = {pair: _sum(tensors) for pair, tensors in parts.items()}
    return [
        [total[i, j] if i <= j else _mirrored(total[j, i]) for j in range(len(masks))]
        for i in range(len(masks))
    ]


def common_shapes(masks: Sequence[Mask]) -> dict[str, tuple[int, ...]]:
    """The tensors of all masks together. Raises ValueError where two masks disagree about a shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for mask in masks:
        for name, shape in mask.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(
                    f"These masks are of different models: {name} is {shapes[name]} in one and {shape} in another."
                )
    return shapes


def count_shared(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many numbers two sorted int64 tensors without repetition have in common."""
    return int(is_in(first, second).sum()) if len(first) <= len(second) else count_shared(second, first)


def is_in(flat: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """For every entry of ``flat``, whether the sorted ``among`` has it: bool of shape (len(flat),)."""
    if not len(among):
        return torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    where = torch.searchsorted(among, flat).clamp_(max=len(among) - 1)
    return among[where] == flat


def _of_tensor(shared: int, first: int, second: int, numel: int) -> Overlap:
    expected = first * second / numel if numel else 0.0
    outside = (numel - first) * (numel - second)
    variance = expected * outside / (numel * (numel - 1)) if numel > 1 else 0.0
    return Overlap(shared, first, second, expected, variance)


def _sum(tensors: dict[str, Overlap]) -> Overlap:
    each = tensors.values()
    return Overlap(
        sum(o.intersection for o in each),
        sum(o.first for o in each),
        sum(o.second for o in each),
        math.fsum(o.expected_intersection for o in each),
        math.fsum(o.variance for o in each),
        tensors,
    )


def _mirrored(o: Overlap) -> Overlap:
    tensors = {name: _mirrored(part) for name, part in o.tensors.items()}
    return Overlap(o.intersection, o.second, o.first, o.expected_intersection, o.variance, tensors)
