"""Scores on held-out problems while a run trains: ``eval.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from multiticket.runs.lines import StepLines
from multiticket.runs.ranks import ALONE, Ranks


class Validation(TrainerCallback):
    """Measures every `every` steps, before the step is saved, and has a new best one saved.

    `measure` returns an evaluation's summary, and leaves the random state and the model as they were; None where it
    was stopped. What it then owes is measured when the run goes on.
    """

    lines: list[dict[str, Any]]
    """What the file holds; the same on every rank."""

    def __init__(
        self,
        every: int,
        lines: StepLines,
        measure: Callable[[], dict[str, Any] | None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.every = every
        self.file = lines
        self.ranks = ranks
        self.lines = ranks.by_first(lines.read)
        self.measure = measure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and all(line["step"] != state.global_step for line in self.lines):
            self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        measured = self.measure()
        if measured is None:
            return
        line = {"step": state.global_step, **measured}
        self.ranks.by_first(lambda: self.file.append(line))
        self.lines.append(line)
        if best_step(self.lines) == state.global_step:
            control.should_save = True


def best_step(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The first step with the highest pass@1."""
    return max(lines, key=lambda line: line["pass@1"])["step"] if lines else None
