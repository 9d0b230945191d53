"""Trained values in a checkpoint: fp32, by tensor name, with the mask's rule and the base's fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from multiticket.sparse import Attachment

VALUES_FILE = "values.safetensors"
_KEY = "multiticket"


def save_values(state: dict[str, Any], path: Path) -> None:
    """Write an ``attachment.state_dict()``: fp32 values (k,) by name, the rest as JSON in the header."""
    rest = json.dumps({key: value for key, value in state.items() if key != "values"})
    save_file({name: values.cpu() for name, values in state["values"].items()}, path, metadata={_KEY: rest})


def load_values(attachment: Attachment, path: Path) -> None:
    """Put saved values back. Raises ValueError for a file that is missing, broken, or of another mask or base."""
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads(file.metadata()[_KEY])
            state = {"values": {name: file.get_tensor(name) for name in file.keys()}, **rest}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of trained values: {error}.") from None
    attachment.load_state_dict(state)
