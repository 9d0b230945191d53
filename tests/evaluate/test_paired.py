"""Intervals and verdicts on the difference of two sides, on synthetic data whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from multiticket.evaluate.paired import mcnemar, paired_difference


class World:
    """Problems of all difficulties, and two models of which B is right more often by `effect` on average."""

    def __init__(self, effect: float, run_deviation: float = 0.0) -> None:
        self.effect = effect
        self.run_deviation = run_deviation

    def measure(
        self, generator: Any, problems: int, samples: int, runs: tuple[int, int] = (1, 1)
    ) -> tuple[Any, Any]:
        ease = generator.uniform(0.25, 0.75, size=problems)
        individual = generator.uniform(
            -0.1, 0.1, size=problems
        )  # B is better at some problems, worse at others
        sides = []
        for count, moved in zip(runs, (-0.5, 0.5), strict=True):
            luck = generator.normal(0, self.run_deviation, size=(count, 1)) if self.run_deviation else 0.0
            chance = np.clip(ease + moved * (self.effect + individual) + luck, 0, 1)
            chance = np.broadcast_to(chance, (count, problems))
            sides.append(generator.binomial(samples, chance) / samples)
        return sides[0], sides[1]


def _trials(
    world: World, trials: int, problems: int, samples: int, resamples: int = 1, **more: Any
) -> list[Any]:
    generator = np.random.default_rng(1)
    drawn = (world.measure(generator, problems, samples, **more) for _ in range(trials))
    return [paired_difference(a, b, samples, resamples) for a, b in drawn]


def _covered(found: list[Any], truth: float, name: str = "interval") -> float:
    return float(np.mean([getattr(one, name)[0] <= truth <= getattr(one, name)[1] for one in found]))


@pytest.mark.parametrize(("problems", "samples"), [(400, 4), (60, 1), (20, 1), (20, 4)])
def test_intervals_cover_the_truth_as_often_as_they_say(problems: int, samples: int) -> None:
    found = _trials(World(effect=0.05), 1000, problems, samples, resamples=200)
    assert _covered(found, 0.05) == pytest.approx(0.955, abs=0.02)
    assert _covered(found, 0.05, "bootstrap") > (0.92 if problems > 20 else 0.88)


def test_pairing_is_what_makes_the_interval_narrow() -> None:
    generator = np.random.default_rng(0)
    ease = generator.choice([0.02, 0.98], size=400)
    a, b = (generator.binomial(4, ease, size=(1, 400)) / 4 for _ in range(2))
    unpaired = math.sqrt(a.var(ddof=1) / 400 + b.var(ddof=1) / 400)
    assert paired_difference(a, b, 4).standard_error < unpaired / 4


@pytest.mark.parametrize(("samples", "runs"), [(4, (1, 1)), (1, (1, 1)), (2, (3, 3))])
def test_at_the_margin_non_inferiority_is_found_five_times_in_a_hundred(
    samples: int, runs: tuple[int, int]
) -> None:
    margin, several = 0.04, runs[0] > 1
    found = _trials(
        World(-margin, 0.04 if several else 0.0), 700 if several else 2000, 200, samples, runs=runs
    )
    wrongly = float(np.mean([one.not_worse_by(margin) for one in found]))
    assert (0.02 if several else 0.035) < wrongly < 0.065
    assert float(np.mean([one.worse_by(margin) for one in found])) < 0.065


def test_non_inferiority_is_found_where_there_is_no_difference() -> None:
    found = _trials(World(0.0), 300, 1000, 4)
    assert np.mean([one.not_worse_by(0.04) for one in found]) > 0.9
    assert not any(one.worse_by(0.04) for one in found)


@pytest.mark.parametrize("runs", [(3, 3), (5, 2)])
def test_with_several_runs_the_interval_is_about_the_way_of_training(runs: tuple[int, int]) -> None:
    """Runs differ by more than the problems' own noise: an interval over problems alone would be far too narrow."""
    found = _trials(World(0.03, run_deviation=0.03), 400, 400, 4, runs=runs)
    assert 0.92 < _covered(found, 0.03) < 0.985
    alone = [
        paired_difference(a.mean(axis=0, keepdims=True), b.mean(axis=0, keepdims=True), 4, 1)
        for a, b in (World(0.03, 0.03).measure(np.random.default_rng(i), 400, 4, runs) for i in range(300))
    ]
    assert _covered(alone, 0.03) < 0.7


def test_the_bootstrap_draws_problems_and_runs() -> None:
    """Its variance is that of a plain loop which draws both and averages."""
    generator = np.random.default_rng(3)
    a, b = World(0.1, run_deviation=0.1).measure(generator, 40, 4, runs=(4, 3))
    means = []
    for _ in range(6000):
        problems = generator.integers(0, 40, size=40)
        drawn = [side[generator.integers(0, len(side), size=len(side))][:, problems] for side in (a, b)]
        means.append(drawn[1].mean() - drawn[0].mean())
    found = paired_difference(a, b, 4)
    spread = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    assert found.bootstrap == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05 * spread)
    assert paired_difference(a, b, 4) == found, "the same seed gives the same interval"


def test_yes_or_no_scores_have_bonett_and_prices_error() -> None:
    a = np.array([[1.0] * 12 + [0.0] * 5 + [1.0] * 30 + [0.0] * 3])
    b = np.array([[0.0] * 12 + [1.0] * 5 + [1.0] * 30 + [0.0] * 3])
    n, only_a, only_b = 50, 13 / 52, 6 / 52  # one more of each, two problems more
    variance = (only_a + only_b - (only_a - only_b) ** 2) / (n + 1)
    found = paired_difference(a, b)
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert found.difference == pytest.approx(-7 / 50)


def test_no_difference_at_all_is_not_certainty() -> None:
    same = np.ones((1, 10))
    found = paired_difference(same, same)
    assert found.difference == 0
    assert found.interval[0] < -0.1 < 0.1 < found.interval[1]
    assert not found.not_worse_by(0.02)


@given(arrays(float, (2, 3, 7), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])))
def test_swapping_the_sides_turns_everything_round(sides: Any) -> None:
    there, back = (paired_difference(*pair, 4, resamples=20) for pair in (sides, sides[::-1]))
    assert there.difference == pytest.approx(-back.difference)
    assert there.standard_error == pytest.approx(back.standard_error)
    assert there.lower_bound == pytest.approx(-back.upper_bound)
    assert (
        there.interval[0] <= there.lower_bound <= there.difference <= there.upper_bound <= there.interval[1]
    )


def test_sides_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of problems"):
        paired_difference(np.ones((1, 3)), np.ones((1, 4)))


def _answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[Any, Any]:
    a = np.array([True] * (both + only_a) + [False] * (only_b + neither))
    b = np.array([True] * both + [False] * only_a + [True] * only_b + [False] * neither)
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(1, 6, 2 * 8 / 128), (0, 5, 2 / 32), (0, 0, 1.0), (4, 4, 1.0), (10, 0, 2 / 1024)],
)
def test_mcnemar_is_a_coin_tossed_for_each_problem_on_which_they_differ(
    only_a: int, only_b: int, p: float
) -> None:
    found = mcnemar(*_answers(20, only_a, only_b, 7))
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(p)


def test_mcnemar_is_right_at_most_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(2000):
        chance = generator.uniform(size=80)
        a, b = (generator.uniform(size=80) < chance for _ in range(2))
        rejected += mcnemar(a, b).p_value <= 0.05
    assert 0.01 < rejected / 2000 <= 0.06
