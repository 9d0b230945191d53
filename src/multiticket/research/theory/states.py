"""The states of a model that can be compared: a base, a run's checkpoints, what a run made, any ticket or adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiticket import arms
from multiticket.arms.adapter import adapter_base
from multiticket.config import RunConfig, build
from multiticket.evaluate.trained import DEFAULT_TASK
from multiticket.models import load_model
from multiticket.runs.folder import RunFolder
from multiticket.ticket import Ticket

BASE = "base"


@dataclass(frozen=True)
class State:
    """Where weights are, and whose they are."""

    name: str
    """``base``, ``step-N``, or the path as it was given."""
    model: str
    """The base."""
    task: str
    config: RunConfig | None = None
    """The run's settings, where it is of a run."""
    place: Path | None = None
    """Where trained values are: a ticket, an adapter, a whole model or a checkpoint; None: the base."""
    arm: str = "ticket"
    """Whose they are."""

    @property
    def names_task(self) -> bool:
        """Whether its task is its own, as a run and a ticket say it, and not the default."""
        return self.config is not None or (self.place is not None and self.place.suffix == ".safetensors")

    @property
    def dtype(self) -> str:
        return self.config.dtype if self.config is not None else "float32"

    def load(self) -> tuple[Any, Any]:
        """A fresh plain model in the run's dtype, with tokenizer: an adapter merged, trained values in the
        weights.

        Raises:
            ValueError: files are missing, or of another base.
        """
        if self.place is None:
            return load_model(self.model, self.dtype)
        config = self.config or build({"arm": self.arm, "model": self.model})
        return arms.get(self.arm).read_plain(self.place, config)


def states_of_run(path: Path) -> list[State]:
    """The base, every checkpoint, and what the run made, by step.

    Raises:
        ValueError: the folder holds no run, or one that has neither checkpoints nor a result yet.
    """
    run = RunFolder(path)
    if not run.config.exists():
        raise ValueError(f"{path} holds no run: give a run's folder, which contains config.json.")
    config = run.read_config()
    states = [State(BASE, config.model, config.task, config)]
    made = made_by(path)
    for step in run.checkpoints.steps():
        if made is None or made.name != f"step-{step}":
            states.append(_checkpoint(run, config, step))
    if made is not None:
        states.append(made)
    if len(states) == 1:
        raise ValueError(
            f"The run in {path} has no checkpoint and is not finished: train with --save-every, or finish it first."
        )
    return states


def made_by(path: Path) -> State | None:
    """What a finished run kept, called by its last step (of one that collapsed: the step that it went back to)."""
    run = RunFolder(path)
    config, result = run.read_config(), run.read_result()
    if result is None:
        return None
    stopped = result.get("stopped")
    name = f"step-{stopped['kept_step'] if stopped else result['steps']}"
    kept = path / arms.get(config.arm).kept
    return State(name, config.model, config.task, config, kept, config.arm)


def _checkpoint(run: RunFolder, config: RunConfig, step: int) -> State:
    return State(f"step-{step}", config.model, config.task, config, run.checkpoints.of(step), config.arm)


def find_state(place: str) -> State:
    """The state at a place: a run folder (what it made), its checkpoints/step-N, a ticket, an adapter, or a model.

    Raises:
        ValueError: the run is not finished, or a ticket or adapter does not say what its base is.
    """
    path = Path(place)
    if (path / "config.json").is_file() and (path / "metrics.jsonl").exists():
        made = made_by(path)
        if made is None:
            raise ValueError(
                f"The run in {path} is not finished: give one of its checkpoints/step-N folders."
            )
        return made
    run = RunFolder(path.resolve().parent.parent)
    if path.resolve().parent.name == "checkpoints" and path.is_dir() and run.config.exists():
        step = path.resolve().name.removeprefix("step-")
        if not step.isdecimal():
            raise ValueError(f"{path} is not a checkpoint: give a run's checkpoints/step-N folder.")
        return _checkpoint(run, run.read_config(), int(step))
    if path.suffix == ".safetensors":
        told = Ticket.load(path).provenance
        if "model" not in told:
            raise ValueError(
                f"The ticket {path} does not name its base: merge it, and give the merged model."
            )
        return State(place, told["model"], told.get("task") or DEFAULT_TASK, place=path)
    if (path / "adapter_config.json").is_file():
        return State(place, adapter_base(path), DEFAULT_TASK, place=path, arm="lora")
    return State(place, place, DEFAULT_TASK)
