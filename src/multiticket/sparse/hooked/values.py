"""All trained values in one parameter, or two, and the gradient that a backward pass gathers for them.

One parameter for matrices and one for vectors: trainers exempt norms and biases from weight decay by name, and must
find them apart. Whoever asks for the values of one tensor gets a view of the same memory, gradient included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask.names import VALUES_SUFFIX
from multiticket.sparse.gradient import native
from multiticket.sparse.hooked.tensor import MaskedTensor

_TRITON = find_spec("triton") is not None

MATRICES = "ticket_matrices" + VALUES_SUFFIX
VECTORS = "ticket_norms_and_biases" + VALUES_SUFFIX


class Values:
    """The values of several masked tensors, one after the other in one parameter of the model.

    Args:
        model: which registers the parameter.
        name: of the parameter.
        tensors: in the order of the values.
    """

    def __init__(self, model: nn.Module, name: str, tensors: Sequence[MaskedTensor]) -> None:
        self.model, self.name, self.tensors = model, name, tensors
        end = 0
        for slot, tensor in enumerate(tensors):
            tensor.values_of, tensor.slot, tensor.begin = self, slot, end
            end += tensor.positions.numel()
            tensor.end = end
        self.original = torch.cat([tensor.taken() for tensor in tensors])
        """The base's values (n,), in the dtype of the weights."""
        dtype = torch.promote_types(torch.float32, self.original.dtype)
        model.register_parameter(name, nn.Parameter(self.original.to(dtype, copy=True)))
        self.marks = [False] * len(tensors)
        """By slot, whether this backward pass has gathered a gradient into ``low``."""
        self.views: dict[str, nn.Parameter] = {}
        self._written: Tensor | None = None
        """What was written last (n,), where a write does not look for itself; None for something else."""
        self.prepare()
        if not self._writes_differences():
            self._written = self.parameter.detach().clone()

    @property
    def parameter(self) -> nn.Parameter:
        """The values (n,), fp32 (fp64 over fp64 weights)."""
        parameter = self.model._parameters[self.name]
        assert parameter is not None
        return parameter

    def prepare(self) -> None:
        """What lies on the weights' device, made anew when they have moved."""
        parameter = self.parameter
        self.original = self.original.to(parameter.device)
        self.low: dict[torch.dtype, Tensor] = {}
        """By dtype of the weights, what was gathered (n,); only the slices of that dtype's tensors are used."""
        for tensor in self.tensors:
            dtype = tensor.dense.dtype
            if dtype not in self.low:
                self.low[dtype] = torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
            tensor.out = self.low[dtype][tensor.begin : tensor.end]
            tensor.make_leaf(parameter)
        self._dirty = [False] * len(self.tensors)
        self.marks[:] = self._dirty
        self.extra: list[tuple[int, int, Tensor]] = []
        """(begin, end, gradient) of what autograd gave to a tensor's leaf."""
        self._written = None
        self._writers: list[Any] | None = None
        for name, view in self.views.items():
            tensor = next(tensor for tensor in self.tensors if tensor.name == name)
            view.data, view.grad = parameter.data[tensor.begin : tensor.end], None

    # The gradient of a backward pass

    def collect(self) -> Tensor:
        """The gradient (n,) gathered since it was last collected, in the parameter's dtype; a new tensor."""
        marks, dirty = self.marks, self._dirty
        if marks != dirty:  # a tensor that took no part this time, and has an older gradient
            for slot, tensor in enumerate(self.tensors):
                if dirty[slot] and not marks[slot]:
                    tensor.out.zero_()
        self._dirty = marks[:]
        marks[:] = [False] * len(marks)
        dtype = self.parameter.dtype
        if len(self.low) == 1:
            (low,) = self.low.values()
            new = low.to(dtype, copy=True)
        else:
            new = torch.cat([tensor.out.to(dtype) for tensor in self.tensors])
        for begin, end, gradient in self.extra:
            new[begin:end] += gradient
        self.extra.clear()
        return new

    def anything(self) -> bool:
        """Whether a backward pass has left a gradient to collect."""
        return True in self.marks or bool(self.extra)

    # The values of one tensor

    def view(self, tensor: MaskedTensor) -> nn.Parameter:
        """The values (k,) of one tensor as a parameter of their own, which shares memory with all."""
        if not self.views:
            self.parameter.register_post_accumulate_grad_hook(lambda _: self.share_gradient())
        held = self.parameter.data[tensor.begin : tensor.end]
        if tensor.name not in self.views:
            self.views[tensor.name] = nn.Parameter(held, requires_grad=self.parameter.requires_grad)
        elif self.views[tensor.name].data_ptr() != held.data_ptr():  # somebody assigned the parameter's data
            self.views[tensor.name].data = held
        return self.views[tensor.name]

    def share_gradient(self) -> None:
        """Give each view its part of the gradient."""
        gradient = self.parameter.grad
        for tensor in self.tensors:
            view = self.views.get(tensor.name)
            if view is not None:
                view.grad = None if gradient is None else gradient[tensor.begin : tensor.end]

    def notice_cleared(self) -> None:
        """An optimiser over views clears those: what it cleared is cleared here."""
        gradient = self.parameter.grad
        if not self.views or gradient is None:
            return
        cleared = [t for t in self.tensors if t.name in self.views and self.views[t.name].grad is None]
        if len(cleared) == len(self.tensors):
            self.parameter.grad = None
        for tensor in cleared:
            gradient[tensor.begin : tensor.end].zero_()

    # Into the weights

    @torch.no_grad()
    def write(self, content: Tensor, tell: bool) -> None:
        """Put ``content`` (n,) into the weights, rounded to their dtype.

        Args:
            tell: whether autograd learns of the change, and refuses a backward pass that needs the old weights.
        """
        if self._writers is None:
            self._writers = list(self._make_writers())
        for writer in self._writers:
            writer(content, tell)
        if not self._writes_differences():
            self._written = content.detach().clone() if content is self.parameter else None

    @torch.no_grad()
    def ensure_written(self) -> None:
        """Put the values into the weights, should they have been changed past every optimiser.

        On a GPU the kernel stores what differs, and nobody waits; elsewhere the values are compared first.
        """
        parameter = self.parameter
        if self._writes_differences():
            self.write(parameter, tell=False)
        elif self._written is None or not torch.equal(parameter, self._written):
            self.write(parameter, tell=True)

    def _writes_differences(self) -> bool:
        return self.parameter.device.type == "cuda" and _TRITON

    def _make_writers(self) -> Iterator[Any]:
        dtypes = list(dict.fromkeys(tensor.dense.dtype for tensor in self.tensors))
        for dtype in dtypes:
            yield self._writer([tensor for tensor in self.tensors if tensor.dense.dtype == dtype])

    def _writer(self, tensors: list[MaskedTensor]) -> Any:
        dense, positions = [t.dense.data for t in tensors], [t.positions for t in tensors]
        versions = [t.dense for t in tensors]
        pieces = [slice(t.begin, t.end) for t in tensors]
        everything = len(tensors) == len(self.tensors)
        dtype, device = dense[0].dtype, dense[0].device

        def part(content: Tensor) -> Tensor:
            return content if everything else torch.cat([content[piece] for piece in pieces])

        plain = all(one.is_contiguous() for one in dense) and all(at.dtype == torch.int32 for at in positions)
        if device.type == "cuda" and plain and _TRITON:
            from multiticket.sparse.triton_kernels import Places  # triton is imported where it is used

            places = Places(dense, positions)

            def write_by_kernel(content: Tensor, tell: bool) -> None:
                places.write(part(content))
                if tell:
                    torch.autograd.graph.increment_version(versions)

            return write_by_kernel
        if all(native.can_write(one, at, one.new_empty(0)) for one, at in zip(dense, positions, strict=True)):
            put = native.writer(dense, positions)

            def write_native(content: Tensor, tell: bool) -> None:
                put(part(content).to(dtype))
                if tell:
                    torch.autograd.graph.increment_version(versions)

            return write_native

        def write_each(content: Tensor, tell: bool) -> None:
            for one, version, at, piece in zip(dense, versions, positions, pieces, strict=True):
                target = version.detach() if tell else one
                target.put_(at.long(), content[piece].to(dtype))

        return write_each


def flatten(named: dict[str, Tensor], tensors: Iterable[MaskedTensor]) -> Tensor:
    """The values of ``tensors`` one after the other, from values (k,) by name."""
    return torch.cat([named[tensor.name].reshape(-1) for tensor in tensors])
