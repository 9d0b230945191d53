"""`random.py` and `feistel.py` once more, in plain Python integers, place by place: the specification."""

from __future__ import annotations

import math

from multiticket.mask.feistel import MULTIPLIERS, ROUNDS, WORD, Key
from multiticket.mask.random import SORTED_UP_TO


def position(place: int, numel: int, key: Key) -> int:
    """The position at one place of the permutation of ``numel`` positions. Slow."""
    assert 0 <= place < numel
    if numel <= SORTED_UP_TO:
        return sorted(range(numel), key=lambda i: _sort_word(i, key))[place]
    base = math.isqrt(numel - 1) + 1
    number = _feistel(place, base, key)
    while number >= numel:
        number = _feistel(number, base, key)
    return number


def _sort_word(word: int, key: Key) -> int:
    for turn in range(4):
        word = _scramble(word, key[2 * turn], key[2 * turn + 1])
    return word


def _feistel(number: int, base: int, key: Key) -> int:
    left, right = divmod(number, base)
    for turn in range(ROUNDS):
        hashed = _scramble(right, key[2 * turn], key[2 * turn + 1]) * base >> 32
        left, right = right, (left + hashed) % base
    return left * base + right


def _scramble(word: int, first: int, second: int) -> int:
    word ^= first
    word ^= word >> 16
    word = word * MULTIPLIERS[0] & WORD
    word ^= word >> 15
    word ^= second
    word = word * MULTIPLIERS[1] & WORD
    word ^= word >> 15
    return word
