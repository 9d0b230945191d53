"""Which combination of rate and density a run's outcome depends on: y = F(rate x density^exponent), F unknown.

The exponent is the one at which the curves of all densities lie on one another (data collapse; the measure is that of
Bhattacharjee and Seno, 2001: how far each curve's points lie off the line through another's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXPONENTS = np.round(np.arange(0.0, 2.0001, 0.02), 2)
RESAMPLES = 500


@dataclass(frozen=True)
class Collapse:
    """Where the curves come together."""

    exponent: float
    interval: tuple[float, float] | None
    """95 %, percentiles over runs drawn with replacement within each density and rate; None with one run in each."""
    distance: float
    """Root mean square between curves at the exponent, in units of y."""
    apart: float
    """The same with the exponent nought: curves against the rate alone."""
    n: int
    """Runs."""


@dataclass(frozen=True)
class Run:
    """One point of a curve."""

    density: float
    rate: float
    y: float


def collapse(runs: Sequence[Run], resamples: int = RESAMPLES, seed: int = 0) -> Collapse:
    """The exponent with its interval.

    Raises:
        ValueError: fewer than two densities, or a density with fewer than two rates.
    """
    cells: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        cells.setdefault((run.density, run.rate), []).append(run.y)
    places = sorted(cells)
    densities = sorted({density for density, _ in places})
    if len(densities) < 2 or any(sum(p[0] == d for p in places) < 2 for d in densities):
        raise ValueError("A collapse takes two densities or more, each with two rates or more.")
    means = np.array([np.mean(cells[place]) for place in places])
    costs = _costs(places, means)
    best = int(np.nanargmin(costs))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples if any(len(ys) > 1 for ys in cells.values()) else 0):
        drawn = np.array([np.mean(generator.choice(cells[place], len(cells[place]))) for place in places])
        found.append(EXPONENTS[int(np.nanargmin(_costs(places, drawn)))])
    low, high = np.quantile(found, [0.025, 0.975]) if found else (0.0, 0.0)
    return Collapse(
        exponent=float(EXPONENTS[best]),
        interval=(float(low), float(high)) if found else None,
        distance=float(np.sqrt(costs[best])),
        apart=float(np.sqrt(costs[0])),
        n=len(runs),
    )


def _costs(places: list[tuple[float, float]], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(exponents,): the mean square distance between curves; nan where too few of them face each other."""
    density = np.log([place[0] for place in places])
    rate = np.log([place[1] for place in places])
    curves = [density == value for value in sorted(set(density.tolist()))]
    costs = np.full(len(EXPONENTS), np.nan)
    for number, exponent in enumerate(EXPONENTS):
        x = rate + exponent * density
        squares = []
        for curve in curves:
            for other in curves:
                if curve is other:
                    continue
                inside = curve & (x >= x[other].min() - 1e-9) & (x <= x[other].max() + 1e-9)
                squares.extend((means[inside] - np.interp(x[inside], x[other], means[other])) ** 2)
        if len(squares) >= len(places) / 2:
            costs[number] = np.mean(squares)
    return costs
