"""Start from a ticket: its own mask on its own base, from its values on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multiticket.config import RunConfig
from multiticket.runs.kept import ticket_file
from multiticket.sparse import Attachment, attach
from multiticket.ticket import Ticket
from multiticket.ticket.section import Section

RULE = ("method", "density", "seed", "part", "scope")


def load_start(path: str) -> tuple[Section, Ticket]:
    """The one mask with values that a run can go on from, of a ticket's file or a run's folder.

    Raises ValueError for a ticket that has none, or several.
    """
    ticket = Ticket.load(ticket_file(Path(path)))
    if len(ticket.sections) != 1:
        raise ValueError(
            f"{path} is composed of {len(ticket.sections)} tickets, and a run trains one mask: merge it "
            "(multiticket merge) and train a ticket on the merged checkpoint."
        )
    return ticket.sections[0], ticket


def settings_from_ticket(path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that follow from the ticket, under `asked`: its mask's rule, and the model and task it names.

    Raises:
        ValueError: `asked` wants another mask. Training other positions than the ticket's would make the result
            a ticket on a changed base, which nobody could apply to the base alone.
    """
    section, ticket = load_start(path)
    rule = section.mask.rule
    settings = {name: getattr(rule, name) for name in RULE}
    if rule.density is None:
        settings["density"] = section.mask.density
    settings["mask_options"] = dict(rule.options)
    for name, value in settings.items():
        if asked.get(name) is not None and asked[name] != value:
            raise ValueError(
                f"The ticket {path} trains with {name} {value!r}, not {asked[name]!r}: omit {name} to continue "
                "with its mask, or merge the ticket and train another mask on the merged checkpoint."
            )
    named: dict[str, Any] = {n: ticket.provenance[n] for n in ("model", "task") if n in ticket.provenance}
    return {**named, **settings, **asked, "from_ticket": str(ticket_file(Path(path)).resolve())}


def attach_start(model: torch.nn.Module, config: RunConfig) -> Attachment:
    """The attachment with the ticket's values.

    The ticket made in the end is one of the base: the mask is attached to the base, before the values come.

    Raises:
        ValueError: the model is not the ticket's base, or the settings say another mask than the ticket.
    """
    assert config.from_ticket is not None
    settings_from_ticket(
        config.from_ticket, {name: getattr(config, name) for name in (*RULE, "mask_options")}
    )
    section, ticket = load_start(config.from_ticket)
    ticket.check(model)
    attachment = attach(model, section.mask)
    attachment.load_state_dict(
        {
            "values": dict(section.values),
            "rule": section.mask.rule.to_json(),
            "fingerprint": section.fingerprint,
        }
    )
    return attachment
