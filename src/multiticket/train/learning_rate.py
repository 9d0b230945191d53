"""A learning rate that sets itself: the one at which a step moves the policy by a given KL a completion.

What a step does to a policy depends on rate x density, far more than on either: the KL that it moves grows as the
square of the rate, and at one rate x density it is the same for a full model and for a ticket. So the rate is found
from the KL. Before the first optimiser step, that very step is tried at several rates on the first batch of rollouts,
and taken back each time, until it moves the target. Adam's first step is a sign step and one batch is noisy, so the
first few real steps then correct the rate once, and from there on it stays.

No torch here: the trainer calls ``solve_rate`` and ``RateController`` with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TRIES = 8
"""Rates tried before the first step, at one forward pass over ``kl_rollouts`` each."""
CLOSE = 0.1
"""A tried KL this near its target, in relative terms, is good enough."""
SETTLING_STEPS = 5
"""Real steps whose mean KL corrects the rate."""
LATER_SHARE = 0.4
"""Mean KL of the first five real steps over that of the first: Adam's later steps average the noise out. Measured on
the shipped base, both tasks, densities from 1 to 0.001 (``docs/results/learning_rate.md``)."""
LARGEST_CORRECTION = 3.0
"""The settling steps change the rate by this factor at most, either way."""


def solve_rate(kl_at: Callable[[float], float], target: float, start: float) -> float:
    """The rate at which ``kl_at(rate)`` is ``target``, found by KL ~ rate^2 from ``start``.

    Args:
        kl_at: nats that one step at a rate moves; may be 0 (too small to see), inf or nan (broken).

    Returns:
        the first rate within ``CLOSE`` of the target, else the nearest below it that was tried (in the logarithm), or
        failing that the smallest tried.
    """
    rate, tried = start, dict[float, float]()
    for _ in range(TRIES):
        kl = kl_at(rate)
        if abs(kl - target) <= CLOSE * target:
            return rate
        tried[rate] = kl
        if not math.isfinite(kl):
            rate /= 10
        elif kl <= 0:
            rate *= 10
        else:
            rate *= min(10.0, max(0.1, math.sqrt(target / kl)))
        if rate in tried:
            break
    below = {rate: kl for rate, kl in tried.items() if 0 < kl <= target}
    return max(below, key=lambda rate: below[rate]) if below else min(tried)


@dataclass
class RateController:
    """The rate of a run that was asked to find its own.

    The run calls ``begin`` with the rate that ``solve_rate`` found, and ``update`` after every optimiser step.
    """

    target: float
    """KL of the first step, in nats a completion."""
    rate: float | None = None
    """None before the first step."""
    seen: list[float] = field(default_factory=list)
    """KL of the settling steps so far."""

    def begin(self, rate: float) -> None:
        self.rate = rate

    def update(self, kl: float) -> None:
        """Take the KL that a step at the present rate moved; after ``SETTLING_STEPS`` of them the rate is settled."""
        assert self.rate is not None
        if len(self.seen) >= SETTLING_STEPS:
            return
        self.seen.append(kl)
        if len(self.seen) == SETTLING_STEPS:
            self.rate *= correction(self.seen, LATER_SHARE * self.target)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON holds it exactly."""
        return {"target": self.target, "rate": self.rate, "seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target, self.rate, self.seen = state["target"], state["rate"], list(state["seen"])


def correction(kls: list[float], target: float) -> float:
    """What to multiply a rate with so that the mean of ``kls`` becomes ``target``, within ``LARGEST_CORRECTION``.

    1 where nothing can be said: no KL is a number, or all are 0 (every reward was the same, and no step moved).
    """
    finite = [kl for kl in kls if math.isfinite(kl)]
    if len(finite) < len(kls):
        return 1 / LARGEST_CORRECTION
    mean = sum(finite) / len(finite)
    if mean <= 0:
        return 1.0
    return min(LARGEST_CORRECTION, max(1 / LARGEST_CORRECTION, math.sqrt(target / mean)))
