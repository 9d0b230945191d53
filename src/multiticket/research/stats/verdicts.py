"""Several ways of training judged at once against one reference, on the same problems.

The difference of each from the reference, with its variance over problems and runs, is
:func:`multiticket.evaluate.paired.paired_difference`; here are its p-values, and what is left of them when many are
judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from multiticket.evaluate.paired import Difference, Scores, paired_difference
from multiticket.research.stats.multiplicity import holm

MARGIN = 0.02
"""Accuracy that may be lost and still count as matching: 2 points."""
ALPHA = 0.05
RESAMPLES = 2_000
"""Of the bootstrap beside each interval; no verdict rests on it."""


@dataclass(frozen=True)
class Judged:
    """One of several sides against the reference."""

    runs: int
    reference_runs: int
    difference: Difference
    """This side minus the reference, with intervals of its own."""
    p_worse: float
    """One-sided, of non-inferiority: the probability of a difference this high if it were really -margin."""
    p_better: float
    """One-sided, the other way: the probability of a difference this low if it were really +margin."""
    adjusted_p: float
    """The same by Holm's rule over all sides."""
    simultaneous: tuple[float, float]
    """95 % for all sides together (Bonferroni): in 95 of 100 studies every such interval holds its true difference."""
    margin: float

    @property
    def not_worse(self) -> bool:
        """Shown to be worse by less than the margin, with all sides judged at once."""
        return self.adjusted_p <= ALPHA

    @property
    def same(self) -> bool:
        """Shown to differ by less than the margin, by itself (two one-sided tests; Schuirmann, 1987)."""
        return max(self.p_worse, self.p_better) <= ALPHA

    @property
    def better(self) -> bool:
        """Shown to be better by more than the margin, with all sides judged at once."""
        return self.simultaneous[0] > self.margin

    @property
    def worse(self) -> bool:
        """Shown to be worse by more than the margin, with all sides judged at once."""
        return self.simultaneous[1] < -self.margin


def judge_all(pairs: Sequence[tuple[Scores, Scores, int]], margin: float = MARGIN) -> list[Judged]:
    """Each side against its reference, all at once.

    A side of one run is judged as that run, with the problems as its only uncertainty; a side of several runs as the
    way of training that they are drawn from.

    Args:
        pairs: of each side the reference's scores, its own, each (runs, problems) of shares of right completions on
            the same problems, and the completions behind each score.
    """
    differences = [
        paired_difference(reference, side, samples, RESAMPLES) for reference, side, samples in pairs
    ]
    p_values = [non_inferiority_p(difference, margin) for difference in differences]
    return [
        Judged(
            runs=len(side),
            reference_runs=len(reference),
            difference=difference,
            p_worse=p,
            p_better=1 - non_inferiority_p(difference, -margin),
            adjusted_p=adjusted,
            simultaneous=interval_at(difference, 1 - ALPHA / len(pairs)),
            margin=margin,
        )
        for (reference, side, _), difference, p, adjusted in zip(
            pairs, differences, p_values, holm(p_values), strict=True
        )
    ]


def non_inferiority_p(difference: Difference, margin: float) -> float:
    """One-sided p of "worse by at least `margin`": P(T > (difference + margin) / standard error)."""
    t = (difference.difference + margin) / difference.standard_error
    return float(stdtr(difference.degrees_of_freedom, -t))


def interval_at(difference: Difference, confidence: float) -> tuple[float, float]:
    """The two-sided interval of a difference at another confidence than 95 %, within [-1, 1]."""
    quantile = float(stdtrit(difference.degrees_of_freedom, (1 + confidence) / 2))
    wide = quantile * difference.standard_error
    return max(-1.0, difference.difference - wide), min(1.0, difference.difference + wide)
