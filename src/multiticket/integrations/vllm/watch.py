"""Watch where a model's own ``load_weights`` copies each checkpoint tensor, without copying anything.

An engine packs and shards its parameters as it likes (q, k and v in one matrix, a slice on each rank). Its loader
knows how, so it is run once on tensors that have a shape and no data, and every final ``copy_`` is written down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, eq=False)
class Copy:
    """One copy that the loader would have made: a view of a checkpoint tensor into a view of a parameter."""

    name: str
    """The checkpoint tensor's."""
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """With ``offset``: which of the tensor's flat row-major positions the view takes."""
    destination: Tensor
    """The view that is written, of the same shape, in any strides and dtype."""


def watch(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> list[Copy]:
    """The copies that ``model.load_weights`` makes of checkpoint tensors of these names and shapes, in order.

    No weight of the model changes. Raises ValueError, naming the tensor, where the loader does anything else with
    one than take views of it and copy them, for then its entries cannot be followed.
    """
    sources = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    watching = _Watch({_memory(source): name for name, source in sources.items()})
    with torch.no_grad(), _keeping_parameters(model):
        try:
            with watching:
                model.load_weights(watching.handing_out(sources))  # type: ignore[operator]
        except _Refused as error:
            raise ValueError(str(error)) from None
        except Exception as error:
            raise ValueError(
                f"The engine cannot take a ticket: its loader failed on {watching.handed_out} without data "
                f"({type(error).__name__}: {error})."
            ) from error
    for name, source in sources.items():
        if source._version:
            raise ValueError(_transforms(name))
    return watching.copies


class _Refused(Exception):
    pass


class _Watch(TorchFunctionMode):
    """Records copies from the sources; refuses every other operation that would make new data of them."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.copies: list[Copy] = []
        self.handed_out = "the first tensor"

    def handing_out(self, sources: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, source in sources.items():
            self.handed_out = name
            yield name, source

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.copy_:
            destination = args[0]
            source = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("other"))
            name = self.name_of(source)
            if name is not None and self.name_of(destination) is None:
                self.record(name, destination, source)
                return destination
        used = [name for leaf in tree_leaves((args, kwargs)) if (name := self.name_of(leaf)) is not None]
        result = function(*args, **kwargs)
        if used:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and self.name_of(leaf) is None:
                    raise _Refused(_transforms(used[0]))
        return result

    def name_of(self, value: Any) -> str | None:
        return self.names.get(_memory(value)) if isinstance(value, Tensor) and value.is_meta else None

    def record(self, name: str, destination: Tensor, source: Tensor) -> None:
        if destination.shape != source.shape or not destination.is_floating_point():
            raise _Refused(_transforms(name))
        self.copies.append(
            Copy(
                name,
                int(source.storage_offset()),
                tuple(source.shape),
                tuple(source.stride()),
                destination.detach(),
            )
        )


@contextmanager
def _keeping_parameters(model: nn.Module) -> Iterator[None]:
    """Put every parameter back that the loader replaced by one without data, and say so."""
    before = [(module, dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        replaced = [
            name
            for module, parameters in before
            for name, parameter in parameters.items()
            if module._parameters.get(name) is not parameter
        ]
        for module, parameters in before:
            module._parameters.update(parameters)
    if replaced:
        raise ValueError(
            f"The engine cannot take a ticket: its loader replaces the parameter {replaced[0]} instead of filling it."
        )


def _transforms(name: str) -> str:
    return f"The engine cannot take a ticket: its loader transforms {name} before it copies it."


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def covers(copy: Copy, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Which of a tensor's flat positions the copy takes, and where it puts them.

    Args:
        flat: flat row-major positions in the checkpoint tensor, int64, (k,).

    Returns:
        ``(which, at)``, both (m,): indices into ``flat``, and positions in the storage of ``copy.destination``,
        counted in its elements.

    Raises ValueError where the view reads an entry more than once.
    """
    if not math.prod(copy.shape):
        return flat[:0], flat[:0]
    dims = sorted((d for d in range(len(copy.shape)) if copy.shape[d] != 1), key=lambda d: -copy.stride[d])
    reach = 0
    for d in reversed(dims):
        if copy.stride[d] <= reach:
            raise ValueError(_transforms(copy.name))
        reach += (copy.shape[d] - 1) * copy.stride[d]
    rest = flat - copy.offset
    inside = rest >= 0
    at = torch.full_like(flat, int(copy.destination.storage_offset()))
    for d in dims:
        coordinate = rest.div(copy.stride[d], rounding_mode="floor")
        inside &= coordinate < copy.shape[d]
        rest = rest - coordinate * copy.stride[d]
        at += coordinate * copy.destination.stride(d)
    which = (inside & (rest == 0)).nonzero().squeeze(1)
    return which, at[which]
