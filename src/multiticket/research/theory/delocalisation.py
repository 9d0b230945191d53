"""Whether the leading directions of the gradients lie in few coordinates or in many.

A random mask keeps a direction's length and angles in proportion to its density where no few coordinates carry it
(compressed sensing calls that incoherence). The leading eigenvectors of sum_i g_i g_i^T are v = sum_i a_i g_i /
sqrt(l) for the eigenvectors a (samples,) and eigenvalues l of the Gram matrix, made block by block in a second
pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from multiticket.research.theory.gradients import Gradients
from multiticket.research.theory.kinds import kind_of

ALL = "all"


@dataclass
class Spread:
    """How one unit vector v spreads over some n coordinates."""

    numel: int = 0
    energy: float = 0.0
    """Sum of v^2 over them: 1 over all coordinates."""
    fourth: float = 0.0
    """Sum of v^4."""
    largest: float = 0.0
    """Largest v^2."""

    @property
    def coherence(self) -> float:
        """n max v^2 / sum v^2: 1 where all coordinates are equal, n where there is one."""
        return self.numel * self.largest / self.energy if self.energy else math.nan

    @property
    def participation(self) -> float:
        """(sum v^2)^2 / (n sum v^4): the share of the coordinates that takes part; 1 if all alike, 1/3 if Gaussian."""
        return self.energy**2 / (self.numel * self.fourth) if self.fourth else math.nan

    def add(self, values: Tensor) -> None:
        """Entries (width,) of v, fp64."""
        squares = values.square()
        self.energy += float(squares.sum())
        self.fourth += float(squares.square().sum())
        self.largest = max(self.largest, float(squares.max()))


def leading_vectors(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` largest eigenvalues (rank,), descending, and their eigenvectors (samples, rank), fp64.

    Raises ValueError where there are fewer positive ones.
    """
    positive = directions(gram)
    if not 1 <= rank <= positive:
        raise ValueError(f"The gradients have {positive} directions; choose a rank from 1 to {positive}.")
    values, vectors = torch.linalg.eigh(gram.double())
    return values.flip(0)[:rank], vectors.flip(1)[:, :rank]


def directions(gram: Tensor) -> int:
    """The numerical rank of a Gram matrix: eigenvalues above rounding, n eps times the largest."""
    values = torch.linalg.eigvalsh(gram.double())
    return int((values > values.max() * len(values) * torch.finfo(torch.float64).eps).sum())


def spread_of_leading(gradients: Gradients, gram: Tensor, rank: int) -> list[dict[str, Spread]]:
    """For each leading eigenvector, by descending eigenvalue: its spread over all coordinates and over each
    kind's.

    Args:
        gram: (samples, samples) of these gradients.
    """
    values, vectors = leading_vectors(gram, rank)
    mix = vectors / values.sqrt()
    numel = dict.fromkeys(dict.fromkeys([ALL, *map(kind_of, gradients.shapes)]), 0)
    for name, shape in gradients.shapes.items():
        numel[ALL] += math.prod(shape)
        numel[kind_of(name)] += math.prod(shape)
    found = [{kind: Spread(count) for kind, count in numel.items()} for _ in range(rank)]
    for piece in gradients.pieces():
        rows = piece.values
        part = (mix.T.to(rows.device, rows.dtype) @ rows).to("cpu", torch.float64)
        for spreads, entries in zip(found, part, strict=True):
            spreads[ALL].add(entries)
            spreads[kind_of(piece.name)].add(entries)
    return found


def gaussian_coherence(numel: int) -> float:
    """The median of n max z^2 / sum z^2 for n independent normal z, with sum z^2 = n: Phi^-1((1 + 2^(-1/n)) / 2)^2."""
    tail = (
        -math.expm1(-math.log(2) / numel) / 2
    )  # each side's chance of one z beyond the median of the largest
    return NormalDist().inv_cdf(tail) ** 2


GAUSSIAN_PARTICIPATION = 1 / 3
"""1 / E[z^4] for a normal z."""
