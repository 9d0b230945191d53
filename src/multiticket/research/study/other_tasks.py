"""How a finished run, and its base, do on tasks that it was not trained on.

``evals/after-TASK.jsonl`` and ``evals/before-TASK.jsonl`` in its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from multiticket.research.study.study_run import StudyRun
from multiticket.runs.folder import RunFolder
from multiticket.runs.measured_bases import MeasuredBases

BASES = "bases"
"""The folder below a study's that keeps what bases scored."""


def results_file(folder: Path, task: str, when: Literal["before", "after"] = "after") -> Path:
    """Where the results of single problems of another task are, in the folder of a run; before: its base's."""
    return folder / "evals" / f"{when}-{task.replace(':', '_').replace('/', '_')}.jsonl"


def is_done(folder: Path, run: StudyRun) -> bool:
    """Whether a run has its result, and was measured on all tasks that its cells ask for."""
    path = folder / run.name
    return RunFolder(path).result.exists() and all(results_file(path, task).exists() for task in run.also)


def measure_on_other_tasks(folder: Path, run: StudyRun) -> None:
    """Evaluate a finished run and its base on the other tasks, as runs of those tasks are; skip what is evaluated."""
    from multiticket.evaluate.trained import measure_base, measure_kept

    bases, path = MeasuredBases(folder / BASES), folder / run.name
    for task, settings in run.also.items():
        before, after = results_file(path, task, "before"), results_file(path, task)
        if after.exists():
            continue
        if not bases.give(settings, before):
            base = measure_base(settings)
            base.save(before)
            bases.take(settings, before, base.summary())
        measure_kept(RunFolder(path), settings).save(after)
