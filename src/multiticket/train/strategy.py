"""How accelerate is set to share the training among processes, and whether a run can be shared that way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from multiticket.arms.facts import ARMS
from multiticket.config import RunConfig
from multiticket.runs.ranks import Ranks

DDP, FSDP2 = "ddp", "fsdp2"


def strategy_of(ranks: Ranks, config: RunConfig, note: Callable[[str], None]) -> str | None:
    """``ddp``, ``fsdp2``, or None for one process. To be called before the model is loaded.

    What it asks accelerate for stays known to accelerate until the trainer is made, so that `attach` goes by it. Of
    accelerate's other settings, two are taken back: mixed precision, which the run's own settings say, and loading the
    weights on one process of a machine alone, since each one measures a whole model.

    Args:
        note: told what is left out.

    Raises:
        ValueError: accelerate is set to something that a run does not do.
    """
    if not ranks.several:
        return None
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "A run is not shared by DeepSpeed: set accelerate to plain data parallelism or FSDP2."
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        note(
            f"accelerate's mixed precision ({os.environ['ACCELERATE_MIXED_PRECISION']}) is left out: --dtype says what "
            "the weights are, and --set bf16=true computes in bf16."
        )
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    strategy = _of_accelerate()
    if strategy == FSDP2 and ARMS[config.arm].trains_everything and config.beta:
        raise ValueError(
            f"beta above 0 with the {config.arm} arm keeps a copy of all weights, which FSDP2 does not allow for: take "
            "beta 0, or an arm that leaves the base as it is."
        )
    return strategy


def check_checkpoint(checkpoint: Path, processes: int, strategy: str | None) -> str | None:
    """What to say of a run that goes on from `checkpoint` by other processes; None: nothing.

    Raises:
        ValueError: these processes cannot take up what is in it.
    """
    sharded = not (checkpoint / "optimizer.pt").exists()
    if sharded != (strategy == FSDP2):
        raise ValueError(
            f"The checkpoint {checkpoint} was written {'under' if sharded else 'without'} FSDP2, which shares the "
            "optimiser's state otherwise: go on in the same way."
        )
    before = len(list(checkpoint.glob("rng_state*.pth")))
    if before == processes:
        return None
    if any(checkpoint.glob("in-hand-*.pt")):
        raise ValueError(
            f"The checkpoint {checkpoint} holds rollouts of {before} processes that are still to be trained on: go on "
            f"with {before}."
        )
    return f"begun by {before} processes, goes on by {processes}: rollouts are drawn from other random numbers now"


def _of_accelerate() -> str:
    on_cpu = not torch.cuda.is_available()
    if on_cpu and _is_set("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "accelerate is set to FSDP, which it leaves out on CPUs without a word: set it to plain data parallelism."
        )
    state = Accelerator(cpu=on_cpu).state
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


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")
