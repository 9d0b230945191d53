"""What a run kept, wherever a path to it, or to the run's folder, is given."""

from __future__ import annotations

from pathlib import Path

from multiticket.bases.of_run import settings_of_run
from multiticket.runs.folder import RunFolder


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return settings_of_run(path) is not None


def ticket_file(path: Path) -> Path:
    """A ticket file as it is given, the one in a run's folder, or the hub's of `owner/name`, in its cache.

    Raises:
        ValueError: there is nothing, or a folder without a ticket.
    """
    from multiticket.ticket import hub

    found = hub.repository(path)
    if found is not None:
        return hub.download(*found)
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"There is no ticket {path}. Give a ticket file, or the folder of a run.")
        return path
    if (path / "ticket.safetensors").is_file():
        return path / "ticket.safetensors"
    raise ValueError(f"{path} is a folder without a ticket.safetensors{_instead(path)}; name a ticket file.")


def adapter_folder(path: Path) -> Path:
    """A PEFT adapter's folder as it is given, or the one in a run's folder."""
    inside = path / "adapter"
    return inside if is_run(path) and inside.is_dir() else path


def kept_by(path: Path) -> Path:
    """What the run in a folder made: a ticket's file, or the folder of an adapter or a whole model.

    Raises:
        ValueError: it made nothing yet.
    """
    folder = RunFolder(path)
    for kept in (folder.ticket, folder.adapter, folder.model):
        if kept.exists():
            return kept
    raise ValueError(f"The run in {path} has no result yet: finish it with --resume, or give a --checkpoint.")


def _instead(path: Path) -> str:
    """What a run's folder holds where that is no ticket."""
    try:
        return f" (the run made {kept_by(path).name})" if is_run(path) else ""
    except ValueError:
        return " (the run has no result yet)"
