"""Many tickets of one base, kept on the host, of which one at a time is written into the engine's weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.integrations.vllm.base import checked_places
from multiticket.integrations.vllm.places import Places
from multiticket.integrations.vllm.ranks import Ranks
from multiticket.mask import Mask
from multiticket.ticket import Ticket


class _Held:
    """A mask's places and the base's values there; tickets of one mask share them."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.base = places.save()


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A ticket, ready to be written: one pair a section."""

    sections: Sequence[tuple[_Held, Tensor]]
    facts: dict[str, Any]


class TicketCache:
    """The tickets that one worker holds. Not thread-safe: an engine calls a worker once at a time."""

    def __init__(self, model: nn.Module, ranks: Ranks, dtype: torch.dtype, reason: str | None = None) -> None:
        """``dtype``: the engine's. ``reason``: a sentence, where this engine can take no ticket at all."""
        self._model = model
        self._ranks = ranks
        self._dtype = dtype
        self._reason = reason
        self._tickets: dict[str, _Loaded] = {}
        self._masks: weakref.WeakValueDictionary[str, _Held] = weakref.WeakValueDictionary()
        self._written: list[_Loaded] = []
        """Tickets whose values may be in the weights; more than none and not `serving`: a swap was cut."""
        self.serving: str | None = None

    def list(self) -> dict[str, dict[str, Any]]:
        """What is held, by name."""
        return {name: dict(loaded.facts) for name, loaded in self._tickets.items()}

    def load(self, name: str, path: str) -> dict[str, Any]:
        """Read a ticket and find its places, while the base is served. Raises ValueError on all workers alike."""
        reason, ticket = self._reason, None
        try:
            if name in self._tickets:
                raise ValueError(f"There is a ticket {name!r} already; drop it first.")
            if self._written:
                raise ValueError(
                    "A ticket can be loaded only while the base is served, and another ticket is in the weights."
                )
            ticket = Ticket.load(path)
        except (ValueError, OSError) as error:
            reason = reason or str(error)
        self._ranks.agree(reason)
        assert ticket is not None
        sections = [
            (self._held(section.mask, section.fingerprint), _flat(section.mask, section.values))
            for section in ticket.sections
        ]
        facts = {"values": ticket.nnz, "fingerprint": ticket.fingerprint, "sections": len(sections)}
        self._tickets[name] = _Loaded(sections, facts)
        return dict(facts)

    def _held(self, mask: Mask, fingerprint: str) -> _Held:
        key = f"{fingerprint} {mask.rule.to_json()} {mask.shapes}" if mask.follows_rule else ""
        held = self._masks.get(key)
        if held is None:
            held = _Held(checked_places(self._model, mask, fingerprint, self._ranks, self._dtype))
            if key:
                self._masks[key] = held
        return held

    @torch.no_grad()
    def use(self, name: str | None) -> None:
        """Write a ticket's values, or for None the base's, into the weights; O(k).

        A swap that an error cut is undone by the next one. Raises ValueError for an unknown name, and then
        changes nothing.
        """
        if name is not None and name not in self._tickets:
            raise ValueError(f"There is no ticket {name!r}.")
        for loaded in reversed(self._written):
            for held, _ in reversed(loaded.sections):
                held.places.restore(held.base)
        self._written, self.serving = [], None
        if name is not None:
            loaded = self._tickets[name]
            self._written = [loaded]
            for held, values in loaded.sections:
                held.places.write(values)
            self.serving = name
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def drop(self, name: str) -> None:
        """Forget a ticket that is not in the weights."""
        if name not in self._tickets:
            raise ValueError(f"There is no ticket {name!r}.")
        if self._tickets[name] in self._written:
            raise ValueError(
                f"The ticket {name!r} is in the weights; serve another one before it is dropped."
            )
        del self._tickets[name]


def _flat(mask: Mask, values: Any) -> Tensor:
    """A section's values in one tensor (k,), in a dtype that holds them all exactly."""
    parts = [values[name] for name in mask.names]
    dtype = parts[0].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype) if part.dtype != dtype else dtype
    return torch.cat([part.to(dtype) for part in parts])
