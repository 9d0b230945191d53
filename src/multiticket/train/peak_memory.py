"""How much memory the process holds at most: over a run, and within each phase of its steps."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """The most that this process (on a GPU: its memory there) has held since `forget`, libraries included, in bytes.

    There is one mark a process, which the system keeps; one of these reads it.
    """

    def __init__(self) -> None:
        self._before = 0
        """The most of what was before the mark was last put back."""

    def forget(self) -> None:
        """Begin anew: a process may do one run after another."""
        self._put_back()
        self._before = 0

    def most(self) -> int:
        """Since `forget`."""
        return max(self._before, _marked())

    def take(self) -> int | None:
        """Since the last `take` or `forget`, and begin anew; None where the system's mark cannot be put back."""
        marked = _marked()
        self._before = max(self._before, marked)
        return marked if self._put_back() else None

    def _put_back(self) -> bool:
        """Whether the mark is now what is held at present."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return True
        with contextlib.suppress(OSError):  # not on Linux, or not allowed
            CLEAR.write_text("5")  # proc(5): the peak resident set becomes the present one
            return True
        return False


def _marked() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    return high_water()


def high_water() -> int:
    """The most memory that this process has had resident, in bytes."""
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024


PEAK = PeakMemory()
"""This process's."""
