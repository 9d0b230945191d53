"""What test_trainer_on_two_ranks.py judges: RLVRTrainer under DDP and FSDP2, and alone on the same rollouts."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_models import build
from two_ranks import Figures, differs, serve

import multiticket as mt
from multiticket import config

FOLDER = Path(sys.argv[1])
STEPS = 4


def said(prompt: list[int], place: int, step: int) -> list[int]:
    """What the policy is taken to answer: a function of prompt, place in the group and step, whoever generates it."""
    digest = hashlib.sha256(f"{prompt} {place} {step}".encode()).digest()
    return [2 + byte % 59 for byte in digest[:4]]


def trainer_of(model: nn.Module, attachment: Any, folder: Path, ranks: int, optim: str, sharded: bool) -> Any:
    from datasets import Dataset
    from test_trl import toy_tokenizer

    from multiticket.train.recipe import grpo_config
    from multiticket.train.trainer import RLVRTrainer

    class Told(RLVRTrainer):
        """Takes its rollouts from ``said``."""

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            first = (dist.get_rank() if ranks == 2 else 0) * len(prompt_ids)
            step = self.state.global_step
            answers = [said(list(ids), (first + i) % 4, step) for i, ids in enumerate(prompt_ids)]
            return answers, None

    run = config.build(
        {
            "steps": STEPS,
            "rollouts": 16,
            "group": 4,
            "micro_batch": 16 // ranks,
            "density": 0.2,
            "learning_rate": 0.5 if optim == "sgd" else 1e-2,
            "save_every": 2,
            "weight_decay": 0.0 if optim == "sgd" else 0.01,
            "grpo": {"optim": optim, "adam_epsilon": 1e-5},
        }
    )
    arguments = grpo_config(run, folder, 4)
    trainer = Told(
        model=model,
        reward_funcs=lambda completions, **_: [float(sum(map(ord, c)) % 7) for c in completions],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [f"w{i} w{i + 1} w{i + 2}" for i in range(2, 34)]}),
        processing_class=toy_tokenizer(),
        attachment=attachment,
        kl_rollouts=8,
    )
    if sharded:  # accelerate would prepare DDP on a CPU, without a word
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Qwen2DecoderLayer"],
            state_dict_type="SHARDED_STATE_DICT",
        )
        trainer.accelerator.state.fsdp_plugin = plugin
        trainer.accelerator.state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    return trainer


def values_after(
    ranks: int, optim: str = "sgd", sharded: bool = False, resume: bool = False
) -> tuple[dict[str, Tensor], Figures]:
    """The values after training, in this process alone or in two together."""
    folder = FOLDER / f"{optim}-{ranks}-{'fsdp' if sharded else 'ddp'}"
    if resume:
        dist.barrier()  # the other rank may still be looking at it
        if dist.get_rank() == 0:
            shutil.rmtree(folder / "step-4")
        dist.barrier()
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    base = {n: v.detach().clone() for n, v in attachment.named_parameters()}
    trainer = trainer_of(model, attachment, folder, ranks, optim, sharded)
    trainer.train(resume_from_checkpoint=str(folder / "step-2") if resume else None)
    values = dict(attachment.state_dict()["values"])
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    if ranks == 2:
        dist.barrier()  # one rank writes
    files = sorted(path.name for path in (folder / "step-4").iterdir())
    AcceleratorState._reset_state()
    return values, {"moved": differs(values, base), "kl": kl, "files": files}


def two_against_one(optim: str, sharded: bool) -> Figures:
    one = load_file(FOLDER / f"{optim}.safetensors")
    two, of_two = values_after(2, optim, sharded)
    again, _ = values_after(2, optim, sharded, resume=True)
    return {**of_two, "difference": differs(two, one), "resumed": differs(again, two)}


OPTIMIZERS = ("sgd", "adamw_torch_fused")

if __name__ == "__main__" and sys.argv[2] == "alone":
    torch.set_num_threads(1)
    for name in OPTIMIZERS:
        save_file(values_after(1, name)[0], FOLDER / f"{name}.safetensors")
elif __name__ == "__main__":
    os.environ.update(RANK=sys.argv[2], LOCAL_RANK=sys.argv[2], WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    serve(
        {
            "ddp sgd": partial(two_against_one, "sgd", False),
            "ddp adamw": partial(two_against_one, "adamw_torch_fused", False),
            "fsdp2 sgd": partial(two_against_one, "sgd", True),
        }
    )
