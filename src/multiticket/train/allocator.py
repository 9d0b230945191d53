"""A process that trains keeps some of what it frees, instead of giving it back to the system and asking anew each step.

glibc gives a block of 128 KiB or more back when it is freed; the next one comes page by page, each filled with zeros
first. A step of a 36M model on a CPU does so some 40,000 times, a twentieth of its time, and how often depends on what
happened to be freed before: so processes that do the same differ by a few percent. GPUs have torch's own allocator,
which keeps memory as well.

Not everything is kept. Blocks above 32 MiB, of which logits are made, still come and go by themselves, and of the rest
the system gets back what lies free at the heap's end beyond 512 MiB. Sizes that change from step to step also leave
holes that no later block fits: where steps come to hold more than they did, all that lies free is given back
(`HolesGivenBack`).
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""glibc's numbers of the settings (``malloc.h``)."""
LARGEST_KEPT = 1 << 25
"""Bytes of a block; glibc takes no larger one."""
MOST_KEPT = 1 << 29
"""Bytes that may lie free at the heap's end."""
OWN_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


GROWN = 1.15
"""Of what a step held with a heap without holes: from then on they are given back."""


def keep_freed_memory() -> bool:
    """Let this process keep up to ``MOST_KEPT`` of what it frees, from now on; whether that could be done.

    Only glibc's allocator is told, and only where the environment has no settings for it: neither another allocator
    (``LD_PRELOAD``) nor a user's own choice is touched.
    """
    chosen = any(name in os.environ for name in OWN_CHOICES) or "malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or os.environ.get("LD_PRELOAD") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_THRESHOLD, LARGEST_KEPT), (TRIM_THRESHOLD, MOST_KEPT), (TOP_PAD, 1 << 26))
    taken = [bool(mallopt(name, value)) for name, value in settings]
    return all(taken)


def give_back_freed_memory() -> None:
    """Give what lies free to the system now, between two phases of a run that need different sizes."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class HolesGivenBack:
    """Gives back what lies free whenever the steps of a run have come to hold more of the machine's memory.

    That costs the next step a page fault for every 4 KiB that it uses again, so it is not done after every one.
    """

    def __init__(self) -> None:
        self._without: int | None = None
        """What a step held at most when nothing had lain free before it."""

    def after_step(self, peak: int) -> bool:
        """Told the most bytes that the process held in each step; whether it gave some back now."""
        if self._without is None:
            self._without = peak
        if peak <= GROWN * self._without:
            return False
        give_back_freed_memory()
        self._without = None
        return True
