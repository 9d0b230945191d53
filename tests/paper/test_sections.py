"""Sections on the gradients' subspace and on prediction, from numbers that are known."""

from __future__ import annotations

from typing import Any

import pytest

from multiticket.research.study.page_section import PageSection
from prediction_page import (
    SIGNS,
    by_way,
    correlated,
    interval_of,
    prediction_section,
    verdict_of,
)
from subspace_page import StateGradients, subspace_section


def _looked(state: str, few: bool = True, spread: bool = True, aligned: bool = True) -> StateGradients:
    rank = {"participation": 19.0, "entropy": 30.0, "energy95": 40.0}
    leading = {"coherence": 30.0, "gaussian_coherence": 25.0, "gaussian_participation": 1 / 3, "numel": 10**6}
    spectrum: dict[str, Any] = {
        "model": "a/path",
        "samples": 100,
        "rollouts": 200,
        "problems": 20,
        "split": "validation",
        "parameters": 10**6,
        "eigenvalues": [3.0, 1.0],
        "effective_rank": rank,
        "noise_rank": {**rank, "participation": 45.0},
        "population_rank": {"value": 59.0, "low": 20.0, "high": 175.0 if few else 1750.0},
        "growth": [
            {"samples": 50, "rank": rank, "noise": 30.0},
            {"samples": 100, "rank": rank, "noise": 45.0},
        ],
        "leading": [{"all": {**leading, "participation": 0.3 if spread else 0.001}}],
        "energy": {},
    }
    numbers = ("energy", "mean_energy", "frobenius", "predicted_frobenius", "operator", "overlap")
    masks = [
        {
            "mask": "random",
            "density": density,
            "seed": seed,
            **dict.fromkeys(numbers, 0.5),
            "alignment": density**0.01 if aligned else 0.8 + 0.15 * seed,
            "cosines": [1.0, 0.5],
        }
        for density in (0.1, 0.01)
        for seed in (0, 1)
    ]
    return StateGradients(state, 0.5, spectrum, {"rank": 2, "chance_overlap": 0.02, "masks": masks})


def _subspace(*states: StateGradients) -> PageSection:
    return subspace_section(states, 0.01, "Settings.", "a command", {})


def test_all_parts_in_every_state() -> None:
    section = _subspace(_looked("base"), _looked("end"))
    assert section.verdict == "reproduced"
    assert "base 19 (noise 45), 59 (20 to 175) beyond the samples" in section.answer
    assert section.figures[0].series[0].y == [0.75, 0.25]
    assert "a/path" not in section.model_dump_json()


@pytest.mark.parametrize("part", ["few", "spread", "aligned"])
def test_a_part_that_fails_everywhere_or_somewhere(part: str) -> None:
    failing = _looked("base", **{part: False})
    assert _subspace(failing, failing).verdict == "not reproduced"
    section = _subspace(_looked("base"), failing)
    assert section.verdict == "not decided"
    assert "in 1 of 2 states" in section.answer


def _row(way: str, alignment: float, after: float) -> dict[str, Any]:
    return {
        "run": f"a/path/{way}",
        "way": way,
        **dict.fromkeys(SIGNS, 0.5),
        "alignment": alignment,
        "after": after,
    }


def _rows(order: list[int]) -> list[dict[str, Any]]:
    return [
        _row(f"way {i}", 0.1 * i + 0.001 * seed, 0.1 * place + 0.001 * seed)
        for i, place in enumerate(order)
        for seed in (0, 1)
    ]


def test_runs_of_one_way_are_one_point() -> None:
    ways = by_way(_rows([0, 1, 2, 3, 4]))
    assert len(ways) == 5
    assert ways[2]["alignment"] == pytest.approx(0.2005)
    assert correlated(ways)["alignment"].spearman == pytest.approx(1.0)
    assert correlated(ways[:3]) == {}


@pytest.mark.parametrize(
    ("order", "judged"),
    [
        (list(range(8)), "reproduced"),
        (list(range(8))[::-1], "not reproduced"),
        ([3, 0, 5, 1, 7, 2, 6, 4], "not decided"),
    ],
)
def test_the_chosen_predictor_decides_once_all_is_done(order: list[int], judged: str) -> None:
    rows = _rows(order)
    found = {"runs": rows, "samples": 100, "correlations": []}
    section = prediction_section(found, [], True, "Settings.", "a command")
    assert section.verdict == judged == verdict_of(correlated(by_way(rows))["alignment"], 8)
    assert section.n.startswith("8 ways of choosing positions, 16 runs")
    assert "a/path" not in section.model_dump_json()
    early = prediction_section(found, ["magnitude"], False, "Settings.", "a command")
    assert early.verdict == "not decided"
    assert any("magnitude" in note for note in early.notes)


def test_interval_of_a_rank_correlation() -> None:
    """r = 0.5, n = 28: atanh 0.5493, half width 1.96 sqrt(1.125 / 25) = 0.4158."""
    assert interval_of(0.5, 28) == (pytest.approx(0.1328, abs=1e-3), pytest.approx(0.7467, abs=1e-3))
    assert interval_of(0.5, 3) == (-1.0, 1.0)
