"""What the workers of one engine tell each other: each has a shard, and the fingerprint needs them all."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """The workers that together hold the model."""

    def agree(self, reason: str | None) -> None:
        """Raises ValueError on every worker where any has one, so that none waits for another."""

    def union(self, values: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Each worker's fp32 values (k,) and which it has, bool (k,), put together."""


class OneRank:
    """A worker that holds the whole model."""

    def agree(self, reason: str | None) -> None:
        if reason is not None:
            raise ValueError(reason)

    def union(self, values: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        return values, found


class ManyRanks:
    """Workers with shards, over a ``torch.distributed`` group for CPU tensors."""

    def __init__(self, group: torch.distributed.ProcessGroup) -> None:
        self.group = group

    def agree(self, reason: str | None) -> None:
        reasons: list[str | None] = [None] * self.group.size()
        torch.distributed.all_gather_object(reasons, reason, group=self.group)
        for other in reasons:
            if other is not None:
                raise ValueError(other)

    def union(self, values: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        # Bits, since -0.0 and NaN have to arrive as they are. A worker without the value gives the smallest integer.
        bits = values.view(torch.int32).masked_fill(~found, -(2**31))
        any_found = found.to(torch.uint8)
        for tensor in (bits, any_found):
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)
        return bits.view(torch.float32), any_found.bool()


def vllm_ranks() -> Ranks:
    """Those of the vLLM worker that this process is."""
    from vllm.distributed.parallel_state import get_world_group

    group = get_world_group()
    return OneRank() if group.world_size == 1 else ManyRanks(group.cpu_group)
