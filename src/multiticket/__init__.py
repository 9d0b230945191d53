"""Train any random sparse subnetwork of a language model, and keep what it learned as a ticket.

The public names, and nothing else. Each is imported when it is first used, so that
``multiticket --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Mask": "multiticket.mask",
    "MaskRule": "multiticket.mask",
    "overlap": "multiticket.mask",
    "attach": "multiticket.sparse",
    "Attachment": "multiticket.sparse",
    "Ticket": "multiticket.ticket",
}
_MODULES = ("bases", "tasks")

__all__ = ["Attachment", "Mask", "MaskRule", "Ticket", "attach", "bases", "overlap", "tasks"]

if TYPE_CHECKING:
    from multiticket import bases as bases
    from multiticket import tasks as tasks
    from multiticket.mask import Mask as Mask
    from multiticket.mask import MaskRule as MaskRule
    from multiticket.mask import overlap as overlap
    from multiticket.sparse import Attachment as Attachment
    from multiticket.sparse import attach as attach
    from multiticket.ticket import Ticket as Ticket


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"multiticket.{name}")
    raise AttributeError(f"module 'multiticket' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
