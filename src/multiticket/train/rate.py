"""Find the learning rate by the KL that a step moves, and correct it as the run goes on. No torch here.

Runs of every density lie on one curve over the KL(before || after) that one optimiser step moves, and for small
steps that KL is c * rate^2. It is counted over whole completions: at the rates that learn best, a token of a short
answer and one of a long answer move by very different amounts, and whole answers by the same. So a rate is found by
measuring the sensitivity c: first by a probe on the first batch, then from the steps themselves, because Adam's first
step is a sign step and its KL alone is noisy.

The fewer values train, the further each must go for the same KL. Where a step would carry them past the size of the
weights themselves, the policy is no longer a small change of the base, and runs with less KL a step learn more: so
a rate has an upper bound too, `MOST_STRIDE` times the typical size of the trained weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Control = Literal["probe", "average", "hold"]

AVERAGED_STEPS = 5
GAIN = 0.05
"""Weight of each later step's sensitivity in the running mean that `hold` follows: a memory of about 20 steps."""
REACH = 3.0
"""The rate never leaves [found / REACH, found * REACH]: where rewards saturate a step's KL goes to zero at any rate."""
MOST_STRIDE = 2.0
"""The largest rate, in root mean squares of the trained weights: how far Adam's step moves one, about."""
_OUTLIER = 100.0
"""A step whose KL is further than this factor from the target counts as if it were this far."""
_LARGEST_RATE = 10.0
_LARGEST_STRIDE = 30.0


class RateController:
    """The learning rate of each step, for a target KL a step. Calling it gives the rate: it is a LambdaLR's lambda.

    ``probe``: the rate it starts with is kept. ``average``: the first `AVERAGED_STEPS` steps correct it, by
    rate = sqrt(target / c) with c the geometric mean of their sensitivities kl / rate^2; then it is kept. ``hold``:
    as ``average``, then the mean becomes a slow running one for the rest of the run, and the rate follows it within
    `REACH` of the averaged rate.

    Until a rate is found it gives 0: there is no gradient then, and nothing is to move by weight decay alone.

    Its attributes are plain numbers, which torch's scheduler saves and restores with its own state.

    Args:
        target: KL a step, in nats a completion.
        fallback: where the search begins.
        weight: root mean square of the trained weights, which bounds the rate; None for no bound.
    """

    def __init__(self, target: float, control: Control, fallback: float, weight: float | None = None) -> None:
        self.target = target
        self.control = control
        self.most = math.inf if weight is None else MOST_STRIDE * weight
        self.rate = fallback
        self.found: float | None = None
        """The rate around which it stays within `REACH`: the probe's, then the averaged one."""
        self.log_sensitivity = 0.0
        """Mean of log(kl / rate^2) over the steps seen."""
        self.steps = 0
        """Steps whose KL was used."""

    def __call__(self, step: int) -> float:
        return self.rate if self.started else 0.0

    @property
    def started(self) -> bool:
        return self.found is not None

    def start(self, rate: float) -> None:
        """Take the rate that a probe found."""
        self.rate = self.found = min(rate, self.most)
        self.steps = 0

    def update(self, kl: float) -> float:
        """Learn from the KL of a step taken at the present rate; the next step's rate.

        A KL that is zero, negative or not a number says nothing and changes nothing; an infinite one counts as an
        outlier.
        """
        if self.found is None or self.control == "probe" or not kl > 0:
            return self.rate
        if self.control == "average" and self.steps >= AVERAGED_STEPS:
            return self.rate
        ratio = min(max(kl / self.target, 1 / _OUTLIER), _OUTLIER)
        sensitivity = math.log(ratio * self.target) - 2 * math.log(self.rate)
        self.steps += 1
        weight = 1 / self.steps if self.steps <= AVERAGED_STEPS else GAIN
        self.log_sensitivity += weight * (sensitivity - self.log_sensitivity)
        wanted = math.exp((math.log(self.target) - self.log_sensitivity) / 2)
        self.rate = min(max(wanted, self.found / REACH), self.found * REACH, self.most)
        if self.steps == AVERAGED_STEPS:
            self.found = self.rate
        return self.rate


def solve_rate(
    measure: Callable[[float], float],
    guess: float,
    target: float,
    tolerance: float = 0.05,
    evaluations: int = 12,
) -> float | None:
    """The rate at which `measure` (KL of a step at a rate, growing with it) gives `target`.

    Steps by the sqrt rule, rate * sqrt(target / kl), inside the bracket known so far and by halving it (in logs)
    where the rule leaves it; a KL that is not finite counts as too large.

    Args:
        tolerance: largest |log(kl / target)| to stop at.
        evaluations: how often `measure` is called at most; the nearest rate seen is taken then.

    Returns:
        None if no rate up to 10 comes within a factor of 2 of the target.
    """
    low, high = 0.0, math.inf
    rate = guess
    best: tuple[float, float] | None = None
    for _ in range(evaluations):
        kl = measure(rate)
        finite = math.isfinite(kl)
        moved = finite and kl > 0
        if moved:
            error = abs(math.log(kl / target))
            if best is None or error < best[0]:
                best = (error, rate)
            if error <= tolerance:
                break
        if finite and kl < target:
            low = rate
        else:
            high = rate
        stride = math.sqrt(target / kl) if moved else (_LARGEST_STRIDE if finite else 1 / _LARGEST_STRIDE)
        following = rate * min(max(stride, 1 / _LARGEST_STRIDE), _LARGEST_STRIDE)
        if not low < following < high:
            following = math.sqrt(low * high) if low > 0 else rate / _LARGEST_STRIDE
        if following > _LARGEST_RATE:
            break
        rate = following
    return best[1] if best is not None and best[0] <= math.log(2) else None
