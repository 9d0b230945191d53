"""The rate that a sweep's finished runs decide, kept in the study's folder so that it is decided once.

``choices/NAME.json`` holds the chosen `learning_rate`, whether it lies `at_the_edge` of those tried, and all
`candidates` with their mean validation pass@1. Whoever first needs a choice whose sweep is done writes it; two who do
so at once write the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multiticket.config import RunConfig
from multiticket.research.study.study_run import Choice, StudyRun
from multiticket.runs.files import write_json
from multiticket.runs.folder import RunFolder, read_json

CHOICES = "choices"


def settled(folder: Path, run: StudyRun) -> RunConfig | None:
    """The run's settings with the rate that was chosen for it; None while its sweep is not done."""
    if run.choice is None:
        return run.config
    made = read_choice(folder, run.choice) or make_choice(folder, run.choice)
    return None if made is None else run.config.model_copy(update={"learning_rate": made["learning_rate"]})


def read_choice(folder: Path, choice: Choice) -> dict[str, Any] | None:
    """What was decided, or None."""
    path = _path(folder, choice)
    return read_json(path) if path.exists() else None


def make_choice(folder: Path, choice: Choice) -> dict[str, Any] | None:
    """Decide and keep it; None where a run of the sweep has no result yet."""
    made = weigh(folder, choice)
    if made is not None:
        write_json(_path(folder, choice), made)
    return made


def weigh(folder: Path, choice: Choice) -> dict[str, Any] | None:
    """What the sweep decides, without keeping it; None where one of its runs has no result yet."""
    results: dict[float, list[tuple[StudyRun, dict[str, Any]]]] = {}
    for run in choice.sweep:
        result = RunFolder(folder / run.name).read_result()
        if result is None:
            return None
        results.setdefault(float(run.config.learning_rate), []).append((run, result))
    candidates = [
        {
            "learning_rate": rate,
            "pass@1": sum(result["eval"]["after"]["pass@1"] for _, result in found) / len(found),
            "collapsed": sum(bool(result.get("stopped")) for _, result in found),
            "runs": [run.name for run, _ in found],
        }
        for rate, found in sorted(results.items())
    ]
    return decide(candidates)


def decide(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """The rate with the highest score, the lower of two that are equal; of those without a collapse, if there are any.

    Args:
        candidates: in ascending order of `learning_rate`.
    """
    sound = [one for one in candidates if not one["collapsed"]] or candidates
    best = max(sound, key=lambda one: one["pass@1"])  # the first of equals
    return {
        "learning_rate": best["learning_rate"],
        "at_the_edge": best in (candidates[0], candidates[-1]),
        "split": "validation",
        "candidates": candidates,
    }


def _path(folder: Path, choice: Choice) -> Path:
    return folder / CHOICES / f"{choice.name}.json"
