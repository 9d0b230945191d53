"""Questions about all masked weights at once, asked every step: their loops run in C.

A Python call a weight would take longer than the weight's share of a small model's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_
from typing import Any

from torch import Tensor

_version = attrgetter("_version")


class Entries:
    """Entries of dictionaries (parameters of modules, say) as they are now.

    Args:
        places: a dictionary and a key each.
    """

    def __init__(self, places: Sequence[tuple[dict[str, Any], str]]) -> None:
        self._dictionaries = [dictionary for dictionary, _ in places]
        self._keys = [key for _, key in places]
        self._content = [dictionary.get(key) for dictionary, key in places]

    def are_the_same(self) -> bool:
        """Whether each dictionary holds the very object that it held."""
        return all(map(is_, map(dict.get, self._dictionaries, self._keys), self._content))


class Memory:
    """Where tensors lie now, and how often autograd was told of a write to them.

    Args:
        tensors: with memory of their own.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [*tensors]
        self._places = self._now()

    def _now(self) -> list[int]:
        return [*map(Tensor.data_ptr, self._tensors), *map(Tensor.numel, self._tensors)]

    def is_the_same(self) -> bool:
        """Whether each tensor lies where it lay, as large as it was."""
        return self._now() == self._places

    def versions(self) -> int:
        """The sum of all versions, which only grow: it is the same where each of them is."""
        return sum(map(_version, self._tensors))
