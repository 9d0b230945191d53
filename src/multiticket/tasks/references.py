"""What a name of the form `module:attribute` stands for."""

from __future__ import annotations

import importlib
from typing import Any


def referred(reference: str, what: str) -> Any:
    """The attribute of a module that can be imported. `what` it is to be, for the ValueError where it cannot."""
    module_name, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Cannot load the {what} {reference!r}: {error}.") from error
