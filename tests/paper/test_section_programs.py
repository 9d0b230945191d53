"""The programs that write the report's sections, as a person calls them; without training."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from made_runs import make_runs

from multiticket.research.study.grid import load
from multiticket.research.study.page_section import read_section
from program import run_program

PAPER = Path(__file__).parents[2] / "paper"
STUDY = """
name: s
settings: {task: arithmetic, steps: 7, density: 0.01, eval: {problems: 20}}
cells:
  - {label: random, seed: [0, 1]}
  - {label: columns, method: columns, seed: [0, 1]}
  - {label: first layer, method: layers, mask_options: {layers: first}}
  - {label: mlp, method: modules, mask_options: {modules: mlp}}
  - {label: last layer, method: layers, mask_options: {layers: last}}
"""


def _program(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> ModuleType:
    """The module of a program, with its command line set."""
    monkeypatch.syspath_prepend(str(PAPER))
    spec = importlib.util.spec_from_file_location(name, PAPER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return module


def test_prediction_takes_the_runs_that_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    study, runs = load(tmp_path / "study.yaml"), tmp_path / "runs"
    for label, score in {"random": 0.8, "columns": 0.7, "mlp": 0.6, "first layer": 0.5}.items():
        make_runs(runs, study.cell(label).runs, lambda config, score=score: score, problems=40)
    cells = ["--cells", *(cell.label for cell in study.cells)]
    few = ["--problems", "4", "--group", "4", "--rank", "2", *cells]
    section = tmp_path / "p.json"
    program = _program(
        "prediction_section",
        monkeypatch,
        *("--study", tmp_path / "study.yaml", "--runs", runs, "--section", section, *few),
    )
    run_program(program.main)
    found = read_section(section)
    assert found.verdict == "not decided"
    assert found.n.startswith("4 ways of choosing positions, 6 runs")
    assert any("No finished run yet: last layer." in note for note in found.notes)
    assert found.tables[1].rows[0][:2] == ["random", 2]
    assert str(tmp_path) not in section.read_text()
    assert "--problems 4 --group 4 --rank 2" in found.command
    assert "| random | 2 |" in capsys.readouterr().out
    for run in study.cell("mlp").runs:
        (runs / run.name / "result.json").unlink()
    with pytest.raises(SystemExit) as stop:
        run_program(program.main)
    assert stop.value.code == 2
    assert "3 of 5 cells have a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("step_cost_section", ["--results", "nowhere"], "step_cost.json cannot be read"),
        ("prediction_section", ["--study", "nowhere.yaml"], "Cannot read the settings in nowhere.yaml"),
        ("prediction_section", ["--section", "no/folder/p.json"], "There is no folder no/folder"),
        ("compose_tickets", ["--runs", "nowhere"], "There is no folder nowhere"),
        ("subspace_section", ["--densities", "0.1"], "--densities must include the claimed one, 0.01."),
        ("subspace_section", ["--steps", "1"], "The middle of a run needs at least 2 steps"),
    ],
)
def test_mistakes(
    name: str,
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    given = arguments if "--section" in arguments else ["--section", "s.json", *arguments]
    if name != "step_cost_section" and "--study" not in arguments:
        given = ["--study", "study.yaml", *given]
    with pytest.raises(SystemExit) as stop:
        run_program(_program(name, monkeypatch, *given).main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_what_is_composed_of_the_runs_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _program("compose_tickets", monkeypatch)
    alone = ["ticket A", "ticket B", "B on top of A"]
    names = [one.name for one in program.combinations(alone, [0.5])]
    assert names == [
        "tickets together",
        "tickets averaged",
        "B on top of A",
        "A and B, shuffled",
        "B and A, shuffled",
        "ticket B × 0.5",
        "ticket A × 0.5",
    ]
    more = program.combinations([*alone, "full A", "full B"], [])
    assert {"full summed", "full averaged"} <= {one.name for one in more}


def test_the_mixed_task_scores_each_problem_by_its_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAPER))
    from multiticket import tasks

    mixed = tasks.get("mixed_task:TASK")
    rows = mixed.problems("validation")
    assert len(rows) == 1024
    for place, name in enumerate(("arithmetic", "alphabet_sort")):
        own = tasks.get(name).problems("validation")
        assert rows[place] == own[0]
        assert mixed.score(own[0]["answer"], own[0]["answer"]) == 1.0
        assert mixed.correct(own[0]["answer"], own[0]["answer"])
        assert not mixed.correct("7", own[1]["answer"] + "1")


RATES = """
name: rates
settings: {task: arithmetic, steps: 7, eval: {problems: 20}}
cells:
  - {arm: full, seed: [0, 1], learning_rate: [1.0e-4, 3.0e-4, auto]}
  - {density: 0.01, seed: [0, 1], learning_rate: [1.0e-2, 3.0e-2, auto]}
"""


def test_auto_stands_beside_the_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(RATES)
    runs, section = tmp_path / "runs", tmp_path / "s.json"
    given = ("--study", tmp_path / "study.yaml", "--runs", runs, "--section", section)
    program = _program("learning_rate", monkeypatch, *given)
    with pytest.raises(SystemExit):
        run_program(program.main)
    assert "is finished: run the study first." in capsys.readouterr().err
    scores = {"auto": 0.7}
    make_runs(
        runs, load(tmp_path / "study.yaml").runs, lambda config: scores.get(str(config.learning_rate), 0.5)
    )
    run_program(program.main)
    found = read_section(section)
    full, sparse = found.tables[0].rows
    assert found.tables[0].columns[2:5] == ["0.0001", "0.0003", "auto"]
    assert (full[:2], sparse[:2]) == (["arithmetic", "100 %"], ["arithmetic", "1 %"])
    assert full[4] == pytest.approx(69.2, abs=1)
    assert full[-1].startswith(("+19.", "+18."))
    assert "±" in full[-1]
    first = found.numbers["records"][0]
    assert (first["seeds"], first["learning_rate"], first["mean_reward"]) == (
        [0, 1],
        [1e-4, 1e-4],
        [0.3, 0.3],
    )
