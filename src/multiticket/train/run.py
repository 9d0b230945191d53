"""One RLVR run from settings to result: measure the base, train, keep what was trained, measure that."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from multiticket import tasks
from multiticket.config import WATCHING, RunConfig
from multiticket.evaluate.evaluation import Evaluation
from multiticket.models import name_and_revision
from multiticket.runs.disk import explained
from multiticket.runs.files import write_json
from multiticket.runs.folder import RunFolder
from multiticket.runs.progress import RunProgress
from multiticket.runs.versions import versions
from multiticket.tasks.score_function import ScoreFails
from multiticket.train.allocator import keep_freed_memory
from multiticket.train.callbacks.interrupt import RunInterrupted, StopNow, StopSignals
from multiticket.train.evaluations import evaluate_kept, evaluate_start
from multiticket.train.result import result_of
from multiticket.train.session import Session
from multiticket.train.setup import Setup, set_up


def run_training(
    config: RunConfig,
    output: Path,
    resume: bool = False,
    show_progress: bool = True,
    verbose: bool = False,
    measured: dict[str, Evaluation] | None = None,
) -> dict[str, Any]:
    """Train one arm and measure it; everything it makes lies in `output` (see :class:`RunFolder`).

    The same settings on the same machine give the same ticket, bit for bit, also when the run was
    interrupted and resumed from a checkpoint.

    Args:
        resume: continue the run in `output` from its newest checkpoint, also to more steps than it was started
            for; return its result if it has them all.
        measured: evaluations of the bases of earlier runs, by what decides them; a base found here is not evaluated
            again, and one that is not is added. For runs that follow one another while their bases stay as they are.

    Returns:
        what ``result.json`` holds. A run that collapsed has ``stopped`` in it, and keeps what it had learned before.

    Raises:
        ValueError: for a user's mistake; nothing is written then. Also where the disk does not take what is to be
            written; the run can be resumed then.
        RunInterrupted: SIGTERM or SIGINT came while it trained; a checkpoint of the last step was saved.
    """
    _refuse_several_processes()
    folder = RunFolder(output)
    task = tasks.get(config.task)
    if not resume:
        folder.refuse_to_overwrite()
    elif (finished := _finished(folder, config)) is not None:
        return finished

    keep_freed_memory()
    started = time.monotonic()
    known = {} if measured is None else measured
    with RunProgress(output.name, config.steps, show_progress) as progress:
        run = set_up(config, folder, task, progress)
        folder.create(config)
        with explained(folder), StopSignals() as signals:
            try:
                before = _start(run, signals, known, resume)
                trained = _train(run, signals, resume, verbose)
                after = _measure(run, signals, before)
                return _report(run, before, trained, after, started)
            except StopNow:
                raise RunInterrupted(signals.received or signal.SIGINT, None, output) from None


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "A run folder is written by one process, and this is one of several: for several GPUs give the attached "
            "model to RLVRTrainer (or TRL's GRPOTrainer) in a script of your own."
        )


def _finished(folder: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """The result of the run that is to be resumed, where it has taken all steps already."""
    folder.read_config()
    result = folder.read_result()
    if result is None:
        return None
    stopped = result.get("stopped")
    if stopped and config.stop_on_collapse:
        raise ValueError(
            f"The run in {folder.path} stopped at step {stopped['step']} because {stopped['reason']}: start another "
            "with a lower learning rate, or go on all the same with --no-stop-on-collapse."
        )
    return result if result["steps"] >= config.steps and not stopped else None


def _start(run: Setup, signals: StopSignals, known: dict[str, Evaluation], resume: bool) -> dict[str, Any]:
    """Measure what the run starts from; a task that cannot score leaves no run behind."""
    run.folder.result.unlink(missing_ok=True)  # of fewer steps, if there is one
    try:
        with signals.measuring():
            return evaluate_start(run, known)
    except ScoreFails:
        if not resume:
            run.folder.take_back()
        raise


def _train(run: Setup, signals: StopSignals, resume: bool, verbose: bool) -> dict[str, Any]:
    """Take the steps that are missing, and keep what was trained before anything else is done with it."""
    trained = run.folder.read_trained(run.config) if resume else None
    if trained is None:
        session = Session(run, signals, verbose)
        collapsed = session.train()
        signals.follow(run.folder.path)
        stopped = session.back_to_before(collapsed) if collapsed is not None else None
        trained = {
            "steps": run.config.steps,
            "file": keep(run, stopped).name,
            "learning_rate": run.learning_rate,
            "stopped": stopped,
            "train_s": session.seconds,
            "earlier_s": session.seconds_before,
        }
        write_json(run.folder.trained, trained)
    run.folder.remove_half_written()
    return trained


def keep(run: Setup, stopped: dict[str, Any] | None) -> Path:
    """Write what was trained: a ticket, an adapter, or the whole model as a plain checkpoint."""
    settings = run.config.model_dump(mode="json", exclude={*WATCHING})
    settings["learning_rate"] = run.learning_rate
    settings["model"], revision = name_and_revision(run.config.model, run.prepared.model)
    settings |= {"revision": revision} if revision is not None else {}
    if stopped is not None:
        settings |= {"steps": stopped["kept_step"], "stopped": stopped}
    return run.prepared.keep(run.folder, run.tokenizer, settings | {"versions": versions()})


def _measure(run: Setup, signals: StopSignals, before: dict[str, Any]) -> dict[str, Any]:
    with signals.measuring():
        return evaluate_kept(run, before)


def _report(
    run: Setup, before: dict[str, Any], trained: dict[str, Any], after: dict[str, Any], started: float
) -> dict[str, Any]:
    """Write the result; nothing is left to be told then."""
    result = result_of(run, before, trained, after, started)
    write_json(run.folder.result, result)
    run.folder.trained.unlink()
    return result
