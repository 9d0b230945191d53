from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.evaluate.estimators import mean_interval, pass_at_k, wilson


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_answer(counts: tuple[int, int, int]) -> None:
    samples, correct, k = counts
    answers = [True] * correct + [False] * (samples - correct)
    subsets = list(combinations(answers, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_1_is_the_mean() -> None:
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="at least 5 samples"):
        pass_at_k(4, 2, 5)


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (no continuity correction).
    for right, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]:
        assert wilson(right / n, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_yes_or_no_problems_get_wilsons_interval() -> None:
    scores = [1.0] * 30 + [0.0] * 70
    mean, low, high = mean_interval(scores)
    expected = wilson(0.3, 99)  # the sample variance has n - 1
    assert mean == 0.3
    assert (low, high) == (pytest.approx(expected[0], abs=1e-3), pytest.approx(expected[1], abs=1e-3))


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5])
def test_scores_that_do_not_vary_still_have_an_interval(score: float) -> None:
    mean, low, high = mean_interval([score] * 50, samples=4)
    assert mean == score
    assert 0 <= low <= score <= high <= 1
    assert high - low > 0.03


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=60))
def test_an_interval_lies_in_0_1_and_holds_the_mean(scores: list[float]) -> None:
    mean, low, high = mean_interval(scores, samples=4)
    assert -1e-12 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1 + 1e-12


def test_intervals_cover_the_truth_when_problems_differ_in_difficulty() -> None:
    """200 problems of U-shaped difficulty, 16 samples each; counting samples as independent would cover half of it."""
    generator = random.Random(0)
    truth, trials, covered, naive = 0.5, 300, 0, 0
    for _ in range(trials):
        scores = []
        for _ in range(200):
            p = generator.betavariate(0.3, 0.3)
            scores.append(sum(generator.random() < p for _ in range(16)) / 16)
        mean, low, high = mean_interval(scores, samples=16)
        covered += low <= truth <= high
        naive_low, naive_high = wilson(mean, 200 * 16)
        naive += naive_low <= truth <= naive_high
    assert 0.92 <= covered / trials <= 0.98
    assert naive / trials < 0.6


def test_an_interval_needs_problems() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
