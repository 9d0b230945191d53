"""What readers of a masked weight get: the weight's memory, connected to its values, that notices being replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from multiticket.sparse.autograd.functions import ConnectedView
from multiticket.sparse.autograd.masked_vector import MaskedVector, masked_vector
from multiticket.sparse.guarded import Guarded


class ConnectedWeight(Guarded):
    """A masked weight of two dimensions or more. Operations take it for a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class ConnectedVector(Guarded, MaskedVector):
    """A masked vector."""


class HeldWeight(Guarded):
    """Stands where a module keeps a masked weight for good, in a list say: each operation reads the weight anew."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        read = tree_map(_read, (tuple(args), dict(kwargs or {})))
        return func(*read[0], **read[1])


def connected_weight(masked: Any, values: Tensor, dense: Tensor, positions: Tensor) -> Tensor:
    """``dense`` connected to its ``values`` (k,) at ``positions``, for any reader of the masked weight ``masked``."""
    if dense.dim() == 1:
        view: Any = masked_vector(values, dense, positions, ConnectedVector)
    else:
        view = ConnectedView.apply(values, dense, positions).as_subclass(ConnectedWeight)
    view._masked_weight, view._is_param = masked, True
    return view


def held_weight(masked: Any) -> Tensor:
    """What stands for the masked weight in a container."""
    held: Any = Tensor._make_subclass(HeldWeight, masked.dense.detach())
    held._masked_weight, held._is_param = masked, True
    return held


def _read(value: Any) -> Any:
    return value._masked_weight.connected() if isinstance(value, HeldWeight) else value
