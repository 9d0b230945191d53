"""Files that are either whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    from multiticket.ticket.atomic import replacing  # tickets import torch, without which a run can be read

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON under a temporary name, then rename it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
