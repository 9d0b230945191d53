"""What a run says while it works: how far it is, the reward and KL of a step, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_OF_A_PHASE, SECONDS_OF_STEPS = 10.0, 60.0
"""Where there is no terminal, the longest silence of a phase that counts, and of the training."""


class RunProgress:
    """A bar on standard error; plain lines where that is not a terminal; nothing if `show` is False.

    Plain lines come for the first step, ten times a run, and once a minute.
    """

    def __init__(self, name: str, steps: int, show: bool = True) -> None:
        self.name = name
        self.steps = steps
        self._show = show
        self._phase = "measuring"
        self._began = self._said = time.monotonic()
        self._done_before: int | None = None
        """Steps of earlier sessions, once the training has begun."""
        self._done = 0
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
            self._task = self._bar.add_task(name, total=steps or None, detail="")

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
        self._phase = text
        self._began = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=None, description=f"{self.name}: {text}", detail="")
        else:
            self._print(text)

    @contextmanager
    def aside(self, text: str) -> Iterator[None]:
        """A phase in the midst of the training, whose pace does not count it; said only where it takes long."""
        began, self._phase = self._began, text
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.name}: {text}")
        self._began = self._said = time.monotonic()
        yield
        self._began = began + time.monotonic() - self._began
        if self._bar is not None:
            self._bar.update(self._task, description=self.name, total=self.steps)

    def completions(self, done: int, total: int, worth: float) -> None:
        """How many completions of the phase are generated, and how many the tokens so far come to.

        The second, which counts a completion under way by its tokens, decides how much time is left.
        """
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=worth, detail=f"{done:,} of {total:,}")
        elif worth and time.monotonic() - self._said >= SECONDS_OF_A_PHASE:
            left = (time.monotonic() - self._began) / worth * (total - worth)
            self._print(f"{self._phase}: {done:,} of {total:,} completions, {_in_words(left)} left")

    def note(self, text: str) -> None:
        """What stays to be read above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"{self.name}: {text}", markup=False, highlight=False)
        else:
            self._print(text)

    def training(self, done: int) -> None:
        """The training begins, or goes on after `done` steps."""
        self._done_before = self._done = done
        self._began = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=self.steps, completed=done, description=self.name, detail="")
        else:
            self._print(f"training, steps {done + 1} to {self.steps}")

    def within_step(self, doing: str, share: float | None = None) -> None:
        """What the step under way is doing, and how much of that is done; said where it takes long."""
        part = f" {share:.0%}" if share is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.name}: {doing}{part}")
        elif time.monotonic() - self._said >= SECONDS_OF_STEPS:
            self._print(f"step {self._done + 1}/{self.steps}: {doing}{part}")

    def step(
        self,
        step: int,
        reward: float | None,
        kl: float | None = None,
        signal: float | None = None,
        failures: int = 0,
    ) -> None:
        """An optimiser step is done.

        Args:
            reward: the mean of its rollouts.
            kl: how far it moved the policy, in nats a completion.
            signal: share of groups whose rewards differed, lately.
            failures: completions so far whose score failed.
        """
        self._done = step
        detail = f"reward {reward:.3f}" if reward is not None else ""
        detail += f"  signal {signal:.0%}" if signal is not None else ""
        detail += f"  KL {kl:.2g} nats a completion" if kl is not None else ""
        detail += f"  {failures:,} scores failed" if failures else ""
        if self._bar is not None:
            self._bar.update(
                self._task, total=self.steps, completed=step, description=self.name, detail=detail
            )
            return
        taken = step - (self._done_before or 0)
        silent = time.monotonic() - self._said
        if (
            taken == 1
            or step % max(1, self.steps // 10) == 0
            or step == self.steps
            or silent >= SECONDS_OF_STEPS
        ):
            left = (time.monotonic() - self._began) / taken * (self.steps - step)
            self._print(f"step {step}/{self.steps}  {detail}  {_in_words(left)} left")

    def _print(self, text: str) -> None:
        if self._show:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)
            self._said = time.monotonic()


def _in_words(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
