"""A mask's positions in the engine's own parameters, found once, and reading and writing k values there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multiticket.integrations.vllm.watch import covers, watch
from multiticket.mask import Mask
from multiticket.ticket.dense import gather, scatter_


@dataclass(frozen=True, eq=False)
class Target:
    """Positions in one parameter's memory."""

    memory: Tensor
    """All elements of the parameter's storage, flat."""
    which: Tensor
    """(m,): which of the mask's k values. On the host, int32 where they fit."""
    at: Tensor
    """(m,): where in ``memory``. On the host, int32 where they fit."""


class Places:
    """Where this worker keeps the k entries that a mask chooses, in the order of ``mask.names`` and positions.

    A worker that holds a shard has some of the k; an entry may also lie in two places of one worker.
    """

    def __init__(self, mask: Mask, targets: list[Target]) -> None:
        self.mask = mask
        self.targets = targets

    @property
    def k(self) -> int:
        """Number of the mask's values."""
        return self.mask.nnz

    def read(self) -> tuple[Tensor, Tensor]:
        """The values, fp32 (k,), and which of them this worker has, bool (k,); both on the host."""
        values, found = torch.zeros(self.k), torch.zeros(self.k, dtype=torch.bool)
        for target in self.targets:
            which = target.which.long()
            values[which] = gather(target.memory, target.at).float().cpu()
            found[which] = True
        return values, found

    def write(self, values: Tensor) -> None:
        """Write ``values`` (k,), rounded to each parameter's dtype where it differs."""
        if values.shape != (self.k,):
            raise ValueError(f"The mask has {self.k} positions, and {tuple(values.shape)} values came.")
        for target in self.targets:
            scatter_(target.memory, target.at, values[target.which.long()])

    def save(self) -> list[Tensor]:
        """What the parameters hold now, bit for bit, on the host, one tensor a target, for `restore`."""
        return [gather(target.memory, target.at).cpu() for target in self.targets]

    def restore(self, saved: list[Tensor]) -> None:
        """Write back what `save` gave."""
        for target, values in zip(self.targets, saved, strict=True):
            scatter_(target.memory, target.at, values)


def locate(model: nn.Module, mask: Mask, dtype: torch.dtype) -> Places:
    """The mask's places in ``model``, an engine's model with a ``load_weights`` as vLLM's have.

    Args:
        dtype: the checkpoint tensors', as the loader would see them.

    Raises ValueError where the loader does more than slice and copy, and writes nothing.
    """
    counts = torch.tensor([0, *(mask.count(name) for name in mask.names)]).cumsum(0).tolist()
    begins = dict(zip(mask.names, counts, strict=False))
    found: dict[int, tuple[Tensor, list[Tensor], list[Tensor]]] = {}
    name, flat = "", torch.empty(0, dtype=torch.int64)
    for copy in watch(model, {name: mask.shape(name) for name in mask.names}, dtype):
        if copy.name != name:
            name, flat = copy.name, mask.indices(copy.name)
        which, at = covers(copy, flat)
        memory = _whole(copy.destination)
        _, all_which, all_at = found.setdefault(memory.data_ptr(), (memory, [], []))
        all_which.append(_small(which + begins[name]))
        all_at.append(_small(at))
    return Places(
        mask,
        [Target(memory, torch.cat(which), torch.cat(at)) for memory, which, at in found.values() if which],
    )


def _whole(view: Tensor) -> Tensor:
    """All elements of the memory behind a view, flat."""
    count = view.untyped_storage().nbytes() // view.element_size()
    return torch.as_strided(view, (count,), (1,), 0)


def _small(flat: Tensor) -> Tensor:
    return flat.to(torch.int32) if not len(flat) or int(flat.max()) < 2**31 else flat
