"""When a backward pass ends, what its hooks gathered becomes the gradient of the values.

Two ways. Where the model embeds tokens, the embedding's node in the graph runs after every hook (it was made first),
and hands the gradient to autograd as that of the values: so DistributedDataParallel reduces it as any other. Elsewhere
the first hook of a pass asks the engine to be called at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.attachment import warn_frozen
from multiticket.sparse.hooked.order import Order
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.values import MOST_WAITING, Values, call_waiting


class Collector:
    """Gathers the gradients of ``matrices`` by hooks, those of ``vectors`` together at the end."""

    def __init__(self, matrices: Values | None, vectors: Values | None) -> None:
        self.matrices, self.vectors = matrices, vectors
        self.groups = [group for group in (matrices, vectors) if group is not None]
        for group in self.groups:
            group.collector = self  # type: ignore[attr-defined]
        self.anchored = False
        """Whether this forward pass put the embedding's node into its graph."""
        self._queued = self._told_frozen = False
        self.probe = torch.zeros((), requires_grad=True)
        self._of_all_vectors: Order | None = None

    def begin(self) -> None:
        """A forward pass begins: nothing is in its graph yet, and no backward pass that failed is waited for."""
        self.anchored = self._queued = False

    def noticed(self) -> None:
        """A hook has gathered something: be called at the end of the pass, unless the embedding's node will."""
        if not self.anchored and not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._at_the_end)

    def moved(self) -> None:
        """Forget what was made for the old device."""
        self._of_all_vectors = None
        self._queued = False

    def hook(self, tensor: MaskedTensor) -> Any:
        """What an alias calls once it has its whole gradient."""
        group, slot = tensor.values_of, tensor.slot
        pending, size = group.pending, tensor.dense.numel() * tensor.dense.itemsize

        def hook(alias: Tensor) -> None:
            gradient = alias.grad
            if gradient is None:
                return
            alias.grad = None
            pending.append((slot, gradient))
            group.waiting += size
            if group.waiting >= MOST_WAITING:
                group.gather()
            if not self.anchored:
                self.noticed()

        return hook

    def put(self, tensor: MaskedTensor, gradient: Tensor, positions: Tensor | None) -> None:
        """Take a gradient (k,), or its entries at ``positions`` (k,), for those of ``tensor``."""
        tensor.values_of.put(tensor.slot, gradient, positions)
        if not self.anchored:
            self.noticed()

    @staticmethod
    def refuse_unless_leaves_accumulate(probe: Any) -> None:
        """``torch.autograd.grad`` runs no leaf's hooks: what they would have gathered is not there.

        Args:
            probe: the node of a leaf in this graph, which runs with all others or not at all.
        """
        if not torch._C._will_engine_execute_node(probe):
            raise RuntimeError(
                "torch.autograd.grad and backward(inputs=...) skip the hooks that gather a ticket's gradient; call "
                'backward(), or attach with gradient="blocks".'
            )

    @torch.no_grad()
    def collect(self) -> list[Tensor | None]:
        """The gradient (n,) of each group since the last time; None where its values do not train."""
        if not self._told_frozen and not any(group.parameter.requires_grad for group in self.groups):
            self._told_frozen = True
            warn_frozen()
        for group in self.groups:
            group.notice_cleared()
        new = [self.matrices.collect()] if self.matrices is not None else []
        if self.vectors is not None:
            new.append(self._of_vectors(self.vectors))
        return [
            g if group.parameter.requires_grad else None for g, group in zip(new, self.groups, strict=True)
        ]

    def deliver(self) -> None:
        """Add what was gathered, if anything was, to the gradients."""
        if not any(group.anything() for group in self.groups) and not self._vectors_wait():
            return
        for group, new in zip(self.groups, self.collect(), strict=True):
            parameter = group.parameter
            if new is None:
                continue
            if parameter.grad is None:
                parameter.grad = new
            else:
                parameter.grad.add_(new)
            call_waiting(parameter)  # views among them

    def _at_the_end(self) -> None:
        self._queued = False
        self.deliver()

    def _vectors_wait(self) -> bool:
        return self.vectors is not None and any(t.alias.grad is not None for t in self.vectors.tensors)

    def _of_vectors(self, vectors: Values) -> Tensor:
        """One gather for all norms and biases."""
        tensors: Sequence[MaskedTensor] = vectors.tensors
        gradients = []
        for tensor in tensors:
            alias = tensor.alias
            gradient = alias.grad
            gradients.append(torch.zeros_like(alias) if gradient is None else gradient)
            alias.grad = None
        if self._of_all_vectors is None:
            self._of_all_vectors = Order(tensors, range(len(tensors)))
        new = self._of_all_vectors.take(gradients).to(vectors.parameter.dtype)
        for begin, end, gradient in vectors.extra:
            new[begin:end] += gradient
        vectors.extra.clear()
        return new
