"""Load the model that a run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from multiticket import bases
from multiticket.errors import why_not_loaded


def load_model(name: str, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in `dtype` on the default device, with its tokenizer padding on the left.

    Args:
        name: a shipped base, a folder with a Hugging Face checkpoint, or a name on the hub.

    Raises:
        ValueError: if there is no such model, or it has no tokenizer.
    """
    place = bases.resolve(name)
    if name.startswith((".", "/", "~")) and not Path(place).is_dir():
        raise ValueError(
            f"There is no folder {name}: give a shipped base, a checkpoint folder, or a hub name."
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, padding_side="left", truncation_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError) as error:
        known = ", ".join(bases.names())
        raise ValueError(
            f"Cannot load the model {name!r}: give a shipped base ({known}), a checkpoint folder, or a hub name; "
            f"{why_not_loaded(error)}."
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if torch.cuda.is_available():
        model.to("cuda")
    return model, tokenizer
