"""The path of accelerators: layers run torch's own forward over leaves, whose hooks gather k entries of each gradient.

On a GPU a masked layer's cost is its dispatch: at 0.5B, 57 microseconds of Python a layer where full training has 11.
So nothing of ours runs in a layer: its weight is shadowed by a leaf over the same memory, torch makes the dense
gradient, and a hook gathers k entries of it and lets it go. All values are one parameter (two with vectors), so that
an optimiser step is one kernel, and one more writes them back, storing only what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.sparse.attachment import find_readers
from multiticket.sparse.autograd.functions import no_autocast
from multiticket.sparse.autograd.fused_head import use_sparse_head
from multiticket.sparse.held import find_held
from multiticket.sparse.hooked.aliased import model_device
from multiticket.sparse.hooked.collector import Collector
from multiticket.sparse.hooked.noticing import NoticingAttachment
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.values import MATRICES, VECTORS, Values, flatten
from multiticket.sparse.planned import positions_of
from multiticket.sparse.surgery import Structure


class HookedAttachment(NoticingAttachment):
    """Each masked weight is a leaf whose gradient is gathered and dropped as soon as it is whole."""

    path = "hooks"

    def __init__(self, model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__(model, mask, parameters)
        readers = find_readers(model)
        self._tensors = {
            name: self._kind_of(parameters[name])(
                name, readers[id(parameters[name])], positions_of(mask, name)
            )
            for name in mask.names
        }
        for tensor in self._tensors.values():
            tensor.when_replaced = self._take_what_was_put_there
        self._held = find_held(model, {id(parameters[name]) for name in mask.names})
        self._structure = Structure(
            model, {name: [module for module, _ in readers[id(parameters[name])]] for name in mask.names}
        )
        with no_autocast(model_device(parameters, mask)):  # which would cast what is joined
            self._set_up(model, mask)

    def _set_up(self, model: nn.Module, mask: Mask) -> None:
        originals = {name: tensor.taken() for name, tensor in self._tensors.items()}
        if not self.planned:
            self.base_fingerprint = self._fingerprint(originals)
        self._showing_base = False
        self._moved = False
        self._loaded_values = False
        kinds = {
            MATRICES: [t for t in self._tensors.values() if not t.is_vector],
            VECTORS: [t for t in self._tensors.values() if t.is_vector],
        }
        groups = {name: Values(model, name, tensors) if tensors else None for name, tensors in kinds.items()}
        self._collector = Collector(groups[MATRICES], groups[VECTORS])
        self._convert()
        self._give_aliases()
        self._handles = [
            model.register_forward_pre_hook(self._prepare_forward),
            model.register_load_state_dict_post_hook(self._after_load),
        ]
        use_sparse_head()
        self._watch()

    # The public part

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The values (k,) of each masked tensor, under the dense weight's name: views of what ``parameters`` gives.

        They share memory and gradient with it, so train one or the other.
        """
        self._refuse_if_detached()
        for name, tensor in self._tensors.items():
            yield name, tensor.values_of.view(tensor)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All values: of matrices (n,), and of norms, biases and other vectors (m,)."""
        self._refuse_if_detached()
        for group in self._collector.groups:
            yield group.parameter

    def gradient_methods(self) -> dict[str, str]:
        """How each tensor's gradient is computed, by name; of a tied weight, in each layer that has it, with ``+``.

        ``hook``, ``factors``, ``thin`` or ``blocks`` in a linear layer, ``lookup`` in an embedding, ``vector`` for
        norms and biases, ``hook`` anywhere else.
        """
        return {
            name: " + ".join(dict.fromkeys(self._method(tensor, *place) for place in tensor.places))
            for name, tensor in self._tensors.items()
        }

    def dense_dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def dense_values(self, name: str) -> Tensor:
        self._refuse_if_detached()
        self._ensure_written()
        return self._tensors[name].taken()

    def flush(self) -> None:
        """Write all values into the dense weights now.

        Needed by no optimiser of ``torch.optim`` and no forward pass of the whole model; only where values were changed
        by hand, and then a weight or a part of the model is read by itself.
        """
        self._refuse_if_detached()
        if self._moved:
            self._settle()
        if self._showing_base:
            return
        self._follow()
        self._write()

    def _write(self) -> None:
        for group in self._collector.groups:
            group.write(group.parameter, tell=True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, for a reference policy: its values are in the weights, and no gradient is recorded."""
        self._refuse_if_detached()
        outermost = not self._showing_base
        if outermost:
            self._ensure_written()
            self._show(base=True)
        try:
            with torch.no_grad():
                yield
        finally:
            if outermost:
                self._show(base=False)

    def detach(self, keep: bool = True) -> None:
        """Give the model back as it was: classes, parameters, ``requires_grad``.

        Args:
            keep: True leaves the trained weights in place; False puts the base back, bit for bit.
        """
        self._refuse_if_detached()
        if keep:
            self._ensure_written()
        else:
            for tensor in self._tensors.values():
                if tensor.whole_original is not None:
                    tensor.dense.data.copy_(tensor.whole_original)
            for group in self._collector.groups:
                group.write(group.original, tell=True)
        self._take_apart()
        for name, parameter in self._frozen_parameters().items():
            parameter.requires_grad_(self._required_grad[name])
        self._unwatch()
        self._tensors = {}

    # What the base class asks for

    def _whole_values(self) -> dict[str, Tensor]:
        self._refuse_if_detached()
        self._follow()
        return {
            name: tensor.values_of.parameter.detach()[tensor.begin : tensor.end]
            for name, tensor in self._tensors.items()
        }

    def _set_values(self, values: dict[str, Tensor]) -> None:
        self._refuse_if_detached()
        self._follow()  # what others wrote before is taken, and then written over
        for group in self._collector.groups:
            group.parameter.copy_(flatten(values, group.tensors))

    def _holds_any(self, parameters: set[int]) -> bool:
        return any(
            id(group.parameter) in parameters or any(id(view) in parameters for view in group.views.values())
            for group in self._collector.groups
        )

    def _before_step(self, parameters: set[int]) -> None:
        self._collector.deliver()
        self._follow()

    def _after_step(self, parameters: set[int]) -> None:
        if not self._showing_base:
            self._write()

    def values_by_dtype(self) -> Iterator[tuple[Tensor, torch.dtype]]:
        for group in self._collector.groups:
            values = group.parameter
            dtypes = {tensor.dtype for tensor in group.tensors}
            if len(dtypes) == 1:
                yield values, dtypes.pop()
            else:
                for tensor in group.tensors:
                    yield values[tensor.begin : tensor.end], tensor.dtype

    def rounded_as(self, parameter: Tensor) -> list[tuple[slice, torch.dtype]]:
        for group in self._collector.groups:
            if parameter is group.parameter:
                return [(slice(tensor.begin, tensor.end), tensor.dtype) for tensor in group.tensors]
            for tensor in group.tensors:
                if parameter is group.views.get(tensor.name):
                    return [(slice(None), tensor.dtype)]
        return []

    def _copy_model(self, memo: dict[int, Any]) -> nn.Module:
        """A copy of the model with an attachment of its own, which knows the same base."""
        values = {name: content.clone() for name, content in self._whole_values().items()}
        grads = [group.parameter.grad for group in self._collector.groups]
        handles, records = self._handles, self._records
        saved = {group.name: self.model._parameters[group.name] for group in self._collector.groups}
        self._ensure_written()
        frozen = self._frozen_parameters()
        self._take_apart()
        try:
            twin: nn.Module = copy.deepcopy(self.model, memo)
        finally:
            del handles, records
            self.model._parameters.update(saved)
            self._convert()
            self._give_aliases()
            self._handles = [
                self.model.register_forward_pre_hook(self._prepare_forward),
                self.model.register_load_state_dict_post_hook(self._after_load),
            ]
            for group, grad in zip(self._collector.groups, grads, strict=True):
                group.parameter.grad = grad
        copied = {name: memo[id(parameter)] for name, parameter in frozen.items()}
        other = HookedAttachment(twin, self.mask, copied)
        other._required_grad = dict(self._required_grad)
        other.base_fingerprint = self.base_fingerprint
        with torch.no_grad():
            other._set_values(values)
        for mine, theirs in zip(self._collector.groups, other._collector.groups, strict=True):
            theirs.original = mine.original.clone()
            theirs.parameter.requires_grad_(mine.parameter.requires_grad)
            memo[id(mine.parameter)] = theirs.parameter
        return twin

    def _method(self, tensor: MaskedTensor, module: nn.Module, attribute: str) -> str:
        if tensor.is_vector:
            return "vector"
        record = self._records[module]
        if isinstance(module, nn.Embedding):
            return "lookup"
        return record.linear.method if record.linear is not None and attribute == "weight" else "hook"
