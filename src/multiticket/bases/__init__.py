"""Models to start from: tiny ones that ship with the package (``tools/pretrain.py`` makes them), and others by name.

`names` are the shipped ones; `known.KNOWN` are small models that others publish, by short names.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiticket.bases.gguf import dequantised, facts_of, is_gguf
from multiticket.bases.known import KNOWN, both_ways, place_of
from multiticket.bases.of_run import model_of_run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["dequantised_from", "load", "names", "path", "resolve"]


def names() -> list[str]:
    """The shipped bases."""
    folder = Path(str(files("multiticket.bases")))
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of a shipped base, which `from_pretrained` reads. ValueError for a name that does not ship."""
    if name not in names():
        raise ValueError(
            f"Unknown base {name!r}: the package ships {', '.join(names())}, and knows where to get {', '.join(KNOWN)}."
        )
    return Path(str(files("multiticket.bases"))) / name


def resolve(name_or_path: str) -> str:
    """What `from_pretrained` reads: the folder of a shipped base or of a GGUF file's values, a hub name, or a path.

    A run's folder stands for the whole model that the run made.

    Raises:
        ValueError: for a GGUF file that is not there or cannot be read, and for a run that made no whole model.
    """
    if name_or_path in names():
        return str(path(name_or_path))
    place = place_of(name_or_path) if name_or_path in KNOWN else name_or_path
    return str(dequantised(place)) if is_gguf(place) else model_of_run(place)


def dequantised_from(name_or_path: str) -> dict[str, Any] | None:
    """The GGUF file (name, SHA-256, types of its tensors) whose values a base's are; None for any other base."""
    if name_or_path in KNOWN or is_gguf(name_or_path):
        return facts_of(resolve(name_or_path))
    return None


def load(name: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a shipped or known base, the model on the CPU, in `dtype` or as its file has it.

    Files hold bf16, and the values of a GGUF file are fp32.

    Raises:
        ValueError: for another name, and where a known base is not to be had; it says how.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from multiticket.errors import why_not_loaded

    place = resolve(name) if name in KNOWN else str(path(name))
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype or "auto")
        return model, AutoTokenizer.from_pretrained(place)
    except OSError as error:
        if name not in KNOWN:
            raise
        raise ValueError(f"{name} is not here: {both_ways(name)}; {why_not_loaded(error)}.") from None
