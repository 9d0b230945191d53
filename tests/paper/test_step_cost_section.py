"""The section on what a step costs, from measurements whose ratios are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multiticket.research.study.page_section import read_section, write_section
from step_cost_section import CLAIMED, names_of, read_bench, step_cost_section, verdict


def _over(middle: float, low: float, high: float) -> dict:
    return {"median": middle, "interval": [low, high]}


def _measured(ratio: dict, device: str = "cpu") -> dict:
    rest = {
        "trained": 10,
        "time": {"median": 0.5, "quartile_1": 0.4, "quartile_3": 0.6},
        "memory": {"peak": 2e6, "rest": 1e6, "resident": 3e6},
        "predicted_over_floor": 1.2,
    }
    return {
        "command": "multiticket bench",
        "shape": {"layers": 1, "width": 64, "vocabulary": 10},
        "batch": 1,
        "tokens": 8,
        "dtype": "float32",
        "device": device,
        "gpu": "a card" if device == "cuda" else None,
        "threads": 2,
        "rounds": 3,
        "parameters": 1000,
        "arms": [
            {"arm": "floor", "kind": "floor", "over": {"full": _over(0.7, 0.6, 0.8)}, **rest},
            {"arm": "full", "kind": "full", "over": {"floor": _over(1.5, 1.4, 1.6)}, **rest},
            {
                "arm": CLAIMED,
                "kind": "ticket",
                "over": {"floor": ratio, "full": _over(0.8, 0.7, 0.9)},
                **rest,
            },
        ],
    }


@pytest.mark.parametrize(
    ("ratios", "judged"),
    [
        ([_over(1.1, 1.05, 1.15)], "reproduced"),
        ([_over(1.1, 1.05, 1.16)], "not decided"),
        ([_over(1.2, 1.16, 1.3)], "not reproduced"),
        ([_over(1.1, 1.05, 1.12), _over(1.2, 1.16, 1.3)], "not reproduced"),
        ([], "not decided"),
    ],
)
def test_the_whole_interval_decides(ratios: list[dict], judged: str) -> None:
    assert verdict(ratios) == judged


def test_each_place_has_its_table_and_the_section_can_be_read_back(tmp_path: Path) -> None:
    slow, fast = _over(1.2, 1.16, 1.3), _over(1.05, 1.0, 1.1)
    section = step_cost_section([_measured(slow), _measured(fast, "cuda")], "a command")
    assert section.verdict == "not reproduced"
    assert "1.20 (1.16 to 1.30) of the floor's time, where full training takes 1.50" in section.answer
    assert [table.caption.split(":")[0] for table in section.tables] == [
        "CPU, float32, 2 threads",
        "a card, float32",
    ]
    assert section.tables[0].rows[0][3:5] == ["1", "0.70 (0.60 to 0.80)"]
    assert section.figures[0].series[0].y == [1.5, 1.2]
    assert not any("GPU" in note for note in section.notes)
    write_section(tmp_path / "s.json", section)
    assert read_section(tmp_path / "s.json") == section


def test_what_was_measured_tells_runs_at_one_place_apart() -> None:
    ratio = _over(1.2, 1.16, 1.3)
    card = _measured(ratio, "cuda")
    assert names_of([_measured(ratio), card, {**card, "compiled": True}]) == [
        "CPU, float32, 2 threads",
        "a card, float32, 0 M, 1 x 8 tokens",
        "a card, float32, 0 M, 1 x 8 tokens, compiled",
    ]


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"sweep": "density", "points": []}))
    with pytest.raises(ValueError, match="does not hold the arms"):
        read_bench(file)
    alone = _measured(_over(1.1, 1.0, 1.2))
    alone["arms"].pop()
    file.write_text(json.dumps(alone))
    with pytest.raises(ValueError, match=f"has no {CLAIMED} beside a floor"):
        read_bench(file)
