"""How many values a LoRA adapter trains for each unit of its rank."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


def values_per_rank(model: Any) -> int:
    """Trained values of a rank-1 LoRA on every linear layer but the head."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return sum(sum(layer.weight.shape) for layer in layers)
