"""Medians, ratios within a round, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000


def ratio(seconds: Sequence[float], reference: Sequence[float], processes: int = 1) -> dict[str, Any]:
    """The median of the ratios within each round, with its 95 % interval.

    A round's steps run one after another, so a slow moment of the machine hits both sides of a ratio.
    """
    ratios = np.asarray(seconds, dtype=float) / np.asarray(reference, dtype=float)
    return {"median": float(np.median(ratios)), "interval": list(interval(ratios, processes))}


def interval(values: Sequence[float] | np.ndarray, processes: int = 1) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap (percentiles of the medians of resampled rounds).

    Args:
        values: one a round.
        processes: that the rounds, in order, are evenly from. Several are resampled too, for what is a process's own
            luck (where its memory lies) is in all its rounds.
    """
    values = np.asarray(values, dtype=float)
    generator = np.random.default_rng(0)
    shape = (RESAMPLES, processes, len(values) // processes)
    chosen = generator.integers(processes, size=shape[:2])[..., None] if processes > 1 else 0
    rounds = generator.integers(shape[2], size=shape)
    medians = np.median(values[(chosen * shape[2] + rounds).reshape(RESAMPLES, -1)], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of an arm's own times."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype=float), [25, 50, 75])
    return {"median": float(middle), "quartile_1": float(low), "quartile_3": float(high)}
