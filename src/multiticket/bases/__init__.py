"""Tiny pretrained models that ship with the package; ``tools/pretrain.py`` makes them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load", "names", "path", "resolve"]


def names() -> list[str]:
    """The shipped bases."""
    folder = Path(str(files("multiticket.bases")))
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of a shipped base, which `from_pretrained` reads. ValueError for a name that does not ship."""
    if name not in names():
        raise ValueError(f"Unknown base {name!r}: the package ships {', '.join(names())}.")
    return Path(str(files("multiticket.bases"))) / name


def resolve(name_or_path: str) -> str:
    """The folder of a shipped base, or any other model's name or path unchanged."""
    return str(path(name_or_path)) if name_or_path in names() else name_or_path


def load(name: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a shipped base, the model on the CPU, in `dtype` or as its file has it (bf16)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = path(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    return model, AutoTokenizer.from_pretrained(folder)
