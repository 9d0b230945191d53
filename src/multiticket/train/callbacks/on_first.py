"""A callback that writes, on the rank that does; what goes wrong there goes wrong on all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from multiticket.runs.ranks import Ranks


class OnFirst(TrainerCallback):
    """Calls a callback that `make` gives, on the first rank alone."""

    def __init__(self, ranks: Ranks, make: Callable[[], TrainerCallback]) -> None:
        self.ranks = ranks
        self._callback = make() if ranks.first else TrainerCallback()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.ranks.by_first(lambda: self._callback.on_train_begin(*args, **kwargs))

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.ranks.by_first(lambda: self._callback.on_log(*args, **kwargs))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.ranks.by_first(lambda: self._callback.on_train_end(*args, **kwargs))
