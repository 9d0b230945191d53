"""Bytes of a quantised base: its linear layers but the head, as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

BYTES: dict[str, Callable[[nn.Linear], float]] = {
    # Half a byte an entry, a byte for the scale of 64, and 4 bytes for the scale of 256 scales (QLoRA's two levels).
    "nf4": lambda layer: layer.weight.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256)),
    # LLM.int8: a byte an entry, and an fp32 scale a row.
    "int8": lambda layer: layer.weight.numel() + 4 * layer.out_features,
}
"""What a linear layer's weight takes, by format."""


def quantised_bytes(model: Any, quantised: str) -> tuple[int, int]:
    """How much smaller a dense model's weights are in a format of ``BYTES``, and the largest copy that a product is
    made with, in the dtype it computes in."""
    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    dense = [layer.weight.nbytes for layer in layers]
    return round(sum(dense) - sum(map(BYTES[quantised], layers))), max(dense, default=0)
