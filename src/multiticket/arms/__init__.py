"""One way of training a model beside others: full, ticket, LoRA. One file an arm, one protocol for all."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiticket.arms.protocol import Arm


def get(name: str) -> Arm:
    """The arm that a run's settings name: the ``ARM`` of ``multiticket.arms.NAME``."""
    arm: Arm = importlib.import_module(f"multiticket.arms.{name}").ARM
    return arm
