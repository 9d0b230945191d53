"""What others write into weights whose layers read an alias: noticed without a wait, and taken into the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from multiticket.sparse.gradient import native
from multiticket.sparse.guarded import Guarded
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.values import Values


class Alias(Guarded):
    """A weight's memory as a leaf."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def make_alias(tensor: MaskedTensor) -> Alias:
    """A leaf over the tensor's memory, that stands in its modules for the parameter."""
    alias: Alias = Tensor._make_subclass(Alias, tensor.dense.detach(), True)
    alias._masked_weight, alias._is_param = tensor, True
    return alias


def written_past_versions(groups: Iterable[Values]) -> Iterator[MaskedTensor]:
    """Tensors that do not hold what was written last; known on a CPU, where it is kept, and asking waits for nobody."""
    for group in groups:
        last = group.written
        if last is None or last.device.type != "cpu":
            continue
        held = [tensor for tensor in group.tensors if tensor.in_memory and not tensor.dense.is_meta]
        for dtype in dict.fromkeys(tensor.dtype for tensor in held):
            same = [tensor for tensor in held if tensor.dtype == dtype]
            rounded = last.to(dtype)
            content = [rounded[tensor.begin : tensor.end] for tensor in same]
            dense, positions = [t.dense for t in same], [t.positions for t in same]
            if all(native.can_write(*place) for place in zip(dense, positions, content, strict=True)):
                flags = native.changed(dense, positions, content)
            else:
                flags = [not torch.equal(t.taken(), one) for t, one in zip(same, content, strict=True)]
            yield from (tensor for tensor, differs in zip(same, flags, strict=True) if differs)


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
