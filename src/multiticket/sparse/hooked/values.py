"""All trained values in one parameter, or two, and the gradient that a backward pass gathers for them.

One parameter for matrices and one for vectors: trainers exempt norms and biases from weight decay by name, and must
find them apart. Whoever asks for the values of one tensor gets a view of the same memory, gradient included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask.names import VALUES_SUFFIX
from multiticket.sparse.hooked.order import Order
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.writing import TRITON, Comparer, Writer, comparers, writers
from multiticket.sparse.planned import device_of
from multiticket.sparse.quantised.tensor import serve_beside

MOST_WAITING = 1 << 26
"""Bytes of dense gradients that wait to be gathered together."""
MOST_ORDERS = 256
"""Orders of arrival whose positions are kept."""
MATRICES = "ticket_matrices" + VALUES_SUFFIX
VECTORS = "ticket_norms_and_biases" + VALUES_SUFFIX

_is_sparse = attrgetter("is_sparse")


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
        self.pending: list[tuple[int, Tensor]] = []
        """(slot, dense gradient) of what waits to be gathered together."""
        self.waiting = 0
        """Their bytes."""
        self.views: dict[str, nn.Parameter] = {}
        self.touched = False
        """Whether any tensor is ``touched``."""
        self.told = 0
        """How often autograd was told of a write, which raises the version of each weight by one."""
        self.written: Tensor | None = None
        """What was written last (n,), where a write does not look for itself; None for something else."""
        self.prepare()
        if not self._writes_differences():
            self.written = self.parameter.detach().clone()

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
        for tensor in self.tensors:
            tensor.make_leaf(parameter)
            tensor.note()
        self._orders: dict[tuple[int, ...], Order] = {}
        self.pending.clear()
        self.waiting = 0
        self._gathered: list[tuple[tuple[int, int], Tensor]] = []
        """((begin, end), gradient) of stretches of the values."""
        self._serve = serve_beside(self.tensors, parameter)
        self.extra: list[tuple[int, int, Tensor]] = []
        """(begin, end, gradient) of what autograd gave to a tensor's leaf."""
        self.written = None
        self._writers: list[Writer] | None = None
        self._comparers: list[Comparer] | None = None
        for name, view in self.views.items():
            tensor = next(tensor for tensor in self.tensors if tensor.name == name)
            view.data, view.grad = parameter.data[tensor.begin : tensor.end], None

    # The gradient of a backward pass

    def gather(self) -> None:
        """Take what is wanted of all pending gradients, with one gather, and let them go.

        On a GPU a small gather's time is its launch, so gradients wait for each other, up to ``MOST_WAITING`` bytes.
        """
        slots, dense = zip(*self.pending, strict=True)
        if any(map(_is_sparse, dense)):
            dense = tuple(one.to_dense() if one.is_sparse else one for one in dense)
        if len(slots) == 1:
            self.put(slots[0], dense[0].reshape(-1), self.tensors[slots[0]].positions)
        else:
            order = self._orders.get(slots)
            if order is None:
                if len(self._orders) >= MOST_ORDERS:
                    self._orders.clear()
                order = self._orders[slots] = Order(self.tensors, slots)
            taken = order.take(dense)
            self._gathered += (
                zip(order.runs, taken.split(order.sizes), strict=True)
                if len(order.runs) > 1
                else [(order.runs[0], taken)]
            )
        self.pending.clear()
        self.waiting = 0

    def put(self, slot: int, gradient: Tensor, positions: Tensor | None) -> None:
        """Take a gradient (k,), or its entries at ``positions`` (k,), for those of a tensor."""
        tensor = self.tensors[slot]
        taken = gradient if positions is None else gradient.index_select(0, positions)
        self._gathered.append(((tensor.begin, tensor.end), taken))

    def collect(self) -> Tensor:
        """The gradient (n,) gathered since it was last collected, in the parameter's dtype; a new tensor."""
        if self.pending:
            self.gather()
        parameter = self.parameter
        pieces = sorted(self._gathered, key=itemgetter(0))
        ends = [0, *(end for (_, end), _ in pieces)]
        if [*(begin for (begin, _), _ in pieces), parameter.numel()] == ends:
            new = torch.cat([piece for _, piece in pieces]).to(parameter.dtype)
        else:  # something was not used, or used twice
            new = torch.zeros_like(parameter, requires_grad=False)
            for (begin, end), piece in pieces:
                new[begin:end] += piece
        self._gathered.clear()
        for begin, end, gradient in self.extra:
            new[begin:end] += gradient
        self.extra.clear()
        return new

    def anything(self) -> bool:
        """Whether a backward pass has left a gradient to collect."""
        return bool(self.pending or self._gathered or self.extra)

    # The values of one tensor

    def view(self, tensor: MaskedTensor) -> nn.Parameter:
        """The values (k,) of one tensor as a parameter of their own, which shares memory with all."""
        if not self.views:
            self.parameter.register_post_accumulate_grad_hook(lambda _: self.share_gradient())
        held = self.parameter.data[tensor.begin : tensor.end]
        if tensor.name not in self.views:
            view = self.views[tensor.name] = nn.Parameter(held, requires_grad=self.parameter.requires_grad)
            if self.parameter.grad is not None:
                view.grad = self.parameter.grad[tensor.begin : tensor.end]
        elif self.views[tensor.name].data_ptr() != held.data_ptr():  # somebody assigned the parameter's data
            self.views[tensor.name].data = held
        return self.views[tensor.name]

    def share_gradient(self) -> None:
        """Give each view its part of the gradient, and call what waits for it: an optimiser of its own, perhaps."""
        gradient = self.parameter.grad
        for tensor in self.tensors:
            view = self.views.get(tensor.name)
            if view is not None:
                view.grad = None if gradient is None else gradient[tensor.begin : tensor.end]
        for view in list(self.views.values()):
            if view.grad is not None:
                call_waiting(view)

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
            self._writers = [*([self._serve] if self._serve else []), *writers(self.tensors)]
        self.told += tell
        for writer in self._writers:
            writer(content, tell)
        if not self._writes_differences():
            if content is not self.parameter:
                self.written = None
            elif self.written is None:
                self.written = content.detach().clone()
            else:
                self.written.copy_(content)

    @torch.no_grad()
    def ensure_written(self) -> None:
        """Put the values into the weights, should they have been changed past every optimiser.

        On a GPU the kernel stores what differs, and nobody waits; elsewhere the values are compared first.
        """
        parameter = self.parameter
        if self._writes_differences():
            self.write(parameter, tell=False)
        elif self.written is None or not torch.equal(parameter, self.written):
            self.write(parameter, tell=True)

    def overwritten(self) -> list[MaskedTensor]:
        """Tensors that do not hold what was written last; known on a CPU, where it is kept and nobody waits."""
        if self.written is None or self.written.device.type != "cpu":
            return []
        if self._comparers is None:
            self._comparers = [*comparers(self.tensors)]
        return [tensor for compare in self._comparers for tensor in compare(self.written)]

    def forget_memory(self) -> None:
        """Weights may have moved: what knows their addresses is made anew."""
        self._writers = self._comparers = None

    def _writes_differences(self) -> bool:
        return device_of(self.parameter).type == "cuda" and (TRITON or self.parameter.is_meta)


def call_waiting(parameter: Tensor) -> None:
    """Call the parameter's post-accumulate hooks, after a gradient that autograd did not accumulate by itself."""
    waiting: Any = getattr(parameter, "_post_accumulate_grad_hooks", None)
    for hook in list((waiting or {}).values()):
        hook(parameter)


def flatten(named: dict[str, Tensor], tensors: Iterable[MaskedTensor]) -> Tensor:
    """The values of ``tensors`` one after the other, from values (k,) by name."""
    return torch.cat([named[tensor.name].reshape(-1) for tensor in tensors])
