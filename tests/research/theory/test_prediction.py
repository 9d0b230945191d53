"""Rank correlations that are known, and predictions over toy runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from multiticket.research.stats.rank_correlation import RankCorrelation, correlations
from multiticket.research.theory.fisher import Sampling
from multiticket.research.theory.prediction import prediction

SAMPLING = Sampling("", "", "score", "validation", 6, 4, 0, 2**30)


def _one(x: list[float], y: list[float]) -> RankCorrelation:
    return correlations({"x": x}, y)[0]


def test_ties_share_their_rank() -> None:
    x, y = [3.0, 1.0, 3.0, 2.0, 5.0], [1.0, 1.0, 2.0, 0.0, 4.0]
    found = _one(x, y)
    assert found.spearman == pytest.approx(np.corrcoef([3.5, 1, 3.5, 2, 5], [2.5, 2.5, 4, 1, 5])[0, 1])
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(kendalltau(x, y).statistic)


def test_perfect_order() -> None:
    """Of the 4! orders two are as extreme: the same and the reverse."""
    found = _one([1, 2, 3, 4], [0.1, 0.2, 0.5, 0.6])
    assert (found.spearman, found.kendall) == pytest.approx((1, 1))
    assert (found.spearman_p, found.kendall_p, found.family_p) == pytest.approx((2 / 24,) * 3)
    assert _one([4, 3, 2, 1], [0.1, 0.2, 0.5, 0.6]).spearman == pytest.approx(-1)


def test_textbook_case() -> None:
    """One swap among five: rho = 1 - 6 sum d^2 / (n (n^2 - 1)), tau = (9 - 1) / 10."""
    found = _one([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert found.spearman == pytest.approx(1 - 6 * 2 / 120)
    assert found.kendall == pytest.approx(0.8)
    assert found.kendall_p == pytest.approx(2 * (1 + 4) / 120)  # at most one discordant pair, either way


def test_ties() -> None:
    found = _one([1, 1, 2, 3], [1, 2, 3, 3])
    assert found.kendall == pytest.approx(4 / 5)  # 4 pairs agree; 5 are untied on either side
    assert found.spearman == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5])[0, 1])


def test_p_of_unrelated_numbers_is_uniform() -> None:
    generator = np.random.default_rng(0)
    found = [_one(list(generator.random(6)), list(generator.random(6))) for _ in range(300)]
    assert sum(one.spearman_p <= 0.1 for one in found) / 300 == pytest.approx(0.1, abs=0.05)


def test_the_best_of_many_predictors_is_not_surprising() -> None:
    generator = np.random.default_rng(1)
    outcome = list(generator.random(12))
    found = correlations({str(i): list(generator.random(12)) for i in range(20)}, outcome)
    best = max(found, key=lambda one: abs(one.spearman))
    assert best.spearman_p < 0.1 < best.family_p


def test_what_cannot_be_correlated() -> None:
    with pytest.raises(ValueError, match="at least four"):
        correlations({"x": [1, 2, 3]}, [1, 2, 3])
    with pytest.raises(ValueError, match="same accuracy"):
        correlations({"x": [1, 2, 3, 4]}, [1, 1, 1, 1])
    assert correlations({"x": [1, 1, 1, 1]}, [1, 2, 3, 4]) == []


def test_of_runs(toy_runs: dict[str, Path], toy_model_folder: Path, tmp_path: Path) -> None:
    """The full arm keeps everything, and masks keep what `theory subspace` says; runs need not be trained for that."""
    import json

    from multiticket import config
    from multiticket.runs.files import write_json
    from multiticket.runs.folder import RunFolder

    paths = [toy_runs["full"], toy_runs["ticket"]]
    for number, (density, after) in enumerate([(0.5, 0.4), (0.02, 0.3), (0.01, 0.1)]):
        folder = RunFolder(tmp_path / str(number))
        settings = {"task": "toy_task:TASK", "model": str(toy_model_folder), "density": density}
        folder.create(config.build(settings))
        write_json(folder.result, {"eval": {"after": {"pass@1": after}}})
        paths.append(folder.path)
    found = prediction(paths, SAMPLING, 2)
    full, ticket, *rest = found["runs"]
    assert (full["mask"], ticket["mask"]) == ("full", "random")
    assert full["energy"] == pytest.approx(1)
    assert full["frobenius"] == pytest.approx(0, abs=1e-6)
    assert [row["energy"] for row in rest] == pytest.approx([0.5, 0.02, 0.01], rel=0.5)
    assert {row["predictor"] for row in found["correlations"]} >= {"energy", "frobenius", "density"}
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="at least four finished runs; there are 2"):
        prediction(paths[:2], SAMPLING, 2)
    with pytest.raises(ValueError, match="trained an adapter"):
        prediction([*paths, toy_runs["lora"]], SAMPLING, 2)
    with pytest.raises(ValueError, match="holds no run"):
        prediction([*paths, tmp_path], SAMPLING, 2)
