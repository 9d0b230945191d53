"""The difference between two ways of training, measured on the same problems.

Problems differ in difficulty far more than two good models differ from each other, so the difference is taken problem
by problem, and problems are the unit. Where a side has several runs, they are a second unit: problems are crossed
with runs, and both may have come out otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit

Scores = NDArray[np.float64]
"""(runs, problems): each run's share of right completions of each problem, in [0, 1]."""

RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True)
class Difference:
    """B minus A, in [-1, 1], and what it could have been."""

    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    """95 %, from the variance over problems and runs, with Student's t."""
    bootstrap: tuple[float, float]
    """95 %, percentiles of the paired bootstrap over problems, and over runs where a side has several."""
    lower_bound: float
    """The difference is above it with 95 % confidence (one-sided, as `interval`): for non-inferiority."""
    upper_bound: float
    """The difference is below it with 95 % confidence."""
    standard_error: float
    degrees_of_freedom: float

    def not_worse_by(self, margin: float) -> bool:
        """Whether B is shown to be worse than A by less than `margin`, at most 5 % of the time wrongly."""
        return self.lower_bound > -margin

    def worse_by(self, margin: float) -> bool:
        """Whether B is shown to be worse than A by more than `margin`."""
        return self.upper_bound < -margin


def paired_difference(
    a: Scores, b: Scores, samples: int = 1, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """How much better B's mean score is than A's, on the same problems.

    Args:
        a, b: (runs, problems); the two sides may have different numbers of runs, which are not paired.
        samples: completions behind each score, the smaller number where the sides differ.
        resamples: of the bootstrap; the same seed gives the same interval.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ValueError(
            "A comparison needs at least one run a side, with the same number of problems, at least one."
        )
    difference = float(b.mean() - a.mean())
    error, freedom = _error(a, b, samples)
    wide, one_sided = (float(stdtrit(freedom, p)) * error for p in (0.975, 0.95))
    low, high = np.quantile(_resampled(a, b, resamples, seed), [0.025, 0.975])
    return Difference(
        a=float(a.mean()),
        b=float(b.mean()),
        difference=difference,
        interval=(max(-1.0, difference - wide), min(1.0, difference + wide)),
        bootstrap=(float(low), float(high)),
        lower_bound=max(-1.0, difference - one_sided),
        upper_bound=min(1.0, difference + one_sided),
        standard_error=error,
        degrees_of_freedom=freedom,
    )


def _error(a: Scores, b: Scores, samples: int) -> tuple[float, float]:
    """Standard error of the difference of means, and its degrees of freedom (Satterthwaite, 1946).

    The variance over problems is that of the per-problem differences with two problems more, one won and one lost by a
    single completion: for yes-or-no scores this is Bonett and Price (2012), whose interval keeps its coverage for few
    problems, and does not vanish where no problem came out differently. The variance over the runs of a side is that
    of their means; what both contain, the noise of single completions, is counted twice rather than taken out, which
    widens the interval where runs differ by little else.
    """
    smallest = 1 / (samples * min(len(a), len(b)))
    per_problem = b.mean(axis=0) - a.mean(axis=0)
    padded = np.concatenate([per_problem, [smallest, -smallest]])
    parts = [(float(padded.var(ddof=1)) / len(padded), float(len(padded) - 1))]
    for side in (a, b):
        if len(side) > 1:
            parts.append((float(side.mean(axis=1).var(ddof=1)) / len(side), float(len(side) - 1)))
    variance = sum(part for part, _ in parts)
    return math.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts)


def _resampled(a: Scores, b: Scores, resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples,) differences on problems drawn with replacement, the same for both sides, and runs likewise.

    Problems and runs are drawn independently (the pigeonhole bootstrap, Owen, 2007). Of S runs it finds only
    (S - 1) / S of their variance, so with few runs it is too narrow, and verdicts rest on the interval by variance.
    """
    generator = np.random.default_rng(seed)
    problems = a.shape[1]
    differences = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        drawn = _shares(generator, problems, count)
        means = []
        for side in (a, b):
            by_run = drawn @ side.T
            means.append((by_run * _shares(generator, len(side), count)).sum(axis=1))
        differences.append(means[1] - means[0])
    return np.concatenate(differences)


def _shares(generator: np.random.Generator, units: int, count: int) -> NDArray[np.float64]:
    """(count, units): how often each unit was drawn in `units` draws with replacement, over `units`."""
    return generator.multinomial(units, np.full(units, 1 / units), size=count) / units


@dataclass(frozen=True)
class Discordance:
    """Yes-or-no results of two models on the same problems."""

    only_a: int
    """Problems that A alone got right."""
    only_b: int
    p_value: float
    """Of McNemar's exact test (two-sided): how likely a split as uneven as this were if both were equally good."""


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Discordance:
    """McNemar's exact test of two models' answers (problems,): 2 P(X <= min(n01, n10)), X ~ B(n01 + n10, 1/2)."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    tail = float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))
    return Discordance(only_a, only_b, min(1.0, 2 * tail))
