"""A study on a local Ray: done, taken up after a worker was killed, and stopped with a checkpoint."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from multiticket.research.study.grid import Study, build_study
from multiticket.research.study.ray_cluster import start_ray
from multiticket.research.study.runner import LOCKS, state_of
from multiticket.runs.folder import RunFolder, read_metrics

SUPPORT = Path(__file__).parents[2] / "support"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'multiticket[ray]'"
)


def settings(model: Path, steps: int) -> dict:
    return {
        "task": "toy_task:TASK",
        "model": str(model),
        "steps": steps,
        "save_every": 2,
        "rollouts": 16,
        "group": 8,
        "density": 0.1,
        "eval": {"problems": 4, "samples": 1},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers; that they have the tests' path is a matter of the environment they start in."""
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), before]))
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def follow(study: Study, folder: Path) -> None:
    stop, alive = start_ray(study, folder, cpus=1, gpus=0, address=None)
    try:
        wait_for(lambda: not alive())
    finally:
        stop()


@needs_ray
def test_a_sweep_and_the_runs_that_it_chooses_for(cluster, toy_model_folder: Path, tmp_path: Path):
    choose = {"learning_rate": [1e-3, 1e-2], "seed": 100}
    study = build_study(
        {"settings": settings(toy_model_folder, 1), "cells": [{"seed": [0, 1], "choose": choose}]}
    )
    follow(study, tmp_path)
    assert {state_of(tmp_path, run).state for run in study.runs} == {"done"}


@needs_ray
def test_a_run_whose_worker_is_killed_goes_on_from_its_checkpoint(
    cluster, toy_model_folder: Path, tmp_path: Path
):
    study = build_study({"settings": settings(toy_model_folder, 30), "cells": [{"seed": 0}]})
    run = study.runs[0]
    folder = RunFolder(tmp_path / run.name)
    stop, alive = start_ray(study, tmp_path, cpus=1, gpus=0, address=None)
    try:
        wait_for(lambda: (folder.checkpoints.last() or 0) >= 4)
        killed = holder(tmp_path / LOCKS / f"{run.name}.lock")
        os.kill(killed, signal.SIGKILL)
        saved = folder.checkpoints.last()
        wait_for(lambda: not alive())
    finally:
        stop()
    assert state_of(tmp_path, run).state == "done"
    assert 4 <= saved < 30
    assert [line["step"] for line in read_metrics(folder.metrics)] == list(range(1, 31))


@needs_ray
def test_an_error_is_no_reason_to_try_again(cluster, toy_model_folder: Path, tmp_path: Path):
    wrong = {**settings(toy_model_folder, 1), "task": "toy_task:NONE"}
    study = build_study({"settings": wrong, "cells": [{"seed": 0}]})
    follow(study, tmp_path)
    assert state_of(tmp_path, study.runs[0]).state == "failed"


@needs_ray
def test_what_no_worker_can_give_is_refused(cluster, toy_model_folder: Path, tmp_path: Path):
    study = build_study({"settings": settings(toy_model_folder, 1), "cells": [{"seed": 0}]})
    with pytest.raises(ValueError, match=r"64 CPUs and 0 GPUs for a run \(the largest has 2 and 0\)"):
        start_ray(study, tmp_path, cpus=64, gpus=0, address=None)
    with pytest.raises(ValueError, match="has 1 CPUs and 1 GPUs"):
        start_ray(study, tmp_path, cpus=1, gpus=1, address=None)


@needs_ray
def test_an_address_where_nobody_answers_is_refused_at_once(tmp_path: Path):
    study = build_study({"cells": [{"seed": 0}]})
    with pytest.raises(ValueError, match=r"No Ray cluster answers at 127\.0\.0\.1:1"):
        start_ray(study, tmp_path, cpus=1, gpus=0, address="127.0.0.1:1")


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "ray", None)
    study = build_study({"cells": [{"seed": 0}]})
    with pytest.raises(ValueError, match=r"pip install 'multiticket\[ray\]'"):
        start_ray(study, tmp_path, cpus=1, gpus=0, address=None)


def holder(path: Path) -> int:
    """The process that has a file locked."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and words[5].endswith(f":{path.stat().st_ino}"):
            return int(words[4])
    raise AssertionError("nobody has it locked")
