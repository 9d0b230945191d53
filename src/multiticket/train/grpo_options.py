"""Options of TRL's ``GRPOConfig`` that a run passes through by their own names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import Trainer

from multiticket.config import RunConfig
from multiticket.errors import first_sentence
from multiticket.train.trl_compat import GRPOConfig, is_vllm_available

OURS = {
    "output_dir": "--output",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "num_generations": "group",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "rollouts and micro_batch",
    "generation_batch_size": "rollouts",
    "max_completion_length": "max_completion_tokens",
    "max_grad_norm": "clip_norm",
    "save_strategy": "save_every",
    "save_steps": "save_every",
    "save_total_limit": "save_every",
    "seed": "training_seed",
    "data_seed": "training_seed",
    "resume_from_checkpoint": "--resume",
    "model_init_kwargs": "model and dtype",
    "eval_strategy": "eval_every",
    "eval_steps": "eval_every",
    "do_eval": "eval_every",
}
"""Options that follow from a setting of the run under another name; those of one name are found by it."""

UNFIT_FOR = {
    "TRL would load a second model as its reference, which may not be the ticket's base": "beta",
    "metrics.jsonl holds every step": "logging_steps logging_strategy logging_first_step",
    "a checkpoint must be enough to resume from": "save_only_model",
    "the result is what the last step left": "load_best_model_at_end metric_for_best_model greater_is_better",
    "it would be written into config.json": "hub_token",
    "a run writes to its own folder only": "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push "
    "hub_revision log_completions_hub_repo",
    "the order of problems follows from training_seed": "shuffle_dataset train_sampling_strategy length_column_name "
    "ignore_data_skip",
    "its loss does not show the log-probabilities from which each step's KL is measured": "use_liger_kernel "
    "liger_kernel_config",
    "how processes share a run is accelerate's own to say (accelerate launch)": "deepspeed "
    "ds3_gather_for_generation fsdp fsdp_config parallelism_config accelerator_config ddp_backend ddp_timeout "
    "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters ddp_static_graph local_rank "
    "average_tokens_across_devices log_on_each_node log_level_replica save_on_each_node",
    "a run evaluates by itself, see eval and eval_every": "eval_delay eval_on_start "
    "eval_accumulation_steps eval_do_concat_batches eval_use_gather_object per_device_eval_batch_size "
    "prediction_loss_only include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval num_generations_eval "
    "do_predict",
    "a run trains": "do_train",
    "a task has one score": "reward_weights multi_objective_aggregation",
    "the score needs the problems' answers": "remove_unused_columns label_names",
    "the reference policy is fixed, see reference": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    "use micro_batch for the size of a pass": "auto_find_batch_size",
    "GRPO has no labels": "label_smoothing_factor",
    "arm and scope decide what trains": "optim_target_modules",
    "a run saves when it is told to stop, and restores all that it needs": "enable_jit_checkpoint "
    "restore_callback_states_from_checkpoint",
    "the model is loaded before TRL sees it": "trust_remote_code",
    "the turns are the task's": "max_tool_calling_iterations",
}
UNFIT = {name: why for why, names in UNFIT_FOR.items() for name in names.split()}
"""Options that a run cannot honour, and why."""

SCHEDULES = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
"""Options that say how a given rate changes."""


def with_options(recipe: Mapping[str, Any], options: Mapping[str, Any]) -> GRPOConfig:
    """The recipe with a run's own options last.

    Raises:
        ValueError: as :func:`checked`, and where TRL refuses how the options go together, or lacks what they need.
    """
    values = checked(options)
    try:
        chosen = GRPOConfig(**{**recipe, **values})
        _require_workers(chosen)
        if "optim" in values:
            Trainer.get_optimizer_cls_and_kwargs(chosen, model=None)
        return chosen
    except ImportError as error:
        raise ValueError(
            f"The optimiser {values['optim']!r} is not installed: {first_sentence(error)}."
        ) from None
    except (ValueError, TypeError) as error:
        if not values:
            raise
        raise ValueError(f"TRL refuses the options {', '.join(values)}: {first_sentence(error)}.") from None


def refuse_schedules(options: Mapping[str, Any]) -> None:
    """Raises ValueError where a run that finds its rate is told how the rate changes."""
    for name in SCHEDULES:
        if name in options:
            raise ValueError(
                f"TRL's {name} has no effect with learning_rate auto, which decides each step's rate: set "
                f"learning_rate to a number, or omit {name}."
            )


def _require_workers(chosen: GRPOConfig) -> None:
    if not chosen.dataloader_num_workers:
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(chosen, name):
                raise ValueError(f"{name} needs dataloader_num_workers above 0")


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their values as ``GRPOConfig`` types them.

    Raises:
        ValueError: an option that TRL does not have, that a setting of the run decides, that a run cannot honour,
            or whose value is not of its type; or vLLM is asked for and not installed.
    """
    hints = get_type_hints(GRPOConfig)
    known = [field.name for field in dataclasses.fields(GRPOConfig) if field.init]
    values = {}
    for name, value in options.items():
        _refuse(name, known)
        values[name] = _typed(name, value, hints[name])
    if values.get("use_vllm") and not is_vllm_available():
        raise ValueError(
            "use_vllm needs vLLM, which is not installed: pip install 'trl[vllm]', or leave it out."
        )
    return values


def _refuse(name: str, known: list[str]) -> None:
    ours = name if name in RunConfig.model_fields else OURS.get(name)
    if ours is not None:
        options = [f"--{one.removeprefix('--').replace('_', '-')}" for one in ours.split(" and ")]
        raise ValueError(f"{name} is not set by TRL here but by the run: give {' and '.join(options)}.")
    if name in UNFIT:
        raise ValueError(f"TRL's {name} cannot be set for a run: {UNFIT[name]}.")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"the nearest are {', '.join(near)}" if near else "see the fields of trl.GRPOConfig"
        raise ValueError(f"TRL's GRPOConfig has no option {name!r}; {hint}.")


def _typed(name: str, value: Any, hint: Any) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value)
    except ValidationError as error:
        wanted = " or ".join(
            dict.fromkeys(
                part["msg"].removeprefix("Input ").removesuffix(".")[:80] for part in error.errors()[:3]
            )
        )
        raise ValueError(f"TRL's {name} {wanted}, but is {value!r}.") from None
