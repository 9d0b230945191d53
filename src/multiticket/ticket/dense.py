"""Read and write single positions of a weight, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from multiticket.mask.put import put
from multiticket.ticket.overlay import OverlaidWeight

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def gather(weight: Tensor | OverlaidWeight, flat: Tensor) -> Tensor:
    """The bits of ``weight`` at the flat row-major positions ``flat`` (k,), as (k,) in its dtype, on its device."""
    if isinstance(weight, OverlaidWeight):
        return weight.gather(flat)
    flat = flat.to(device=weight.device, dtype=torch.int64)
    bits = _as_bits(weight)
    found = (
        bits.view(-1).gather(0, flat) if bits.is_contiguous() else bits[torch.unravel_index(flat, bits.shape)]
    )
    return found.view(weight.dtype)


def scatter_(weight: Tensor | OverlaidWeight, flat: Tensor, values: Tensor) -> None:
    """Write ``values`` (k,) to the positions ``flat`` (k,), unique; rounded to the weight's dtype where it differs."""
    if isinstance(weight, OverlaidWeight):
        weight.scatter_(flat, values)
        return
    flat = flat.to(device=weight.device, dtype=torch.int64)
    put(_as_bits(weight), flat, _as_bits(values.to(device=weight.device, dtype=weight.dtype)))


def _as_bits(tensor: Tensor) -> Tensor:
    """The same memory seen as integers, since arithmetic types may quieten a NaN on the way through."""
    return tensor.detach().view(_BITS[tensor.element_size()])
