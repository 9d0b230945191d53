"""What fits where a plan does not: fewer sequences at once, or layers computed again."""

from __future__ import annotations

import os
from typing import Any

import torch

from multiticket.plan.memory import plan


def machine_memory() -> int | None:
    """Bytes of the GPU that runs would take, or of this machine where it has none; None where that is not told."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def what_fits(model: str, memory: int, asked: dict[str, Any]) -> list[tuple[int, bool, int]]:
    """(batch, gradient checkpointing, peak in bytes) of the largest batch that fits, without and with checkpointing.

    Args:
        memory: in bytes.
        asked: what ``plan`` was asked beside the model, for one arm. Batches are divisors of the one in it; with
            checkpointing already, only that is tried.
    """
    found = []
    for checkpointing in sorted({bool(asked.get("gradient_checkpointing")), True}):
        for batch in (b for b in range(asked["batch"], 0, -1) if asked["batch"] % b == 0):
            completions = asked.get("completions") or asked["batch"]
            tried = {"batch": batch, "gradient_checkpointing": checkpointing, "completions": completions}
            arm = plan(model, **{**asked, **tried}).arms[0]
            if arm.fits(memory):
                found.append((batch, checkpointing, arm.peak))
                break
    return found


def in_words(found: list[tuple[int, bool, int]], batch: str, checkpointing: str) -> str:
    """What ``what_fits`` found, by the names of its settings."""
    ways = [
        f"{batch} {rows}{f' and {checkpointing}' * again} ({peak / 2**30:.1f} GiB)"
        for rows, again, peak in found
    ]
    return ", or ".join(ways) or "no batch"
