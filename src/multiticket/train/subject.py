"""What ``multiticket eval`` measures: a base, a base with a ticket, or a run's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multiticket.train.quiet import hush, hush_loaded

hush()

from multiticket import tasks  # noqa: E402
from multiticket.config import RunConfig  # noqa: E402
from multiticket.sparse import attach  # noqa: E402
from multiticket.ticket import Ticket  # noqa: E402
from multiticket.train.arms import build_mask, with_adapter  # noqa: E402
from multiticket.train.evaluation import Evaluation, evaluate  # noqa: E402
from multiticket.train.models import load_model  # noqa: E402
from multiticket.train.run_folder import RunFolder  # noqa: E402
from multiticket.train.trainer import VALUES_FILE, load_values  # noqa: E402


def measure(
    config: RunConfig,
    model: str | None,
    ticket: Path | None,
    checkpoint: Path | None,
    task: str | None,
    verbose: bool = False,
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation of one subject, and what it was: model, task and where the trained values came from.

    Args:
        config: gives the dtype (not for a checkpoint, whose run says) and how to measure.
        model: the base; None: the one that the ticket or the run names, else ``tiny-qwen2``.
        task: None: the ticket's or the run's, else ``arithmetic``.
    """
    if not verbose:
        hush_loaded()
    if checkpoint is not None:
        return _measure_checkpoint(config, checkpoint, task)
    loaded = Ticket.load(ticket) if ticket is not None else None
    told = dict(loaded.provenance) if loaded is not None else {}
    model = model or told.get("model") or "tiny-qwen2"
    chosen = tasks.get(task or told.get("task") or "arithmetic")
    base, tokenizer = load_model(model, config.dtype)
    about = {"model": model, "task": chosen.name}
    if loaded is None:
        return evaluate(base, tokenizer, chosen, config.eval), about
    with loaded.applied(base):
        return evaluate(base, tokenizer, chosen, config.eval), {**about, "ticket": str(ticket)}


def _measure_checkpoint(
    config: RunConfig, checkpoint: Path, task: str | None
) -> tuple[Evaluation, dict[str, Any]]:
    run = RunFolder(checkpoint.resolve().parent.parent)
    if not checkpoint.is_dir() or not run.config.exists():
        raise ValueError(f"{checkpoint} is not a checkpoint: give a run's checkpoints/step-N folder.")
    started = run.read_config()
    chosen = tasks.get(task or started.task)
    about = {"model": started.model, "task": chosen.name, "checkpoint": str(checkpoint)}
    if started.arm == "full":
        model, tokenizer = load_model(str(checkpoint), started.dtype)
    elif started.arm == "lora":
        base, tokenizer = load_model(started.model, started.dtype)
        model = with_adapter(base, checkpoint)
    else:
        model, tokenizer = load_model(started.model, started.dtype)
        load_values(attach(model, build_mask(model, started, tokenizer)), checkpoint / VALUES_FILE)
    return evaluate(model, tokenizer, chosen, config.eval, started.max_completion_tokens), about
