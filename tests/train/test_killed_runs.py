"""Runs that are really killed (SIGKILL, in a process of their own) and resumed: the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import in_a_child, kill_at, made, small

from multiticket.evaluate.evaluation import Evaluation
from multiticket.runs.checkpoints import Checkpoints
from multiticket.runs.lines import StepLines
from multiticket.ticket import Ticket
from multiticket.train import run as run_module
from multiticket.train.run import run_training

Whole = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed run of an arm."""
    runs: dict[str, tuple[Path, dict[str, Any]]] = {}

    def of(arm: str) -> tuple[Path, dict[str, Any]]:
        if arm not in runs:
            output = tmp_path_factory.mktemp("whole") / arm
            run_training(small(toy_model_folder, arm), output, show_progress=False)
            runs[arm] = output, made(output)
        return runs[arm]

    return of


def _tear_a_line(step: int) -> None:
    """The process dies when half of the line of `step` is written."""
    whole_append = StepLines.append

    def append(self: StepLines, record: dict[str, Any]) -> None:
        if record["step"] == step and self.path.name == "metrics.jsonl":
            with self.path.open("ab") as file:
                file.write(b'{"step": 5, "time": 1.2, "rew')
            os.kill(os.getpid(), signal.SIGKILL)
        whole_append(self, record)

    StepLines.append = append  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], None]] = {
    "measuring the base": lambda: kill_at(Evaluation, "save", 1),
    "in the middle of a line": lambda: _tear_a_line(5),
    "before the first checkpoint is whole": lambda: kill_at(torch, "save", 2),
    "in the middle of a later checkpoint": lambda: kill_at(torch, "save", 6),
    "before a checkpoint is renamed": lambda: kill_at(Checkpoints, "finish", 2),
    "after a checkpoint is renamed": lambda: kill_at(Checkpoints, "finish", 2, after=True),
    "while an old checkpoint is deleted": lambda: kill_at(shutil, "rmtree", 4),
    "after the last checkpoint": lambda: kill_at(Checkpoints, "finish", 5, after=True),
    "before the ticket": lambda: kill_at(Ticket, "save", 1),
    "between ticket and scores": lambda: kill_at(Ticket, "save", 1, after=True),
    "between ticket and result": lambda: kill_at(Ticket, "save", 2, after=True),
    "before the result": lambda: kill_at(run_module, "result_of", 1, after=True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_moment_resumes_to_the_same_bits(
    moment: str, whole: Whole, toy_model_folder: Path, tmp_path: Path
) -> None:
    _, expected = whole("ticket")
    settings, output = small(toy_model_folder), tmp_path / "run"

    def work() -> None:
        MOMENTS[moment]()
        run_training(settings, output, show_progress=False)

    assert in_a_child(work) == -signal.SIGKILL
    done = Checkpoints(output / "checkpoints").last() or 0
    lines = (output / "metrics.jsonl").read_bytes().splitlines(True) if done else []
    run_training(settings, output, resume=True, show_progress=False)
    assert made(output) == expected
    kept = (output / "metrics.jsonl").read_bytes()
    assert kept.startswith(b"".join(lines[:done])), "the lines of steps that were not taken again changed"


@pytest.mark.parametrize("arm", ["ticket", "full"])
def test_a_run_killed_at_any_time_resumes_to_the_same_bits(
    arm: str, whole: Whole, toy_model_folder: Path, tmp_path: Path
) -> None:
    """Killed again and again after random times, never told where it is."""
    _, expected = whole(arm)
    settings, output = small(toy_model_folder, arm), tmp_path / "run"
    wait = random.Random(arm)
    deaths = 0
    for attempt in range(12):

        def work(limit: float = wait.uniform(0.05, 0.4) * (attempt + 1)) -> None:
            signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM kills: nothing handles it
            started = (output / "config.json").exists()
            run_training(settings, output, resume=started, show_progress=False)

        if in_a_child(work) == 0:
            break
        deaths += 1
    else:
        run_training(settings, output, resume=True, show_progress=False)
    assert deaths > 0
    assert made(output) == expected
