"""What a ticket changed, by tensor and by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multiticket.mask.selectors import LAYER, module_kind
from multiticket.ticket.ticket import Ticket


@dataclass
class Change:
    """Size of the change of one tensor or of a group of them."""

    numel: int = 0
    values: int = 0
    squared: float = 0.0
    """Squared L2 norm of the change (of the values themselves where the base is not known)."""
    largest: float = 0.0
    """Largest absolute change of one value."""
    moved: int = 0
    """Values that differ from the base."""

    @property
    def norm(self) -> float:
        return math.sqrt(self.squared)

    def add(self, other: Change) -> None:
        self.numel += other.numel
        self.values += other.values
        self.squared += other.squared
        self.largest = max(self.largest, other.largest)
        self.moved += other.moved


def changes(ticket: Ticket, base: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Change]:
    """By tensor name. ``base(name, flat)`` gives the base's values (k,) at flat positions (k,), where it is known."""
    found: dict[str, Change] = {}
    for section in ticket.sections:
        for name, shape in section.mask.shapes.items():
            change = found.setdefault(name, Change(math.prod(shape)))
            if name in section.values:
                new = section.values[name].double()
                delta = new - base(name, section.positions[name]).double() if base else new
                change.add(
                    Change(
                        0,
                        len(new),
                        float(delta.square().sum()),
                        float(delta.abs().max()),
                        int((delta != 0).sum()),
                    )
                )
    return found


def by_layer(found: dict[str, Change]) -> dict[str, Change]:
    """The tensors' changes summed over layers ("layer 0", ...), and kinds for what lies outside layers."""
    groups: dict[str, Change] = {}
    for name, change in found.items():
        groups.setdefault(group_of(name), Change()).add(change)
    return in_order(groups)


def group_of(name: str) -> str:
    """The layer that a tensor's name says, or else its kind, or else the name."""
    layer = LAYER.search(name)
    return f"layer {layer[1]}" if layer else module_kind(name) or name


def in_order(groups: dict[str, Any]) -> dict[str, Any]:
    """Embeddings, then layers by number, then the rest."""

    def order(group: str) -> tuple[int, int]:
        number = re.fullmatch(r"layer (\d+)", group)
        return (1, int(number[1])) if number else (0, 0) if group == "embeddings" else (2, 0)

    return dict(sorted(groups.items(), key=lambda item: order(item[0])))
