"""What test_sharded_trainer.py judges: RLVRTrainer on two ranks, in DistributedDataParallel and under FSDP2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from rank_trainers import GivenRollouts, logged, make_trainer, trained, whole_parameters
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from toy_models import build, tokens
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.trainer.utils import add_fused_lm_head
from two_ranks import Figures, differs, own_half, serve

import multiticket as mt
from multiticket.train.trainer import RLVRTrainer

FOLDER = Path(sys.argv[1])


class UnderFSDP2:
    """What ``Accelerator`` is on an accelerator: on a CPU it ignores the plugin, and prepares DDP without a word."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        state: Any = self.accelerator.state  # type: ignore[attr-defined]
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
        )
        for shared in (AcceleratorState._shared_state, PartialState._shared_state):
            shared["distributed_type"] = DistributedType.FSDP
        assert state.is_fsdp2
        self.is_fsdp_enabled = True


class ShardedGiven(UnderFSDP2, GivenRollouts):
    """FSDP2, and rollouts that are given."""


class ShardedGenerating(UnderFSDP2, RLVRTrainer):
    """FSDP2, and the model's own rollouts."""


def finish(name: str, **options: Any) -> Figures:
    """Train, and leave what was trained in a file for the test to compare with one process."""
    trainer = make_trainer(FOLDER / name, ranks=2, **options)
    trainer.train()
    found = trained(trainer)
    if dist.get_rank() == 0:
        save_file(found, FOLDER / f"{name}.safetensors")
    held = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return {
        "sharded": all(hasattr(parameter, "placements") for parameter in held),
        "wrapped": isinstance(trainer.model_wrapped, DistributedDataParallel),
        "kl": logged(trainer, "kl"),
        "hidden": logged(trainer, "hidden_by_rounding") if trainer.attachment is not None else [],
    }


def bytes_reduced() -> Figures:
    sizes: list[int] = []

    class Count(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            trainer.model_wrapped.register_comm_hook(None, count)

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            sizes.append(0)

    def count(_, bucket):  # DistributedDataParallel checks annotations
        sizes[-1] += bucket.buffer().nbytes
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    trainer = make_trainer(FOLDER / "bytes", ranks=2)
    trainer.add_callback(Count())
    trainer.train()
    return {"reduced": sizes, "nnz": trainer.attachment.nnz}


def a_person_saves(name: str, kind: type[RLVRTrainer], masked: bool = True) -> Figures:
    """``save_model`` called on every rank leaves a checkpoint that transformers reads; one rank saves the ticket."""
    trainer = make_trainer(FOLDER / name, "adamw", ranks=2, kind=kind, masked=masked)
    start = dict(whole_parameters(build("qwen2")))
    trainer.train()
    trainer.save_model(str(FOLDER / name))
    wanted = dict(whole_parameters(trainer.accelerator.unwrap_model(trainer.model)))
    if dist.get_rank() == 1:
        return {}
    loaded, report = AutoModelForCausalLM.from_pretrained(FOLDER / name, output_loading_info=True)
    figures = {
        "unlike": sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]),
        "class": loaded.config.architectures,
        "files": sorted(path.name for path in (FOLDER / name).iterdir()),
        "plain": differs(dict(whole_parameters(loaded)), wanted),
        "moved": differs(wanted, start),
    }
    if trainer.attachment is not None:
        trainer.attachment.ticket().save(FOLDER / name / "ticket.safetensors")
        base = build("qwen2")
        mt.Ticket.load(FOLDER / name / "ticket.safetensors").apply(base)
        figures["ticket"] = differs(dict(whole_parameters(base)), wanted)
    return figures


def head_on_its_own() -> Figures:
    """TRL reads ``lm_head.weight`` past the head, of which FSDP2 knows nothing if the head is a unit of its own."""

    def passes(model: torch.nn.Module, share: Any) -> None:
        for ids in (tokens(batch=4, seed=1), tokens(batch=4, seed=2)):
            model(input_ids=share(ids), labels=share(ids), fused_lm_head=True).loss.backward()
        with torch.no_grad():
            model(input_ids=share(ids), labels=share(ids), fused_lm_head=True)

    one: Any = build("llama")
    two: Any = build("llama")
    mask = mt.Mask.random(one, 0.2)
    alone, attachment = mt.attach(one, mask), mt.attach(two, mask)
    for model in (one, two):
        add_fused_lm_head(model)
    for layer in [*two.model.layers, two.lm_head, two]:
        fully_shard(layer)
    base = dict(whole_parameters(one))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.5) for each in (alone, attachment)]
    for _ in range(3):
        for model, optimizer, share in zip((one, two), optimizers, (lambda ids: ids, own_half), strict=True):
            optimizer.zero_grad()
            passes(model, share)
            optimizer.step()
    wanted = dict(whole_parameters(one))
    return {
        "difference": differs(dict(whole_parameters(two)), wanted),
        "head moved": float((wanted["lm_head.weight"] - base["lm_head.weight"]).abs().max()),
    }


def generates() -> Figures:
    """The whole step as users run it: TRL generates, scores and trains a sharded model."""
    trainer = make_trainer(FOLDER / "generates", ranks=2, kind=ShardedGenerating, max_steps=2)
    before = trained(trainer)
    trainer.train()
    return {
        "lengths": logged(trainer, "completions/mean_length"),
        "rewards": logged(trainer, "reward"),
        "kl": logged(trainer, "kl"),
        "moved": differs(trained(trainer), before),
    }


def reset_accelerate() -> Figures:
    AcceleratorState._reset_state(True)
    return {}


PASSES = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
BF16 = {"optimizer": "adamw", "dtype": torch.bfloat16, "learning_rate": 1e-4}

if __name__ == "__main__":
    os.environ |= {"RANK": sys.argv[2], "LOCAL_RANK": sys.argv[2], "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    serve(
        {
            "ddp control": lambda: finish("ddp control", masked=False),
            "ddp bf16": lambda: finish("ddp bf16", **BF16),
            "ddp bytes": bytes_reduced,
            "ddp save": lambda: a_person_saves("ddp save", GivenRollouts),
            "reset": reset_accelerate,
            "fsdp2 control": lambda: finish("fsdp2 control", masked=False, kind=ShardedGiven),
            "fsdp2 adamw": lambda: finish("fsdp2 adamw", optimizer="adamw", kind=ShardedGiven),
            "fsdp2 untied": lambda: finish("fsdp2 untied", family="llama", kind=ShardedGiven, **PASSES),
            "fsdp2 head": head_on_its_own,
            "fsdp2 bf16": lambda: finish("fsdp2 bf16", kind=ShardedGiven, **BF16),
            "fsdp2 save": lambda: a_person_saves("fsdp2 save", ShardedGiven),
            "fsdp2 save all": lambda: a_person_saves("fsdp2 save all", ShardedGiven, masked=False),
            "fsdp2 generates": generates,
        }
    )
