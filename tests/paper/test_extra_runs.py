"""Runs beside a study's own: its settings, its rates, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_runs

from extra_runs import ExtraRuns
from multiticket.research.study.grid import load

STUDY = """
name: s
settings: {eval: {problems: 20}, group: 8}
tasks: {arithmetic: {steps: 7, rollouts: 64}}
cells:
  - label: ticket
    task: arithmetic
    seed: [0, 1]
    choose: {learning_rate: [1.0e-3, 1.0e-2], seed: 100}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    made = load(tmp_path / "study.yaml")
    folder = tmp_path / "runs"
    sweep = made.cells[0].sweep
    make_runs(folder, sweep, lambda config: 50 * float(config.learning_rate), problems=30)
    make_runs(folder, made.cells[0].runs[:1], lambda config: 0.5, problems=30)
    return tmp_path / "study.yaml"


def test_settings_and_rate_are_the_studys(study: Path, tmp_path: Path) -> None:
    extra = ExtraRuns(study, tmp_path / "runs", tmp_path / "more")
    ticket = extra.settings("arithmetic", seed=0)
    assert (ticket.steps, ticket.rollouts, ticket.group, ticket.learning_rate) == (7, 64, 8, 1e-2)
    assert extra.settings("arithmetic", seed=0, slower=4).learning_rate == 2.5e-3
    assert extra.settings("arithmetic", seed=0, model="merged").learning_rate == 1e-2
    assert extra.settings("arithmetic", arm="full").learning_rate == 1e-4  # no sweep: the usual one
    other = extra.settings("mine:TASK", rates_of="arithmetic", seed=0)
    assert (other.task, other.steps, other.learning_rate) == ("mine:TASK", 7, 1e-2)


def test_a_study_s_folder_is_only_read(study: Path, tmp_path: Path) -> None:
    choices = tmp_path / "runs" / "choices"
    for file in choices.iterdir():
        file.unlink()
    assert (
        ExtraRuns(study, tmp_path / "runs", tmp_path / "more").settings("arithmetic", seed=0).learning_rate
        == 1e-2
    )
    assert not list(choices.iterdir())


def test_what_is_done_is_found_by_its_settings(study: Path, tmp_path: Path) -> None:
    extra = ExtraRuns(study, tmp_path / "runs", tmp_path / "more")
    ticket = extra.settings("arithmetic", seed=0, eval={"problems": 5}, save_every=3)
    assert extra.done(ticket) is None  # results without the ticket
    for made in (tmp_path / "runs").glob("arithmetic-*"):
        (made / "ticket.safetensors").touch()
    found = extra.done(ticket)
    assert found is not None
    assert found.name.startswith("arithmetic-seed0")
    assert extra.done(ticket, checkpoints=1) is None
    assert extra.done(extra.settings("arithmetic", seed=1)) is None
    assert extra.done(extra.settings("arithmetic", seed=0, beta=0.1)) is None
    assert ExtraRuns(study, None, tmp_path / "more").done(ticket) is None
    said: list[str] = []
    assert extra.do({"A": ticket}, 1, said.append) == {"A": found}
    assert said == ["A: of the study"]
    assert not (tmp_path / "more").exists()


def test_a_run_that_fails_says_why(study: Path, tmp_path: Path) -> None:
    extra = ExtraRuns(study, None, tmp_path / "more")
    broken = extra.settings("arithmetic", model=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"The run A-\w+ is not finished: There is no folder .*nowhere"):
        extra.do({"A": broken}, 1, lambda line: None)
    with pytest.raises(ValueError, match="There is no folder"):
        ExtraRuns(study, tmp_path / "nowhere", tmp_path)
