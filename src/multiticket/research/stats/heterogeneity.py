"""Do masks differ by more than what another training seed makes of one mask?

One-way random effects: a run's score is a mean, plus its mask's effect with variance tau^2, plus its own (training
seed, sampling of the evaluation) with variance sigma^2. Masks with several runs say what sigma^2 is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, fdtri

PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Heterogeneity:
    """How much of the runs' spread is the masks'."""

    masks: int
    runs: int
    between: float
    """tau, the standard deviation of masks' effects, estimated by moments and at least zero."""
    within: float
    """sigma, the standard deviation of runs of one mask."""
    ratio: float
    """tau^2 / sigma^2."""
    ratio_interval: tuple[float, float]
    """95 %, from F (exact for equal numbers of runs and normal scores; Thomas and Hultquist, 1978, otherwise)."""
    f: float
    p_value: float
    """Of no difference between masks, by F."""
    permutation_p: float
    """The same by handing the runs out to masks at random: no normality, but only where masks have several runs."""

    @property
    def between_bound(self) -> float:
        """Masks' standard deviation is at most this, at the upper end of the ratio's interval."""
        return float(np.sqrt(self.ratio_interval[1])) * self.within


def heterogeneity(
    groups: Sequence[Sequence[float]], permutations: int = PERMUTATIONS, seed: int = 0
) -> Heterogeneity:
    """The masks' part in the spread of scores.

    Args:
        groups: for each mask the scores of its runs, in [0, 1]; at least one mask has two.

    Raises:
        ValueError: fewer than two masks, or no mask with two runs, so that nothing says what a seed alone does.
    """
    sizes = np.array([len(group) for group in groups])
    if len(groups) < 2 or min(sizes) < 1 or max(sizes) < 2:
        raise ValueError(
            "Telling masks from training seeds needs at least two masks, one of them with at least two runs."
        )
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    masks, runs = len(sizes), int(sizes.sum())
    above, below = masks - 1, runs - masks
    between_square, within_square = _mean_squares(values[None, :], sizes)
    floor = 1e-12  # of a variance of shares: runs that are all alike
    f = float(between_square[0] / max(within_square[0], floor))
    effective = (runs - float((sizes**2).sum()) / runs) / above
    means = np.array([np.mean(group) for group in groups])
    harmonic = masks / float((1 / sizes).sum())
    # for equal sizes this is F itself; for unequal ones it is the variance of the unweighted means that is F-like
    f_means = harmonic * float(means.var(ddof=1)) / max(float(within_square[0]), floor)
    ends = (
        float((f_means / fdtri(above, below, 0.975) - 1) / harmonic),
        float((f_means / fdtri(above, below, 0.025) - 1) / harmonic),
    )
    variance = max(0.0, float(between_square[0] - within_square[0]) / effective)
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(values, (permutations, 1)), axis=1)
    above_them, below_them = _mean_squares(shuffled, sizes)
    at_least = above_them * within_square[0] >= between_square[0] * below_them * (1 - 1e-9)
    return Heterogeneity(
        masks=masks,
        runs=runs,
        between=float(np.sqrt(variance)),
        within=float(np.sqrt(within_square[0])),
        ratio=variance / max(float(within_square[0]), floor),
        ratio_interval=(max(0.0, ends[0]), max(0.0, ends[1])),
        f=f,
        p_value=float(fdtrc(above, below, f)),
        permutation_p=float((at_least.sum() + 1) / (permutations + 1)),
    )


def _mean_squares(
    values: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Between and within groups, of each row of `values` (rows, runs); the groups are `sizes` runs long."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    totals = np.add.reduceat(values, starts, axis=1)
    means = totals / sizes
    overall = values.mean(axis=1, keepdims=True)
    between = (sizes * (means - overall) ** 2).sum(axis=1) / (len(sizes) - 1)
    within = ((values - np.repeat(means, sizes, axis=1)) ** 2).sum(axis=1) / (values.shape[1] - len(sizes))
    return between, within
