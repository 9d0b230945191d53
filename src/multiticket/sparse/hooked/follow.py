"""What others write into weights whose layers read an alias: noticed without a wait, and taken into the values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multiticket.sparse.guarded import Guarded
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.values import Values
from multiticket.sparse.watch import Entries, Memory


class Alias(Guarded):
    """A weight's memory as a leaf."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def make_alias(tensor: MaskedTensor) -> Alias:
    """A leaf over the tensor's memory, that stands in its modules for the parameter."""
    alias: Alias = Tensor._make_subclass(Alias, tensor.dense.detach(), True)
    alias._masked_weight, alias._is_param = tensor, True
    return alias


class Watch:
    """Asks every step whether anybody replaced, moved or wrote to a masked weight.

    Args:
        groups: the values; their tensors have their aliases.
    """

    def __init__(self, groups: Sequence[Values]) -> None:
        self._groups = groups
        tensors = [tensor for group in groups for tensor in group.tensors]
        self._inside = [tensor for tensor in tensors if tensor.in_memory]
        self._outside = [tensor for tensor in tensors if not tensor.in_memory]
        self._entries = Entries(
            [(module._parameters, attribute) for t in tensors for module, attribute in t.places]
            + [(module.__dict__, attribute) for t in self._inside for module, attribute in t.places]
        )
        self._memory = Memory([tensor.known for tensor in self._inside])
        self._counts = [sum(tensor.in_memory for tensor in group.tensors) for group in groups]
        self.note()

    def note(self) -> None:
        """Remember the versions that the tensors have noted, and that nobody has got hold of any since."""
        self._noted = sum(tensor.version for tensor in self._inside)
        for group in self._groups:
            group.touched = False

    def anything_replaced(self) -> bool:
        """Whether a module has another parameter or alias than it had, or a weight's memory is elsewhere."""
        same = self._entries.are_the_same() and not self.anything_moved()
        return not same or any(tensor.address_now() != tensor.address for tensor in self._outside)

    def anything_moved(self) -> bool:
        """Whether the memory of a weight in memory is elsewhere."""
        return not self._memory.is_the_same()

    def anything_written(self) -> bool:
        """Whether autograd was told of a write that was not ours, or somebody got hold of a weight's memory."""
        told = sum(group.told * count for group, count in zip(self._groups, self._counts, strict=True))
        return self._memory.versions() != self._noted + told or any(group.touched for group in self._groups)


@torch.no_grad()
def follow(tensor: MaskedTensor) -> None:
    """Where others wrote to the weight at the mask's positions, its values become what they wrote.

    Where somebody changed the values as well since they were last written, and that is known, those are what counts.
    """
    group = tensor.values_of
    held = tensor.taken()
    mine = group.parameter[tensor.begin : tensor.end]
    last = mine if group.written is None else group.written[tensor.begin : tensor.end]
    rounded = last.to(held.dtype)
    changed = (held != rounded) & (mine.to(held.dtype) == rounded)
    mine.copy_(torch.where(changed, held.to(mine.dtype), mine))
    if group.written is not None:
        last.copy_(torch.where(held != rounded, held.to(last.dtype), last))
    tensor.note()
