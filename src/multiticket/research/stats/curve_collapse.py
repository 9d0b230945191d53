"""Which combination of rate and density a run's outcome depends on: y = F(rate x density^exponent), F unknown.

The exponent is the one at which the curves of all densities lie on one another (data collapse; the measure is that of
Bhattacharjee and Seno, 2001: how far each curve's points lie off the line through another's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

EXPONENTS = np.round(np.arange(0.0, 2.0001, 0.02), 2)
RESAMPLES = 200


@dataclass(frozen=True)
class CurveCollapse:
    """Where the curves come together."""

    exponent: float
    interval: tuple[float, float] | None
    """95 %, or None where runs do not tell: see :func:`collapse_curves`."""
    distance: float
    """Root mean square between curves at the exponent, in units of y."""
    apart: float | None
    """The same with exponent zero: curves against the rate alone. None where they do not overlap."""
    n: int
    """Runs."""


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve."""

    density: float
    rate: float
    y: float


def collapse_curves(runs: Sequence[CurvePoint], resamples: int = RESAMPLES, seed: int = 0) -> CurveCollapse:
    """The exponent with its interval.

    Its variance is that over runs (bootstrap within each density and rate, times S / (S - 1) for S runs in each, which
    it finds too little) plus that over densities (jackknife), which is large where no exponent brings all curves
    together. Student's t with as many degrees of freedom as densities less one. There is no interval with fewer than
    three densities, or one run in a place.

    Raises:
        ValueError: fewer than two densities, a density with fewer than two rates, or curves that never face another.
    """
    cells: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        cells.setdefault((run.density, run.rate), []).append(run.y)
    places = sorted(cells)
    densities = sorted({density for density, _ in places})
    if len(densities) < 2 or any(sum(p[0] == d for p in places) < 2 for d in densities):
        raise ValueError("A collapse needs at least two densities, each with at least two rates.")
    means = np.array([np.mean(cells[place]) for place in places])
    costs = _costs(places, means)
    best = int(np.argmin(costs))
    if np.isinf(costs[best]):
        raise ValueError(
            "No exponent brings the curves of two densities over one another: try rates that grow as the density falls."
        )
    exponent = float(EXPONENTS[best])
    variance = _variance(cells, densities, resamples, seed)
    wide = None if variance is None else float(stdtrit(len(densities) - 1, 0.975) * np.sqrt(variance))
    return CurveCollapse(
        exponent=exponent,
        interval=None if wide is None else (exponent - wide, exponent + wide),
        distance=float(np.sqrt(costs[best])),
        apart=None if np.isinf(costs[0]) else float(np.sqrt(costs[0])),
        n=len(runs),
    )


def _variance(
    cells: dict[tuple[float, float], list[float]], densities: list[float], resamples: int, seed: int
) -> float | None:
    """Of the exponent, over runs and densities; None where either cannot be told."""
    fewest = min(map(len, cells.values()))
    if len(densities) < 3 or fewest < 2:
        return None
    places = sorted(cells)
    generator = np.random.default_rng(seed)
    drawn = [
        np.array([np.mean(generator.choice(cells[place], len(cells[place]))) for place in places])
        for _ in range(resamples)
    ]
    over_runs = np.var([_best(places, means) for means in drawn], ddof=1) * fewest / (fewest - 1)
    without = []
    for density in densities:
        kept = [place for place in places if place[0] != density]
        without.append(_best(kept, np.array([np.mean(cells[place]) for place in kept])))
    over_densities = np.var(without) * (len(densities) - 1)
    grid = float(EXPONENTS[1] - EXPONENTS[0]) ** 2 / 12
    return float(over_runs + over_densities + grid)


def _best(places: list[tuple[float, float]], means: NDArray[np.float64]) -> float:
    return float(EXPONENTS[int(np.argmin(_costs(places, means)))])


def _costs(places: list[tuple[float, float]], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(exponents,): the mean square distance between curves; infinite where too few points face another curve."""
    density = np.log([place[0] for place in places])
    rate = np.log([place[1] for place in places])
    curves = [density == value for value in sorted(set(density.tolist()))]
    costs = np.full(len(EXPONENTS), np.inf)
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
