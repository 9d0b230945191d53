"""A keyed permutation of a tensor's positions, computed where it is needed and nowhere else.

Place i of the permutation is a pure function of (seed, name, shape, i): no state, no list to keep,
the same on every device and machine. Version 1, pinned by golden vectors in the tests:

* The key is sixteen 32-bit words: BLAKE2b-512 of the JSON list ``[1,method,seed,name,shape]``.
* Above 65,536 positions: an eight-round Feistel network over pairs (l, r) of digits in base
  a = ceil(sqrt(n)), whose round adds a keyed hash of r, scaled to 0 ... a - 1, to l modulo a. What falls
  at n or above is sent through again (cycle walking); that is under 1 % of the places.
* Up to 65,536 positions: the positions sorted by a keyed 32-bit bijection, since a Feistel network of
  few values reaches too few permutations.

All arithmetic is on integers of known width, so nothing depends on rounding, device or machine.
`reference.py` beside this says the same in plain Python integers.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence

import torch

from multiticket.mask import feistel
from multiticket.mask.feistel import Key

MAX_NUMEL = 2**40
SORTED_UP_TO = 2**16


def tensor_key(seed: int, name: str, shape: Sequence[int], method: str = "random") -> Key:
    """The sixteen 32-bit words that key one tensor's permutation."""
    text = json.dumps([1, method, seed, name, list(shape)], separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=64, person=b"multiticket-mask").digest()
    return struct.unpack("<16I", digest)


def positions(
    numel: int, start: int, stop: int, key: Key, device: torch.device | str | None = "cpu"
) -> torch.Tensor:
    """The positions at places ``start`` to ``stop - 1`` of the permutation, sorted, int64 on ``device``."""
    out = permuted(numel, start, stop, key, device)
    if out.device.type == "cpu":
        out.numpy().sort()  # in place, and several times as fast as torch's sort on a CPU
        return out
    return out.sort().values


def permuted(
    numel: int, start: int, stop: int, key: Key, device: torch.device | str | None = "cpu"
) -> torch.Tensor:
    """The same in the order of the places: int64 of shape (stop - start,), memory O(stop - start)."""
    assert 0 <= start <= stop <= numel
    if numel >= MAX_NUMEL:
        raise ValueError(f"A tensor of {numel} entries is too large to mask: the limit is 2**40 - 1.")
    if numel <= SORTED_UP_TO:
        return _by_sorting(numel, key, device)[start:stop].clone()
    device = torch.device(device or "cpu")
    # Chunks that stay in a core's cache; on an accelerator, chunks that fill it.
    chunk = 2**16 if device.type == "cpu" else 2**22
    out = torch.empty(stop - start, dtype=torch.int64, device=device)
    for begin in range(start, stop, chunk):
        end = min(begin + chunk, stop)
        out[begin - start : end - start] = _by_feistel(torch.arange(begin, end, device=device), numel, key)
    return out


def permuted_at(place: torch.Tensor, numel: int, key: Key) -> torch.Tensor:
    """The position at each given place: int64 in, int64 out, shape (m,); memory O(m)."""
    if numel <= SORTED_UP_TO:
        return _by_sorting(numel, key, place.device)[place]
    return _by_feistel(place, numel, key)


def _by_sorting(numel: int, key: Key, device: torch.device | str | None) -> torch.Tensor:
    """All positions, ordered by a keyed bijection of the 32-bit words (so there are no ties)."""
    word = torch.arange(numel, dtype=torch.int64, device=device)
    for turn in range(4):
        feistel.scramble_(word, key[2 * turn], key[2 * turn + 1])
    return word.argsort()


def _by_feistel(place: torch.Tensor, numel: int, key: Key) -> torch.Tensor:
    """Position of every place (int64, any shape (m,)); ``place`` itself is left alone."""
    base = math.isqrt(numel - 1) + 1
    out = _rounds(place, base, key)
    outside = (out >= numel).nonzero().squeeze(-1)
    while outside.numel():
        walked = _rounds(out[outside], base, key)
        out[outside] = walked
        outside = outside[walked >= numel]
    return out


def _rounds(number: torch.Tensor, base: int, key: Key) -> torch.Tensor:
    if number.device.type == "cpu":
        return torch.from_numpy(feistel.on_cpu(number.numpy(), base, key))
    return feistel.on_device(number, base, key)
