"""Several tickets in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiticket.mask.overlap import common_shapes, is_in
from multiticket.ticket.section import Section
from multiticket.ticket.ticket import Ticket

COLLISIONS = ("refuse", "last", "mean")


def compose(tickets: Sequence[Ticket], collisions: str = "refuse") -> Ticket:
    """One ticket that does what the given ones do in turn, on their common base.

    Each keeps its rule, its values and its base's fingerprint as a section of the file, so nothing is lost and no
    position is stored that a rule gives. Where positions collide, ``collisions`` says what happens:

    * ``refuse`` (default): ValueError, saying how many.
    * ``last``: the later ticket's value holds, as if they were applied in turn.
    * ``mean``: the mean over the tickets that have the position, computed in fp64 and rounded to each one's dtype.

    Raises ValueError as said, for an unknown rule, or tickets of different models. That all belong to one base is
    checked where the base is known: when the ticket is applied.
    """
    if collisions not in COLLISIONS:
        raise ValueError(f"Collisions must be one of {', '.join(COLLISIONS)}, not {collisions!r}.")
    sections = [section for ticket in tickets for section in ticket.sections]
    common_shapes([section.mask for section in sections])
    shared = count_collisions(sections)
    if shared and collisions == "refuse":
        raise ValueError(
            f"{shared} positions belong to more than one of these tickets; choose the last value or the mean."
        )
    if shared and collisions == "mean":
        sections = [Section(s.mask, _means(s, sections), s.fingerprint) for s in sections]
    provenance: dict[str, Any] = {
        "composed_of": [ticket.provenance for ticket in tickets],
        "collisions": {"positions": shared, "rule": collisions},
    }
    return Ticket.from_sections(sections, provenance)


def count_collisions(sections: Sequence[Section]) -> int:
    """Number of positions that more than one section has."""
    total = 0
    for name in {name for section in sections for name in section.positions}:
        flats = [s.positions[name].long() for s in sections if name in s.positions]
        if len(flats) > 1:
            _, times = torch.cat(flats).unique(return_counts=True)
            total += int((times > 1).sum())
    return total


def _means(section: Section, sections: Sequence[Section]) -> dict[str, Tensor]:
    return {name: _mean(name, section, sections) for name in section.positions}


def _mean(name: str, section: Section, sections: Sequence[Section]) -> Tensor:
    """(k,) in the section's dtype; a position that no other section has keeps its bits."""
    flat, own = section.positions[name].long(), section.values[name]
    total, times = torch.zeros(len(flat), dtype=torch.float64), torch.zeros(len(flat), dtype=torch.int64)
    for other in sections:
        if name in other.positions:
            theirs = other.positions[name].long()
            here = is_in(flat, theirs)
            at = torch.searchsorted(theirs, flat[here])
            total[here] += other.values[name][at].double()
            times[here] += 1
    return torch.where(times > 1, (total / times).to(own.dtype), own)
