"""How a finished run does on tasks that it was not trained on: ``evals/after-TASK.jsonl`` in its folder."""

from __future__ import annotations

from pathlib import Path

from multiticket.research.study.study_run import StudyRun
from multiticket.runs.folder import RunFolder


def results_file(folder: Path, task: str) -> Path:
    """Where the results of single problems of another task are, in the folder of a run."""
    return folder / "evals" / f"after-{task.replace(':', '_').replace('/', '_')}.jsonl"


def is_done(folder: Path, run: StudyRun) -> bool:
    """Whether a run has its result, and was measured on all tasks that its cells ask for."""
    path = folder / run.name
    return RunFolder(path).result.exists() and all(results_file(path, task).exists() for task in run.also)


def measure_on_other_tasks(folder: Path, run: StudyRun) -> None:
    """Evaluate a finished run on the other tasks, as runs of those tasks are; skip those already evaluated."""
    from multiticket.evaluate.trained import measure_kept

    for task, settings in run.also.items():
        path = results_file(folder / run.name, task)
        if not path.exists():
            measure_kept(RunFolder(folder / run.name), settings).save(path)
