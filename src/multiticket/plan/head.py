"""What the output head holds at its largest, which is in its backward pass."""

from __future__ import annotations

import torch

from multiticket.arms.protocol import Arm
from multiticket.sparse.autograd.fused_head import HOST_CHUNK
from multiticket.sparse.gradient.blocks import rows_of_a_block

TILE = (4096, 32768)
"""Tokens and words of the logits that TRL's fused head holds at a time."""


def fused_head_bytes(arm: Arm, device: str, tokens: int, vocabulary: int, width: int, itemsize: int) -> int:
    """TRL's fused head, a tile of logits at a time; of a ticket's, a block of words in fp32 in its place.

    A GPU's kernel works in the tile itself, in the weights' dtype. On a CPU torch does its work, with seven fp32
    tensors and one of bytes beside it.
    """
    a_logit, words = (itemsize, TILE[1]) if device != "cpu" else (itemsize + 7 * 4 + 1, HOST_CHUNK)
    rows = min(vocabulary, words, rows_of_a_block(width, torch.device(device)))
    a_word = min(tokens, TILE[0]) * a_logit
    return arm.head(
        tile=a_word * min(vocabulary, words),
        hidden=tokens * width * (itemsize + 4),
        gradient=vocabulary * width * 4,
        block=rows * (2 * width * 4 + a_word)
        + tokens * width * 4,  # weights, gradient, logits; hidden states
    )


def naive_head_bytes(tokens: int, vocabulary: int, itemsize: int) -> int:
    """Whole logits at the backward pass: (tokens, vocabulary) in the weights' dtype, and in fp32 the log-softmax, the
    gradient that arrives at it and the one that leaves it."""
    return tokens * vocabulary * (itemsize + 3 * 4)
