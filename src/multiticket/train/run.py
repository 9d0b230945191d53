"""One RLVR run from settings to result: measure the base, train, keep what was trained, measure that."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from multiticket import tasks
from multiticket.bases import dequantised_from
from multiticket.config import WATCHING, RunConfig
from multiticket.models import name_and_revision
from multiticket.runs.disk import explained
from multiticket.runs.files import write_json
from multiticket.runs.folder import RunFolder
from multiticket.runs.measured_bases import MeasuredBases
from multiticket.runs.progress import RunProgress
from multiticket.runs.ranks import StopNow, join
from multiticket.runs.versions import versions
from multiticket.tasks.score_function import ScoreFails
from multiticket.train.allocator import give_back_freed_memory, keep_freed_memory
from multiticket.train.callbacks.interrupt import RunInterrupted, StopSignals
from multiticket.train.evaluations import evaluate_kept, evaluate_start
from multiticket.train.peak_memory import PEAK
from multiticket.train.result import result_of
from multiticket.train.session import Session
from multiticket.train.setup import Setup, set_up


def run_training(
    config: RunConfig,
    output: Path,
    resume: bool = False,
    show_progress: bool = True,
    verbose: bool = False,
    bases: Path | None = None,
) -> dict[str, Any]:
    """Train one arm and measure it; everything it makes lies in `output` (see :class:`RunFolder`).

    The same settings on the same machine give the same ticket, bit for bit, also when the run was
    interrupted and resumed from a checkpoint.

    Where a launcher (``torchrun``, ``accelerate launch``) has started several processes, all call this with the same
    arguments and share the work; the first one writes.

    Args:
        resume: continue the run in `output` from its newest checkpoint, also to more steps than it was started
            for; return its result if it has them all.
        bases: a folder of what other runs' bases scored; a base found there is not evaluated again, and one that is
            not is added. For runs that begin from the same base while that stays as it is.

    Returns:
        what ``result.json`` holds. A run that collapsed has ``stopped`` in it, and keeps what it had learned before.

    Raises:
        ValueError: for a user's mistake; nothing is written then. Also where the disk does not take what is to be
            written; the run can be resumed then.
        RunInterrupted: SIGTERM or SIGINT came while it trained; a checkpoint of the last step was saved.
    """
    ranks = join()
    folder = RunFolder(output)
    with ranks.together():
        task = tasks.get(config.task)
    finished = ranks.by_first(lambda: _finished(folder, config, resume))
    if finished is not None:
        return finished

    keep_freed_memory()
    gc.collect()  # what an earlier run of this process had
    give_back_freed_memory()
    PEAK.forget()
    started = time.monotonic()
    known = None if bases is None else MeasuredBases(bases)
    progress = RunProgress(output.name, config.steps, show_progress and ranks.first)
    with ExitStack() as owned, progress:
        with ranks.together():
            run = set_up(config, folder, task, progress, ranks)
        ranks.by_first(lambda: _own(owned, folder, config, resume))
        with ranks.together():
            _see(folder)
        with explained(folder), StopSignals(ranks) as signals:
            try:
                before = _start(run, signals, known, resume)
                trained = _train(run, signals, resume, verbose)
                scores = _measure(run, signals, before)
                return _report(run, scores, trained, started)
            except StopNow as stop:
                signals.take(stop)
                raise RunInterrupted(signals.received or signal.SIGINT, None, output) from None


def _finished(folder: RunFolder, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The result of the run that is to be resumed, where it has taken all steps already."""
    if not resume:
        folder.refuse_to_overwrite()
        return None
    folder.read_config()
    result = folder.read_result()
    if result is None:
        return None
    stopped = result.get("stopped")
    if stopped and config.stop_on_collapse:
        raise ValueError(
            f"The run in {folder.path} stopped at step {stopped['step']} because {stopped['reason']}: start "
            "another with a lower learning rate, or continue anyway with --no-stop-on-collapse."
        )
    return result if result["steps"] >= config.steps and not stopped else None


def _own(owned: ExitStack, folder: RunFolder, config: RunConfig, resume: bool) -> None:
    """Take the folder for this process alone; another may have begun a run in it since that was looked at."""
    owned.enter_context(folder.owned())
    if not resume:
        folder.refuse_to_overwrite()
    folder.create(config)


def _see(folder: RunFolder) -> None:
    """Raises ValueError where this process does not see what the first one has written."""
    if not folder.config.exists():
        raise ValueError(
            f"The folder {folder.path} is not the same for all processes: give an --output that all machines share."
        )


def _start(run: Setup, signals: StopSignals, known: MeasuredBases | None, resume: bool) -> dict[str, Any]:
    """Measure what the run starts from; a task that cannot score leaves no run behind."""
    run.ranks.by_first(lambda: run.folder.result.unlink(missing_ok=True))  # of fewer steps, if there is one
    with _or_no_run(run, resume, ScoreFails), signals.measuring():
        return evaluate_start(run, known)


@contextmanager
def _or_no_run(run: Setup, resume: bool, error: type[ValueError]) -> Iterator[None]:
    """Where a new run cannot begin, because of such an error, it leaves nothing behind."""
    try:
        yield
    except error:
        if not resume:
            run.ranks.by_first(run.folder.take_back)
        raise


def _train(run: Setup, signals: StopSignals, resume: bool, verbose: bool) -> dict[str, Any]:
    """Take the steps that are missing, and keep what was trained before anything else is done with it."""
    folder, ranks = run.folder, run.ranks
    trained = ranks.by_first(lambda: folder.read_trained(run.config) if resume else None)
    if trained is None:
        with _or_no_run(run, resume, ValueError):  # what TRL refuses of this model
            session = Session(run, signals, verbose)
        about = ranks.by_first(lambda: known_before(run))
        collapsed = session.train()
        signals.follow(folder.path)
        stopped = session.back_to_before(collapsed) if collapsed is not None else None
        weights = session.trainer.whole_weights() if run.prepared.attachment is None else None
        told = {
            "steps": run.config.steps,
            "file": ranks.by_first(
                lambda: keep(run, about, stopped, weights, session.metrics.no_signal).name
            ),
            "learning_rate": run.learning_rate,
            "no_signal": session.metrics.no_signal,
            "failures": session.metrics.failures,
            "stopped": stopped,
            "train_s": session.seconds,
            "earlier_s": session.seconds_before,
        }
        ranks.by_first(lambda: write_json(folder.trained, told))
        trained = told
    ranks.by_first(folder.remove_half_written)
    return trained


def known_before(run: Setup) -> dict[str, Any]:
    """What is told of the run beside its settings: its base and the libraries, worked out before a step is taken."""
    model, revision = name_and_revision(run.config.model, run.prepared.model)
    origin = dequantised_from(run.config.model)
    told = {"model": model, "revision": revision, "dequantised_from": origin, "versions": versions()}
    return {name: value for name, value in told.items() if value is not None}


def keep(
    run: Setup,
    about: dict[str, Any],
    stopped: dict[str, Any] | None,
    weights: dict[str, Any] | None = None,
    no_signal: float | None = None,
) -> Path:
    """Write what was trained: a ticket, an adapter, or the whole model as a plain checkpoint.

    Nothing is looked up here: what fails after the training must not lose it.

    Args:
        about: what was `known_before` the training.
        weights: the model's, where the processes share them.
        no_signal: share of the groups of all steps whose rewards were equal.
    """
    settings = run.config.model_dump(mode="json", exclude={*WATCHING})
    if run.learning_rate is not None:
        settings["learning_rate"] = run.learning_rate
    if no_signal is not None:
        settings["no_signal"] = no_signal
    if stopped is not None:
        settings |= {"steps": stopped["kept_step"], "stopped": stopped}
    return run.prepared.keep(run.folder, run.tokenizer, settings | about, weights)


def _measure(run: Setup, signals: StopSignals, before: dict[str, Any]) -> dict[str, Any]:
    run.prepared.let_go()  # what was kept is read back into a fresh model
    gc.collect()  # the trainer, and the optimiser's moments with it
    give_back_freed_memory()
    PEAK.take()
    with signals.measuring():
        return evaluate_kept(run, before)


def _report(run: Setup, scores: dict[str, Any], trained: dict[str, Any], started: float) -> dict[str, Any]:
    """Write the result; nothing is left to be told then."""
    everywhere = run.ranks.gather({"evaluation": PEAK.take(), "run": PEAK.most()})
    peak = {name: max(held[name] or 0 for held in everywhere) or None for name in everywhere[0]}

    def write() -> dict[str, Any]:
        result = result_of(run, scores, trained, started, peak)
        write_json(run.folder.result, result)
        run.folder.trained.unlink()
        return result

    return run.ranks.by_first(write)
