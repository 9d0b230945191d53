"""One run of a study: what it is called, and how a cell's lists multiply out."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multiticket.config import RunConfig
from multiticket.config.older_names import by_older_names

ALWAYS_NAMED = {
    "task", "model", "arm", "method", "density", "seed", "part", "scope", "mask_options", "lora_rank",
    "lora_alpha", "training_seed", "learning_rate", "target_kl", "rate_control", "steps", "rollouts",
    "group", "micro_batch", "max_completion_tokens", "temperature", "beta", "reference", "weight_decay",
    "clip_norm", "dtype", "kl_rollouts", "grpo", "save_every", "keep_last", "eval", "eval_every",
    "samples_every", "report_to", "stop_on_collapse", "collapse", "from_ticket",
}  # fmt: skip
"""Settings that a run's name always tells. Of later ones it tells what differs from the default, so that a setting that
is added to `RunConfig` renames no run that was done before."""


@dataclass(frozen=True)
class Choice:
    """A learning rate that the validation scores of other runs decide."""

    name: str
    """Of the file that keeps it."""
    sweep: tuple[StudyRun, ...]


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    name: str
    """Its folder below the study's."""
    config: RunConfig
    """Its settings. Where `choice` is there, the rate in it is only the first candidate: `study.choice` settles it."""
    choice: Choice | None = None
    also: Mapping[str, RunConfig] = field(default_factory=dict)
    """Other tasks that it is measured on when it is done (`study/other_tasks.py`), and its settings there."""

    @property
    def key(self) -> str:
        """The same for runs of the same settings, whatever their cells call them."""
        return self.name.rpartition("-")[2]


def expand(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value from each list in ``cell``; a list of lists chooses lists, an empty one is itself."""
    names = list(cell)
    values = [value if isinstance(value, list) and value else [value] for value in cell.values()]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def identity(config: RunConfig, choice: Choice | None = None) -> str:
    """8 hexadecimal digits for all settings; a rate that is yet to be chosen counts as the sweep that chooses it."""
    told = ALWAYS_NAMED | by_older_names(config.model_dump(exclude_defaults=True)).keys()
    settings = by_older_names(config.model_dump(mode="json"))
    settings = {name: value for name, value in settings.items() if name in told}
    if choice is not None:
        settings["learning_rate"] = choice.name
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def run_name(chosen: Mapping[str, Any], key: str) -> str:
    """What the cell set, such as ``ticket-density0.01-seed3``, and `key`, which tells all settings."""
    words = []
    for name, value in chosen.items():
        if isinstance(value, Mapping):
            continue  # too long for a name; the hash has it
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(text if name in ("task", "arm", "model", "method") else f"{name}{text}")
    readable = re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join(words)).replace("learning_rate", "rate")
    return f"{readable[:120]}-{key}".lstrip("-.")


def merged(shared: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen` on top of `shared`; mappings in both, such as `eval`, setting by setting."""
    result = dict(shared)
    for name, value in chosen.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = {**result[name], **value} if both else value
    return result
