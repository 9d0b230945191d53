"""What fits where a plan does not: fewer sequences at once, or layers computed again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from multiticket.plan.memory import plan
from multiticket.plan.workload import Workload


class Way(NamedTuple):
    """Settings that fit, and their peak in bytes."""

    batch: int
    gradient_checkpointing: bool
    peak: int


def what_fits(workload: Workload, memory: int) -> list[Way]:
    """The largest batch of a workload of one arm that fits ``memory`` bytes, without and with checkpointing.

    Batches are divisors of the workload's; with checkpointing already, only that is tried.
    """
    batches = [size for size in range(workload.batch, 0, -1) if workload.batch % size == 0]
    ways = []
    for checkpointing in sorted({workload.gradient_checkpointing, True}):
        changed = replace(workload, gradient_checkpointing=checkpointing, completions=workload.at_once)
        for batch in batches:
            (arm,) = plan(replace(changed, batch=batch)).arms
            if arm.fits(memory):
                ways.append(Way(batch, checkpointing, arm.peak))
                break
    return ways


def in_words(ways: Iterable[Way], batch: str, checkpointing: str) -> str:
    """The ways, by what their settings are called."""
    said = [
        f"{batch} {way.batch}{f' and {checkpointing}' * way.gradient_checkpointing} ({way.peak / 2**30:.1f} GiB)"
        for way in ways
    ]
    return ", or ".join(said) or "no batch"
