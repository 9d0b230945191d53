"""Rates chosen on the validation split: which runs that is, and what two processes make of it."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from multiticket.research.study.chosen_rate import decide, make_choice, settled
from multiticket.research.study.grid import Study, build_study
from multiticket.research.study.runner import ERROR, perform, state_of, to_come, work
from multiticket.runs.folder import RunFolder


def study_of(*cells, settings=None) -> Study:
    return build_study({"settings": settings or {}, "cells": list(cells)})


def test_a_sweep_comes_before_what_it_chooses_for():
    study = study_of(
        {
            "label": "full",
            "arm": "full",
            "training_seed": [0, 1, 2],
            "choose": {"learning_rate": ["1e-4", 3e-4], "training_seed": 100, "steps": 5},
        }
    )
    cell = study.cell("full")
    assert study.runs == (*cell.sweep, *cell.runs)
    assert [run.config.learning_rate for run in cell.sweep] == [1e-4, 3e-4]
    assert {(run.config.eval.split, run.config.training_seed, run.config.steps) for run in cell.sweep} == {
        ("validation", 100, 5)
    }
    assert [run.config.training_seed for run in cell.runs] == [0, 1, 2]
    assert {run.config.eval.split for run in cell.runs} == {"test"}
    assert len({run.choice.name for run in cell.runs}) == 1
    assert all(run.name.startswith("sweep-") for run in cell.sweep)


def test_every_way_of_training_has_a_sweep_of_its_own_and_shares_it_between_cells():
    choose = {"learning_rate": [1e-3, 1e-2], "seed": 100, "training_seed": 100}
    study = study_of(
        {"density": [0.1, 0.01], "seed": [0, 1, 2], "choose": choose},
        {"label": "more", "density": 0.01, "seed": [3, 4], "choose": choose},
    )
    assert len(study.cell("cell 1").sweep) == 4
    assert len({run.choice.name for run in study.cell("cell 1").runs}) == 2
    assert {run.name for run in study.cell("more").sweep} < {run.name for run in study.cell("cell 1").sweep}
    assert len(study.runs) == 4 + 6 + 2


def test_names_do_not_depend_on_the_choice_but_on_what_is_tried():
    def name(rates):
        cell = {"seed": [0], "choose": {"learning_rate": rates, "seed": 100}}
        return study_of(cell).cell("cell 1").runs[0].name

    assert name([1e-3, 1e-2]) == name([1e-3, 1e-2])
    assert name([1e-3, 1e-2]) != name([1e-3, 2e-2])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"choose": {"learning_rate": 1e-3}}, "choose needs two or more learning rates"),
        ({"choose": {"learning_rate": [1e-3, "auto"]}}, "choose needs two or more learning rates"),
        ({"choose": "learning_rate"}, "choose needs two or more learning rates"),
        ({"learning_rate": 1e-3, "choose": {"learning_rate": [1, 2]}}, "give one"),
        ({"seed": [0, 1], "choose": {"learning_rate": [1, 2]}}, "with which seed"),
        ({"seed": [0, 1], "choose": {"learning_rate": [1, 2], "seed": 1}}, "is evaluated too"),
    ],
)
def test_what_cannot_choose_is_refused(cell, words):
    with pytest.raises(ValueError, match=f"Cell 1 of the study is wrong: .*{words}"):
        study_of(cell)


def test_the_best_score_decides_and_collapses_do_not_win():
    def one(rate, score, collapsed=0):
        return {"learning_rate": rate, "pass@1": score, "collapsed": collapsed}

    made = decide([one(1e-4, 0.5), one(2e-4, 0.7), one(4e-4, 0.7), one(8e-4, 0.9, 1)])
    assert (made["learning_rate"], made["at_the_edge"]) == (2e-4, False)
    assert decide([one(1e-4, 0.5), one(2e-4, 0.7)])["at_the_edge"]
    assert decide([one(1e-4, 0.1, 1), one(2e-4, 0.2, 1)])["learning_rate"] == 2e-4


def test_a_rate_is_decided_once(tmp_path: Path):
    study = study_of({"training_seed": [0], "choose": {"learning_rate": [1e-3, 1e-2], "training_seed": 100}})
    cell = study.cells[0]
    assert settled(tmp_path, cell.runs[0]) is None
    for run, score in zip(cell.sweep, (0.3, 0.6), strict=True):
        folder = RunFolder(tmp_path / run.name)
        folder.path.mkdir()
        folder.result.write_text(json.dumps({"eval": {"after": {"pass@1": score}}, "stopped": None}))
    config = settled(tmp_path, cell.runs[0])
    assert config is not None
    assert config.learning_rate == 1e-2
    folder.result.write_text(json.dumps({"eval": {"after": {"pass@1": 0.0}}, "stopped": None}))
    config = settled(tmp_path, cell.runs[0])
    assert config is not None
    assert config.learning_rate == 1e-2  # what is begun goes on with the rate that it has
    made = make_choice(tmp_path, cell.runs[0].choice)
    assert made is not None
    assert made["learning_rate"] == 1e-3


@pytest.fixture
def study(toy_model_folder: Path) -> Study:
    return study_of(
        {"seed": [0, 1], "choose": {"learning_rate": [1e-3, 1e-2], "seed": 100}},
        settings={
            "task": "toy_task:TASK",
            "model": str(toy_model_folder),
            "steps": 1,
            "rollouts": 16,
            "group": 8,
            "density": 0.1,
            "eval": {"problems": 4, "samples": 1},
        },
    )


def test_both_phases_are_done_in_one_go(study: Study, tmp_path: Path):
    scored = study.cells[0].runs[0]
    assert not perform(tmp_path, scored)  # its rate is not chosen yet
    assert work(tmp_path, study.runs) == 4
    assert to_come(tmp_path, study.runs) == []
    for run in study.cells[0].runs:
        folder = RunFolder(tmp_path / run.name)
        chosen = settled(tmp_path, run)
        assert chosen is not None
        assert folder.read_config() == chosen
        assert folder.read_result()["learning_rate"] == chosen.learning_rate
        assert folder.read_result()["eval"]["after"]["split"] == "test"


def test_two_processes_share_both_phases(study: Study, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(tmp_path, study.runs, 0.1)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert {state_of(tmp_path, run).state for run in study.runs} == {"done"}


def test_what_waits_for_a_sweep_that_failed_is_left(study: Study, tmp_path: Path, monkeypatch):
    import multiticket.train.run as engine

    real = engine.run_training

    def fails_at_the_higher_rate(config, *args, **kwargs):
        if config.learning_rate == 1e-2:
            raise RuntimeError("no luck")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(engine, "run_training", fails_at_the_higher_rate)
    assert work(tmp_path, study.runs) == 1
    assert [state_of(tmp_path, run).state for run in study.runs] == ["done", "failed", "waiting", "waiting"]
    assert (tmp_path / study.runs[1].name / ERROR).exists()


def test_a_request_to_stop_stops_the_work_and_is_no_failure(study: Study, tmp_path: Path, monkeypatch):
    import multiticket.train.run as engine
    from multiticket.train.callbacks.interrupt import RunInterrupted

    def stopped(config, output, **kwargs):
        raise RunInterrupted(15, 1, output)

    monkeypatch.setattr(engine, "run_training", stopped)
    with pytest.raises(RunInterrupted):
        work(tmp_path, study.runs)
    assert {state_of(tmp_path, run).state for run in study.runs} == {"waiting"}
