"""Accuracy from samples: pass@1, pass@k and intervals that treat problems, not samples, as the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that at least one of k completions is right: 1 - C(n - c, k) / C(n, k).

    Unbiased when `correct` of `samples` independent completions were right (Chen et al., 2107.03374,
    equation 1).

    Raises:
        ValueError: if k is larger than the number of samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem; there are {samples}.")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_interval(scores: Sequence[float], samples: int = 1) -> tuple[float, float, float]:
    """The mean of per-problem accuracies with its 95 % interval, problems being the unit.

    Wilson's interval at the effective sample size n* = p (1 - p) / Var(mean), Var being the variance of the
    per-problem accuracies over their number (Korn and Graubard, 1998): it counts problems that differ in
    difficulty as fewer samples than independent ones, and never leaves [0, 1]. n* is at most the number of
    completions, and the number of problems where the accuracies do not vary at all.

    Args:
        scores: one number in [0, 1] a problem, the mean over its `samples` completions.

    Returns:
        mean, lower end, upper end.
    """
    if not scores:
        raise ValueError("An interval needs at least one problem.")
    n = len(scores)
    mean = sum(scores) / n
    variance = sum((score - mean) ** 2 for score in scores) / max(n - 1, 1)
    effective: float = n
    if variance > 0 and 0 < mean < 1:
        effective = min(mean * (1 - mean) * n / variance, n * samples)
    low, high = wilson(mean, effective)
    return mean, low, high


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion seen in n independent trials (n need not be whole)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
