"""How a module is made to train its values: its class becomes a subclass of itself.

Each masked parameter of the class turns into a property that returns a connected view (the general path: any
forward, any other module or trainer that reads the weight), and linear and embedding layers get a forward that
computes the k values' gradient alone. ``isinstance`` holds, parameter names stay, and nothing else is patched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiticket.sparse.autograd.functions import MaskedEmbeddingFunction, MaskedLinearFunction
from multiticket.sparse.copies import NO_PICKLE, OTHER_CLASS, copied_by, copy_part
from multiticket.sparse.direct.weight import MaskedWeight
from multiticket.sparse.gradient.factored import factors
from multiticket.sparse.guarded import KeepsItsWeights
from multiticket.sparse.sharded import is_sharded
from multiticket.sparse.surgery import stays_a_parameter

_ATTRIBUTE = "_masked_weights"
_ATTACHMENT = "_ticket_attachment"


def attachment_of(module: nn.Module) -> Any:
    """The attachment that converted ``module``."""
    return module.__dict__.get(_ATTACHMENT)


def masked_weights(module: nn.Module) -> dict[str, MaskedWeight]:
    """The masked weights that ``module`` reads, by attribute; a tied weight may be owned by another module."""
    return module.__dict__.get(_ATTRIBUTE, {})


class MaskedModule(KeepsItsWeights):
    """What every module with a masked weight does besides its own work."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves and casts as always, except that values never drop below fp32."""
        owned = [weight for weight in masked_weights(self).values() if weight.owner is self]
        kept = {id(tensor) for weight in owned for tensor in (weight.values, weight.values.grad)}

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) not in kept or not moved.is_floating_point():
                return moved
            dtype = torch.promote_types(torch.float32, moved.dtype)
            return moved.to(dtype) if tensor.is_meta else tensor.to(moved.device, dtype)

        super()._apply(apply, recurse)
        attachment_of(self).forget_places()
        return self

    def __delattr__(self, name: str) -> None:
        if name in masked_weights(self):
            object.__delattr__(self, name)  # which says why not, before anything is changed
        super().__delattr__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_PICKLE)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        for weight in masked_weights(self).values():
            weight.follow()
            weight.fresh_dense()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for weight in masked_weights(self).values():
            dense_alone = prefix + weight.values_attribute not in state_dict
            dense_alone = dense_alone and weight.owner is self and prefix + weight.attribute in state_dict
            if dense_alone and (weight.sharded or is_sharded(weight.dense)):
                raise ValueError(
                    f"The checkpoint holds {weight.name} without its values, which lie on other ranks once the model "
                    "is sharded; load it first, then attach and shard."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        for weight in masked_weights(self).values():
            if weight.dense.is_meta:
                continue
            if prefix + weight.values_attribute in state_dict:
                weight.write()
            elif weight.owner is self and prefix + weight.attribute in state_dict:
                weight.take_values_from_dense()


class MaskedLinear(nn.Linear):
    """A linear layer whose weight gradient is a sampled product, and a masked bias's a sum of the columns it needs."""

    def forward(self, input: Tensor) -> Tensor:
        x, masked = input, masked_weights(self)
        weight, bias = masked.get("weight"), masked.get("bias")
        if weight is None or not weight.trains:
            # A slice, such as the last token of each row, would be multiplied by a copy of the weight for each row.
            return super().forward(x.contiguous() if x.dim() > 2 else x)
        positions, starts, rows, columns, method = weight.route()
        trained_bias = bias if bias is not None and bias.trains else None
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        return MaskedLinearFunction.apply(
            x,
            self.bias if trained_bias is None else trained_bias.fresh_dense(),
            None if trained_bias is None else trained_bias.values,
            None if trained_bias is None else trained_bias.positions,
            weight.values,
            weight.fresh_dense(),
            positions,
            starts,
            rows,
            columns,
            method,
            factors(x, scaled=method == "native") if columns is None else None,
        )


class MaskedEmbedding(nn.Embedding):
    """An embedding whose backward pass touches only the rows that occurred."""

    def forward(self, input: Tensor) -> Tensor:
        tokens, weight = input, masked_weights(self).get("weight")
        special = self.scale_grad_by_freq or self.sparse
        if weight is None or special or not weight.trains:
            return F.embedding(
                tokens,
                self.weight,
                self.padding_idx,
                self.max_norm,
                self.norm_type,
                self.scale_grad_by_freq,
                self.sparse and weight is None,
            )
        padding = -1 if self.padding_idx is None else self.padding_idx
        return MaskedEmbeddingFunction.apply(
            tokens, weight.values, weight.fresh_dense(), weight.positions, weight.starts, padding
        )


_FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MaskedLinear,
    nn.Embedding: MaskedEmbedding,
}


def _connected_property(attribute: str) -> property:
    def refuse(module: nn.Module, *_: Any) -> None:
        raise RuntimeError(stays_a_parameter(masked_weights(module)[attribute].name))

    return property(lambda module: masked_weights(module)[attribute].connected(), refuse, refuse)


_READ_ANEW = property(
    lambda rnn: [getattr(rnn, name, None) for name in rnn._flat_weights_names], lambda rnn, weights: None
)
"""In place of the list in which recurrent layers keep what they have read of their weights."""


@cache
def masked_class(cls: type[nn.Module], attributes: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of ``cls`` whose ``attributes`` are connected reads.

    The layer with the sampled product stands *behind* ``cls`` in the resolution order, so that a class with a
    forward of its own keeps it, and its ``super().forward`` arrives at the sampled product.
    """
    fast = next((fast for plain, fast in _FAST_LAYERS.items() if issubclass(cls, plain)), None)
    if not attributes:
        fast = None
    if fast is None:
        bases: tuple[type, ...] = (MaskedModule, cls)
    elif cls in _FAST_LAYERS:
        bases = (MaskedModule, fast)
    else:
        bases = (MaskedModule, cls, fast)
    members: dict[str, Any] = {name: _connected_property(name) for name in attributes}
    if hasattr(
        cls, "tie_weights"
    ):  # transformers': ties what ``get_parameter`` returns, if that is a parameter
        members["tie_weights"] = torch.no_grad()(cls.tie_weights)
    if attributes and issubclass(cls, nn.RNNBase):
        members["_flat_weights"] = _READ_ANEW
    members.update(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)
    masked = type(cls.__name__, bases, members)
    copied_by(masked, _copy)
    return masked


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Of the whole model a copy with an attachment of its own; of a part, a plain copy of that part."""
    attachment = attachment_of(module)
    if module is attachment.model:
        twin: nn.Module = attachment._copy_model(memo)
        return twin
    values = {weight.values_attribute for weight in masked_weights(module).values()}
    required = {key: attachment.required_grad(p) for key, p in module._parameters.items() if p is not None}
    return copy_part(module, plain_class(type(module)), memo, {_ATTRIBUTE, _ATTACHMENT}, values, required)


def gradient_method(module: nn.Module, weight: MaskedWeight) -> str:
    """How ``module`` computes the gradient of ``weight``'s values in its own forward.

    A linear layer's weight by one of ``crossover.METHODS`` and its bias by ``sum``, an embedding by ``lookup``; else
    ``dense``, then gathered.
    """
    if isinstance(module, MaskedLinear):
        return weight.method if weight.attribute == "weight" else "sum"
    return "lookup" if isinstance(module, MaskedEmbedding) else "dense"


def convert(module: nn.Module, weights: dict[str, MaskedWeight], attachment: Any = None) -> None:
    """Make ``module`` train ``weights``, by attribute; without any, only its copies are changed."""
    module.__dict__[_ATTRIBUTE] = weights
    module.__dict__[_ATTACHMENT] = attachment
    cls: Any = type(module)
    module.__class__ = masked_class(cls, tuple(sorted(weights)))


def plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    """What ``masked_class`` was made from."""
    if cls.__bases__[0] is not MaskedModule:
        raise RuntimeError(OTHER_CLASS.format(cls.__name__))
    original = cls.__bases__[1]
    return {fast: layer for layer, fast in _FAST_LAYERS.items()}.get(original, original)


def restore(module: nn.Module) -> None:
    """Undo ``convert``."""
    module.__class__ = plain_class(type(module))
    del module.__dict__[_ATTRIBUTE], module.__dict__[_ATTACHMENT]
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
