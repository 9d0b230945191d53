"""Many judgements at once: how sure each may still be called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values by Holm's step-down rule (1979): those at most alpha are all right, but for a chance of alpha.

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than one before it. Holds however the tests
    depend on each other, such as masks that are all compared with the same full runs.
    """
    p = np.asarray(p_values, dtype=np.float64)
    assert p.ndim == 1
    assert ((p >= 0) & (p <= 1)).all()
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
