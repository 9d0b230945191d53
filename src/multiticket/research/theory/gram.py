"""The Gram matrix of per-sample gradients, G_ij = <g_i, g_j>, whole, by tensor and under masks.

The non-zero eigenvalues of G are those of sum_i g_i g_i^T: the (empirical) Fisher matrix times the number of
samples where g_i is the score, the gradient of log p. The Fisher matrix itself, parameters x parameters, is never
made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiticket.mask import Mask
from multiticket.research.theory.gradients import Gradients, Piece


@dataclass(frozen=True)
class Grams:
    """What one pass over the gradients leaves."""

    by_tensor: dict[str, Tensor]
    """(samples, samples) fp64 on the CPU: the inner products over the coordinates of one tensor."""
    fourth: dict[str, float]
    """Of each tensor, the sum over coordinates c of (sum_i g_ic^2)^2 = sum_ij sum_c (g_ic g_jc)^2."""
    masked: tuple[Tensor, ...]
    """(samples, samples) fp64 for each mask: the inner products over its positions."""

    @property
    def full(self) -> Tensor:
        """(samples, samples) fp64: over all coordinates."""
        return torch.stack(list(self.by_tensor.values())).sum(0)


def grams(gradients: Gradients, masks: Sequence[Mask] = ()) -> Grams:
    """All Gram matrices in one pass over the gradients.

    Products are taken in the gradients' dtype over at most `gradients.PIECE` coordinates and summed in fp64.
    Memory beside the gradients' block: tensors x samples^2.

    Raises ValueError where a mask has a tensor that the gradients lack, or in another shape.
    """
    for mask in masks:
        _refuse_other_model(gradients, mask)
    size = gradients.samples
    by_tensor = {name: torch.zeros(size, size, dtype=torch.float64) for name in gradients.shapes}
    fourth = dict.fromkeys(gradients.shapes, 0.0)
    masked = tuple(torch.zeros(size, size, dtype=torch.float64) for _ in masks)
    for piece, chosen in with_positions(gradients, masks):
        by_tensor[piece.name] += inner_products(piece.values)
        fourth[piece.name] += float(piece.values.square().sum(0).double().square().sum())
        for total, columns in zip(masked, chosen, strict=True):
            if columns is None:
                total += inner_products(piece.values)
            elif len(columns):
                total += inner_products(piece.values[:, columns])
    return Grams(by_tensor, fourth, masked)


def inner_products(rows: Tensor) -> Tensor:
    """(samples, width) to (samples, samples) fp64 on the CPU, symmetric."""
    product = (rows @ rows.T).to("cpu", torch.float64)
    return (product + product.T) / 2


def with_positions(
    gradients: Gradients, masks: Sequence[Mask]
) -> Iterator[tuple[Piece, list[Tensor | None]]]:
    """Each piece with every mask's columns in it: int64 (k,), or None for all of them."""
    name, flats = None, list[Tensor | None]()
    for piece in gradients.pieces():
        if piece.name != name:
            name = piece.name
            flats = [_positions(mask, name, piece.values.device) for mask in masks]
        yield piece, [None if flat is None else _inside(flat, piece) for flat in flats]


def _positions(mask: Mask, name: str, device: torch.device) -> Tensor | None:
    if mask.count(name) and mask.count(name) == torch.Size(mask.shape(name)).numel():
        return None
    return mask.indices(name, device)


def _inside(flat: Tensor, piece: Piece) -> Tensor:
    stop = piece.start + piece.values.shape[1]
    ends = torch.searchsorted(flat, torch.tensor([piece.start, stop], device=flat.device)).tolist()
    return flat[ends[0] : ends[1]] - piece.start


def _refuse_other_model(gradients: Gradients, mask: Mask) -> None:
    for name in mask.names:
        if gradients.shapes.get(name) != mask.shape(name):
            raise ValueError(f"The mask is of another model: these have no tensor {name} of its shape.")
