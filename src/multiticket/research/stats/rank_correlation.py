"""Rank correlation of a few runs, with p-values by permutation: no assumption about how anything is distributed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

EXACT_UP_TO = 8
"""Runs of which all orders are gone through (40,320 of them)."""
ORDERS = 20_000
"""Random orders for more runs than that."""


@dataclass(frozen=True)
class RankCorrelation:
    """Of one predictor with the outcome; two-sided p-values."""

    predictor: str
    spearman: float
    """Pearson's correlation of the ranks, ties given their mean rank."""
    spearman_p: float
    kendall: float
    """tau-b: concordant minus discordant pairs over the geometric mean of the untied pairs of either side."""
    kendall_p: float
    family_p: float
    """The chance that any of the predictors tried has as large a Spearman correlation, were the outcome shuffled."""


def correlations(
    predictors: Mapping[str, Sequence[float]], outcome: Sequence[float]
) -> list[RankCorrelation]:
    """Of each predictor with the outcome, one number a run. A predictor that is the same for all runs is left out.

    A p-value is the share of orders of the outcome with a correlation at least as far from 0: of all orders up to
    eight runs, else of 20,000 random ones (always the same), the observed one counted in.

    Raises:
        ValueError: there are fewer than four runs, or the outcome is the same for all.
    """
    count = len(outcome)
    if count < 4:
        raise ValueError(f"A rank correlation needs at least four runs; there are {count}.")
    if len(set(outcome)) == 1:
        raise ValueError("All runs have the same accuracy, so nothing can predict it.")
    named = {name: list(values) for name, values in predictors.items() if len(set(values)) > 1}
    if not named:
        return []
    orders = _orders(count)
    spearman = _spearman(rankdata([*named.values()], axis=1), rankdata(outcome), orders)
    kendall = _kendall([_signs(values) for values in named.values()], _signs(outcome), orders)
    strongest = np.abs(spearman).max(0)
    return [
        RankCorrelation(
            name,
            float(spearman[i, 0]),
            _share(np.abs(spearman[i]), abs(spearman[i, 0])),
            float(kendall[i, 0]),
            _share(np.abs(kendall[i]), abs(kendall[i, 0])),
            _share(strongest, abs(spearman[i, 0])),
        )
        for i, name in enumerate(named)
    ]


def _orders(count: int) -> np.ndarray:
    """(orders, count) int64, the first the identity."""
    if count <= EXACT_UP_TO:
        return np.array(list(itertools.permutations(range(count))))
    generator = np.random.default_rng(0)
    random = np.stack([generator.permutation(count) for _ in range(ORDERS)])
    return np.concatenate([np.arange(count)[None], random])


def _spearman(x: np.ndarray, y: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Ranks (predictors, n) and (n,) to (predictors, orders)."""
    x = x - x.mean(1, keepdims=True)
    y = y - y.mean()
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y))[orders].T


def _signs(values: Sequence[float]) -> np.ndarray:
    """(n, n): the sign of each difference."""
    array = np.asarray(values, dtype=np.float64)
    return np.sign(array[:, None] - array[None, :])


def _kendall(x: Sequence[np.ndarray], y: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Signs (n, n) of each predictor and of the outcome to (predictors, orders)."""
    first, second = np.triu_indices(len(y), 1)
    shuffled = y[orders[:, first], orders[:, second]]
    upper = np.stack([signs[first, second] for signs in x])
    norms = np.sqrt((upper**2).sum(1))[:, None] * math.sqrt(float((y[first, second] ** 2).sum()))
    return upper @ shuffled.T / norms


def _share(among: np.ndarray, observed: Any) -> float:
    return float((among >= observed - 1e-12).mean())
