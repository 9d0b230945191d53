"""What the finished runs of a study say, as its questions need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig
from multiticket.evaluate.paired import Scores
from multiticket.evaluate.problem_results import Results, read_results, require_same_problems, scores
from multiticket.research.study.grid import Study
from multiticket.research.study.other_tasks import is_done, results_file
from multiticket.research.study.runner import ERROR
from multiticket.research.study.study_run import StudyRun
from multiticket.runs.folder import RunFolder, read_metrics


@dataclass(frozen=True)
class Finished:
    """One run with its result."""

    run: StudyRun
    folder: Path
    result: dict[str, Any]

    @cached_property
    def config(self) -> RunConfig:
        """The settings it was done with, the chosen rate among them."""
        return RunFolder(self.folder).read_config()

    @cached_property
    def problems(self) -> Results:
        return read_results(self.folder)

    def on_other_task(self, task: str) -> Results | None:
        """What it did on another task; None while that is not measured."""
        path = results_file(self.folder, task)
        return read_results(path) if path.exists() else None

    def base_on_other_task(self, task: str) -> Results | None:
        """What its base did on another task; None while that is not measured."""
        path = results_file(self.folder, task, "before")
        return read_results(path) if path.exists() else None

    @property
    def setting(self) -> tuple[str, str]:
        """What a comparison keeps fixed: task and base model."""
        return self.config.task, self.config.model

    def score(self, measure: str) -> float:
        """Accuracy after training, in [0, 1]."""
        return float(self.result["eval"]["after"][measure])

    def first_kl(self) -> float | None:
        """What the first step moved, in nats a completion; None where it was not measured."""
        lines = read_metrics(RunFolder(self.folder).metrics)
        if not lines or not lines[0].get("kl") or not lines[0].get("completion_length"):
            return None
        return float(lines[0]["kl"]) * float(lines[0]["completion_length"])


class Evidence:
    """A study's folder, read cell by cell."""

    def __init__(self, study: Study, folder: Path, command: str, report: Path | None = None) -> None:
        self.study = study
        self.folder = folder
        self.command = command
        """What did the runs."""
        self.report = report or folder / "report"
        """Where the table of runs is to lie, for the commands that do one again."""

    def finished(self, runs: Iterable[StudyRun]) -> list[Finished]:
        """Those of `runs` that have a result, in their order."""
        found = []
        for run in runs:
            path = self.folder / run.name
            result = RunFolder(path).read_result()
            if result is not None:
                found.append(Finished(run, path, result))
        return found

    def scored(self, label: str) -> list[Finished]:
        """The finished runs of a cell; also those that are yet to be measured on other tasks."""
        return self.finished(self.study.cell(label).runs)

    def progress(
        self, labels: Iterable[str], other_tasks: bool = False, reference: str | None = None
    ) -> tuple[int, int]:
        """How many runs of some cells are finished, their sweeps included, and how many there are.

        Args:
            other_tasks: count a run only when it is measured on its other tasks too.
            reference: the label of what the other cells are compared with: of its runs those count that are on a task
                and base of theirs.
        """
        every = {label: self._all(label) for label in labels}
        settings = {
            (run.config.task, run.config.model)
            for label, runs in every.items()
            if label != reference
            for run in runs
        }
        runs = {
            run.name: run
            for label, own in every.items()
            for run in own
            if label != reference or not settings or (run.config.task, run.config.model) in settings
        }
        finished = self.finished(runs.values())
        done = [one for one in finished if not other_tasks or is_done(self.folder, one.run)]
        return len(done), len(runs)

    def failures(self, labels: Iterable[str]) -> list[tuple[str, str]]:
        """The names of runs whose last try ended in an error, and what it said."""
        runs = {run.name: run for label in labels for run in self._all(label)}
        errors = [(name, self.folder / name / ERROR) for name in runs]
        return [
            (name, path.read_text(encoding="utf-8").splitlines()[0]) for name, path in errors if path.exists()
        ]

    def _all(self, label: str) -> Sequence[StudyRun]:
        cell = self.study.cell(label)
        return (*cell.sweep, *cell.runs)


def by(runs: Iterable[Finished], key: Callable[[Finished], Any]) -> dict[Any, list[Finished]]:
    """Runs in groups, in the order in which the groups first appear."""
    groups: dict[Any, list[Finished]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def problem_scores(results: Sequence[Results], measure: str, like: Results) -> Scores:
    """(runs, problems) of a measure, on the same problems as `like`'s.

    Raises:
        ValueError: they were measured on others, or otherwise.
    """
    for one in results:
        require_same_problems(like, one)
    return scores(results, measure)


def way(run: Finished) -> str:
    """The way of training that a run is one of: all but its seeds, its part and its rate."""
    said = run.config.facts.way(run.config, run.result)
    optim = run.config.grpo.get("optim")
    return f"{said}, {optim}" if optim else said


def mask_name(config: RunConfig) -> str:
    """The mask that a ticket's run trains."""
    return f"seed {config.seed}" + (f", part {config.part}" if config.part else "")


def percentage(share: float) -> str:
    """``0.05 %``."""
    return f"{100 * share:.6g} %"


def setting_name(setting: tuple[str, str]) -> str:
    """Task and base as people read them."""
    task, model = setting
    return f"{task}, {Path(model).name}"
