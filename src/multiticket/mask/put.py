"""Write single entries of a tensor by operations that torch has a deterministic version of, which ``put_`` is not."""

from __future__ import annotations

import torch
from torch import Tensor


def put(dense: Tensor, flat: Tensor, content: Tensor) -> Tensor:
    """``dense.put_(flat, content)`` for unique flat row-major positions (k,), also under
    ``torch.use_deterministic_algorithms``; returns ``dense``."""
    flat = flat.long()
    if dense.is_contiguous():
        dense.view(-1).scatter_(0, flat, content)
    else:
        dense[torch.unravel_index(flat, dense.shape)] = content
    return dense
