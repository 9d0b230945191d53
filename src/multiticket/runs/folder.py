"""The folder of one run: settings, one line a step, result, what was trained, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig, build
from multiticket.runs.checkpoints import Checkpoints
from multiticket.runs.files import write_json
from multiticket.runs.lines import StepLines


class RunFolder:
    """Where a run keeps what it says and makes.

    ``config.json`` the settings; ``metrics.jsonl`` one line an optimiser step; ``result.json`` what came of
    it; ``ticket.safetensors`` (ticket arm) or ``model/`` (full arm) or ``adapter/`` (LoRA); ``eval-before.jsonl``,
    ``eval-after.jsonl`` and ``eval-shipped.jsonl`` the results of single problems; ``eval.jsonl`` scores on held-out
    problems on the way;
    ``trained.json`` what is still to be told of a run that is trained and not measured yet; ``samples.jsonl`` a few
    rollouts; ``checkpoints/step-N``; ``tensorboard/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.before = path / "eval-before.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.trained = path / "trained.json"
        self.ticket = path / "ticket.safetensors"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.tensorboard = path / "tensorboard"
        self.steps = StepLines(self.metrics)
        self.evaluations = StepLines(path / "eval.jsonl")
        self.samples = StepLines(path / "samples.jsonl")

    def problems(self, when: str) -> Path:
        """The per-problem results of the evaluation ``before`` or ``after`` training, or of what is ``shipped``."""
        return self.path / f"eval-{when}.jsonl"

    def holds_a_run(self) -> bool:
        return any(path.exists() for path in (self.config, self.metrics, self.result, self.ticket))

    def refuse_to_overwrite(self) -> None:
        """Raises ValueError where a new run would overwrite something."""
        if self.holds_a_run():
            raise ValueError(
                f"{self.path} already holds a run: choose another --output, or use --resume to continue it."
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: give a folder as --output.")

    @contextmanager
    def owned(self) -> Iterator[None]:
        """While it lasts, no other process writes this run. A process that is killed lets go of it.

        Raises ValueError where another one has it, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"Cannot write the run folder {self.path}: {error.strerror}.") from None
        try:
            _lock(handle, self.path)
            yield
        finally:
            os.close(handle)

    def create(self, config: RunConfig) -> None:
        """Make the folder with its settings. Raises ValueError where it cannot be written."""
        try:
            write_json(self.config, config.model_dump(mode="json"))
        except OSError as error:
            raise ValueError(f"Cannot write the run folder {self.path}: {error.strerror}.") from None

    def take_back(self) -> None:
        """Remove what `create` made, the base's scores and a folder that is empty then: the run could not begin."""
        for file in (self.config, self.problems("before"), self.before):
            file.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def read_config(self) -> RunConfig:
        """The settings the run was started with. Raises ValueError if there is no run."""
        if not self.config.exists():
            raise ValueError(f"{self.path} holds no run to resume: start one without --resume.")
        return build(read_json(self.config))

    def read_result(self) -> dict[str, Any] | None:
        """What the finished run reported, or None."""
        return read_json(self.result) if self.result.exists() else None

    def read_trained(self, config: RunConfig) -> dict[str, Any] | None:
        """What the training with these settings came to, where all of it is done and what it made is there."""
        if not self.trained.exists():
            return None
        told = read_json(self.trained)
        whole = told["steps"] == config.steps and (config.stop_on_collapse or told["stopped"] is None)
        if not whole or not (self.path / told["file"]).exists():
            return None
        return {**told, "earlier_s": told["train_s"]}

    def go_back_to(self, step: int) -> None:
        """Leave the folder as it was when `step` was done: what came later will be done again."""
        for lines in (self.steps, self.evaluations, self.samples):
            lines.cut_after(step)
        self.trained.unlink(missing_ok=True)
        self.remove_half_written()

    def remove_half_written(self) -> None:
        """Remove what a kill left: temporary files and partial checkpoints."""
        self.checkpoints.remove_partial()
        shutil.rmtree(self.path / _PARTIAL_MODEL, ignore_errors=True)
        for path in self.path.glob(".*"):
            if path.is_file() and path.name.startswith(_TEMPORARY):
                path.unlink()

    @contextmanager
    def replacing_model(self) -> Iterator[Path]:
        """A folder to write a whole model into, which becomes ``model/`` when the block ends without an error."""
        partial = self.path / _PARTIAL_MODEL
        shutil.rmtree(partial, ignore_errors=True)
        try:
            yield partial
            shutil.rmtree(self.model, ignore_errors=True)
            os.replace(partial, self.model)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another process is writing the run in {path}: wait until it is done, or give another --output."
        ) from None
    except OSError:  # nor on this file system
        return


_PARTIAL_MODEL = ".model.partial"
_TEMPORARY = (
    ".config.json.",
    ".result.json.",
    ".trained.json.",
    ".ticket.safetensors.",
    ".eval-before.json",
    ".eval-after.json",
    ".eval-shipped.json",
)
"""How the names of files begin that are not yet whole (files.py and ticket/atomic.py name them so)."""


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
    return StepLines(path).read()
