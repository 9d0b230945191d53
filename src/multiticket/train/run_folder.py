"""The folder of one run: settings, one line a step, result, what was trained, checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig, build
from multiticket.train.files import write_json, write_text


class RunFolder:
    """Where a run keeps what it says and makes.

    ``config.json`` the settings; ``metrics.jsonl`` one line an optimiser step; ``result.json`` what came of
    it; ``ticket.safetensors`` (ticket arm) or ``model/`` (full arm) or ``adapter/`` (LoRA); ``eval-before.jsonl`` and
    ``eval-after.jsonl`` the results of single problems; ``checkpoints/step-N``; ``tensorboard/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.ticket = path / "ticket.safetensors"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def problems(self, when: str) -> Path:
        """The per-problem results of the evaluation ``before`` or ``after`` training."""
        return self.path / f"eval-{when}.jsonl"

    def holds_a_run(self) -> bool:
        return any(path.exists() for path in (self.config, self.metrics, self.result, self.ticket))

    def refuse_to_overwrite(self) -> None:
        """Raises ValueError where a new run would overwrite something."""
        if self.holds_a_run():
            raise ValueError(
                f"{self.path} already holds a run: give another --output, or --resume to continue it."
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: give a folder as --output.")

    def create(self, config: RunConfig) -> None:
        """Make the folder with its settings. Raises ValueError where it cannot be written."""
        try:
            write_json(self.config, config.model_dump(mode="json"))
        except OSError as error:
            raise ValueError(f"Cannot write the run folder {self.path}: {error.strerror}.") from None

    def read_config(self) -> RunConfig:
        """The settings the run was started with. Raises ValueError if there is no run."""
        if not self.config.exists():
            raise ValueError(f"{self.path} holds no run to resume: start one without --resume.")
        return build(read_json(self.config))

    def read_result(self) -> dict[str, Any] | None:
        """What the finished run reported, or None."""
        return read_json(self.result) if self.result.exists() else None

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint."""
        steps = [int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*")]
        return (max(steps), self.checkpoints / f"step-{max(steps)}") if steps else None

    def keep_metrics_until(self, step: int) -> float:
        """Drop the lines of steps after `step`, which will be done again; the time of the last one kept, in seconds."""
        lines = read_metrics(self.metrics)
        kept = [line for line in lines if line["step"] <= step]
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        return float(kept[-1]["time"]) if kept else 0.0

    def remove_partial_checkpoints(self) -> None:
        """Delete what a run that was killed while saving left behind."""
        for path in self.checkpoints.glob("partial-*"):
            shutil.rmtree(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError if it cannot be read as one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object.")
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line that a killed run cut short is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines
