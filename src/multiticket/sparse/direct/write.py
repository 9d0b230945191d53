"""After a step, the values of all weights go into the dense ones, with few calls for all of them.

What a weight's write costs is its calls, not its bytes: at 1 % of a 0.5B model 290 weights take 5 million values, 10
MB. So the values are rounded as one tensor, and one kernel puts all of them in their places: the compiled one on a CPU,
Triton's on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.direct.weight import MaskedWeight
from multiticket.sparse.gradient import native
from multiticket.sparse.sharded import is_sharded
from multiticket.sparse.watch import Entries, Memory


@torch.no_grad()
def write_together(weights: Sequence[MaskedWeight], values: Sequence[Tensor]) -> None:
    """``write_whole`` for each of ``weights`` with its ``values`` (k,)."""
    for group in _alike(zip(weights, values, strict=True)):
        own = [weight for weight, _ in group]
        dense = own[0].dense
        if is_sharded(dense):
            for weight, content in group:
                weight.write_whole(content)
            continue
        flat = torch.cat([content.to(dense.device) for _, content in group]).to(dense.dtype)
        placed = _scatter(flat, own)
        for weight, piece in zip(own, flat.split([w.positions.numel() for w in own]), strict=True):
            weight.accept(piece, placed)


def follow_together(weights: Iterable[MaskedWeight]) -> None:
    """`MaskedWeight.follow` for each of ``weights`` that others wrote. Content is compared: versions may not tell."""
    there = [
        w for w in weights if not (w.sharded or w.showing_base or w.dense.is_meta or is_sharded(w.dense))
    ]
    for group in _alike((weight, weight.written) for weight in there):
        own = [weight for weight, _ in group]
        flags = _differ(own, [written for _, written in group])
        for weight, differs in zip(own, flags, strict=True):
            if differs:
                weight.follow()


class Follower:
    """`follow_together` at next to no cost a step, for as long as all weights lie where they lay, on a CPU.

    Args:
        weights: such as ``can_follow`` takes.
    """

    def __init__(self, weights: Sequence[MaskedWeight]) -> None:
        self._weights = [*weights]
        self._entries = Entries(
            [(weight.owner._parameters, name) for weight in weights for name in weight.attributes]
        )
        self._memory = Memory([weight.dense for weight in weights])
        self._groups = []
        for dtype in dict.fromkeys(weight.dense.dtype for weight in weights):
            alike = [weight for weight in weights if weight.dense.dtype == dtype]
            compare = native.comparer([w.dense.data for w in alike], [w.positions for w in alike])
            self._groups.append((alike, compare))

    @staticmethod
    def can_follow(weights: Sequence[MaskedWeight]) -> bool:
        """Whether every weight is whole, known, of its own shape, and in the compiled comparison's reach."""
        return all(
            not weight.sharded
            and weight.is_known()
            and weight.dense.shape == weight.shape
            and native.can_write(weight.dense, weight.positions, weight.written)
            for weight in weights
        )

    def holds(self) -> bool:
        """Whether no weight, and no values, were replaced or moved."""
        return self._entries.are_the_same() and self._memory.is_the_same()

    def follow(self) -> None:
        """`MaskedWeight.follow` for each weight that others wrote."""
        if any(map(_showing_base, self._weights)):
            return
        for weights, compare in self._groups:
            for index in compare([*map(Tensor.data_ptr, map(_written, weights))]):
                weights[index].follow()


_showing_base, _written = attrgetter("showing_base"), attrgetter("written")


def _differ(weights: Sequence[MaskedWeight], written: Sequence[Tensor]) -> list[bool]:
    """Whether each weight holds at its positions something else than what was written; waits for the device once."""
    dense, positions = [weight.dense for weight in weights], [weight.positions for weight in weights]
    if all(native.can_write(*place) for place in zip(dense, positions, written, strict=True)):
        return native.changed(dense, positions, written)
    differ = [
        (one.detach().take(at.long()) != content.to(one.device, one.dtype)).any()
        for one, at, content in zip(dense, positions, written, strict=True)
    ]
    return torch.stack(differ).tolist()


@torch.no_grad()
def any_changed(weights: Sequence[MaskedWeight]) -> bool:
    """Whether the values of any weight are not what was written last; waits for the device once."""
    changed = []
    for group in _alike((weight, weight.values) for weight in weights):
        values = torch.cat([content.detach() for _, content in group])
        written = torch.cat([weight.written for weight, _ in group])
        changed.append((values.to(written.dtype) != written).any())
    return bool(changed) and bool(torch.stack([flag.to(changed[0].device) for flag in changed]).any())


def _alike(pairs: Iterable[tuple[MaskedWeight, Tensor]]) -> Iterator[list[tuple[MaskedWeight, Tensor]]]:
    """In groups that can be one tensor."""
    groups: dict[tuple[object, ...], list[tuple[MaskedWeight, Tensor]]] = {}
    for weight, content in pairs:
        dense = weight.dense
        key = (content.dtype, content.device, dense.dtype, dense.device, is_sharded(dense))
        groups.setdefault(key, []).append((weight, content))
    yield from groups.values()


def _scatter(flat: Tensor, weights: Sequence[MaskedWeight]) -> bool:
    """Put ``flat``, the weights' values one after the other, in its places by one kernel; whether that was possible."""
    places = [(weight.dense, weight.positions) for weight in weights]
    if flat.device.type == "cpu":
        if not all(native.can_write(dense, at, flat) for dense, at in places):
            return False
        native.write_many([dense for dense, _ in places], [at for _, at in places], flat)
        return True
    if flat.device.type != "cuda" or find_spec("triton") is None:
        return False
    if not all(dense.is_contiguous() and at.dtype == torch.int32 for dense, at in places):
        return False
    _places(places).write(flat)
    return True


_last_places: tuple[tuple[int, ...], Any] | None = None


def _places(places: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """The kernel's tables, made anew when an address changes, which is when a weight is moved."""
    global _last_places
    key = tuple(tensor.data_ptr() for place in places for tensor in place)
    if _last_places is None or _last_places[0] != key:
        from multiticket.sparse.triton_kernels import Places  # triton is imported where it is used

        _last_places = key, Places([dense for dense, _ in places], [at for _, at in places])
    return _last_places[1]
