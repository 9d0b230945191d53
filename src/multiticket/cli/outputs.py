"""Files that a command is to write at its end, looked at before it begins."""

from __future__ import annotations

from pathlib import Path


def refuse_unwritable(*paths: Path | None) -> None:
    """What would fail after minutes of measuring fails now: a file without a folder, or in a folder's place."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path.name} in; make it first.")
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file to write.")
