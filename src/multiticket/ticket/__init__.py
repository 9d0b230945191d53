"""Keep the result: ticket files, apply and revert, compose, merge."""

from __future__ import annotations

from multiticket.ticket.apply import Applied
from multiticket.ticket.changed import changed_between
from multiticket.ticket.compose import compose
from multiticket.ticket.merge import merge_checkpoint
from multiticket.ticket.section import Section
from multiticket.ticket.ticket import Ticket

__all__ = ["Applied", "Section", "Ticket", "changed_between", "compose", "merge_checkpoint"]
