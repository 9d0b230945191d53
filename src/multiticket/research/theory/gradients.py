"""Gradients of many samples, streamed in blocks of coordinates.

All that the instruments ask of the gradients is a sum over coordinates, so they are read in blocks of coordinates,
each with the rows of all samples. A model's are computed anew for each block: one backward pass a sample, into the
block's tensors alone. Memory is samples x block, whatever the model's size, and time grows by the number of
blocks; the alternative, samples in chunks, needs every pair of chunks together, which is more passes for the same
memory and cannot give a coordinate's sums over samples. A file of all gradients would be samples x parameters on a
disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multiticket.mask import masked_candidates

PIECE = 2**18
"""Coordinates handed out at once, at most, so that what is computed from them stays small."""
DEFAULT_MEMORY = 2**30
"""Bytes of gradients that may be there at once."""


@dataclass(frozen=True)
class Piece:
    """Some coordinates of one tensor in every sample's gradient."""

    name: str
    start: int
    """Flat row-major position of the first column."""
    values: Tensor
    """(samples, width), in the parameters' dtype."""


@dataclass(frozen=True)
class Gradients:
    """The gradients g_i of `samples` scalars. `pieces()` may be called again: the same numbers in the same order."""

    samples: int
    shapes: dict[str, tuple[int, ...]]
    """Every tensor with a coordinate, in the order of the pieces."""
    pieces: Callable[[], Iterator[Piece]]

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def given(tensors: Mapping[str, Tensor]) -> Gradients:
    """Gradients that are in memory: by tensor name, (samples, *shape), any real dtype."""
    samples = {len(tensor) for tensor in tensors.values()}
    if len(samples) != 1:
        raise ValueError("Every tensor needs the same number of samples, and there must be a tensor.")

    def pieces() -> Iterator[Piece]:
        for name, tensor in tensors.items():
            yield from _cut(name, 0, tensor.reshape(len(tensor), -1))

    return Gradients(samples.pop(), {name: tuple(t.shape[1:]) for name, t in tensors.items()}, pieces)


def of_model(
    model: nn.Module, scalars: Sequence[Callable[[], Tensor]], memory: int = DEFAULT_MEMORY
) -> Gradients:
    """The gradients of `scalars` with respect to every floating-point parameter of `model`, tied ones once.

    Args:
        scalars: each computes one sample's scalar, with its graph, when called; the same number every time.
        memory: bytes of gradients at most. Where all of them fit, they are computed once and kept.

    Returns:
        Gradients in the parameters' dtypes, on their devices; zeros where a scalar does not depend on a tensor.
        The parameters' ``requires_grad`` and ``grad`` are left as they were.

    Raises:
        ValueError: there is no sample, or not even two coordinates of all samples fit into `memory`.
    """
    weights = masked_candidates(model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if not scalars:
        raise ValueError("Gradients need at least one sample.")
    blocks = _plan({name: (w.numel(), w.element_size()) for name, w in weights.items()}, len(scalars), memory)
    kept: list[Piece] = []

    def pieces() -> Iterator[Piece]:
        for block in blocks:
            found = list(kept) if kept else _backward(weights, block, scalars)
            if len(blocks) == 1 and not kept:
                kept.extend(found)
            while found:
                whole = found.pop(0)
                yield from _cut(whole.name, whole.start, whole.values)

    return Gradients(len(scalars), shapes, pieces)


@dataclass(frozen=True)
class _Slice:
    name: str
    start: int
    stop: int


def _plan(sizes: Mapping[str, tuple[int, int]], samples: int, memory: int) -> list[list[_Slice]]:
    """Blocks of consecutive coordinates: one if `memory` holds it, else of half of that, since the last piece of a
    block is still in use while the next one is made. `sizes`: entries of a tensor, and bytes of an entry.
    """
    if samples * sum(numel * width for numel, width in sizes.values()) > memory:
        memory //= 2
    blocks: list[list[_Slice]] = [[]]
    room = memory
    for name, (numel, width) in sizes.items():
        start = 0
        while start < numel:
            count = min(numel - start, room // (samples * width))
            if count == 0 and not blocks[-1]:
                raise ValueError(f"Two coordinates of {samples} samples need more --memory.")
            if count == 0:
                blocks.append([])
                room = memory
                continue
            blocks[-1].append(_Slice(name, start, start + count))
            start += count
            room -= count * samples * width
    return [block for block in blocks if block]


def _backward(
    weights: Mapping[str, nn.Parameter], block: Sequence[_Slice], scalars: Sequence[Callable[[], Tensor]]
) -> list[Piece]:
    names = list(dict.fromkeys(part.name for part in block))
    required = {name: weight.requires_grad for name, weight in weights.items()}
    found = []
    for part in block:
        rows = weights[part.name].detach().new_zeros(len(scalars), part.stop - part.start)
        found.append(Piece(part.name, part.start, rows))
    try:
        for name, weight in weights.items():
            weight.requires_grad_(name in names)
        for row, scalar in enumerate(scalars):
            with torch.enable_grad():
                value = scalar()
            if not value.requires_grad:
                continue  # none of the block's tensors has a part in it
            wanted = torch.autograd.grad(value, [weights[name] for name in names], allow_unused=True)
            gradient = dict(zip(names, wanted, strict=True))
            for piece in found:
                flat = gradient[piece.name]
                if flat is not None:
                    piece.values[row] = flat.reshape(-1)[piece.start : piece.start + piece.values.shape[1]]
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(required[name])
    return found


def _cut(name: str, start: int, values: Tensor) -> Iterator[Piece]:
    for first in range(0, values.shape[1], PIECE):
        yield Piece(name, start + first, values[:, first : first + PIECE])
