"""The paper's recipe in TRL's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from multiticket.config import RunConfig
from multiticket.runs.ranks import launched
from multiticket.train.grpo_options import refuse_schedules, with_options
from multiticket.train.trl_compat import GRPOConfig


def grpo_config(config: RunConfig, folder: Path, max_completion_tokens: int) -> GRPOConfig:
    """The paper's recipe in TRL's words.

    One optimiser step on each batch of rollouts makes the importance ratio 1, so that TRL's clipping does
    nothing; ``dapo`` is the token-level mean over the step's rollouts. The run's own `grpo` options go last.

    Raises:
        ValueError: an option that TRL does not have or refuses, or that a setting of the run decides.
    """
    recipe: dict[str, Any] = dict(  # noqa: C408
        output_dir=str(folder),
        loss_type="dapo",
        scale_rewards="none",
        beta=0.0,  # TRL would load a second model by name; RLVRTrainer has its own reference
        num_iterations=1,
        num_generations=config.group,
        per_device_train_batch_size=rollouts_a_pass(config),
        gradient_accumulation_steps=_passes(config),
        max_completion_length=max_completion_tokens,
        temperature=config.temperature,
        disable_dropout=True,
        learning_rate=1.0 if config.learning_rate == "auto" else config.learning_rate,  # auto: a factor
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_norm,
        max_steps=config.steps,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        seed=config.training_seed,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        report_to=list(config.report_to) or "none",
        project="multiticket",
        run_name=folder.parent.name,
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    chosen = with_options(recipe, config.grpo)
    if config.learning_rate == "auto":
        _refuse_unless_adam(chosen)
        refuse_schedules(config.grpo)
    return chosen


def _refuse_unless_adam(chosen: GRPOConfig) -> None:
    optimizer = getattr(chosen.optim, "value", chosen.optim)
    if "adam" not in optimizer:
        raise ValueError(
            f"learning_rate auto tries Adam's first step, and optim is {optimizer}: set learning_rate to a "
            "number, or omit optim."
        )


def rollouts_a_pass(config: RunConfig) -> int:
    """Rollouts in one forward and backward pass of each process: micro_batch, or its whole share where that is less."""
    return min(config.micro_batch, max(1, config.rollouts // launched()))


def _passes(config: RunConfig) -> int:
    """Forward and backward passes of each process in a step: together they do the step's rollouts."""
    together = rollouts_a_pass(config) * launched()
    if config.rollouts % together:
        share = config.rollouts / launched()
        to_do = (
            f"give a micro_batch that divides {share:g}"
            if share.is_integer()
            else f"give rollouts that are a multiple of {launched()}"
        )
        raise ValueError(
            f"{config.rollouts} rollouts per step do not divide into passes for {launched()} processes with "
            f"micro_batch {config.micro_batch}: {to_do}."
        )
    return config.rollouts // together
