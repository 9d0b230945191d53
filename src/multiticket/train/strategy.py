"""How accelerate is set to share the training among processes, and whether a run can be shared that way."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from multiticket.runs.ranks import Ranks

DDP, FSDP2 = "ddp", "fsdp2"


def strategy_of(ranks: Ranks) -> str | None:
    """``ddp``, ``fsdp2``, or None for one process.

    What it asks accelerate for stays known to accelerate until the trainer is made, so that `attach` goes by it.

    Raises:
        ValueError: accelerate is set to something that a run does not do.
    """
    if not ranks.several:
        return None
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "A run is not shared by DeepSpeed: set accelerate to plain data parallelism or FSDP2."
        )
    if _asked("ACCELERATE_USE_FSDP") and not torch.cuda.is_available():
        raise ValueError(
            "accelerate is set to FSDP, which it leaves out on CPUs without a word: set it to plain data parallelism."
        )
    state = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no").state
    kind = state.distributed_type
    if kind == DistributedType.FSDP:
        if state.fsdp_plugin.fsdp_version != 2:
            raise ValueError(
                "A run is shared by FSDP2, and accelerate is set to FSDP 1: set fsdp_version to 2."
            )
        return FSDP2
    if not kind.value.startswith("MULTI_"):
        raise ValueError(
            f"A run is not shared by {kind.value}: set accelerate to plain data parallelism or FSDP2."
        )
    return DDP


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")
