"""A masked weight that is quantised: nothing can be written into it, so its values are kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask.put import put
from multiticket.mask.quantised import dequantise, logical_dtype, logical_shape
from multiticket.sparse.hooked.tensor import MaskedTensor


class QuantisedTensor(MaskedTensor):
    """The weight of a quantised linear layer.

    It has no alias, since no leaf can share its memory: every product is made by a function of ours, which dequantises
    the weight, puts the values into that copy, and lets it go.
    """

    in_memory = False

    def __init__(self, name: str, places: Sequence[tuple[nn.Module, str]], positions: Tensor) -> None:
        super().__init__(name, places, positions)
        self.served: Tensor | None = None
        """What the layer computes with at the positions (k,), in the dense weight's dtype; None: the base's."""

    def shape_now(self) -> torch.Size:
        return torch.Size(logical_shape(self.dense))

    def address_now(self) -> int:
        held: Any = self.dense
        return int(
            getattr(held, "qdata", held).data_ptr()
        )  # torchao's is a wrapper without memory of its own

    @property
    def dtype(self) -> torch.dtype:
        return logical_dtype(self.dense)

    def taken(self) -> Tensor:
        return self.stored() if self.served is None else self.served.clone()

    def stored(self) -> Tensor:
        return dequantise(self.owner).take(self.positions.long())

    def whole(self, values: Tensor | None) -> Tensor:
        """A copy of the dense weight with ``values`` (k,) in it."""
        dense = dequantise(self.owner)
        return dense if values is None else put(dense, self.positions, values)

    def fresh_dense(self) -> Tensor:
        return self.whole(self.served)


def serve_beside(tensors: Sequence[MaskedTensor], values: Tensor) -> Callable[[Tensor, bool], None] | None:
    """Give each quantised tensor the rounded copy of its values that it serves.

    Args:
        tensors: of which ``values`` (n,) are all values, in order.

    Returns:
        What replaces the copies by other values (n,), and tells autograd if asked to; None where none is quantised.
    """
    quantised = [tensor for tensor in tensors if isinstance(tensor, QuantisedTensor)]
    copies = {tensor.dtype: values.detach().to(tensor.dtype, copy=True) for tensor in quantised}
    for tensor in quantised:
        tensor.served = copies[tensor.dtype][tensor.begin : tensor.end]

    def serve(content: Tensor, tell: bool) -> None:
        for copy in copies.values():
            (copy if tell else copy.data).copy_(content)

    return serve if quantised else None
