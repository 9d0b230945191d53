"""How much of the gradients' geometry a mask keeps, and how much random sampling should lose.

The masked Gram matrix G^M over the mask's positions, divided by the density d, estimates the full one without bias
where every coordinate is drawn with probability d. G^M is also the empirical tangent kernel of training the mask
alone: a gradient step on the masked values moves sample j's log-probability by rate * sum_i A_i G^M_ij. So where
G^M = d G, training the mask at rate / d takes the same first step in function space as training everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multiticket.mask import Mask
from multiticket.research.theory.delocalisation import directions, leading_vectors
from multiticket.research.theory.gram import Grams


@dataclass(frozen=True)
class Kept:
    """A masked Gram matrix G^M against the full one, G."""

    energy: float
    """tr G^M / tr G: the share of the gradients' squared norm that lies in the mask."""
    mean_energy: float
    """The same of the mean gradient, 1^T G^M 1 / 1^T G 1."""
    frobenius: float
    """||G^M / d - G||_F / ||G||_F."""
    operator: float
    """||G^M / d - G|| / ||G||, in the spectral norm."""
    alignment: float
    """<G^M, G> / (||G^M||_F ||G||_F), 1 where they are proportional; sqrt(1 - alignment^2) is the relative
    Frobenius error at the best scale, which a learning rate takes care of.
    """
    cosines: tuple[float, ...]
    """Of the principal angles between the leading eigenspaces, descending."""

    @property
    def overlap(self) -> float:
        """Mean squared cosine: 1 for equal eigenspaces, rank / samples for random ones."""
        return sum(cosine**2 for cosine in self.cosines) / len(self.cosines)


def kept(full: Tensor, masked: Tensor, density: float, rank: int) -> Kept:
    """Compare Gram matrices (samples, samples) fp64; directions that the masked one lacks have cosine 0.

    Raises ValueError where the full one has fewer than `rank` directions.
    """
    estimate = masked / density
    error = estimate - full
    norm, masked_norm = full.norm(), masked.norm()
    space = leading_vectors(full, rank)[1]
    there = min(rank, directions(masked))
    cosines = torch.zeros(rank, dtype=torch.float64)
    if there:
        cosines[:there] = torch.linalg.svdvals(space.T @ leading_vectors(masked, there)[1]).clamp(max=1)
    return Kept(
        energy=float(masked.trace() / full.trace()),
        mean_energy=float(masked.sum() / full.sum()),
        frobenius=float(error.norm() / norm),
        operator=float(torch.linalg.matrix_norm(error, 2) / torch.linalg.matrix_norm(full, 2)),
        alignment=float((masked * full).sum() / (norm * masked_norm)) if masked_norm else 0.0,
        cosines=tuple(cosines.tolist()),
    )


def sampling_variance(
    squares: Tensor | float, product: Tensor | float, numel: int, count: int
) -> Tensor | float:
    """The variance of the sum of `count` of `numel` numbers x_c drawn without replacement, uniformly.

    k (1 - k / n) (sum x^2 - (sum x)^2 / n) / (n - 1) (Cochran, 1977, theorem 2.2); with x_c = g_ic g_jc the
    variance of a masked inner product, about k / n (1 - k / n) sum_c (g_ic g_jc)^2.

    Args:
        squares: sum_c x_c^2.
        product: (sum_c x_c)^2.
    """
    if numel < 2:
        return squares * 0.0
    return count * (1 - count / numel) * (squares - product / numel) / (numel - 1)


def predicted_error(
    grams: Grams, numel: Mapping[str, int], count: Mapping[str, int], density: float
) -> float:
    """The root mean square of ||G^M / d - G||_F / ||G||_F over masks of `count` positions drawn uniformly in each
    tensor.

    Exact: E ||G^M / d - G||_F^2 = ||sum_t (k_t / (n_t d) - 1) G_t||_F^2 + sum_t Var_t / d^2, the draws being
    independent from tensor to tensor, and Var_t the `sampling_variance` summed over all pairs of samples. Holds
    for the methods ``random``, ``numpy``, ``layers`` and ``modules``; for others it is what the same counts would
    give if drawn at random.

    Args:
        numel, count: entries, and positions of the mask, by tensor.
    """
    bias = torch.zeros_like(grams.full)
    variance = 0.0
    for name, gram in grams.by_tensor.items():
        n, k = numel[name], count[name]
        bias += (k / (n * density) - 1) * gram
        variance += float(sampling_variance(grams.fourth[name], float(gram.square().sum()), n, k))
    total = float(bias.square().sum()) + variance / density**2
    return math.sqrt(total / float(grams.full.square().sum()))


def predicted_error_of(grams: Grams, mask: Mask, density: float) -> float:
    """`predicted_error` for a mask's own counts."""
    numel = {name: math.prod(mask.shapes[name]) if name in mask.shapes else 1 for name in grams.by_tensor}
    return predicted_error(grams, numel, {name: mask.count(name) for name in grams.by_tensor}, density)
