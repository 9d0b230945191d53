"""Tensors that stand for a masked weight with its readers, and notice when somebody writes past autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from multiticket.sparse.surgery import stays_a_parameter


class Guarded(Tensor):
    """``weight.data`` tells the masked weight that somebody may write, and ``weight.data = x`` replaces its content.

    It passes for a parameter, as what is read of a dense model does; what is made of it does not.
    """

    _masked_weight: Any = None
    """What tells of the masked weight; None where this has nothing to do with one any more."""
    _is_param: bool
    """Set where it passes for a parameter."""

    @property
    def data(self) -> Tensor:
        if self._masked_weight is None:
            return Tensor.data.__get__(self)  # type: ignore[attr-defined]
        memory: Tensor = self._masked_weight.given_away()
        return memory

    @data.setter
    def data(self, content: Tensor) -> None:
        if self._masked_weight is None:
            Tensor.data.__set__(self, content)  # type: ignore[attr-defined]
        else:
            self._masked_weight.replace_content(content)

    def set_(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused: parametrisations begin with it."""
        if self._masked_weight is not None:
            raise RuntimeError(stays_a_parameter(self._masked_weight.name))
        return super().set_(*args, **kwargs)

    def detach(self) -> Tensor:
        """The same memory, of the same class (``nn.Parameter`` asks for that), and nothing to do with the values."""
        return self._plain().as_subclass(type(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return memo.setdefault(id(self), nn.Parameter(self._plain().clone()))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def _plain(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return Tensor.detach(self).as_subclass(Tensor)


class KeepsItsWeights(nn.Module):
    """A module in which what is read of a masked weight can be registered nowhere else."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        masked = param._masked_weight if isinstance(param, Guarded) else None
        if masked is not None:
            raise RuntimeError(stays_a_parameter(masked.name))
        super().register_parameter(name, param)
