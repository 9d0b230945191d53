"""Call a score function that somebody else wrote, whatever it does.

It may raise anything, call `sys.exit`, print, change the folder, fork, seed or draw random numbers, or never return:
the run goes on as if it had done none of that, and one failed call is one failed score. Not caught is what ends the
process at once (`os._exit`, a crash in C).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np


class OutOfTime(BaseException):
    """A call took longer than its limit. Not an Exception, so that an `except Exception` in it lets this through."""


class Guard:
    """Calls with a limit of `seconds` each, in the main thread of a system with timers; elsewhere without a limit."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._random: tuple[Any, ...] | None = None

    def __call__(self, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """What the function returns, or raises."""
        process, folder = os.getpid(), os.getcwd()
        try:
            with self._own_random_numbers(), contextlib.redirect_stdout(sys.stderr), _limit(self.seconds):
                return function(*values, **named)
        finally:
            if os.getpid() != process:
                os._exit(0)  # a fork that came back from the function
            if _folder() != folder:
                os.chdir(folder)

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """The function draws from streams of its own, and neither uses nor seeds those of the training."""
        outside = _random_states()
        if self._random is not None:
            _set_random_states(self._random)
        try:
            yield
        finally:
            self._random = _random_states()
            _set_random_states(outside)


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    started = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should it be swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's timer goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _random_states() -> tuple[Any, ...]:
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch.get_rng_state() if torch is not None else None


def _set_random_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch = sys.modules.get("torch")
    if torch is not None and states[2] is not None:
        torch.set_rng_state(states[2])
