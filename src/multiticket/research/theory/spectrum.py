"""How many directions the gradients of many samples have, and how many their number alone would let one see.

The rank of a Gram matrix is at most the number of samples, and so is every effective rank taken from its
eigenvalues: even isotropic noise, which has no preferred direction among millions, shows an effective rank of
nearly the number of samples and no more. So each figure stands beside what noise of the same norms gives, beside
its growth with the number of samples, and beside an estimate that does not depend on it (`population_rank`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ENERGY = 0.95
REPEATS = 16
"""Random subsets of each size, and noise matrices, over which is averaged."""


@dataclass(frozen=True)
class EffectiveRank:
    """Three counts of the eigenvalues l that matter; all are k for k equal ones, and at most their number."""

    participation: float
    """(sum l)^2 / sum l^2."""
    entropy: float
    """exp(-sum p log p) with p = l / sum l (Roy and Vetterli, 2007)."""
    energy95: float
    """The fewest whose sum is at least 95 % of all (a whole number, or a mean of some)."""


def eigenvalues(gram: Tensor) -> Tensor:
    """(samples,) fp64, descending, not negative."""
    return torch.linalg.eigvalsh(gram.double()).flip(0).clamp(min=0)


def effective_rank(values: Tensor) -> EffectiveRank:
    """Of eigenvalues (samples,), any order. Raises ValueError where all are zero."""
    values = values.double().sort(descending=True).values
    total = float(values.sum())
    if not total > 0:
        raise ValueError("All gradients are zero, so they have no spectrum.")
    share = values / total
    enough = int((share.cumsum(0) < ENERGY - 1e-12).sum()) + 1
    return EffectiveRank(
        1 / float(share.square().sum()),
        math.exp(float(torch.special.entr(share).sum())),
        min(enough, len(values)),
    )


@dataclass(frozen=True)
class PopulationRank:
    """The participation ratio of the second-moment matrix itself, with a 95 % interval by the jackknife over groups."""

    value: float
    low: float
    high: float


def population_rank(gram: Tensor, groups: Sequence[int] | None = None) -> PopulationRank:
    """(tr C)^2 / tr C^2 of C = E[g g^T], estimated without the bound that the number of samples sets.

    For independent samples i and j, E[G_ii G_jj] = (tr C)^2 and E[G_ij^2] = tr C^2, so the ratio of the two sums
    over pairs estimates it: of a U-statistic each, as in tests of large covariances (Chen, Zhang and Zhong, 2010).
    Pairs within one group (completions of one problem are not independent) are left out.

    Args:
        groups: (samples,) each sample's group; None: each is its own.

    Raises:
        ValueError: there are fewer than three groups.
    """
    labels = np.unique(np.arange(len(gram)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    count = int(labels.max()) + 1
    if count < 3:
        raise ValueError(f"An estimate over pairs of problems needs three of them; there are {count}.")
    member = torch.nn.functional.one_hot(torch.from_numpy(labels), count).double()
    norms = member.T @ gram.diagonal().double()
    numerator = torch.outer(norms, norms).fill_diagonal_(0)
    denominator = (member.T @ gram.double().square() @ member).fill_diagonal_(0)
    whole = float(numerator.sum() / denominator.sum())
    left_out = (numerator.sum() - 2 * numerator.sum(1)) / (denominator.sum() - 2 * denominator.sum(1))
    logs = left_out.log()
    error = math.sqrt((count - 1) / count * float((logs - logs.mean()).square().sum()))
    return PopulationRank(whole, whole * math.exp(-1.96 * error), whole * math.exp(1.96 * error))


def noise_gram(norms: Tensor, dimension: int, generator: torch.Generator) -> Tensor:
    """The Gram matrix of as many random directions in `dimension` dimensions, uniform on the sphere, with these
    norms.

    Drawn without the vectors: Z Z^T of Gaussian Z (samples, dimension) is L L^T with L lower triangular, standard
    normal below the diagonal and chi with dimension - i degrees of freedom on it (Bartlett, 1933); then each row
    gets its norm.

    Args:
        norms: (samples,) |g_i|.

    Returns:
        (samples, samples) fp64.
    """
    size = len(norms)
    if size > dimension:
        raise ValueError(
            f"{size} samples in {dimension} dimensions: noise needs at least as many dimensions."
        )
    degrees = dimension - torch.arange(size, dtype=torch.float64)
    lower = torch.randn(size, size, dtype=torch.float64, generator=generator).tril_(-1)
    gaussian = torch.randn(size, dtype=torch.float64, generator=generator)
    lower.diagonal().copy_(_chi(degrees, gaussian, generator))
    directions = lower / lower.norm(dim=1, keepdim=True)
    scaled = directions * norms.double()[:, None]
    return scaled @ scaled.T


def _chi(degrees: Tensor, gaussian: Tensor, generator: torch.Generator) -> Tensor:
    """chi with each of `degrees`: exact below 4,096, and beyond by Fisher's normal limit (relative error below
    1e-4).
    """
    small = degrees < 4096
    chi = (degrees - 0.5).clamp(min=0.5).sqrt() + gaussian / math.sqrt(2)
    for place in small.nonzero().squeeze(1).tolist():
        drawn = torch.randn(int(degrees[place]), dtype=torch.float64, generator=generator)
        chi[place] = drawn.norm()
    return chi


def noise_participation(norms: Tensor, dimension: int) -> float:
    """What the participation ratio of `noise_gram` is about: (sum s)^2 / (sum s^2 + sum_{i != j} s_i s_j / n), s =
    norms^2.
    """
    squares = norms.double().square()
    total, fourth = float(squares.sum()) ** 2, float(squares.square().sum())
    return total / (fourth + (total - fourth) / dimension)


def noise_rank(norms: Tensor, dimension: int, seed: int = 0) -> EffectiveRank:
    """The mean effective ranks of `REPEATS` noise matrices."""
    generator = torch.Generator().manual_seed(seed)
    return mean_rank(
        [effective_rank(eigenvalues(noise_gram(norms, dimension, generator))) for _ in range(REPEATS)]
    )


@dataclass(frozen=True)
class Growth:
    """The effective rank that fewer samples show."""

    samples: int
    rank: EffectiveRank
    """Mean over random subsets."""
    noise: float
    """Participation ratio of noise with the same norms, in as many dimensions (`noise_participation`), likewise."""


def growth(gram: Tensor, dimension: int, seed: int = 0) -> list[Growth]:
    """For all samples and for random subsets of a half, a quarter, ... of them, down to eight.

    Where the rank doubles with the samples, they do not reach the end of the spectrum.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Growth] = []
    size = len(gram)
    while size >= min(8, len(gram)):
        repeats = 1 if size == len(gram) else REPEATS
        ranks, noise = [], 0.0
        for _ in range(repeats):
            subset = torch.randperm(len(gram), generator=generator)[:size]
            part = gram[subset][:, subset]
            if part.diagonal().sum() > 0:
                ranks.append(effective_rank(eigenvalues(part)))
                noise += noise_participation(part.diagonal().clamp(min=0).sqrt(), dimension)
        if ranks:
            found.append(Growth(size, mean_rank(ranks), noise / len(ranks)))
        size //= 2
    return found[::-1]


def mean_rank(ranks: Sequence[EffectiveRank]) -> EffectiveRank:
    """Each figure's mean."""
    count = len(ranks)
    return EffectiveRank(
        sum(rank.participation for rank in ranks) / count,
        sum(rank.entropy for rank in ranks) / count,
        sum(rank.energy95 for rank in ranks) / count,
    )
