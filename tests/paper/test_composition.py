"""The section on composed tickets, from scores that are known; and single states measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from composition import SHUFFLED, Combination, Composed, Composer, Found
from composition_page import composition_section
from multiticket.config import EvalConfig
from multiticket.evaluate.problem_results import Results
from multiticket.research.study.page_section import PageSection
from multiticket.research.theory.trajectory import Contexts

TASKS = ("sums", "names")
TOGETHER = Combination("together", ((1.0, "A"), (1.0, "B")), ("A", "B"))
SCALED = Combination("B × 0.5", ((1.0, "A"), (0.5, "B")), ("A", "B"))
PROBLEMS = 1000


def _results(share: float, seed: int) -> Results:
    right = np.arange(PROBLEMS) < share * PROBLEMS
    right = np.roll(right, seed)
    problems = [(i, f"p{i}", f"a{i}") for i in range(PROBLEMS)]
    return Results(Path("r"), problems, right.astype(np.float64), right, 4, None)


def _kl(value: float) -> dict[str, Any]:
    return {"completion": value}


def _composed(seed: int, together: tuple[float, float]) -> Composed:
    shares = {
        "base": (0.3, 0.3),
        "A": (0.8, 0.2),
        "B": (0.25, 0.7),
        "together": together,
        "B × 0.5": (0.7, 0.5),
    }
    pair = {task: {"additive": _kl(0.2), "drift": _kl(0.3), "interaction": 0.25} for task in TASKS}
    return Composed(
        seed,
        scores={
            s: {t: _results(p, seed) for t, p in zip(TASKS, both, strict=True)} for s, both in shares.items()
        },
        sizes={name: {"moved": 10, "relative": 0.1, "relative_there": 0.9} for name in "AB"},
        kl_from_base={
            "A": {"sums": _kl(1.5), "names": _kl(0.5)},
            "B": {"sums": _kl(0.75), "names": _kl(2.0)},
        },
        kl_from_apart={name: {task: _kl(0.6) for task in TASKS} for name in ("together", "B × 0.5")},
        interference={"together": pair},
        cosines={"together": 0.0},
    )


def _section(together: tuple[float, float]) -> PageSection:
    found = Found([_composed(seed, together) for seed in (0, 1, 2)], [TOGETHER, SCALED], TASKS)
    return composition_section(found, "together", "Settings.", "a command", [], {"problems": PROBLEMS})


@pytest.mark.parametrize(
    ("together", "judged"),
    [((0.8, 0.7), "reproduced"), ((0.8, 0.6), "not reproduced"), ((0.8, 0.678), "not decided")],
)
def test_both_tasks_must_be_kept(together: tuple[float, float], judged: str) -> None:
    assert _section(together).verdict == judged


def test_the_numbers_are_those_that_were_measured() -> None:
    section = _section((0.8, 0.6))
    assert (
        "Applied together: 80.0 / 60.0 %, where apart 80.0 / 70.0 and the base 30.0 / 30.0 %"
        in section.answer
    )
    assert "B alone has 25.0 % of sums" in section.answer
    assert (
        "by itself moves the base by 0.75 nats a completion, where A moved it by 1.50, and 25 %"
        in section.answer
    )
    difference = section.numbers["judged"]["together"]["names"]
    assert difference["difference"] == pytest.approx(-0.1)
    assert difference["worse"]
    off_over_own = {row[0]: row[-1] for row in section.tables[1].rows}
    assert off_over_own == {"A": pytest.approx(0.333), "B": 0.375}
    scores = {row[0]: row for row in section.tables[0].rows}
    assert "B × 0.5" not in scores
    assert scores["together"][6] == 60.0
    curve = section.figures[2].series[0]
    assert (curve.x, curve.y) == ([0.0, 0.5, 1.0], pytest.approx([80.0, 70.0, 80.0]))


def test_a_composer_adds_what_runs_trained(
    toy_model_folder: Path, toy_runs: dict[str, Path], tmp_path: Path
) -> None:
    import torch

    from multiticket.mask import masked_candidates
    from multiticket.research.theory.states import find_state

    said: list[str] = []
    composer = Composer(
        str(toy_model_folder),
        ["toy_task:TASK"],
        {"A": toy_runs["ticket"], "full": toy_runs["full"]},
        EvalConfig(problems=6, samples=2),
        Contexts("validation", 3, 2, 0),
        tmp_path / "evals",
        said.append,
    )
    trained, _ = find_state(str(toy_runs["ticket"])).load()
    weights = masked_candidates(trained)
    moved = {name: int((delta != 0).sum()) for name, delta in composer.vectors["A"].items()}
    base = masked_candidates(composer.base)
    assert moved == {
        name: int((weights[name] != base[name]).sum())
        for name in weights
        if not torch.equal(weights[name], base[name])
    }
    found = composer.score("A", ((1.0, "A"),), "toy_task:TASK")
    assert len(found.problems) == 6
    assert said == ["A on toy_task:TASK"]
    composer.score("A", ((1.0, "A"),), "toy_task:TASK")
    assert len(said) == 1
    composer.score("A", ((0.5, "A" + SHUFFLED),), "toy_task:TASK")
    assert len(said) == 2
    rollouts = composer.sample("toy_task:TASK", ())
    assert composer.kl((), (), rollouts)["completion"] == 0
    apart = composer.kl((), ((1.0, "A"),), rollouts)["completion"]
    assert apart > composer.kl((), ((0.5, "A"),), rollouts)["completion"] > 0
