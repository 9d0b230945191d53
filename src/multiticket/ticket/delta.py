"""Sorted positions as bytes: the first one, then the gaps less one, each in seven-bit groups (LEB128).

At 1 % density a position takes about 1.3 bytes. Positions decoded this way increase by construction.
"""

from __future__ import annotations

import numpy as np

_MOST_BYTES = 6  # 42 bits, for positions below 2**40


def encode(flat: np.ndarray) -> np.ndarray:
    """Sorted unique int64 positions (k,) to uint8 (m,)."""
    steps = np.diff(flat, prepend=-1) - 1
    lengths = np.ones(len(steps), dtype=np.int64)
    for group in range(1, _MOST_BYTES):
        lengths += steps >= 1 << 7 * group
    starts = np.cumsum(lengths) - lengths
    out = np.empty(int(lengths.sum()), dtype=np.uint8)
    for group in range(_MOST_BYTES):
        has = lengths > group
        more = np.where(lengths[has] > group + 1, 0x80, 0)
        out[starts[has] + group] = (steps[has] >> 7 * group & 0x7F) | more
    return out


def decode(data: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """uint8 (m,) to one int64 array of sorted unique positions for each count, in order.

    Raises ValueError where the bytes do not hold exactly that many numbers, each in its shortest form.
    """
    ends = np.flatnonzero(data < 0x80)
    if len(ends) != sum(counts) or (len(data) and (not len(ends) or ends[-1] != len(data) - 1)):
        raise ValueError("The ticket stores another number of positions than it declares.")
    lengths = np.diff(ends, prepend=-1)
    if len(lengths) and lengths.max() > _MOST_BYTES:
        raise ValueError("A stored position in the ticket is too large.")
    if np.any((data[ends] == 0) & (lengths > 1)):
        raise ValueError("A stored position in the ticket is not in its shortest form.")
    steps = np.zeros(len(ends), dtype=np.int64)
    for group in range(_MOST_BYTES):
        has = lengths > group
        steps[has] |= (data[ends[has] - lengths[has] + 1 + group].astype(np.int64) & 0x7F) << 7 * group
    pieces = np.split(steps, np.cumsum(counts)[:-1])
    return [np.cumsum(piece + 1) - 1 for piece in pieces]
