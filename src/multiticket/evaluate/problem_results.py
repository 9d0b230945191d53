"""Read back what single problems came to, and bring two sides' problems together."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiticket.runs.folder import RunFolder


@dataclass(frozen=True)
class Results:
    """One run's results on a fixed set of problems."""

    source: Path
    problems: list[tuple[int, str, str]]
    """Index in the split, prompt and answer of each."""
    correct: NDArray[np.float64]
    """(problems,): the share of sampled completions that were right."""
    greedy: NDArray[np.bool_]
    """(problems,): whether the greedy completion was right."""
    samples: int
    """Sampled completions a problem."""
    settings: dict[str, Any] | None
    """Task, split and temperature, where a run folder tells them."""


def read_side(words: str) -> list[Results]:
    """One side of a comparison: a run folder, a file of results, several with commas between, or a pattern for them.

    Raises:
        ValueError: nothing is there, a file does not hold results, or two runs were not given the same problems.
    """
    runs = [read_results(path) for word in words.split(",") for path in _places(word.strip())]
    if len({run.source.resolve() for run in runs}) < len(runs):
        raise ValueError(f"{words} names a run twice: runs count as independent, so name each once.")
    for other in runs[1:]:
        require_same_problems(runs[0], other)
    return runs


def _places(word: str) -> list[Path]:
    if not word:
        raise ValueError("A run's name is empty: give run folders or files of results, separated by commas.")
    if Path(word).exists():
        return [Path(word)]
    found = sorted(Path(path) for path in glob.glob(word))
    if not found:
        raise ValueError(f"There is no run folder or file of results at {word}.")
    return found


def read_results(path: Path) -> Results:
    """A run folder's results after training, or those that `multiticket eval --output` wrote.

    Raises:
        ValueError: they are missing or are not results.
    """
    settings = None
    if path.is_dir():
        folder = RunFolder(path)
        path, run = folder.problems("after"), folder.read_config()
        if not path.exists():
            raise ValueError(f"The run in {folder.path} has no results yet: finish it with --resume.")
        settings = {"task": run.task, "split": run.eval.split, "temperature": run.eval.temperature}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        problems = [(int(line["index"]), str(line["prompt"]), str(line["answer"])) for line in lines]
        rights = [[bool(right) for right in line["correct"]] for line in lines]
        greedy = np.array([bool(line["greedy_correct"]) for line in lines])
        correct = np.array([sum(right) / len(right) for right in rights])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        raise ValueError(
            f"{path} does not hold per-problem results, as multiticket eval --output writes them."
        ) from None
    if not problems:
        raise ValueError(f"{path} holds no problems.")
    return Results(path, problems, correct, greedy, min(map(len, rights)), settings)


def require_same_problems(one: Results, other: Results) -> None:
    """Raises ValueError, saying what differs, unless both were measured on the same problems in the same way."""
    names = f"{one.source} and {other.source}"
    if one.settings and other.settings:
        for name in one.settings:
            if one.settings[name] != other.settings[name]:
                raise ValueError(
                    f"{names} were measured with different {name} ({one.settings[name]} and {other.settings[name]}): "
                    "compare runs that were evaluated in the same way."
                )
    if len(one.problems) != len(other.problems):
        raise ValueError(
            f"{names} hold {len(one.problems)} and {len(other.problems)} problems: evaluate both on the same ones."
        )
    for mine, theirs in zip(one.problems, other.problems, strict=True):
        if mine != theirs:
            what = "index" if mine[0] != theirs[0] else "prompt" if mine[1] != theirs[1] else "answer"
            raise ValueError(
                f"{names} were evaluated on different problems: they first differ in the {what} of problem {mine[0]}."
            )


def scores(runs: Sequence[Results], what: str) -> NDArray[np.float64]:
    """(runs, problems) of ``pass@1`` or ``greedy``."""
    columns = [run.correct if what == "pass@1" else run.greedy.astype(np.float64) for run in runs]
    return np.stack(columns)
