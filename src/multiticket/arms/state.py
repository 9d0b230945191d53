"""The bytes of a model's state, counted on tensors themselves; those on the meta device take no memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse import Attachment

MASTER = torch.float32
"""Of gradients, moments and what the optimiser steps."""


@dataclass(frozen=True)
class State:
    """What is there at every step, whatever the batch, in bytes."""

    trained: int
    """Number of values that the optimiser steps."""
    lora_rank: int | None
    """Of an adapter."""
    weights: int
    """The model's own, in the dtype they are used in."""
    buffers: int
    values: int
    """What the optimiser steps where that is not the weights: a ticket's values, LoRA's matrices, master weights."""
    gradients: int
    moments: int
    positions: int
    bookkeeping: int
    """What the engine keeps beside values and positions, and the optimiser's step counters."""

    @property
    def state(self) -> int:
        """All of them together."""
        own = self.weights + self.buffers + self.values + self.positions + self.bookkeeping
        return own + self.gradients + self.moments


def count_state(
    held: Iterable[Tensor],
    buffers: Iterable[Tensor],
    trained: Iterable[Tensor],
    values: int,
    dtype: torch.dtype = MASTER,
    positions: int = 0,
    kept: int = 0,
    rank: int | None = None,
) -> State:
    """State of AdamW on `trained`, with gradients and two moments in `dtype`.

    Args:
        held: the model's weights. values: bytes of what is stepped where that is not these.
        kept: bytes of what is there beside values and positions. rank: of an adapter.
    """
    trained = list(trained)
    count = sum(tensor.numel() for tensor in trained)
    return State(
        trained=count,
        lora_rank=rank,
        weights=storage_bytes(held),
        buffers=storage_bytes(buffers),
        values=values,
        gradients=count * dtype.itemsize,
        moments=2 * count * dtype.itemsize,
        positions=positions,
        bookkeeping=kept + MASTER.itemsize * len(trained),  # AdamW keeps a step counter a tensor
    )


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Each storage once: tied weights are held once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def kept_by(attachment: Attachment) -> tuple[int, int]:
    """Bytes of the positions that an attachment keeps on its device, and of all else beside the model's own tensors."""
    model = [*attachment.model.parameters(), *attachment.model.buffers()]
    kept = [
        (name, tensor)
        for name, tensor in held_tensors("", attachment, set())
        if tensor.device == model[0].device
    ]
    positions = [tensor for name, tensor in kept if name == "_positions"]
    known = storage_bytes([*model, *positions])
    return storage_bytes(positions), storage_bytes([*model, *(tensor for _, tensor in kept)]) - known


def held_tensors(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that containers and the engine's objects hold, however deep, with the attribute's name."""
    if isinstance(value, Tensor):
        yield name, value
    elif id(value) not in seen:
        seen.add(id(value))
        if type(value).__module__.startswith("multiticket.sparse"):
            for attribute, inner in vars(value).items():
                yield from held_tensors(attribute, inner, seen)
        elif isinstance(value, (dict, list, tuple)):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from held_tensors(name, inner, seen)
