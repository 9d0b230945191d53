"""``benchmarks/gpu.py`` on the toy shape of a CPU: its parts run, write after each, and its tables can be printed."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    return runpy.run_path(str(SCRIPT), run_name="__main__")


def test_parts_on_a_cpu_and_their_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "gpu.json"
    run(
        monkeypatch, "--device", "cpu", "--toy", "--parts", "gradients,profile,graph", "--output", str(output)
    )
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["card"] == "cpu"
    assert found["profile"] == found["graph"] == {}  # there is no GPU to look at
    for case, figures in found["gradients"].items():
        assert figures["largest_difference"] < (1e-5 if "float32" in case else 1e-2), case
        assert figures["a_step_is_written"], case
    run(monkeypatch, "--report", str(output))
    report = capsys.readouterr().out
    assert report.strip() in printed
    assert sum(line.startswith("| hooks, ") for line in report.splitlines()) == 6


def test_arms_take_as_many_steps_as_there_are_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    script = run(monkeypatch, "--device", "cpu", "--toy", "--parts", "profile")
    options = type("Options", (), {"device": "cpu", "toy": True, "rounds": 20, "output": None})
    bench = script["Bench"](options)
    kinds = ("floor", "full", "hooks", "columns")
    with script["many"](bench, kinds, "0.5B", script["tokens_of"](bench, "0.5B", 1, 8)) as arms:
        found = script["compare"](bench, arms, 3)
    assert tuple(found) == kinds
    assert found["full"]["over_full"] == 1
    assert found["floor"]["trained"] == 0 < found["hooks"]["trained"] < found["full"]["trained"]
