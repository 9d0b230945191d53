"""How many tokens' keys and values a generation may hold."""

from __future__ import annotations

import os
from typing import Any

import torch

SHARE = 8
"""Keys and values take at most so small a part of the memory: weights, and what is trained, want the rest."""


def machine_memory() -> int | None:
    """Bytes of the GPU that runs would take, or of this machine where it has none; None where that is not told."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def bytes_a_token(config: Any, dtype: torch.dtype) -> int | None:
    """Of the keys and values of one token in a plain decoder; None where its configuration does not say."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not (heads and layers and width):
        return None
    each = getattr(text, "head_dim", None) or width // text.num_attention_heads
    return int(2 * layers * heads * each * dtype.itemsize)


def most_tokens(config: Any, dtype: torch.dtype, asked: int) -> int:
    """`asked` tokens, or fewer where their keys and values would take more than their share of this machine's memory.

    At least 1.
    """
    memory, each = machine_memory(), bytes_a_token(config, dtype)
    if memory is None or each is None:
        return asked
    return max(1, min(asked, memory // SHARE // each))
