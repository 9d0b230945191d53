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
    """Evaluate a finished run on the other tasks, with its own settings; skip those already evaluated."""
    from multiticket.train.trained import Trained, measure

    run_folder = RunFolder(folder / run.name)
    config = run_folder.read_config()
    trained = {
        "full": Trained(),
        "ticket": Trained(ticket=run_folder.ticket),
        "lora": Trained(adapter=run_folder.adapter),
    }[config.arm]
    model = str(run_folder.model) if config.arm == "full" else config.model
    for task in run.also:
        path = results_file(run_folder.path, task)
        if not path.exists():
            evaluation, _ = measure(config, model, trained, task)
            evaluation.save(path)
