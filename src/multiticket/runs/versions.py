"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable

LIBRARIES = ("multiticket", "torch", "transformers", "trl", "accelerate", "numpy")


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Of Python and of the libraries under every run, and `more`. Never raises: nothing may be lost for want of one."""
    found = {"python": platform.python_version(), **{name: version_of(name) for name in (*LIBRARIES, *more)}}
    if "vllm" in sys.modules:  # asked of itself, since a build for another device has another name
        found["vllm"] = str(getattr(sys.modules["vllm"], "__version__", UNKNOWN))
    return found


UNKNOWN = "unknown"


def version_of(name: str) -> str:
    """What is installed under a name, or else what the imported module says, or ``unknown``."""
    try:
        return str(importlib.metadata.version(name))
    except Exception:  # not installed but on the path, or installed with broken metadata
        return str(getattr(sys.modules.get(name), "__version__", UNKNOWN))
