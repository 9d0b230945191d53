"""Call a score function that somebody else wrote, whatever it does.

It may raise anything, call `sys.exit` or `os._exit`, print (also from a process of its own) or close the output, change
the folder, fork, seed or draw random numbers, handle signals, switch gradients off, or never return: the run goes on as
if it had done none of that, and one failed call is one failed score. Not caught is what kills the process (a signal, a
crash in C).
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
        process, folder = os.getpid(), _folder()
        try:
            with (
                self._own_random_numbers(),
                _torch_as_it_was(),
                _no_end(process),
                _signals_as_they_were(),
                _no_output(),
                _limit(self.seconds),
            ):
                return function(*values, **named)
        finally:
            if os.getpid() != process:
                os._exit(0)  # a fork that came back from the function
            if folder is not None and _folder() != folder:
                with contextlib.suppress(OSError):  # it is gone
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


class _Open:
    """A stream that its user cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Ctrl-C and SIGTERM still stop the run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """What it prints goes to standard error; so does what C code and processes of its own print, in the main thread."""
    errors: Any = _Open(sys.stderr)
    with contextlib.redirect_stdout(errors), contextlib.redirect_stderr(errors):
        try:
            kept = os.dup(1) if threading.current_thread() is threading.main_thread() else None
        except OSError:  # there is no standard output
            kept = None
        if kept is None:
            yield
            return
        try:
            with contextlib.suppress(OSError):
                os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


@contextlib.contextmanager
def _no_end(process: int) -> Iterator[None]:
    """`os._exit` raises SystemExit in `process`; in what is forked from it, it ends that."""
    end = os._exit

    def instead(code: int) -> Any:
        if os.getpid() == process:
            raise SystemExit(code)
        end(code)

    os._exit = instead  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = end


@contextlib.contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Gradients, the default dtype and the number of threads are afterwards what they were."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    gradients, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


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
