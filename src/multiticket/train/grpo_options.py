"""Options of TRL's ``GRPOConfig`` that a run passes through by their own names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from multiticket.config import RunConfig
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
    "eval_strategy": "eval",
    "eval_steps": "eval",
    "do_eval": "eval",
}
"""Options that follow from a setting of the run under another name; those of one name are found by it."""

UNFIT = {
    "beta": "TRL would load a second model as its reference, which need not be the base that a ticket is bound to",
    "logging_steps": "metrics.jsonl holds every step",
    "logging_strategy": "metrics.jsonl holds every step",
    "save_only_model": "a checkpoint must be enough to resume from",
    "load_best_model_at_end": "the result is what the last step left",
    "hub_token": "it would be written into config.json",
    "push_to_hub": "a run writes to its own folder only",
    "shuffle_dataset": "the order of problems follows from training_seed",
    "use_liger_kernel": "its loss does not show the log-probabilities from which each step's KL is measured",
}
"""Options that a run cannot honour, and why."""


def with_options(recipe: Mapping[str, Any], options: Mapping[str, Any]) -> GRPOConfig:
    """The recipe with a run's own options last.

    Raises:
        ValueError: as :func:`checked`, and where TRL refuses how the options go together.
    """
    values = checked(options)
    try:
        return GRPOConfig(**{**recipe, **values})
    except (ValueError, TypeError) as error:
        if not values:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"TRL refuses the options {', '.join(values)}: {reason}") from None


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
        raise ValueError(f"TRL's {name} is decided by this run's own {ours}: set that instead.")
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
