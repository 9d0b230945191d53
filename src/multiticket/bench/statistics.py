"""Medians, ratios within a round, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The median of the ratios within each round, with its 95 % interval.

    A round's steps run one after another, so a slow moment of the machine hits both sides of a ratio.
    """
    ratios = np.asarray(seconds, dtype=float) / np.asarray(reference, dtype=float)
    return {"median": float(np.median(ratios)), "interval": list(interval(ratios))}


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap (percentiles of the medians of resampled rounds)."""
    values = np.asarray(values, dtype=float)
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, size=(RESAMPLES, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of an arm's own times."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype=float), [25, 50, 75])
    return {"median": float(middle), "quartile_1": float(low), "quartile_3": float(high)}
