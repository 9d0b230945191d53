"""The parts of a model that FSDP2 gathers at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from multiticket.arms.state import storage_bytes


@dataclass(frozen=True)
class Units:
    """Bytes of weights."""

    layers: int
    """All layers together."""
    largest: int
    """The largest layer."""
    rest: int
    """Embedding, last norm and head, which stay whole through a pass."""


def units_of(model: Any) -> Units:
    """Of a model of transformers, which says what its layers are; of one that does not, one layer is all of it."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    sizes = [storage_bytes(layer.parameters()) for layer in layers or [model]]
    return Units(sum(sizes), max(sizes), max(0, storage_bytes(model.parameters()) - sum(sizes)))
