"""Processes that take turns: once for real, and what happens when one breaks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from multiticket.cli import main
from multiticket.research.bench import measure as measuring
from multiticket.research.bench import results
from multiticket.research.bench.results import SWEPT, Conditions, sweep, with_ratios
from multiticket.research.bench.shapes import choose_shape
from multiticket.research.bench.step_cost import caption, figures, sweep_table, table
from multiticket.research.bench.timed_arms import Arm
from multiticket.research.bench.timed_process import StepSetup, TimedModel
from multiticket.research.report.figures import write_figures
from multiticket.research.report.tables import markdown

SMALL = ["--layers", "1", "--width", "64", "--vocabulary", "300", "--batch", "2", "--tokens", "8"]
SHAPE = choose_shape("36M", layers=2, width=64, vocabulary=300)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every process that is started."""
    started: list[Any] = []
    real = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> Any:
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return started


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    return int(end.value.code or 0)


def test_two_arms_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], children: list[subprocess.Popen[str]]
) -> None:
    json_file, plot = tmp_path / "cost.json", tmp_path / "cost.png"
    options = ["--arms", "floor,ticket", "--densities", "0.1", "--rounds", "2", "--threads", "1"]
    assert run(*SMALL, *options, "--device", "cpu", "--json", str(json_file), "--plot", str(plot)) == 0
    out, err = capsys.readouterr()
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| arm", "| ---", "| floor", "| ticket 10 %"]
    assert "round 2 of 2" in err
    saved = json.loads(json_file.read_text())
    assert saved["command"].split()[0] == "multiticket"
    floor, ticket = saved["arms"]
    assert len(ticket["seconds"]) == len(floor["seconds"]) == 2
    assert ticket["over"]["floor"]["median"] == pytest.approx(
        sum(a / b for a, b in zip(ticket["seconds"], floor["seconds"], strict=True)) / 2
    )
    assert (floor["trained"], ticket["trained"]) == (0, int(rows[3][1].replace(",", "")))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(children) == 2
    assert all(child.poll() is not None for child in children)


def test_rounds_are_divided_among_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], children: list[subprocess.Popen[str]]
) -> None:
    options = ["--arms", "floor,ticket", "--densities", "0.1", "--threads", "1", "--device", "cpu"]
    assert run(*SMALL, *options, "--rounds", "3", "--processes", "2") == 2
    assert "do not divide" in capsys.readouterr().err
    assert children == []
    json_file = tmp_path / "cost.json"
    assert run(*SMALL, *options, "--rounds", "4", "--processes", "2", "--json", str(json_file)) == 0
    assert "4 rounds in 2 processes an arm" in capsys.readouterr().out
    saved = json.loads(json_file.read_text())
    assert [len(arm["seconds"]) for arm in saved["arms"]] == [4, 4]
    assert saved["processes"] == 2
    assert len(children) == 4
    assert all(child.poll() is not None for child in children)


def test_full_training_at_rest_holds_its_moments_and_at_peak_its_gradients() -> None:
    timed = TimedModel(StepSetup(SHAPE, Arm("full", "full"), 2, 8, "float32", "cpu"))
    memory = timed.memory()
    moments = 2 * 4 * SHAPE.parameters + 4 * len(SHAPE.tensor_sizes)  # and a step counter a tensor
    tokens = 2 * 8 * 8
    assert memory["rest"] == moments + tokens
    assert memory["peak"] > memory["rest"] + 4 * SHAPE.parameters


def test_a_ticket_needs_less_than_full_training_and_the_floor_least() -> None:
    arms = [Arm("floor", "floor"), Arm("ticket", "ticket", density=0.01), Arm("full", "full")]
    peaks = [TimedModel(StepSetup(SHAPE, arm, 2, 8, "float32", "cpu")).memory()["peak"] for arm in arms]
    assert peaks == sorted(peaks)


def measure_with(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **kwargs: real(["sh", "-c", command], **kwargs))
    setup = StepSetup(SHAPE, Arm("full", "full"), 2, 8, "float32", "cpu")
    measuring.measure([setup, setup], rounds=2, threads=1, say=lambda line: None)


READY = "echo '{\"trained\": 1}'"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            "echo noise >&2; echo 'MemoryError: no room' >&2; exit 1",
            "Measuring 'full' failed: MemoryError: no room",
        ),
        (f"{READY}; read _; exit 9", "Measuring 'full' failed: its process ended with exit code 9"),
        (
            f"{READY}; echo noise >&2; exec <&-; kill -9 $$",
            "Measuring 'full' failed: its process was killed by signal 9",
        ),
    ],
    ids=["at the start", "at a step", "killed"],
)
def test_a_process_that_ends_is_told_in_a_sentence(
    command: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=reason):
        measure_with(command, monkeypatch)


def test_an_interruption_ends_all_processes(
    monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[str]]
) -> None:
    def interrupt(worker: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring.Worker, "answer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_with("exec sleep 600", monkeypatch)
    assert len(children) == 2
    assert all(child.poll() is not None for child in children)


def fake_measure(
    setups: list[StepSetup], rounds: int, threads: int, say: Any, processes: int
) -> list[dict[str, Any]]:
    """Times proportional to what an arm trains."""
    from multiticket.research.bench.timed_arms import expected_values

    say("measuring")
    found = []
    for setup in setups:
        trained = expected_values(setup.shape, setup.arm)
        cost = 1 + trained / setup.shape.parameters
        memory = {"peak": 2 * trained, "rest": trained, "resident": 3 * trained}
        fields = {"arm": setup.arm.name, "kind": setup.arm.kind, "density": setup.arm.density, "rank": None}
        found.append({**fields, "trained": trained, "seconds": [cost] * rounds, "memory": memory})
    return found


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_has_a_point_for_each_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiticket.research.bench.results.measure", fake_measure)
    said: list[str] = []
    conditions = Conditions(SHAPE, batch=4, tokens=16, dtype="float32", device="cpu", threads=1, rounds=2)
    result = sweep(name, conditions, None, said.append)
    assert [point["value"] for point in result["points"]] == list(SWEPT[name])
    assert all(point["full"]["over"]["floor"]["median"] == 2 for point in result["points"])
    assert len(result["runs"]) == (1 if name == "density" else len(SWEPT[name]))
    if name == "density":
        over = [point["ticket"]["over"]["floor"]["median"] for point in result["points"]]
        assert over == sorted(over, reverse=True)
        assert over[0] == 2
    if name == "tokens":
        assert [run["tokens"] for run in result["runs"]] == [16, 32, 64, 128, 256]
        assert said[:2] == ["tokens 64", "measuring"]
    if name == "width":
        assert [run["shape"]["width"] for run in result["runs"]] == list(SWEPT[name])
    assert len(markdown(sweep_table(result)).splitlines()) == 2 + len(SWEPT[name])
    write_figures(figures(result), tmp_path / "sweep.png")
    assert os.path.getsize(tmp_path / "sweep.png") > 1000


def test_all_arms_are_compiled_or_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(setups: Any, rounds: int, threads: int, say: Any, processes: int) -> list[dict[str, Any]]:
        seen.extend(setup.compiled for setup in setups)
        return fake_measure(setups, rounds, threads, say, processes)

    monkeypatch.setattr("multiticket.research.bench.results.measure", watched)
    conditions = Conditions(SHAPE, 4, 16, "float32", "cpu", threads=1, rounds=2, compiled=True)
    result = results.run(conditions, ["floor", "full", "ticket"], [0.01], lambda line: None)
    assert seen == [True] * 3
    assert ", compiled, 2 rounds" in caption(result)
    assert "compiled" not in caption({**result, "compiled": False})


def test_the_table_by_value() -> None:
    def arm(name: str, kind: str, trained: int, seconds: list[float]) -> dict[str, Any]:
        memory = {"peak": 2_000_000, "rest": 1_000, "resident": 5_000_000}
        return {
            "arm": name,
            "kind": kind,
            "trained": trained,
            "seconds": seconds,
            "memory": memory,
            "predicted_over_floor": 1.25,
        }

    arms = with_ratios([arm("floor", "floor", 0, [0.1, 0.1]), arm("full", "full", 5000, [0.2, 0.3])])
    assert markdown(table({"arms": arms})).splitlines() == [
        "| arm | trained values | step (quartiles) | time / full (95 %) | time / floor (95 %) | operations / floor "
        "| memory at peak | at rest | process |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| floor | 0 | 100 ms (100 to 100) | 0.42 (0.33 to 0.50) | 1 | 1.25 | 2.0 MB | 1.0 kB | 5.0 MB |",
        "| full | 5,000 | 250 ms (225 to 275) | 1 | 2.50 (2.00 to 3.00) | 1.25 | 2.0 MB | 1.0 kB | 5.0 MB |",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arms", "full,all"], "The arms are some of"),
        (["--arms", "floor", "--rounds", "0"], "--rounds must be at least 1, but is 0."),
        (["--arms", "floor", "--threads", "0"], "--threads must be at least 1, but is 0."),
        (["--arms", "floor", "--tokens", "1"], "A row needs at least 2 tokens"),
        (["--densities", "some"], "--densities takes numbers separated by commas, not 'some'."),
        (["--shape", "7B"], "There is no shape '7B' to measure"),
        (["--json", "absent/cost.json"], "There is no folder absent to write cost.json to"),
        (["--device", "tpu"], "There is no device 'tpu' here"),
        (["--dtype", "int8", "--device", "cpu"], "There is no dtype 'int8'"),
        (["--values", "1,2"], "--values belongs to a --sweep"),
        (["--sweep", "depth"], "There is no sweep over 'depth'; give density, width, tokens."),
        (["--sweep", "width", "--values", "100", "--device", "cpu"], "The --width must be a multiple of 64"),
        (
            ["--sweep", "tokens", "--values", "10", "--device", "cpu"],
            "10 tokens do not divide into --batch 4 rows",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
