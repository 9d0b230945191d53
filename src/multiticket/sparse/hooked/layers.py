"""What attaching changes of a module: its class becomes a subclass of itself that looks after its aliases.

A masked attribute is shadowed by its alias in the module's own dictionary, which Python asks before it asks for
parameters: the module's forward is torch's own, and reads a leaf over the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiticket.sparse.copies import NO_PICKLE, OTHER_CLASS, copied_by, copy_part
from multiticket.sparse.guarded import KeepsItsWeights
from multiticket.sparse.hooked.functions import AnchoredLookup, LeanLinear, Lookup, TracedLinear
from multiticket.sparse.hooked.plan import LinearPlan
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.quantised.layers import can_be_read_past_its_layer, members_of_quantised
from multiticket.sparse.surgery import stays_a_parameter

_RECORD = "_ticket_record"
_LEAF = "_ticket_leaf"
"""Of a linear layer: the leaf that its forward reads in its weight's place; None: whatever its weight is."""
LEAST_KEPT = 1 << 20
"""Entries of an input from which keeping its factors in its place is worth a function call: 2 MiB in bf16."""


@dataclass
class Record:
    """What a converted module knows of its attachment."""

    attachment: Any
    tensors: dict[str, MaskedTensor] = field(default_factory=dict)
    """By attribute; a tied tensor may be owned by another module."""
    linear: LinearPlan | None = None
    """Of a linear layer's masked weight."""
    anchors: bool = False
    """Whether it is the model's first embedding."""


def record_of(module: nn.Module) -> Record | None:
    """The record of a module that an attachment converted."""
    return module.__dict__.get(_RECORD)


class Compilation:
    """What is being compiled: one graph of a whole model would return all its dense gradients together, one of a layer
    that layer's alone."""

    of_one_graph = False


compilation = Compilation()


class HookedModule(KeepsItsWeights):
    """What every converted module does besides its own work."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves and casts as always, except that values never drop below fp32; aliases follow."""
        attachment = self.__dict__[_RECORD].attachment
        mine = self is attachment.model
        kept = {id(t) for p in attachment.parameters() for t in (p, p.grad)} if mine else set()

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) not in kept or not moved.is_floating_point():
                return moved
            dtype = torch.promote_types(torch.float32, moved.dtype)
            return moved.to(dtype) if tensor.is_meta else tensor.to(moved.device, dtype)

        super()._apply(apply, recurse)
        attachment._moved = True
        if mine:
            attachment._settle()
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        attachment = self.__dict__[_RECORD].attachment
        if self is attachment.model:
            attachment._ensure_written()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        attachment = self.__dict__[_RECORD].attachment
        if self is attachment.model:
            attachment._before_load(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setattr__(self, name: str, value: Any) -> None:
        record = self.__dict__.get(_RECORD)
        tensor = None if record is None else record.tensors.get(name)
        if tensor is None or not tensor.in_memory or value is not tensor.alias:  # as `layer.weight += x` ends
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        tensor = self.__dict__[_RECORD].tensors.get(name)
        if tensor is not None:
            raise RuntimeError(stays_a_parameter(tensor.name))
        super().__delattr__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_PICKLE)


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Of the whole model a copy with an attachment of its own; of a part, a plain copy of that part."""
    record = module.__dict__[_RECORD]
    attachment = record.attachment
    if module is attachment.model:
        twin: nn.Module = attachment._copy_model(memo)
        return twin
    required = {key: attachment.required_grad(p) for key, p in module._parameters.items() if p is not None}
    return copy_part(
        module, plain_class(type(module)), memo, {_RECORD, _LEAF, *record.tensors}, set(), required
    )


class HookedLinear(nn.Linear):
    """A linear layer: torch's own forward over a leaf.

    A layer's plan is told by its class: all that a forward reads is a guard, once the layer is compiled.
    """

    def forward(self, input: Tensor) -> Tensor:
        if compilation.of_one_graph:
            return _by_plan(self, input)
        leaf = self.__dict__["_ticket_leaf"]
        return F.linear(input, self.weight if leaf is None else leaf, self.bias)


class NarrowingLinear(HookedLinear):
    """One that keeps the factors of a large input, unless a compiler plans what is kept."""

    def forward(self, input: Tensor) -> Tensor:
        if compilation.of_one_graph or not torch.compiler.is_compiling():
            return _by_plan(self, input)
        return super().forward(input)


class SmallLinear(HookedLinear):
    """One whose dense gradient is never made as a whole."""

    def forward(self, input: Tensor) -> Tensor:
        return _by_plan(self, input)


def _by_plan(layer: nn.Linear, x: Tensor) -> Tensor:
    """A lean function where the layer's plan asks for one."""
    plan, leaf = layer.__dict__[_RECORD].linear, layer.__dict__[_LEAF]
    weight = layer.weight if leaf is None else leaf
    if plan is None or not torch.is_grad_enabled():
        return F.linear(x, weight, layer.bias)
    compiling = torch.compiler.is_compiling()
    wide = not compiling and plan.narrowing and x.numel() >= LEAST_KEPT
    if not (plan.small or wide or (compiling and compilation.of_one_graph)):
        return F.linear(x, weight, layer.bias)
    tensor = plan.tensor
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    if compiling:
        return TracedLinear.apply(
            x,
            layer.bias,
            tensor.leaf,
            tensor.dense,
            plan.positions,
            plan.rows,
            plan.columns,
            plan.bounds,
        )
    return LeanLinear.apply(x, layer.bias, tensor.leaf, plan)


class HookedEmbedding(nn.Embedding):
    """An embedding whose backward pass touches only the rows that occurred; the model's first ends the pass."""

    def forward(self, input: Tensor) -> Tensor:
        tokens, record = input, self.__dict__[_RECORD]
        tensor = record.tensors.get("weight")
        if not torch.is_grad_enabled() or self.scale_grad_by_freq or self.sparse:
            return super().forward(tokens)
        padding = -1 if self.padding_idx is None else self.padding_idx
        if record.anchors and not torch.compiler.is_compiling():
            collector = record.attachment._collector
            values = [group.parameter for group in collector.groups]
            dense = self._parameters["weight"] if tensor is None else tensor.dense
            return AnchoredLookup.apply(tokens, dense, padding, tensor, collector, collector.probe, *values)
        if tensor is None:
            return super().forward(tokens)
        return Lookup.apply(tokens, tensor.leaf, tensor.dense, tensor.positions, padding)


_PLAIN = {
    HookedLinear: nn.Linear,
    NarrowingLinear: nn.Linear,
    SmallLinear: nn.Linear,
    HookedEmbedding: nn.Embedding,
}


def hooked_class(module: nn.Module, record: Record) -> type[nn.Module]:
    """A subclass of the module's class that looks after its aliases, or its quantised weight."""
    cls: Any = type(module)
    weight = record.tensors.get("weight")
    if weight is not None and not weight.in_memory:
        return _quantised_class(cls, can_be_read_past_its_layer(weight.dense))
    layer: Any = None
    if issubclass(cls, nn.Linear) and weight is not None:
        layer = _linear_of(record.linear)
    elif issubclass(cls, nn.Embedding) and (record.tensors or record.anchors):
        layer = HookedEmbedding
    return _plainly_hooked(cls, layer)


def _linear_of(plan: LinearPlan | None) -> type[HookedLinear]:
    if plan is not None and plan.small:
        return SmallLinear
    return NarrowingLinear if plan is not None and plan.narrowing else HookedLinear


@cache
def _quantised_class(cls: type[nn.Module], read_past_it: bool) -> type[nn.Module]:
    members = members_of_quantised(lambda layer: layer.__dict__[_RECORD].linear, read_past_it)
    return _subclass(cls, (HookedModule, cls), members)


@cache
def _plainly_hooked(cls: type[nn.Module], layer: type[nn.Module] | None) -> type[nn.Module]:
    """A subclass of ``cls`` that looks after its aliases; one that reads none, after its copies alone.

    A ``layer`` of ours stands *behind* ``cls`` in the resolution order, so that a class with a forward of its own keeps
    it, and its ``super().forward`` arrives at ours.
    """
    if layer is None:
        bases: tuple[type, ...] = (HookedModule, cls)
    elif cls in _PLAIN.values():
        bases = (HookedModule, layer)
    else:
        bases = (HookedModule, cls, layer)
    members: dict[str, Any] = {}
    if hasattr(cls, "tie_weights"):  # transformers': registers what ``get_parameter`` returns
        members["tie_weights"] = _tie_past_aliases(cls.tie_weights)
    return _subclass(cls, bases, members)


def _subclass(cls: type[nn.Module], bases: tuple[type, ...], members: dict[str, Any]) -> type[nn.Module]:
    members.update(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)
    hooked = type(cls.__name__, bases, members)
    copied_by(hooked, _copy)
    return hooked


def _tie_past_aliases(tie: Any) -> Any:
    def tie_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.__dict__[_RECORD].attachment._without_aliases():
            return tie(self, *args, **kwargs)

    return tie_weights


def plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    """What ``hooked_class`` was made from."""
    if cls.__bases__[0] is not HookedModule:
        raise RuntimeError(OTHER_CLASS.format(cls.__name__))
    original = cls.__bases__[1]
    return _PLAIN.get(original, original)


def convert(module: nn.Module, record: Record) -> None:
    """Make ``module`` look after the aliases that will shadow its weights."""
    module.__dict__[_RECORD] = record
    module.__dict__[_LEAF] = None
    module.__class__ = hooked_class(module, record)


def set_leaf(module: nn.Module, leaf: Tensor | None) -> None:
    """Give a converted linear layer what it reads."""
    module.__dict__[_LEAF] = leaf


def set_plan(module: nn.Module, plan: LinearPlan | None) -> None:
    """Give a converted linear layer its plan."""
    record: Record = module.__dict__[_RECORD]
    record.linear = plan
    module.__class__ = plain_class(type(module))
    module.__class__ = hooked_class(module, record)


def restore(module: nn.Module) -> None:
    """Undo ``convert``."""
    record: Record = module.__dict__.pop(_RECORD)
    for attribute in (_LEAF, *record.tensors):
        module.__dict__.pop(attribute, None)
    module.__class__ = plain_class(type(module))
