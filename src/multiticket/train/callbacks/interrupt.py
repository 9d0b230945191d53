"""A request to stop: obeyed within seconds, with everything that was trained kept."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from multiticket.runs.ranks import ALONE, Ranks, StopNow

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 3.0
"""Seconds that a step has to end by itself, once a signal has come, before it is given up."""
ONE_SIGNAL = 1.0
"""Seconds within which a second signal counts as the first: a terminal sends it, and a launcher passes it on."""


class RunInterrupted(Exception):
    """A run stopped because it was asked to, with a checkpoint of its last step.

    Attributes:
        code: what a process exits with then: 143 after SIGTERM, 130 after SIGINT.
        step: the last step that is kept; None: it was not training.
    """

    def __init__(self, signum: int, step: int | None, output: Path) -> None:
        self.code = 128 + signum
        self.step = step
        done = (
            "during an evaluation; what was trained is kept"
            if step is None
            else f"after step {step}; its checkpoint is kept"
            if step
            else "before the first step"
        )
        super().__init__(f"Stopped {done}. Continue with: multiticket train --resume --output {output}")


class StopSignals:
    """Within the block, notes SIGTERM and SIGINT instead of dying of them; a second signal works as it did before.

    A step that does not end within `PATIENCE` seconds after it is given up by :class:`StopNow`, but only while nothing
    is being changed that a checkpoint would need whole: see `may_stop`. In another thread than the main one, where
    Python allows no handlers, it does nothing.

    Of several ranks none can leave a step that the others are in. They stop together where they meet: after the
    rollouts are generated, after each forward and backward pass, and after the step. Where a rank works by itself
    (generating or measuring), it breaks off at once and waits for the others there.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.received: int | None = None
        self.stopped_at: int | None = None
        self.may_stop = False
        """Whether what is being done can be given up: a step before its optimiser step, or a measurement."""
        self._at_once = False
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None
        self._received_at = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._restore()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A block that is given up as soon as a signal is there: nothing is lost with it. On all ranks."""
        before, self.may_stop = self.may_stop, True
        with self.ranks.together():
            try:
                if self.received is not None:
                    raise StopNow(self.received)
                self._at_once = True  # no patience: what comes now raises at once
                yield
            finally:
                self.may_stop = before
                self._at_once = self._at_once and self.received is not None
            if self.ranks.several and self.received is not None:  # it came while the ranks talked
                raise StopNow(self.received)

    @contextmanager
    def generating(self, alone: bool) -> Iterator[None]:
        """The block in which several ranks generate a step's rollouts; they go on, or stop, together.

        Args:
            alone: each rank generates without the others, so that it may break off by itself.
        """
        if alone and self.ranks.several:
            with self.measuring():
                yield
        else:
            yield
            self.stop_together()

    def stop_together(self) -> None:
        """Where several ranks meet within a step: all give it up if any was told to stop."""
        if self.ranks.several:
            self.ranks.agree(None if self.received is None else StopNow(self.received))

    def take(self, stop: StopNow) -> None:
        """Note the signal that another rank received."""
        if self.received is None and stop.args:
            self.received = stop.args[0]

    def allow(self) -> None:
        """From here on a step may be given up; at once, where that is overdue."""
        self.may_stop = True
        if self.received is not None and self._at_once:
            raise StopNow(self.received)

    def follow(self, output: Path) -> None:
        """After training: end the run of folder `output` where a step was its last.

        A signal that came when the last step was over, and stopped none, stops the measurement that follows; behind the
        block it works now as it would have.
        """
        if self.stopped_at is not None:
            assert self.received is not None
            raise RunInterrupted(self.received, self.stopped_at, output)
        if self.received is not None and not self._before:
            signal.raise_signal(self.received)

    def _note(self, signum: int, frame: Any) -> None:
        if self.received is None:
            self.received = signum
            self._received_at = time.monotonic()
            if self._at_once and self.may_stop and not self.ranks.exchanging:
                raise StopNow(signum)
            if self.ranks.several:
                if self.ranks.first:
                    self._say("stopping where all processes meet next")
                return
            self._say(f"stopping after this step is saved, or in {PATIENCE:g} seconds without it")
            self._timer = threading.Timer(PATIENCE, self._wake)
            self._timer.daemon = True
            self._timer.start()
        elif self._timer is not None and self._at_once:  # the timer's
            self._timer = None
            if self.may_stop:
                raise StopNow(self.received)
        elif not self.ranks.several or time.monotonic() - self._received_at > ONE_SIGNAL:
            self._restore()
            signal.raise_signal(signum)

    def _say(self, words: str) -> None:
        os.write(2, f"\nmultiticket: {words}; a second signal stops at once.\n".encode())

    def _wake(self) -> None:
        """In the timer's thread: have the main thread run the handler."""
        self._at_once = True
        signal.pthread_kill(threading.main_thread().ident or 0, self.received or signal.SIGINT)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


class StopAtStep(TrainerCallback):
    """Saves and ends training with the step during which a signal came; says when a step may be given up.

    Added last, so that what others do before an optimiser step may be given up too.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._random: tuple[Any, ...] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.signals.ranks.several:
            self.signals.allow()

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.signals.stop_together()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.signals.may_stop = False
        self.signals.stop_together()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signals = self.signals
        signals.may_stop = False
        signals.received = max(signals.ranks.gather(signals.received or 0)) or None
        self._random = _random_states()
        if signals.received is not None:
            signals.stopped_at = state.global_step
            control.should_save = True
            control.should_training_stop = True

    def random_as_after_the_step(self) -> None:
        """Put the random states back to what they were when the last step was done."""
        if self._random is not None:
            _set_random_states(self._random)


def _random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state_all(states[3])
