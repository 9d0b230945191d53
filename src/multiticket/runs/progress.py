"""What a run says while it works: one line with step, reward and time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """A bar on standard error; plain lines, ten a run, where that is not a terminal; nothing if `show` is False."""

    def __init__(self, name: str, steps: int, show: bool = True) -> None:
        self.name = name
        self.steps = steps
        self._show = show
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=steps, detail="")

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str) -> None:
        """What is being done outside the training steps."""
        if self._bar is not None:
            self._bar.update(self._task, detail=text)
        elif self._show:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """What stays to be read above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"{self.name}: {text}", markup=False, highlight=False)
        elif self._show:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def step(self, step: int, reward: float | None) -> None:
        """An optimiser step is done; `reward` is the mean of its rollouts."""
        detail = f"reward {reward:.3f}" if reward is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, detail=detail)
        elif self._show:
            if self._first_step is None:
                self._first_step, self._started = step, time.monotonic()
            elif step % max(1, self.steps // 10) == 0 or step == self.steps:
                pace = (time.monotonic() - self._started) / (step - self._first_step)
                left = f"{pace * (self.steps - step):.0f} s left"
                print(f"{self.name}: step {step}/{self.steps}  {detail}  {left}", file=sys.stderr, flush=True)
