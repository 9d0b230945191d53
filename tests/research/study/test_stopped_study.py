"""A study that is told to stop, on either executor: runs end with their step, save it, and go on from there."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from multiticket.research.study import executors
from multiticket.research.study.executors import LOG, start_local
from multiticket.research.study.grid import build_study
from multiticket.research.study.runner import state_of
from multiticket.runs.folder import RunFolder, read_metrics

SUPPORT = Path(__file__).parents[2] / "support"
RAY = pytest.param(
    "ray",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'multiticket[ray]'"
    ),
)


def _as_from_a_terminal() -> None:
    """A suite that was started in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Started:
    """A study of one long run, under way."""

    def __init__(self, model: Path, folder: Path, executor: str) -> None:
        content = {
            "settings": {
                "task": "toy_task:TASK",
                "model": str(model),
                "steps": 5000,
                "rollouts": 16,
                "group": 8,
                "density": 0.1,
                "eval": {"problems": 4, "samples": 1},
            },
            "cells": [{"seed": 0}],
        }
        file = folder / "study.yaml"
        file.write_text(yaml.safe_dump(content))
        self.folder = folder / "out"
        self.run = build_study(content).runs[0]
        self.run_folder = RunFolder(self.folder / self.run.name)
        paths = filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])
        command = [sys.executable, "-m", "multiticket", "study", "run", str(file), "--executor", executor]
        self.process = subprocess.Popen(
            [*command, "--output", str(self.folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_as_from_a_terminal,
        )

    def steps(self) -> list[int]:
        return [line["step"] for line in read_metrics(self.run_folder.metrics)]

    def is_saved(self) -> bool:
        """Whether nobody works on the run and its last step has a checkpoint."""
        free = state_of(self.folder, self.run).state == "waiting"
        return free and self.run_folder.checkpoints.last() == self.steps()[-1]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


@pytest.mark.parametrize("executor", ["local", RAY])
def test_an_interrupt_stops_the_runs_with_a_checkpoint(executor, toy_model_folder: Path, tmp_path: Path):
    started = Started(toy_model_folder, tmp_path, executor)
    try:
        wait_for(lambda: len(started.steps()) >= 2)
        os.killpg(started.process.pid, signal.SIGINT)  # as a terminal does it
        _, said = started.process.communicate(timeout=120)
    finally:
        started.process.kill()
    assert started.process.returncode == 130, said
    assert "the same command continues" in said
    assert "Traceback" not in said
    assert started.is_saved()


def test_workers_stop_when_what_started_them_is_killed(toy_model_folder: Path, tmp_path: Path):
    started = Started(toy_model_folder, tmp_path, "local")
    wait_for(lambda: len(started.steps()) >= 2)
    started.process.kill()
    started.process.communicate()
    wait_for(started.is_saved)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in Linux's /proc")
def test_a_worker_that_is_killed_is_replaced_and_that_is_said(toy_model_folder: Path, tmp_path: Path):
    started = Started(toy_model_folder, tmp_path, "local")
    try:
        wait_for(lambda: len(started.steps()) >= 2)
        (worker,) = workers_of(started.process)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: workers_of(started.process) not in ([worker], []))
        (other,) = workers_of(started.process)
        before = started.run_folder.metrics.stat().st_size
        wait_for(lambda: started.run_folder.metrics.stat().st_size > before)
        os.kill(other, signal.SIGTERM)  # which is not to be undone
        _, said = started.process.communicate(timeout=120)
    finally:
        started.process.kill()
    assert said.count("A worker was killed by SIGKILL, as the system does where memory runs out.") == 1, said
    assert "Another goes on from its last checkpoint." in said
    assert started.process.returncode == 1
    assert started.is_saved()


def test_workers_are_not_replaced_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executors, "sys", SimpleNamespace(executable=str(tmp_path / "worker")))
    said: list[str] = []

    def follow(script: str) -> list[str]:
        said.clear()
        (tmp_path / "worker").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "worker").chmod(0o755)
        _, alive = start_local(tmp_path / "study.yaml", tmp_path / "out", 1, said.append)
        wait_for(lambda: not alive())
        return said

    assert [one.partition(". ")[2].partition(" ")[0] for one in follow("kill -9 $$")] == [
        *["Another"] * 3,
        "The",
    ]
    assert follow("exit 0") == follow("exit 143") == []
    assert follow("exit 1") == [f"A worker ended with an error: see {tmp_path / 'out' / LOG}."]
