"""Weights that a module keeps beside its parameters: in a list, a tuple, a dictionary, an unregistered attribute.

Such a reference is to the frozen weight itself, past everything that routes gradients to the values. While a mask is
attached, something that does stands in its place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

_TORCHS_OWN = frozenset(
    {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_flat_weights"}
)


class Held:
    """One container that holds masked weights: itself, and how to put others in their place."""

    def __init__(self, put: Callable[[Any], None], content: Any) -> None:
        self._put, self._content = put, content

    def replace(self, stand_in: Callable[[Tensor], Any]) -> None:
        """Put ``stand_in(weight)`` where a masked weight is; for others it returns the weight itself."""
        self._put(_mapped(self._content, stand_in))

    def restore(self) -> None:
        """Put back what was there."""
        self._put(self._content)


def find_held(model: nn.Module, masked: set[int]) -> list[Held]:
    """Attributes of modules in which there are masked weights, given by ``id``, other than as registered parameters."""
    return list(_held(model, masked))


def modules_in_containers(model: nn.Module) -> list[nn.Module]:
    """Modules that others keep in plain lists and the like, past registration; they may share masked weights."""
    registered, found = set(model.modules()), dict[nn.Module, None]()
    for module in registered:
        for _, value in _own_attributes(module):
            for item in _items(value):
                if isinstance(item, nn.Module) and item not in registered:
                    found.update(dict.fromkeys(item.modules()))
    return list(found)


def _held(model: nn.Module, masked: set[int]) -> Iterator[Held]:
    for module in [*model.modules(), *modules_in_containers(model)]:
        for name, value in _own_attributes(module):
            if any(id(item) in masked for item in _items(value)):
                yield Held(_putter(module, name, value), _copied(value))


def _own_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in module.__dict__.items()
        if name not in _TORCHS_OWN
        and "_hooks" not in name
        and (isinstance(value, Tensor) or _is_container(value))
    ]


def _is_container(value: Any) -> bool:
    return type(value) in (list, tuple, dict, OrderedDict, set) or _named(value)


def _putter(module: nn.Module, name: str, value: Any) -> Callable[[Any], None]:
    """Lists, dictionaries and sets keep their identity, for whoever else has them."""

    def put(content: Any) -> None:
        if isinstance(value, list):
            value[:] = content
        elif isinstance(value, dict | set):
            value.clear()
            value.update(content)
        else:
            module.__dict__[name] = content

    return put


def _items(value: Any, depth: int = 4) -> Iterator[Any]:
    if _is_container(value) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items(item, depth - 1)
    else:
        yield value


def _copied(value: Any) -> Any:
    return value if isinstance(value, Tensor | tuple) else type(value)(value)


def _named(value: Any) -> bool:
    """A named tuple is made from its fields, one by one."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _mapped(value: Any, stand_in: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return stand_in(value)
    if not _is_container(value):
        return value
    if isinstance(value, dict):
        return type(value)((key, _mapped(item, stand_in)) for key, item in value.items())
    items = [_mapped(item, stand_in) for item in value]
    return type(value)(*items) if _named(value) else type(value)(items)
