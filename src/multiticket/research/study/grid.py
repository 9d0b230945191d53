"""A study file: settings that runs share, cells whose lists multiply out to runs, and what is asked of them.

    name: sparsity
    settings: {task: arithmetic, eval: {problems: 256}}
    tasks: {arithmetic: {steps: 100}}
    cells:
      - {label: full, arm: full, training_seed: [0, 1, 2], choose: {learning_rate: [1e-4, 3e-4], training_seed: 100}}
      - {label: sparse, density: [0.1, 0.01, 0.001], learning_rate: auto, seed: [0, 1, 2]}
    questions:
      - {name: sparse-enough, kind: density, reference: full, cell: sparse, claim: A tenth of a percent is enough}

is 2 + 3 and 9 runs. `settings` are those of all runs, `tasks` those of all runs of a task, and a cell's go before both.
A run's name says what its cell sets, and ends in a hash of all its settings, so that one name is always one run,
whatever else the file holds. `choose` is a sweep (`study/sweep.py`); `also` names
other tasks on which a cell's runs are measured in the end; a question is answered by ``multiticket study
report`` (`study/questions.py` says how it is asked).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig, build, read_settings
from multiticket.research.study.questions import Question, read_questions
from multiticket.research.study.study_run import StudyRun, expand, identity, merged, run_name
from multiticket.research.study.sweep import CHOOSE, chosen_run

KEYS = ("name", "title", "settings", "tasks", "cells", "questions")
LABEL, ALSO = "label", "also"


@dataclass(frozen=True)
class Cell:
    """The runs of one entry of a study's `cells`."""

    label: str
    """What questions call it; ``cell 3`` for the third one where it has no label."""
    runs: tuple[StudyRun, ...]
    """What is scored."""
    sweep: tuple[StudyRun, ...] = ()
    """What chooses their rate, where the cell has a sweep."""


@dataclass(frozen=True)
class Study:
    """A named list of runs, in the order they are to be done."""

    name: str
    runs: tuple[StudyRun, ...]
    cells: tuple[Cell, ...] = ()
    questions: tuple[Question, ...] = ()
    title: str = ""

    def cell(self, label: str) -> Cell:
        """The cell of a label that a question names."""
        return next(cell for cell in self.cells if cell.label == label)


def load(path: Path) -> Study:
    """The study in a YAML file.

    Raises:
        ValueError: the file cannot be read, has other keys than those of `KEYS`, a run in it has a setting that cannot
            be right, or a question asks what cannot be answered; the sentence names the cell or the question.
    """
    return build_study(read_settings(path), default_name=path.stem, folder=path.parent)


def build_study(content: Mapping[str, Any], default_name: str = "study", folder: Path = Path()) -> Study:
    """The study that ``content`` describes, its runs in the order of the cells, the last list running fastest.

    A cell's sweep comes before the runs that it chooses for.

    Args:
        folder: where the paths of records that questions name begin.
    """
    unknown = set(content) - set(KEYS)
    if unknown:
        raise ValueError(f"A study has {', '.join(KEYS)}, not {sorted(unknown)[0]!r}.")
    shared, given = content.get("settings") or {}, content.get("cells")
    if not isinstance(shared, Mapping):
        raise ValueError("settings must be a mapping of settings that all runs share.")
    if not isinstance(given, list) or not given or not all(isinstance(cell, Mapping) for cell in given):
        raise ValueError("cells must be a list of mappings, such as - {arm: ticket, seed: [0, 1, 2]}.")
    tasks = content.get("tasks") or {}
    if not isinstance(tasks, Mapping) or not all(isinstance(one, Mapping) for one in tasks.values()):
        raise ValueError("tasks must give each task's settings, such as tasks: {arithmetic: {steps: 100}}.")
    runs: dict[str, StudyRun] = {}
    cells: dict[str, Cell] = {}
    for number, settings in enumerate(given, start=1):
        try:
            cell = _cell(shared, tasks, settings, str(settings.get(LABEL) or f"cell {number}"), runs)
            if cell.label in cells:
                raise ValueError(f"there is a cell labelled {cell.label!r} before it.")
        except ValueError as error:
            raise ValueError(f"Cell {number} of the study is wrong: {error}") from None
        cells[cell.label] = cell
    final = {run.name: run for run in runs.values()}
    cells = {
        label: replace(cell, runs=tuple(final[run.name] for run in cell.runs))
        for label, cell in cells.items()
    }
    name = str(content.get("name") or default_name)
    return Study(
        name=name,
        runs=tuple(runs.values()),
        cells=tuple(cells.values()),
        questions=read_questions(content.get("questions") or [], cells, folder),
        title=str(content.get("title") or name),
    )


def _cell(
    shared: Mapping[str, Any],
    tasks: Mapping[str, Any],
    settings: Mapping[str, Any],
    label: str,
    known: dict[str, StudyRun],
) -> Cell:
    """One cell's runs; a run that another cell asks for too is in `known` and is the same."""
    own = {name: value for name, value in settings.items() if name not in (LABEL, CHOOSE, ALSO)}
    also = settings.get(ALSO) or []
    also = also if isinstance(also, list) else [also]
    if not all(isinstance(task, str) for task in also):
        raise ValueError("also takes the names of other tasks to measure its runs on.")
    scored, sweep = {}, {}
    for chosen in expand(own):
        task = chosen.get("task", shared.get("task", RunConfig.model_fields["task"].default))
        given = merged(shared, tasks.get(task, {}))
        if CHOOSE in settings:
            run = chosen_run(given, own, chosen, settings[CHOOSE], known)
            assert run.choice is not None
            sweep.update({one.name: one for one in run.choice.sweep})
        else:
            config = build(merged(given, chosen))
            run = StudyRun(run_name(chosen, identity(config)), config)
        before = known.get(run.key, run)
        others = {
            other: build(merged(merged(shared, tasks.get(other, {})), {**chosen, "task": other}))
            for other in also
            if other != run.config.task
        }
        run = replace(before, also={**others, **before.also})
        scored[run.name] = known[run.key] = run
    return Cell(label, tuple(scored.values()), tuple(sweep.values()))
