"""The command that does one run again, from nothing but its settings."""

from __future__ import annotations

import json
import shlex
from typing import Any

from multiticket.config import WATCHING, EvalConfig, RunConfig, build

OPTIONS = (
    "task",
    "model",
    "arm",
    "method",
    "density",
    "seed",
    "part",
    "scope",
    "mask_options",
    "lora_rank",
    "lora_alpha",
    "beta",
    "reference",
    "training_seed",
    "learning_rate",
    "steps",
    "rollouts",
    "group",
    "micro_batch",
    "dtype",
    "save_every",
    "eval_every",
    "from_ticket",
)
"""Settings that ``multiticket train`` takes as options and that change what a run comes to."""
MEASURED = ("split", "problems", "samples")
UNSAID = {*WATCHING} - {"eval", "eval_every"}
"""Settings that the command leaves out: what a run is measured on is said, and what else is seen of it is not."""


def rerun_command(config: RunConfig, config_file: str) -> str:
    """``multiticket train`` with what differs from the defaults.

    Args:
        config_file: the run's ``config.json``, which the command reads where it has a setting without an option.
    """
    words = ["multiticket", "train", "--task", config.task, "--model", config.model, "--arm", config.arm]
    given: dict[str, Any] = {"task": config.task, "model": config.model, "arm": config.arm}
    for name in OPTIONS[3:]:
        value = getattr(config, name)
        if value is None or value == getattr(build(given), name):
            continue
        given[name] = value
        words += [f"--{name.replace('_', '-')}", _text(value)]
    measured = {
        name: getattr(config.eval, name)
        for name in MEASURED
        if getattr(config.eval, name) not in (None, EvalConfig.model_fields[name].default)
    }
    for name, value in measured.items():
        words += [f"--{name}", _text(value)]
    for name, value in config.grpo.items():
        words += ["--set", f"{name}={_text(value)}"]
    again = build({**given, "eval": measured, "grpo": config.grpo})
    if again.model_dump(exclude=UNSAID) != config.model_dump(exclude=UNSAID):
        return shlex.join(["multiticket", "train", "--config", config_file, "--output", "again"])
    return shlex.join(words)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)
