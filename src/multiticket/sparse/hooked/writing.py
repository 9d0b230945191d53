"""How values get into the weights' memory, and how it is seen that they are no longer there.

Weights are grouped by dtype; what knows their addresses holds for as long as they stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from multiticket.mask.put import put
from multiticket.sparse.gradient import native
from multiticket.sparse.hooked.tensor import MaskedTensor

TRITON = find_spec("triton") is not None

Writer = Callable[[Tensor, bool], None]
"""Takes all values (n,), and whether autograd is told of the write."""
Comparer = Callable[[Tensor], list[MaskedTensor]]
"""Takes all values (n,) as they were written last; gives the tensors that hold something else."""


def writers(tensors: Sequence[MaskedTensor]) -> Iterator[Writer]:
    """What puts the values of ``tensors`` into those that lie in memory, rounded to their dtype.

    A Triton kernel on a GPU, which stores only what differs; the compiled kernel on a CPU; torch elsewhere.
    """
    for alike in _by_dtype(tensors):
        yield _writer(alike, len(alike) == len(tensors))


def comparers(tensors: Sequence[MaskedTensor]) -> Iterator[Comparer]:
    """What finds those of ``tensors`` in memory that no longer hold their values."""
    for alike in _by_dtype([tensor for tensor in tensors if not tensor.dense.is_meta]):
        yield _comparer(alike, alike[0].dtype)


def _by_dtype(tensors: Sequence[MaskedTensor]) -> Iterator[list[MaskedTensor]]:
    inside = [tensor for tensor in tensors if tensor.in_memory]
    for dtype in dict.fromkeys(tensor.dtype for tensor in inside):
        yield [tensor for tensor in inside if tensor.dtype == dtype]


def _writer(tensors: list[MaskedTensor], alone: bool) -> Writer:
    dense, positions = [t.dense.data for t in tensors], [t.positions for t in tensors]
    versions = [t.dense for t in tensors]
    pieces = [slice(t.begin, t.end) for t in tensors]
    dtype, device = dense[0].dtype, dense[0].device

    def part(content: Tensor) -> Tensor:
        return content if alone else torch.cat([content[piece] for piece in pieces])

    plain = all(one.is_contiguous() for one in dense) and all(at.dtype == torch.int32 for at in positions)
    if device.type == "cuda" and plain and TRITON:
        from multiticket.sparse.triton_kernels import Places  # triton is imported where it is used

        places = Places(dense, positions)

        def write_by_kernel(content: Tensor, tell: bool) -> None:
            places.write(part(content))
            if tell:
                torch.autograd.graph.increment_version(versions)

        return write_by_kernel
    if _in_reach(dense, positions):
        write_all = native.writer(dense, positions)

        def write_native(content: Tensor, tell: bool) -> None:
            write_all(part(content).to(dtype))
            if tell:
                torch.autograd.graph.increment_version(versions)

        return write_native

    def write_each(content: Tensor, tell: bool) -> None:
        for one, version, at, piece in zip(dense, versions, positions, pieces, strict=True):
            target = version.detach() if tell else one
            put(target, at, content[piece].to(dtype))

    return write_each


def _comparer(tensors: list[MaskedTensor], dtype: torch.dtype) -> Comparer:
    dense, positions = [t.dense.data for t in tensors], [t.positions for t in tensors]
    if _in_reach(dense, positions):
        compare = native.comparer(dense, positions)
        offsets = [tensor.begin * dtype.itemsize for tensor in tensors]
        addresses: list[int] = []

        def compare_native(content: Tensor) -> list[MaskedTensor]:
            nonlocal addresses
            rounded = content.to(dtype)
            begin = rounded.data_ptr()
            if not addresses or addresses[0] != begin + offsets[0]:
                addresses = [begin + offset for offset in offsets]
            return [tensors[index] for index in compare(addresses)]

        return compare_native
    return lambda content: [
        t for t in tensors if not torch.equal(t.taken(), content[t.begin : t.end].to(dtype))
    ]


def _in_reach(dense: list[Tensor], positions: list[Tensor]) -> bool:
    return all(native.can_write(one, at, one.new_empty(0)) for one, at in zip(dense, positions, strict=True))
