"""RLVRTrainer on rollouts that are given, so that one process and two ranks train on the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from test_trl import toy_tokenizer
from torch import Tensor, nn
from toy_models import build
from trl import GRPOConfig

import multiticket as mt
from multiticket.train.trainer import RLVRTrainer

ROLLOUTS, PROMPT, COMPLETION, STEPS = 8, 4, 5, 4
OPTIMIZERS = {
    "sgd": {"optim": "sgd", "learning_rate": 0.5},
    "adamw": {"optim": "adamw_torch_fused", "learning_rate": 1e-2, "adam_epsilon": 1e-5},
}


def rollouts(step: int) -> dict[str, Tensor]:
    """The joint rollouts of a step: completions of different lengths and rewards."""
    generator = torch.Generator().manual_seed(100 + step)
    ids = torch.randint(2, 61, (ROLLOUTS, PROMPT + COMPLETION), generator=generator)
    lengths = torch.randint(2, COMPLETION + 1, (ROLLOUTS, 1), generator=generator)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(ROLLOUTS, PROMPT, dtype=torch.long),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": (torch.arange(COMPLETION) < lengths).long(),
        "advantages": torch.randn(ROLLOUTS, generator=generator),
    }


class GivenRollouts(RLVRTrainer):
    """Generates nothing: each rank gets its part of the step's rollouts."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        joint = rollouts(self.state.global_step)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        own = {name: tensor.chunk(ranks)[rank] for name, tensor in joint.items()}
        self._metrics["train"]["reward"].append(0.0)
        return {**own, "num_items_in_batch": joint["completion_mask"].sum()}


def make_trainer(
    folder: Path,
    optimizer: str = "sgd",
    ranks: int = 1,
    masked: bool = True,
    kind: type[RLVRTrainer] = GivenRollouts,
    dtype: torch.dtype = torch.float32,
    family: str = "qwen2",
    **more: Any,
) -> RLVRTrainer:
    """A trainer of the same model, mask and settings each time; ``ranks`` share the rollouts of a step."""
    model: Any = build(family, dtype)
    model.config.pad_token_id, model.config.eos_token_id = 0, 1
    attachment = mt.attach(model, mt.Mask.random(model, 0.2)) if masked else None
    settings = {
        "output_dir": str(folder),
        "loss_type": "dapo",
        "scale_rewards": "none",
        "beta": 0.0,
        "num_generations": 4,
        "per_device_train_batch_size": ROLLOUTS // ranks,
        "gradient_accumulation_steps": 1,
        "max_completion_length": COMPLETION,
        "max_steps": STEPS,
        "max_grad_norm": 0.05,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "save_strategy": "no",
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": False,
    }
    return kind(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=GRPOConfig(**{**settings, **OPTIMIZERS[optimizer], **more}),
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3 w4 w5", "w5 w6 w7 w8"] * 8}),
        processing_class=toy_tokenizer(),
        attachment=attachment,
        kl_rollouts=ROLLOUTS,
    )


def logged(trainer: RLVRTrainer, name: str) -> list[float]:
    """A metric at each step."""
    return [line[name] for line in trainer.state.log_history if name in line]


def trained(trainer: RLVRTrainer) -> dict[str, Tensor]:
    """The values, or all weights of a whole model. Collective where the model is sharded."""
    if trainer.attachment is not None:
        return {name: tensor.cpu() for name, tensor in trainer.attachment.state_dict()["values"].items()}
    return dict(whole_parameters(trainer.accelerator.unwrap_model(trainer.model)))


def whole_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    for name, parameter in model.named_parameters():
        if not name.endswith("__values"):
            held: Any = parameter.detach()
            yield name, held.full_tensor() if hasattr(held, "full_tensor") else held.clone()
