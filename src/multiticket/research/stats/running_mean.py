"""What noisy steps come to, step by step."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 5
"""Steps in the running mean of a learning curve."""


def running_mean(numbers: Sequence[float], window: int) -> list[float]:
    """The mean of each number and up to `window` - 1 before it."""
    recent = (numbers[max(0, place - window + 1) : place + 1] for place in range(len(numbers)))
    return [sum(few) / len(few) for few in recent]
