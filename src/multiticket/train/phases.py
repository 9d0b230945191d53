"""Where the seconds and the memory of a step go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from multiticket.train.peak_memory import PEAK, PeakMemory

PHASES = {
    "generate": "generating",
    "sync": "giving the engine the weights",
    "score": "scoring",
    "train": "forward and backward passes",
    "step": "optimiser's step",
    "kl": "measuring the KL",
}
"""Each phase's name, and what is said while it lasts. An attachment's writing back is part of the optimiser's step; a
search for the rate, once, of measuring the KL."""


class Phases:
    """Seconds of each phase, and the most memory it held, since they were taken last.

    Of a phase inside another the inner one alone counts.
    """

    def __init__(self, memory: PeakMemory = PEAK) -> None:
        self.tell: Callable[[str, float | None], None] | None = None
        """Told in words what begins, and how much of a phase is done where that is known."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._memory = memory
        self._peaks: dict[str, int] = {}
        self._inside: list[str] = []
        self._since = 0.0

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Time spent in this block."""
        self.begin(phase)
        try:
            yield
        finally:
            self.end()

    def begin(self, phase: str) -> None:
        self._count()
        self._inside.append(phase)
        self._say(phase)

    def end(self) -> None:
        self._count()
        self._inside.pop()
        if self._inside:
            self._say(self._inside[-1])

    def progress(self, share: float) -> None:
        """How much of the phase under way is done."""
        if self._inside:
            self._say(self._inside[-1], share)

    def _say(self, phase: str, share: float | None = None) -> None:
        if self.tell is not None:
            self.tell(PHASES[phase], share)

    def take(self) -> dict[str, float]:
        """What each phase took, by its name, and start again; phases that did not come up are left out."""
        self._count()
        taken = {phase: seconds for phase, seconds in self._seconds.items() if seconds}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return taken

    def take_peaks(self) -> dict[str, int]:
        """Bytes that this process held at most in each phase, by its name; empty where the system does not tell."""
        self._count()
        taken, self._peaks = self._peaks, {}
        return taken

    def _count(self) -> None:
        """A GPU's work counts for the phase that asked for it."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now, peak = time.perf_counter(), self._memory.take()
        if self._inside:
            phase = self._inside[-1]
            self._seconds[phase] += now - self._since
            if peak is not None:
                self._peaks[phase] = max(peak, self._peaks.get(phase, 0))
        self._since = now
