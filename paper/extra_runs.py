"""Runs that an analysis needs beside a study's own: with its settings, and none done twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from multiticket.config import WATCHING, RunConfig, build, read_settings
from multiticket.research.study.chosen_rate import read_choice, weigh
from multiticket.research.study.grid import Study, load
from multiticket.research.study.runner import ERROR
from multiticket.research.study.study_run import StudyRun, identity, merged
from multiticket.research.study.study_worker import work_for
from multiticket.runs.folder import RunFolder

LIKE = ("arm", "method", "density", "grpo")
"""Settings that runs of one rate share, beside task and base."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ExtraRuns:
    """Settings of a study, its finished runs, and a folder for more runs."""

    def __init__(self, study_file: Path, study_folder: Path | None, output: Path) -> None:
        """
        Args:
            study_folder: the runs of the study; None: there are none, so that all runs are done here.

        Raises:
            ValueError: the study cannot be read, or there is no such folder.
        """
        if study_folder is not None and not study_folder.is_dir():
            raise ValueError(f"There is no folder {study_folder} with a study's runs.")
        self.study: Study = load(study_file)
        self.output = output
        self._folder = study_folder
        self._content = read_settings(study_file)
        self._finished: list[tuple[RunConfig, Path]] | None = None

    def settings(self, task: str, rates_of: str | None = None, slower: float = 1, **own: Any) -> RunConfig:
        """A run's settings: those that all runs of the study and of the task have, and `own`.

        The rate, where `own` has none, is the one that the study chose for the arm, or the usual one.

        Args:
            rates_of: the task whose settings and rates these are, for a task that the study does not have.
            slower: what the rate is divided by.
        """
        like = rates_of or task
        shared = merged(
            self._content.get("settings") or {}, (self._content.get("tasks") or {}).get(like) or {}
        )
        config = build({**merged(shared, own), "task": task})
        if "learning_rate" in own:
            return config
        rate = self.chosen_rate(like, config) or config.usual_rate
        return config.model_copy(update={"learning_rate": float(f"{rate / slower:.6g}")})

    def chosen_rate(self, task: str, config: RunConfig) -> float | None:
        """The rate that a sweep of the study chose for a task and an arm; None where it has none, or is not done.

        A run that starts from a checkpoint of its own, such as a merged one, takes the rate of any base.
        """
        if self._folder is None:
            return None
        swept = [run for run in self.study.runs if run.choice is not None and run.config.task == task]
        bases = {run.config.model for run in swept}
        for run in swept:
            assert run.choice is not None
            alike = all(getattr(run.config, name) == getattr(config, name) for name in LIKE)
            if alike and (run.config.model == config.model or config.model not in bases):
                made = read_choice(self._folder, run.choice) or weigh(self._folder, run.choice)
                if made is not None:
                    return float(made["learning_rate"])
        return None

    def done(self, config: RunConfig, checkpoints: int = 0) -> Path | None:
        """A finished run of the study that learned with these settings; None if there is none, or only its results.

        Args:
            checkpoints: how many of them must be there still.
        """
        if self._finished is None:
            self._finished = [] if self._folder is None else finished_runs(self._folder)
        wanted = learned_with(config)
        for found, path in self._finished:
            run = RunFolder(path)
            made = {"full": run.model, "lora": run.adapter, "ticket": run.ticket}[found.arm]
            if (
                learned_with(found) == wanted
                and made.exists()
                and len(run.checkpoints.steps()) >= checkpoints
            ):
                return path
        return None

    def do(
        self,
        wanted: Mapping[str, RunConfig],
        jobs: int,
        say: Callable[[str], None],
        checkpoints: int = 0,
    ) -> dict[str, Path]:
        """The folders of finished runs by the names in `wanted`: those of the study, and others done here.

        `jobs` processes with one thread each do what is missing; what was interrupted goes on.

        Raises:
            ValueError: a run failed; the sentence says which, and why.
        """
        places = {name: self.done(config, checkpoints) for name, config in wanted.items()}
        missing = {
            name: StudyRun(f"{_plain(name)}-{identity(config)}", config)
            for name, config in wanted.items()
            if places[name] is None
        }
        for name, path in places.items():
            say(f"{name}: {'to be done' if path is None else 'of the study'}")
        todo = tuple({run.name: run for run in missing.values()}.values())
        perform_all(self.output, todo, jobs)
        for name, run in missing.items():
            path = self.output / run.name
            if RunFolder(path).read_result() is None:
                error = path / ERROR
                reason = (
                    error.read_text(encoding="utf-8").splitlines()[0] if error.exists() else "it was stopped"
                )
                raise ValueError(f"The run {run.name} is not finished: {reason.rstrip('.')}.")
            places[name] = path
        return {name: path for name, path in places.items() if path is not None}


def finished_runs(folder: Path) -> list[tuple[RunConfig, Path]]:
    """Settings and place of every finished run in a folder of run folders, by name."""
    found = []
    for path in sorted(folder.iterdir()):
        run = RunFolder(path)
        if run.result.exists() and run.config.exists():
            found.append((run.read_config(), path))
    return found


def learned_with(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what a finished run has learned, as plain JSON."""
    return config.model_dump(mode="json", exclude={*WATCHING, "save_every"})


def perform_all(folder: Path, runs: tuple[StudyRun, ...], jobs: int) -> None:
    """Do what is missing, with `jobs` processes of one thread each."""
    left = [run for run in runs if not RunFolder(folder / run.name).result.exists()]
    if not left:
        return
    folder.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        workers = [
            context.Process(target=work_for, args=(os.getpid(), folder, left))
            for _ in range(min(jobs, len(left)))
        ]
        for worker in workers:
            worker.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)
