"""Do a study's runs: each by whoever holds its lock, finished ones skipped, interrupted ones resumed.

The state of a study is its folder and nothing else. A run that has a ``result.json`` is done. A run that somebody works
on is locked by the operating system, which lets go when the process dies, however it dies; so any number of processes
can share a folder, and nobody has to clean up after one that was killed.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from multiticket.research.study.chosen_rate import settled
from multiticket.research.study.other_tasks import BASES, is_done, measure_on_other_tasks
from multiticket.research.study.study_run import StudyRun
from multiticket.runs.folder import RunFolder, read_metrics

LOCKS = "locks"
ERROR = "error.txt"
STATES = ("done", "running", "failed", "waiting")


@dataclass(frozen=True)
class RunState:
    """Where one run stands."""

    run: StudyRun
    state: str
    """``done``, ``running``, ``failed`` (its last try ended in an error, kept in error.txt) or ``waiting``."""
    step: int
    """Optimiser steps done."""
    seconds: float
    """Of training so far."""


@contextmanager
def claimed(folder: Path, run: StudyRun) -> Iterator[bool]:
    """Whether the run is ours until the block ends; False while another process has it."""
    path = folder / LOCKS / f"{run.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def state_of(folder: Path, run: StudyRun) -> RunState:
    """Read from the run's folder and lock; changes nothing."""
    run_folder = RunFolder(folder / run.name)
    lines = read_metrics(run_folder.metrics)
    step, seconds = (int(lines[-1]["step"]), float(lines[-1]["time"])) if lines else (0, 0.0)
    with claimed(folder, run) as free:
        if is_done(folder, run):
            state = "done"
        elif not free:
            state = "running"
        else:
            state = "failed" if (run_folder.path / ERROR).exists() else "waiting"
    return RunState(run, state, step, seconds)


def perform(folder: Path, run: StudyRun) -> bool:
    """Do one run, or go on with it, unless it is done or another process has it; whether it was done here.

    A run waits until its learning rate has been chosen. An error ends the run, not the study: its text is kept in the
    run's folder, and the next ``study run`` tries again. What a base scored is kept for the runs that begin from it.

    Raises:
        RunInterrupted: the process was asked to stop; the run can go on from a checkpoint.
    """
    from multiticket.train.callbacks.interrupt import RunInterrupted
    from multiticket.train.run import run_training

    path = folder / run.name
    with claimed(folder, run) as ours:
        if not ours or is_done(folder, run):
            return False
        try:
            config = settled(folder, run)
            if config is None:
                return False
            (path / ERROR).unlink(missing_ok=True)
            if not RunFolder(path).result.exists():
                run_training(
                    config,
                    path,
                    resume=RunFolder(path).config.exists(),
                    show_progress=False,
                    bases=folder / BASES,
                )
            measure_on_other_tasks(folder, run)
        except RunInterrupted:
            raise
        except Exception as error:
            path.mkdir(parents=True, exist_ok=True)
            (path / ERROR).write_text(
                f"{error}\n\n{''.join(traceback.format_exception(error))}", encoding="utf-8"
            )
            return False
        return True


def work(folder: Path, runs: Sequence[StudyRun], pause: float = 2.0) -> int:
    """Go through all runs, doing what nobody else does; how many were done here.

    Then again, with `pause` seconds before each look, while something can still come to be done here: runs whose rate
    others are about to decide, or that another process left undone. A run that fails is not tried twice.
    """
    done, left = 0, list(runs)
    while left:
        before = done
        for run in left:
            done += perform(folder, run)
        left = to_come(folder, runs)
        if left and done == before:
            time.sleep(pause)
    return done


def to_come(folder: Path, runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs that nobody does and that can be done, now or when the runs that decide their rate are done."""
    states = {run.name: state_of(folder, run).state for run in runs}
    return [
        run
        for run in runs
        if states[run.name] == "waiting"
        and not (run.choice and any(states[one.name] == "failed" for one in run.choice.sweep))
    ]


def time_left(states: Sequence[RunState], workers: int) -> float | None:
    """Seconds until all is done, from the pace of the steps so far; None before the first ones.

    A step's time is taken from the runs of the same task, whose steps cost alike, where there are any.
    """
    paces: dict[str, list[float]] = {}
    for state in states:
        if state.step:
            paces.setdefault(state.run.config.task, []).append(state.seconds / state.step)
    if not paces:
        return None
    overall = [pace for found in paces.values() for pace in found]
    left = 0.0
    for state in states:
        if state.state in ("waiting", "running"):
            found = paces.get(state.run.config.task, overall)
            left += (state.run.config.steps - state.step) * sum(found) / len(found)
    return left / max(1, workers)
