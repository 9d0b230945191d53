"""What ``multiticket eval`` measures: a base, a base with a ticket or an adapter, or a run's checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from multiticket import arms, tasks
from multiticket.arms.adapter import adapter_base, with_adapter
from multiticket.config import EvalConfig, RunConfig, folder_word
from multiticket.evaluate.evaluation import Evaluation, evaluate
from multiticket.models import load_model
from multiticket.runs.folder import RunFolder
from multiticket.tasks import Asking, asked
from multiticket.ticket import Ticket

Tell = Callable[[int, int, float], None]
Note = Callable[[str], None]
DEFAULT_MODEL, DEFAULT_TASK = "tiny-qwen2", "arithmetic"


@dataclass(frozen=True)
class Trained:
    """Where trained values are; at most one of the three."""

    ticket: Path | None = None
    adapter: Path | None = None
    checkpoint: Path | None = None

    def name(self) -> str | None:
        """``ticket``, ``adapter``, ``step-N``, or None for a base."""
        if self.checkpoint is not None:
            return self.checkpoint.resolve().name
        return "ticket" if self.ticket is not None else "adapter" if self.adapter is not None else None

    def run(self) -> RunFolder | None:
        """The run that these values are of, if they lie in its folder."""
        if self.checkpoint is not None:
            return RunFolder(self.checkpoint.resolve().parent.parent)
        place = self.ticket or self.adapter
        folder = RunFolder(place.resolve().parent) if place is not None else None
        return folder if folder is not None and folder.config.exists() else None


def measure(
    config: RunConfig,
    model: str | None,
    trained: Trained,
    task: str | None,
    tell: Tell | None = None,
    note: Note | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation of one subject, and what it was: model, task and where the trained values came from.

    Args:
        config: gives the dtype, where one was set, and how to measure. Else trained values are measured in the dtype in
            which they were trained, and a base in fp32.
        model: the base; None: the one that the ticket, the adapter or the run names, else ``tiny-qwen2``.
        task: None: the ticket's or the run's, else ``arithmetic``.
        tell: told now and then how many completions are over, of how many.
        note: told before that what the task's problems can decide.
    """
    if trained.checkpoint is not None:
        return _measure_checkpoint(config, trained.checkpoint, task, tell, note)
    if trained.adapter is not None:
        return _measure_adapter(config, model, trained, task, tell, note)
    loaded = Ticket.load(trained.ticket) if trained.ticket is not None else None
    told = loaded.told if loaded is not None else {}
    if loaded is not None and model is None and not isinstance(told.get("model"), str):
        raise ValueError("The ticket does not name its base; give it as MODEL.")
    revision = told.get("revision") if model is None else None
    model = model or told.get("model") or DEFAULT_MODEL
    chosen = tasks.get(task or told.get("task") or DEFAULT_TASK)
    dtype = _dtype(config, told)
    base, tokenizer = load_model(model, dtype, revision)
    about = {"model": model, "dtype": dtype, "task": chosen.name}
    chosen = asked(chosen, tokenizer, _asking(config, told if task is None else {}))
    if loaded is None:
        _note(chosen, config.eval, note)
        return evaluate(base, tokenizer, chosen, config.eval, config.max_completion_tokens, tell), about
    tokens = config.max_completion_tokens or (told.get("max_completion_tokens") if task is None else None)
    with loaded.applied(base):
        _note(chosen, config.eval, note)
        evaluation = evaluate(base, tokenizer, chosen, config.eval, tokens, tell)
    return evaluation, {**about, "ticket": str(trained.ticket)}


def _measure_adapter(
    config: RunConfig,
    model: str | None,
    trained: Trained,
    task: str | None,
    tell: Tell | None,
    note: Note | None,
) -> tuple[Evaluation, dict[str, Any]]:
    adapter, run = trained.adapter, trained.run()
    assert adapter is not None
    started = run.read_config() if run is not None else None
    model = model or (started.model if started is not None else adapter_base(adapter))
    chosen = tasks.get(task or (started.task if started is not None else DEFAULT_TASK))
    told = started.model_dump() if started is not None and task is None else {}
    tokens = config.max_completion_tokens or told.get("max_completion_tokens")
    dtype = _dtype(config, started.model_dump() if started is not None else {})
    base, tokenizer = load_model(model, dtype)
    chosen = asked(chosen, tokenizer, _asking(config, told))
    adapted = with_adapter(base, adapter)
    _note(chosen, config.eval, note)
    about = {"model": model, "dtype": dtype, "task": chosen.name, "adapter": str(adapter)}
    return evaluate(adapted, tokenizer, chosen, config.eval, tokens, tell), about


def _measure_checkpoint(
    config: RunConfig, checkpoint: Path, task: str | None, tell: Tell | None, note: Note | None
) -> tuple[Evaluation, dict[str, Any]]:
    run = RunFolder(checkpoint.resolve().parent.parent)
    if not checkpoint.is_dir() or not run.config.exists():
        raise ValueError(f"{checkpoint} is not a checkpoint: give a run's checkpoints/step-N folder.")
    started = run.read_config()
    chosen = tasks.get(task or started.task)
    dtype = _dtype(config, started.model_dump())
    about = {"model": started.model, "dtype": dtype, "task": chosen.name, "checkpoint": str(checkpoint)}
    model, tokenizer = arms.get(started.arm).read(checkpoint, started.model_copy(update={"dtype": dtype}))
    chosen = asked(chosen, tokenizer, _asking(config, started.model_dump() if task is None else {}))
    _note(chosen, config.eval, note)
    tokens = config.max_completion_tokens or started.max_completion_tokens
    return evaluate(model, tokenizer, chosen, config.eval, tokens, tell), about


def _note(task: Any, settings: EvalConfig, note: Note | None) -> None:
    if note is not None:
        for text in tasks.before_a_measurement(task, settings.split, settings.problems):
            note(text)


def _dtype(config: RunConfig, told: Mapping[str, Any]) -> str:
    """The one that was asked for, or else that of the training."""
    trained = told.get("dtype")
    known = get_args(RunConfig.model_fields["dtype"].annotation)
    return str(trained) if "dtype" not in config.model_fields_set and trained in known else config.dtype


def _asking(config: RunConfig, told: Mapping[str, Any]) -> Asking:
    """How the model is asked: as the command says, and else as in the training."""
    return config.asking.over(Asking.of(told))


def measure_kept(run: RunFolder, settings: RunConfig) -> Evaluation:
    """What a finished run kept, on the task of other settings, asked and measured as those say."""
    config = run.read_config()
    arm = arms.get(config.arm)
    return _as_asked(*arm.read(run.path / arm.kept, config), settings)


def measure_base(settings: RunConfig) -> Evaluation:
    """The base of such a run, on its task, asked and measured as the run does."""
    return _as_asked(*load_model(settings.model, settings.dtype), settings)


def _as_asked(model: Any, tokenizer: Any, settings: RunConfig) -> Evaluation:
    chosen = asked(tasks.get(settings.task), tokenizer, settings.asking)
    return evaluate(model, tokenizer, chosen, settings.eval, settings.max_completion_tokens)


def results_file(trained: Trained, task: str, settings: EvalConfig, dtype: str = "float32") -> Path | None:
    """Where the results of single problems are kept if nowhere else is said: in the run that was measured.

    The name tells all that the results depend on, so that the same name is the same measurement. None for what is
    of no run, or of one whose folder cannot be written.
    """
    run = trained.run()
    if run is None or not os.access(run.path, os.W_OK):
        return None
    problems = settings.problems or "all"
    words = [trained.name(), task, settings.split, f"{problems}x{settings.samples}"]
    words += [f"t{settings.temperature:g}", f"seed{settings.seed}"]
    words += [dtype] if dtype != "float32" else []
    name = "-".join(folder_word(str(word)) for word in words)
    return run.path / "evals" / f"{name}.jsonl"
