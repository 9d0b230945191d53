"""What a verl configuration says about the mask: ``override_config.multiticket`` of the actor's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multiticket.mask import MaskRule

KEY = "multiticket"
DENSITY = 0.01
FIELDS = ("method", "density", "seed", "part", "scope", "options")


def mask_rule(override_config: Mapping[str, Any]) -> MaskRule | None:
    """The rule of the mask to train; None where none is asked for.

    Args:
        override_config: of verl's model configuration; ``multiticket`` in it is ``{}`` or holds fields of `MaskRule`.
            The density is 0.01 unless given.

    Raises:
        ValueError: for a field that there is not, or a value that it does not take.
    """
    asked = override_config.get(KEY)
    if asked is None:
        return None
    if not isinstance(asked, Mapping):
        raise ValueError(f"override_config.{KEY} must hold settings such as density and seed, not {asked!r}.")
    unknown = sorted({str(name) for name in asked} - {*FIELDS})
    if unknown:
        raise ValueError(f"override_config.{KEY} has no {unknown[0]}; it takes {', '.join(FIELDS)}.")
    fields = {"density": DENSITY, **asked}
    if "options" in fields:
        fields["options"] = dict(fields["options"])
    return MaskRule(**fields)
