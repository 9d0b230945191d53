"""What test_many_sharded.py judges: whole runs by two processes under FSDP2.

On a CPU accelerate leaves FSDP out, and a run says so; here it is told that it is on.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from many_worker import (
    FOLDER,
    RANK,
    cut_short,
    disk_is_full,
    fails_at,
    on_given_calls,
    on_given_rollouts,
    run,
    sends,
    with_an_accelerator,
)
from told_rollouts import with_tools
from torch.distributed.fsdp import FSDPModule
from two_ranks import Figures, serve

from multiticket.train import saving, strategy
from multiticket.train.trainer import RLVRTrainer

make_accelerator = RLVRTrainer.create_accelerator_and_postprocess


def set_to_fsdp2() -> str:
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    return strategy.FSDP2


def sharded(trainer: Any) -> None:
    make_accelerator(trainer)
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="SHARDED_STATE_DICT"
    )
    for shared in (AcceleratorState._shared_state, PartialState._shared_state):
        shared["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def counted() -> Figures:
    """Whether the model is sharded, and the all-gathers of each generation and each pass."""
    seen: list[tuple[str, bool, int]] = []

    def watching(name: str, method: Any) -> Any:
        def watched(self: Any, *args: Any) -> Any:
            gathers = 0

            def counting(gather: Any) -> Any:
                def counted(*args: Any, **kwargs: Any) -> Any:
                    nonlocal gathers
                    gathers += 1
                    return gather(*args, **kwargs)

                return counted

            with ExitStack() as patches:
                for each in ("all_gather_into_tensor", "all_gather_single"):
                    if hasattr(torch.distributed, each):
                        whole = getattr(torch.distributed, each)
                        patches.enter_context(mock.patch.object(torch.distributed, each, counting(whole)))
                found = method(self, *args)
            seen.append((name, isinstance(self.model, FSDPModule), gathers))
            return found

        return mock.patch.object(RLVRTrainer, name, watched)

    with watching("sample", RLVRTrainer.sample), watching("loss", RLVRTrainer.loss):
        run("counted", steps=2)
    return {"seen": seen}


if __name__ == "__main__":
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(RANK), "LOCAL_RANK": str(RANK), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TOKENIZERS_PARALLELISM": "false"}
    strategy._of_accelerate = set_to_fsdp2
    RLVRTrainer.create_accelerator_and_postprocess = sharded  # type: ignore[method-assign]
    torch.set_num_threads(1)
    serve(
        {
            "whole": partial(run, "whole"),
            "again": partial(run, "again"),
            "signal": lambda: cut_short(
                "signal", fails_at(RLVRTrainer, "sample", 1, 3, sends(signal.SIGTERM))
            ),
            "no room": lambda: cut_short("values", fails_at(saving, "save_values", 0, 2, disk_is_full)),
            "counted": counted,
            "given accelerator": partial(with_an_accelerator, "given-accelerator"),
            "turns": partial(run, "turns", task="toy_turns:TASK", steps=3),
            "tools": partial(run, "tools", model=FOLDER / "caller", **with_tools(FOLDER)),
            "given tools": on_given_calls,
            "auto": partial(run, "auto", learning_rate="auto"),
            "full": partial(run, "full", arm="full"),
            "lora": partial(run, "lora", arm="lora"),
            **{f"given {arm}": partial(on_given_rollouts, arm, "sgd") for arm in ("ticket", "full", "lora")},
        }
    )
