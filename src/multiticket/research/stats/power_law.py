"""An exponent with its interval: y = c x^exponent, fitted in logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import linregress

RESAMPLES = 10_000


@dataclass(frozen=True)
class PowerLaw:
    """What y is to x."""

    exponent: float
    interval: tuple[float, float]
    """95 %, of least squares with Student's t: wide where points lie far off the line, also where the law bends."""
    bootstrap: tuple[float, float]
    """95 %, percentiles over points drawn with replacement."""
    scale: float
    """c: y at x = 1."""
    r_squared: float
    n: int

    def at(self, x: float) -> float:
        """The y that the law gives."""
        return float(self.scale * x**self.exponent)


def power_law(x: Sequence[float], y: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> PowerLaw:
    """Least squares of log y on log x.

    Raises:
        ValueError: fewer than three points, fewer than two different x, or a number that has no logarithm.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) != len(b) or len(a) < 3 or len(set(a.tolist())) < 2:
        raise ValueError("A power law needs at least three points, at two or more different places.")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise ValueError("A power law needs positive values.")
    a, b = np.log(a), np.log(b)
    line = linregress(a, b)
    slope, wide = float(line.slope), float(stdtrit(len(a) - 2, 0.975) * line.stderr)
    return PowerLaw(
        exponent=slope,
        interval=(slope - wide, slope + wide),
        bootstrap=_bootstrap(a, b, resamples, seed),
        scale=float(np.exp(line.intercept)),
        r_squared=float(line.rvalue) ** 2 if np.ptp(b) else 1.0,
        n=len(a),
    )


def _bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], resamples: int, seed: int
) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    x, y = a[drawn], b[drawn]
    x = x - x.mean(axis=1, keepdims=True)
    squares = (x**2).sum(axis=1)
    kept = squares > 1e-12 * float(((a - a.mean()) ** 2).sum())  # draws of one x alone have no slope
    low, high = np.quantile((x * y).sum(axis=1)[kept] / squares[kept], [0.025, 0.975])
    return float(low), float(high)
