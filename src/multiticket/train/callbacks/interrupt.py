"""A request to stop: noted when it comes, followed when the optimiser step is done."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunInterrupted(Exception):
    """A run stopped because it was asked to, with a checkpoint of its last step.

    Attributes:
        code: what a process exits with then: 143 after SIGTERM, 130 after SIGINT.
        step: the last step, of which there is a checkpoint.
    """

    def __init__(self, signum: int, step: int, output: Path) -> None:
        self.code = 128 + signum
        self.step = step
        super().__init__(
            f"Stopped after step {step} as asked; its checkpoint is kept. Continue with: "
            f"multiticket train --resume --output {output}"
        )


class StopSignals:
    """Within the block, notes SIGTERM and SIGINT instead of dying of them; a second signal works as it did before.

    In another thread than the main one, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped_at: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def follow(self, output: Path) -> None:
        """After the block: stop the run of folder `output`, where that was asked for.

        A signal that came when the last step was over, and stopped none, works now as it would have.
        """
        if self.stopped_at is not None:
            assert self.received is not None
            raise RunInterrupted(self.received, self.stopped_at, output)
        if self.received is not None:
            signal.raise_signal(self.received)

    def _note(self, signum: int, frame: Any) -> None:
        self.received = signum
        self._restore()
        os.write(
            2, b"\nmultiticket: stopping when this step is done and saved; a second signal stops at once.\n"
        )

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


class StopAtStep(TrainerCallback):
    """Saves and ends training with the step during which a signal came."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.signals.received = _of_any_rank(self.signals.received, args.device)
        if self.signals.received is not None:
            self.signals.stopped_at = state.global_step
            control.should_save = True
            control.should_training_stop = True


def _of_any_rank(received: int | None, device: torch.device) -> int | None:
    """The signal that any rank received: all must end with the same step."""
    largest = torch.tensor(received or 0, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest) or None
