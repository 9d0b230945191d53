"""The Feistel network of `random.py`, twice: in numpy for the CPU, in torch for everything else.

Both are tested equal to the plain integers of `reference.py`. numpy's 32-bit words make the CPU three times as fast
as torch's int64, which has no unsigned 32-bit arithmetic; there every product stays below 2**63 instead.
"""

from __future__ import annotations

import numpy as np
import torch

Key = tuple[int, ...]

ROUNDS = 8
WORD = 2**32 - 1
# Multipliers below 2**31, so that a 32-bit word times one of them stays below 2**63; with the shifts 16,
# 15, 15 the best published two-multiplier mixer (hash-prospector, bias 0.107).
MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)


def on_cpu(number: np.ndarray, base: int, key: Key) -> np.ndarray:
    """A permutation of 0 ... base**2 - 1 (base at most 2**20), applied to every int64 entry of ``number`` (m,)."""
    quotient = number // base
    left, right = quotient.astype(np.uint32), (number - quotient * base).astype(np.uint32)
    hashed, spare, wide = np.empty_like(left), np.empty_like(left), np.empty(len(left), dtype=np.uint64)
    for turn in range(ROUNDS):
        np.copyto(hashed, right)
        _scramble_words(hashed, spare, key[2 * turn], key[2 * turn + 1])
        np.multiply(hashed, np.uint64(base), out=wide, dtype=np.uint64)
        wide >>= np.uint64(32)
        left += wide.astype(np.uint32)
        # left modulo base: where left - base is negative it wraps to something larger than left
        np.subtract(left, np.uint32(base), out=spare)
        np.minimum(left, spare, out=left)
        left, right = right, left
    return left.astype(np.int64) * base + right


def _scramble_words(word: np.ndarray, spare: np.ndarray, first: int, second: int) -> None:
    """`scramble_` on uint32 in place; ``spare`` is memory of the same shape and dtype."""
    word ^= np.uint32(first)
    word ^= np.right_shift(word, 16, out=spare)
    word *= np.uint32(MULTIPLIERS[0])
    word ^= np.right_shift(word, 15, out=spare)
    word ^= np.uint32(second)
    word *= np.uint32(MULTIPLIERS[1])
    word ^= np.right_shift(word, 15, out=spare)


def on_device(number: torch.Tensor, base: int, key: Key) -> torch.Tensor:
    """The same for a torch tensor on any device: int64 in, int64 out, shape (m,)."""
    left = number.div(base, rounding_mode="floor")
    right = number - left * base
    for turn in range(ROUNDS):
        hashed = scramble_(right.clone(), key[2 * turn], key[2 * turn + 1])
        left += hashed.mul_(base).bitwise_right_shift_(32)
        # left modulo base, without a division: subtract base, and add it again where that went negative
        left -= base
        left += (left >> 63).bitwise_and_(base)
        left, right = right, left
    return left.mul_(base).add_(right)


def scramble_(word: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """A bijection of the 32-bit words, keyed by two of them, in place on int64 entries below 2**32."""
    word ^= first
    word ^= word >> 16
    word.mul_(MULTIPLIERS[0]).bitwise_and_(WORD)
    word ^= word >> 15
    word ^= second
    word.mul_(MULTIPLIERS[1]).bitwise_and_(WORD)
    word ^= word >> 15
    return word
