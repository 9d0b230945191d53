"""What is wanted of several dense gradients that arrived in some order, taken at once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from multiticket.sparse.gradient import native
from multiticket.sparse.hooked.tensor import MaskedTensor


class Order:
    """Of gradients that arrive in the order of ``slots``; backward passes repeat their order.

    ``runs`` has (begin, end) among the values of each stretch of what is taken, ``sizes`` their lengths.

    Args:
        tensors: all whose values lie together.
        slots: which of them, as they arrive.
    """

    def __init__(self, tensors: Sequence[MaskedTensor], slots: Sequence[int]) -> None:
        self._arrived = [tensors[slot] for slot in slots]
        self._sorted = sorted(range(len(slots)), key=slots.__getitem__)
        self.runs: list[tuple[int, int]] = []
        for place in self._sorted:
            tensor = self._arrived[place]
            joins = bool(self.runs) and self.runs[-1][1] == tensor.begin
            self.runs.append((self.runs.pop()[0] if joins else tensor.begin, tensor.end))
        self.sizes = [end - begin for begin, end in self.runs]
        positions = [self._arrived[place].positions for place in self._sorted]
        self._native = native.gatherer(positions) if native.can_gather(positions) else None
        self._in_order = itemgetter(
            *self._sorted, self._sorted[0]
        )  # of one place alone it would make no tuple
        self._joined: Tensor | None = None

    def take(self, gradients: Sequence[Tensor]) -> Tensor:
        """The entries at the tensors' positions, in the order of the values.

        By the compiled kernel on a CPU; elsewhere by one gather from all of them joined, since a small gather's time on
        a GPU is its launch.
        """
        if self._native is not None:
            taken = self._native(self._in_order(gradients)[:-1])
            if taken is not None:
                return taken
        if self._joined is None:
            begin, begins = 0, []
            for tensor in self._arrived:
                begins.append(begin)
                begin += tensor.shape.numel()
            parts = [self._arrived[place].positions + begins[place] for place in self._sorted]
            self._joined = torch.cat(parts)  # int32 reaches: little waits to be gathered together
        return _flatten_dense_tensors(gradients).index_select(0, self._joined)
