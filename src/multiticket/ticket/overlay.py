"""Tickets on quantised weights: values that a layer computes with in the place of its own, kept beside them.

While a ticket is applied, each product is made with a copy of the weight, dequantised and with the values in it. After
the last one is reverted the layer is as it was, and runs its library's own forward.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from multiticket.mask.put import put
from multiticket.mask.quantised import TORCHAO, dequantise, linear, logical_dtype, multiply

_OVERLAY = "_ticket_overlay"


class OverlaidWeight:
    """The weight of one quantised linear layer, as tickets read and change it."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def gather(self, flat: Tensor) -> Tensor:
        """What the layer computes with at the flat positions (k,): (k,), in the dense weight's dtype."""
        dense = _whole(self.layer)
        return dense.view(-1).gather(0, flat.to(dense.device).long())

    def scatter_(self, flat: Tensor, values: Tensor) -> None:
        """Let the layer compute with ``values`` (k,) at ``flat`` (k,), rounded to the dense weight's dtype."""
        weight = self.layer._parameters["weight"]
        assert weight is not None
        flat = flat.to(weight.device)
        values = values.to(weight.device, logical_dtype(weight))
        held = self.layer.__dict__.get(_OVERLAY)
        if held is None:
            kind: Any = type(self.layer)
            self.layer.__dict__[_OVERLAY] = flat, values
            self.layer.__class__ = _overlaid_class(kind, type(weight).__name__ in TORCHAO)
            return
        together = torch.cat([values, held[1].to(values)])
        at, where = torch.cat([flat, held[0].to(flat)]).unique(return_inverse=True)
        first = where.new_full((len(at),), len(together))
        first.scatter_reduce_(0, where, torch.arange(len(together), device=at.device), "amin")
        self.layer.__dict__[_OVERLAY] = at, together[first]

    def clear(self) -> None:
        """Give the layer its own forward back."""
        if self.layer.__dict__.pop(_OVERLAY, None) is not None:
            self.layer.__class__ = type(self.layer).__bases__[0]


def is_overlaid(layer: nn.Module) -> bool:
    """Whether tickets are applied to the layer."""
    return _OVERLAY in layer.__dict__


def refuse_saving(model: nn.Module) -> None:
    """Make ``save_pretrained`` raise: it would write quantised weights of the base beside trained ones of the rest."""
    for module in model.modules():
        if hasattr(module, "save_pretrained"):
            module.__dict__["save_pretrained"] = _refuse_to_save


def allow_saving(model: nn.Module) -> None:
    """Undo ``refuse_saving``."""
    for module in model.modules():
        if module.__dict__.get("save_pretrained") is _refuse_to_save:
            del module.__dict__["save_pretrained"]


def _refuse_to_save(*args: Any, **kwargs: Any) -> NoReturn:
    raise ValueError(
        "Quantised weights cannot hold trained values, so save_pretrained would write a model that is neither the base "
        "nor the trained one; keep the ticket, and apply it to the base wherever that is loaded."
    )


def _overlaid_class(cls: type[nn.Module], read_past_it: bool) -> type[nn.Module]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return multiply(self, x, lambda x, bias: linear(x, _whole(self), bias))

    members: dict[str, Any] = {
        "forward": forward,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    if read_past_it:
        members["weight"] = property(_whole)
    return type(cls.__name__, (cls,), members)


def _whole(layer: nn.Module) -> Tensor:
    """The dense weight (out, in) with the values of all applied tickets: a new tensor."""
    dense = dequantise(layer)
    if is_overlaid(layer):
        flat, values = layer.__dict__[_OVERLAY]
        if flat.device != dense.device:
            flat, values = layer.__dict__[_OVERLAY] = flat.to(dense.device), values.to(dense.device)
        put(dense, flat, values)
    return dense
