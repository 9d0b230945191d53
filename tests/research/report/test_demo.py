"""The demonstration on a toy model: everything that ``make demo`` does, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multiticket.cli import main
from multiticket.research.stats.running_mean import running_mean

RECIPE = "task: toy_task:TASK\nmodel: {model}\nrollouts: 64\ngroup: 8\nsteps: 3\neval: {{problems: 20, samples: 2}}\n"


@pytest.fixture
def recipes(toy_model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    settings = RECIPE.format(model=toy_model_folder)
    (folder / "arithmetic-full.yaml").write_text(settings + "arm: full\nlearning_rate: 1e-3\n")
    (folder / "arithmetic-ticket.yaml").write_text(
        settings + "arm: ticket\ndensity: 0.1\nlearning_rate: 1e-2\n"
    )
    return folder


def _demo(recipes: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--recipes", str(recipes), "--output", str(output)])
    said = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, said.out, said.err


def test_the_demo_trains_compares_and_proves_then_only_reads(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    code, out, _ = _demo(recipes, output, capsys)
    assert code == 0
    numbers = json.loads((output / "demo.json").read_text())
    assert [run["arm"] for run in numbers["runs"]] == ["full", "ticket", "ticket"]
    assert [run["seed"] for run in numbers["runs"]] == [0, 0, 1]
    assert 0 <= numbers["overlap"]["jaccard"] < 0.1
    assert numbers["overlap"]["expected"] == pytest.approx(0.1 / 1.9, rel=0.02)
    for run, revert in zip(numbers["runs"][1:], numbers["reverts"], strict=True):
        assert revert["base"] == revert["reverted"] != revert["trained"]
        assert 0.5 * run["nnz"] < revert["changed"] <= run["nnz"]
    assert numbers["reverts"][0]["base"] == numbers["reverts"][1]["base"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    for place in (
        "full/model",
        "ticket-seed0/ticket.safetensors",
        "ticket-seed1/ticket.safetensors",
        "curves.png",
    ):
        assert (output / place).exists()
        assert str(output / place) in out
    assert "the same bits" in out
    assert "DIFFERENT" not in out

    trained = {path: path.stat().st_mtime_ns for path in output.glob("*/*")}
    assert _demo(recipes, output, capsys)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*")} == trained

    (recipes / "arithmetic-ticket.yaml").write_text(
        (recipes / "arithmetic-ticket.yaml").read_text() + "steps: 4\n"
    )
    code, _, err = _demo(recipes, output, capsys)
    assert code == 2
    assert "holds a run with other settings" in err
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*")} == trained


def test_the_demo_needs_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _demo(tmp_path / "nowhere", tmp_path / "demo", capsys)
    assert code == 2
    assert "run the demo in a clone" in err
    assert not list(tmp_path.iterdir())


def test_a_running_mean_looks_back_only() -> None:
    assert running_mean([1.0, 2.0, 3.0, 4.0, 5.0], 3) == [1.0, 1.5, 2.0, 3.0, 4.0]
