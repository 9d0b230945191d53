"""A run's folder in a model's place: it stands for the whole model that the run made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def settings_of_run(folder: Path) -> dict[str, Any] | None:
    """What a run's ``config.json`` holds; None for any other folder. A model's ``config.json`` names no arm."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and {"arm", "task"} <= settings.keys() else None


def model_of_run(name_or_path: str) -> str:
    """The folder of the model that the full arm made, where its run's folder is given; any other name as it is.

    Raises:
        ValueError: the folder is of a run that has made no whole model.
    """
    folder = Path(name_or_path).expanduser()
    settings = settings_of_run(folder)
    if settings is None:
        return name_or_path
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if not (folder / "result.json").is_file():
        raise ValueError(f"The run in {name_or_path} has no result yet: finish it with --resume.")
    raise ValueError(
        f"The run in {name_or_path} is of the {settings['arm']} arm, which makes no whole model: give its base, "
        f"{settings.get('model')}, or the folder that 'multiticket merge' makes of a ticket."
    )
