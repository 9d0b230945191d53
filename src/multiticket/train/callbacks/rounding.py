"""Each step's share of values that moved without changing their weight, in the log beside the loss."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from multiticket.sparse import Attachment
from multiticket.sparse.rounding import RoundingWatch


class MeasureRounding(TrainerCallback):
    """Logs ``hidden_by_rounding``: 0.9 says that nine in ten moved values left their 16-bit weight as it was.

    The update is not lost, for the values stay fp32 and add up; but the policy does not see it yet.
    """

    def __init__(self, trainer: Any, attachment: Attachment) -> None:
        self.trainer = trainer
        self.attachment = attachment
        self.watch: RoundingWatch | None = None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.watch = RoundingWatch(self.attachment)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        assert self.watch is not None
        hidden, moved = self.trainer.accelerator.reduce(self.watch.counts(), reduction="sum").tolist()
        self.trainer.log_values("hidden_by_rounding").append(hidden / max(moved, 1.0))
        self.watch = None
