"""When to give a run up: what its last steps say about a collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multiticket.config import CollapseConfig

Line = Mapping[str, Any]
"""A line of ``metrics.jsonl``."""


@dataclass(frozen=True)
class Collapse:
    """A collapse: at `step` it was certain, with `since` it began."""

    step: int
    since: int
    reason: str


def collapse(lines: Sequence[Line], bounds: CollapseConfig) -> Collapse | None:
    """The collapse that the newest of a run's lines completes, or None. Pure; `lines` are all so far, in order.

    There are four ways: a number that is not finite; the KL of each of the last `kl_steps` steps above
    `kl_per_token`; in each of the last `length_steps` steps nearly all completions cut off at their limit, or empty,
    with less than half of the best reward so far; not one reward in `reward_steps` steps.
    """
    found = [
        Collapse(lines[-1]["step"], lines[-length]["step"], reason)
        for length, needed, reason in _streaks(lines, bounds)
        if length >= needed
    ]
    return min(found, key=lambda one: one.since) if found else None


def suspect_since(lines: Sequence[Line], bounds: CollapseConfig) -> int | None:
    """The first step of the longest streak now running that would end in a collapse; None: all is well."""
    longest = max((length for length, _, _ in _streaks(lines, bounds)), default=0)
    return lines[-longest]["step"] if longest else None


def _streaks(lines: Sequence[Line], bounds: CollapseConfig) -> list[tuple[int, int, str]]:
    """For each way to collapse: how many of the last lines in a row look like it, how many must, and what to say."""
    best, below_half = 0.0, []
    for line in lines:
        reward = line.get("reward")
        below_half.append(reward is not None and reward < best / 2)
        best = max(best, reward or 0.0)
    looks = (
        ([_not_finite(line) for line in lines], 1, "a loss, KL, reward or gradient norm is not finite"),
        (
            [(line.get("kl") or 0.0) > bounds.kl_per_token for line in lines],
            bounds.kl_steps,
            f"each of {bounds.kl_steps} steps in a row moved the policy by more than {bounds.kl_per_token:g} nats "
            "a token",
        ),
        (
            [_length_at_an_end(line) and low for line, low in zip(lines, below_half, strict=True)],
            bounds.length_steps,
            f"for {bounds.length_steps} steps completions were cut off at their limit or empty, and the reward was "
            "below half of what it had been",
        ),
        (
            [line.get("reward") == 0 for line in lines],
            bounds.reward_steps,
            f"no completion of {bounds.reward_steps} steps got any reward",
        ),
    )
    return [(_run_at_the_end(look), needed, reason) for look, needed, reason in looks]


def _run_at_the_end(look: Sequence[bool]) -> int:
    length = 0
    while length < len(look) and look[-1 - length]:
        length += 1
    return length


def _not_finite(line: Line) -> bool:
    values = (line.get(name) for name in ("reward", "kl", "loss", "grad_norm"))
    return any(value is not None and not math.isfinite(value) for value in values)


def _length_at_an_end(line: Line) -> bool:
    length = line.get("completion_length")
    return (line.get("truncated") or 0.0) >= 0.99 or (length is not None and length <= 1)
