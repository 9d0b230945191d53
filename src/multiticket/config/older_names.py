"""Names that settings once had: run folders and studies still have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {"target_kl": "target_kl_per_completion"}
COLLAPSE = {"kl": "kl_per_token"}
"""The older name of a setting, of a run and of its `collapse`: the present one."""


def by_present_names(settings: Mapping[str, Any], names: Mapping[str, str] = SETTINGS) -> dict[str, Any]:
    """Settings with those that go by an older name under their present one. ValueError for one under both."""
    for before, now in names.items():
        if before in settings and now in settings:
            raise ValueError(f"{before} is the old name of {now}: give only one")
    return {names.get(name, name): value for name, value in settings.items()}


def by_older_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as they were called when the first studies were done, whose runs are named after them."""
    found = {_before(SETTINGS, name): value for name, value in settings.items()}
    if "collapse" in found:
        found["collapse"] = {_before(COLLAPSE, name): value for name, value in found["collapse"].items()}
    return found


def _before(names: Mapping[str, str], name: str) -> str:
    return {now: before for before, now in names.items()}.get(name, name)
