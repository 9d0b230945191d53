"""What a ticket's base is called on other machines too, as far as the model in memory knows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_SHIPPED = Path(__file__).resolve().parents[1] / "bases"
_HUB_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def snapshot(place: str) -> tuple[str, str] | None:
    """Name and commit of a model on the hub, of a path to it in the hub's cache; None for any other place."""
    found = re.search(r"models--([^/]+)/snapshots/([0-9a-f]{40})/?$", Path(place).as_posix())
    return None if found is None else (found[1].replace("--", "/"), found[2])


def named_base(model: Any) -> dict[str, str]:
    """``model`` and ``revision`` for a ticket's provenance, from where transformers loaded the model.

    A shipped base's name, or one on the hub with its commit, where that is certain. Nothing of any other model: a path
    of this machine tells nobody else anything.
    """
    config = getattr(model, "config", None)
    place = getattr(config, "_name_or_path", None)
    if not isinstance(place, str) or not place:
        return {}
    if Path(place).resolve().parent == _SHIPPED:
        return {"model": Path(place).name}
    cached = snapshot(place)
    if cached is not None:
        return {"model": cached[0], "revision": cached[1]}
    if _HUB_NAME.fullmatch(place) is None or Path(place).exists():
        return {}
    known = getattr(config, "_commit_hash", None)
    commits = [known] if isinstance(known, str) else _commits_in_cache(place)
    if not commits:
        return {}
    return {"model": place, "revision": commits[0]} if len(commits) == 1 else {"model": place}


def _commits_in_cache(name: str) -> list[str]:
    """The commits of a model that the hub's cache has: the one that was loaded is among them."""
    constants = sys.modules.get("huggingface_hub.constants")  # there where a model was loaded
    if constants is None:
        return []
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    return [path.name for path in folder.glob("*") if _COMMIT.fullmatch(path.name)]
