"""Tails and quantiles of Student's t and of F, from the incomplete beta integral, in numpy alone."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

_POINTS = 40_001
_LARGEST = 1e6
"""Degrees of freedom beyond which nothing changes that anybody reads."""


def beta_share(z: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_z(a, b), for a and b of at least one half.

    With z = sin(x)^2 it is the share of the integral of sin(x)^(2a - 1) cos(x)^(2b - 1) over [0, pi/2] that lies
    below asin(sqrt(z)). Good to six digits.
    """
    assert 0 <= z <= 1
    assert min(a, b) >= 0.5
    if 2 * z > 1:
        return 1.0 - _lower_share(1 - z, b, a)
    return _lower_share(z, a, b)


def _lower_share(z: float, a: float, b: float) -> float:
    if z == 0:
        return 0.0
    top = math.asin(math.sqrt(z))
    total = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) - math.log(2)
    x = np.linspace(0, top, _POINTS)[1:]
    log_density = (2 * a - 1) * np.log(np.sin(x)) + (2 * b - 1) * np.log(np.cos(x)) - total
    density = np.exp(log_density)
    first = density[0] / (2 * a)  # near nought the density goes as x^(2a - 1)
    return float(min(1.0, (first + np.sum((density[1:] + density[:-1]) / 2)) * top / (_POINTS - 1)))


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t; `freedom` of at least one, and need not be whole."""
    freedom = min(max(freedom, 1.0), _LARGEST)
    beyond = beta_share(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
    return beyond if t >= 0 else 1.0 - beyond


def f_tail(f: float, above: float, below: float) -> float:
    """P(F > f) of the F distribution with `above` and `below` degrees of freedom, each at least one."""
    if f <= 0:
        return 1.0
    above, below = min(above, _LARGEST), min(below, _LARGEST)
    return beta_share(below / (below + above * f), below / 2, above / 2)


@cache
def f_quantile(probability: float, above: float, below: float) -> float:
    """The f with P(F <= f) = `probability`, by bisection."""
    assert 0 < probability < 1
    low, high = -40.0, 40.0  # of its logarithm
    for _ in range(60):
        middle = (low + high) / 2
        if f_tail(math.exp(middle), above, below) > 1 - probability:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
