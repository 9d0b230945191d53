"""Runs of a study: done once, resumed, shared, gathered."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from multiticket.cli import main
from multiticket.evaluate import trained
from multiticket.research.study.collect import records, write_parquet
from multiticket.research.study.grid import Study, build_study
from multiticket.research.study.other_tasks import BASES, results_file
from multiticket.research.study.runner import ERROR, claimed, perform, state_of, time_left, work
from multiticket.runs.folder import RunFolder, read_metrics


@pytest.fixture
def settings(toy_model_folder: Path) -> dict[str, Any]:
    return {
        "task": "toy_task:TASK",
        "model": str(toy_model_folder),
        "steps": 2,
        "rollouts": 32,
        "group": 8,
        "density": 0.1,
        "eval": {"problems": 8, "samples": 2},
    }


@pytest.fixture
def study(settings: dict[str, Any]) -> Study:
    return build_study({"settings": settings, "cells": [{"seed": [0, 1]}]})


def test_runs_are_done_once_and_gathered_in_a_table(study: Study, tmp_path: Path):
    import pyarrow.parquet

    assert [state_of(tmp_path, run).state for run in study.runs] == ["waiting", "waiting"]
    with pytest.raises(ValueError, match="nothing to collect"):
        write_parquet(records(study, tmp_path), tmp_path / "runs.parquet")
    assert work(tmp_path, study.runs) == 2
    assert [state_of(tmp_path, run).state for run in study.runs] == ["done", "done"]
    assert work(tmp_path, study.runs) == 0
    rows = records(study, tmp_path)
    write_parquet(rows, tmp_path / "runs.parquet")
    back = pyarrow.parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert back == rows
    result = json.loads((tmp_path / study.runs[0].name / "result.json").read_text())
    assert back[0]["after.pass@1"] == result["eval"]["after"]["pass@1"]
    assert [row["seed"] for row in back] == [0, 1]


def test_a_base_is_measured_once_for_all_runs_of_a_folder(study: Study, tmp_path: Path, monkeypatch):
    import multiticket.train.evaluations as engine

    real, measured = engine.evaluate, []

    def counting(*args, **kwargs):
        measured.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(engine, "evaluate", counting)
    work(tmp_path, study.runs)
    assert len(measured) == 3  # the base, and each ticket
    first, second = (tmp_path / run.name for run in study.runs)
    for name in ("eval-before.json", RunFolder(first).problems("before").name):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    before = (second / "eval-before.json").read_bytes()
    shutil.rmtree(second)
    work(tmp_path, study.runs)  # as another process would
    assert len(measured) == 4
    assert (second / "eval-before.json").read_bytes() == before


def test_a_base_that_is_asked_in_another_way_is_measured_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch
):
    import multiticket.train.evaluations as engine

    real, measured = engine.evaluate, []

    def counting(*args, **kwargs):
        measured.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(engine, "evaluate", counting)
    asked = [{}, {"prompt_template": "Say {prompt}"}, {"max_completion_tokens": 5}, {"steps": 1}]
    study = build_study({"settings": settings, "cells": asked})
    assert work(tmp_path, study.runs) == 4
    assert len(measured) == 3 + 4  # the number of steps makes no difference to a base


def test_an_error_ends_the_run_and_not_the_study(study: Study, tmp_path: Path, monkeypatch):
    import multiticket.train.run as engine

    real = engine.run_training

    def fails_for_seed_0(config, *args, **kwargs):
        if config.seed == 0:
            raise RuntimeError("no luck")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(engine, "run_training", fails_for_seed_0)
    assert work(tmp_path, study.runs) == 1
    assert [state_of(tmp_path, run).state for run in study.runs] == ["failed", "done"]
    assert (tmp_path / study.runs[0].name / ERROR).read_text().startswith("no luck")
    monkeypatch.setattr(engine, "run_training", real)
    assert work(tmp_path, study.runs) == 1
    assert state_of(tmp_path, study.runs[0]).state == "done"


def test_a_run_that_died_goes_on_from_its_checkpoint(study: Study, tmp_path: Path, monkeypatch):
    run = build_study({"cells": [{**study.runs[0].config.model_dump(mode="json"), "save_every": 1}]}).runs[0]
    import multiticket.train.run as engine

    with monkeypatch.context() as patched:
        patched.setattr(engine, "keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            perform(tmp_path, run)
    assert state_of(tmp_path, run).state == "waiting"
    assert perform(tmp_path, run)
    assert [line["step"] for line in read_metrics(RunFolder(tmp_path / run.name).metrics)] == [1, 2]


@pytest.mark.parametrize("arm", [{"arm": "full"}, {"arm": "ticket"}])
def test_a_run_is_done_when_it_is_measured_elsewhere(
    arm, toy_model_folder: Path, tmp_path: Path, monkeypatch
):
    import multiticket.train.run as engine

    settings = {
        "task": "toy_task:TASK",
        "model": str(toy_model_folder),
        "steps": 1,
        "rollouts": 16,
        "group": 8,
    }
    settings |= {"density": 0.1} if arm["arm"] == "ticket" else {}
    evaluation = {"problems": 4, "samples": 1}
    first = build_study({"cells": [{**settings, **arm, "eval": evaluation}]}).runs[0]
    assert perform(tmp_path, first)
    run = build_study({"cells": [{**settings, **arm, "eval": evaluation, "also": "arithmetic"}]}).runs[0]
    assert run.name == first.name
    assert state_of(tmp_path, run).state == "waiting"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_training", None)  # which has nothing left to do
        assert perform(tmp_path, run)
    assert state_of(tmp_path, run).state == "done"
    lines = [json.loads(line) for line in results_file(tmp_path / run.name, "arithmetic").open()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    assert all(line["prompt"].endswith("=") for line in lines)
    base = results_file(tmp_path / run.name, "arithmetic", "before")
    assert [json.loads(line)["prompt"] for line in base.open()] == [line["prompt"] for line in lines]
    assert len(list((tmp_path / BASES).iterdir())) == 2  # of the two tasks
    another = build_study(
        {"cells": [{**settings, **arm, "training_seed": 1, "eval": evaluation, "also": "arithmetic"}]}
    ).runs[0]
    monkeypatch.setattr(trained, "measure_base", None)  # which is known
    assert perform(tmp_path, another)
    copied = results_file(tmp_path / another.name, "arithmetic", "before")
    assert copied.read_text() == base.read_text()


def _hold(folder: Path, run, locked, release) -> None:
    with claimed(folder, run) as ours:
        assert ours
        locked.set()
        release.wait(30)


def test_another_process_keeps_its_run_until_it_ends(study: Study, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    locked, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, study.runs[0], locked, release))
    holder.start()
    assert locked.wait(30)
    assert state_of(tmp_path, study.runs[0]).state == "running"
    assert not perform(tmp_path, study.runs[0])
    holder.kill()
    holder.join()
    assert state_of(tmp_path, study.runs[0]).state == "waiting"


def test_time_left_follows_the_pace(study: Study, tmp_path: Path):
    states = [state_of(tmp_path, run) for run in study.runs]
    assert time_left(states, 1) is None
    folder = RunFolder(tmp_path / study.runs[0].name)
    folder.path.mkdir()
    folder.metrics.write_text('{"step": 1, "time": 4.0}\n')
    states = [state_of(tmp_path, run) for run in study.runs]
    assert time_left(states, 1) == pytest.approx(4.0 * 1 + 4.0 * 2)
    assert time_left(states, 2) == pytest.approx(6.0)


def test_the_command_runs_a_study_and_says_how_far_it_is(
    toy_model_folder: Path, tmp_path: Path, monkeypatch, capsys
):
    file = tmp_path / "study.yaml"
    support = Path(__file__).parents[2] / "support"
    monkeypatch.setenv("PYTHONPATH", str(support), prepend=":")
    file.write_text(
        f"settings: {{task: 'toy_task:TASK', model: {toy_model_folder}, steps: 1, rollouts: 16, group: 8, "
        "density: 0.1, eval: {problems: 4, samples: 1}}\ncells:\n  - {seed: [0, 1]}\n"
    )
    folder = str(tmp_path / "out")
    for arguments, code in (("status", 0), ("run", 0), ("collect", 0)):
        with pytest.raises(SystemExit) as ended:
            main(["study", arguments, str(file), "--output", folder])
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert "2 waiting" in printed.out
    assert "2 done" in printed.err
    assert "2 of 2 runs" in printed.out
