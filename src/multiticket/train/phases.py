"""Where the seconds of a step go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("generate", "sync", "score", "train", "step", "kl")
"""Generating completions; giving an engine the trained weights; scoring; forward and backward passes; the optimiser's
step with what an attachment writes back; measuring the step's KL and, once, looking for a rate by it."""


class Phases:
    """Seconds of each phase since the last `take`. One inside another counts for the inner one alone."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
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

    def end(self) -> None:
        self._count()
        self._inside.pop()

    def take(self) -> dict[str, float]:
        """What each phase took, by its name, and start again; phases that did not come up are left out."""
        self._count()
        taken = {phase: seconds for phase, seconds in self._seconds.items() if seconds}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return taken

    def _count(self) -> None:
        """A GPU's work counts for the phase that asked for it."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._inside:
            self._seconds[self._inside[-1]] += now - self._since
        self._since = now
